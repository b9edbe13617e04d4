# ruff: noqa: N802 (RPCs are named by their contracts)
"""Owns the fakes of ledger, pricing and proxy: small in-memory servicers, each on a real gRPC server of its own.

The ledger keeps to its contract where deliveries depend on it: idempotency keys, the future of an expiry, unknown
accounts. Each fake records the calls it was sent, can be down, can be slow, and can lose its answers.
"""

import threading
import time
from concurrent import futures
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta

import grpc
from google.protobuf import any_pb2
from google.rpc import error_details_pb2, status_pb2
from tollkeeper.ledger.v1 import ledger_service_pb2 as ledger_pb
from tollkeeper.ledger.v1 import ledger_service_pb2_grpc as ledger_grpc
from tollkeeper.ledger.v1 import resources_pb2 as ledger_resources
from tollkeeper.pricing.v1 import plan_service_pb2 as plan_pb
from tollkeeper.pricing.v1 import plan_service_pb2_grpc as plan_grpc
from tollkeeper.pricing.v1 import resources_pb2 as pricing_resources
from tollkeeper.proxy.v1 import entitlement_service_pb2_grpc as entitlement_grpc

from services.kit.times import timestamp

USD = 1_000_000_000


class Peer:
    """What all fakes share. `down`: refuse with UNAVAILABLE. `lost_answers`: take a request in, but answer UNAVAILABLE
    the first so many times it comes."""

    def __init__(self):
        self.lock = threading.RLock()
        self.calls = []
        self.down = False
        self.lost_answers = 0
        self.gate = None  # an Event that every call waits for
        self.arrived = threading.Event()
        self.metadata = []
        self.address = ""

    @contextmanager
    def call(self, name, request, context):
        if self.down:
            context.abort(grpc.StatusCode.UNAVAILABLE, "down")
        self.metadata.append(dict(context.invocation_metadata()))
        self.arrived.set()
        if self.gate is not None:
            self.gate.wait(20)
        with self.lock:
            copy = type(request)()
            copy.CopyFrom(request)
            self.calls.append((name, copy))
            yield
        if len([again for again in self.named(name) if again == request]) <= self.lost_answers:
            context.abort(grpc.StatusCode.UNAVAILABLE, "the answer was lost")

    def named(self, name):
        return [request for called, request in self.calls if called == name]

    @contextmanager
    def served(self, *registrars, address="127.0.0.1:0"):
        server = grpc.server(futures.ThreadPoolExecutor(16), options=[("grpc.so_reuseport", 0)])
        for add in registrars:
            add(self, server)
        port = server.add_insecure_port(address)
        self.address = f"127.0.0.1:{port}"
        server.start()
        try:
            yield self
        finally:
            if self.gate is not None:
                self.gate.set()
            server.stop(0).wait()


def refusal(code, reason, **metadata):
    detail = any_pb2.Any()
    detail.Pack(error_details_pb2.ErrorInfo(reason=reason, domain="tollkeeper.ledger", metadata=metadata))
    return status_pb2.Status(code=code.value[0], message=reason.lower(), details=[detail])


class FakeLedger(
    Peer, ledger_grpc.AccountServiceServicer, ledger_grpc.LedgerServiceServicer, ledger_grpc.JournalServiceServicer
):
    """Opens books, keeps limits and grants, each request id once; `books[account]` is what a test may set and read."""

    def __init__(self):
        super().__init__()
        self.books = {}
        self.usage = []  # sums of usage, as they are asked for
        self.records = []  # what the usage feed gives; a cursor is how many have been given
        self.refuse = {}  # kind of operation → google.rpc.Status
        self.page_size = 1000
        self.applied = []  # (account, what) in the order it took effect

    def serve(self):
        return self.served(
            ledger_grpc.add_AccountServiceServicer_to_server,
            ledger_grpc.add_LedgerServiceServicer_to_server,
            ledger_grpc.add_JournalServiceServicer_to_server,
        )

    def OpenAccount(self, request, context):
        with self.call("OpenAccount", request, context):
            words = request.SerializeToString(deterministic=True)
            book = self.books.get(request.account_id)
            if book is not None and book["words"] != words:
                context.abort(grpc.StatusCode.ALREADY_EXISTS, "opened with other words")
            if book is None:
                self.applied.append((request.account_id, "open"))
                self.books[request.account_id] = {
                    "words": words, "keys": {}, "limits": {}, "grants": [], "cycle_spent": 0, "held": 0, "used": {},
                    "anchor": request.cycle_anchor.ToDatetime(tzinfo=UTC), "cycle_start": None, "reversals": [],
                    "left": {}, "spent": {}, "status": "open",
                }  # fmt: skip
            return ledger_resources.Account(account_id=request.account_id)

    def Apply(self, request, context):
        with self.call("Apply", request, context):
            return ledger_pb.ApplyResponse(results=[self._operation(operation) for operation in request.operations])

    def _operation(self, operation):
        kind = operation.WhichOneof("kind")
        request = getattr(operation, kind)
        if kind in self.refuse:
            return ledger_pb.OperationResult(error=self.refuse[kind])
        account_id = request.account.account_id if kind == "update_account" else request.account_id
        book = self.books.get(account_id)
        if book is None:
            return ledger_pb.OperationResult(error=refusal(grpc.StatusCode.NOT_FOUND, "ACCOUNT_NOT_FOUND"))
        if book["status"] == "closed":
            return ledger_pb.OperationResult(error=refusal(grpc.StatusCode.FAILED_PRECONDITION, "ACCOUNT_CLOSED"))
        if kind == "delete_limit":
            if book["limits"].pop(request.limit_id, None) is not None:
                self.applied.append((request.account_id, f"end {request.limit_id}"))
            return ledger_pb.OperationResult(limit_deleted=ledger_pb.DeleteLimitResponse())
        words = request.SerializeToString(deterministic=True)
        first = book["keys"].setdefault(request.request_id, words)
        if first != words:
            return ledger_pb.OperationResult(error=refusal(grpc.StatusCode.ALREADY_EXISTS, "IDEMPOTENCY_CONFLICT"))
        replayed = (account_id, request.request_id) in self.applied
        does = {"set_limit": self._limit, "credit": self._grant, "reverse": self._reverse, "update_account": self._move}
        return does[kind](request, book, replayed=replayed)

    def _limit(self, request, book, *, replayed):
        if not replayed:
            book["limits"][f"{request.scope}::{request.unit}:{request.window}"] = request
            self.applied.append((request.account_id, request.request_id))
        return ledger_pb.OperationResult(limit=ledger_resources.Limit(), replayed=replayed)

    def _grant(self, request, book, *, replayed):
        if request.HasField("expires_at") and request.expires_at.ToDatetime(tzinfo=UTC) <= datetime.now(UTC):
            return ledger_pb.OperationResult(error=refusal(grpc.StatusCode.INVALID_ARGUMENT, "INVALID_ARGUMENT"))
        if not replayed:
            book["grants"].append(request)
            book["left"][f"tx-{request.request_id}"] = request.amount_nanos
            self.applied.append((request.account_id, request.request_id))
        transaction = ledger_resources.Transaction(transaction_id=f"tx-{request.request_id}")
        return ledger_pb.OperationResult(transaction=transaction, replayed=replayed)

    def _reverse(self, request, book, *, replayed):
        left = book["left"].get(request.transaction_id)
        if left is None:
            return ledger_pb.OperationResult(error=refusal(grpc.StatusCode.NOT_FOUND, "TRANSACTION_NOT_FOUND"))
        if not replayed:
            if not 0 < request.amount_nanos <= left:
                return ledger_pb.OperationResult(
                    error=refusal(grpc.StatusCode.FAILED_PRECONDITION, "REFUND_EXCEEDS_ORIGINAL", leftNanos=str(left))
                )
            book["left"][request.transaction_id] -= request.amount_nanos
            book["reversals"].append(request)
            self.applied.append((request.account_id, request.request_id))
        spent = min(book["spent"].get(request.transaction_id, 0), request.amount_nanos)
        transaction = ledger_resources.Transaction(
            postings=[ledger_resources.Posting(sub_account="available", amount_nanos=-request.amount_nanos)],
            grant_uses=[
                ledger_resources.GrantUse(
                    grant_id=f"of-{request.transaction_id}", amount_nanos=request.amount_nanos - spent
                ),
                ledger_resources.GrantUse(grant_id="another", amount_nanos=spent),
            ],
        )
        return ledger_pb.OperationResult(transaction=transaction, replayed=replayed)

    def GetTransaction(self, request, context):
        with self.call("GetTransaction", request, context):
            use = ledger_resources.GrantUse(grant_id=f"of-{request.transaction_id}")
            return ledger_resources.Transaction(transaction_id=request.transaction_id, grant_uses=[use])

    def _move(self, request, book, *, replayed):
        if not replayed:
            book["anchor"] = request.account.cycle_anchor.ToDatetime(tzinfo=UTC)
            self.applied.append((request.account.account_id, request.request_id))
        return ledger_pb.OperationResult(account=request.account, replayed=replayed)

    def GetAccount(self, request, context):
        with self.call("GetAccount", request, context):
            if request.account_id not in self.books:
                context.abort(grpc.StatusCode.NOT_FOUND, "no such account")
            status = self.books[request.account_id]["status"]
            return ledger_resources.Account(account_id=request.account_id, status=status)

    def ListAccounts(self, request, context):
        # Asked for by each process that starts, so it is not among the calls, and no gate holds it up.
        if self.down:
            context.abort(grpc.StatusCode.UNAVAILABLE, "down")
        with self.lock:
            found = sorted(a for a, book in self.books.items() if book["status"] == request.status)
        rest = [account_id for account_id in found if account_id > request.page_token]
        page = rest[: self.page_size]
        return ledger_pb.ListAccountsResponse(
            accounts=[ledger_resources.Account(account_id=a, status=request.status) for a in page],
            next_page_token=page[-1] if len(rest) > len(page) else "",
        )

    def GetBalance(self, request, context):
        with self.call("GetBalance", request, context):
            book = self.books.get(request.account_id)
            if book is None:
                context.abort(grpc.StatusCode.NOT_FOUND, "no such account")
            funded = sum(grant.amount_nanos for grant in book["grants"])
            funded -= sum(reversal.amount_nanos for reversal in book["reversals"])
            start = book["cycle_start"] or book["anchor"]
            balance = ledger_resources.Balance(
                account_id=request.account_id,
                available_nanos=funded - book["cycle_spent"] - book["held"],
                held_nanos=book["held"],
                spent_nanos=book["cycle_spent"],
                cycle_spent_nanos=book["cycle_spent"],
            )
            balance.cycle_start.FromDatetime(start)
            balance.cycle_end.FromDatetime(start + timedelta(days=30))
            return balance

    def ListLimits(self, request, context):
        with self.call("ListLimits", request, context):
            book = self.books.get(request.account_id)
            if book is None:
                context.abort(grpc.StatusCode.NOT_FOUND, "no such account")
            resets_at = timestamp((book["cycle_start"] or book["anchor"]) + timedelta(days=30))
            return ledger_pb.ListLimitsResponse(
                limits=[
                    ledger_resources.Limit(
                        limit_id=limit_id, scope=x.scope, unit=x.unit, window=x.window, amount=x.amount,
                        used=book["used"].get(limit_id, 0), resets_at=resets_at,
                    )
                    for limit_id, x in book["limits"].items()
                    if not request.scope or x.scope == request.scope
                ]
            )  # fmt: skip

    def SummarizeUsage(self, request, context):
        with self.call("SummarizeUsage", request, context):
            if self.records:
                return ledger_pb.SummarizeUsageResponse(summaries=[self._sums(request)])
            return ledger_pb.SummarizeUsageResponse(summaries=self.usage)

    def _sums(self, request):
        start, end = request.from_time.ToDatetime(tzinfo=UTC), request.to_time.ToDatetime(tzinfo=UTC)
        found = [
            record
            for record in self.records
            if record.account_id == request.account_id and start <= record.created_at.ToDatetime(tzinfo=UTC) < end
        ]
        internal = [record.total_tokens for record in found if record.internal]
        return ledger_resources.UsageSummary(
            requests=len(found),
            total_tokens=sum(record.total_tokens for record in found),
            internal_requests=len(internal),
            internal_tokens=sum(internal),
        )

    def use(self, account_id, tokens, moment, *, internal=False):
        """A call through the proxy, as the feed tells of it."""
        record = ledger_resources.UsageRecord(account_id=account_id, total_tokens=tokens, internal=internal)
        record.created_at.FromDatetime(moment)
        with self.lock:
            self.records.append(record)

    def StreamUsage(self, request, context):
        # Asked for all the time, so it is not among the calls, and no gate holds it up.
        if self.down:
            context.abort(grpc.StatusCode.UNAVAILABLE, "down")
        if not request.cursor.isdecimal() and request.cursor:
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, "not a cursor of this feed")
        given, end = int(request.cursor or 0), len(self.records)
        while given < end:
            batch = self.records[given : min(given + request.batch_size, end)]
            given += len(batch)
            yield ledger_pb.StreamUsageResponse(records=batch, cursor=str(given))


class FakePricing(Peer, plan_grpc.PlanServiceServicer):
    """Plans by id, each with its versions, the last one the newest."""

    def __init__(self):
        super().__init__()
        self.versions = {}

    def serve(self):
        return self.served(plan_grpc.add_PlanServiceServicer_to_server)

    def publish(self, plan_id, **fields):
        versions = self.versions.setdefault(plan_id, [])
        fields = {"multiplier_millionths": 1_000_000, "warn_percent": 80, "kind": "subscription"} | fields
        plan = pricing_resources.Plan(plan_id=plan_id, version=len(versions) + 1, **fields)
        versions.append(plan)
        return plan

    def publish_metered(self):
        """The metered plans as they are shipped: hard on free, soft on the paid one."""
        names = ("llm_tokens", "api_calls", "agent_executions", "storage_gb", "user_seats")
        shipped = {
            "metered-free": ("hard", 0, (10_000, 1000, 100, 1, 3), (0, 0, 0, 0, 0)),
            "metered-standard": (
                "soft", 99 * USD, (1_000_000, 100_000, 5000, 100, 25),
                (20 * USD, 1000 * USD, 100_000 * USD, 500_000 * USD, 15_000_000 * USD),
            ),
        }  # fmt: skip
        for plan_id, (cap, price_nanos, included, rates) in shipped.items():
            metrics = [
                pricing_resources.PlanMetric(metric=name, included=most, overage_nanos_per_million=rate, cap=cap)
                for name, most, rate in zip(names, included, rates, strict=True)
            ]
            self.publish(
                plan_id, kind="metered", price_nanos=price_nanos, providers=["*"], models=["*"], metrics=metrics
            )

    def GetPlan(self, request, context):
        with self.call("GetPlan", request, context):
            versions = self.versions.get(request.plan_id)
            if not versions:
                context.abort(grpc.StatusCode.NOT_FOUND, "no such plan")
            return versions[(request.version or len(versions)) - 1]

    def ListPlans(self, request, context):
        """Two plans a page, whatever was asked for: pages have to be followed."""
        with self.call("ListPlans", request, context):
            newest = [versions[-1] for versions in self.versions.values() if not versions[-1].retired]
            start = int(request.page_token or 0)
            more = str(start + 2) if start + 2 < len(newest) else ""
            return plan_pb.ListPlansResponse(plans=newest[start : start + 2], next_page_token=more)

    def QuoteOverage(self, request, context):
        with self.call("QuoteOverage", request, context):
            plan = self.versions[request.plan_id][request.plan_version - 1]
            used = request.used["llm_tokens"]
            overage = max(0, used - plan.tokens_per_cycle)
            cost = overage * plan.overage_nanos_per_million_tokens // 1_000_000
            line = plan_pb.OverageLine(metric="llm_tokens", used=used, overage=overage, cost_nanos=cost)
            return plan_pb.QuoteOverageResponse(lines=[line], total_nanos=cost)

    def RecommendPlan(self, request, context):
        with self.call("RecommendPlan", request, context):
            return plan_pb.RecommendPlanResponse(
                projected_spend_nanos=2 * request.spend_nanos, plan=self.versions["starter"][-1], covers=True
            )


class FakeProxy(Peer, entitlement_grpc.EntitlementServiceServicer):
    """The entitlement of each account with the highest revision."""

    def __init__(self):
        super().__init__()
        self.entitlements = {}

    def serve(self):
        return self.served(entitlement_grpc.add_EntitlementServiceServicer_to_server)

    def SetEntitlement(self, request, context):
        with self.call("SetEntitlement", request, context):
            known = self.entitlements.get(request.entitlement.account_id)
            if known is None or known.revision < request.entitlement.revision:
                self.entitlements[request.entitlement.account_id] = request.entitlement
            return self.entitlements[request.entitlement.account_id]


def eventually(check, timeout_seconds=10):
    """Wait until `check()` holds; its last value."""
    deadline = time.monotonic() + timeout_seconds
    while not (value := check()) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert value, "it did not come about in time"
    return value
