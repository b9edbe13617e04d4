"""Owns what is known of one model call under way, and what it came to."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from secrets import token_hex
from typing import Any, NamedTuple

import orjson
from tollkeeper.ledger.v1 import ledger_service_pb2 as ledger_pb
from tollkeeper.ledger.v1 import resources_pb2 as ledger_resources_pb

from services import rating
from services.kit.amounts import NANOS_PER_CREDIT
from services.kit.logs import get_logger
from services.proxy.admission import Admitted
from services.proxy.calls.delivery import Delivery, Metadata
from services.proxy.calls.quotas import quota_headers
from services.proxy.clock import utc_now
from services.proxy.formats import tokens
from services.proxy.formats.answer import AnswerReader
from services.proxy.formats.reading import MAX_CAP
from services.proxy.formats.request import Request
from services.proxy.keys.model import Key
from services.proxy.rates import RateStanding

_log = get_logger(__name__)

REQUEST_ID_HEADER = "x-tollkeeper-request-id"
COST_HEADER = "x-tollkeeper-cost-credits"
REMAINING_HEADER = "x-tollkeeper-credits-remaining"
FALLBACK_HEADER = "x-tollkeeper-fallback"

OK, CUT, FAILED = "ok", "cut", "failed"

_PLAIN = frozenset({"input", "output"})
_CREDIT_DIGITS = len(str(NANOS_PER_CREDIT - 1))


@dataclass(frozen=True, slots=True)
class Asked:
    """What a client asked for, besides the request itself.

    `provider` is the one it named, empty where the model's name decides. `headers` go to the provider as they came.
    `idempotency_key` comes with the `secret` of the API key, under which its answer is kept.
    """

    endpoint: str
    provider: str = ""
    credits_in_body: bool = False
    headers: Metadata = ()
    session: str = ""
    workspace: str = ""
    idempotency_key: str = ""
    secret: str = field(default="", repr=False)


@dataclass(slots=True)
class Call:
    """One call. `call_id` is its hold's id too, and never the client's choice.

    `hold_open` says that a hold stands, or may stand, in the ledger; `held_until` is in seconds of `time.monotonic()`.
    `held_input_tokens` and `held_output_tokens` are what it is for, of all answers together.
    `standing` says how it stands with the limits per minute, `price_version` what it is priced by, `available_nanos`
    what was available after it, `quotas` what is left of the plan's: after the hold, then after its settlement. A
    fallback is a new attempt, with a request, a reader and a hold of its own.
    """

    key: Key
    asked: Asked
    request: Request
    provider: str = ""
    call_id: str = field(default_factory=lambda: f"call-{token_hex(16)}")
    arrived: float = field(default_factory=time.monotonic)
    started_at: datetime = field(default_factory=utc_now)
    delivery: Delivery = field(default_factory=Delivery)
    standing: RateStanding | None = None
    price_version: int = 0
    available_nanos: int = 0
    quotas: Sequence[ledger_resources_pb.Quota] = ()
    attempt: int = 0
    reader: AnswerReader = field(init=False)
    hold_open: bool = False
    held_input_tokens: int = MAX_CAP
    held_output_tokens: int = MAX_CAP
    held_until: float = 0.0
    extensions: int = 0
    _estimate: rating.Usage | None = None

    def __post_init__(self) -> None:
        self.provider = self.asked.provider
        self.reader = self.request.reader()

    @property
    def hold_id(self) -> str:
        """The id of this attempt's hold: the call's own, but for fallbacks."""
        return self.call_id if self.attempt == 0 else f"{self.call_id}-{self.attempt}"

    def fall_back(self, request: Request, provider: str) -> None:
        """Begin another attempt. The one before has ended its hold."""
        assert not self.hold_open
        self.attempt += 1
        self.request, self.provider, self.reader = request, provider, request.reader()

    async def count(self) -> None:
        """Count what was used, of a call that has ended, where the provider has not: in a thread, for it may take long.

        Two million characters take the tokenizer up to some seconds, in which nobody else's call would go on.
        """
        if self.reader.usage is None:
            self._estimate = await asyncio.to_thread(self._estimated)

    def counted(self) -> rating.Usage:
        """What was used: the provider's count, else an estimate."""
        return self.reader.usage or self._estimate or self._estimated()

    def _estimated(self) -> rating.Usage:
        """What was used as it is estimated: never nothing nor more than is held.

        A provider sends at least a token in each piece of a stream, so there are at least as many as pieces. What it
        said above its cap without counting it, nobody has asked for, and there is no money for it.
        """
        reader = self.reader
        known = reader.partial or rating.Usage(input_tokens=min(self._estimated_input(), self.held_input_tokens))
        if not self.request.choices:
            return known
        ours = min(max(self._estimated_output(), reader.pieces, 1), self.held_output_tokens)
        return known._replace(output_tokens=max(known.output_tokens, ours))

    def _estimated_input(self) -> int:
        try:
            return self.request.estimated_input()
        except Exception:  # noqa: BLE001 (whatever a text may be that cannot be tokenized, its call is settled)
            _log.exception("input was not estimated", call_id=self.call_id)
            return max(1, self.request.input_guess)

    def _estimated_output(self) -> int:
        try:
            return tokens.estimated(self.request.model, self.reader.said)
        except Exception:  # noqa: BLE001 (as above)
            _log.exception("output was not estimated", call_id=self.call_id)
            return sum(map(tokens.guessed, self.reader.said))

    def fingerprint(self, body: bytes) -> bytes:
        """SHA-256 of what was asked for: a repeat of it is the same request."""
        digest = hashlib.sha256(f"{self.asked.endpoint}\n{self.request.model}\n".encode())
        digest.update(body)
        return digest.digest()

    def identified(self) -> tuple[str, str]:
        """The response header that names the call."""
        return (REQUEST_ID_HEADER, self.hold_id)

    def fallback(self) -> Metadata:
        """The response header that says which fallback answered, where one did."""
        return ((FALLBACK_HEADER, f"{self.provider}/{self.request.model}"),) if self.attempt else ()

    def head(self, *, answered: bool = True) -> Metadata:
        """The response headers of every answer: the call's id, limits per minute, a quota, which fallback it is of."""
        standing = self.standing.headers() if self.standing is not None else ()
        fallback = self.fallback() if answered else ()
        return (self.identified(), *standing, *quota_headers(self.quotas), *fallback)


class Settled(NamedTuple):
    """What a call cost the customer, and what is available after it; None where the ledger has not answered yet."""

    hold_id: str
    billed_nanos: int
    available_nanos: int | None

    def headers(self) -> Metadata:
        """The response headers that say so."""
        found = [(COST_HEADER, _plain(self.billed_nanos))]
        if self.available_nanos is not None:
            found.append((REMAINING_HEADER, _plain(self.available_nanos)))
        return tuple(found)

    def credits(self) -> dict[str, Any]:
        """The `credits` object that says so in a body. Credits are numbers for display, nanos a string, both exact."""
        found: dict[str, Any] = {"costCredits": orjson.Fragment(_plain(self.billed_nanos).encode())}
        if self.available_nanos is not None:
            found["creditsRemaining"] = orjson.Fragment(_plain(self.available_nanos).encode())
        return {**found, "requestId": self.hold_id, "costNanos": str(self.billed_nanos)}


def _plain(nanos: int) -> str:
    """Credits as a plain decimal: 65 000 000 nanos are 6.5."""
    whole, rest = divmod(abs(nanos), NANOS_PER_CREDIT)
    text = f"{whole}.{rest:0{_CREDIT_DIGITS}}".rstrip("0") if rest else str(whole)
    return f"-{text}" if nanos < 0 else text


def settlement(call: Call, admitted: Admitted, status: str) -> ledger_pb.SettleHoldRequest:
    """What the ledger is to book for a call: the usage at the price it was admitted with."""
    usage, reader = call.counted(), call.reader
    tier = reader.service_tier or admitted.service_tier
    cost = _cost(call, admitted, usage, tier)
    report = ledger_resources_pb.UsageReport(
        session=call.asked.session,
        provider=admitted.card.provider,
        model=admitted.card.model,
        endpoint=call.asked.endpoint,
        input_tokens=usage.input_tokens,
        output_tokens=usage.output_tokens,
        cached_tokens=usage.cache_read_tokens,
        cache_write_tokens=usage.cache_write_5m_tokens + usage.cache_write_1h_tokens,
        reasoning_tokens=usage.reasoning_tokens,
        input_cost_nanos=cost.input_cost_nanos,
        output_cost_nanos=cost.output_cost_nanos,
        cost_nanos=cost.cost_nanos,
        price_version=admitted.card.version,
        duration_milliseconds=int((time.monotonic() - call.arrived) * 1000),
        status=status,
        estimated=reader.estimated,
        provider_request_id=reader.provider_request_id,
        service_tier=tier,
        units=_units(cost.parts),
        internal=not call.key.billable,
    )
    report.started_at.seconds = int(call.started_at.timestamp())
    report.started_at.nanos = 1000 * call.started_at.microsecond
    return ledger_pb.SettleHoldRequest(
        account_id=call.key.account_id,
        hold_id=call.hold_id,
        amount_nanos=cost.billed_nanos if admitted.billable else 0,
        tokens=usage.input_tokens + usage.output_tokens,
        usage=report,
    )


def _units(parts: Sequence[rating.CostPart]) -> dict[str, int]:
    """What was billed besides plain input and output, by component."""
    found: dict[str, int] = {}
    for part in parts:
        if part.component not in _PLAIN:
            found[part.component] = found.get(part.component, 0) + part.quantity
    return found


def _cost(call: Call, admitted: Admitted, usage: rating.Usage, tier: str) -> rating.Cost:
    """The price of what was used. What has no rate of its own is billed as plain tokens, never as nothing."""
    multiplier = admitted.multiplier_millionths
    # A tier that is answered and not priced is billed as the one that was admitted.
    for priced in dict.fromkeys((tier, admitted.service_tier)):
        try:
            return rating.cost(admitted.card, usage, service_tier=priced, multiplier_millionths=multiplier)
        except rating.RatingError as error:
            _log.error("usage not priced as it came", call_id=call.call_id, service_tier=priced, error=str(error))
    plain = rating.Usage(input_tokens=usage.input_tokens, output_tokens=usage.output_tokens)
    # Admission found rates for plain input and output in this tier.
    return rating.cost(admitted.card, plain, service_tier=admitted.service_tier, multiplier_millionths=multiplier)
