"""Owns one model call's life: admitted, held, made, metered, settled, each once and in this order.

A call lives in a task of its own. The client may leave at any moment; the call goes on to its end (policy `drain`), so
that what the provider bills is what the customer pays. However it ends, its hold is ended: settled where the provider
had begun to answer, released where it had not.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import orjson
from pyreqwest.exceptions import PyreqwestError
from tollkeeper.ledger.v1 import ledger_service_pb2 as ledger_pb

from services.kit.errors import HTTP_STATUS_KEY, RETRY_AFTER_KEY, ServiceError
from services.kit.logs import get_logger
from services.kit.replays import REPLAYED
from services.proxy import admission
from services.proxy.admission import Admitted
from services.proxy.answers import Answers, Begun, KeptAnswer
from services.proxy.calls.call import CUT, FAILED, OK, Call, Settled, settlement
from services.proxy.calls.delivery import Head
from services.proxy.calls.quotas import refusal_headers
from services.proxy.calls.streaming import relay
from services.proxy.calls.texts import Texts
from services.proxy.catalogue import CatalogueWatch
from services.proxy.converse.exchange import ReadableAnswer, answer_of, refusal_of
from services.proxy.entitlements.model import Entitlement
from services.proxy.entitlements.service import Entitlements
from services.proxy.errors import (
    AccountNotFound,
    AnswerNotPassedOn,
    FormNotSpoken,
    KeyTypeNotAllowed,
    LedgerUnavailable,
    ProviderCredentialRefused,
    ProviderRateLimited,
    ProviderTimeout,
    ProviderUnavailable,
)
from services.proxy.formats.request import Request
from services.proxy.keys.model import ADMIN
from services.proxy.ledger import Ledger
from services.proxy.outbox import Settlements
from services.proxy.rates import Counting, Limit, RateLimits
from services.proxy.settings import ProxySettings
from services.proxy.sse import BYTE_ORDER_MARK
from services.proxy.upstream import ProviderRefusalError, UnreadAnswerError, Upstreams, discreet, failure

_log = get_logger(__name__)

_FRAME_BYTES = 64 * 1024  # of a message, besides the body in it
_HOLD_ATTEMPTS = 3
_HOLD_BACKOFF_SECONDS = 0.05
# A provider's own refusals after which another provider may do better.
_PASSING = frozenset({408, 429, *range(500, 600)})


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
    answers: Answers


class Life:
    """The life of one call; `body` is the client's, as it came."""

    def __init__(self, parts: Parts, call: Call, body: bytes) -> None:
        self._parts = parts
        self._call = call
        self._body = body
        self._admitted: Admitted | None = None
        self._begun: Begun | None = None
        self._counting: Counting | None = None
        self._billed = False  # something of it is settled, or may be
        settings = parts.settings
        self._texts = Texts(call, body, settings.log_text_bytes) if settings.log_texts else None

    async def live(self) -> None:
        """From admission to settlement. Never raises: what goes wrong before an answer is the client's answer."""
        call = self._call
        failed: Exception | None = None
        try:
            try:
                if not await self._answered_before():
                    await self._answer()
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
        try:
            try:
                await self._end_hold(FAILED)
            except asyncio.CancelledError:
                await self._end_hold(CUT)  # where it was being counted
            if call.standing is not None and not self._billed:
                self._parts.rates.correct(call.standing, 0)
            if self._begun is not None:
                await self._begun.abandon()  # of no effect where an answer was kept
        finally:
            # Also where the proxy stops in the middle of this: else the client would wait for ever.
            if self._texts is not None:
                self._texts.log()
            await call.delivery.end(failed)

    async def _answered_before(self) -> bool:
        """Whether the client has had an answer to this request and gets it again. Else this call will keep its own."""
        call, asked = self._call, self._call.asked
        if not asked.idempotency_key:
            return False
        found = await self._parts.answers.begin(
            f"{call.key.account_id}/{call.key.key_id}",
            asked.idempotency_key,
            call.fingerprint(self._body),
            asked.secret,
            call.call_id,
        )
        if isinstance(found, Begun):
            self._begun = found
            return False
        await call.delivery.send(Head((*found.metadata, REPLAYED), found.content_type))
        await call.delivery.send(found.body)
        return True

    async def _answer(self) -> None:
        """Make the call, and where its provider fails before the first byte, its fallbacks, each at its own price."""
        first: Exception | None = None
        for request, provider in self._attempts():
            if first is not None:
                await self._end_hold(FAILED)
                self._call.fall_back(request, provider)
            try:
                admitted = await self._admit()
                try:
                    cap = await self._hold(admitted)
                finally:
                    # A limit per minute that is reached is told before what the ledger refuses.
                    await self._counted()
            except ServiceError as refusal:
                if first is None:
                    raise
                _log.info("a fallback was refused", call_id=self._call.hold_id, reason=refusal.reason)
                continue
            if self._call.delivery.abandoned:
                return None
            try:
                return await self._make(admitted, cap)
            except (ServiceError, ProviderRefusalError) as error:
                # What a fallback says of the request, the client has not asked: the first failure is what it is told.
                goes_on = first is not None or _passing(error)
                if self._call.delivery.begun or self._call.reader.owed or not goes_on:
                    raise
                first = first or error
        assert first is not None
        raise first

    def _attempts(self) -> Iterator[tuple[Request, str]]:
        """What is asked for; then, read anew for its own model, each fallback that is configured."""
        first = self._call.request
        yield first, self._call.provider
        for other in self._parts.settings.fallbacks.get(first.model, ()):
            provider, _, model = other.partition("/")
            yield first.for_model(self._body, model), provider

    # ------------------------------------------------------------------------------------------------------ admission

    async def _admit(self) -> Admitted:
        """Check the call against key, plan, prices and limits per minute. Raises the first refusal.

        Where there is much room in the limits per minute, they are asked beside the hold: `_counted` tells the rest.
        """
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
            owner=request.owner,
            askable=parts.upstreams.speaking(request.forms()),
        )
        provider = parts.upstreams.provider(card.provider)
        if not provider.forms & request.forms():
            raise FormNotSpoken(
                f"{card.model} of {card.provider} is not called in this form", provider=card.provider, model=card.model
            )
        call.provider, call.price_version = card.provider, card.version
        admitted = admission.admit(key, entitlement, card, request, default_cap=parts.settings.default_output_tokens)
        if call.attempt == 0:
            self._counting = parts.rates.begin(self._limits_a_minute(entitlement))
            if not self._counting.likely:
                await self._counted()
        return admitted

    def _limits_a_minute(self, entitlement: Entitlement) -> list[Limit]:
        call, key = self._call, self._call.key
        tokens = call.request.input_guess + (call.request.cap or 0) * call.request.choices
        of_key = f"key:{key.limit_subject}"
        return [
            Limit(key.account_id, of_key, "requests", key.requests_per_minute, 1),
            Limit(key.account_id, "account", "requests", entitlement.requests_per_minute, 1),
            Limit(key.account_id, of_key, "tokens", key.tokens_per_minute, tokens),
            Limit(key.account_id, "account", "tokens", entitlement.tokens_per_minute, tokens),
        ]

    async def _counted(self) -> None:
        """Wait until the call is counted against its limits per minute, if it is being. Raises RateLimited."""
        counting, self._counting = self._counting, None
        if counting is not None:
            self._call.standing = await self._parts.rates.counted(counting)

    # ----------------------------------------------------------------------------------------------------------- hold

    async def _hold(self, admitted: Admitted) -> int:
        """Set money and limits aside; the output cap that they pay for.

        Raises what the ledger refuses, and LedgerUnavailable where it does not answer.
        """
        call, ttl = self._call, self._parts.settings.hold_ttl_seconds
        operation = ledger_pb.Operation(
            hold=ledger_pb.CreateHoldRequest(
                account_id=call.key.account_id,
                hold_id=call.hold_id,
                amount_nanos=admitted.amount_nanos,
                minimum_amount_nanos=admitted.minimum_amount_nanos,
                tokens=admitted.tokens,
                minimum_tokens=admitted.minimum_tokens,
                requests=1,
                key_id=call.key.limit_subject,
                workspace=call.key.workspace or call.asked.workspace,
                ttl_seconds=ttl,
                billable=admitted.billable,
            )
        )
        call.held_until = time.monotonic() + ttl
        # From here on a hold may stand, whether its answer comes or not.
        self._admitted, call.hold_open = admitted, True
        try:
            made = (await self._applied(operation)).hold
        except ServiceError as refusal:
            call.hold_open = isinstance(refusal, LedgerUnavailable)
            refusal.headers = refusal_headers(refusal)
            raise
        call.quotas = made.quotas
        return admitted.cap_within(made.hold.amount_nanos, made.hold.tokens)

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

    async def _extend_hold(self, tokens: int) -> bool:
        """Hold so many output tokens more, for a provider that ignores its cap; False where that is refused."""
        call, admitted = self._call, self._admitted
        assert admitted is not None
        call.extensions += 1
        more = ledger_pb.ExtendHoldRequest(
            account_id=call.key.account_id,
            hold_id=call.hold_id,
            additional_nanos=admitted.cost_of_more(tokens),
            additional_tokens=tokens,
            request_id=f"{call.hold_id}-{call.extensions}",
        )
        try:
            await self._applied(ledger_pb.Operation(extend=more))
        except ServiceError as refusal:
            _log.warning("a stream is above its hold, and ended", call_id=call.hold_id, reason=refusal.reason)
            return False
        call.held_output_tokens += tokens
        return True

    async def _end_hold(self, status: str) -> Settled | None:
        """End the hold, once: settled where an answer is owed for, else released. None where nothing was settled."""
        call, admitted = self._call, self._admitted
        if not call.hold_open or admitted is None:
            return None
        if not call.reader.owed:
            call.hold_open = False
            call.quotas = ()  # they were told with this hold in them
            await self._parts.settlements.release(call.key.account_id, call.hold_id, "the call was not answered")
            return None
        await call.count()
        call.hold_open, self._billed = False, True
        request = settlement(call, admitted, status)
        return self._settled(request, await self._parts.settlements.settle(request))

    def _settled(self, request: ledger_pb.SettleHoldRequest, booked: ledger_pb.SettleHoldResponse | None) -> Settled:
        available = booked.available_nanos if booked is not None else None
        if self._call.standing is not None:
            self._parts.rates.correct(self._call.standing, request.tokens)
        self._call.available_nanos = available or 0
        self._call.quotas = booked.quotas if booked is not None else ()
        return Settled(self._call.hold_id, request.amount_nanos, available)

    # ----------------------------------------------------------------------------------------------------------- call

    async def _make(self, admitted: Admitted, cap: int) -> None:
        call, settings = self._call, self._parts.settings
        call.held_input_tokens, call.held_output_tokens = admitted.input_bound, cap * call.request.choices
        provider = self._parts.upstreams.provider(admitted.card.provider)
        outgoing = call.request.outgoing(cap, provider, call.asked.headers)
        deadline = call.arrived + settings.upstream_total_seconds
        try:
            account = call.key.account_id
            async with self._parts.upstreams.post(provider, outgoing, deadline=deadline, account=account) as raw:
                answer = answer_of(raw, outgoing, call.request.model)
                call.reader.served_in(raw.service_tier)
                if call.request.stream and answer.is_events:
                    await relay(
                        call,
                        answer,
                        self._end_hold,
                        self._extend_hold,
                        discreet=discreet(provider),
                        output_tokens=max(1, cap) * call.request.choices,  # the step, too, by which a hold is extended
                        cancel_on_disconnect=settings.disconnect_policy == "cancel",
                    )
                else:
                    await self._whole(answer, discreet(provider))
        except ProviderRefusalError as refusal:
            raise refusal_of(refusal, outgoing) from refusal
        except PyreqwestError as error:
            raise failure(provider.name, error) from error

    async def _whole(self, answer: ReadableAnswer, shown: Callable[[bytes], bytes]) -> None:
        """A unary answer: nothing of it goes out before it is settled, since its headers say what it cost."""
        call = self._call
        try:
            body = await answer.whole(self._parts.settings.max_message_bytes - _FRAME_BYTES)
        except UnreadAnswerError as error:
            # Told so that no client tries again by itself: it would come, and be billed, again.
            call.reader.take_end(error.end, error.size_bytes)
            await self._end_hold(CUT)
            raise AnswerNotPassedOn(f"{error}; it is billed", provider=call.provider) from error
        call.reader.take_whole(body)
        if call.reader.failed and not body.lstrip().startswith(b"{"):  # no words of the provider's
            raise ProviderUnavailable("the provider's answer was not understood", provider=call.provider)
        body = shown(body) if call.reader.failed else body
        settled = await self._kept(answer, body) if self._begun is not None else await self._end_hold(OK)
        costs = settled.headers() if settled is not None else ()  # else it is the provider's word that it failed
        if settled is not None and call.asked.credits_in_body:
            body = _with_credits(body, settled)
        await call.delivery.send(Head((*call.head(), *costs), answer.content_type))
        await call.delivery.send(body)
        if self._begun is None:  # else the client may ask again at once, and finds that it was put away
            await call.delivery.end()
            await asyncio.sleep(0)  # the client is answered before the rest is put away

    async def _kept(self, answer: ReadableAnswer, body: bytes) -> Settled | None:
        """Settle an answer that is to be given again: kept with its settlement in one transaction, then booked."""
        call, admitted = self._call, self._admitted
        assert self._begun is not None
        assert admitted is not None
        if not call.reader.owed:
            return await self._end_hold(FAILED)
        await call.count()
        request = settlement(call, admitted, OK)
        settled = Settled(call.hold_id, request.amount_nanos, None)
        told = _with_credits(body, settled) if call.asked.credits_in_body else body
        metadata = (call.identified(), *call.fallback(), *settled.headers())
        kept = KeptAnswer(metadata=metadata, content_type=answer.content_type, body=told)
        # From here on the hold is the outbox' to settle. Where the answer was not kept it lapses: no client had one.
        call.hold_open, self._billed = False, True
        await self._begun.keep(kept, ledger_pb.Operation(settle=request))
        return self._settled(request, await self._parts.settlements.settle_kept(request))

    async def _pass_on(self, refusal: ProviderRefusalError) -> None:
        """Give the client the provider's own error answer."""
        metadata = [(HTTP_STATUS_KEY, str(refusal.status)), *self._call.head(answered=False)]
        if refusal.retry_after:
            metadata.append((RETRY_AFTER_KEY, refusal.retry_after))
        await self._call.delivery.send(Head(tuple(metadata), refusal.content_type))
        await self._call.delivery.send(refusal.body)


def _passing(error: Exception) -> bool:
    """Whether another provider may do better."""
    if isinstance(error, ProviderRefusalError):
        return error.status in _PASSING
    return isinstance(error, ProviderUnavailable | ProviderTimeout | ProviderCredentialRefused | ProviderRateLimited)


def _with_credits(body: bytes, settled: Settled) -> bytes:
    """A JSON object's bytes as they came, with a `credits` object added at its end."""
    whole = body.removeprefix(BYTE_ORDER_MARK).rstrip()
    if not whole.startswith(b"{") or not whole.endswith(b"}"):
        return body
    added = b'"credits":' + orjson.dumps(settled.credits()) + b"}"
    rest = whole[:-1].rstrip()
    return rest + (b"" if rest.endswith(b"{") else b",") + added
