"""Owns what is worth an alert, what an alert says, how it is signed, and when it is tried again. Pure.

Webhooks have the Standard Webhooks form (https://www.standardwebhooks.com): headers `webhook-id`, `webhook-timestamp`
and `webhook-signature`, which is `v1,` and the base64 of HMAC-SHA256 over `{id}.{timestamp}.{body}`.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import secrets
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

THRESHOLDS = (100, 80, 50)
BALANCE_LOW, PAYMENT_FAILED = "balance_low", "payment_failed"
TYPES = (*(f"limit_{percent}" for percent in sorted(THRESHOLDS)), BALANCE_LOW, PAYMENT_FAILED)

SECRET_PREFIX = "whsec_"  # noqa: S105 (what every secret begins with)
_SECRET_BYTES = 32
_NANOS = 1_000_000_000
_CENT = 10_000_000
# After each attempt that failed, as Standard Webhooks proposes: over three days in all.
RETRY_SECONDS = (5, 300, 1800, 7200, 18_000, 36_000, 50_400, 72_000, 86_400)


@dataclass(frozen=True, slots=True)
class Alert:
    """Something worth telling. Of one `dedupe_key` an account has one alert; none once it has one of `outdone_by`."""

    account_id: str
    type: str
    dedupe_key: str
    message: str
    facts: dict[str, Any] = field(default_factory=dict)
    outdone_by: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class CountedLimit:
    """A limit of the ledger and its use in the present window, which ends at `resets_at` (None: it never does)."""

    limit_id: str
    scope: str
    subject: str
    unit: str
    window: str
    amount: int
    used: int
    resets_at: datetime | None


def limit_alerts(account_id: str, limits: Sequence[CountedLimit]) -> Iterator[Alert]:
    """One alert for each limit that has reached a threshold in its window: the highest it has reached.

    Use that goes back, as after a refund, raises no lower one.
    """
    for limit in limits:
        if limit.amount <= 0:
            continue
        reached = next((percent for percent in THRESHOLDS if limit.used * 100 >= limit.amount * percent), None)
        if reached is None:
            continue
        window = limit.resets_at.isoformat() if limit.resets_at is not None else "lifetime"
        key = f"limit:{limit.limit_id}:{window}:{limit.amount}"
        whose = f" of {limit.scope} {limit.subject}" if limit.subject else f" of the {limit.scope}"
        yield Alert(
            account_id=account_id,
            type=f"limit_{reached}",
            dedupe_key=f"{key}:{reached}",
            outdone_by=tuple(f"{key}:{percent}" for percent in THRESHOLDS if percent > reached),
            message=f"{reached} % of the limit on {limit.unit} in a {limit.window}{whose} is used.",
            facts={
                "limitId": limit.limit_id,
                "unit": limit.unit,
                "window": limit.window,
                "amount": str(limit.amount),
                "used": str(limit.used),
                "resetsAt": limit.resets_at.isoformat() if limit.resets_at is not None else None,
            },
        )


def low_balance_alert(account_id: str, available_nanos: int, threshold_nanos: int, now: datetime) -> Alert | None:
    """The alert of a balance at or below the threshold; one a day while it is. None above it."""
    if available_nanos > threshold_nanos:
        return None
    return Alert(
        account_id=account_id,
        type=BALANCE_LOW,
        dedupe_key=f"balance:{now.date().isoformat()}",
        message=f"The balance is ${_dollars(available_nanos)}.",
        facts={"availableNanos": str(available_nanos), "thresholdNanos": str(threshold_nanos)},
    )


def payment_failed_alert(
    account_id: str, source_id: str, message: str, *, grace_until: datetime | None = None
) -> Alert:
    """The alert of a payment that failed; one for each `source_id`, which says of what."""
    until = f" Everything goes on until {grace_until:%Y-%m-%d %H:%M} UTC." if grace_until is not None else ""
    return Alert(
        account_id=account_id,
        type=PAYMENT_FAILED,
        dedupe_key=f"payment:{source_id}",
        message=f"{message}{until}",
        facts={"graceUntil": grace_until.isoformat() if grace_until is not None else None},
    )


def _dollars(nanos: int) -> str:
    """Whole cents, for people; towards zero."""
    cents = abs(nanos) // _CENT
    return f"{'-' if nanos < 0 else ''}{cents // 100}.{cents % 100:02}"


def body_of(alert_id: str, alert: Alert, created_at: datetime) -> bytes:
    """What a webhook's body says, the same at every attempt."""
    return json.dumps(
        {
            "type": f"alert.{alert.type}",
            "timestamp": created_at.isoformat(),
            "data": {"alertId": alert_id, "accountId": alert.account_id, "message": alert.message, **alert.facts},
        }
    ).encode()


def new_secret() -> str:
    """A signing secret: `whsec_` and the base64 of 32 random bytes."""
    return SECRET_PREFIX + base64.b64encode(secrets.token_bytes(_SECRET_BYTES)).decode()


def signature(secret: str, message_id: str, timestamp: int, body: bytes) -> str:
    """The `webhook-signature` of a message. `timestamp` is in seconds of Unix time."""
    key = base64.b64decode(secret.removeprefix(SECRET_PREFIX))
    signed = b".".join((message_id.encode(), str(timestamp).encode(), body))
    return "v1," + base64.b64encode(hmac.new(key, signed, hashlib.sha256).digest()).decode()


def retry_delay_seconds(attempts: int) -> int | None:
    """How long to wait after so many failed attempts; None: give up."""
    return RETRY_SECONDS[attempts - 1] if attempts <= len(RETRY_SECONDS) else None
