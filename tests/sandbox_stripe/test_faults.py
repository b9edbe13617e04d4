"""Faults on demand: errors, silence, broken connections before and after the effect, a sandbox that is gone."""

from __future__ import annotations

import secrets

import pytest
import stripe


@pytest.fixture(autouse=True)
def _no_faults_left(sandbox):
    yield
    sandbox.call("DELETE", "/sandbox/faults")
    sandbox.call("POST", "/sandbox/outage", {"seconds": 0})


def _arm(sandbox, **fault):
    status, armed = sandbox.call("POST", "/sandbox/faults", fault)
    assert status == 201, armed
    return armed


@pytest.mark.parametrize(
    ("status", "kind"), [(429, stripe.RateLimitError), (500, stripe.APIError), (503, stripe.APIError)]
)
def test_errors_strike_the_next_matching_requests_without_effect(sandbox, shop, status, kind):
    email = f"{secrets.token_hex(8)}@example.com"
    _arm(sandbox, fault="status", status=status, method="POST", path="/v1/customers*", count=2)
    assert shop.v1.customers.list({"email": email}).data == []
    for _ in range(2):
        with pytest.raises(kind) as refused:
            shop.v1.customers.create({"email": email})
        assert refused.value.http_status == status
    shop.v1.customers.create({"email": email})
    assert len(shop.v1.customers.list({"email": email}).data) == 1


def test_every_third_request_may_be_struck(sandbox, shop):
    _arm(sandbox, status=503, path="/v1/balance", every=3, count=None)
    outcomes = []
    for _ in range(6):
        try:
            shop.v1.balance.retrieve()
            outcomes.append(True)
        except stripe.APIError:
            outcomes.append(False)
    assert outcomes == [True, True, False] * 2


def test_an_effect_whose_answer_was_lost_is_replayed_to_the_retry(sandbox, shop):
    email = f"{secrets.token_hex(8)}@example.com"
    _arm(sandbox, fault="cut", method="POST", path="/v1/customers")
    options = {"idempotency_key": secrets.token_hex(8)}
    with pytest.raises(stripe.APIConnectionError):
        shop.v1.customers.create({"email": email}, options)
    again = shop.v1.customers.create({"email": email}, options)
    assert again.last_response.headers["idempotent-replayed"] == "true"
    assert [c.id for c in shop.v1.customers.list({"email": email}).data] == [again.id]


def test_without_a_key_a_lost_answer_means_two_effects(sandbox, shop):
    email = f"{secrets.token_hex(8)}@example.com"
    headers = {"authorization": "Bearer sk_test_tests"}
    _arm(sandbox, fault="cut", method="POST", path="/v1/customers")
    with pytest.raises((ConnectionError, OSError)):
        sandbox.call("POST", f"/v1/customers?email={email}", headers=headers)
    assert sandbox.call("POST", f"/v1/customers?email={email}", headers=headers)[0] == 200
    assert len(shop.v1.customers.list({"email": email}).data) == 2


def test_a_fault_that_the_key_remembers_is_answered_again_and_another_key_is_free_of_it(sandbox, shop):
    email = f"{secrets.token_hex(8)}@example.com"
    _arm(sandbox, fault="broken", method="POST", path="/v1/customers")
    for _ in range(2):
        with pytest.raises(stripe.APIError) as refused:
            shop.v1.customers.create({"email": email}, {"idempotency_key": email})
        assert refused.value.http_status == 500
    assert refused.value.headers["idempotent-replayed"] == "true"
    made = shop.v1.customers.create({"email": email}, {"idempotency_key": f"{email}:2"})
    assert [c.id for c in shop.v1.customers.list({"email": email}).data] == [made.id]


def test_the_librarys_own_retry_survives_a_cut(sandbox, shop):
    email = f"{secrets.token_hex(8)}@example.com"
    _arm(sandbox, fault="cut", method="POST", path="/v1/customers")
    made = sandbox.client(retries=2).v1.customers.create({"email": email})
    assert [c.id for c in shop.v1.customers.list({"email": email}).data] == [made.id]


def test_a_connection_cut_before_the_effect_leaves_nothing(sandbox, shop):
    email = f"{secrets.token_hex(8)}@example.com"
    _arm(sandbox, fault="cut-before", method="POST", path="/v1/customers")
    with pytest.raises(stripe.APIConnectionError):
        shop.v1.customers.create({"email": email})
    assert shop.v1.customers.list({"email": email}).data == []


@pytest.mark.parametrize(("fault", "effects"), [("hang", 0), ("hang-after", 1)])
def test_a_silent_sandbox_lets_its_key_go_when_the_client_leaves(sandbox, shop, fault, effects):
    email = f"{secrets.token_hex(8)}@example.com"
    _arm(sandbox, fault=fault, method="POST", path="/v1/customers")
    impatient = stripe.StripeClient(
        "sk_test_tests",
        base_addresses={"api": sandbox.url},
        max_network_retries=0,
        http_client=stripe.RequestsClient(timeout=0.3),
    )
    options = {"idempotency_key": secrets.token_hex(8)}
    with pytest.raises(stripe.APIConnectionError):
        impatient.v1.customers.create({"email": email}, options)
    assert len(shop.v1.customers.list({"email": email}).data) == effects
    sandbox.client(retries=5).v1.customers.create({"email": email}, options)
    assert len(shop.v1.customers.list({"email": email}).data) == 1


def test_it_can_be_gone_for_a_while(sandbox, shop):
    assert sandbox.call("POST", "/sandbox/outage", {"seconds": 60})[1]["gone"]
    with pytest.raises(stripe.APIConnectionError):
        shop.v1.balance.retrieve()
    sandbox.call("POST", "/sandbox/outage", {"seconds": 0})
    assert shop.v1.balance.retrieve().object == "balance"


def test_faults_are_listed_and_disarmed(sandbox):
    armed = _arm(sandbox, fault="hang", path="/v1/nobody_asks")
    assert armed["id"] in [fault["id"] for fault in sandbox.call("GET", "/sandbox/faults")[1]["faults"]]
    assert sandbox.call("DELETE", f"/sandbox/faults/{armed['id']}")[0] == 204
    assert sandbox.call("DELETE", f"/sandbox/faults/{armed['id']}")[0] == 404


@pytest.mark.parametrize(
    "wish", [{"fault": "explode"}, {"status": 200}, {"count": 0}, {"often": 1}, {"path": 3}, {"every": True}]
)
def test_a_fault_that_is_not_understood_is_refused(sandbox, wish):
    assert sandbox.call("POST", "/sandbox/faults", wish)[0] == 400
