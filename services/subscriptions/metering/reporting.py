"""Owns the two jobs that tell Stripe's meters what was used: commit what is to be said, then say it.

What a meter is told, identifier, value and moment, is committed before it is sent for the first time, so that a repeat
is the same in every word and counts once, wherever a process dies. A minute is reported when it is over; what comes to
it later goes out as a further event, the difference, with the window's next sequence. A gauge is reported as its
high-water mark of the cycle whenever that changes, and at the start of each cycle with the level it begins with. The
mark rises; it falls only where a level that is told late says that the cycle began with less.

A move at once from one metered plan to another has the old one's use billed in that moment. What Stripe is told later
of minutes before it counts in the period that the move began: use of the last minutes would be on no invoice otherwise.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta
from typing import Protocol

from prometheus_client import Counter
from sqlalchemy import Connection, Engine

from services.kit.logs import get_logger
from services.subscriptions import store as accounts_store
from services.subscriptions.clients import PlanCatalogue
from services.subscriptions.clock import Clock
from services.subscriptions.metering import report_store, store
from services.subscriptions.metering.model import (
    GAUGES,
    MAX_EVENT_AGE,
    MINUTE,
    MeterEvent,
    floor_minute,
    gauge_stamp,
    in_minutes,
    is_billed,
    sum_stamp,
)
from services.subscriptions.metering.report_store import BEFORE_ALL, Claimed, DueGauge, DueMinute, PlanRef
from services.subscriptions.metering.service import BillingRecords
from services.subscriptions.model.delivery import retry_delay_seconds
from services.subscriptions.model.plan import METERED, Plan

_log = get_logger(__name__)

# A minute is reported when it has been over for as long as its events usually take to be added up.
_SETTLE = timedelta(seconds=30)
# Use of an account that is no customer of Stripe's is kept to be reported for so long: a subscription that has begun is
# known here a little later.
_CUSTOMER_WAIT = timedelta(minutes=15)
_GAUGE_INTERVAL = timedelta(hours=1)
_MINUTES_AT_ONCE, _GAUGES_AT_ONCE, _REPORTS_AT_ONCE = 500, 100, 64
# Longer than all of a claim takes to be sent: eight at a time, each at most half a minute with the client's retries.
_LEASE_SECONDS = 300.0
# Stripe keeps identifiers for at least a day. After that a repeat might count again, so Stripe is asked first.
_IDENTIFIER_HOLDS = timedelta(hours=23)

_REPORTS = Counter("tollkeeper_metering_reports", "Reports to meters, by what became of them", ["outcome"])


class ReportFailedError(Exception):
    """A meter could not be told. `refused` where the answer was no, rather than none: somebody has to look."""

    def __init__(self, message: str, *, refused: bool) -> None:
        super().__init__(message)
        self.refused = refused


class MeterReporter(Protocol):
    """Stripe's meters."""

    def report(self, event: MeterEvent) -> None:
        """Tell a meter; an identifier it has counts no second time. Raises ReportFailedError."""
        ...

    def counted(self, customer_id: str, metric: str, start: datetime, end: datetime) -> int:
        """What a meter has counted of a customer in whole minutes `[start, end)`. Raises ReportFailedError."""
        ...


class ReportPlanner:
    """Commits what meters are to be told."""

    def __init__(self, engine: Engine, plans: PlanCatalogue, billing: BillingRecords, *, clock: Clock) -> None:
        self._engine = engine
        self._plans = plans
        self._billing = billing
        self._clock = clock

    def __call__(self) -> bool:
        """Commit all that is due. Raises grpc.RpcError where pricing is asked for a plan and does not answer."""
        after = BEFORE_ALL
        while (last := self._minutes(after)) is not None:
            after = last
        while self._gauges():
            pass
        return False

    def _minutes(self, after: report_store.MinuteKey) -> report_store.MinuteKey | None:
        """Commit a page of minutes from beyond `after` on; the page's end, None where nothing is left.

        Read twice: whose they are and what their plans mean is asked for between the two, with no transaction open.
        """
        closed_before = floor_minute(self._clock() - _SETTLE)

        def page(connection: Connection) -> list[DueMinute]:
            return report_store.due_minutes(
                connection, after=after, closed_before=closed_before, limit=_MINUTES_AT_ONCE
            )

        with self._engine.begin() as connection:
            seen = page(connection)
        if not seen:
            return None
        plans = self._plans_of({ref for due in seen for ref in (due.plan, due.moved_to) if ref is not None})
        customers = self._billing.customer_ids({due.account_id for due in seen})
        with self._engine.begin() as connection:
            # Minutes that have become due in between may be of plans and customers not asked for: their turn comes.
            known = {due.key for due in seen}
            settled, events = [], []
            for due in page(connection):
                if due.key not in known or due.minute <= self._clock() - MAX_EVENT_AGE:
                    continue  # of those too old, the upkeep says that they were never told
                customer_id = customers.get(due.account_id, "")
                plan = plans.get(due.plan) if due.plan is not None else None
                if plan is None or plan.kind != METERED:
                    settled.append(due.key)
                elif customer_id:
                    settled.append(due.key)
                    moved_to = plans.get(due.moved_to) if due.moved_to is not None else None
                    is_carried = is_billed(plan) and moved_to is not None and is_billed(moved_to)
                    events += _minute_report(due, customer_id, due.anchor if is_carried else None)
                elif due.minute < self._clock() - _CUSTOMER_WAIT:
                    settled.append(due.key)
                    _REPORTS.labels("no_customer").inc()
            report_store.insert_reports(connection, events)
            report_store.settle_minutes(connection, settled)
        _REPORTS.labels("committed").inc(len(events))
        return seen[-1].key

    def _gauges(self) -> bool:
        """Commit a page of gauges; whether there may be more."""
        with self._engine.begin() as connection:
            seen = report_store.due_gauges(connection, limit=_GAUGES_AT_ONCE)
        plans = self._plans_of({gauge.plan for gauge in seen})
        customers = self._billing.customer_ids({gauge.account_id for gauge in seen})
        known = set(seen)
        with self._engine.begin() as connection:
            due = [gauge for gauge in report_store.due_gauges(connection, limit=_GAUGES_AT_ONCE) if gauge in known]
            for gauge in due:
                if plans[gauge.plan].kind == METERED and (customer_id := customers.get(gauge.account_id, "")):
                    events = self._gauge_reports(connection, gauge, customer_id)
                    report_store.insert_reports(connection, events)
                    _REPORTS.labels("committed").inc(len(events))
                report_store.look_again(connection, gauge, after=_GAUGE_INTERVAL)
        return len(seen) == _GAUGES_AT_ONCE and bool(due)

    def _gauge_reports(self, connection: Connection, gauge: DueGauge, customer_id: str) -> list[MeterEvent]:
        """Marks, of the cycles that events may still come to, that are not those that were told."""
        account = accounts_store.find_account(connection, gauge.account_id)
        assert account is not None
        now = self._clock()
        cycles = [account.cycle_at(now - MAX_EVENT_AGE)]
        # To the second: what is told before a cycle begins is the last of the one before it.
        while cycles[-1].end <= now:
            cycles.append(account.cycle_at(cycles[-1].end))
        events = []
        for cycle in map(in_minutes, cycles):
            told = report_store.last_told(connection, gauge.account_id, gauge.metric, cycle.start)
            mark = store.cycle_use(connection, gauge.account_id, cycle, [gauge.metric])[gauge.metric].used
            stamp = gauge_stamp(cycle, now, told.stamped_at)
            if mark != told.value and stamp > now - MAX_EVENT_AGE:
                events.append(
                    MeterEvent(
                        account_id=gauge.account_id,
                        metric=gauge.metric,
                        window_start=cycle.start,
                        sequence=told.sequence + 1,
                        value=mark,
                        stamped_at=stamp,
                        customer_id=customer_id,
                    )
                )
        return events

    def _plans_of(self, refs: set[PlanRef]) -> dict[PlanRef, Plan]:
        return {ref: self._plans.version(ref.plan_id, ref.version) for ref in refs}


def _minute_report(due: DueMinute, customer_id: str, not_before: datetime | None) -> list[MeterEvent]:
    """The difference to what the minute's meter was told; nothing where there is none."""
    value = due.total - due.reported
    if value <= 0:
        return []
    return [
        MeterEvent(
            account_id=due.account_id,
            metric=due.metric,
            window_start=due.minute,
            sequence=due.sequence + 1,
            value=value,
            stamped_at=sum_stamp(due.minute, not_before),
            customer_id=customer_id,
        )
    ]


class ReportSender:
    """Sends what was committed, each report until it has arrived."""

    def __init__(self, engine: Engine, reporter: MeterReporter, *, threads: int, clock: Clock) -> None:
        self._engine = engine
        self._reporter = reporter
        self._threads = threads
        self._clock = clock

    def __call__(self) -> bool:
        """Send the reports longest due; whether there may be more."""
        with self._engine.begin() as connection:
            claimed = report_store.claim_reports(connection, limit=_REPORTS_AT_ONCE, lease_seconds=_LEASE_SECONDS)
        if claimed:
            with ThreadPoolExecutor(self._threads, thread_name_prefix="report") as pool:
                list(pool.map(self._send, claimed))
        return len(claimed) == _REPORTS_AT_ONCE

    def _send(self, claimed: Claimed) -> None:
        event = claimed.event
        try:
            if not self._arrived_long_ago(claimed):
                self._reporter.report(event)
        except ReportFailedError as error:
            self._failed(claimed, error)
            return
        with self._engine.begin() as connection:
            report_store.mark_sent(connection, event)
        _REPORTS.labels("sent").inc()

    def _arrived_long_ago(self, claimed: Claimed) -> bool:
        """Whether an earlier attempt, too long ago for Stripe to know its identifier, did arrive.

        Raises ReportFailedError where Stripe has counted neither what was sent before nor that with this report.
        """
        event = claimed.event
        if event.metric in GAUGES or self._clock() - claimed.first_attempt_at < _IDENTIFIER_HOLDS:
            return False  # a mark told twice is the same mark
        minute = floor_minute(event.stamped_at)
        counted = self._reporter.counted(event.customer_id, event.metric, minute, minute + MINUTE)
        with self._engine.connect() as connection:
            sent = report_store.sent_total(connection, event)
        if counted not in {sent, sent + event.value}:
            raise ReportFailedError(f"in doubt: the meter counted {counted}, {sent} were sent before", refused=True)
        return counted != sent

    def _failed(self, claimed: Claimed, error: ReportFailedError) -> None:
        delay_seconds = retry_delay_seconds(claimed.attempts, refused=error.refused)
        with self._engine.begin() as connection:
            report_store.mark_unsent(connection, claimed, error=str(error), delay_seconds=delay_seconds)
        _REPORTS.labels("refused" if error.refused else "failed").inc()
        log: Callable[..., object] = _log.error if error.refused else _log.warning
        log(
            "meter not told",
            identifier=claimed.event.identifier,
            attempts=claimed.attempts,
            error=str(error),
            retry_in_seconds=delay_seconds,
        )
