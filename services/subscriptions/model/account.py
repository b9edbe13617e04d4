"""Owns customers' accounts: which plan each is on, since when, and the words it was created with."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from datetime import datetime

from services.subscriptions.model.cycle import Cycle, cycle_at

DEFAULT_PLAN = "free"
STATUSES = ("active", "closed", "grace", "limited", "suspended")


@dataclass(frozen=True, slots=True)
class AccountWords:
    """What an account is created with. Creating it again with the same words is a repeat, with others a conflict."""

    account_id: str
    display_name: str
    email: str
    plan_id: str

    @property
    def fingerprint(self) -> str:
        """SHA-256, hex, of the words: two requests mean the same where theirs are equal."""
        words = json.dumps([self.account_id, self.display_name, self.email, self.plan_id])
        return hashlib.sha256(words.encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class Account:
    """A customer on a version of a plan.

    `created_as` is the fingerprint of its words. `revision` (`fresh_revision`) rises with each push of the plan's terms
    to ledger and proxy. `granted_until` is the end of the last cycle whose promotion was granted, `renews_grant` says
    that the plan gives one in every cycle. `provisioned` is true when nothing of the account waits for delivery.
    `stripe_customer_id` is empty until it is a customer of Stripe's.
    """

    account_id: str
    display_name: str
    email: str
    plan_id: str
    plan_version: int
    status: str
    cycle_anchor: datetime
    created_at: datetime
    created_as: str
    revision: int
    renews_grant: bool
    granted_until: datetime | None
    provisioned: bool = False
    stripe_customer_id: str = ""

    @property
    def may_call(self) -> bool:
        """Whether its calls go through, as far as is known here: the ledger has neither suspended nor closed it."""
        return not is_stopped(self.status)

    def cycle_at(self, moment: datetime) -> Cycle:
        """The account's billing cycle at a moment."""
        return cycle_at(self.cycle_anchor, moment)

    def is_owed_grant(self, moment: datetime) -> bool:
        """Whether the cycle at `moment` has had no promotion yet."""
        return self.granted_until is None or self.granted_until <= moment


def is_stopped(status: str) -> bool:
    """Whether an account of this status, here or at the ledger, may use nothing at all."""
    return status in {"closed", "suspended"}


def fresh_revision(now: datetime) -> int:
    """A revision that was told to nobody: higher than any before, those of a time that a restore has undone among them.

    The seconds since 1970. Where an account begins with it and then rises by one with each push, of which there are
    less than one a second, what is told later is always higher.
    """
    return int(now.timestamp())


@dataclass(frozen=True, slots=True)
class PlanChange:
    """One move of an account between plans, as first asked for under its request id."""

    account_id: str
    request_id: str
    from_plan_id: str
    from_plan_version: int
    plan_id: str
    plan_version: int
    created_at: datetime
