"""Owns what one request, or one due job, works on: the transaction, the time, the agenda, and who asked."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator
from typing import Any, Final

from deploy.local.sandbox.stripe.refusal import Obj, no_such
from deploy.local.sandbox.stripe.store import Transaction

AGENDA: Final = "_agenda"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """What an operator of a Stripe account sets in its dashboard, and where the sandbox is."""

    base_url: str = ""
    # Days from a renewal's failed payment to each further attempt, from the attempt before.
    retry_days: tuple[int, ...] = (3, 5, 7)
    # What becomes of a subscription whose last attempt failed: canceled, unpaid, or past_due as it is.
    after_retries: str = "canceled"
    upcoming_days: int = 7
    draft_seconds: int = 3600
    # The endpoint given at the start, apart from those made through the API.
    webhook_url: str | None = None
    webhook_secret: str | None = None


class World:
    """Everything that a request may read and change."""

    def __init__(
        self,
        transaction: Transaction,
        settings: Settings,
        *,
        request_id: str | None = None,
        idempotency_key: str | None = None,
        at: int | None = None,
    ) -> None:
        self.transaction = transaction
        self.settings = settings
        self.request_id = request_id
        self.idempotency_key = idempotency_key
        # The moment that a late job makes up for; None: now.
        self.at = at

    def scratch(self) -> World:
        """The same world for trying something out; nothing that happens there is kept."""
        return World(self.transaction.scratch(), dataclasses.replace(self.settings, webhook_url=None), at=self.at)

    # ---- objects

    def find(self, kind: str, identifier: str | None) -> Obj | None:
        """An object, or None. Not to be changed."""
        return None if identifier is None else self.transaction.get(kind, identifier)

    def get(self, kind: str, identifier: str) -> Obj:
        """An object that the sandbox itself refers to. Not to be changed."""
        found = self.transaction.get(kind, identifier)
        assert found is not None, (kind, identifier)
        return found

    def need(self, kind: str, identifier: str, param: str = "id", *, in_path: bool = False) -> Obj:
        """An object that a request names. Not to be changed.

        Raises:
            Refusal: it is not there, or deleted.
        """
        found = self.transaction.get(kind, identifier)
        if found is None or (found.get("deleted") and not in_path):
            raise no_such(kind, identifier, param, in_path=in_path)
        return found

    def edit(self, kind: str, identifier: str) -> Obj:
        """An object's private copy, to be changed in place."""
        return self.transaction.edit(kind, identifier)

    def all(self, kind: str, **fields: Any) -> Iterator[Obj]:
        """Every object of a kind with these fields, oldest first. Not to be changed."""
        for obj in self.transaction.all(kind):
            if all(obj.get(name) == value for name, value in fields.items()):
                yield obj

    def add(self, obj: Obj) -> Obj:
        """Add a new object under its own kind."""
        return self.transaction.put(obj["object"], obj)

    def remove(self, kind: str, identifier: str) -> None:
        """Take an object away."""
        self.transaction.remove(kind, identifier)

    # ---- time

    def now(self, clock: str | None = None) -> int:
        """Seconds since 1970, as the test clock `clock` shows them if there is one."""
        if clock is not None:
            return int(self.get("test_helpers.test_clock", clock)["frozen_time"])
        return int(time.time()) if self.at is None else self.at

    def clock_of(self, customer: str | None) -> str | None:
        """The test clock that a customer's things live by, or None."""
        found = self.find("customer", customer)
        return None if found is None else found.get("test_clock")

    def schedule(self, job: str, identifier: str, due: int, clock: str | None) -> None:
        """Have a job done for an object at `due`, in the place of the one on the agenda already."""
        entry = {"id": f"{job}:{identifier}", "job": job, "target": identifier, "due": due, "clock": clock}
        self.transaction.put(AGENDA, entry)

    def unschedule(self, job: str, identifier: str) -> None:
        """Take a job off the agenda, if it is there."""
        name = f"{job}:{identifier}"
        if self.transaction.get(AGENDA, name) is not None:
            self.transaction.remove(AGENDA, name)
