"""Owns one model call's life: admitted, held, made, metered, settled, each once and in this order.

A call lives in a task of its own. The client may leave at any moment; the call goes on to its end (policy `drain`), so
that what the provider bills is what the customer pays. However it ends, its hold is ended: settled where the provider
had begun to answer, released where it had not.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass

import orjson
from pyreqwest.exceptions import PyreqwestError
from tollkeeper.ledger.v1 import ledger_service_pb2 as ledger_pb

from services.kit.errors import HTTP_STATUS_KEY, RETRY_AFTER_KEY, ServiceError
from services.kit.logs import get_logger
from services.proxy import admission
from services.proxy.admission import Admitted
from services.proxy.calls.call import CUT, FAILED, OK, REQUEST_ID_HEADER, Call, Settled, settlement
from services.proxy.calls.delivery import Head
from services.proxy.calls.streaming import relay
from services.proxy.catalogue import CatalogueWatch
from services.proxy.entitlements.service import Entitlements
from services.proxy.errors import AccountNotFound, KeyTypeNotAllowed, LedgerUnavailable, ProviderUnavailable
from services.proxy.keys.model import ADMIN
from services.proxy.ledger import Ledger
from services.proxy.outbox import Settlements
from services.proxy.rates import Limit, RateLimits
from services.proxy.settings import ProxySettings
from services.proxy.upstream import Answer, ProviderRefusalError, Upstreams, failure

_log = get_logger(__name__)

_MAX_EVENT_BYTES = 16 * 1024 * 1024
_FRAME_BYTES = 64 * 1024  # of a message, besides the body in it
_HOLD_ATTEMPTS = 3
_HOLD_BACKOFF_SECONDS = 0.05
_AFTER_DONE_SECONDS = 0.5
_EVENTS = "text/event-stream"


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
    """The life of one call."""

    def __init__(self, parts: Parts, call: Call) -> None:
        self._parts = parts
        self._call = call
        self._admitted: Admitted | None = None

    async def live(self) -> None:
        """From admission to settlement. Never raises: what goes wrong before an answer is the client's answer."""
        call = self._call
        failed: Exception | None = None
        try:
            admitted = await self._admit()
            cap = await self._hold(admitted)
            if not call.delivery.abandoned:
                await self._make(admitted, cap)
        except ProviderRefusalError as refusal:
            await self._end_hold(FAILED)
            await self._pass_on(refusal)
        except ServiceError as refusal:
            failed = refusal
        except asyncio.CancelledError:
            # Only a proxy that stops cancels a call: what came so far is settled.
            await self._end_hold(CUT)
            failed = ProviderUnavailable("the call was cut off: the proxy stops")
        except Exception as error:  # noqa: BLE001 (whatever it is, the hold is ended and the client is answered)
            _log.exception("a call failed", call_id=call.call_id)
            failed = error
        await self._end_hold(FAILED)
        await call.delivery.end(failed)

    # ------------------------------------------------------------------------------------------------------ admission

    async def _admit(self) -> Admitted:
        """Check the call against key, plan, prices and limits per minute. Raises the first refusal."""
        call, parts = self._call, self._parts
        key, request = call.key, call.request
        if key.key_type == ADMIN:
            raise KeyTypeNotAllowed("an admin key calls no models", key_type=key.key_type)
        entitlement = parts.entitlements.remembered(key.account_id) or await parts.entitlements.get(key.account_id)
        if entitlement is None:
            raise AccountNotFound("no entitlement of this account is known", account_id=key.account_id)
        card = admission.choose_card(
            key,
            entitlement,
            parts.catalogue.current,
            request.model,
            call.started_at,
            provider=call.provider,
            configured=parts.upstreams.names,
        )
        parts.upstreams.provider(card.provider)
        admitted = admission.admit(key, entitlement, card, request, default_cap=parts.settings.default_output_tokens)
        tokens = request.input_guess + (request.cap or 0) * request.choices
        of_key = f"key:{key.key_id}"
        await parts.rates.take(
            [
                Limit(key.account_id, of_key, "requests", key.requests_per_minute, 1),
                Limit(key.account_id, "account", "requests", entitlement.requests_per_minute, 1),
                Limit(key.account_id, of_key, "tokens", key.tokens_per_minute, tokens),
                Limit(key.account_id, "account", "tokens", entitlement.tokens_per_minute, tokens),
            ]
        )
        return admitted

    # ----------------------------------------------------------------------------------------------------------- hold

    async def _hold(self, admitted: Admitted) -> int:
        """Set money and limits aside; the output cap that they pay for.

        Raises what the ledger refuses, and LedgerUnavailable where it does not answer.
        """
        call, ttl = self._call, self._parts.settings.hold_ttl_seconds
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
        self._admitted, call.hold_open = admitted, True
        try:
            held = (await self._applied(operation)).hold.hold
        except ServiceError as refusal:
            call.hold_open = isinstance(refusal, LedgerUnavailable)
            raise
        return admitted.cap_within(held.amount_nanos, held.tokens)

    async def _applied(self, operation: ledger_pb.Operation) -> ledger_pb.OperationResult:
        """Send an operation, and again where its answer was lost: its id makes that harmless."""
        deadline = time.monotonic() + self._parts.settings.ledger_timeout_seconds
        backoff = _HOLD_BACKOFF_SECONDS
        for attempt in range(1, _HOLD_ATTEMPTS + 1):
            try:
                return (await self._parts.ledger.apply(operation))[0]
            except LedgerUnavailable:
                if attempt == _HOLD_ATTEMPTS or time.monotonic() + backoff >= deadline:
                    raise
                await asyncio.sleep(backoff)
                backoff *= 2
        raise AssertionError  # the last attempt answers or raises

    async def _end_hold(self, status: str) -> Settled | None:
        """End the hold, once: settled where an answer is owed for, else released. None where nothing was settled."""
        call, admitted = self._call, self._admitted
        if not call.hold_open or admitted is None:
            return None
        call.hold_open = False
        if not call.meter.owed:
            await self._parts.settlements.release(call.key.account_id, call.call_id, "the call was not answered")
            return None
        request = settlement(call, admitted, status)
        answer = await self._parts.settlements.settle(request)
        return Settled(call.call_id, request.amount_nanos, answer.available_nanos if answer is not None else None)

    # ----------------------------------------------------------------------------------------------------------- call

    async def _make(self, admitted: Admitted, cap: int) -> None:
        provider = self._parts.upstreams.provider(admitted.card.provider)
        request = self._call.request
        body = request.to_send(cap, provider.cap_field)
        try:
            async with self._parts.upstreams.chat(provider, body, stream=request.stream) as answer:
                if answer.is_events:
                    cancel = self._parts.settings.disconnect_policy == "cancel"
                    await relay(self._call, answer, self._end_hold, cancel_on_disconnect=cancel)
                else:
                    await self._whole(answer)
        except PyreqwestError as error:
            raise failure(provider.name, error) from error

    async def _whole(self, answer: Answer) -> None:
        """A unary answer: nothing of it goes out before it is settled, since its headers say what it cost."""
        call = self._call
        body = await answer.whole(self._parts.settings.max_message_bytes - _FRAME_BYTES)
        call.meter.take_whole(body)
        settled = await self._end_hold(OK)
        assert settled is not None, "a whole answer is owed for"
        await call.delivery.send(Head(settled.headers(), answer.content_type))
        await call.delivery.send(_with_credits(body, settled) if call.credits_in_body else body)

    async def _pass_on(self, refusal: ProviderRefusalError) -> None:
        """Give the client the provider's own error answer."""
        metadata = [(HTTP_STATUS_KEY, str(refusal.status)), (REQUEST_ID_HEADER, self._call.call_id)]
        if refusal.retry_after:
            metadata.append((RETRY_AFTER_KEY, refusal.retry_after))
        await self._call.delivery.send(Head(tuple(metadata), refusal.content_type))
        await self._call.delivery.send(refusal.body)


def _with_credits(body: bytes, settled: Settled) -> bytes:
    """A JSON object's bytes as they came, with a `credits` object added at its end."""
    whole = body.rstrip()
    if not whole.startswith(b"{") or not whole.endswith(b"}"):
        return body
    added = b'"credits":' + orjson.dumps(settled.credits()) + b"}"
    rest = whole[:-1].rstrip()
    return rest + (b"" if rest.endswith(b"{") else b",") + added
