"""From a free key to a paid plan by clicks, through Envoy: Stripe's pages and its signed webhooks, nothing else."""

import hashlib
import hmac
import json
import time

import pytest
from subscriptions_stripe import VISA

# What is paid is there within this: about two seconds, where nothing else runs.
GRANTED_SECONDS = 10
CREDIT_NANOS = 19_800_000_000
QUESTION = {"model": "gpt-4o", "messages": [{"role": "user", "content": "What is a toll?"}], "max_tokens": 8}


@pytest.fixture
def stripe(suite):
    return suite.sandbox_stripe()


def test_customer_upgrades_by_a_click_and_may_call_within_seconds(suite, stripe, eventually):
    customer = suite.customer(plan="free")
    assert suite.post("/v1/chat/completions", QUESTION, customer.key).status == 403
    page = suite.post("/api/credits/upgrade", {"tier": "professional"}, customer.key).body["checkoutUrl"]
    status, shown = stripe.get(page)
    assert status == 200
    assert b"99.00" in shown
    stripe.declined(page)
    assert suite.get("/api/credits/current-tier", customer.key).body["tier"] == "free"
    stripe.pay(page, VISA)
    eventually(lambda: suite.post("/v1/chat/completions", QUESTION, customer.key).status == 200, GRANTED_SECONDS)
    grants = suite.get("/api/billing/transactions?type=subscription_grant", customer.key).body["transactions"]
    assert [int(grant["amountNanos"]) for grant in grants] == [CREDIT_NANOS]
    (invoice,) = suite.get("/api/billing/invoices", customer.key).body["invoices"]
    assert stripe.get(invoice["invoicePdfUrl"])[1].startswith(b"%PDF-")


def test_top_up_is_there_once_however_often_stripe_tells_of_it(suite, stripe, eventually):
    customer = suite.customer()
    page = suite.post("/api/billing/topup", {"amountUsd": "25.00", "requestId": "first"}, customer.key)
    assert page.status == 200, page.body
    session = stripe.pay(page.body["checkoutUrl"], VISA)
    eventually(lambda: suite.available(customer.key) == 25 * 10**9)
    told = stripe.events(types=["checkout.session.completed", "payment_intent.succeeded"])
    ours = [event.id for event in told if event.data.object.to_dict().get("customer") == session["customer"]]
    assert len(ours) == 2
    for event_id in ours * 3:
        stripe.resend(event_id)
    stripe.drain()
    purchases = suite.get("/api/billing/transactions?type=credit_purchase", customer.key).body["transactions"]
    assert [int(purchase["amountNanos"]) for purchase in purchases] == [25 * 10**9]


def signed(suite, body, at=None):
    """The header that says that Stripe has sent this body."""
    at = int(time.time()) if at is None else at
    secret = suite.env["STRIPE_WEBHOOK_SECRET"].encode()
    value = hmac.new(secret, f"{at}.".encode() + body, hashlib.sha256).hexdigest()
    return f"t={at},v1={value}"


BODY = json.dumps({"id": "evt_e2e", "object": "event", "type": "x.y", "created": 1, "data": {"object": {"é": 1.50}}})
RAW = BODY.replace("1.5", "1.50").encode()


def delivered(suite, body, signature):
    answer = suite.call("POST", "/webhook/stripe", body=body, headers={"stripe-signature": signature})
    return answer.status


def test_webhook_is_taken_as_the_bytes_that_were_signed(suite):
    assert delivered(suite, RAW, signed(suite, RAW)) == 200


@pytest.mark.parametrize("how", ["forged", "stale", "truncated", "encoded-anew", "unsigned"])
def test_webhook_that_stripe_did_not_just_sign_is_a_400_and_a_line_in_the_log(suite, how):
    body, signature = {
        "forged": (RAW, signed(suite, RAW)[:-4] + "0000"),
        "stale": (RAW, signed(suite, RAW, at=int(time.time()) - 301)),
        "truncated": (RAW[:-1], signed(suite, RAW)),
        "encoded-anew": (json.dumps(json.loads(RAW)).encode(), signed(suite, RAW)),
        "unsigned": (RAW, ""),
    }[how]
    log = suite.home / "logs" / "subscriptions.log"
    before = log.read_text().count("webhook refused")
    assert delivered(suite, body, signature) == 400
    assert log.read_text().count("webhook refused") == before + 1
