"""Emitting usage, in batches and as a stream: what is taken in, what is refused, what counts once."""

import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

import grpc
import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from tollkeeper.subscriptions.v1 import billing_service_pb2 as pb
from tollkeeper.subscriptions.v1 import operator_service_pb2 as operator_pb

from services.kit.errors import RemoteError
from services.kit.identity import Role


def stamp(moment):
    made = Timestamp()
    made.FromDatetime(moment)
    return made


def event(number, metric="api_calls", quantity=1, *, time=None, **fields):
    made = pb.UsageEvent(id=f"e{number}", metric=metric, quantity=quantity, **fields)
    if time is not None:
        made.time.CopyFrom(stamp(time))
    return made


@pytest.fixture
def account(operator, pricing):
    pricing.publish_metered()
    operator(operator.customers.CreateAccount, operator_pb.CreateAccountRequest(account_id="acme", plan="metered-free"))
    return "acme"


@pytest.fixture
def customer(account, operator, connect):
    return connect(operator.address, Role.ACCOUNT, account)


@pytest.fixture
def service(account, operator, connect):
    return connect(operator.address, Role.SERVICE)


def emit(caller, *events, account_id=""):
    answer = caller(caller.metering.EmitEvents, pb.EmitEventsRequest(account_id=account_id, events=events))
    return answer.accepted, answer.duplicates


def stored(database):
    return database.rows("SELECT event_id, metric, quantity FROM usage_events ORDER BY event_id")


def test_customer_emits_for_its_own_account(customer, database):
    assert emit(customer, event(1), event(2, "llm_tokens", 500)) == (2, 0)
    assert stored(database) == [("e1", "api_calls", 1), ("e2", "llm_tokens", 500)]


def test_customer_cannot_emit_for_another_account(customer, database):
    request = pb.EmitEventsRequest(account_id="other", events=[event(1)])
    assert customer.refused(customer.metering.EmitEvents, request).reason == "ACCOUNT_MISMATCH"
    assert stored(database) == []


def test_event_id_counts_once_within_the_account(customer, database):
    assert emit(customer, event(1), event(2)) == (2, 0)
    assert emit(customer, event(2, quantity=9), event(3)) == (1, 1), "whatever the repeat says"
    assert stored(database) == [("e1", "api_calls", 1), ("e2", "api_calls", 1), ("e3", "api_calls", 1)]


def test_event_twice_in_one_request_counts_once(customer):
    assert emit(customer, event(1), event(1)) == (1, 1)


def test_same_event_id_of_two_accounts_counts_for_each(operator, service, account):
    operator(operator.customers.CreateAccount, operator_pb.CreateAccountRequest(account_id="beta"))
    assert emit(service, event(1), account_id="acme") == (1, 0)
    assert emit(service, event(1), account_id="beta") == (1, 0)


def test_requests_with_the_same_ids_in_any_order_count_once_and_do_not_block_each_other(customer, database):
    events = [event(f"{number:04d}") for number in range(300)]
    orders = [events, events[::-1], events[150:] + events[:150], events[::2] + events[1::2]] * 3
    with ThreadPoolExecutor(6) as pool:
        counts = list(pool.map(lambda order: emit(customer, *order), orders))
    assert sum(accepted for accepted, _ in counts) == 300
    assert sum(duplicates for _, duplicates in counts) == 300 * (len(orders) - 1)
    assert len(stored(database)) == 300


def test_emission_beyond_a_hard_cap_is_counted(customer):
    assert emit(customer, event(1, "user_seats", 50)) == (1, 0)
    quotas = customer(customer.metering.ListQuotas, pb.ListQuotasRequest()).quotas
    assert {q.metric: (q.used, q.overage) for q in quotas}["user_seats"] == (50, 47)


def test_time_defaults_to_now_and_labels_are_kept(customer, database):
    before = datetime.now(UTC)
    emit(customer, event(1, labels={"team": "blue"}))
    ((occurred_at, labels),) = database.rows("SELECT occurred_at, labels FROM usage_events")
    assert before - timedelta(seconds=5) <= occurred_at <= datetime.now(UTC)
    assert labels == {"team": "blue"}


@pytest.mark.parametrize(
    ("field", "changes"),
    [
        ("id", {"id": ""}),
        ("id", {"id": "x" * 101}),
        ("id", {"id": "a\0b"}),
        ("metric", {"metric": "coffee"}),
        ("metric", {"metric": ""}),
        ("quantity", {"quantity": 0}),
        ("quantity", {"quantity": -1}),
        ("quantity", {"quantity": 10**12 + 1}),
        ("time", {"time": Timestamp(seconds=2**40)}),
        ("labels", {"labels": {str(number): "x" for number in range(21)}}),
        ("labels[team]", {"labels": {"team": "x" * 101}}),
        ("labels", {"labels": {"x" * 101: "y"}}),
    ],
)
def test_bad_event_is_refused_by_field_and_nothing_is_written(customer, database, field, changes):
    bad = pb.UsageEvent(**({"id": "bad", "metric": "api_calls", "quantity": 1} | changes))
    refusal = customer.refused(customer.metering.EmitEvents, pb.EmitEventsRequest(events=[event(1), bad]))
    assert refusal.reason == "INVALID_ARGUMENT"
    assert [violation.field for violation in refusal.violations] == [f"events[1].{field}"]
    assert stored(database) == []


@pytest.mark.parametrize(
    ("offset", "accepted"),
    [
        (timedelta(days=-34, hours=-23), True),
        (timedelta(days=-35, minutes=-1), False),
        (timedelta(minutes=4), True),
        (timedelta(minutes=6), False),
    ],
    ids=str,
)
def test_time_may_be_35_days_ago_and_five_minutes_ahead(customer, offset, accepted):
    request = pb.EmitEventsRequest(events=[event(1, time=datetime.now(UTC) + offset)])
    if accepted:
        assert customer(customer.metering.EmitEvents, request).accepted == 1
    else:
        assert customer.refused(customer.metering.EmitEvents, request).violations[0].field == "events[0].time"


@pytest.mark.parametrize("count", [0, 1001])
def test_request_holds_one_to_a_thousand_events(customer, count):
    request = pb.EmitEventsRequest(events=[event(number) for number in range(count)])
    refusal = customer.refused(customer.metering.EmitEvents, request)
    assert [violation.field for violation in refusal.violations] == ["events"]


def test_unknown_account_is_refused(service):
    request = pb.EmitEventsRequest(account_id="nobody", events=[event(1)])
    assert service.refused(service.metering.EmitEvents, request).reason == "ACCOUNT_NOT_FOUND"


def test_emission_is_answered_while_pricing_is_down(account, served, connect, pricing):
    """What is counted is not refused: who is told of a failure may emit it again, under another id."""
    with served() as address:  # a process that has not seen the plan
        caller = connect(address, Role.ACCOUNT, account)
        pricing.down = True
        assert emit(caller, event(1)) == (1, 0)
        pricing.down = False
        assert emit(caller, event(1)) == (0, 1)


def test_largest_quantities_add_up_exactly(customer, parts):
    """A thousand times the most that an event may say, a hundred thousand times over, is more than 64 bits hold."""
    moment = datetime.now(UTC)
    emit(customer, *[event(number, "agent_executions", 10**12, time=moment) for number in range(1000)])
    made = parts()
    with made.engine.begin() as connection:
        connection.exec_driver_sql("UPDATE usage_events SET quantity = 9223372036854775807")
    from services.subscriptions.metering.aggregation import EventAggregator  # noqa: PLC0415

    EventAggregator(made.engine)()
    with made.engine.begin() as connection:
        total = connection.exec_driver_sql("SELECT sum(emitted) FROM usage_hours").scalar_one()
    assert int(total) == 1000 * (2**63 - 1)
    quotas = customer(customer.metering.ListQuotas, pb.ListQuotasRequest()).quotas
    assert {q.metric: q.used for q in quotas}["agent_executions"] == 2**63 - 1, "the most that the wire holds"


def test_stream_counts_each_message(service, database):
    def messages():
        for start in (0, 10, 5):
            events = [event(f"{number:02d}") for number in range(start, start + 10)]
            yield pb.StreamEventsRequest(account_id="acme", events=events)

    answer = service.metering.StreamEvents(messages(), metadata=service.metadata, timeout=20)
    assert (answer.accepted, answer.duplicates) == (20, 10)
    assert len(stored(database)) == 20


def test_stream_that_breaks_off_keeps_what_came_before_and_may_be_repeated(service, database):
    good = pb.StreamEventsRequest(account_id="acme", events=[event(1), event(2)])
    bad = pb.StreamEventsRequest(account_id="acme", events=[event(3, quantity=-1)])
    with pytest.raises(grpc.RpcError) as caught:
        service.metering.StreamEvents(iter([good, bad]), metadata=service.metadata, timeout=20)
    assert RemoteError.from_rpc(caught.value).violations[0].field == "messages[1].events[0].quantity"
    assert len(stored(database)) == 2
    fine = pb.StreamEventsRequest(account_id="acme", events=[event(3)])
    answer = service.metering.StreamEvents(iter([good, fine]), metadata=service.metadata, timeout=20)
    assert (answer.accepted, answer.duplicates) == (1, 2)


def test_stream_takes_a_bounded_number_of_messages(service, monkeypatch):
    monkeypatch.setattr("services.subscriptions.metering.servicer._MAX_STREAM_MESSAGES", 3)
    messages = [pb.StreamEventsRequest(account_id="acme", events=[event(number)]) for number in range(5)]
    with pytest.raises(grpc.RpcError) as caught:
        service.metering.StreamEvents(iter(messages), metadata=service.metadata, timeout=20)
    assert RemoteError.from_rpc(caught.value).reason == "STREAM_TOO_LONG"


def test_streams_at_once_are_bounded_and_a_long_one_is_ended(service, monkeypatch):
    # In which all of them have begun, on a busy machine too.
    monkeypatch.setattr("services.subscriptions.metering.servicer._STREAM_SECONDS", 3.0)
    release = threading.Event()

    def messages():
        yield pb.StreamEventsRequest(account_id="acme", events=[event("x")])
        release.wait(20)

    calls = [service.metering.StreamEvents.future(messages(), metadata=service.metadata, timeout=20) for _ in range(9)]
    codes = [call.exception().code() for call in calls]
    release.set()
    assert codes.count(grpc.StatusCode.RESOURCE_EXHAUSTED) == 1
    assert codes.count(grpc.StatusCode.CANCELLED) == 8


def test_only_services_stream_and_check(customer):
    call = customer.metering.StreamEvents
    with pytest.raises(grpc.RpcError) as caught:
        call(iter([pb.StreamEventsRequest(events=[event(1)])]), metadata=customer.metadata, timeout=20)
    assert RemoteError.from_rpc(caught.value).reason == "ROLE_TOO_LOW"
    request = pb.CheckQuotaRequest(account_id="acme", metric="api_calls")
    assert customer.refused(customer.metering.CheckQuota, request).reason == "ROLE_TOO_LOW"
