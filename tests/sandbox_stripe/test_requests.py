"""What every request goes through: keys, parameters, idempotency, lists, expansion, metadata, errors."""

from __future__ import annotations

import secrets
import threading
import time

import pytest
import stripe
from sandbox_stripe_process import KEY


def test_a_wrong_key_is_refused_as_stripe_refuses_it(sandbox):
    with pytest.raises(stripe.AuthenticationError) as refused:
        sandbox.client("sk_test_somebody_else_entirely").v1.customers.list()
    assert refused.value.http_status == 401
    assert "Invalid API Key provided: sk_test_********" in str(refused.value)
    assert sandbox.call("GET", "/v1/customers")[0] == 401
    basic = "Basic c2tfdGVzdF90ZXN0czo="  # the key and no password
    assert sandbox.call("GET", "/v1/customers", headers={"authorization": basic})[0] == 200


def test_it_says_that_it_is_a_sandbox(sandbox, shop):
    assert sandbox.banner.startswith("SANDBOX Stripe (no real money is ever moved) listening on http://127.0.0.1:")
    assert sandbox.call("GET", "/healthz") == (200, {"status": "ok", "sandbox": True})
    customer = shop.customer(card=None)
    assert customer.id.startswith("cus_1Sandbox")
    assert customer.livemode is False
    headers = customer.last_response.headers
    assert headers["server"] == "tollkeeper-sandbox-stripe"
    assert headers["request-id"].startswith("req_sandbox_")


@pytest.mark.parametrize(
    ("params", "message", "param", "code"),
    [
        pytest.param(
            {"currency": "usd", "colour": "red"},
            "Received unknown parameter: colour",
            "colour",
            "parameter_unknown",
            id="unknown",
        ),
        pytest.param(
            {"currency": "usd", "recurring": {"interval": "month", "often": 1}},
            "Received unknown parameter: recurring[often]",
            "recurring[often]",
            "parameter_unknown",
            id="unknown-inside",
        ),
        pytest.param(
            {"unit_amount": 1}, "Missing required param: currency.", "currency", "parameter_missing", id="missing"
        ),
        pytest.param(
            {"currency": "usd", "unit_amount": "ten"},
            "Invalid integer: ten",
            "unit_amount",
            "parameter_invalid_integer",
            id="no-integer",
        ),
        pytest.param(
            {"currency": "usd", "recurring": {"interval": "fortnight"}},
            "Invalid recurring[interval]: must be one of day, month, week, or year",
            "recurring[interval]",
            None,
            id="no-such-word",
        ),
        pytest.param(
            {"currency": "usd", "product": "prod_none", "unit_amount": 1},
            "No such product: 'prod_none'",
            "product",
            "resource_missing",
            id="no-such-object",
        ),
    ],
)
def test_bad_parameters_are_refused_in_stripes_words(shop, params, message, param, code):
    with pytest.raises(stripe.InvalidRequestError) as refused:
        shop.v1.prices.create(params)
    assert refused.value.http_status == 400
    assert message in str(refused.value)
    assert (refused.value.param, refused.value.code) == (param, code)


def test_what_is_not_built_is_refused_and_not_ignored(shop):
    with pytest.raises(stripe.InvalidRequestError, match=r"SANDBOX: .*'discounts") as refused:
        shop.v1.subscriptions.create({"customer": "cus_x", "discounts": [{"coupon": "half"}]})
    assert refused.value.code == "sandbox_not_built"
    with pytest.raises(stripe.InvalidRequestError, match="Unrecognized request URL"):
        shop.v1.coupons.list()


def test_a_missing_object_is_a_404(shop):
    with pytest.raises(stripe.InvalidRequestError) as refused:
        shop.v1.customers.retrieve("cus_none")
    assert (refused.value.http_status, refused.value.code) == (404, "resource_missing")
    assert "No such customer: 'cus_none'" in str(refused.value)


def test_a_refused_request_leaves_nothing(shop):
    product = f"prod_{secrets.token_hex(6)}"
    with pytest.raises(stripe.InvalidRequestError):
        shop.v1.prices.create({"currency": "usd", "product_data": {"name": "x", "id": product}, "unit_amount": -1})
    with pytest.raises(stripe.InvalidRequestError, match="No such product"):
        shop.v1.products.retrieve(product)


def test_a_replayed_key_has_the_first_answer_and_one_effect(shop):
    options = {"idempotency_key": secrets.token_hex(8)}
    email = f"{secrets.token_hex(8)}@example.com"
    first = shop.v1.customers.create({"email": email}, options)
    second = shop.v1.customers.create({"email": email}, options)
    assert first.id == second.id
    assert "idempotent-replayed" not in first.last_response.headers
    assert second.last_response.headers["idempotent-replayed"] == "true"
    assert len(shop.v1.customers.list({"email": email}).data) == 1


def test_a_key_with_other_parameters_is_refused(shop):
    options = {"idempotency_key": secrets.token_hex(8)}
    shop.v1.customers.create({"name": "one"}, options)
    with pytest.raises(stripe.IdempotencyError, match="same parameters") as refused:
        shop.v1.customers.create({"name": "two"}, options)
    assert refused.value.http_status == 400
    with pytest.raises(stripe.IdempotencyError, match="same endpoint"):
        shop.v1.products.create({"name": "one"}, options)


def test_a_declined_card_is_replayed_as_declined(shop):
    customer = shop.customer(card=None)
    params = {
        "amount": 900,
        "currency": "usd",
        "customer": customer.id,
        "payment_method": "pm_card_chargeDeclined",
        "confirm": True,
    }
    options = {"idempotency_key": secrets.token_hex(8)}
    for _ in range(2):
        with pytest.raises(stripe.CardError):
            shop.v1.payment_intents.create(params, options)
    assert len(shop.v1.payment_intents.list({"customer": customer.id}).data) == 1


def test_a_refused_request_does_not_use_up_its_key(shop):
    options = {"idempotency_key": secrets.token_hex(8)}
    with pytest.raises(stripe.InvalidRequestError):
        shop.v1.products.create({"name": "x", "colour": "red"}, options)
    assert shop.v1.products.create({"name": "x"}, options).name == "x"


def test_a_key_in_use_is_a_conflict(sandbox, shop):
    key = {"idempotency_key": secrets.token_hex(8)}
    sandbox.call(
        "POST", "/sandbox/faults", {"fault": "slow", "path": "/v1/products", "method": "POST", "delay_ms": 2000}
    )
    first = threading.Thread(target=shop.v1.products.create, args=({"name": "slow"}, key))
    first.start()
    deadline = time.monotonic() + 10
    while sandbox.call("GET", "/sandbox/faults")[1]["faults"] and time.monotonic() < deadline:
        time.sleep(0.01)
    with pytest.raises(stripe.StripeError) as refused:
        shop.v1.products.create({"name": "slow"}, key)
    first.join()
    assert (refused.value.http_status, refused.value.error.code) == (409, "idempotency_key_in_use")


def test_lists_come_in_pages_both_ways(shop):
    email = f"{secrets.token_hex(8)}@example.com"
    made = [shop.v1.customers.create({"email": email, "name": str(n)}).id for n in range(5)]
    newest = made[::-1]
    page = shop.v1.customers.list({"email": email, "limit": 2})
    assert ([c.id for c in page.data], page.has_more) == (newest[:2], True)
    following = shop.v1.customers.list({"email": email, "limit": 2, "starting_after": newest[1]})
    assert [c.id for c in following.data] == newest[2:4]
    back = shop.v1.customers.list({"email": email, "limit": 2, "ending_before": newest[4]})
    assert ([c.id for c in back.data], back.has_more) == (newest[2:4], True)
    every = shop.v1.customers.list({"email": email, "limit": 2}).auto_paging_iter()
    assert [c.id for c in every] == newest
    with pytest.raises(stripe.InvalidRequestError, match="less than or equal to 100"):
        shop.v1.customers.list({"limit": 101})
    with pytest.raises(stripe.InvalidRequestError, match="No such"):
        shop.v1.customers.list({"starting_after": "cus_none"})


def test_created_filters_are_kept(shop):
    customer = shop.customer(card=None)
    for wanted, found in (
        ({"gte": customer.created}, True),
        ({"gt": customer.created}, False),
        (customer.created, True),
    ):
        listed = shop.v1.customers.list({"email": customer.email, "created": wanted})
        assert [c.id for c in listed.data] == ([customer.id] if found else [])


def test_expansion_goes_through_lists_and_objects(shop):
    customer = shop.customer()
    subscription = shop.subscribe(customer, shop.price(500), expand=["latest_invoice.payments", "customer"])
    assert subscription.customer.email == customer.email
    intent = subscription.latest_invoice.payments.data[0].payment.payment_intent
    listed = shop.v1.subscriptions.list({"customer": customer.id, "expand": ["data.items.data.price.product"]})
    assert listed.data[0]["items"].data[0].price.product.name == "Plan"
    paid = shop.v1.payment_intents.retrieve(intent, {"expand": ["latest_charge.balance_transaction"]})
    assert paid.latest_charge.balance_transaction.net == 500 - 45
    with pytest.raises(stripe.InvalidRequestError, match="cannot be expanded"):
        shop.v1.customers.retrieve(customer.id, {"expand": ["email"]})


def test_metadata_is_merged_and_empty_values_take_keys_away(shop):
    customer = shop.v1.customers.create({"metadata": {"a": "1", "b": "2"}})
    assert shop.v1.customers.update(customer.id, {"metadata": {"b": "", "c": "3"}}).metadata.to_dict() == {
        "a": "1",
        "c": "3",
    }
    assert shop.v1.customers.update(customer.id, {"metadata": ""}).metadata.to_dict() == {}
    with pytest.raises(stripe.InvalidRequestError, match="at most 50 keys"):
        shop.v1.customers.update(customer.id, {"metadata": {str(n): "x" for n in range(51)}})


def test_searches_find_by_field_and_metadata(shop):
    account = secrets.token_hex(8)
    customer = shop.v1.customers.create({"email": f"{account}@example.com", "metadata": {"account": account}})
    for query in (f"metadata['account']:'{account}'", f"email:'{account}@example.com' AND created>0"):
        found = shop.v1.customers.search({"query": query})
        assert [c.id for c in found.data] == [customer.id]
    assert (
        shop.v1.customers.search({"query": f"metadata['account']:'{account}' AND -email:'{account}@example.com'"}).data
        == []
    )
    with pytest.raises(stripe.InvalidRequestError, match="unable to parse"):
        shop.v1.customers.search({"query": "where x = 1"})


def test_lookup_keys_move_only_when_told_to(shop):
    key = secrets.token_hex(8)
    first = shop.price(100, lookup_key=key)
    with pytest.raises(stripe.InvalidRequestError, match="already uses that lookup key"):
        shop.price(200, lookup_key=key)
    second = shop.price(200, lookup_key=key, transfer_lookup_key=True)
    assert [p.id for p in shop.v1.prices.list({"lookup_keys": [key]}).data] == [second.id]
    assert shop.v1.prices.retrieve(first.id).lookup_key is None


def test_amounts_finer_than_a_cent_are_kept_exactly(shop):
    product = shop.v1.products.create({"name": "Tokens"})
    price = shop.v1.prices.create({"product": product.id, "currency": "usd", "unit_amount_decimal": "0.000000000002"})
    assert (price.unit_amount, str(price.to_dict()["unit_amount_decimal"])) == (None, "2E-12")
    assert b'"unit_amount_decimal": "0.000000000002"' in str(price.last_response.body).encode()
    with pytest.raises(stripe.InvalidRequestError, match="12 decimal places"):
        shop.v1.prices.create({"product": product.id, "currency": "usd", "unit_amount_decimal": "0.0000000000002"})


def test_an_id_of_the_callers_choice_is_taken_once(shop):
    identifier = f"plan_{secrets.token_hex(6)}"
    assert shop.v1.products.create({"id": identifier, "name": "x"}).id == identifier
    with pytest.raises(stripe.InvalidRequestError) as refused:
        shop.v1.products.create({"id": identifier, "name": "y"})
    assert refused.value.code == "resource_already_exists"


def test_several_keys_may_be_accepted(start_sandbox):
    own = start_sandbox("--api-key", "sk_test_rotated")
    for key in (KEY, "sk_test_rotated"):
        assert own.client(key).v1.customers.list().data == []
