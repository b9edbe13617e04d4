"""Bad input from outside: a clear error naming the field, never a 5xx, and nothing written."""

import concurrent.futures
import contextlib
import http.client

import grpc
import pytest
from tollkeeper.ledger.v1 import ledger_service_pb2 as ledger_pb
from tollkeeper.ledger.v1.ledger_service_pb2_grpc import LedgerServiceStub

LONG = "a" * 10_000

# path, body, the field that the answer has to name
ADMIN_CASES = [
    ("/api/admin/accounts", {"accountId": ""}, "account_id"),
    ("/api/admin/accounts", {"accountId": LONG}, "account_id"),
    ("/api/admin/accounts", {"accountId": "no spaces"}, "account_id"),
    ("/api/admin/accounts", {"accountId": "x1", "plan": "no-such-plan"}, "plan"),
    ("/api/admin/accounts", {"accountId": "x1", "displayName": LONG}, "display_name"),
    ("/api/admin/accounts", {"accountId": "x1", "displayName": "nul \0 in it"}, "display_name"),
    ("/api/admin/accounts", {"accountId": {"not": "a string"}}, "accountId"),
    ("/api/admin/accounts/demo/credits", {"amountUsd": "-1.00", "requestId": "b1"}, "amount_usd"),
    ("/api/admin/accounts/demo/credits", {"amountUsd": "1.0000000001", "requestId": "b1"}, "amount_usd"),
    ("/api/admin/accounts/demo/credits", {"amountUsd": "1e3", "requestId": "b1"}, "amount_usd"),
    ("/api/admin/accounts/demo/credits", {"amountUsd": "ten", "requestId": "b1"}, "amount_usd"),
    ("/api/admin/accounts/demo/credits", {"amountUsd": "99999999999999999999", "requestId": "b1"}, "amount_usd"),
    ("/api/admin/accounts/demo/credits", {"amountNanos": "-5", "requestId": "b1"}, "amount_nanos"),
    ("/api/admin/accounts/demo/credits", {"amountNanos": 1.5, "requestId": "b1"}, "amountNanos"),
    ("/api/admin/accounts/demo/credits", {"amountNanos": "many", "requestId": "b1"}, "amountNanos"),
    ("/api/admin/accounts/demo/credits", {"amountNanos": 9223372036854775808, "requestId": "b1"}, "amountNanos"),
    ("/api/admin/accounts/demo/credits", {"amountNanos": 5, "amountUsd": "1", "requestId": "b1"}, "amount_usd"),
    ("/api/admin/accounts/demo/credits", {"requestId": "b1"}, "amount_nanos"),
    ("/api/admin/accounts/demo/credits", {"amountNanos": 5}, "request_id"),
    ("/api/admin/accounts/demo/credits", {"amountNanos": 5, "requestId": LONG}, "request_id"),
    ("/api/admin/accounts/demo/credits", {"amountNanos": 5, "requestId": "b1", "source": "gift"}, "source"),
    ("/api/admin/accounts/demo/limits", {"window": "fortnight", "amountUsd": "5"}, "window"),
    ("/api/admin/accounts/demo/limits", {"window": "day", "amountUsd": "-5"}, "amount_usd"),
    ("/api/admin/accounts/demo/limits", {"window": "day", "unit": "tokens", "amountUsd": "5"}, "amount"),
    ("/api/admin/keys", {"accountId": "demo", "keyType": "super"}, "key_type"),
    ("/api/admin/keys", {"accountId": "demo", "dailyLimitUsd": "-1"}, "daily_limit_usd"),
    ("/api/admin/keys", {"accountId": "demo", "expiresAt": "2020-01-01T00:00:00Z"}, "expires_at"),
    ("/api/admin/keys", {"accountId": "demo", "expiresAt": "soon"}, "expiresAt"),
    ("/api/admin/keys", {"accountId": "demo", "prefix": "NO GOOD"}, "prefix"),
]

CHAT_CASES = [
    ({}, "model"),
    ({"model": 5, "messages": []}, "model"),
    ({"model": LONG, "messages": []}, "model"),
    ({"model": "gpt-4o"}, "messages"),
    ({"model": "gpt-4o", "messages": "hello"}, "messages"),
    ({"model": "gpt-4o", "messages": [{"role": "user", "content": "x"}], "max_tokens": -1}, "max_tokens"),
    ({"model": "gpt-4o", "messages": [{"role": "user", "content": "x"}], "max_tokens": "ten"}, "max_tokens"),
    ({"model": "gpt-4o", "messages": [{"role": "user", "content": "x"}], "stream": "yes"}, "stream"),
    ({"model": "gpt-4o", "messages": [{"role": "user", "content": "x"}], "n": 10_000}, "n"),
]


def written(suite):
    """What a refused request must not change."""
    journal = suite.get("/api/billing/transactions?accountId=demo&pageSize=1000", suite.admin_key).body
    accounts = suite.get("/api/admin/accounts?pageSize=1000", suite.admin_key).body["accounts"]
    keys = suite.get("/api/admin/keys?accountId=demo&pageSize=1000", suite.admin_key).body
    return journal, [account["accountId"] for account in accounts], keys


@pytest.mark.parametrize(("path", "body", "field"), ADMIN_CASES)
def test_bad_request_names_the_field_and_writes_nothing(suite, path, body, field):
    before = written(suite)
    answer = suite.post(path, body, suite.admin_key)
    assert answer.status in {400, 404}, answer.body
    named = str(answer.body).replace("_", "").lower()
    assert field.replace("_", "").lower() in named, answer.body
    assert answer.body["details"][0]["reason"]
    assert written(suite) == before


@pytest.mark.parametrize(("body", "field"), CHAT_CASES)
def test_bad_model_call_names_the_field_in_the_sdk_shape(suite, body, field):
    before = suite.sandbox_requests()["totals"]
    answer = suite.post("/v1/chat/completions", body, suite.env["TOLLKEEPER_DEMO_KEY"])
    assert answer.status == 400, answer.body
    assert set(answer.body) == {"error"}
    assert field in answer.body["error"]["message"], answer.body
    assert suite.sandbox_requests()["totals"] == before


@pytest.mark.parametrize("raw", [b"{not json", b"[1, 2]", b'"text"', b"\xff\xfe", b"{" * 10_000, b""])
def test_malformed_json_is_a_400(suite, raw):
    assert suite.post("/v1/chat/completions", raw, suite.env["TOLLKEEPER_DEMO_KEY"]).status == 400
    assert suite.post("/api/admin/accounts", raw, suite.admin_key).status == 400


@pytest.mark.parametrize(
    ("part", "field"),
    [
        (b'"tools": [' + b"[]," * 100_000 + b"[]]", "tools"),
        (b'"messages": [' + b"{}," * 100_000 + b"{}]", "messages"),
        (b'"messages": [' + b"0," * 100_000 + b"0]", "messages"),
        (b'"messages": [{"role": "user", "content": [' + b"{}," * 100_000 + b"{}]}]", "messages"),
        (b'"metadata": ' + b"[" * 300 + b"]" * 300, "body"),
        (b'"tools": ' + b"[" * 300 + b"]" * 300, "body"),
    ],
)
def test_request_of_too_many_or_too_deep_things_is_refused_before_it_costs_anything(suite, part, field):
    messages = b"" if part.startswith(b'"messages"') else b'"messages": [{"role": "user", "content": "x"}], '
    raw = b'{"model": "gpt-4o", ' + messages + part + b"}"
    answer = suite.post("/v1/chat/completions", raw, suite.env["TOLLKEEPER_DEMO_KEY"])
    assert answer.status == 400, answer.body
    assert field in answer.body["error"]["message"], answer.body


def test_headers_that_grpc_cannot_take_are_no_500(suite):
    key = suite.env["TOLLKEEPER_DEMO_KEY"]
    assert suite.get("/v1/models", key, headers={"x-odd-bin": "!!!!"}).status == 200
    assert suite.get("/v1/models", key, headers={"x-long": "x" * 12_000}).status == 200
    assert suite.get("/v1/models", headers={"authorization": "Bearer \xe9tk_live_secret"}).status in {400, 401}
    assert "tk_live_secret" not in (suite.home / "logs" / "proxy.log").read_text()


def test_racing_key_requests_enforce_the_limit_that_the_key_shows(suite):
    account = suite.customer().account_id

    def make(number):
        body = {"accountId": account, "requestId": "same", "dailyLimitUsd": f"{number}.00"}
        return suite.post("/api/admin/keys", body, suite.admin_key)

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        answers = [answer for answer in pool.map(make, range(1, 9)) if answer.status == 200]
    (record,) = [answer.body["record"] for answer in answers]
    stub = LedgerServiceStub(grpc.insecure_channel(suite.env["TOLLKEEPER_LEDGER_ADDR"]))
    token = (("authorization", f"Bearer {suite.service_token}"),)
    # Limits of the requests that lost may be left: of keys that were never made, so they limit nobody.
    request = ledger_pb.ListLimitsRequest(account_id=account, scope="key", subject=record["keyId"])
    (limit,) = stub.ListLimits(request, metadata=token, timeout=10).limits
    assert (limit.window, limit.amount) == ("day", int(record["dailyLimitNanos"]))


def test_body_over_the_limit_is_a_413(suite):
    raw = b'{"model": "gpt-4o", "messages": [{"role": "user", "content": "' + b"x" * (11 << 20) + b'"}]}'
    for path, key in (
        ("/v1/chat/completions", suite.env["TOLLKEEPER_DEMO_KEY"]),
        ("/api/admin/accounts", suite.admin_key),
    ):
        connection = http.client.HTTPConnection(suite.url.removeprefix("http://"), timeout=30)
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # answered before all of it was sent
            connection.request(
                "POST", path, raw, {"content-type": "application/json", "authorization": f"Bearer {key}"}
            )
        assert connection.getresponse().status == 413
        connection.close()


def test_unknown_account_and_path_are_404(suite):
    credit = {"amountNanos": 5, "requestId": "b2"}
    unknown = suite.post("/api/admin/accounts/nobody/credits", credit, suite.admin_key)
    assert (unknown.status, unknown.body["details"][0]["reason"]) == (404, "ACCOUNT_NOT_FOUND")
    key = suite.post("/api/admin/keys", {"accountId": "nobody"}, suite.admin_key)
    assert (key.status, key.body["details"][0]["reason"]) == (404, "ACCOUNT_NOT_FOUND")
    assert suite.get("/api/no/such/path", suite.admin_key).status == 404
    assert suite.get("/v1/no/such/path", suite.env["TOLLKEEPER_DEMO_KEY"]).body["error"]


def test_same_request_id_credits_once_and_another_body_is_a_409(suite):
    customer = suite.customer()
    path = f"/api/admin/accounts/{customer.account_id}/credits"
    body = {"amountUsd": "1.00", "requestId": "once"}
    first, again = (suite.post(path, body, suite.admin_key) for _ in range(2))
    assert first.body == again.body
    assert suite.available(customer.key) == 10**9
    other = suite.post(path, body | {"amountUsd": "2.00"}, suite.admin_key)
    assert (other.status, other.body["details"][0]["reason"]) == (409, "IDEMPOTENCY_CONFLICT")
    assert suite.available(customer.key) == 10**9
