"""Owns one model call's life: admitted, held, made, metered, settled, each once and in this order.

A call lives in a task of its own. The client may leave at any moment; the call goes on to its end (policy `drain`), so
that what the provider bills is what the customer pays. However it ends, its hold is ended: settled where the provider
had begun to answer, released where it had not.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import orjson
from pyreqwest.exceptions import PyreqwestError

from services import rating
from services.kit.amounts import credits as as_credits
from services.kit.errors import ServiceError
from services.kit.logs import get_logger
from services.proxy import admission
from services.proxy.calls import chat
from services.proxy.calls.delivery import Delivery, Head, Metadata
from services.proxy.calls.meter import Meter, with_credits
from services.proxy.catalogue import CatalogueWatch
from services.proxy.clock import utc_now
from services.proxy.entitlements.service import Entitlements
from services.proxy.errors import AccountNotFound, KeyTypeNotAllowed, LedgerUnavailable, ProviderUnavailable
from services.proxy.keys.model import ADMIN, Key
from services.proxy.ledger import Ledger
from services.proxy.outbox import Settlements
from services.proxy.rates import Limit, RateLimits
from services.proxy.settings import ProxySettings
from services.proxy.sse import EventSplitter, EventTooLargeError
from services.proxy.upstream import Answer, ProviderRefusalError, Upstreams, failure
from tollkeeper.ledger.v1 import ledger_service_pb2 as ledger_pb
from tollkeeper.ledger.v1 import resources_pb2 as ledger_resources_pb

_log = get_logger(__name__)

REQUEST_ID_HEADER = "x-tollkeeper-request-id"
COST_HEADER = "x-tollkeeper-cost-credits"
REMAINING_HEADER = "x-tollkeeper-credits-remaining"
HTTP_STATUS_HEADER = "x-tollkeeper-http-status"

OK, CUT, FAILED = "ok", "cut", "failed"

_MAX_EVENT_BYTES = 16 * 1024 * 1024
_HOLD_ATTEMPTS = 3
_HOLD_BACKOFF_SECONDS = 0.05
_AFTER_DONE_SECONDS = 0.5


@dataclass(slots=True)
class Call:
    """One call under way. `call_id` is its hold's id too; it is never the client's."""

    key: Key
    endpoint: str
    request: chat.ChatRequest
    delivery: Delivery
    provider: str = ""
    body_credits: bool = False
    call_id: str = field(default_factory=lambda: f"call-{uuid.uuid4().hex}")
    arrived: float = field(default_factory=time.monotonic)
    started_at: datetime = field(default_factory=utc_now)
    admitted: admission.Admitted | None = None
    meter: Meter = field(init=False)
    held_until: float = 0.0
    hold_open: bool = False
    extensions: int = 0

    def __post_init__(self) -> None:
        self.meter = Meter(self.request.input_guess)


@dataclass(frozen=True, slots=True)
class Settled:
    """What a call cost the customer, and what is left, where the ledger has answered."""

    billed_nanos: int
    available_nanos: int | None


@dataclass(frozen=True, slots=True)
class Parts:
    """What a call's life needs of the rest of the proxy."""

    settings: ProxySettings
    entitlements: Entitlements
    catalogue: CatalogueWatch
    rates: RateLimits
    ledger: Ledger
    settlements: Settlements
    upstreams: Upstreams


class Life:
    """Lives calls."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts

    async def live(self, call: Call) -> None:
        """A call from admission to settlement. What goes wrong before its head is sent is the client's answer."""
        status = FAILED
        try:
            await self._admit(call)
            await self._hold(call)
            status = await self._made(call)
        except ProviderRefusalError as refusal:
            await self._end_hold(call, FAILED)
            await self._pass_on(call, refusal)
        except ServiceError as refusal:
            await self._end_hold(call, FAILED)
            await call.delivery.end(refusal)
        except asyncio.CancelledError:
            # Only a proxy that stops cancels: what came so far is settled, and the client is told.
            status = CUT
            await self._end_hold(call, CUT)
            await call.delivery.end(ProviderUnavailable("the call was cut off: the proxy stops"))
        except Exception as error:  # noqa: BLE001 (whatever it is, the hold is ended and the client is answered)
            _log.exception("a call failed", call_id=call.call_id)
            await self._end_hold(call, FAILED)
            await call.delivery.end(error)
        else:
            await call.delivery.end()
        finally:
            await self._end_hold(call, status)

    # ------------------------------------------------------------------------------------------------------ admission

    async def _admit(self, call: Call) -> None:
        """Check the call against key, plan, prices and limits per minute. Raises the first refusal."""
        key, parts = call.key, self._parts
        if key.key_type == ADMIN:
            raise KeyTypeNotAllowed("an admin key calls no models", key_type=key.key_type)
        entitlement = parts.entitlements.remembered(key.account_id) or await parts.entitlements.get(key.account_id)
        if entitlement is None:
            raise AccountNotFound("no entitlement of this account is known", account_id=key.account_id)
        card = admission.choose_card(
            key,
            entitlement,
            parts.catalogue.current,
            call.request.model,
            call.started_at,
            provider=call.provider,
            configured=parts.upstreams.names,
        )
        parts.upstreams.provider(card.provider)
        call.admitted = admission.admit(
            key, entitlement, card, call.request, default_cap=parts.settings.default_output_tokens
        )
        tokens = call.request.input_guess + (call.request.cap or 0) * call.request.choices
        of_key = f"key:{key.key_id}"
        await parts.rates.take(
            [
                Limit(key.account_id, of_key, "requests", key.requests_per_minute, 1),
                Limit(key.account_id, "account", "requests", entitlement.requests_per_minute, 1),
                Limit(key.account_id, of_key, "tokens", key.tokens_per_minute, tokens),
                Limit(key.account_id, "account", "tokens", entitlement.tokens_per_minute, tokens),
            ]
        )

    # ----------------------------------------------------------------------------------------------------------- hold

    async def _hold(self, call: Call) -> None:
        """Set money and limits aside. Raises what the ledger refuses, LedgerUnavailable where it does not answer."""
        admitted, ttl = _admitted(call), self._parts.settings.hold_ttl_seconds
        operation = ledger_pb.Operation(
            hold=ledger_pb.CreateHoldRequest(
                account_id=call.key.account_id,
                hold_id=call.call_id,
                amount_nanos=admitted.amount_nanos,
                minimum_amount_nanos=admitted.minimum_amount_nanos,
                tokens=admitted.tokens,
                minimum_tokens=admitted.minimum_tokens,
                requests=1,
                key_id=call.key.key_id,
                workspace=call.key.workspace,
                ttl_seconds=ttl,
                billable=admitted.billable,
            )
        )
        call.held_until = time.monotonic() + ttl
        # From here on a hold may stand, whether its answer comes or not.
        call.hold_open = True
        try:
            held = (await self._applied(operation))[0].hold.hold
        except ServiceError as refusal:
            call.hold_open = isinstance(refusal, LedgerUnavailable)
            raise
        call.admitted = admitted
        self._cap = 0
        call.cap = admitted.cap_within(held.amount_nanos, held.tokens)

    async def _applied(self, operation: ledger_pb.Operation) -> list[ledger_pb.OperationResult]:
        """Send an operation again where its answer was lost; its id makes that harmless."""
        deadline = time.monotonic() + self._parts.settings.ledger_timeout_seconds
        backoff = _HOLD_BACKOFF_SECONDS
        for _ in range(_HOLD_ATTEMPTS - 1):
            try:
                return await self._parts.ledger.apply(operation)
            except LedgerUnavailable:
                if time.monotonic() + backoff >= deadline:
                    raise
                await asyncio.sleep(backoff)
                backoff *= 2
        return await self._parts.ledger.apply(operation)
