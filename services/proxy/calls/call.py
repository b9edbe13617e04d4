"""Owns what is known of one model call under way, and what it came to."""

from __future__ import annotations

import time
import uuid
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import orjson
from tollkeeper.ledger.v1 import ledger_service_pb2 as ledger_pb
from tollkeeper.ledger.v1 import resources_pb2 as ledger_resources_pb

from services import rating
from services.kit.amounts import credits as as_credits
from services.kit.logs import get_logger
from services.proxy.admission import Admitted
from services.proxy.calls.chat import ChatRequest
from services.proxy.calls.delivery import Delivery, Metadata
from services.proxy.calls.meter import Meter
from services.proxy.clock import utc_now
from services.proxy.keys.model import Key

_log = get_logger(__name__)

REQUEST_ID_HEADER = "x-tollkeeper-request-id"
COST_HEADER = "x-tollkeeper-cost-credits"
REMAINING_HEADER = "x-tollkeeper-credits-remaining"

OK, CUT, FAILED = "ok", "cut", "failed"


@dataclass(slots=True)
class Call:
    """One call. `call_id` is its hold's id too, and never the client's choice.

    `provider` is the one the client named, empty where the model's name decides. `hold_open` says that a hold stands,
    or may stand, in the ledger; `held_until` is in seconds of `time.monotonic()`.
    """

    key: Key
    endpoint: str
    request: ChatRequest
    provider: str = ""
    credits_in_body: bool = False
    call_id: str = field(default_factory=lambda: f"call-{uuid.uuid4().hex}")
    arrived: float = field(default_factory=time.monotonic)
    started_at: datetime = field(default_factory=utc_now)
    delivery: Delivery = field(default_factory=Delivery)
    meter: Meter = field(init=False)
    hold_open: bool = False
    held_until: float = 0.0
    extensions: int = 0

    def __post_init__(self) -> None:
        self.meter = Meter(self.request.input_guess)


@dataclass(frozen=True, slots=True)
class Settled:
    """What a call cost the customer, and what is available after it; None where the ledger has not answered yet."""

    call_id: str
    billed_nanos: int
    available_nanos: int | None

    def headers(self) -> Metadata:
        """The response headers that say so."""
        found = [(REQUEST_ID_HEADER, self.call_id), (COST_HEADER, _plain(self.billed_nanos))]
        if self.available_nanos is not None:
            found.append((REMAINING_HEADER, _plain(self.available_nanos)))
        return tuple(found)

    def credits(self) -> dict[str, Any]:
        """The `credits` object that says so in a body. Credits are numbers for display, nanos a string, both exact."""
        found: dict[str, Any] = {"costCredits": orjson.Fragment(_plain(self.billed_nanos).encode())}
        if self.available_nanos is not None:
            found["creditsRemaining"] = orjson.Fragment(_plain(self.available_nanos).encode())
        return {**found, "requestId": self.call_id, "costNanos": str(self.billed_nanos)}


def _plain(nanos: int) -> str:
    """Credits as a plain decimal: 65 000 000 nanos are 6.5."""
    text = f"{as_credits(nanos):f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def settlement(call: Call, admitted: Admitted, status: str) -> ledger_pb.SettleHoldRequest:
    """What the ledger is to book for a call: the usage at the price it was admitted with."""
    usage, meter = call.meter.counted(), call.meter
    tier = meter.service_tier or admitted.service_tier
    cost = _cost(call, admitted, usage, tier)
    report = ledger_resources_pb.UsageReport(
        provider=admitted.card.provider,
        model=admitted.card.model,
        endpoint=call.endpoint,
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
        estimated=meter.estimated,
        provider_request_id=meter.provider_request_id,
        service_tier=tier,
    )
    report.started_at.FromDatetime(call.started_at)
    return ledger_pb.SettleHoldRequest(
        account_id=call.key.account_id,
        hold_id=call.call_id,
        amount_nanos=cost.billed_nanos if admitted.billable else 0,
        tokens=usage.input_tokens + usage.output_tokens,
        usage=report,
    )


def _cost(call: Call, admitted: Admitted, usage: rating.Usage, tier: str) -> rating.Cost:
    """The price of what was used. What has no rate of its own is billed as plain tokens, never as nothing."""
    multiplier = admitted.multiplier_millionths
    try:
        return rating.cost(admitted.card, usage, service_tier=tier, multiplier_millionths=multiplier)
    except rating.RatingError as error:
        _log.error("usage not priced as it came; billed as plain tokens", call_id=call.call_id, error=str(error))
    plain = rating.Usage(input_tokens=usage.input_tokens, output_tokens=usage.output_tokens)
    # Admission found rates for plain input and output in this tier.
    return rating.cost(admitted.card, plain, service_tier=admitted.service_tier, multiplier_millionths=multiplier)
