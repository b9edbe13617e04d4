"""Owns the way from the model's answers and rows to contract messages."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from google.rpc import status_pb2  # type: ignore[import-untyped]
from sqlalchemy import Row
from tollkeeper.ledger.v1 import ledger_service_pb2 as pb
from tollkeeper.ledger.v1 import resources_pb2 as resources

from services.kit.errors import DETAILS_KEY, ServiceError, wire_form
from services.kit.times import set_timestamp, timestamp
from services.ledger.errors import LedgerError
from services.ledger.model.book import Book, Hold, Limit
from services.ledger.model.entry import Entry
from services.ledger.model.operations import (
    AccountState,
    Debited,
    Done,
    HoldMade,
    HoldReleased,
    HoldSettled,
    LimitState,
    LimitWarning,
    Posted,
    Quota,
    Result,
)
from services.ledger.model.rows import transaction_id, usage_id
from services.ledger.service import BalanceView, GrantView, MonthView

_SUB_ACCOUNTS = ("funding", "available", "held", "spent", "expired")

# What a busy ledger answers is filled in where it goes: made apart and copied in, it takes four times as long.


def fill_result(message: pb.OperationResult, result: Result) -> None:
    """Say what became of one operation, in its place in a batch's answer."""
    message.replayed = result.replayed
    match result.outcome:
        case HoldMade() as made:
            fill_hold_made(message.hold, made)
        case HoldSettled() as settled:
            fill_hold_settled(message.settle, settled)
        case HoldReleased(hold):
            fill_hold(message.released, hold)
        case Debited() as debited:
            fill_debited(message.debit, debited)
        case Posted(entry, undone):
            fill_transaction(message.transaction, entry, undone)
        case AccountState(book):
            message.account.CopyFrom(account_message(book))
        case LimitState(account_id, limit):
            fill_limit(message.limit, account_id, limit)
        case Done():
            message.limit_deleted.SetInParent()
        case LedgerError() as refusal:
            message.error.CopyFrom(status_message(refusal))


def status_message(refusal: ServiceError) -> status_pb2.Status:
    """A refusal as it would leave as the error of a call."""
    _, _, trailing = wire_form(refusal)
    return status_pb2.Status.FromString(dict(trailing)[DETAILS_KEY])


def account_message(book: Book) -> resources.Account:
    """An account."""
    return resources.Account(
        account_id=book.account_id,
        display_name=book.display_name,
        status=book.status,
        overdraft=resources.Overdraft(kind=book.overdraft_kind, limit_nanos=book.overdraft_limit),
        created_at=timestamp(book.created_at),
        cycle_anchor=timestamp(book.cycle_anchor),
        last_sequence=book.sequence,
        status_reason=book.status_reason,
    )


def account_state_message(state: AccountState) -> resources.Account:
    """An account as an operation left it."""
    return account_message(state.book)


def balance_message(view: BalanceView) -> resources.Balance:
    """A balance."""
    book = view.book
    return resources.Balance(
        account_id=book.account_id,
        available_nanos=book.available,
        held_nanos=book.held,
        funded_nanos=book.funded,
        spent_nanos=book.spent,
        expired_nanos=book.expired,
        overdrawn_nanos=book.overdrawn,
        cycle_spent_nanos=book.cycle_spent,
        cycle_start=timestamp(book.cycle_start),
        cycle_end=timestamp(book.cycle_end),
        grants=[grant_message(GrantView(grant, view.granted_at[grant.grant_id])) for grant in book.grants],
        as_of=timestamp(view.as_of),
        last_sequence=book.sequence,
    )


def grant_message(view: GrantView) -> resources.Grant:
    """A grant."""
    grant = view.grant
    return resources.Grant(
        grant_id=grant.grant_id,
        source=grant.source,
        priority=grant.priority,
        amount_nanos=grant.amount,
        remaining_nanos=grant.remaining,
        reserved_nanos=grant.reserved,
        created_at=timestamp(view.created_at),
        expires_at=timestamp(grant.expires_at),
        rollover_cap_nanos=grant.rollover_cap,
        transaction_id=transaction_id(view.created_at, grant.order),
    )


def hold_message(hold: Hold) -> resources.Hold:
    """A hold."""
    message = resources.Hold()
    fill_hold(message, hold)
    return message


def fill_hold(message: resources.Hold, hold: Hold) -> None:
    """The same, into a message that is there."""
    message.hold_id = hold.hold_id
    message.account_id = hold.account_id
    message.key_id = hold.key_id
    message.workspace = hold.workspace
    message.status = hold.status
    message.amount_nanos = hold.amount
    message.tokens = hold.tokens
    message.requests = hold.requests
    set_timestamp(message.created_at, hold.created_at)
    set_timestamp(message.expires_at, hold.expires_at)
    message.settled_nanos = hold.settled
    if hold.ended_at is not None:
        set_timestamp(message.ended_at, hold.ended_at)


def released_message(released: HoldReleased) -> resources.Hold:
    """A hold that was released."""
    return hold_message(released.hold)


def limit_message(account_id: str, limit: Limit) -> resources.Limit:
    """A limit and its use."""
    message = resources.Limit()
    fill_limit(message, account_id, limit)
    return message


def limit_state_message(state: LimitState) -> resources.Limit:
    """A limit as an operation left it."""
    return limit_message(state.account_id, state.limit)


def fill_limit(message: resources.Limit, account_id: str, limit: Limit) -> None:
    """The same, into a message that is there."""
    message.limit_id = limit.limit_id
    message.account_id = account_id
    message.scope = limit.scope
    message.subject = limit.subject
    message.unit = limit.unit
    message.window = limit.window
    message.amount = limit.amount
    message.mode = limit.mode
    message.warn_percent = limit.warn_percent
    message.used = limit.used
    message.held = limit.held
    if limit.window != "lifetime":
        set_timestamp(message.resets_at, limit.window_end)


def _add_warnings(
    message: pb.CreateHoldResponse | pb.SettleHoldResponse | pb.DebitAccountResponse,
    account_id: str,
    warnings: tuple[LimitWarning, ...],
) -> None:
    for warning in warnings:
        added = message.warnings.add()
        added.reason = warning.reason
        fill_limit(added.limit, account_id, warning.limit)


def _add_quotas(message: pb.CreateHoldResponse | pb.SettleHoldResponse, quotas: tuple[Quota, ...]) -> None:
    add = message.quotas.add
    for quota in quotas:
        added = add()
        added.unit, added.amount, added.remaining = quota.unit, quota.amount, quota.remaining
        set_timestamp(added.resets_at, quota.resets_at)


def hold_made_message(made: HoldMade) -> pb.CreateHoldResponse:
    """What a hold did."""
    message = pb.CreateHoldResponse()
    fill_hold_made(message, made)
    return message


def fill_hold_made(message: pb.CreateHoldResponse, made: HoldMade) -> None:
    """The same, into a message that is there."""
    fill_hold(message.hold, made.hold)
    message.available_nanos = made.available
    _add_warnings(message, made.hold.account_id, made.warnings)
    _add_quotas(message, made.quotas)


def hold_settled_message(settled: HoldSettled) -> pb.SettleHoldResponse:
    """What a settlement did."""
    message = pb.SettleHoldResponse()
    fill_hold_settled(message, settled)
    return message


def fill_hold_settled(message: pb.SettleHoldResponse, settled: HoldSettled) -> None:
    """The same, into a message that is there."""
    if settled.entry:
        fill_transaction(message.transaction, settled.entry)
    fill_hold(message.hold, settled.hold)
    message.usage_id = settled.hold.usage_id
    message.available_nanos = settled.available
    message.was_expired = settled.was_expired
    _add_warnings(message, settled.hold.account_id, settled.warnings)
    _add_quotas(message, settled.quotas)


def debited_message(debited: Debited) -> pb.DebitAccountResponse:
    """What a debit did."""
    message = pb.DebitAccountResponse()
    fill_debited(message, debited)
    return message


def fill_debited(message: pb.DebitAccountResponse, debited: Debited) -> None:
    """The same, into a message that is there."""
    fill_transaction(message.transaction, debited.entry)
    _add_warnings(message, debited.entry.account_id, debited.warnings)


def posted_message(posted: Posted) -> resources.Transaction:
    """A journal entry, and how much of it was undone."""
    return transaction_message(posted.entry, posted.undone)


def account_summaries(costs: Iterable[Row[Any]], given: Iterable[Row[Any]]) -> Iterable[pb.AccountSummary]:
    """What each account comes to that has a cost or a credit."""
    found: dict[str, pb.AccountSummary] = {}
    for row in costs:
        found[row.account_id] = pb.AccountSummary(account_id=row.account_id, cost_nanos=row.cost)
    for row in given:
        summary = found.setdefault(row.account_id, pb.AccountSummary(account_id=row.account_id))
        summary.credits.add(type=row.type, amount_nanos=row.amount, refunded_nanos=row.undone)
    return found.values()


def transaction_message(entry: Entry, undone: int = 0) -> resources.Transaction:
    """A journal entry, and how much of it was undone."""
    message = resources.Transaction()
    fill_transaction(message, entry, undone)
    return message


def fill_transaction(message: resources.Transaction, entry: Entry, undone: int = 0) -> None:
    """The same, into a message that is there."""
    message.transaction_id = transaction_id(entry.created_at, entry.sequence)
    message.account_id = entry.account_id
    message.sequence = entry.sequence
    message.type = entry.type
    message.amount_nanos = entry.available + entry.held
    add = message.postings.add
    for name in _SUB_ACCOUNTS:
        if amount := getattr(entry, name):
            posting = add()
            posting.sub_account, posting.amount_nanos = name, amount
    for grant_id, amount in entry.grant_uses:
        use = message.grant_uses.add()
        use.grant_id, use.amount_nanos = grant_id, amount
    message.balance_after_nanos = entry.balance_after
    message.description = entry.description
    message.request_id = entry.request_id
    message.hold_id = entry.hold_id
    message.usage_id = entry.usage_id
    message.original_transaction_id = entry.original_id
    message.refunded_nanos = undone
    message.key_id = entry.key_id
    message.workspace = entry.workspace
    set_timestamp(message.created_at, entry.created_at)
    message.hash = entry.hash.hex()


def summary_message(row: Row[Any]) -> resources.UsageSummary:
    """Sums of usage records."""
    by = row._mapping  # noqa: SLF001 (SQLAlchemy's documented name)
    return resources.UsageSummary(
        day=by.get("by_day", ""),
        month=by.get("by_month", ""),
        provider=by.get("by_provider", ""),
        model=by.get("by_model", ""),
        key_id=by.get("by_key", ""),
        workspace=by.get("by_workspace", ""),
        requests=row.requests,
        input_tokens=row.input_tokens,
        output_tokens=row.output_tokens,
        cached_tokens=row.cached_tokens,
        reasoning_tokens=row.reasoning_tokens,
        total_tokens=row.input_tokens + row.output_tokens,
        cost_nanos=row.cost,
        billed_nanos=row.billed,
        estimated_requests=row.estimated_requests,
        unbilled_requests=row.unbilled_requests,
        internal_requests=row.internal_requests,
        internal_tokens=row.internal_tokens,
    )


def month_message(account_id: str, month: str, view: MonthView) -> pb.MonthlySummary:
    """One account's month."""
    return pb.MonthlySummary(
        account_id=account_id,
        month=month,
        opening_nanos=view.opening,
        closing_nanos=view.closing,
        amount_nanos_by_type=view.by_type,
        providers=[summary_message(row) for row in view.providers],
        total=summary_message(view.total),
    )


def usage_message(row: Row[Any]) -> resources.UsageRecord:
    """A usage record."""
    return resources.UsageRecord(
        usage_id=usage_id(row.created_at, row.usage_number),
        account_id=row.account_id,
        key_id=row.key_id,
        workspace=row.workspace,
        created_at=timestamp(row.created_at),
        billed_nanos=row.billed,
        billable=row.billable,
        hold_id=row.hold_id,
        transaction_id=row.transaction_id,
        total_tokens=row.input_tokens + row.output_tokens,
        session=row.session,
        provider=row.provider,
        model=row.model,
        endpoint=row.endpoint,
        input_tokens=row.input_tokens,
        output_tokens=row.output_tokens,
        cached_tokens=row.cached_tokens,
        cache_write_tokens=row.cache_write_tokens,
        reasoning_tokens=row.reasoning_tokens,
        input_cost_nanos=row.input_cost,
        output_cost_nanos=row.output_cost,
        cost_nanos=row.cost,
        price_version=row.price_version,
        duration_milliseconds=row.duration_milliseconds,
        status=row.status,
        estimated=row.estimated,
        started_at=timestamp(row.started_at),
        provider_request_id=row.provider_request_id,
        service_tier=row.service_tier,
        units=row.units,
        internal=row.internal,
    )
