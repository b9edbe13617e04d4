"""Reports to meters: each identifier once, whatever fails between sending and noting; totals that converge."""

import threading
from datetime import UTC, datetime, timedelta

import pytest
from subscriptions_metering import CustomersByName, stripe_client
from subscriptions_meters import FakeMeters

from services.kit.errors import RemoteError
from services.subscriptions.assembly import Subscriptions
from services.subscriptions.metering import store
from services.subscriptions.metering.aggregation import EventAggregator, FeedAggregator
from services.subscriptions.metering.billing import KeptBillingRecords
from services.subscriptions.metering.jobs import Upkeep
from services.subscriptions.metering.model import MeterEvent, UsageEvent, floor_minute, in_minutes
from services.subscriptions.metering.reconciliation import Reconciliation
from services.subscriptions.metering.reporting import ReportFailedError, ReportPlanner, ReportSender
from services.subscriptions.metering.stripe_meters import StripeMeterReporter
from services.subscriptions.model.account import AccountWords

MINUTE = timedelta(minutes=1)


@pytest.fixture
def meters():
    with FakeMeters().serve() as fake:
        yield fake


class Pipeline:
    """The parts of one process with meters, its jobs run by the test; its clock begins in the middle of a cycle."""

    def __init__(self, settings, clock, meters):
        reporter = StripeMeterReporter(stripe_client(meters.url))
        self.parts = Subscriptions(settings(), clock=clock, billing_records=CustomersByName(), meter_reporter=reporter)
        engine = self.parts.engine
        self.engine, self.clock = engine, clock
        self.planner = ReportPlanner(engine, self.parts.plans, self.parts.billing_records, clock=clock)
        self.sender = ReportSender(engine, reporter, threads=4, clock=clock)
        self.aggregator = EventAggregator(engine)
        self.feeding = FeedAggregator(engine, self.parts.feed, self.parts.counters)
        self.reconciliation = Reconciliation(
            engine,
            self.parts.feed,
            reporter,
            clock=clock,
            every=timedelta(hours=6),
            is_caught_up=lambda: self.feeding.is_caught_up,
        )
        self.upkeep = Upkeep(engine, self.feeding, reports=True)
        self.count = 0

    def create(self, plan="metered-standard", account_id="acme"):
        """An account whose cycle began ten days ago."""
        account = self.parts.customers.create(AccountWords(account_id, "", "", plan)).account
        with self.engine.begin() as connection:
            connection.exec_driver_sql(
                "UPDATE accounts SET cycle_anchor = cycle_anchor - interval '10 days' WHERE account_id = %s",
                (account_id,),
            )
        return account

    def emit(self, metric, quantity, at, account_id="acme"):
        self.count += 1
        self.parts.metering.emit(account_id, [UsageEvent(f"e{self.count}", metric, quantity, at)])

    def report(self):
        """All the jobs once, as when five minutes have gone by."""
        while self.aggregator():
            pass
        self.feeding()
        self.planner()
        while self.sender():
            pass

    def due_again(self):
        with self.engine.begin() as connection:
            connection.exec_driver_sql("UPDATE meter_reports SET next_attempt_at = now() WHERE sent_at IS NULL")
            connection.exec_driver_sql("UPDATE usage_gauges SET look_at = now()")


@pytest.fixture
def pipeline(settings, clock, meters, pricing):
    pricing.publish_metered()
    made = Pipeline(settings, clock, meters)
    yield made
    made.parts.close()


def ago(**delta):
    return datetime.now(UTC) - timedelta(**delta)


def test_each_minute_is_reported_once_as_of_its_last_second(pipeline, meters):
    pipeline.create()
    minute = floor_minute(ago(minutes=20))
    pipeline.emit("api_calls", 3, minute)
    pipeline.emit("api_calls", 4, minute + timedelta(seconds=59))
    pipeline.emit("api_calls", 5, minute + MINUTE)
    for _ in range(3):
        pipeline.report()
    first, second = meters.of("cus_acme", "api_calls")
    assert (first.value, second.value) == (7, 5)
    assert first.timestamp == int((minute + timedelta(seconds=59)).timestamp())
    assert first.identifier == f"acme:api_calls:{minute:%Y%m%d%H%M}:1"
    assert meters.requests == 2


def test_minute_that_is_not_over_is_not_reported(pipeline, meters):
    pipeline.create()
    pipeline.emit("api_calls", 3, datetime.now(UTC))
    pipeline.report()
    assert meters.requests == 0
    pipeline.clock.forward(timedelta(minutes=2))
    pipeline.report()
    assert meters.total("cus_acme", "api_calls") == 3


def test_late_event_goes_out_as_the_difference_with_the_next_sequence(pipeline, meters):
    pipeline.create()
    minute = floor_minute(ago(hours=2))
    for quantity in (10, 1, 2):
        pipeline.emit("llm_tokens", quantity, minute)
        pipeline.report()
    events = list(meters.events.values())
    assert [(event.identifier.rsplit(":", 1)[1], event.value) for event in events] == [("1", 10), ("2", 1), ("3", 2)]


def test_calls_through_the_proxy_are_reported(pipeline, meters, ledger):
    pipeline.create()
    for tokens in (100, 200):
        ledger.use("acme", tokens, ago(minutes=3))
    pipeline.report()
    assert (meters.total("cus_acme", "llm_tokens"), meters.total("cus_acme", "api_calls")) == (300, 2)


def test_lost_answer_counts_once(pipeline, meters):
    """Stripe counted it and the answer was lost: the repeat is the same in every word."""
    pipeline.create()
    pipeline.emit("api_calls", 3, ago(minutes=5))
    meters.lost_answers = 1
    pipeline.report()
    for keeps in (True, False):
        meters.keeps_idempotency_keys = keeps
        pipeline.due_again()
        pipeline.report()
    assert [event.value for event in meters.events.values()] == [3]


def test_fault_of_stripes_holds_a_report_up_no_longer_than_it_lasts(pipeline, meters):
    """Stripe gives its first answer to an idempotency key for a day, a fault too: by then the invoice is final."""
    pipeline.create()
    pipeline.emit("api_calls", 3, ago(minutes=5))
    meters.breaks = 1
    pipeline.report()
    assert meters.total("cus_acme", "api_calls") == 0
    pipeline.due_again()
    pipeline.report()
    assert meters.total("cus_acme", "api_calls") == 3


def test_crash_between_send_and_note_counts_once(pipeline, meters, monkeypatch):
    class Killed(BaseException):
        pass

    def die(*_):
        raise Killed

    pipeline.create()
    pipeline.emit("api_calls", 3, ago(minutes=5))
    with monkeypatch.context() as patch:
        patch.setattr("services.subscriptions.metering.report_store.mark_sent", die)
        with pytest.raises(Killed):
            pipeline.report()
    assert meters.total("cus_acme", "api_calls") == 3
    pipeline.emit("api_calls", 4, ago(minutes=5))  # more of the same minute must not change what is repeated
    meters.keeps_idempotency_keys = False  # nor is it the key alone that saves us
    pipeline.due_again()
    pipeline.report()
    pipeline.report()
    assert [event.value for event in meters.events.values()] == [3, 4]


@pytest.mark.parametrize("arrived", [True, False])
def test_attempt_in_doubt_for_a_day_is_asked_about_before_it_is_repeated(pipeline, meters, arrived, database):
    """Stripe keeps identifiers for a day only."""
    pipeline.create()
    at = ago(minutes=5)
    pipeline.emit("api_calls", 2, at)
    pipeline.report()
    pipeline.emit("api_calls", 3, at)
    if arrived:
        meters.lost_answers = 1
    else:
        meters.down = True
    pipeline.report()
    meters.down, meters.keeps_idempotency_keys, meters.forgets_identifiers = False, False, True
    pipeline.clock.forward(timedelta(days=1))
    pipeline.due_again()
    pipeline.report()
    assert [event.value for event in meters.events.values()] == [2, 3]
    assert database.rows("SELECT count(*) FROM meter_reports WHERE sent_at IS NULL") == [(0,)]


def test_attempt_that_nobody_can_tell_about_is_not_repeated(pipeline, meters, database):
    pipeline.create()
    at = ago(minutes=5)
    pipeline.emit("api_calls", 3, at)
    meters.down = True
    pipeline.report()
    meters.down, meters.forgets_identifiers = False, True
    strange = MeterEvent("acme", "api_calls", floor_minute(at), 99, 1000, floor_minute(at), "cus_acme")
    StripeMeterReporter(stripe_client(meters.url)).report(strange)
    pipeline.clock.forward(timedelta(days=1))
    pipeline.due_again()
    pipeline.report()
    assert [event.value for event in meters.events.values()] == [1000]
    ((error,),) = database.rows("SELECT last_error FROM meter_reports")
    assert error.startswith("in doubt")


def test_report_that_no_meter_takes_is_given_up_when_none_would_any_more(pipeline, meters, database, capsys):
    pipeline.create()
    pipeline.emit("api_calls", 3, ago(minutes=5))
    meters.down = True
    pipeline.report()
    pipeline.upkeep()
    assert database.rows("SELECT count(*) FROM meter_reports") == [(1,)]
    database.rows("UPDATE meter_reports SET stamped_at = stamped_at - interval '35 days'")
    pipeline.upkeep()
    assert database.rows("SELECT count(*) FROM meter_reports") == [(0,)]
    assert "reports too old for a meter to take" in capsys.readouterr().out


def test_two_senders_send_each_report_once(settings, clock, meters, pricing):
    pricing.publish_metered()
    pipelines = [Pipeline(settings, clock, meters) for _ in range(2)]
    pipelines[0].create()
    latest = ago(minutes=3)
    for number in range(60):
        pipelines[0].emit("api_calls", number + 1, latest - number * MINUTE)
    threads = [threading.Thread(target=pipeline.report) for pipeline in pipelines]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for pipeline in pipelines:
        pipeline.report()
        pipeline.parts.close()
    assert meters.total("cus_acme", "api_calls") == sum(range(1, 61))
    assert meters.requests == 60


def test_failed_report_is_retried_and_refused_one_does_not_hold_up_others(pipeline, meters, database):
    pipeline.create()
    pipeline.create(account_id="beta")
    meters.down = True
    pipeline.emit("api_calls", 3, ago(minutes=5))
    pipeline.report()
    assert database.rows("SELECT attempts, next_attempt_at <= now() + interval '2 s' FROM meter_reports") == [(1, True)]
    meters.down = False
    with pipeline.engine.begin() as connection:
        connection.exec_driver_sql("UPDATE meter_reports SET stamped_at = now() - interval '40 days'")
    pipeline.due_again()
    pipeline.emit("api_calls", 4, ago(minutes=5), "beta")
    pipeline.report()
    assert meters.total("cus_beta", "api_calls") == 4
    sql = "SELECT last_error LIKE '%%35 days%%', next_attempt_at > now() + interval '4 min' FROM meter_reports"
    assert database.rows(sql + " WHERE account_id = 'acme'") == [(True, True)]


def test_only_use_on_a_metered_plan_is_reported(pipeline, meters, database):
    """By the plan that was in force when a minute ended, wherever the account has gone since."""
    pipeline.create("payg")
    with pipeline.engine.begin() as connection:
        connection.exec_driver_sql("UPDATE accounts SET created_at = created_at - interval '10 days'")
    pipeline.parts.customers.set_plan("acme", "metered-standard", "m1")
    pipeline.parts.customers.set_plan("acme", "starter", "m2")
    database.rows("UPDATE plan_changes SET created_at = now() - interval '2 hours' WHERE request_id = 'm1'")
    database.rows("UPDATE plan_changes SET created_at = now() - interval '1 hour' WHERE request_id = 'm2'")
    for hours, quantity in ((2.5, 1), (1.5, 10), (0.5, 100)):
        pipeline.emit("api_calls", quantity, ago(hours=hours))
    pipeline.report()
    assert meters.total("cus_acme", "api_calls") == 10
    assert database.rows("SELECT count(*) FROM usage_minutes WHERE due_since IS NOT NULL") == [(0,)]


def test_use_waits_a_little_for_its_account_to_become_a_customer(pipeline, meters, database, monkeypatch):
    pipeline.create(account_id="no-customer")
    pipeline.emit("api_calls", 3, ago(minutes=3), "no-customer")
    pipeline.emit("api_calls", 4, ago(minutes=30), "no-customer")
    pipeline.report()
    assert meters.requests == 0
    monkeypatch.setattr(CustomersByName, "customer_ids", lambda _, ids: dict.fromkeys(ids, "cus_new"))
    pipeline.report()
    assert meters.total("cus_new", "api_calls") == 3, "what was used long before it was a customer is not told"


def test_pricing_down_delays_reports_and_loses_none(settings, clock, meters, pricing, pipeline):
    pipeline.create()
    pipeline.emit("api_calls", 3, ago(minutes=5))
    other = Pipeline(settings, clock, meters)  # a process that has not seen the plan
    pricing.down = True
    jobs = {job.name: job.job for job in other.parts.background_jobs()._further}
    pipeline.aggregator()
    assert jobs["report"]() is False
    assert meters.requests == 0
    pricing.down = False
    other.report()
    assert meters.total("cus_acme", "api_calls") == 3
    other.parts.close()


def test_customer_and_grace_are_those_that_stripe_told_of(pipeline, database):
    pipeline.create()
    records = KeptBillingRecords(pipeline.engine)
    assert records.customer_ids(["acme", "beta"]) == {}
    assert records.grace_until("acme") is None
    database.rows("INSERT INTO stripe_customers (customer_id, account_id) VALUES ('cus_1', 'acme')")
    database.rows("UPDATE stripe_customers SET deleted_at = now()")
    assert records.customer_ids(["acme"]) == {}, "Stripe has deleted it"
    database.rows("INSERT INTO stripe_customers (customer_id, account_id) VALUES ('cus_2', 'acme')")
    assert records.customer_ids(["acme", "beta"]) == {"acme": "cus_2"}


def test_meters_are_reported_to_where_stripe_has_a_key(parts):
    def names(made):
        return {job.name for job in made.background_jobs()._further}

    assert {"aggregate", "feed", "reconcile"} <= names(parts())
    assert not {"report", "send-reports"} & names(parts())
    assert {"report", "send-reports"} <= names(parts(stripe_api_key="sk_test_nobody"))


# Gauges


def test_gauge_is_reported_as_the_high_water_mark_of_its_cycle(pipeline, meters):
    pipeline.create()
    for quantity in (20, 30, 10, 25, 31):
        pipeline.emit("user_seats", quantity, datetime.now(UTC))
        pipeline.report()
        pipeline.clock.forward(MINUTE)
        pipeline.due_again()
    assert [event.value for event in meters.of("cus_acme", "user_seats")] == [20, 30, 31]
    assert meters.total("cus_acme", "user_seats") == 31


def test_late_higher_level_becomes_the_last_that_the_meter_has(pipeline, meters):
    pipeline.create()
    pipeline.emit("storage_gb", 50, ago(minutes=1))
    pipeline.report()
    pipeline.emit("storage_gb", 80, ago(days=2))
    pipeline.report()
    assert meters.total("cus_acme", "storage_gb") == 80


def test_level_is_reported_at_the_start_of_each_cycle_though_nobody_says_anything(pipeline, meters, database):
    pipeline.create()
    account = pipeline.parts.customers.get("acme")
    pipeline.emit("user_seats", 30, ago(days=2))
    pipeline.emit("user_seats", 28, ago(days=1))
    pipeline.report()
    first = in_minutes(account.cycle_at(datetime.now(UTC)))
    with pipeline.engine.begin() as connection:  # a month goes by; Stripe takes no report from the future
        connection.exec_driver_sql("UPDATE accounts SET cycle_anchor = now() - interval '1 hour'")
        connection.exec_driver_sql("UPDATE usage_gauges SET look_at = now()")
    second = in_minutes(pipeline.parts.customers.get("acme").cycle_at(datetime.now(UTC)))
    pipeline.report()
    marks = [event.value for event in meters.of("cus_acme", "user_seats")]
    assert marks == [30, 28]
    assert meters.total("cus_acme", "user_seats", int(second.start.timestamp())) == 28
    assert first.start < second.start


@pytest.fixture
def lowered(pipeline, meters, database):
    """An account that began a cycle with 20 seats, as it turned out after the meter had been told of 30."""
    pipeline.create()
    database.rows("UPDATE accounts SET cycle_anchor = now() - interval '2 hours'")
    pipeline.emit("user_seats", 30, ago(days=2))
    pipeline.report()
    assert meters.total("cus_acme", "user_seats") == 30
    pipeline.emit("user_seats", 20, ago(hours=3))
    pipeline.report()
    return pipeline


def test_lower_level_told_late_lowers_what_the_next_cycle_began_with(lowered, meters):
    used = {quota.terms.metric: quota.use.used for quota in lowered.parts.metering.quotas("acme")}
    assert meters.total("cus_acme", "user_seats") == used["user_seats"] == 20


def test_level_of_a_cycle_that_begins_within_a_minute_is_told_when_it_has_begun(pipeline, meters, monkeypatch):
    """Told in the seconds before, it would be the last of the ended period, and of the new one there would be none."""
    begins = datetime.now(UTC).replace(second=40, microsecond=0)
    second, day = timedelta(seconds=1), timedelta(days=1)

    def report_at(moment):
        monkeypatch.setattr(type(pipeline.clock), "__call__", lambda _clock: moment)
        pipeline.due_again()
        pipeline.report()

    pipeline.create()
    with pipeline.engine.begin() as connection:
        anchor = begins.replace(year=begins.year - 4)
        connection.exec_driver_sql("UPDATE accounts SET cycle_anchor = %s", (anchor,))
    pipeline.emit("user_seats", 30, begins - 2 * day)
    pipeline.emit("user_seats", 28, begins - day)
    for moment in (begins - day, begins - 20 * second, begins, begins + 20 * second):
        report_at(moment)
    start = int(begins.timestamp())
    assert meters.total("cus_acme", "user_seats", end=start) == 30
    assert meters.total("cus_acme", "user_seats", start) == 28


# What is left behind


def test_pipeline_says_how_far_behind_it_is(pipeline, meters):
    from prometheus_client import REGISTRY  # noqa: PLC0415

    def lag(stage):
        pipeline.upkeep()
        return REGISTRY.get_sample_value("tollkeeper_metering_lag_seconds", {"stage": stage})

    pipeline.create()
    pipeline.emit("api_calls", 3, ago(minutes=5))
    with pipeline.engine.begin() as connection:
        connection.exec_driver_sql("UPDATE usage_events SET received_at = now() - interval '90 s'")
    assert 90 <= lag("emitted") < 150
    pipeline.aggregator()
    assert lag("emitted") == 0
    with pipeline.engine.begin() as connection:
        connection.exec_driver_sql("UPDATE usage_minutes SET due_since = now() - interval '400 s'")
    assert 400 <= lag("reported") < 450
    pipeline.report()
    assert lag("reported") == 0
    assert lag("proxied") < 30


def test_old_events_are_deleted_piece_by_piece_and_their_aggregates_stay(pipeline, database, monkeypatch):
    monkeypatch.setattr("services.subscriptions.metering.jobs._DELETED_AT_ONCE", 10)
    pipeline.create()
    for number in range(25):
        pipeline.emit("api_calls", 1, ago(minutes=number))
    while pipeline.aggregator():
        pass
    pipeline.emit("api_calls", 1, ago(minutes=1))
    database.rows("UPDATE usage_events SET received_at = now() - interval '37 days'")
    pieces = 0
    while pipeline.upkeep():
        pieces += 1
    assert pieces == 2
    assert database.rows("SELECT count(*) FROM usage_events") == [(1,)], "what is not aggregated is kept"
    assert database.rows("SELECT sum(emitted) FROM usage_minutes") == [(25,)]


def test_aggregates_that_no_cycle_needs_are_deleted_and_a_level_that_goes_on_stays(pipeline, database, monkeypatch):
    monkeypatch.setattr("services.subscriptions.metering.jobs._DELETED_AT_ONCE", 10)
    pipeline.create()
    hour = datetime.now(UTC).replace(minute=0, second=0, microsecond=0) - timedelta(hours=1)
    for minute in range(25):
        pipeline.emit("api_calls", 1, hour + minute * MINUTE)
        pipeline.emit("user_seats", 30 - minute, hour + minute * MINUTE)
    pipeline.aggregator()
    for table, start in (("usage_minutes", "minute"), ("usage_hours", "hour")):
        database.rows(f"UPDATE {table} SET {start} = {start} - interval '71 days'")
    pipeline.emit("api_calls", 5, hour)
    pipeline.aggregator()
    while pipeline.upkeep():
        pass
    kept = "SELECT metric, emitted FROM {} ORDER BY metric"
    assert database.rows(kept.format("usage_minutes")) == [("api_calls", 5), ("user_seats", 6)]
    assert database.rows(kept.format("usage_hours")) == [("api_calls", 5)]
    used = {quota.terms.metric: quota.use for quota in pipeline.parts.metering.quotas("acme")}
    assert (used["api_calls"].used, used["user_seats"].level) == (5, 6)


def test_minutes_too_old_for_a_meter_are_given_up_and_said_so(pipeline, database, meters):
    pipeline.create()
    with pipeline.engine.begin() as connection:
        store.insert_events(connection, "acme", [UsageEvent("old", "api_calls", 1, ago(days=36))])
    pipeline.report()
    pipeline.upkeep()
    assert meters.requests == 0
    assert database.rows("SELECT count(*) FROM usage_minutes WHERE due_since IS NOT NULL") == [(0,)]


# Reconciliation


def differences(pipeline):
    pipeline.reconciliation.compare_all()
    found = pipeline.reconciliation.compare("acme")
    return [(difference.against, difference.metric, difference.kept, difference.found) for difference in found]


@pytest.fixture
def reconciled(pipeline, ledger):
    """An account whose figures all agree, sums, a gauge and calls through the proxy."""
    pipeline.create()
    pipeline.emit("api_calls", 40, ago(hours=3))
    pipeline.emit("storage_gb", 120, ago(hours=2))
    for hours in (30, 20, 3):
        ledger.use("acme", 1000, ago(hours=hours))
    ledger.use("acme", 500, ago(hours=3), internal=True)
    pipeline.report()
    with pipeline.engine.begin() as connection:
        connection.exec_driver_sql("UPDATE meter_reports SET sent_at = now() - interval '1 hour'")
    pipeline.clock.forward(timedelta(minutes=20))
    assert differences(pipeline) == []
    return pipeline


def test_what_stripe_did_not_count_is_a_difference_and_is_not_corrected(reconciled, meters, database):
    before = database.rows("SELECT * FROM usage_minutes ORDER BY 1, 2, 3")
    identifier = next(name for name in meters.events if ":api_calls:" in name)
    lost = meters.events.pop(identifier)
    assert differences(reconciled) == [("stripe", "api_calls", 43, 43 - lost.value)]
    reconciled.report()
    assert identifier not in meters.events
    assert database.rows("SELECT * FROM usage_minutes ORDER BY 1, 2, 3") == before


def test_what_the_feed_did_not_bring_is_a_difference(reconciled, ledger, database):
    ledger.use("acme", 77, ago(hours=1))
    database.rows(f"UPDATE usage_feed SET cursor = '{len(ledger.records)}'")
    reconciled.feeding()
    assert differences(reconciled) == [("ledger", "llm_tokens", 3000, 3077), ("ledger", "api_calls", 3, 4)]


def test_sum_that_differs_from_its_reports_is_a_difference(reconciled, database):
    database.rows("UPDATE usage_minutes SET emitted = emitted + 5 WHERE metric = 'api_calls' AND emitted > 0")
    assert differences(reconciled) == [("reports", "all", 5, 0)]


def test_attempt_of_which_nothing_is_known_is_no_difference(reconciled, meters, database):
    """As when a process died after it had sent: the meter may have counted it, or not."""
    identifier = next(name for name in meters.events if ":api_calls:" in name)
    database.rows("UPDATE meter_reports SET sent_at = NULL WHERE metric = 'api_calls'")
    assert differences(reconciled) == []
    meters.events.pop(identifier)
    assert differences(reconciled) == []


def test_mark_that_was_lowered_is_compared_with_the_last_that_was_told(lowered, meters, ledger, database):
    ledger.use("acme", 1, ago(days=5))  # before the cycle that is compared
    lowered.clock.forward(timedelta(minutes=20))
    assert differences(lowered) == [], "told just now: the meter may have counted it, or not"
    last = max(meters.events, key=lambda name: meters.events[name].timestamp)
    counted = meters.events.pop(last)
    assert differences(lowered) == []
    database.rows("UPDATE meter_reports SET sent_at = now() - interval '1 hour'")
    assert differences(lowered) == [("stripe", "user_seats", 20, 30)]
    meters.events[last] = counted
    assert differences(lowered) == []


def test_nothing_is_compared_before_the_feed_was_read_to_its_end_nor_before_its_time(pipeline, ledger, monkeypatch):
    compared = []
    monkeypatch.setattr(Reconciliation, "compare_all", lambda _: compared.append(True))
    ledger.down = True
    pipeline.feeding()
    pipeline.reconciliation()
    assert compared == []
    ledger.down = False
    pipeline.feeding()
    for _ in range(3):
        pipeline.reconciliation()
    assert len(compared) == 1
    pipeline.clock.forward(timedelta(hours=6))
    pipeline.reconciliation()
    assert len(compared) == 2


def test_reconciliation_goes_on_when_nobody_answers(reconciled, ledger, meters):
    from prometheus_client import REGISTRY  # noqa: PLC0415

    meters.down = True
    with pytest.raises(ReportFailedError):
        list(reconciled.reconciliation.compare("acme"))
    ledger.down = True
    with pytest.raises(RemoteError):
        list(reconciled.reconciliation.compare("acme"))
    reconciled.reconciliation.compare_all()
    assert REGISTRY.get_sample_value("tollkeeper_metering_reconciliation_unanswered") == 1
