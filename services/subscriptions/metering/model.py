"""Owns the metrics, how use adds up in minutes, hours and cycles, and what a quota says of it. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from fractions import Fraction

from services.subscriptions.model.cycle import Cycle
from services.subscriptions.model.plan import METERED, MILLION, REQUESTS_METRIC, TOKENS_METRIC, Plan

# What adds up, and what is a level: a level's use in a cycle is its high-water mark.
SUMS = (TOKENS_METRIC, REQUESTS_METRIC, "agent_executions")
GAUGES = ("storage_gb", "user_seats")
METRICS = SUMS + GAUGES
# What the ledger limits too, as tokens and requests.
LIMITED = (TOKENS_METRIC, REQUESTS_METRIC)

MAX_QUANTITY = 10**12
MAX_EVENTS = 1000
MAX_EVENT_AGE = timedelta(days=35)
MAX_EVENT_LEAD = timedelta(minutes=5)

HARD, SOFT = "hard", "soft"
MINUTE, HOUR = timedelta(minutes=1), timedelta(hours=1)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class UsageEvent:
    """One use of one metric, as emitted; counts once by `event_id` within the account."""

    event_id: str
    metric: str
    quantity: int
    occurred_at: datetime
    labels: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ProxiedCall:
    """One usage record of the ledger: a call through the proxy, its tokens, and when it was booked."""

    account_id: str
    tokens: int
    booked_at: datetime


def floor_minute(moment: datetime) -> datetime:
    """The minute that a moment lies in, by its start."""
    return moment.replace(second=0, microsecond=0)


def floor_hour(moment: datetime) -> datetime:
    """The hour that a moment lies in, by its start."""
    return moment.replace(minute=0, second=0, microsecond=0)


def ceil_hour(moment: datetime) -> datetime:
    """The first full hour at or after a moment."""
    return floor_hour(moment + HOUR - timedelta.resolution)


def in_minutes(cycle: Cycle) -> Cycle:
    """A cycle in whole minutes: the minute in which it begins is its own, the one in which it ends is the next one's.

    So a minute counts in the cycle in which it ends, which is why meters are told of it as of its last second.
    """
    return Cycle(floor_minute(cycle.start), floor_minute(cycle.end))


# Tallies


@dataclass(slots=True)
class Tally:
    """What a batch adds to one minute (or hour) of one metric of one account.

    `emitted` is a sum, of a gauge the highest level; `proxied` comes from the ledger. `last` is a gauge's latest level
    with its moment; of two at one moment the higher.
    """

    emitted: int = 0
    proxied: int = 0
    last: tuple[datetime, int] | None = None

    def add_event(self, metric: str, quantity: int, occurred_at: datetime) -> None:
        """Count one emitted event."""
        if metric in GAUGES:
            self.emitted = max(self.emitted, quantity)
            self.last = max(self.last or (occurred_at, quantity), (occurred_at, quantity))
        else:
            self.emitted += quantity


# (account, metric, start of the minute) → what is added there.
Tallies = dict[tuple[str, str, datetime], Tally]


def tally_events(events: Iterable[tuple[str, str, int, datetime]]) -> Tallies:
    """Events, given as (account, metric, quantity, moment), by minute."""
    found: Tallies = {}
    for account_id, metric, quantity, occurred_at in events:
        key = (account_id, metric, floor_minute(occurred_at))
        found.setdefault(key, Tally()).add_event(metric, quantity, occurred_at)
    return found


def tally_calls(calls: Iterable[ProxiedCall]) -> Tallies:
    """Calls through the proxy by minute: each is one `api_calls`, its tokens are `llm_tokens`."""
    found: Tallies = {}
    for call in calls:
        minute = floor_minute(call.booked_at)
        found.setdefault((call.account_id, REQUESTS_METRIC, minute), Tally()).proxied += 1
        if call.tokens > 0:
            found.setdefault((call.account_id, TOKENS_METRIC, minute), Tally()).proxied += call.tokens
    return found


def by_hour(minutes: Tallies) -> Tallies:
    """The same by hour; the latest level is kept by minutes alone."""
    found: Tallies = {}
    for (account_id, metric, minute), added in minutes.items():
        hour = found.setdefault((account_id, metric, floor_hour(minute)), Tally())
        hour.proxied += added.proxied
        hour.emitted = max(hour.emitted, added.emitted) if metric in GAUGES else hour.emitted + added.emitted
    return found


# Quotas


@dataclass(frozen=True, slots=True)
class Use:
    """Use of a metric in a cycle: what is billed by, and where it stands now (the same, but for a gauge)."""

    used: int = 0
    level: int = 0


@dataclass(frozen=True, slots=True)
class QuotaTerms:
    """What a plan says of a metric: `limit` a cycle, then `overage_nanos_per_million`; `cap` hard or soft."""

    metric: str
    limit: int
    cap: str
    overage_nanos_per_million: int


@dataclass(frozen=True, slots=True)
class Quota:
    """A metric's terms and its use in the present cycle."""

    terms: QuotaTerms
    use: Use
    resets_at: datetime

    @property
    def remaining(self) -> int:
        """Left of what is included."""
        return max(0, self.terms.limit - self.use.used)

    @property
    def overage(self) -> int:
        """Used above what is included."""
        return max(0, self.use.used - self.terms.limit)

    @property
    def overage_nanos(self) -> int:
        """What that costs: the exact product, rounded half-even once, as pricing quotes it."""
        return round(Fraction(self.overage * self.terms.overage_nanos_per_million, MILLION))

    def covers(self, quantity: int) -> bool:
        """Whether so much more stays within what is included; of a gauge, so much above its present level."""
        return self.use.level + quantity <= self.terms.limit


def quota_terms(plan: Plan, metric: str) -> QuotaTerms | None:
    """What a plan says of a metric; None where it says nothing.

    A plan that is not metered has its tokens and requests per cycle, hard, as the ledger enforces them.
    """
    named = plan.metric(metric)
    if named is not None:
        return QuotaTerms(metric, named.included, named.cap, named.overage_nanos_per_million)
    if metric == TOKENS_METRIC and plan.tokens_per_cycle:
        return QuotaTerms(metric, plan.tokens_per_cycle, HARD, plan.overage_nanos_per_million_tokens)
    if metric == REQUESTS_METRIC and plan.requests_per_cycle:
        return QuotaTerms(metric, plan.requests_per_cycle, HARD, 0)
    return None


def is_billed(plan: Plan) -> bool:
    """Whether a plan's use is billed by a subscription."""
    return plan.kind == METERED and plan.price_nanos > 0


def cap_in_force(cap: str, status: str, grace_until: datetime | None, now: datetime) -> str:
    """A soft cap is hard once a failed payment's grace is over: what is included may be used, overage is not lent."""
    grace_over = status == "limited" or (status == "grace" and grace_until is not None and grace_until <= now)
    return HARD if grace_over else cap


# Reports to Stripe's meters


@dataclass(frozen=True, slots=True)
class MeterEvent:
    """What a meter is told, in the same words however often it is sent. `sequence` counts within the window.

    The window is a minute; of a gauge the cycle. `stamped_at` is the moment it counts at.
    """

    account_id: str
    metric: str
    window_start: datetime
    sequence: int
    value: int
    stamped_at: datetime
    customer_id: str

    @property
    def identifier(self) -> str:
        """Names this event to Stripe, which counts it once: at most 100 characters."""
        return f"{self.account_id}:{self.metric}:{self.window_start:%Y%m%d%H%M}:{self.sequence}"


def meter_event_name(metric: str) -> str:
    """The `event_name` of the meter of a metric."""
    return f"tollkeeper_{metric}"


def meter_formula(metric: str) -> str:
    """The `default_aggregation.formula` of the meter of a metric: a gauge's last value is its high-water mark."""
    return "last" if metric in GAUGES else "sum"


def sum_stamp(minute: datetime, not_before: datetime | None = None) -> datetime:
    """The moment at which a minute's sum counts: its last second, so that it is in the cycle the minute ends in.

    `not_before`: the cycle it would have been in is billed, and the one that begins then bills what was used.
    """
    stamp = minute + MINUTE - timedelta(seconds=1)
    return stamp if not_before is None else max(stamp, not_before)


def gauge_stamp(cycle: Cycle, now: datetime, last: datetime | None) -> datetime:
    """The moment at which another mark counts: now, and after the last one told; in a cycle that is over, at its end.

    A meter's `last` goes by these moments, so each mark of a cycle has a later one than the mark before it.
    """
    second = timedelta(seconds=1)
    stamp = min(now.replace(microsecond=0), cycle.end - MINUTE)
    if last is not None:
        stamp = max(stamp, last + second)
    return max(cycle.start, min(stamp, cycle.end - second))
