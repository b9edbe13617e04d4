"""WebhookService on the wire: what is taken in and what is refused, the log of events, replay, reconciling."""

import json
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

import grpc
import psycopg
import pytest
from google.api import httpbody_pb2
from psycopg import sql
from sqlalchemy import make_url
from subscriptions_events import event_body, send, signature
from subscriptions_peers import eventually
from subscriptions_stripe import SECRET
from tollkeeper.subscriptions.v1 import operator_service_pb2 as pb

from services.kit.errors import RemoteError
from services.kit.identity import Role

PAID = {"object": "invoice", "id": "in_1", "customer": "cus_nobody"}


@pytest.fixture
def stripe_side(served, connect):
    """Stripe, calling a service that has a secret and no key."""
    with served(stripe_webhook_secrets=SECRET) as address:
        caller = connect(address, Role.PUBLIC)
        caller.address = address
        yield caller


@pytest.fixture
def operator(stripe_side, connect):
    return connect(stripe_side.address, Role.ADMIN)


def kept(database):
    return database.rows("SELECT event_id, type, status FROM stripe_events ORDER BY event_id")


def refused(caller, body, header):
    with pytest.raises(grpc.RpcError) as caught:
        send(caller, body, header)
    return RemoteError.from_rpc(caught.value)


def test_event_is_kept_and_acknowledged(stripe_side, database):
    body = event_body("invoice.paid", PAID, event_id="evt_1")
    assert send(stripe_side, body).received
    assert kept(database) == [("evt_1", "invoice.paid", "pending")]
    assert database.rows("SELECT body FROM stripe_events") == [(body.decode(),)], "the text that was signed"


def test_duplicate_is_acknowledged_and_kept_once(stripe_side, database):
    body = event_body("invoice.paid", PAID, event_id="evt_1")
    assert all(send(stripe_side, body).received for _ in range(3))
    assert len(kept(database)) == 1


def test_the_same_event_from_many_at_once_is_kept_once(stripe_side, database):
    body = event_body("invoice.paid", PAID, event_id="evt_1")
    with ThreadPoolExecutor(16) as clients:
        assert all(answer.received for answer in clients.map(lambda _: send(stripe_side, body), range(64)))
    assert len(kept(database)) == 1


def test_unknown_kinds_are_kept(stripe_side, database):
    about = {"object": "hologram", "id": "hol_1", "ünïcode": "\u2028 \ud83d\ude00"}
    assert send(stripe_side, event_body("hologram.projected", about, event_id="evt_1")).received
    assert kept(database) == [("evt_1", "hologram.projected", "ignored")]


def altered(body):
    """What a signature over `body` must not vouch for."""
    event = json.loads(body)
    return {
        "re-encoded": json.dumps(event, separators=(",", ":")).encode(),
        "re-ordered": json.dumps(dict(reversed(event.items())), indent=2).encode(),
        "truncated": body[:-1],
        "one byte more": body + b" ",
        "byte order mark": b"\xef\xbb\xbf" + body,
        "another amount": body.replace(b'"in_1"', b'"in_2"'),
        "utf-16": body.decode().encode("utf-16"),
        "line ends": body.replace(b"\n", b"\r\n"),
        "empty": b"",
    }


@pytest.fixture
def said(capsys, caplog):
    """What was logged so far, wherever the process' logs go by now."""
    printed = []

    def said():
        printed.append(capsys.readouterr().out)
        return "".join(printed) + caplog.text

    return said


@pytest.mark.parametrize("how", sorted(altered(event_body("invoice.paid", PAID))))
def test_altered_body_is_refused_logged_and_not_kept(stripe_side, database, said, how):
    body = event_body("invoice.paid", PAID)
    refusal = refused(stripe_side, altered(body)[how], signature(body))
    assert (refusal.code, refusal.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "WEBHOOK_REFUSED")
    assert kept(database) == []
    eventually(lambda: "webhook refused" in said())


def forged(body):
    now = int(time.time())
    good = signature(body).partition("v1=")[2]
    return {
        "another secret": (signature(body, secret="whsec_other"), "no valid signature"),
        "no secret": (signature(body, secret=""), "no valid signature"),
        "no header": ("", "no valid signature"),
        "nonsense": ("t=,v1=", "no valid signature"),
        "no time": (f"v1={good}", "no valid signature"),
        "another time": (f"t={now - 1},v1={good}", "no valid signature"),
        "another scheme": (signature(body).replace("v1=", "v0="), "no valid signature"),
        "stale": (signature(body, at=now - 301), "signed too long ago"),
        "a year old": (signature(body, at=now - 365 * 86_400), "signed too long ago"),
    }


@pytest.mark.parametrize("how", sorted(forged(b"")))
def test_forged_or_stale_signature_is_refused_logged_and_not_kept(stripe_side, database, said, how):
    body = event_body("invoice.paid", PAID)
    header, why = forged(body)[how]
    refusal = refused(stripe_side, body, header)
    assert (refusal.code, refusal.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "WEBHOOK_REFUSED")
    assert why in refusal.message
    assert SECRET not in refusal.message
    assert kept(database) == []
    eventually(lambda: "webhook refused" in said() and why in said())
    assert SECRET not in said()


def test_signed_within_the_tolerance_is_taken(stripe_side, database):
    body = event_body("invoice.paid", PAID)
    assert send(stripe_side, body, signature(body, at=int(time.time()) - 290)).received
    assert len(kept(database)) == 1


def test_two_signature_headers_are_refused(stripe_side, database):
    body = event_body("invoice.paid", PAID)
    with pytest.raises(grpc.RpcError) as caught:
        stripe_side.webhooks.ReceiveStripeEvent(
            httpbody_pb2.HttpBody(data=body),
            metadata=(("stripe-signature", signature(body)), ("stripe-signature", signature(body))),
        )
    assert RemoteError.from_rpc(caught.value).reason == "WEBHOOK_REFUSED"
    assert kept(database) == []


@pytest.mark.parametrize(
    "body",
    [
        b"[]", b"null", b'"evt"', b"{", b'{"object": "event"}', b"\xff\xfe", b"[" * 100_000,
        event_body("", PAID), event_body("invoice.paid", None), event_body("invoice.paid", []),
        event_body("invoice.paid", PAID, event_id=""), event_body("invoice.paid", PAID, event_id="e" * 256),
        event_body("invoice.paid", PAID, event_id="evt\x00"), event_body("invoice.paid", PAID, created="now"),
        event_body("invoice.paid", PAID, created=2**63), event_body("invoice.paid", PAID, object="list"),
        b'{"object":"event","id":"e","type":"t","created":' + b"9" * 5000 + b',"data":{"object":{}}}',
        b'{"object":"event","id":"e","type":"t","created":1,"data":{"object":{"id":"' + b"x" * 2**20 + b'"}}}',
    ],
    ids=range(18),
)  # fmt: skip
def test_what_is_signed_and_no_event_is_refused(stripe_side, database, body):
    assert refused(stripe_side, body, signature(body)).code in {
        grpc.StatusCode.INVALID_ARGUMENT,
        grpc.StatusCode.RESOURCE_EXHAUSTED,
    }
    assert kept(database) == []


def test_two_secrets_are_taken_during_rotation(served, connect, database):
    body = event_body("invoice.paid", PAID, event_id="evt_1")
    with served(stripe_webhook_secrets="whsec_new, whsec_old,") as address:
        caller = connect(address, Role.PUBLIC)
        assert send(caller, body, signature(body, secret="whsec_old")).received
        assert send(caller, body, signature(body, secret="whsec_new")).received
        both = signature(body, secret="whsec_other") + ",v1=" + signature(body, secret="whsec_old").partition("v1=")[2]
        assert send(caller, body, both).received, "Stripe signs with both while it rotates"
        assert refused(caller, body, signature(body, secret="whsec_third")).reason == "WEBHOOK_REFUSED"
        stale = signature(body, secret="whsec_new", at=int(time.time()) - 301)
        assert refused(caller, body, stale).reason == "WEBHOOK_REFUSED"
    assert len(kept(database)) == 1


def test_without_a_secret_nothing_is_taken(served, connect, database):
    body = event_body("invoice.paid", PAID)
    with served() as address:
        refusal = refused(connect(address, Role.PUBLIC), body, signature(body, secret=""))
    assert (refusal.code, refusal.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "STRIPE_NOT_CONFIGURED")
    assert kept(database) == []


def test_without_a_key_replay_and_reconcile_refuse_and_the_list_works(stripe_side, operator, database):
    send(stripe_side, event_body("invoice.paid", PAID, event_id="evt_1"))
    replay = operator.refused(operator.webhooks.ReplayStripeEvent, pb.ReplayStripeEventRequest(event_id="evt_1"))
    reconcile = operator.refused(operator.webhooks.ReconcileStripe, pb.ReconcileStripeRequest())
    assert {replay.reason, reconcile.reason} == {"STRIPE_NOT_CONFIGURED"}
    (event,) = operator(operator.webhooks.ListStripeEvents, pb.ListStripeEventsRequest()).events
    assert (event.event_id, event.status, event.attempts) == ("evt_1", "pending", 0)


@pytest.mark.parametrize("role", [Role.ACCOUNT, Role.PUBLIC])
def test_only_operators_see_and_replay_events(stripe_side, connect, role):
    caller = connect(stripe_side.address, role, "acme" if role is Role.ACCOUNT else "")
    for method, request in (
        (caller.webhooks.ListStripeEvents, pb.ListStripeEventsRequest()),
        (caller.webhooks.ReplayStripeEvent, pb.ReplayStripeEventRequest(event_id="evt_1")),
        (caller.webhooks.ReconcileStripe, pb.ReconcileStripeRequest()),
    ):
        assert caller.refused(method, request).code in {
            grpc.StatusCode.PERMISSION_DENIED,
            grpc.StatusCode.UNAUTHENTICATED,
        }


# Acknowledged, and committed


def test_not_acknowledged_while_the_database_is_down(stripe_side, database, postgres_server):
    body = event_body("invoice.paid", PAID, event_id="evt_1")
    name = make_url(database.url).database
    with psycopg.connect(postgres_server.url(), autocommit=True) as admin:
        allow = sql.SQL("ALTER DATABASE {} ALLOW_CONNECTIONS {}")
        admin.execute(allow.format(sql.Identifier(name), sql.SQL("false")))
        admin.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", [name])
        try:
            refusal = refused(stripe_side, body, signature(body))
        finally:
            admin.execute(allow.format(sql.Identifier(name), sql.SQL("true")))
    assert (refusal.code, refusal.reason) == (grpc.StatusCode.UNAVAILABLE, "STORAGE_UNAVAILABLE")
    database.engine.dispose()
    assert kept(database) == []
    assert send(stripe_side, body).received
    assert len(kept(database)) == 1


def test_acknowledged_only_after_the_commit(stripe_side, database):
    """A commit that fails after the event was written is no acknowledgement: the check runs as the transaction ends."""
    database.rows("CREATE FUNCTION fails() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN RAISE 'no'; END$$")
    database.rows(
        "CREATE CONSTRAINT TRIGGER at_commit AFTER INSERT ON stripe_events DEFERRABLE INITIALLY DEFERRED"
        " FOR EACH ROW EXECUTE FUNCTION fails()"
    )
    body = event_body("invoice.paid", PAID)
    assert refused(stripe_side, body, signature(body)).code is grpc.StatusCode.INTERNAL
    database.rows("DROP TRIGGER at_commit ON stripe_events")
    assert kept(database) == []
    assert send(stripe_side, body).received


# The log of events


def test_events_are_listed_newest_first_in_pages(stripe_side, operator):
    for number in range(5):
        kind = "invoice.paid" if number % 2 else "product.created"
        send(stripe_side, event_body(kind, PAID, event_id=f"evt_{number}", created=1_700_000_000 + number))
    listed = operator.webhooks.ListStripeEvents
    first = operator(listed, pb.ListStripeEventsRequest(page_size=2))
    second = operator(listed, pb.ListStripeEventsRequest(page_size=2, page_token=first.next_page_token))
    third = operator(listed, pb.ListStripeEventsRequest(page_size=2, page_token=second.next_page_token))
    ids = [event.event_id for page in (first, second, third) for event in page.events]
    assert ids == ["evt_4", "evt_3", "evt_2", "evt_1", "evt_0"]
    assert third.next_page_token == ""
    paid = operator(listed, pb.ListStripeEventsRequest(type="invoice.paid", status="pending")).events
    assert [event.event_id for event in paid] == ["evt_3", "evt_1"]
    assert paid[0].created_at.seconds == 1_700_000_003
    assert operator(listed, pb.ListStripeEventsRequest(status="failed")).events == []


def test_events_of_the_same_moment_are_all_listed(stripe_side, operator, database):
    for number in range(5):
        send(stripe_side, event_body("invoice.paid", PAID, event_id=f"evt_{number}"))
    database.rows("UPDATE stripe_events SET received_at = now()")
    ids, token = [], ""
    for _ in range(3):
        request = pb.ListStripeEventsRequest(page_size=2, page_token=token)
        page = operator(operator.webhooks.ListStripeEvents, request)
        ids += [event.event_id for event in page.events]
        token = page.next_page_token
    assert ids == ["evt_4", "evt_3", "evt_2", "evt_1", "evt_0"]


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        (pb.ListStripeEventsRequest(status="lost"), "status"),
        (pb.ListStripeEventsRequest(type="x" * 256), "type"),
        (pb.ListStripeEventsRequest(page_size=-1), "page_size"),
        (pb.ListStripeEventsRequest(page_token="none"), "page_token"),
    ],
    ids=["status", "type", "negative", "token"],
)
def test_bad_listing_names_its_field(operator, request_, field):
    refusal = operator.refused(operator.webhooks.ListStripeEvents, request_)
    assert {violation.field for violation in refusal.violations} == {field}


# With a Stripe behind it


@pytest.fixture
def alive(told, served, connect):
    """An operator of a service with a key, and without background jobs: what is done is done by the call."""
    with served(**told.stripe.settings()) as address:
        yield connect(address, Role.ADMIN)


def test_replay_applies_and_says_so(alive, told):
    told.customer()
    told.subscribe()
    events = [event for event in told.news() if event.type == "invoice.paid"]
    told.tell(events)
    request = pb.ReplayStripeEventRequest(event_id=events[0].id)
    event = alive(alive.webhooks.ReplayStripeEvent, request)
    assert (event.event_id, event.type, event.status, event.attempts) == (events[0].id, "invoice.paid", "applied", 1)
    assert event.HasField("applied_at")
    again = alive(alive.webhooks.ReplayStripeEvent, request)
    assert again.status == "applied"
    told.deliver()
    assert told.credit() == 3_800_000_000


def test_replay_of_what_was_not_taken_in_is_refused(alive):
    request = pb.ReplayStripeEventRequest(event_id="evt_none")
    refusal = alive.refused(alive.webhooks.ReplayStripeEvent, request)
    assert (refusal.code, refusal.reason) == (grpc.StatusCode.NOT_FOUND, "STRIPE_EVENT_NOT_FOUND")
    refusal = alive.refused(alive.webhooks.ReplayStripeEvent, pb.ReplayStripeEventRequest())
    assert [violation.field for violation in refusal.violations] == ["event_id"]


def test_reconcile_takes_in_what_was_missed(alive, told):
    told.customer()
    told.subscribe()
    first = alive(alive.webhooks.ReconcileStripe, pb.ReconcileStripeRequest())
    assert first.events_recovered > 0
    second = alive(alive.webhooks.ReconcileStripe, pb.ReconcileStripeRequest())
    assert (second.events_seen, second.events_recovered) == (first.events_seen, 0)
    told.apply()
    assert told.credit() == 3_800_000_000


@pytest.mark.parametrize("days", [-1, 31], ids=["to come", "too long ago"])
def test_reconcile_goes_back_thirty_days_at_most(alive, days):
    request = pb.ReconcileStripeRequest()
    request.since.FromDatetime(datetime.now(UTC) - timedelta(days=days))
    refusal = alive.refused(alive.webhooks.ReconcileStripe, request)
    assert [violation.field for violation in refusal.violations] == ["since"]
