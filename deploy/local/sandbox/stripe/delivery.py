"""Owns the delivery of events to webhook endpoints: signed as Stripe signs, in order, tried again until taken."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import hmac
import time
from typing import Final

import aiohttp
import orjson

from deploy.local.sandbox.stripe.engine import deliveries
from deploy.local.sandbox.stripe.refusal import Obj
from deploy.local.sandbox.stripe.store import Store
from deploy.local.sandbox.stripe.world import Settings

_PATIENCE_SECONDS: Final = 20.0
_LONGEST_SLEEP: Final = 1.0
USER_AGENT: Final = "Stripe/1.0 (SANDBOX; tollkeeper-sandbox-stripe)"


def signature(secret: str, body: bytes, moment: int) -> str:
    """The `Stripe-Signature` header: HMAC-SHA256 of `t.body`. Source: docs.stripe.com/webhooks/signature."""
    mac = hmac.new(secret.encode(), f"{moment}.".encode() + body, hashlib.sha256)
    return f"t={moment},v1={mac.hexdigest()}"


class Deliverer:
    """Delivers what is due: to each endpoint one at a time, so that a healthy one sees events in their order."""

    def __init__(self, store: Store, settings: Settings) -> None:
        self._store = store
        self._settings = settings
        self._woken = asyncio.Event()
        self._busy: set[str] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    def wake(self) -> None:
        """Say that something may have become due."""
        self._woken.set()

    async def run(self) -> None:
        """Deliver until cancelled."""
        timeout = aiohttp.ClientTimeout(total=_PATIENCE_SECONDS)
        async with aiohttp.ClientSession(timeout=timeout, trust_env=False) as client:
            while True:
                self._woken.clear()
                self._start_due(client)
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._woken.wait(), self._until_next())

    def _until_next(self) -> float:
        due = deliveries.next_due(self._store.transaction())
        if due is None or self._busy:
            return _LONGEST_SLEEP
        return min(_LONGEST_SLEEP, max(0.01, due - time.time()))

    def _start_due(self, client: aiohttp.ClientSession) -> None:
        waiting: dict[str, list[Obj]] = {}
        for delivery in deliveries.due(self._store.transaction(), time.time()):
            waiting.setdefault(delivery["endpoint"], []).append(delivery)
        for endpoint, due in waiting.items():
            if endpoint not in self._busy:
                self._busy.add(endpoint)
                task = asyncio.create_task(self._deliver_all(client, endpoint, due))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)

    async def _deliver_all(self, client: aiohttp.ClientSession, endpoint: str, due: list[Obj]) -> None:
        try:
            for delivery in due:
                current = self._store.get(deliveries.DELIVERY, delivery["id"])
                if current is not None and current["state"] == "pending":
                    await self._deliver(client, endpoint, current)
        finally:
            self._busy.discard(endpoint)
            self.wake()

    async def _deliver(self, client: aiohttp.ClientSession, endpoint: str, delivery: Obj) -> None:
        event = self._store.get("event", delivery["event"])
        url, secret = self._target(endpoint)
        status, error = None, None
        if event is None or url is None:
            error = "the endpoint or the event is gone"
        else:
            body = orjson.dumps(event, option=orjson.OPT_INDENT_2)
            headers = {"content-type": "application/json; charset=utf-8", "user-agent": USER_AGENT}
            if secret:
                headers["stripe-signature"] = signature(secret, body, int(time.time()))
            try:
                async with client.post(url, data=body, headers=headers, allow_redirects=False) as response:
                    await response.content.read(64 * 1024)
                    status = response.status
            except (aiohttp.ClientError, TimeoutError, OSError) as failure:
                error = f"{type(failure).__name__}: {failure}"[:500]
        transaction = self._store.transaction()
        deliveries.record(transaction, delivery["id"], status, error)
        transaction.commit()

    def _target(self, endpoint: str) -> tuple[str | None, str | None]:
        if endpoint == deliveries.START_ENDPOINT:
            return self._settings.webhook_url, self._settings.webhook_secret
        found = self._store.get("webhook_endpoint", endpoint)
        return (None, None) if found is None else (found["url"], found["_secret"])

    def settled(self) -> bool:
        """Whether nothing is due just now, or on its way."""
        return not self._busy and not deliveries.due(self._store.transaction(), time.time())

    def waiting(self) -> bool:
        """Whether a delivery is still to be made, now or at a later attempt."""
        return bool(self._busy) or deliveries.next_due(self._store.transaction()) is not None
