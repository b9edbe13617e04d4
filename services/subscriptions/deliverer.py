"""Owns delivery: takes entries from the outbox, sends each to its service, notes what came of it.

No transaction is open while a peer is called. A delivery is claimed by a lease in one transaction, sent, and marked in
another; a deliverer that dies in between leaves a lease that runs out, and the delivery is sent again by whoever claims
it next. That is safe because deliveries are idempotent, and orderly because only an account's oldest waiting delivery
can be claimed.
"""

from __future__ import annotations

import random
import time
from dataclasses import dataclass, replace
from typing import assert_never

import grpc
from prometheus_client import Counter
from sqlalchemy import Engine

from services.kit.errors import RemoteError
from services.kit.logs import get_logger
from services.subscriptions import store
from services.subscriptions.clients import Peers
from services.subscriptions.clock import Clock
from services.subscriptions.model.delivery import (
    PROMOTION,
    Delivery,
    GrantCredit,
    MoveCycle,
    OpenLedgerAccount,
    OutboxEntry,
    ReverseGrant,
    SetEntitlement,
    SetPlanLimits,
    retry_delay_seconds,
)
from services.subscriptions.stripe import mirror_store

_log = get_logger(__name__)

# Longer than any delivery may take (its timeout is at most 15 s), so that a claim never lapses while it is being sent.
_LEASE_SECONDS = 30.0
_RECHECK_SECONDS = 0.05
_LEAST_SECONDS = 0.1
_JITTER = 0.2

# Codes that say that what was sent is not acceptable, rather than that it could not be taken in now.
_REFUSALS = {
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.ALREADY_EXISTS,
    grpc.StatusCode.PERMISSION_DENIED,
    grpc.StatusCode.UNAUTHENTICATED,
    grpc.StatusCode.FAILED_PRECONDITION,
    grpc.StatusCode.OUT_OF_RANGE,
    grpc.StatusCode.UNIMPLEMENTED,
}

# What the ledger says of more than is left to be taken back, and where it says how much is.
_LESS_IS_LEFT, _LEFT = "REFUND_EXCEEDS_ORIGINAL", "leftNanos"
# What the ledger says of a request id that it knows from another request.
_GIVEN_OTHERWISE = "IDEMPOTENCY_CONFLICT"
# What it says of a book that is closed, which is for good.
_BOOK_CLOSED = "ACCOUNT_CLOSED"

_DELIVERIES = Counter(
    "tollkeeper_subscriptions_deliveries", "Deliveries to ledger and proxy attempted, by outcome", ["kind", "outcome"]
)
_PAID_FOR_NOTHING = Counter(
    "tollkeeper_subscriptions_closed_accounts_paid", "Payments of accounts that are closed, which brought no credit"
)


@dataclass(frozen=True, slots=True)
class _Sent:
    """What the ledger said: of a grant its transaction, of credit taken back how much came from other grants."""

    transaction_id: str = ""
    elsewhere_nanos: int = 0


class Deliverer:
    """Delivers the outbox. Any number of them, in any number of processes, are safe side by side."""

    def __init__(self, engine: Engine, peers: Peers, *, timeout_seconds: float, clock: Clock) -> None:
        self._engine = engine
        self._peers = peers
        self._timeout_seconds = timeout_seconds
        self._clock = clock

    def deliver_account(self, account_id: str, *, within_seconds: float) -> bool:
        """Deliver what waits of one account now, due or not; True when nothing is left.

        False after the first failure, or when the time is over: the rest is then delivered in the background. What
        another deliverer has claimed is waited for.
        """
        ends = time.monotonic() + within_seconds
        while (left := ends - time.monotonic()) > _LEAST_SECONDS:
            with self._engine.begin() as connection:
                entry = store.claim_of_account(connection, account_id, lease_seconds=_LEASE_SECONDS)
                if entry is None and not store.has_waiting(connection, account_id):
                    return True
            if entry is None:
                time.sleep(_RECHECK_SECONDS)
            elif not self._deliver(entry, min(left, self._timeout_seconds)):
                return False
        with self._engine.connect() as connection:
            return not store.has_waiting(connection, account_id)

    def deliver_next(self) -> bool:
        """Deliver the entry longest due, of any account; False where nothing is due."""
        return self.attempt_next() is not None

    def attempt_next(self) -> bool | None:
        """Try to deliver the entry longest due, of any account: whether it has arrived; None where nothing is due."""
        with self._engine.begin() as connection:
            entry = store.claim_due(connection, lease_seconds=_LEASE_SECONDS)
        return None if entry is None else self._deliver(entry, self._timeout_seconds)

    def _deliver(self, entry: OutboxEntry, timeout_seconds: float) -> bool:
        """Send one claimed entry and note the outcome; whether it has arrived."""
        try:
            sent = self._send(entry.delivery, timeout_seconds)
        except grpc.RpcError as error:
            self._failed(entry, RemoteError.from_rpc(error))
            return False
        except RemoteError as error:
            if error.reason == _BOOK_CLOSED:
                self._closed(entry)
                return True
            self._failed(entry, error)
            return False
        with self._engine.begin() as connection:
            store.mark_delivered(connection, entry)
            if isinstance(entry.delivery, GrantCredit) and sent.transaction_id:
                mirror_store.note_transaction(connection, entry.delivery, sent.transaction_id)
            if isinstance(entry.delivery, ReverseGrant) and sent.elsewhere_nanos:
                store.lock_account(connection, entry.account_id)
                mirror_store.note_taken_elsewhere(connection, entry.delivery, sent.elsewhere_nanos)
        _DELIVERIES.labels(entry.delivery.kind, "delivered").inc()
        return True

    def _closed(self, entry: OutboxEntry) -> None:
        """Let go of what a closed book takes no more, and close the account here too: nothing further is sold to it."""
        with self._engine.begin() as connection:
            store.close_accounts(connection, [entry.account_id])
            store.mark_delivered(connection, entry)
        _DELIVERIES.labels(entry.delivery.kind, "closed").inc()
        delivery = entry.delivery
        if isinstance(delivery, GrantCredit) and delivery.source != PROMOTION:
            _PAID_FOR_NOTHING.inc()
            _log.error(
                "a closed account has paid and got nothing: refund it at Stripe",
                account_id=delivery.account_id,
                grant=delivery.request_id,
                amount_nanos=delivery.amount_nanos,
            )
            return
        _log.info("the account is closed: not delivered", account_id=entry.account_id, kind=delivery.kind)

    def _failed(self, entry: OutboxEntry, error: RemoteError) -> None:
        refused = error.code in _REFUSALS
        delay_seconds = retry_delay_seconds(entry.attempts, refused=refused)
        delay_seconds *= 1 + random.uniform(-_JITTER, _JITTER)  # noqa: S311 (spreads retries, guards nothing)
        said = f"{error.code.name} {error.reason} {error.message}"
        with self._engine.begin() as connection:
            store.mark_failed(connection, entry, error=said, delay_seconds=delay_seconds)
        _DELIVERIES.labels(entry.delivery.kind, "refused" if refused else "failed").inc()
        log = _log.error if refused else _log.warning
        log(
            "delivery refused" if refused else "delivery failed",
            account_id=entry.account_id,
            sequence=entry.sequence,
            kind=entry.delivery.kind,
            attempts=entry.attempts,
            error=said,
            retry_in_seconds=round(delay_seconds, 1),
        )

    def _send(self, delivery: Delivery, timeout_seconds: float) -> _Sent:
        match delivery:
            case OpenLedgerAccount():
                self._peers.ledger.open_account(delivery, timeout_seconds=timeout_seconds)
            case MoveCycle():
                self._peers.ledger.move_cycle(delivery, timeout_seconds=timeout_seconds)
            case SetPlanLimits():
                self._peers.ledger.set_plan_limits(delivery, timeout_seconds=timeout_seconds)
            case GrantCredit():
                return _Sent(transaction_id=self._grant(delivery, timeout_seconds))
            case ReverseGrant():
                return _Sent(elsewhere_nanos=self._reverse(delivery, timeout_seconds))
            case SetEntitlement():
                self._peers.proxy.set_entitlement(delivery, timeout_seconds=timeout_seconds)
            case _:
                assert_never(delivery)
        return _Sent()

    def _grant(self, delivery: GrantCredit, timeout_seconds: float) -> str:
        if delivery.has_lapsed(self._clock()):
            _log.warning("grant lapsed undelivered", account_id=delivery.account_id, grant=delivery.request_id)
            return ""
        try:
            return self._peers.ledger.grant(delivery, timeout_seconds=timeout_seconds)
        except RemoteError as refusal:
            if delivery.source != PROMOTION or refusal.reason != _GIVEN_OTHERWISE:
                raise
            # One a cycle: this cycle's was given by what a restore has undone, on another plan.
            _log.warning("a promotion was given before", account_id=delivery.account_id, grant=delivery.request_id)
            return ""

    def _reverse(self, delivery: ReverseGrant, timeout_seconds: float) -> int:
        """Take back what a grant gave; how much of that came from other credit.

        The grant was delivered before, so its transaction is known, unless it had lapsed.
        """
        with self._engine.connect() as connection:
            transaction_id = mirror_store.find_transaction(connection, delivery.account_id, delivery.grant_request_id)
        if not transaction_id:
            _log.warning("nothing to take back", account_id=delivery.account_id, grant=delivery.grant_request_id)
            return 0
        try:
            return self._peers.ledger.reverse(delivery, transaction_id, timeout_seconds=timeout_seconds)
        except RemoteError as refusal:
            left = refusal.metadata.get(_LEFT, "")
            if refusal.reason != _LESS_IS_LEFT or not left.isdecimal():
                raise
            return self._reverse_rest(delivery, transaction_id, int(left), timeout_seconds)

    def _reverse_rest(self, delivery: ReverseGrant, transaction_id: str, nanos: int, timeout_seconds: float) -> int:
        """Take back what is left: an operator has reversed the rest at the ledger. Repeated, it finds nothing left."""
        _log.warning(
            "credit was taken back before",
            account_id=delivery.account_id,
            grant=delivery.grant_request_id,
            wanted_nanos=delivery.amount_nanos,
            left_nanos=nanos,
        )
        if nanos <= 0:
            return 0
        rest = replace(delivery, request_id=f"{delivery.request_id}:rest", amount_nanos=nanos)
        return self._peers.ledger.reverse(rest, transaction_id, timeout_seconds=timeout_seconds)
