"""Owns the way from contract messages to the model and back; names what is wrong with a request, field by field."""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime
from typing import Any

from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp
from google.rpc import status_pb2  # type: ignore[import-untyped]
from sqlalchemy import Row
from tollkeeper.ledger.v1 import ledger_service_pb2 as pb
from tollkeeper.ledger.v1 import resources_pb2 as resources

from services.kit.amounts import request_amount
from services.kit.errors import DETAILS_KEY, ServiceError, wire_form
from services.kit.validation import Violations, is_identifier
from services.ledger.errors import LedgerError
from services.ledger.model.batch import transaction_id, usage_id
from services.ledger.model.book import MAX_AMOUNT, Book, Entry, Grant, Hold, Limit
from services.ledger.model.operations import (
    CREDIT_TYPES,
    AccountState,
    CreateHold,
    Credit,
    DeleteLimit,
    Done,
    HoldMade,
    HoldReleased,
    HoldSettled,
    LimitState,
    LimitWarning,
    OpenAccount,
    Operation,
    Posted,
    ReleaseHold,
    Result,
    SetLimit,
    SetStatus,
    SettleHold,
    Usage,
)
from services.ledger.model.windows import WINDOWS
from services.ledger.service import BalanceView
from services.ledger.store.reads import HOLD_MOVES

MAX_TTL_SECONDS = 86_400
DEFAULT_TTL_SECONDS = 300
MAX_COUNT = 10**12
TYPES = (*CREDIT_TYPES.values(), "usage_deduction", "expiry", "reversal", *HOLD_MOVES)
SCOPES = ("account", "plan", "key", "workspace")
UNITS = ("nanos", "tokens", "requests")

_UTC_YEARS = (1970, 9999)


def body_hash(request: Message) -> bytes:
    """What tells one request from another: BLAKE2b over its kind and its canonical bytes, 16 bytes."""
    content = request.DESCRIPTOR.full_name.encode() + b"\0" + request.SerializeToString(deterministic=True)
    return hashlib.blake2b(content, digest_size=16).digest()


# Requests to operations


def open_account(v: Violations, request: pb.OpenAccountRequest) -> OpenAccount:
    """OpenAccount, checked."""
    kind = request.overdraft.kind or "none"
    v.identifier("account_id", request.account_id)
    v.text("display_name", request.display_name, max_length=200)
    v.one_of("overdraft.kind", kind, ("none", "fixed", "unlimited"))
    v.between("overdraft.limit_nanos", request.overdraft.limit_nanos, 0, MAX_AMOUNT)
    if request.overdraft.limit_nanos and kind != "fixed":
        v.add("overdraft.limit_nanos", "must be 0 unless overdraft.kind is fixed")
    v.identifier("request_id", request.request_id, required=False)
    words = pb.OpenAccountRequest()
    words.CopyFrom(request)
    words.ClearField("request_id")  # the account id is the key: the same words open the same account
    return OpenAccount(
        account_id=request.account_id,
        display_name=request.display_name,
        overdraft_kind=kind,
        overdraft_limit=request.overdraft.limit_nanos,
        cycle_anchor=moment(v, "cycle_anchor", request.cycle_anchor) if request.HasField("cycle_anchor") else None,
        body_hash=body_hash(words),
    )


def set_status(
    v: Violations, request: pb.SuspendAccountRequest | pb.ResumeAccountRequest, status: str, why: str
) -> SetStatus:
    """SuspendAccount and ResumeAccount, checked."""
    v.identifier("account_id", request.account_id)
    v.identifier("request_id", request.request_id)
    v.text("reason", why, max_length=500)
    return SetStatus(request.account_id, status, why, request.request_id, body_hash(request))


def credit(v: Violations, request: pb.CreditAccountRequest) -> Credit:
    """CreditAccount, checked."""
    v.identifier("account_id", request.account_id)
    v.identifier("request_id", request.request_id)
    v.text("description", request.description, max_length=500)
    source = request.source or "purchase"
    v.one_of("source", source, tuple(CREDIT_TYPES))
    amount = request_amount(v, request.amount_nanos if request.HasField("amount_nanos") else None, request.amount_usd)
    if amount:
        v.between("amount_usd" if request.amount_usd else "amount_nanos", amount, 1, MAX_AMOUNT)
    priority = request.priority if request.HasField("priority") else 100
    v.between("priority", priority, 0, 1000)
    if request.rollover_cap_nanos:
        v.add("rollover_cap_nanos", "rollover is not supported yet; leave it out")
    return Credit(
        account_id=request.account_id,
        amount=amount,
        source=source,
        priority=priority,
        expires_at=moment(v, "expires_at", request.expires_at) if request.HasField("expires_at") else None,
        description=request.description,
        request_id=request.request_id,
        body_hash=body_hash(request),
    )


def create_hold(v: Violations, request: pb.CreateHoldRequest) -> CreateHold:
    """CreateHold, checked."""
    v.identifier("account_id", request.account_id)
    v.identifier("hold_id", request.hold_id)
    v.identifier("key_id", request.key_id, required=False)
    v.identifier("workspace", request.workspace, required=False)
    v.between("amount_nanos", request.amount_nanos, 0, MAX_AMOUNT)
    v.between("tokens", request.tokens, 0, MAX_COUNT)
    requests = request.requests if request.HasField("requests") else 1
    v.between("requests", requests, 0, MAX_COUNT)
    minimum = request.minimum_amount_nanos if request.HasField("minimum_amount_nanos") else request.amount_nanos
    if request.HasField("minimum_amount_nanos"):
        v.between("minimum_amount_nanos", minimum, 0, max(request.amount_nanos, 0))
    minimum_tokens = request.minimum_tokens if request.HasField("minimum_tokens") else request.tokens
    if request.HasField("minimum_tokens"):
        v.between("minimum_tokens", minimum_tokens, 0, max(request.tokens, 0))
    ttl_seconds = request.ttl_seconds or DEFAULT_TTL_SECONDS
    v.between("ttl_seconds", ttl_seconds, 1, MAX_TTL_SECONDS)
    billable = request.billable if request.HasField("billable") else True
    if not billable and request.amount_nanos:
        v.add("amount_nanos", "must be 0 for a hold that is not billable")
    return CreateHold(
        account_id=request.account_id,
        hold_id=request.hold_id,
        amount=request.amount_nanos,
        minimum=minimum,
        tokens=request.tokens,
        minimum_tokens=minimum_tokens,
        requests=requests,
        key_id=request.key_id,
        workspace=request.workspace,
        ttl_seconds=ttl_seconds,
        billable=billable,
        body_hash=body_hash(request),
    )


def settle_hold(v: Violations, request: pb.SettleHoldRequest) -> SettleHold:
    """SettleHold, checked."""
    v.identifier("account_id", request.account_id)
    v.identifier("hold_id", request.hold_id)
    v.between("amount_nanos", request.amount_nanos, 0, MAX_AMOUNT)
    v.between("tokens", request.tokens, 0, MAX_COUNT)
    v.text("description", request.description, max_length=500)
    return SettleHold(
        account_id=request.account_id,
        hold_id=request.hold_id,
        amount=request.amount_nanos,
        tokens=request.tokens,
        usage=_usage(v, request.usage) if request.HasField("usage") else None,
        description=request.description,
        body_hash=body_hash(request),
    )


def _usage(v: Violations, report: resources.UsageReport) -> Usage:
    for name in ("session", "provider", "model", "endpoint", "provider_request_id", "service_tier"):
        v.text(f"usage.{name}", getattr(report, name), max_length=200)
    for name in ("input", "output", "cached", "cache_write", "reasoning"):
        v.between(f"usage.{name}_tokens", getattr(report, f"{name}_tokens"), 0, MAX_COUNT)
    for name in ("input_cost_nanos", "output_cost_nanos", "cost_nanos"):
        v.between(f"usage.{name}", getattr(report, name), 0, MAX_AMOUNT)
    for name in ("duration_milliseconds", "price_version"):
        v.between(f"usage.{name}", getattr(report, name), 0, MAX_COUNT)
    v.one_of("usage.status", report.status or "ok", ("ok", "cut", "failed"))
    return Usage(
        session=report.session,
        provider=report.provider,
        model=report.model,
        endpoint=report.endpoint,
        input_tokens=report.input_tokens,
        output_tokens=report.output_tokens,
        cached_tokens=report.cached_tokens,
        cache_write_tokens=report.cache_write_tokens,
        reasoning_tokens=report.reasoning_tokens,
        input_cost=report.input_cost_nanos,
        output_cost=report.output_cost_nanos,
        cost=report.cost_nanos,
        price_version=report.price_version,
        duration_milliseconds=report.duration_milliseconds,
        status=report.status or "ok",
        estimated=report.estimated,
        started_at=moment(v, "usage.started_at", report.started_at) if report.HasField("started_at") else None,
        provider_request_id=report.provider_request_id,
        service_tier=report.service_tier or "standard",
    )


def release_hold(v: Violations, request: pb.ReleaseHoldRequest) -> ReleaseHold:
    """ReleaseHold, checked."""
    v.identifier("account_id", request.account_id)
    v.identifier("hold_id", request.hold_id)
    v.text("description", request.description, max_length=500)
    return ReleaseHold(request.account_id, request.hold_id, request.description)


def set_limit(v: Violations, request: pb.SetLimitRequest) -> SetLimit:
    """SetLimit, checked."""
    v.identifier("account_id", request.account_id)
    scope, unit, mode = request.scope or "account", request.unit or "nanos", request.mode or "hard"
    v.one_of("scope", scope, SCOPES)
    v.one_of("unit", unit, UNITS)
    v.one_of("mode", mode, ("hard", "soft"))
    v.one_of("window", request.window, WINDOWS)
    if scope in {"key", "workspace"}:
        v.identifier("subject", request.subject)
    elif request.subject:
        v.add("subject", f"must be empty for scope {scope}")
    warn_percent = request.warn_percent or 80
    v.between("warn_percent", warn_percent, 1, 100)
    v.identifier("request_id", request.request_id, required=False)
    return SetLimit(
        account_id=request.account_id,
        scope=scope,
        subject=request.subject,
        unit=unit,
        window=request.window,
        amount=_limit_amount(v, request, unit),
        mode=mode,
        warn_percent=warn_percent,
        request_id=request.request_id,
        body_hash=body_hash(request),
    )


def _limit_amount(v: Violations, request: pb.SetLimitRequest, unit: str) -> int:
    amount = request.amount if request.HasField("amount") else None
    nanos = request.amount_nanos if request.HasField("amount_nanos") else None
    if unit == "nanos":
        if amount is not None and (nanos is not None or request.amount_usd):
            v.add("amount", "give amount, amount_nanos or amount_usd, only one of them")
        found = request_amount(v, amount if amount is not None else nanos, request.amount_usd, allow_zero=True)
        v.between("amount_usd" if request.amount_usd else "amount_nanos", found, 0, MAX_AMOUNT)
        return found
    if nanos is not None or request.amount_usd:
        v.add("amount", f"a limit on {unit} is given as amount, not as money")
    v.present("amount", given=amount is not None)
    return v.between("amount", amount or 0, 0, MAX_COUNT)


def delete_limit(v: Violations, request: pb.DeleteLimitRequest) -> DeleteLimit:
    """DeleteLimit, checked. A limit's id is `{scope}:{subject}:{unit}:{window}`; a subject may hold colons."""
    v.identifier("account_id", request.account_id)
    scope, _, rest = request.limit_id.partition(":")
    rest, _, window = rest.rpartition(":")
    subject, _, unit = rest.rpartition(":")
    known = scope in SCOPES and unit in UNITS and window in WINDOWS
    if not known or not (is_identifier(subject) if scope in {"key", "workspace"} else subject == ""):
        v.add("limit_id", "must be the limit_id of a limit")
    return DeleteLimit(request.account_id, scope, subject, unit, window)


_OPERATIONS: dict[str, Any] = {
    "open_account": open_account,
    "credit": credit,
    "hold": create_hold,
    "settle": settle_hold,
    "release": release_hold,
    "set_limit": set_limit,
    "delete_limit": delete_limit,
    "suspend": lambda v, request: set_status(v, request, "suspended", request.reason),
    "resume": lambda v, request: set_status(v, request, "open", ""),
}


def operation_of(v: Violations, message: pb.Operation) -> Operation | None:
    """One operation of a batch, checked; None, with a violation, where it is of no kind that is served."""
    kind = message.WhichOneof("kind")
    if kind is None:
        v.add("kind", "is required: say what to do")
        return None
    if kind not in _OPERATIONS:
        v.add(kind, "is not served yet")
        return None
    operation: Operation = _OPERATIONS[kind](v, getattr(message, kind))
    return operation


def moment(v: Violations, field: str, stamp: Timestamp) -> datetime:
    """A contract's time, to the microsecond."""
    try:
        found = stamp.ToDatetime(tzinfo=UTC)
    except (ValueError, OverflowError):
        found = None
    if found is None or not _UTC_YEARS[0] <= found.year < _UTC_YEARS[1]:
        v.add(field, "must be a time between the years 1970 and 9998")
        return datetime(1970, 1, 1, tzinfo=UTC)
    return found


# The model to answers


def _stamp(moment: datetime | None) -> Timestamp | None:
    if moment is None:
        return None
    stamp = Timestamp()
    stamp.FromDatetime(moment)
    return stamp


def result_message(result: Result) -> pb.OperationResult:
    """One operation's result."""
    message = pb.OperationResult(replayed=result.replayed)
    match result.outcome:
        case AccountState(book):
            message.account.CopyFrom(account_message(book))
        case Posted(entry):
            message.transaction.CopyFrom(transaction_message(entry))
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
    return message


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
        created_at=_stamp(book.created_at),
        cycle_anchor=_stamp(book.cycle_anchor),
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
        cycle_start=_stamp(view.cycle_start),
        cycle_end=_stamp(view.cycle_end),
        grants=[_grant_message(book, grant, view.granted_at.get(grant.grant_id)) for grant in book.grants],
        as_of=_stamp(view.as_of),
        last_sequence=book.sequence,
    )


def _grant_message(book: Book, grant: Grant, created_at: datetime | None) -> resources.Grant:
    return resources.Grant(
        grant_id=grant.grant_id,
        source=grant.source,
        priority=grant.priority,
        amount_nanos=grant.amount,
        remaining_nanos=grant.remaining,
        reserved_nanos=grant.reserved,
        created_at=_stamp(created_at),
        expires_at=_stamp(grant.expires_at),
        transaction_id=transaction_id(created_at or book.created_at, grant.order),
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
        created_at=_stamp(hold.created_at),
        expires_at=_stamp(hold.expires_at),
        settled_nanos=hold.settled,
        ended_at=_stamp(hold.ended_at),
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
        resets_at=None if limit.window == "lifetime" else _stamp(limit.window_end),
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


def transaction_message(entry: Entry) -> resources.Transaction:
    """A journal entry."""
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
        key_id=entry.key_id,
        workspace=entry.workspace,
        created_at=_stamp(entry.created_at),
        hash=entry.hash.hex(),
    )


def usage_message(row: Row[Any]) -> resources.UsageRecord:
    """A usage record."""
    return resources.UsageRecord(
        usage_id=usage_id(row.created_at, row.usage_number),
        account_id=row.account_id,
        key_id=row.key_id,
        workspace=row.workspace,
        created_at=_stamp(row.created_at),
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
        started_at=_stamp(row.started_at),
        provider_request_id=row.provider_request_id,
        service_tier=row.service_tier,
    )
