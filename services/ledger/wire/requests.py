"""Owns the way from requests to operations; names what is wrong with a request, field by field."""

from __future__ import annotations

import hashlib
from operator import attrgetter
from typing import Any, Literal

from google.protobuf.message import Message
from tollkeeper.ledger.v1 import ledger_service_pb2 as pb
from tollkeeper.ledger.v1 import resources_pb2 as resources

from services.kit.amounts import request_amount
from services.kit.times import moment_of
from services.kit.validation import Violations, is_identifier
from services.ledger.model.book import MAX_AMOUNT
from services.ledger.model.operations import (
    CREDIT_TYPES,
    HOLD_MOVES,
    Adjust,
    CreateHold,
    Credit,
    Debit,
    DeleteLimit,
    ExtendHold,
    OpenAccount,
    Operation,
    ReleaseHold,
    SetLimit,
    SetStatus,
    SettleHold,
    Undo,
    UpdateAccount,
    Usage,
)
from services.ledger.model.rows import sequence_of
from services.ledger.model.windows import WINDOWS

MAX_TTL_SECONDS = 86_400
DEFAULT_TTL_SECONDS = 300
MAX_COUNT = 10**12
MAX_UNITS = 20
_UPDATABLE = ("display_name", "overdraft", "cycle_anchor")
TYPES = (*CREDIT_TYPES.values(), "usage_deduction", "expiry", "reversal", *HOLD_MOVES)
SCOPES = ("account", "plan", "key", "workspace")
UNITS = ("nanos", "tokens", "requests")


def body_hash(request: Message) -> bytes:
    """What tells one request from another: BLAKE2b over its kind and its canonical bytes, 16 bytes."""
    content = request.DESCRIPTOR.full_name.encode() + b"\0" + request.SerializeToString(deterministic=True)
    return hashlib.blake2b(content, digest_size=16).digest()


def open_account(v: Violations, request: pb.OpenAccountRequest) -> OpenAccount:
    """OpenAccount, checked."""
    kind, limit = _overdraft(v, "overdraft", request.overdraft)
    v.identifier("account_id", request.account_id)
    v.text("display_name", request.display_name, max_length=200)
    v.identifier("request_id", request.request_id, required=False)
    words = pb.OpenAccountRequest()
    words.CopyFrom(request)
    words.ClearField("request_id")  # the account id is the key: the same words open the same account
    return OpenAccount(
        account_id=request.account_id,
        display_name=request.display_name,
        overdraft_kind=kind,
        overdraft_limit=limit,
        cycle_anchor=moment_of(v, "cycle_anchor", request.cycle_anchor) if request.HasField("cycle_anchor") else None,
        body_hash=body_hash(words),
    )


def _overdraft(v: Violations, field: str, overdraft: resources.Overdraft) -> tuple[str, int]:
    """Kind and limit."""
    kind = overdraft.kind or "none"
    v.one_of(f"{field}.kind", kind, ("none", "fixed", "unlimited"))
    v.between(f"{field}.limit_nanos", overdraft.limit_nanos, 0, MAX_AMOUNT)
    if overdraft.limit_nanos and kind != "fixed":
        v.add(f"{field}.limit_nanos", "must be 0 unless overdraft.kind is fixed")
    return kind, overdraft.limit_nanos


def update_account(v: Violations, request: pb.UpdateAccountRequest) -> UpdateAccount:
    """UpdateAccount, checked. A field in the mask that is not given is set to its default."""
    account, mask = request.account, list(request.update_mask.paths)
    v.identifier("account.account_id", account.account_id)
    v.identifier("request_id", request.request_id)
    v.count("update_mask", mask, at_least=1, at_most=len(_UPDATABLE))
    for number, path in enumerate(mask[: len(_UPDATABLE)]):
        v.one_of(f"update_mask.paths[{number}]", path, _UPDATABLE)
    anchor = None
    if "cycle_anchor" in mask:
        v.present("account.cycle_anchor", given=account.HasField("cycle_anchor"))
        anchor = moment_of(v, "account.cycle_anchor", account.cycle_anchor)
    if "display_name" in mask:
        v.text("account.display_name", account.display_name, max_length=200)
    return UpdateAccount(
        account_id=account.account_id,
        display_name=account.display_name if "display_name" in mask else None,
        overdraft=_overdraft(v, "account.overdraft", account.overdraft) if "overdraft" in mask else None,
        cycle_anchor=anchor,
        request_id=request.request_id,
        body_hash=body_hash(request),
    )


def set_status(
    v: Violations,
    request: pb.SuspendAccountRequest | pb.ResumeAccountRequest | pb.CloseAccountRequest,
    status: str,
    why: str,
) -> SetStatus:
    """SuspendAccount, ResumeAccount and CloseAccount, checked."""
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
    amount = _amount(v, request.amount_nanos if request.HasField("amount_nanos") else None, request.amount_usd)
    priority = request.priority if request.HasField("priority") else 100
    v.between("priority", priority, 0, 1000)
    v.between("rollover_cap_nanos", request.rollover_cap_nanos, 0, MAX_AMOUNT)
    if request.rollover_cap_nanos and not request.HasField("expires_at"):
        v.add("rollover_cap_nanos", "must be 0 for credit that does not expire")
    return Credit(
        account_id=request.account_id,
        amount=amount,
        source=source,
        priority=priority,
        expires_at=moment_of(v, "expires_at", request.expires_at) if request.HasField("expires_at") else None,
        rollover_cap=request.rollover_cap_nanos,
        description=request.description,
        request_id=request.request_id,
        body_hash=body_hash(request),
    )


def _amount(v: Violations, nanos: int | None, usd: str) -> int:
    """A positive amount, given one way or the other."""
    amount = request_amount(v, nanos, usd)
    return v.between("amount_usd" if usd else "amount_nanos", amount, 1, MAX_AMOUNT) if amount else amount


def adjust(v: Violations, request: pb.AdjustBalanceRequest) -> Adjust:
    """AdjustBalance, checked."""
    v.identifier("account_id", request.account_id)
    v.identifier("request_id", request.request_id)
    v.text("description", request.description, max_length=500)
    direction = v.one_of("direction", request.direction or "credit", ("credit", "debit"))
    amount = _amount(v, request.amount_nanos if request.HasField("amount_nanos") else None, request.amount_usd)
    return Adjust(
        account_id=request.account_id,
        amount=-amount if direction == "debit" else amount,
        description=request.description,
        request_id=request.request_id,
        body_hash=body_hash(request),
    )


def refund(v: Violations, request: pb.RefundTransactionRequest) -> Undo:
    """RefundTransaction, checked."""
    whole = not request.HasField("amount_nanos") and not request.amount_usd
    nanos = request.amount_nanos if request.HasField("amount_nanos") else None
    return _undo(v, request, "refund", None if whole else _amount(v, nanos, request.amount_usd))


def reverse(v: Violations, request: pb.ReverseTransactionRequest) -> Undo:
    """ReverseTransaction, checked."""
    return _undo(
        v, request, "reversal", _amount(v, request.amount_nanos, "") if request.HasField("amount_nanos") else None
    )


def _undo(
    v: Violations,
    request: pb.RefundTransactionRequest | pb.ReverseTransactionRequest,
    kind: Literal["refund", "reversal"],
    amount: int | None,
) -> Undo:
    v.identifier("account_id", request.account_id)
    v.identifier("request_id", request.request_id)
    v.identifier("transaction_id", request.transaction_id)
    v.text("description", request.description, max_length=500)
    return Undo(
        account_id=request.account_id,
        kind=kind,
        transaction_id=request.transaction_id,
        sequence=sequence_of(request.transaction_id),
        amount=amount,
        description=request.description,
        request_id=request.request_id,
        body_hash=body_hash(request),
    )


def debit(v: Violations, request: pb.DebitAccountRequest) -> Debit:
    """DebitAccount, checked."""
    return Debit(
        account_id=v.identifier("account_id", request.account_id),
        request_id=v.identifier("request_id", request.request_id),
        key_id=v.identifier("key_id", request.key_id, required=False),
        workspace=v.identifier("workspace", request.workspace, required=False),
        description=v.text("description", request.description, max_length=500),
        amount=v.between("amount_nanos", request.amount_nanos, 0, MAX_AMOUNT),
        tokens=v.between("tokens", request.tokens, 0, MAX_COUNT),
        requests=v.between("requests", request.requests, 0, MAX_COUNT),
        usage=_usage(v, request.usage) if request.HasField("usage") else None,
        body_hash=body_hash(request),
    )


def extend_hold(v: Violations, request: pb.ExtendHoldRequest) -> ExtendHold:
    """ExtendHold, checked."""
    v.identifier("account_id", request.account_id)
    v.identifier("hold_id", request.hold_id)
    v.identifier("request_id", request.request_id)
    v.between("additional_nanos", request.additional_nanos, 0, MAX_AMOUNT)
    v.between("additional_tokens", request.additional_tokens, 0, MAX_COUNT)
    v.between("ttl_seconds", request.ttl_seconds, 0, MAX_TTL_SECONDS)
    if not request.additional_nanos and not request.additional_tokens and not request.ttl_seconds:
        v.add("additional_nanos", "give additional_nanos, additional_tokens or ttl_seconds")
    return ExtendHold(
        account_id=request.account_id,
        hold_id=request.hold_id,
        amount=request.additional_nanos,
        tokens=request.additional_tokens,
        ttl_seconds=request.ttl_seconds,
        request_id=request.request_id,
        body_hash=body_hash(request),
    )


def create_hold(v: Violations, request: pb.CreateHoldRequest) -> CreateHold:
    """CreateHold, checked."""
    amount, tokens = request.amount_nanos, request.tokens
    minimum, minimum_tokens = amount, tokens
    if request.HasField("minimum_amount_nanos"):
        minimum = v.between("minimum_amount_nanos", request.minimum_amount_nanos, 0, max(amount, 0))
    if request.HasField("minimum_tokens"):
        minimum_tokens = v.between("minimum_tokens", request.minimum_tokens, 0, max(tokens, 0))
    billable = request.billable if request.HasField("billable") else True
    if not billable and amount:
        v.add("amount_nanos", "must be 0 for a hold that is not billable")
    return CreateHold(
        account_id=v.identifier("account_id", request.account_id),
        hold_id=v.identifier("hold_id", request.hold_id),
        key_id=v.identifier("key_id", request.key_id, required=False),
        workspace=v.identifier("workspace", request.workspace, required=False),
        amount=v.between("amount_nanos", amount, 0, MAX_AMOUNT),
        minimum=minimum,
        tokens=v.between("tokens", tokens, 0, MAX_COUNT),
        minimum_tokens=minimum_tokens,
        requests=v.between("requests", request.requests, 0, MAX_COUNT) if request.HasField("requests") else 1,
        ttl_seconds=v.between("ttl_seconds", request.ttl_seconds or DEFAULT_TTL_SECONDS, 1, MAX_TTL_SECONDS),
        billable=billable,
        body_hash=body_hash(request),
    )


def settle_hold(v: Violations, request: pb.SettleHoldRequest) -> SettleHold:
    """SettleHold, checked."""
    return SettleHold(
        account_id=v.identifier("account_id", request.account_id),
        hold_id=v.identifier("hold_id", request.hold_id),
        amount=v.between("amount_nanos", request.amount_nanos, 0, MAX_AMOUNT),
        tokens=v.between("tokens", request.tokens, 0, MAX_COUNT),
        description=v.text("description", request.description, max_length=500),
        usage=_usage(v, request.usage) if request.HasField("usage") else None,
        body_hash=body_hash(request),
    )


# Of a report: its texts, of which Usage begins with the first four and ends with the others, and its counts, between.
_REPORT_TEXTS = ("session", "provider", "model", "endpoint", "provider_request_id", "service_tier")
_REPORT_COUNTS = (
    "input_tokens", "output_tokens", "cached_tokens", "cache_write_tokens", "reasoning_tokens",
    "input_cost_nanos", "output_cost_nanos", "cost_nanos", "price_version", "duration_milliseconds",
)  # fmt: skip
_MAX_TEXT = 200
_texts_of = attrgetter(*_REPORT_TEXTS)
_counts_of = attrgetter(*_REPORT_COUNTS)
# They become a Usage by position.
assert Usage._fields[:14] == (*_REPORT_TEXTS[:4], *(name.removesuffix("_nanos") for name in _REPORT_COUNTS))
assert Usage._fields[17:19] == _REPORT_TEXTS[4:]


def _usage(v: Violations, report: resources.UsageReport) -> Usage:
    texts, counts, units = _texts_of(report), _counts_of(report), dict(report.units or {})
    # Nearly every report is in order, which is seen at once.
    if sum(map(len, texts)) > _MAX_TEXT or not "".join(texts).isprintable():
        for name, text in zip(_REPORT_TEXTS, texts, strict=True):
            v.text(f"usage.{name}", text, max_length=_MAX_TEXT)
    if min(counts) < 0 or max(counts) > MAX_COUNT:
        for name, count in zip(_REPORT_COUNTS, counts, strict=True):
            v.between(f"usage.{name}", count, 0, MAX_AMOUNT if name.endswith("_nanos") else MAX_COUNT)
    if units:
        _check_units(v, units)
    status = v.one_of("usage.status", report.status or "ok", ("ok", "cut", "failed"))
    started = moment_of(v, "usage.started_at", report.started_at) if report.HasField("started_at") else None
    *names, provider_request_id, service_tier = texts
    ends = (status, report.estimated, started, provider_request_id, service_tier or "standard", units, report.internal)
    return Usage._make((*names, *counts, *ends))


def _check_units(v: Violations, units: dict[str, int]) -> None:
    v.count("usage.units", units, at_most=MAX_UNITS)
    for name, count in sorted(units.items())[:MAX_UNITS]:
        v.text("usage.units", name, max_length=40, required=True)
        v.between(f"usage.units[{name[:40]}]", count, 0, MAX_COUNT)


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
    v.identifier("request_id", request.request_id, required=False)
    return DeleteLimit(request.account_id, scope, subject, unit, window, request.request_id, body_hash(request))


_OPERATIONS: dict[str, Any] = {
    "open_account": open_account,
    "update_account": update_account,
    "credit": credit,
    "debit": debit,
    "adjust": adjust,
    "refund": refund,
    "reverse": reverse,
    "hold": create_hold,
    "extend": extend_hold,
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
    operation: Operation = _OPERATIONS[kind](v, getattr(message, kind))
    return operation
