"""Owns the proxy's peers in tests: a ledger and a pricing service kept in memory, served over real gRPC."""

import asyncio
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC

import grpc
import grpc.aio
from google.protobuf import any_pb2
from google.protobuf.timestamp_pb2 import Timestamp
from google.rpc import code_pb2, error_details_pb2, status_pb2
from tollkeeper.ledger.v1 import ledger_service_pb2 as ledger_pb
from tollkeeper.ledger.v1 import ledger_service_pb2_grpc
from tollkeeper.ledger.v1 import resources_pb2 as ledger_resources_pb2
from tollkeeper.pricing.v1 import pricing_service_pb2, pricing_service_pb2_grpc, resources_pb2

from services.proxy.upstream import Provider
from services.proxy.upstream.configuration import Base

USD = 1_000_000_000
CYCLE_END = Timestamp(seconds=1_800_000_000)


def refusal(code, reason, message="refused", **metadata):
    info = any_pb2.Any()
    info.Pack(error_details_pb2.ErrorInfo(reason=reason, domain="tollkeeper.ledger", metadata=metadata))
    return ledger_pb.OperationResult(error=status_pb2.Status(code=code, message=message, details=[info]))


@dataclass
class Account:
    available: int
    spent: int = 0
    token_limit: int | None = None
    tokens: int = 0
    request_limit: int | None = None  # a soft one
    requests: int = 0

    def quotas(self):
        counted = (("requests", self.request_limit, self.requests), ("tokens", self.token_limit, self.tokens))
        return [
            ledger_resources_pb2.Quota(unit=unit, amount=limit, remaining=max(limit - used, 0), resets_at=CYCLE_END)
            for unit, limit, used in counted
            if limit is not None
        ]

    def exceeded(self):
        """What the refusal of the token limit says, all of it held."""
        figures = {"amount": self.token_limit, "used": 0, "held": self.tokens, "required": self.token_limit + 1}
        resets_at = CYCLE_END.ToDatetime(UTC).isoformat()
        return {"limitId": "plan::tokens:cycle", "resetsAt": resets_at} | {k: str(v) for k, v in figures.items()}


@dataclass
class FakeLedger(ledger_service_pb2_grpc.LedgerServiceServicer):
    """Holds and settles as the contract says. `down` does not answer; `lose` applies, then loses so many answers."""

    accounts: dict = field(default_factory=dict)
    holds: dict = field(default_factory=dict)
    settled: dict = field(default_factory=dict)
    released: list = field(default_factory=list)
    limits: list = field(default_factory=list)
    log: list = field(default_factory=list)
    applies: list = field(default_factory=list)
    down: set = field(default_factory=set)  # kinds of operations that are not answered
    lose: dict = field(default_factory=dict)  # kind: how many answers are lost
    delay_seconds: float = 0.0
    gate: asyncio.Event | None = None  # calls that find one wait for it
    asked: int = 0  # calls of Apply, those not answered among them

    def __post_init__(self):
        super().__init__()

    async def Apply(self, request, context):  # noqa: N802
        self.asked += 1
        if self.delay_seconds:
            await asyncio.sleep(self.delay_seconds)
        if self.gate is not None:
            await self.gate.wait()
        kinds = [operation.WhichOneof("kind") for operation in request.operations]
        if self.down.intersection(kinds):
            await context.abort(grpc.StatusCode.INTERNAL, "down")
        self.applies.append(kinds)
        results = [self._apply(operation) for operation in request.operations]
        for kind in kinds:
            if self.lose.get(kind):
                self.lose[kind] -= 1
                await context.abort(grpc.StatusCode.INTERNAL, "the answer is lost")
        return ledger_pb.ApplyResponse(results=results)

    def _apply(self, operation):
        kind = operation.WhichOneof("kind")
        body = getattr(operation, kind)
        self.log.append((kind, body))
        return getattr(self, f"_{kind}")(body)

    def _hold(self, body):
        account = self.accounts.get(body.account_id)
        if account is None:
            return refusal(code_pb2.NOT_FOUND, "ACCOUNT_NOT_FOUND")
        if body.hold_id in self.holds:
            first = ledger_pb.CreateHoldResponse()
            first.CopyFrom(self.holds[body.hold_id])
            first.ClearField("quotas")
            return ledger_pb.OperationResult(hold=first, replayed=True)
        least = body.minimum_amount_nanos if body.HasField("minimum_amount_nanos") else body.amount_nanos
        billable = body.billable if body.HasField("billable") else True
        amount = min(body.amount_nanos, max(account.available, 0))
        if billable and amount < least:
            return refusal(code_pb2.RESOURCE_EXHAUSTED, "INSUFFICIENT_CREDIT", "out of credit")
        tokens = body.tokens
        if account.token_limit is not None:
            tokens = min(tokens, account.token_limit - account.tokens)
            if tokens < body.minimum_tokens:
                return refusal(code_pb2.RESOURCE_EXHAUSTED, "LIMIT_EXCEEDED", "too many tokens", **account.exceeded())
        account.available -= amount
        account.tokens += tokens
        account.requests += body.requests
        response = ledger_pb.CreateHoldResponse(available_nanos=account.available, quotas=account.quotas())
        response.hold.hold_id, response.hold.account_id = body.hold_id, body.account_id
        response.hold.amount_nanos, response.hold.tokens = amount, tokens
        response.hold.status = "open"
        self.holds[body.hold_id] = response
        return ledger_pb.OperationResult(hold=response)

    def _settle(self, body):
        if body.hold_id in self.settled:
            same = self.settled[body.hold_id][0] == body
            if not same:
                return refusal(code_pb2.ALREADY_EXISTS, "IDEMPOTENCY_CONFLICT")
            return ledger_pb.OperationResult(settle=self.settled[body.hold_id][1], replayed=True)
        if body.hold_id not in self.holds or body.hold_id in self.released:
            return refusal(code_pb2.NOT_FOUND, "HOLD_NOT_FOUND")
        account, hold = self.accounts[body.account_id], self.holds[body.hold_id].hold
        account.available += hold.amount_nanos - body.amount_nanos
        account.spent += body.amount_nanos
        account.tokens += body.tokens - hold.tokens
        response = ledger_pb.SettleHoldResponse(available_nanos=account.available, quotas=account.quotas())
        self.settled[body.hold_id] = (body, response)
        return ledger_pb.OperationResult(settle=response)

    def _release(self, body):
        if body.hold_id not in self.holds:
            return refusal(code_pb2.NOT_FOUND, "HOLD_NOT_FOUND")
        if body.hold_id in self.settled:
            return refusal(code_pb2.FAILED_PRECONDITION, "HOLD_SETTLED")
        hold = self.holds[body.hold_id].hold
        if body.hold_id not in self.released:
            self.accounts[body.account_id].available += hold.amount_nanos
            self.accounts[body.account_id].tokens -= hold.tokens
            self.accounts[body.account_id].requests -= 1
            self.released.append(body.hold_id)
        return ledger_pb.OperationResult(released=hold)

    def _extend(self, body):
        account, made = self.accounts[body.account_id], self.holds[body.hold_id]
        if account.available < body.additional_nanos:
            return refusal(code_pb2.RESOURCE_EXHAUSTED, "INSUFFICIENT_CREDIT", "out of credit")
        account.available -= body.additional_nanos
        account.tokens += body.additional_tokens
        made.hold.amount_nanos += body.additional_nanos
        made.hold.tokens += body.additional_tokens
        return ledger_pb.OperationResult(hold=made)

    def _set_limit(self, body):
        self.limits.append(body)
        return ledger_pb.OperationResult(limit={"account_id": body.account_id})

    @property
    def open_holds(self):
        return [name for name in self.holds if name not in self.settled and name not in self.released]

    @property
    def usages(self):
        return [body.usage for body, _ in self.settled.values()]

    @property
    def bills(self):
        return [body for body, _ in self.settled.values()]


def price(model, provider="openai", *, input_usd=5, output_usd=15, version=1, max_output=0, **fields):
    """A price in whole USD for one million tokens."""
    return resources_pb2.Price(
        provider=provider,
        model=model,
        mode="chat",
        version=version,
        max_output_tokens=max_output,
        rates=[
            resources_pb2.Rate(component="input", nanos_per_million=input_usd * USD),
            resources_pb2.Rate(component="output", nanos_per_million=output_usd * USD),
        ],
        **fields,
    )


class FakePricing(pricing_service_pb2_grpc.PricingServiceServicer):
    """Streams what it is given: the picture first, then what `publish` adds."""

    def __init__(self, prices=()):
        self.prices = list(prices)
        self.version = 1
        self.watchers = set()
        self.silent = False

    async def WatchCatalogue(self, _request, _context):  # noqa: N802
        queue = asyncio.Queue()
        self.watchers.add(queue)
        try:
            if self.silent:
                await asyncio.Event().wait()
            half = len(self.prices) // 2
            yield pricing_service_pb2.CatalogueChange(prices=self.prices[:half])
            yield pricing_service_pb2.CatalogueChange(prices=self.prices[half:], version=self.version, complete=True)
            while True:
                change = await queue.get()
                if change is None:
                    return
                yield change
        finally:
            self.watchers.discard(queue)

    def publish(self, *prices, overrides=()):
        self.version += 1
        self.prices += prices
        change = pricing_service_pb2.CatalogueChange(
            prices=prices, price_overrides=overrides, version=self.version, complete=True
        )
        for queue in self.watchers:
            queue.put_nowait(change)

    def cut(self):
        for queue in self.watchers:
            queue.put_nowait(None)


def upstream_provider(name, *forms, cap_field="max_tokens"):
    """A provider that speaks these forms, nowhere."""
    return Provider(name, cap_field, {form: Base("http://127.0.0.1:9") for form in forms}, keys=("sk-test",))


@asynccontextmanager
async def served(*registrations):
    """A real server on a free port with (add_to_server, servicer) pairs; gives its address."""
    server = grpc.aio.server()
    for add_to_server, servicer in registrations:
        add_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await server.stop(None)
