"""Alerts on their way to real HTTP endpoints: signed, once, retried, given up; slow ones hold up nobody."""

import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
from subscriptions_alerts import add_endpoint, deliveries, make_due, raise_alert, send_all
from subscriptions_receivers import Receiver
from tollkeeper.subscriptions.v1 import operator_service_pb2 as pb

from services.subscriptions.alerts import store
from services.subscriptions.alerts.model import RETRY_SECONDS, signature


@pytest.fixture(autouse=True)
def account(operator):
    operator(operator.customers.CreateAccount, pb.CreateAccountRequest(account_id="acme"))


def seconds_to_next(database):
    ((seconds,),) = database.rows("SELECT extract(epoch FROM next_attempt_at - now()) FROM alert_deliveries")
    return float(seconds)


def test_webhook_arrives_signed_and_once(database, receiver, sender):
    endpoint = add_endpoint(database, f"{receiver.url}/hook?team=blue")
    raise_alert(database)
    send_all(sender())
    (request,) = receiver.requests
    assert request.path == "/hook?team=blue"
    assert request.headers["content-type"] == "application/json"
    timestamp = int(request.headers["webhook-timestamp"])
    assert abs(timestamp - time.time()) < 60
    message_id = request.headers["webhook-id"]
    expected = signature(endpoint.signing_secret, message_id, timestamp, request.body)
    assert request.headers["webhook-signature"] == expected
    told = json.loads(request.body)
    assert told["type"] == "alert.limit_80"
    assert told["data"] == {"alertId": message_id, "accountId": "acme", "message": "words of k", "used": "8"}
    assert deliveries(database) == [("delivered", 1, "")]


def test_failed_delivery_is_tried_again_later_each_time_and_then_given_up(database, receiver, sender):
    add_endpoint(database, receiver.url)
    raise_alert(database)
    receiver.answer, sending = 500, sender()
    for attempt, seconds in enumerate(RETRY_SECONDS, start=1):
        assert sending()
        assert not sending(), "not before its time"
        assert deliveries(database) == [("pending", attempt, "the endpoint answered 500")]
        assert seconds - 5 < seconds_to_next(database) <= seconds
        make_due(database)
    send_all(sending)
    make_due(database)
    send_all(sending)
    assert deliveries(database) == [("failed", 10, "the endpoint answered 500")]
    assert len(receiver.requests) == 10
    assert len({request.body for request in receiver.requests}) == 1
    assert len({request.headers["webhook-id"] for request in receiver.requests}) == 1


def test_endpoint_that_recovers_gets_it(database, receiver, sender):
    add_endpoint(database, receiver.url)
    raise_alert(database)
    receiver.answer, sending = 503, sender()
    send_all(sending)
    receiver.answer = 200
    make_due(database)
    send_all(sending)
    assert deliveries(database) == [("delivered", 2, "")]


def test_two_senders_of_many_threads_deliver_each_once(database, receiver, sender):
    for number in range(4):
        add_endpoint(database, f"{receiver.url}/{number}")
    for number in range(25):
        raise_alert(database, f"k{number}")
    senders = [sender(), sender()]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda number: send_all(senders[number % 2]), range(8)))
    send_all(senders[0])  # a thread ends while others have every endpoint busy
    sent = [(request.path, request.headers["webhook-id"]) for request in receiver.requests]
    assert len(sent) == len(set(sent)) == 100
    assert {status for status, _, _ in deliveries(database)} == {"delivered"}


def test_replay_sends_again(database, operator, receiver, sender):
    add_endpoint(database, receiver.url)
    raise_alert(database)
    sending = sender()
    send_all(sending)
    alert_id = receiver.requests[0].headers["webhook-id"]
    operator(operator.alerts.ReplayAlert, pb.ReplayAlertRequest(alert_id=alert_id))
    send_all(sending)
    assert [request.headers["webhook-id"] for request in receiver.requests] == [alert_id] * 2
    assert deliveries(database) == [("delivered", 1, "")]


def test_replay_while_an_attempt_is_under_way_sends_again(database, operator, receiver, sender):
    add_endpoint(database, receiver.url)
    raise_alert(database)
    receiver.gate, sending = threading.Event(), sender()
    under_way = threading.Thread(target=sending)
    under_way.start()
    assert receiver.arrived.acquire(timeout=10)
    alert_id = receiver.requests[0].headers["webhook-id"]
    operator(operator.alerts.ReplayAlert, pb.ReplayAlertRequest(alert_id=alert_id))
    receiver.gate.set()
    under_way.join()
    assert deliveries(database) == [("pending", 0, "")], "the attempt from before does not count"
    send_all(sending)
    assert len(receiver.requests) == 2


def test_slow_endpoint_with_much_waiting_holds_up_nobody_else(database, receiver, sender):
    """Two threads: one is at the slow endpoint, the other makes all deliveries to the fast one meanwhile."""
    add_endpoint(database, receiver.url)
    for number in range(5):
        raise_alert(database, f"k{number}")
    receiver.gate, sending = threading.Event(), sender()
    slow = threading.Thread(target=sending)
    slow.start()
    assert receiver.arrived.acquire(timeout=10)
    with Receiver().serve() as fast:
        add_endpoint(database, fast.url)
        for number in range(5, 8):
            raise_alert(database, f"k{number}")
        send_all(sending)
        assert len(fast.requests) == 3
        assert len(receiver.requests) == 1, "nothing more to the slow one while it has not answered"
    receiver.gate.set()
    slow.join()
    send_all(sending)
    assert len(receiver.requests) == 8


def test_sender_that_died_leaves_a_delivery_that_another_makes(database, receiver, sender):
    add_endpoint(database, receiver.url)
    raise_alert(database)
    with database.engine.begin() as connection:
        assert store.claim_delivery(connection, lease=timedelta(minutes=5)) is not None
    sending = sender()
    assert not sending(), "leased"
    make_due(database)
    send_all(sending)
    assert deliveries(database) == [("delivered", 2, "")]


def test_endpoint_deleted_between_raising_and_sending_is_not_called(database, receiver, sender):
    add_endpoint(database, receiver.url)
    raise_alert(database)
    database.rows("UPDATE alert_endpoints SET deleted_at = now()")
    send_all(sender())
    assert receiver.requests == []
    assert deliveries(database) == [("skipped", 1, "")]
