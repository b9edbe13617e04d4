"""Owns the way from the model's answers and rows to contract messages."""

from __future__ import annotations

from typing import Any

from google.rpc import status_pb2  # type: ignore[import-untyped]
from sqlalchemy import Row
from tollkeeper.ledger.v1 import ledger_service_pb2 as pb
from tollkeeper.ledger.v1 import resources_pb2 as resources

from services.kit.errors import DETAILS_KEY, ServiceError, wire_form
from services.kit.times import timestamp
from services.ledger.errors import LedgerError
from services.ledger.model.book import Book, Entry, Hold, Limit
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
    Result,
)
from services.ledger.model.rows import transaction_id, usage_id
from services.ledger.service import BalanceView, GrantView, MonthView


def fill_result(message: pb.OperationResult, result: Result) -> None:
    """Say what became of one operation, in its place in a batch's answer."""
    message.replayed = result.replayed
    match result.outcome:
        case AccountState(book):
            message.account.CopyFrom(account_message(book))
        case Posted(entry, undone):
            message.transaction.CopyFrom(transaction_message(entry, undone))
        case Debited() as debited:
            message.debit.CopyFrom(debited_message(debited))
        case HoldMade() as made:
            message.hold.CopyFrom(hold_made_message(made))
        case HoldSettled() as settled:
            message.settle.CopyFrom(hold_settled_message(settled))
        case HoldReleased(hold):
            message.released.CopyFrom(hold_message(hold))
        case LimitState(account_id, limit):
            message.limit.CopyFrom(limit_message(account_id, limit))
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
    return resources.Hold(
        hold_id=hold.hold_id,
        account_id=hold.account_id,
        key_id=hold.key_id,
        workspace=hold.workspace,
        status=hold.status,
        amount_nanos=hold.amount,
        tokens=hold.tokens,
        requests=hold.requests,
        created_at=timestamp(hold.created_at),
        expires_at=timestamp(hold.expires_at),
        settled_nanos=hold.settled,
        ended_at=timestamp(hold.ended_at),
    )


def limit_message(account_id: str, limit: Limit) -> resources.Limit:
    """A limit and its use."""
    return resources.Limit(
        limit_id=limit.limit_id,
        account_id=account_id,
        scope=limit.scope,
        subject=limit.subject,
        unit=limit.unit,
        window=limit.window,
        amount=limit.amount,
        mode=limit.mode,
        warn_percent=limit.warn_percent,
        used=limit.used,
        held=limit.held,
        resets_at=None if limit.window == "lifetime" else timestamp(limit.window_end),
    )


def _warning_messages(account_id: str, warnings: tuple[LimitWarning, ...]) -> list[resources.Warning]:
    return [resources.Warning(reason=x.reason, limit=limit_message(account_id, x.limit)) for x in warnings]


def hold_made_message(made: HoldMade) -> pb.CreateHoldResponse:
    """What a hold did."""
    return pb.CreateHoldResponse(
        hold=hold_message(made.hold),
        available_nanos=made.available,
        warnings=_warning_messages(made.hold.account_id, made.warnings),
    )


def hold_settled_message(settled: HoldSettled) -> pb.SettleHoldResponse:
    """What a settlement did."""
    return pb.SettleHoldResponse(
        transaction=transaction_message(settled.entry) if settled.entry else None,
        hold=hold_message(settled.hold),
        usage_id=settled.hold.usage_id,
        available_nanos=settled.available,
        was_expired=settled.was_expired,
        warnings=_warning_messages(settled.hold.account_id, settled.warnings),
    )


def debited_message(debited: Debited) -> pb.DebitAccountResponse:
    """What a debit did."""
    entry = debited.entry
    return pb.DebitAccountResponse(
        transaction=transaction_message(entry), warnings=_warning_messages(entry.account_id, debited.warnings)
    )


def transaction_message(entry: Entry, undone: int = 0) -> resources.Transaction:
    """A journal entry, and how much of it was undone."""
    moves = {
        "funding": entry.funding,
        "available": entry.available,
        "held": entry.held,
        "spent": entry.spent,
        "expired": entry.expired,
    }
    return resources.Transaction(
        transaction_id=transaction_id(entry.created_at, entry.sequence),
        account_id=entry.account_id,
        sequence=entry.sequence,
        type=entry.type,
        amount_nanos=entry.available + entry.held,
        postings=[resources.Posting(sub_account=name, amount_nanos=amount) for name, amount in moves.items() if amount],
        grant_uses=[
            resources.GrantUse(grant_id=grant_id, amount_nanos=amount) for grant_id, amount in entry.grant_uses
        ],
        balance_after_nanos=entry.balance_after,
        description=entry.description,
        request_id=entry.request_id,
        hold_id=entry.hold_id,
        usage_id=entry.usage_id,
        original_transaction_id=entry.original_id,
        refunded_nanos=undone,
        key_id=entry.key_id,
        workspace=entry.workspace,
        created_at=timestamp(entry.created_at),
        hash=entry.hash.hex(),
    )


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
    )
