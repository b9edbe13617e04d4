"""A field that a request's message has not is refused by name, and nothing else is."""

from __future__ import annotations

import json
import re

import pytest

from gateway import request_fields
from gateway.bindings import Wire, read_bindings
from gateway.render import DESCRIPTOR_SET

KEY = {"authorization": "Bearer tk_test_good"}
CREDITS = "/api/admin/accounts/acme/credits"
KEYS = "/api/admin/keys"
EVENTS = "/api/billing/events"
PLANS = "/api/admin/plans"
CONTRACTS = DESCRIPTOR_SET.read_bytes()
POOL = request_fields.pool_of(CONTRACTS)
CHECKED = [
    binding
    for binding in read_bindings(CONTRACTS)
    if binding.wire is Wire.API and request_fields.body_message(binding, POOL) is not None
]


def refused(answer, *fields):
    assert answer.status == 400, answer.body
    info, bad = answer.json["details"]
    assert info["reason"] == "INVALID_REQUEST"
    assert [violation["field"] for violation in bad["fieldViolations"]] == list(fields)
    assert fields[0] in answer.json["message"]


@pytest.mark.parametrize(
    ("path", "body", "fields"),
    [
        (CREDITS, {"amontUsd": "5"}, ["amontUsd"]),
        (CREDITS, {"amountUsd": "5", "requestId": "r", "expires": "2027-01-01T00:00:00Z"}, ["expires"]),
        (CREDITS, {"AmountUsd": "5"}, ["AmountUsd"]),
        (CREDITS, {"": 1}, [""]),
        (CREDITS, {"a": {"b": [1, {"c": None}]}, "d": 1}, ["a", "d"]),
        (EVENTS, {"events": [{"id": "1"}, {"id": "2", "metrik": "x"}]}, ["events.metrik"]),
        (EVENTS, {"event": []}, ["event"]),
        (KEYS, {"accountId": "acme", "allowedModel": ["x"]}, ["allowedModel"]),
    ],
    ids=str,
)
def test_unknown_field_is_refused_by_name_and_reaches_nobody(gateway, services, path, body, fields):
    refused(gateway("POST", path, body, **KEY), *fields)
    assert services.calls == []


@pytest.mark.parametrize("binding", CHECKED, ids=lambda b: f"{b.method} {b.template}")
def test_every_call_with_a_body_refuses_an_unknown_field(gateway, services, binding):
    path = re.sub(r"\{[^}]*\}", "acme", binding.template)
    refused(gateway(binding.method, path, {"noSuchField": 1}, **KEY), "noSuchField")
    assert services.calls == []


@pytest.mark.parametrize(
    ("method", "path", "field"),
    [
        ("POST", CREDITS, "accountId"),
        ("POST", CREDITS, "account_id"),
        ("POST", f"{KEYS}/key-1/rotate", "keyId"),
        ("DELETE", f"{KEYS}/key-1", "keyId"),
        ("PATCH", f"{PLANS}/starter", "planId"),
    ],
)
def test_body_cannot_say_otherwise_what_the_path_says(gateway, services, method, path, field):
    """The transcoder sees it in one of the two spellings only; in the other the path would win, in silence."""
    refused(gateway(method, path, {field: "another"}, **KEY), field)
    assert services.calls == []


@pytest.mark.parametrize("field", ["accountId", "account_id"])
@pytest.mark.parametrize("said", ["acme", None])
def test_body_may_say_again_what_the_path_says(gateway, services, field, said):
    assert gateway("POST", CREDITS, {"amountUsd": "5", field: said}, **KEY).status == 200
    assert services.calls[0].request.account_id == "acme"


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("DELETE", "/api/billing/subscription"),
        ("DELETE", "/api/admin/keys/key-1"),
        ("GET", "/api/billing/transactions"),
        ("GET", "/api/credits/tiers/free"),
    ],
)
def test_body_of_a_call_that_asks_for_none_is_read_with_the_same_care(gateway, services, method, path):
    """The transcoder reads it all the same: a misspelt `now` would end a subscription a month later."""
    refused(gateway(method, path, {"noww": True}, **KEY), "noww")
    assert services.calls == []
    assert gateway(method, path, {}, **KEY).status == 200
    assert gateway(method, path, b"", **KEY).status == 200


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (CREDITS, {"amountUsd": "5", "requestId": "r"}),
        (CREDITS, {"amount_usd": "5", "request_id": "r"}),
        (CREDITS, {}),
        (CREDITS, None),
        (KEYS, {"accountId": "acme", "allowedModels": ["a", "b"], "expiresAt": "2027-01-01T00:00:00Z"}),
        (EVENTS, {"events": [{"id": "1", "labels": {"any key": "x", "noSuchField": "y"}}]}),
        (EVENTS, {"events": []}),
        (EVENTS, {"events": None}),
        (EVENTS, {"events": {"id": "1"}}),  # one, as the transcoder reads it
        (KEYS, {"accountId": "acme", "allowedModels": None, "expiresAt": None, "dailyLimitNanos": 5}),
        (PLANS, {"plan": {"planId": "x", "models": ["a"], "metrics": [{"metric": "seats"}]}}),
    ],
    ids=str,
)
def test_known_fields_in_either_spelling_pass(gateway, services, path, body):
    assert gateway("POST", path, body, **KEY).status == 200
    assert len(services.calls) == 1


@pytest.mark.parametrize(
    ("path", "body", "field"),
    [
        # Dropped in silence, it would make a key that no model is forbidden to.
        (KEYS, {"accountId": "acme", "allowedModels": [None]}, "allowedModels"),
        (KEYS, {"accountId": "acme", "allowedModels": ["gpt-4o", None]}, "allowedModels"),
        (KEYS, {"accountId": "acme", "allowedModels": [[]]}, "allowedModels"),
        (KEYS, {"accountId": "acme", "allowedModels": [["gpt-4o"]]}, "allowedModels"),
        (KEYS, {"accountId": "acme", "expiresAt": []}, "expiresAt"),
        (EVENTS, {"events": [{"id": "1"}, None]}, "events"),
        (EVENTS, {"events": [{"id": ["1"]}]}, "events.id"),
        (EVENTS, {"events": [{"labels": []}]}, "events.labels"),
        (EVENTS, {"events": [{"labels": {"a": ["b"]}}]}, "events.labels.a"),
        (CREDITS, {"amountUsd": ["5"]}, "amountUsd"),
        (CREDITS, {"amount_usd": []}, "amount_usd"),
        (CREDITS, [{"amountUsd": "5"}], "body"),
        (PLANS, {"plan": [{"planId": "x"}]}, "plan"),
        (PLANS, {"plan": {"models": [None]}}, "plan.models"),
    ],
    ids=str,
)
def test_list_or_null_where_none_can_be_is_refused_by_name(gateway, services, path, body, field):
    refused(gateway("POST", path, body, **KEY), field)
    assert services.calls == []


@pytest.mark.parametrize(
    ("path", "body", "field"),
    [
        # The transcoder takes the last, another reader the first.
        (CREDITS, b'{"amountUsd": "1", "amountUsd": "2"}', "amountUsd"),
        (CREDITS, b'{"amount_usd": "1", "amountUsd": "2"}', "amountUsd"),
        (CREDITS, b'{"amountUsd": "1", "amount_usd": null}', "amount_usd"),
        (CREDITS, b'{"account_id": "acme", "accountId": "acme"}', "accountId"),
        (EVENTS, b'{"events": [{"id": "1"}, {"id": "2", "quantity": 1, "quantity": 2}]}', "events.quantity"),
        (EVENTS, b'{"events": [{"labels": {"a": "1", "b": "2", "a": "3"}}]}', "events.labels.a"),
    ],
    ids=str,
)
def test_field_that_stands_twice_is_refused_by_name(gateway, services, path, body, field):
    refused(gateway("POST", path, body, **KEY), field)
    assert services.calls == []


def test_labels_that_only_look_alike_are_two(gateway, services):
    body = {"events": [{"id": "1", "labels": {"a_b": "1", "aB": "2", "ab": "3", "*": "4"}}]}
    assert gateway("POST", EVENTS, body, **KEY).status == 200
    assert len(services.calls[0].request.events[0].labels) == 4


def test_text_that_looks_like_a_field_is_text(gateway, services):
    text = 'a "noSuchField": 1, {"x": "\\'
    assert gateway("POST", CREDITS, {"description": text}, **KEY).status == 200
    assert services.calls[0].request.description == text


def test_spaces_between_tokens_make_no_difference(gateway, services):
    body = b' \n{\t"amountUsd"\r\n :\t"5" , "priority" : -3 \n} '
    assert gateway("POST", CREDITS, body, **KEY).status == 200
    refused(gateway("POST", CREDITS, b' { "x" : true , "amountUsd":"5"}', **KEY), "x")


@pytest.mark.parametrize(
    "body",
    [b'{"x"', b'{"x":', b'{"x":}', b'{"x" 1}', b"{x:1}", b'{"x":1,}', b"[", b'"x', b"{" * 200, b'{"a":' * 5000],
)
def test_what_is_not_json_is_a_400_all_the_same(gateway, services, body):
    answer = gateway("POST", CREDITS, body, **KEY)
    assert answer.status == 400
    assert answer.json["code"] == 3
    assert services.calls == []


def test_name_of_a_field_is_cut_and_escaped(gateway):
    answer = gateway("POST", CREDITS, {'"\n\\' + "x" * 10_000: 1}, **KEY)
    assert answer.status == 400
    assert len(answer.body) < 2000


def test_many_unknown_fields_are_told_up_to_twenty(gateway):
    answer = gateway("POST", CREDITS, {f"field{number}": 1 for number in range(1000)}, **KEY)
    assert len(answer.json["details"][1]["fieldViolations"]) == 20


def test_large_body_of_our_own_api_passes(gateway, services):
    events = [{"id": str(number), "metric": "api_calls", "quantity": "1"} for number in range(50_000)]
    body = json.dumps({"events": events}).encode()
    assert len(body) > 2 * 1024 * 1024
    assert gateway("POST", EVENTS, body, **KEY).status == 200
    assert len(services.calls[0].request.events) == 50_000


def test_body_of_more_values_than_any_call_takes_is_refused_before_it_is_read_on(gateway, services):
    """Each value costs, and meanwhile the calls of others wait: ten million bytes may hold millions of them."""
    answer = gateway("POST", EVENTS, b'{"events":[' + b"{}," * 1_000_000 + b"{}]}", **KEY)
    assert answer.status == 400
    assert answer.json["message"] == "The body has more than 1000000 values."
    assert services.calls == []


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/messages", "/api/ai/openai", "/webhook/stripe"])
def test_bodies_that_pass_as_they_came_are_not_looked_at(gateway, services, path):
    assert gateway("POST", path, {"noSuchField": 1}, **KEY).status == 200
    assert len(services.calls) == 1


def test_body_of_an_unknown_caller_is_not_read(gateway, services):
    from envoy.service.auth.v3 import external_auth_pb2  # noqa: PLC0415

    def deny(_request):
        answer = external_auth_pb2.CheckResponse()
        answer.status.code = 16
        answer.denied_response.status.code = 401
        return answer

    services.deny = deny
    assert gateway("POST", CREDITS, {"noSuchField": 1}).status == 401
