"""Webhooks: signed, in order, retried until taken, held back and let go in any order for those who test that."""

from __future__ import annotations

import hashlib
import hmac
import json

import pytest
import stripe
from sandbox_stripe_process import SECRET, Shop


@pytest.fixture
def own(start_sandbox, receiver):
    return start_sandbox("--webhook-url", receiver.url, "--webhook-secret", SECRET)


def test_events_arrive_signed_and_in_their_order(own, receiver):
    shop = Shop(own, own.client().v1)
    subscription = shop.subscribe(shop.customer(), shop.price(1900))
    own.drain()
    assert receiver.types() == [event.type for event in shop.events()]
    assert receiver.types()[-1] == "invoice.payment_succeeded"
    # The receiver let the library verify every signature; here it is computed apart.
    event = json.dumps(json.loads(str(receiver.events[0])), indent=2)
    fields = dict(part.split("=", 1) for part in receiver.signatures[0].split(","))
    assert set(fields) == {"t", "v1"}
    assert len(fields["v1"]) == hmac.new(b"", b"", hashlib.sha256).digest_size * 2
    with pytest.raises(stripe.SignatureVerificationError):
        stripe.Webhook.construct_event(event + " ", receiver.signatures[0], SECRET)
    told = next(e for e in receiver.events if e.type == "customer.subscription.created")
    assert (told.data.object.id, told.api_version) == (subscription.id, "2026-10-28.endive")
    assert told.request.id.startswith("req_sandbox_")


def test_a_refused_delivery_is_tried_again_until_taken(own, receiver):
    receiver.refuse = 2
    shop = Shop(own, own.client().v1)
    customer = shop.customer(card=None)
    own.drain(delivered=True)
    assert receiver.attempts == 3
    assert [event.data.object.id for event in receiver.events] == [customer.id]
    _, answer = own.call("GET", "/sandbox/deliveries?state=delivered")
    assert [(d["type"], d["attempts"], d["last_status"]) for d in answer["deliveries"]] == [
        ("customer.created", 3, 200)
    ]
    assert shop.events()[0].pending_webhooks == 0


def test_endpoints_hear_of_what_they_asked_for(sandbox, shop, receiver):
    endpoint = shop.v1.webhook_endpoints.create({"url": receiver.url, "enabled_events": ["product.created"]})
    assert endpoint.secret.startswith("whsec_")
    listed = shop.v1.webhook_endpoints.retrieve(endpoint.id)
    assert "secret" not in listed.to_dict()
    product = shop.v1.products.create({"name": "x"})
    shop.v1.products.update(product.id, {"name": "y"})
    shop.v1.webhook_endpoints.update(endpoint.id, {"disabled": True})
    shop.v1.products.create({"name": "z"})
    _, answer = sandbox.call("GET", f"/sandbox/deliveries?endpoint={endpoint.id}")
    assert [delivery["type"] for delivery in answer["deliveries"]] == ["product.created"]
    shop.v1.webhook_endpoints.delete(endpoint.id)


def test_webhooks_stay_on_this_machine(shop):
    with pytest.raises(stripe.InvalidRequestError, match="this machine only"):
        shop.v1.webhook_endpoints.create({"url": "https://example.com/hook", "enabled_events": ["*"]})
    with pytest.raises(stripe.InvalidRequestError, match="this machine only"):
        shop.v1.webhook_endpoints.create({"url": "http://127.0.0.1.example.com/", "enabled_events": ["*"]})


def test_held_events_are_let_go_in_any_order_and_more_than_once(own, receiver):
    shop = Shop(own, own.client().v1)
    own.call("POST", "/sandbox/deliveries/hold")
    shop.subscribe(shop.customer(), shop.price(1900))
    own.drain()
    assert receiver.events == []
    happened = [event.type for event in shop.events()]
    _, answer = own.call("POST", "/sandbox/deliveries/release", {"order": "shuffled", "seed": 7, "copies": 2})
    own.drain()
    assert receiver.types() == answer["result"]
    assert sorted(receiver.types()) == sorted(happened * 2)
    assert receiver.types()[: len(happened)] != happened
    assert len({event.id for event in receiver.events}) == len(happened)


def test_only_some_types_may_be_held(own, receiver):
    shop = Shop(own, own.client().v1)
    own.call("POST", "/sandbox/deliveries/hold", {"types": ["customer.created"]})
    shop.v1.customers.update(shop.customer(card=None).id, {"name": "x"})
    own.drain()
    assert receiver.types() == ["customer.updated"]
    own.call("POST", "/sandbox/deliveries/release", {"order": "reversed"})
    own.drain()
    assert receiver.types() == ["customer.updated", "customer.created"]


def test_an_event_can_be_sent_again(own, receiver):
    shop = Shop(own, own.client().v1)
    shop.customer(card=None)
    own.drain()
    event = receiver.events[0].id
    assert own.call("POST", f"/sandbox/events/{event}/resend") == (200, {"sandbox": True, "result": 1})
    own.drain()
    assert [e.id for e in receiver.events] == [event, event]


def test_events_are_listed_by_type_and_time(shop):
    product = shop.v1.products.create({"name": "x"})
    shop.v1.products.update(product.id, {"name": "y"})
    found = [e for e in shop.events(types=["product.created", "product.updated"]) if e.data.object.id == product.id]
    assert [event.type for event in found] == ["product.created", "product.updated"]
    assert found[1].data.previous_attributes.name == "x"
    assert shop.v1.events.retrieve(found[0].id).data.object.name == "x"
    assert shop.v1.events.list({"type": "product.*", "created": {"gt": found[1].created + 60}}).data == []
    with pytest.raises(stripe.InvalidRequestError, match="type, types"):
        shop.v1.events.list({"type": "product.created", "types": ["product.created"]})
