"""Owns the job that compares what Stripe's meters and the ledger hold with the aggregates. It corrects nothing.

Compared is each account's present cycle, or the last one where the present has just begun, up to a quarter of an hour
ago: what comes in late is in the next comparison. Four figures are held against each other: what the ledger booked
against what came from it (`ledger`), sums against what was committed to be reported of them (`reports`), and what was
sent against what Stripe counted (`stripe`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import Engine

from services.kit.errors import RemoteError
from services.kit.logs import get_logger
from services.subscriptions import store as accounts_store
from services.subscriptions.clock import Clock
from services.subscriptions.gauges import leaders_gauge
from services.subscriptions.metering import reconciliation_store, store
from services.subscriptions.metering.feed import UsageFeed
from services.subscriptions.metering.model import METRICS, floor_minute, in_minutes
from services.subscriptions.metering.reporting import MeterReporter, ReportFailedError
from services.subscriptions.model.cycle import Cycle

_log = get_logger(__name__)

# Stripe sums up what it was told within minutes; the feed is seconds behind.
_SETTLE = timedelta(minutes=15)
_LEAST_SPAN = timedelta(hours=1)
_ACCOUNTS_AT_ONCE = 100

_DIFFERENCE = leaders_gauge(
    "tollkeeper_metering_reconciliation_difference",
    "By how much figures differ, over all accounts, as last compared",
    ["against", "metric"],
)
_FAILED = leaders_gauge(
    "tollkeeper_metering_reconciliation_unanswered", "Comparisons that got no answer, as last tried"
)


@dataclass(frozen=True, slots=True)
class Difference:
    """Two figures that should be one: `kept` is ours."""

    account_id: str
    against: str
    metric: str
    kept: int
    found: int
    period: Cycle


class Reconciliation:
    """Compares every account's use."""

    def __init__(
        self,
        engine: Engine,
        feed: UsageFeed,
        reporter: MeterReporter | None,
        *,
        clock: Clock,
        every: timedelta,
        is_caught_up: Callable[[], bool],
    ) -> None:
        self._engine = engine
        self._feed = feed
        self._reporter = reporter
        self._clock = clock
        self._every = every
        self._is_caught_up = is_caught_up
        self._due_at: datetime | None = None

    def __call__(self) -> bool:
        """Compare all accounts where it is time, and the ledger's feed has been read to its end."""
        now = self._clock()
        if (self._due_at is None or now >= self._due_at) and self._is_caught_up():
            self._due_at = now + self._every
            self.compare_all()
        return False

    def compare_all(self) -> None:
        """Compare all accounts; what differs is logged, its sum is the metric."""
        sums: Counter[tuple[str, str]] = Counter()
        unanswered, after = 0, ""
        since = self._clock() - timedelta(days=31)
        while True:
            with self._engine.connect() as connection:
                page = reconciliation_store.accounts_with_use(
                    connection, after=after, since=since, limit=_ACCOUNTS_AT_ONCE
                )
            for account_id in page:
                try:
                    for difference in self.compare(account_id):
                        sums[difference.against, difference.metric] += abs(difference.kept - difference.found)
                        _log.error(
                            "use differs",
                            account_id=account_id,
                            against=difference.against,
                            metric=difference.metric,
                            kept=difference.kept,
                            found=difference.found,
                            period_start=difference.period.start.isoformat(),
                            period_end=difference.period.end.isoformat(),
                        )
                except (RemoteError, ReportFailedError) as error:
                    unanswered += 1
                    _log.warning("use not compared", account_id=account_id, error=str(error))
            if len(page) < _ACCOUNTS_AT_ONCE:
                break
            after = page[-1]
        for against in ("ledger", "reports", "stripe"):
            for metric in METRICS if against != "reports" else ("all",):
                _DIFFERENCE.labels(against, metric).set(sums[against, metric])
        _FAILED.set(unanswered)

    def compare(self, account_id: str) -> Iterator[Difference]:
        """What differs of one account. Raises RemoteError, ReportFailedError."""
        with self._engine.connect() as connection:
            account = accounts_store.find_account(connection, account_id)
            if account is None:
                return
            until = floor_minute(self._clock() - _SETTLE)
            cycle = in_minutes(account.cycle_at(until - _LEAST_SPAN))
            period = Cycle(cycle.start, min(cycle.end, until))
            if period.start >= period.end:
                return
            proxied = store.proxied_between(connection, account_id, period.start, period.end)
            reported = reconciliation_store.reported_between(
                connection, account_id, period.start, period.end, settle=_SETTLE
            )
            unbalanced = reconciliation_store.unbalanced_minutes(connection, account_id, period.start, period.end)
        for metric, found in self._feed.sums(account_id, period.start, period.end).items():
            kept = proxied.get(metric, 0)
            if kept != found:
                yield Difference(account_id, "ledger", metric, kept, found, period)
        if unbalanced:
            yield Difference(account_id, "reports", "all", unbalanced, 0, period)
        yield from self._against_stripe(account_id, period, reported)

    def _against_stripe(
        self, account_id: str, period: Cycle, reported: list[reconciliation_store.Reported]
    ) -> Iterator[Difference]:
        if self._reporter is None:
            return
        for told in reported:
            counted = self._reporter.counted(told.customer_id, told.metric, period.start, period.end)
            # What was sent just now may be counted already, or not yet.
            if not told.least <= counted <= told.most:
                yield Difference(account_id, "stripe", told.metric, told.most, counted, period)
