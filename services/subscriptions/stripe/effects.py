"""Owns what is written of what was read from Stripe: the account's standing, its payments, and the deliveries of both.

Deliveries go out in an order in which at no moment more can be spent than the plan means: the cycle, the limits, credit
taken back and given, and the door last.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from datetime import datetime, timedelta

from sqlalchemy import Connection

from services.kit.logs import get_logger
from services.subscriptions import store
from services.subscriptions.alerts.model import payment_failed_alert
from services.subscriptions.alerts.store import raise_alert
from services.subscriptions.model.account import Account, PlanChange
from services.subscriptions.model.delivery import (
    Delivery,
    GrantCredit,
    MoveCycle,
    ReverseGrant,
    SetEntitlement,
    plan_terms,
    with_promotion,
)
from services.subscriptions.model.plan import Plan
from services.subscriptions.stripe import mirror_store, recharge_store
from services.subscriptions.stripe.gathering import Seen
from services.subscriptions.stripe.grants import (
    INVOICE,
    Credit,
    adjusted,
    credit_of,
    in_order,
    lasting,
    wanted_nanos,
    without_returned,
)
from services.subscriptions.stripe.lifecycle import Standing, standing
from services.subscriptions.stripe.model import CreditPart, Mirror, PlanKey, ReturnedCharge

_log = get_logger(__name__)


class Effects:
    """Writes, in the transaction that ends the account's lease. `grace_days` are those of a plan that says none."""

    def __init__(self, *, grace_days: int) -> None:
        self._grace_days = grace_days

    def write(self, connection: Connection, account_id: str, seen: Seen, now: datetime) -> Account:
        """Write what follows for an account; the account as it is then."""
        account = store.lock_account(connection, account_id)
        assert account is not None
        known = mirror_store.find_mirror(connection, account_id)
        place = standing(
            account,
            known,
            seen.subscription,
            free=PlanKey(seen.free.plan_id, seen.free.version),
            grace=timedelta(days=self._days_of_grace(seen)),
            now=now,
        )
        if place.mirror is not None and place.mirror != known:
            mirror_store.write_mirror(connection, place.mirror)
            self._tell_of_failure(connection, place.mirror)
        account, first, last = self._moved(connection, account, place, seen, now)
        taken_back = []
        for source in in_order(seen.sources.values()):
            credit = credit_of(account_id, source, seen.plans, now=now)
            taken_back += self._paid(connection, credit, now)
        taken_back += [
            reversal
            for source_id, charges in seen.returned.items()
            for reversal in self._returned(connection, source_id, charges, now)
        ]
        granted = granted_now(connection, account, now)
        deliveries = [*first, *taken_back, *granted, *last]
        if deliveries:
            store.enqueue(connection, account_id, deliveries)
        return account

    def _tell_of_failure(self, connection: Connection, mirror: Mirror) -> None:
        """Raise the alert of a renewal that could not be collected, once for each time that it begins to fail."""
        if mirror.failing_since is not None:
            source_id = f"{mirror.subscription_id}:{mirror.failing_since.isoformat()}"
            message = f"The payment for the {mirror.plan_id} plan failed."
            alert = payment_failed_alert(mirror.account_id, source_id, message, grace_until=mirror.grace_until)
            raise_alert(connection, alert)

    def _days_of_grace(self, seen: Seen) -> int:
        plan = seen.plans[seen.subscription.plan] if seen.subscription is not None else seen.free
        return plan.grace_days or self._grace_days

    def _moved(
        self, connection: Connection, account: Account, place: Standing, seen: Seen, now: datetime
    ) -> tuple[Account, list[Delivery], list[SetEntitlement]]:
        """The account where it stands now, and what ledger and proxy have to know of that; nothing where it stood."""
        before = PlanKey(account.plan_id, account.plan_version)
        key = place.plan or before
        if (key, place.status, place.cycle_anchor) == (before, account.status, account.cycle_anchor):
            return account, [], []
        plan = self._plan(key, seen)
        moved = replace(
            account,
            plan_id=key.plan_id,
            plan_version=key.version,
            status=place.status,
            cycle_anchor=place.cycle_anchor,
            revision=account.revision + 1,
        )
        promoted, grants = with_promotion(moved, plan, now)
        if place.owes:  # who owes is given nothing free
            promoted, grants = replace(moved, renews_grant=False), []
        store.update_account(connection, promoted)
        if key != before:
            store.insert_plan_change(connection, _change(account, promoted, now))
        _log.info(
            "account moved", account_id=account.account_id, plan=key.plan_id, version=key.version, status=place.status
        )
        limits, entitlement = plan_terms(promoted, plan)
        first: list[Delivery] = [limits, *grants]
        if place.cycle_anchor != account.cycle_anchor:
            first.insert(0, MoveCycle(account.account_id, promoted.revision, place.cycle_anchor))
        return promoted, first, [entitlement]

    def _plan(self, key: PlanKey, seen: Seen) -> Plan:
        if key == PlanKey(seen.free.plan_id, seen.free.version):
            return seen.free
        return seen.plans[key]

    def _paid(self, connection: Connection, credit: Credit, now: datetime) -> list[ReverseGrant]:
        """Keep a payment and the grants it gives, once; what has to be taken back of others where it gives back."""
        payment = credit.payment
        if not mirror_store.insert_payment(connection, payment):
            return []
        mirror_store.write_parts(connection, credit.parts)
        _log.info("paid", account_id=payment.account_id, payment=payment.source_id, credit_nanos=payment.credit_nanos)
        if not credit.excess_nanos:
            return []
        before = {part.request_id: part for part in mirror_store.lasting_parts(connection, payment.account_id, now)}
        changed = without_returned(before.values(), credit.excess_nanos)
        for part in changed:
            self._shrink(connection, before[part.request_id], part)
        return [_reversal(before[part.request_id], part) for part in changed if part.granted_at is not None]

    def _shrink(self, connection: Connection, before: CreditPart, part: CreditPart) -> None:
        """What is taken of a part is no part of what its payment is worth either: a refund does not count it again."""
        taken = part.taken_back_nanos - before.taken_back_nanos
        payment = mirror_store.find_payment(connection, part.source_id)
        assert payment is not None
        mirror_store.update_payment(connection, replace(payment, credit_nanos=payment.credit_nanos - taken))
        if part.granted_at is None:
            part = replace(before, amount_nanos=before.amount_nanos - taken)
        mirror_store.write_parts(connection, [part])

    def _returned(
        self, connection: Connection, source_id: str, charges: Iterable[ReturnedCharge], now: datetime
    ) -> list[ReverseGrant]:
        """Take back, or give again, what follows from what of a payment's charges was returned."""
        payment = mirror_store.find_payment(connection, source_id)
        if payment is None:
            return []
        returned = dict(payment.returned) | {charge.charge_id: charge.returned_cents for charge in charges}
        if sum(returned.values()) > sum(payment.returned.values()):
            recharge_store.update_rule(connection, payment.account_id, armed=False)
        payment = replace(payment, returned={charge: cents for charge, cents in returned.items() if cents})
        mirror_store.update_payment(connection, payment)
        before = {part.request_id: part for part in mirror_store.parts_of(connection, source_id)}
        changed = adjusted(before.values(), wanted_nanos(payment), now=now)
        mirror_store.write_parts(connection, changed)
        return [
            _reversal(before[part.request_id], part)
            for part in changed
            if part.granted_at is not None
            and part.request_id in before
            and part.taken_back_nanos > before[part.request_id].taken_back_nanos
        ]


def granted_now(connection: Connection, account: Account, now: datetime) -> list[GrantCredit]:
    """The grants that are due to an account whose row is locked, noted as granted.

    To a closed one the further months of a year lapse: that it has paid, should it be news, the first of them says.
    """
    found = []
    for part in mirror_store.parts_to_come(connection, account.account_id):
        if part.due_at > now:
            continue
        granted = replace(
            lasting(part, account.cycle_anchor, now), amount_nanos=part.left_nanos, taken_back_nanos=0, granted_at=now
        )
        mirror_store.write_parts(connection, [granted])
        if granted.amount_nanos > 0 and not (account.status == "closed" and part.part > 1):
            found.append(_grant(granted))
    return found


def _grant(part: CreditPart) -> GrantCredit:
    bought = "Credit of invoice" if part.request_id.startswith(INVOICE) else "Credit bought with payment"
    return GrantCredit(
        account_id=part.account_id,
        request_id=part.request_id,
        amount_nanos=part.amount_nanos,
        source=part.source,
        description=f"{bought} {part.source_id}",
        expires_at=part.expires_at,
        rollover_cap_nanos=part.rollover_cap_nanos,
    )


def _reversal(before: CreditPart, after: CreditPart) -> ReverseGrant:
    return ReverseGrant(
        account_id=after.account_id,
        request_id=f"reverse:{after.times_taken_back}:{after.request_id}",
        grant_request_id=after.request_id,
        amount_nanos=after.taken_back_nanos - before.taken_back_nanos,
        description=f"Refund or dispute of {after.source_id}",
    )


def _change(before: Account, after: Account, now: datetime) -> PlanChange:
    return PlanChange(
        account_id=before.account_id,
        request_id=f"stripe:{after.revision}",
        from_plan_id=before.plan_id,
        from_plan_version=before.plan_version,
        plan_id=after.plan_id,
        plan_version=after.plan_version,
        created_at=now,
    )
