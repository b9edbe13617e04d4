"""Owns the ledger as subscriptions sees it: what is delivered to it, and what is read from it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime

import grpc
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.timestamp_pb2 import Timestamp
from tollkeeper.ledger.v1 import ledger_service_pb2 as ledger_pb
from tollkeeper.ledger.v1 import resources_pb2 as ledger_resources
from tollkeeper.ledger.v1.ledger_service_pb2_grpc import AccountServiceStub, JournalServiceStub, LedgerServiceStub

from services.kit.errors import RemoteError
from services.kit.logs import get_logger
from services.kit.times import timestamp
from services.subscriptions.alerts.model import CountedLimit
from services.subscriptions.errors import AccountNotProvisioned
from services.subscriptions.model.credits import LedgerBalance, LimitUse, UsageSums
from services.subscriptions.model.delivery import GrantCredit, MoveCycle, OpenLedgerAccount, ReverseGrant, SetPlanLimits
from services.subscriptions.model.plan import limit_id

_log = get_logger(__name__)

_PAGE_SIZE = 1000


def _moment(stamp: Timestamp) -> datetime:
    return stamp.ToDatetime(tzinfo=UTC)


class LedgerClient:
    """The ledger: what is delivered to it, and what is read from it."""

    def __init__(self, channel: grpc.Channel) -> None:
        self._accounts = AccountServiceStub(channel)
        self._ledger = LedgerServiceStub(channel)
        self._journal = JournalServiceStub(channel)

    def open_account(self, opening: OpenLedgerAccount, *, timeout_seconds: float) -> None:
        """Open an account's book; opening it again changes nothing.

        One that is open under other words is taken over, with these: it is of an account that was made here, and lost
        with what a restore has undone.
        """
        request = ledger_pb.OpenAccountRequest(
            account_id=opening.account_id,
            display_name=opening.display_name,
            cycle_anchor=timestamp(opening.cycle_anchor),
        )
        try:
            self._accounts.OpenAccount(request, timeout=timeout_seconds)
        except grpc.RpcError as error:
            if RemoteError.from_rpc(error).code is not grpc.StatusCode.ALREADY_EXISTS:
                raise
            _log.warning("the ledger has a book of a new account, which is kept", account_id=opening.account_id)
            self._take_over(opening, timeout_seconds)

    def _take_over(self, opening: OpenLedgerAccount, timeout_seconds: float) -> None:
        account = ledger_resources.Account(
            account_id=opening.account_id,
            display_name=opening.display_name,
            cycle_anchor=timestamp(opening.cycle_anchor),
        )
        request = ledger_pb.UpdateAccountRequest(
            account=account,
            update_mask=FieldMask(paths=["display_name", "cycle_anchor"]),
            request_id=f"open:{opening.cycle_anchor:%Y%m%dT%H%M%S.%f}",
        )
        self._apply([ledger_pb.Operation(update_account=request)], timeout_seconds)

    def set_plan_limits(self, change: SetPlanLimits, *, timeout_seconds: float) -> None:
        """Set and end a plan's limits. Raises RemoteError where the ledger refuses one of them."""
        operations = [
            ledger_pb.Operation(
                set_limit=ledger_pb.SetLimitRequest(
                    account_id=change.account_id,
                    scope="plan",
                    unit=limit.unit,
                    window="cycle",
                    amount=limit.amount,
                    mode=limit.mode,
                    warn_percent=limit.warn_percent,
                    request_id=f"plan-limit:{change.revision}:{limit.unit}",
                )
            )
            for limit in change.limits
        ]
        operations += [
            ledger_pb.Operation(
                delete_limit=ledger_pb.DeleteLimitRequest(account_id=change.account_id, limit_id=limit_id(unit))
            )
            for unit in change.ended_units
        ]
        self._apply(operations, timeout_seconds)

    def move_cycle(self, move: MoveCycle, *, timeout_seconds: float) -> None:
        """Count cycles from another moment. Raises RemoteError where the ledger refuses it."""
        account = ledger_resources.Account(account_id=move.account_id, cycle_anchor=timestamp(move.cycle_anchor))
        request = ledger_pb.UpdateAccountRequest(
            account=account,
            update_mask=FieldMask(paths=["cycle_anchor"]),
            request_id=f"cycle:{move.revision}",
        )
        self._apply([ledger_pb.Operation(update_account=request)], timeout_seconds)

    def grant(self, grant: GrantCredit, *, timeout_seconds: float) -> str:
        """Give credit, once per request id; the transaction. Raises RemoteError where the ledger refuses it."""
        request = ledger_pb.CreditAccountRequest(
            account_id=grant.account_id,
            amount_nanos=grant.amount_nanos,
            source=grant.source,
            description=grant.description,
            request_id=grant.request_id,
            expires_at=timestamp(grant.expires_at),
            rollover_cap_nanos=grant.rollover_cap_nanos,
        )
        return self._apply([ledger_pb.Operation(credit=request)], timeout_seconds)[0].transaction.transaction_id

    def reverse(self, reversal: ReverseGrant, transaction_id: str, *, timeout_seconds: float) -> int:
        """Take credit back, once per request id; how much of it came from other credit than the grant's own.

        So much of the grant was spent, or had been carried into another cycle. Raises RemoteError where the ledger
        refuses it.
        """
        request = ledger_pb.ReverseTransactionRequest(
            account_id=reversal.account_id,
            transaction_id=transaction_id,
            amount_nanos=reversal.amount_nanos,
            description=reversal.description,
            request_id=reversal.request_id,
        )
        taken = self._apply([ledger_pb.Operation(reverse=request)], timeout_seconds)[0].transaction
        grant_id = self._grant_of(reversal.account_id, transaction_id, timeout_seconds)
        from_available = -sum(x.amount_nanos for x in taken.postings if x.sub_account == "available")
        return from_available - sum(x.amount_nanos for x in taken.grant_uses if x.grant_id == grant_id)

    def _grant_of(self, account_id: str, transaction_id: str, timeout_seconds: float) -> str:
        """The grant that a transaction gave."""
        request = ledger_pb.GetTransactionRequest(account_id=account_id, transaction_id=transaction_id)
        return self._journal.GetTransaction(request, timeout=timeout_seconds).grant_uses[0].grant_id

    def _apply(
        self, operations: list[ledger_pb.Operation], timeout_seconds: float
    ) -> Sequence[ledger_pb.OperationResult]:
        if not operations:
            return []
        answer = self._ledger.Apply(ledger_pb.ApplyRequest(operations=operations), timeout=timeout_seconds)
        assert len(answer.results) == len(operations)
        for result in answer.results:
            if result.WhichOneof("kind") == "error":
                raise RemoteError.from_status(result.error)
        return answer.results

    def balance(self, account_id: str) -> LedgerBalance:
        """What an account has now. Raises AccountNotProvisioned where the ledger does not know it yet."""
        try:
            balance = self._accounts.GetBalance(ledger_pb.GetBalanceRequest(account_id=account_id))
        except grpc.RpcError as error:
            if RemoteError.from_rpc(error).code is grpc.StatusCode.NOT_FOUND:
                raise AccountNotProvisioned("the account is still being set up", retry_after_seconds=5) from error
            raise
        return LedgerBalance(
            available_nanos=balance.available_nanos,
            held_nanos=balance.held_nanos,
            spent_nanos=balance.spent_nanos,
            cycle_spent_nanos=balance.cycle_spent_nanos,
            cycle_start=_moment(balance.cycle_start),
            cycle_end=_moment(balance.cycle_end),
        )

    def is_open(self, account_id: str) -> bool:
        """Whether an account may spend: it is neither suspended nor closed. Raises grpc.RpcError."""
        return self._accounts.GetAccount(ledger_pb.GetAccountRequest(account_id=account_id)).status == "open"

    def is_closed(self, account_id: str) -> bool:
        """Whether an account was closed, as far as the ledger can be asked now and knows the account."""
        return self.status(account_id) == "closed"

    def status(self, account_id: str, *, timeout_seconds: float | None = None) -> str:
        """`open`, `suspended` or `closed`; empty where the ledger cannot be asked now or does not know the account."""
        request = ledger_pb.GetAccountRequest(account_id=account_id)
        try:
            return str(self._accounts.GetAccount(request, timeout=timeout_seconds).status)
        except grpc.RpcError as error:
            remote = RemoteError.from_rpc(error)
            _log.warning("the ledger does not say what the account is", account_id=account_id, code=remote.code.name)
            return ""

    def accounts_in(self, status: str) -> Iterator[list[str]]:
        """All accounts that are `suspended` or `closed`, by id, a page at a time. Raises grpc.RpcError."""
        page_token = ""
        while True:
            request = ledger_pb.ListAccountsRequest(status=status, page_size=_PAGE_SIZE, page_token=page_token)
            answer = self._accounts.ListAccounts(request)
            if answer.accounts:
                yield [account.account_id for account in answer.accounts]
            page_token = answer.next_page_token
            if not page_token:
                return

    def limits(self, account_id: str, scope: str) -> list[LimitUse]:
        """An account's limits of one scope."""
        answer = self._ledger.ListLimits(ledger_pb.ListLimitsRequest(account_id=account_id, scope=scope))
        return [LimitUse(x.scope, x.unit, x.window, x.amount, x.used) for x in answer.limits]

    def counted_limits(self, account_id: str) -> list[CountedLimit]:
        """All limits of an account, with what of each is used in its present window."""
        answer = self._ledger.ListLimits(ledger_pb.ListLimitsRequest(account_id=account_id))
        return [
            CountedLimit(
                limit_id=x.limit_id,
                scope=x.scope,
                subject=x.subject,
                unit=x.unit,
                window=x.window,
                amount=x.amount,
                used=x.used,
                resets_at=_moment(x.resets_at) if x.HasField("resets_at") else None,
            )
            for x in answer.limits
        ]

    def usage_by_day(self, account_id: str, start: datetime) -> dict[str, UsageSums]:
        """Sums of usage since `start` by UTC day ("2026-11-21")."""
        request = ledger_pb.SummarizeUsageRequest(account_id=account_id, group_by=["day"], from_time=timestamp(start))
        answer = self._journal.SummarizeUsage(request)
        return {x.day: UsageSums(x.requests, x.total_tokens, x.billed_nanos) for x in answer.summaries}

    def usage_by_provider(self, account_id: str, start: datetime, end: datetime) -> dict[str, UsageSums]:
        """Sums of usage in `[start, end)` by provider. Raises AccountNotProvisioned."""
        request = ledger_pb.SummarizeUsageRequest(
            account_id=account_id, group_by=["provider"], from_time=timestamp(start), to_time=timestamp(end)
        )
        try:
            answer = self._journal.SummarizeUsage(request)
        except grpc.RpcError as error:
            if RemoteError.from_rpc(error).code is grpc.StatusCode.NOT_FOUND:
                raise AccountNotProvisioned("the account is still being set up", retry_after_seconds=5) from error
            raise
        return {x.provider: UsageSums(x.requests, x.total_tokens, x.billed_nanos) for x in answer.summaries}
