"""Owns the use cases of customers' accounts: create, move to a plan, read, list, and grant each cycle's promotion."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime

from sqlalchemy import Connection, Engine

from services.kit.errors import Violation
from services.subscriptions import store
from services.subscriptions.clients import PlanCatalogue
from services.subscriptions.clock import Clock, utc_now
from services.subscriptions.deliverer import Deliverer
from services.subscriptions.errors import (
    AccountExists,
    AccountNotFound,
    IdempotencyConflict,
    PlanNotFound,
    PlanRetired,
    SubscriptionExists,
)
from services.subscriptions.model.account import Account, AccountWords, PlanChange, fresh_revision
from services.subscriptions.model.delivery import Delivery, opening, plan_terms, with_promotion
from services.subscriptions.model.plan import Plan
from services.subscriptions.stripe import mirror_store

_PLAN_FIELD = "plan"


@dataclass(frozen=True, slots=True)
class Done:
    """The account after a change; `replayed` where the same request had made it before."""

    account: Account
    replayed: bool


class Customers:
    """Accounts and the plans they are on."""

    def __init__(
        self,
        engine: Engine,
        plans: PlanCatalogue,
        deliverer: Deliverer,
        *,
        inline_delivery_seconds: float,
        clock: Clock = utc_now,
    ) -> None:
        self._engine = engine
        self._plans = plans
        self._deliverer = deliverer
        self._inline_delivery_seconds = inline_delivery_seconds
        self._clock = clock

    def create(self, words: AccountWords) -> Done:
        """Create an account and deliver what its plan gives, as far as time allows.

        Raises AccountExists, PlanNotFound, PlanRetired; grpc.RpcError where pricing does not answer.
        """
        with self._engine.connect() as connection:
            known = store.find_account(connection, words.account_id)
        if known is not None:
            return self._repeated(known, words)
        plan = self.plan_on_sale(words.plan_id)
        account, deliveries = self._new_account(words, plan)
        with self._engine.begin() as connection:
            added = store.insert_account(connection, account)
            if added:
                store.enqueue(connection, account.account_id, deliveries)
            else:  # by the same request, sent twice at once, or by another
                known = store.find_account(connection, words.account_id)
        if not added:
            assert known is not None
            return self._repeated(known, words)
        return Done(self._delivered(account), replayed=False)

    def _new_account(self, words: AccountWords, plan: Plan) -> tuple[Account, list[Delivery]]:
        now = self._clock()
        account = Account(
            account_id=words.account_id,
            display_name=words.display_name,
            email=words.email,
            plan_id=plan.plan_id,
            plan_version=plan.version,
            status="active",
            cycle_anchor=now,
            created_at=now,
            created_as=words.fingerprint,
            revision=fresh_revision(now),
            renews_grant=False,
            granted_until=None,
        )
        account, grants = with_promotion(account, plan, now)
        limits, entitlement = plan_terms(account, plan)
        # Limits before credit, credit before the door is opened: at no moment more can be spent than the plan means.
        return account, [opening(account), limits, *grants, entitlement]

    def _repeated(self, known: Account, words: AccountWords) -> Done:
        if known.created_as != words.fingerprint:
            raise AccountExists(
                f"account {words.account_id} was created with another display name, e-mail or plan",
                account_id=words.account_id,
            )
        return Done(known if known.provisioned else self._delivered(known), replayed=True)

    def set_plan(self, account_id: str, plan_id: str, request_id: str) -> Done:
        """Move an account to a plan's newest version and deliver what follows, as far as time allows.

        Moving to the plan it is on renews its terms. Raises AccountNotFound, PlanNotFound, PlanRetired,
        IdempotencyConflict; SubscriptionExists where Stripe says the plan, and would take back what is said here;
        grpc.RpcError where pricing does not answer.
        """
        with self._engine.connect() as connection:
            change = store.find_plan_change(connection, account_id, request_id)
        plan = None if change is not None else self.plan_on_sale(plan_id)
        with self._engine.begin() as connection:
            account = store.lock_account(connection, account_id)
            if account is None:
                raise _not_found(account_id)
            change = change or store.find_plan_change(connection, account_id, request_id)
            if change is None:
                assert plan is not None
                mirror = mirror_store.find_mirror(connection, account_id)
                if mirror is not None and mirror.in_force:
                    raise SubscriptionExists(f"account {account_id} has a subscription, which says its plan")
                account = self._moved(connection, account, plan, request_id)
        if change is None:
            return Done(self._delivered(account), replayed=False)
        if change.plan_id != plan_id:
            raise IdempotencyConflict(f"request id {request_id} was used to move to plan {change.plan_id}")
        first = replace(account, plan_id=change.plan_id, plan_version=change.plan_version)
        return Done(first if first.provisioned else self._delivered(first), replayed=True)

    def _moved(self, connection: Connection, account: Account, plan: Plan, request_id: str) -> Account:
        now = self._clock()
        moved = replace(account, plan_id=plan.plan_id, plan_version=plan.version, revision=account.revision + 1)
        moved, grants = with_promotion(moved, plan, now)
        limits, entitlement = plan_terms(moved, plan)
        store.update_account(connection, moved)
        store.enqueue(connection, moved.account_id, [limits, *grants, entitlement])
        store.insert_plan_change(
            connection,
            PlanChange(
                account_id=account.account_id,
                request_id=request_id,
                from_plan_id=account.plan_id,
                from_plan_version=account.plan_version,
                plan_id=plan.plan_id,
                plan_version=plan.version,
                created_at=now,
            ),
        )
        return moved

    def get(self, account_id: str) -> Account:
        """One account. Raises AccountNotFound."""
        with self._engine.connect() as connection:
            account = store.find_account(connection, account_id)
        if account is None:
            raise _not_found(account_id)
        return account

    def list(self, *, plan_id: str, status: str, after: str, page_size: int) -> tuple[list[Account], str]:
        """A page of accounts by id from beyond `after` on, and the id to go on from; empty on the last page."""
        with self._engine.connect() as connection:
            found = store.list_accounts(connection, plan_id=plan_id, status=status, after=after, limit=page_size + 1)
        page = found[:page_size]
        return page, page[-1].account_id if len(found) > page_size else ""

    def grant_due_promotions(self, *, limit: int) -> int:
        """Grant the present cycle's promotion to accounts that have not had it, at most `limit`; how many were due.

        Cycles that went by unnoticed are not made up for: their promotion would have expired.
        """
        now = self._clock()
        with self._engine.connect() as connection:
            due = store.accounts_owed_grant(connection, now, limit=limit)
        for account in due:
            self._grant_promotion(account, self._plans.version(account.plan_id, account.plan_version), now)
        return len(due)

    def _grant_promotion(self, seen: Account, plan: Plan, now: datetime) -> None:
        with self._engine.begin() as connection:
            account = store.lock_account(connection, seen.account_id)
            if account is None or account.revision != seen.revision:
                return  # it has been moved to another plan since it was read
            account, grants = with_promotion(account, plan, now)
            store.update_account(connection, account)
            if grants:
                store.enqueue(connection, account.account_id, grants)

    def plan_on_sale(self, plan_id: str) -> Plan:
        """A plan's newest version. Raises PlanNotFound, PlanRetired; grpc.RpcError where pricing does not answer."""
        violation = [Violation(_PLAN_FIELD, "must be a plan on sale")]
        try:
            plan = self._plans.newest(plan_id)
        except PlanNotFound as error:
            raise PlanNotFound(error.message, violations=violation, plan=plan_id) from error
        if plan.retired:
            raise PlanRetired(f"plan {plan_id} is not sold any more", violations=violation, plan=plan_id)
        return plan

    def _delivered(self, account: Account) -> Account:
        done = self._deliverer.deliver_account(account.account_id, within_seconds=self._inline_delivery_seconds)
        return replace(account, provisioned=done)


def _not_found(account_id: str) -> AccountNotFound:
    return AccountNotFound(f"there is no account {account_id}", account_id=account_id)
