"""Owns what a Stripe event says that matters here: of which type it is, about which object, of which customer. Pure.

Nothing else is read from an event's body: the rest is a snapshot, and may be old by the time it is applied.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

PENDING, APPLIED, IGNORED, FAILED = "pending", "applied", "ignored", "failed"
STATUSES = (APPLIED, FAILED, IGNORED, PENDING)

CUSTOMER_DELETED = "customer.deleted"
# One is about a preview: there is no such invoice to be read, whatever id it has. The other is about a draft, mostly,
# which gives nothing and may be deleted by now; a renewal's is found by its subscription.
_UPCOMING, _CREATED = "invoice.upcoming", "invoice.created"
APPLIED_TYPES = frozenset(
    {
        "charge.dispute.closed",
        "charge.dispute.created",
        "charge.dispute.updated",
        "charge.refunded",
        "checkout.session.async_payment_succeeded",
        "checkout.session.completed",
        "credit_note.created",
        "credit_note.updated",
        "credit_note.voided",
        CUSTOMER_DELETED,
        "customer.subscription.created",
        "customer.subscription.deleted",
        "customer.subscription.paused",
        "customer.subscription.pending_update_applied",
        "customer.subscription.pending_update_expired",
        "customer.subscription.resumed",
        "customer.subscription.trial_will_end",
        "customer.subscription.updated",
        _CREATED,
        "invoice.finalized",
        "invoice.marked_uncollectible",
        "invoice.paid",
        "invoice.payment_failed",
        "invoice.payment_succeeded",
        _UPCOMING,
        "invoice.voided",
        "payment_intent.succeeded",
        "refund.failed",
        "refund.updated",
    }
)

# Objects whose state is read again when an event is about them; what an event says of a subscription is found by its
# customer, whatever the event.
INVOICE, PAYMENT_INTENT, CHARGE, SESSION = "invoice", "payment_intent", "charge", "checkout.session"
# An invoice of which something was credited, by its id.
CREDITED = "credit_note"
# Those that are about a charge, and name it.
_OF_CHARGE = ("dispute", "refund")

_MAX_ID_CHARS = 255


class NotAnEventError(ValueError):
    """The body is no event of the kind we read; says why."""


@dataclass(frozen=True, slots=True)
class Reference:
    """An object of Stripe's, by kind and id."""

    kind: str
    object_id: str


@dataclass(frozen=True, slots=True)
class ReadEvent:
    """What is read from an event. `customer_id` empty: the event does not say; `reference` None: it is about none."""

    event_id: str
    type: str
    created_at: datetime
    customer_id: str
    reference: Reference | None

    @property
    def is_applied(self) -> bool:
        """Whether events of its type are acted upon."""
        return self.type in APPLIED_TYPES


@dataclass(frozen=True, slots=True)
class StoredEvent:
    """An event as it is kept, without its body."""

    event_id: str
    type: str
    status: str
    account_id: str | None
    created_at: datetime
    received_at: datetime
    applied_at: datetime | None
    attempts: int
    last_error: str


def read_event(body: str) -> ReadEvent:
    """Read an event's JSON. Raises NotAnEventError."""
    try:
        event = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise NotAnEventError("not JSON") from error
    if not isinstance(event, dict) or event.get("object") != "event":
        raise NotAnEventError("not an event")
    about = event["data"].get("object") if isinstance(event.get("data"), dict) else None
    if not isinstance(about, dict):
        raise NotAnEventError("an event about nothing")
    kind, object_id = _text(about, "object"), _text(about, "id")
    event_type = _required(event, "type")
    return ReadEvent(
        event_id=_required(event, "id"),
        type=event_type,
        created_at=_moment(event.get("created")),
        customer_id=object_id if kind == "customer" else _id_of(about.get("customer")),
        reference=_reference(kind, object_id, about) if event_type not in (_UPCOMING, _CREATED) else None,
    )


def _reference(kind: str, object_id: str, about: dict[str, Any]) -> Reference | None:
    if kind in _OF_CHARGE:
        charge_id = _id_of(about.get("charge"))
        return Reference(CHARGE, charge_id) if charge_id else None
    if kind == CREDITED:
        invoice_id = _id_of(about.get("invoice"))
        return Reference(CREDITED, invoice_id) if invoice_id else None
    if kind in (INVOICE, PAYMENT_INTENT, CHARGE, SESSION) and object_id:
        return Reference(kind, object_id)
    return None


def _required(event: dict[str, Any], name: str) -> str:
    value = _text(event, name)
    if not value:
        raise NotAnEventError(f"an event without its {name}")
    return value


def _text(values: dict[str, Any], name: str) -> str:
    value = values.get(name)
    return value if isinstance(value, str) and len(value) <= _MAX_ID_CHARS and value.isprintable() else ""


def _id_of(value: object) -> str:
    """An id that may stand for its object, or be expanded to it."""
    if isinstance(value, dict):
        return _text(value, "id")
    return _text({"id": value}, "id")


def _moment(seconds: object) -> datetime:
    if not isinstance(seconds, int) or isinstance(seconds, bool) or not 0 <= seconds < 2**34:
        raise NotAnEventError("an event without its time")
    return datetime.fromtimestamp(seconds, UTC)
