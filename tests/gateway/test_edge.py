"""What passes Envoy, and what never does."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import threading
import time
import uuid
from pathlib import Path

import grpc
import psutil
import pytest
from google.api import httpbody_pb2
from tollkeeper.ledger.v1 import ledger_service_pb2

from gateway import answer_headers
from gateway.bindings import Wire, read_bindings
from gateway.render import DESCRIPTOR_SET

BINDINGS = read_bindings(DESCRIPTOR_SET.read_bytes())
CHAT = "tollkeeper.proxy.v1.WireService.ChatCompletions"
TRANSACTIONS = "tollkeeper.ledger.v1.JournalService.ListTransactions"
KEY = {"authorization": "Bearer tk_test_good"}
IDENTITY = "an.identity.token"  # what the authorizer of conftest.py gives


def sample_path(template):
    return re.sub(r"\{[^}]*\}", "acme", template)


@pytest.mark.parametrize("binding", BINDINGS, ids=lambda b: f"{b.method} {b.template}")
def test_every_annotated_rpc_is_reached_by_its_method_and_path(gateway, services, binding):
    answer = gateway(binding.method, sample_path(binding.template), None if binding.method == "GET" else {}, **KEY)
    assert answer.status == 200, answer.body
    assert [call.rpc for call in services.calls] == [binding.rpc]


@pytest.mark.parametrize("binding", BINDINGS, ids=lambda b: f"{b.method} {b.template}")
def test_authorizer_is_asked_for_api_paths_that_are_not_public_and_for_no_other(gateway, services, binding):
    gateway(binding.method, sample_path(binding.template), None if binding.method == "GET" else {}, **KEY)
    asked = binding.template.startswith("/api/") and not binding.public
    assert len(services.checks) == asked
    [call] = services.calls
    assert call.metadata.get("x-tollkeeper-identity") == (IDENTITY if asked else None)
    # Only the proxy, which authenticates model calls itself, sees a caller's key.
    assert ("authorization" in call.metadata) == (binding.wire is not Wire.API)


def test_no_credential_reaches_a_service_behind_the_authorizer_even_if_it_leaves_it_in(gateway, services):
    gateway("GET", "/api/credits/tiers", **KEY, x_api_key="a", x_goog_api_key="b")
    assert not {"authorization", "x-api-key", "x-goog-api-key"} & set(services.calls[0].metadata)


@pytest.mark.parametrize("path", ["/v1/models", "/api/billing/transactions", "/api/credits/tiers"])
@pytest.mark.parametrize(
    "header",
    [
        "x-tollkeeper-identity",
        "X-Tollkeeper-Identity",
        "x-tollkeeper-anything",
        "x-envoy-original-path",
        "x-envoy-upstream-rq-timeout-ms",
        "grpc-timeout",
        "grpc-status",
    ],
)
def test_reserved_headers_from_outside_never_arrive(gateway, services, path, header):
    assert gateway("GET", path, **KEY, **{header: "forged"}).status == 200
    assert "forged" not in services.calls[0].metadata.values()
    for check in services.checks:
        assert "forged" not in check.headers.values()


@pytest.mark.parametrize("name", ["x_tollkeeper_identity", "x-tollkeeper_identity", "any_name"])
def test_header_named_with_underscores_is_refused(gateway, services, name):
    request = f"GET /v1/models HTTP/1.1\r\nhost: x\r\n{name}: forged\r\nconnection: close\r\n\r\n"
    assert gateway.raw(request.encode()).startswith(b"HTTP/1.1 400")
    assert services.calls == []


def test_request_id_is_made_here_passed_on_and_returned(gateway, services):
    answer = gateway("GET", "/v1/models", x_request_id="x" * 200)
    request_id = answer.headers["x-request-id"]
    assert re.fullmatch(r"[0-9a-f-]{36}", request_id)
    assert services.calls[0].metadata["x-request-id"] == request_id


def test_the_path_a_client_called_is_told_to_the_service(gateway, services):
    gateway("POST", "/v1/messages?beta=true", {})
    assert services.calls[0].metadata["x-envoy-original-path"] == "/v1/messages?beta=true"


def test_grpc_paths_are_not_reachable(gateway, services):
    path = "/tollkeeper.ledger.v1.LedgerService/CreditAccount"
    assert gateway("POST", path, {}, **KEY).status == 404
    assert gateway("POST", path, b"", content_type="application/grpc", te="trailers").headers["grpc-status"] == "12"
    with grpc.insecure_channel(f"127.0.0.1:{gateway.port}") as channel:
        call = channel.unary_unary(path, lambda message: message.SerializeToString(), lambda data: data)
        with pytest.raises(grpc.RpcError) as raised:
            call(ledger_service_pb2.CreditAccountRequest(account_id="acme"), timeout=10)
    assert raised.value.code() is grpc.StatusCode.UNIMPLEMENTED
    assert raised.value.details() == "gRPC is not served at this address."
    assert services.calls == []
    assert services.checks == []


def test_native_grpc_on_a_rest_path_does_not_pass_either(gateway, services):
    gateway("POST", "/v1/chat/completions", b"\0\0\0\0\0", content_type="application/grpc+proto")
    assert services.calls == []


@pytest.mark.parametrize("kind", ["application/grpc-web+proto", "application/grpc-web-text", "Application/gRPC"])
@pytest.mark.parametrize("path", ["/tollkeeper.ledger.v1.LedgerService/CreditAccount", "/v1/chat/completions"])
def test_what_is_nearly_grpc_is_refused_in_json(gateway, services, path, kind):
    answer = gateway("POST", path, b"\0\0\0\0\0", content_type=kind)
    assert answer.status == 404
    assert answer.json["details"][0]["reason"] == "ROUTE_NOT_FOUND"
    assert services.calls == []


def test_json_takes_both_cases_and_both_forms_of_integers(gateway, services):
    for body in ({"amountNanos": "5", "requestId": "r"}, {"amount_nanos": 5, "request_id": "r"}):
        assert gateway("POST", "/api/admin/accounts/acme/credits", body, **KEY).status == 200
        request = services.calls.pop().request
        assert (request.account_id, request.amount_nanos, request.request_id) == ("acme", 5, "r")


def test_answers_are_camel_case_with_empty_fields_and_integers_as_strings(gateway, services):
    async def answer(_request, _context):
        found = ledger_service_pb2.ListTransactionsResponse()
        found.transactions.add(amount_nanos=2**53 + 1)
        return found

    services.answers[TRANSACTIONS] = answer
    body = gateway("GET", "/api/billing/transactions?pageSize=3&from=2026-01-01T00:00:00Z", **KEY).json
    assert body["nextPageToken"] == ""
    assert body["transactions"][0]["amountNanos"] == "9007199254740993"
    assert services.calls[0].request.page_size == 3


def test_escaped_slash_in_a_model_name_arrives_as_a_slash(gateway, services):
    assert gateway("GET", "/v1/models/meta-llama%2FLlama-3").status == 200
    assert services.calls[0].request.model == "meta-llama/Llama-3"


def test_wire_bodies_pass_byte_for_byte(gateway, services):
    body = b'{ "z":1,  "a" : [1.0, 1e5, "\\u00e9"] , "z":2}'
    raw = b'{"answer" : 1.50 }\n'

    async def answer(_request, context):
        await context.initial(x_tollkeeper_cost_credits="6.5")
        return httpbody_pb2.HttpBody(content_type="application/json", data=raw)

    services.answers[CHAT] = answer
    answered = gateway("POST", "/v1/chat/completions", body)
    assert services.calls[0].request.data == body
    assert services.calls[0].request.content_type == "application/json"
    assert answered.body == raw
    assert answered.headers["content-type"] == "application/json"
    assert answered.headers["x-tollkeeper-cost-credits"] == "6.5"


def test_body_just_under_the_limit_passes(gateway, services):
    body = b"x" * (10 * 1024 * 1024 - 1024)
    assert gateway("POST", "/v1/chat/completions", body).status == 200
    assert services.calls[0].request.data == body


def test_stream_arrives_event_by_event(gateway, services):
    # Each event is sent only when the client has the one before: a gateway that gathers them would wait for ever.
    seen = [threading.Event() for _ in range(4)]

    async def answer(_request, context):
        await context.initial(cache_control="no-cache", x_tollkeeper_request_id="req-1")
        for number, arrived in enumerate(seen):
            yield httpbody_pb2.HttpBody(
                content_type="text/event-stream" if number == 0 else "", data=b"data: %d\n\n" % number
            )
            async with asyncio.timeout(20):
                while not arrived.is_set():  # noqa: ASYNC110 (set by another thread)
                    await asyncio.sleep(0.01)

    services.answers[CHAT] = answer
    connection = gateway.connect()
    connection.request("POST", "/v1/chat/completions", b"{}")
    response = connection.getresponse()
    assert response.headers["content-type"] == "text/event-stream"
    assert response.headers["x-tollkeeper-request-id"] == "req-1"
    events = []
    while event := response.readline():
        if event.strip():
            seen[len(events)].set()
            events.append(event)
    connection.close()
    assert events == [b"data: %d\n" % number for number in range(4)]


def test_client_that_goes_away_cancels_the_call(gateway, services):
    cancelled = []

    async def answer(_request, _context):
        try:
            yield httpbody_pb2.HttpBody(content_type="text/event-stream", data=b"data: 1\n\n")
            await asyncio.sleep(30)
        finally:  # as cancelled, or as a generator that is closed: well before the sleep is over
            cancelled.append(True)

    services.answers[CHAT] = answer
    connection = gateway.connect()
    connection.request("POST", "/v1/chat/completions", b"{}")
    connection.getresponse().readline()
    connection.close()
    deadline = time.monotonic() + 5
    while not cancelled and time.monotonic() < deadline:
        time.sleep(0.02)
    assert cancelled


def test_internal_headers_do_not_reach_a_client(gateway, services):
    async def answer(_request, context):
        await context.initial(
            x_tollkeeper_reason="X",
            x_tollkeeper_internal="1",
            x_tollkeeper_cost="1",
            x_tollkeeper_cost_credits_too="1",
            x_tollkeeper_request_key="1",
            x_envoy_decorator="1",
            x_tollkeeper_credits_remaining="3",
            x_ratelimit_remaining_requests="9",
            x_quota_limit="100",
            retry_after="2",
        )
        return httpbody_pb2.HttpBody(content_type="application/json", data=b"{}")

    services.answers[CHAT] = answer
    seen = set(gateway("POST", "/v1/chat/completions", {}).headers)
    assert {"x-tollkeeper-credits-remaining", "x-ratelimit-remaining-requests", "x-quota-limit", "retry-after"} <= seen
    assert not [name for name in seen if name.startswith(("grpc-", "x-envoy-"))]
    assert [name for name in seen if name.startswith("x-tollkeeper-")] == ["x-tollkeeper-credits-remaining"]


# Ours that may be seen, each as nearly written: cut, gone on with, or otherwise by one letter.
NEARLY_PUBLIC = [
    *(name[:-1] for name in answer_headers.PUBLIC),
    *(f"{name}s" for name in answer_headers.PUBLIC),
    *(f"{name[:14]}_{name[15:]}" for name in answer_headers.PUBLIC),
    "x-tollkeeper-",
    "x-tollkeeper-c",
]


@pytest.mark.parametrize("error", [None, 429])
def test_only_public_headers_of_ours_reach_a_client(gateway, services, error):
    names = [*answer_headers.PUBLIC, *NEARLY_PUBLIC, "x-tollkeeper-identity"]
    status = (("x-tollkeeper-http-status", str(error)),) if error else ()

    async def answer(_request, context):
        await context.grpc.send_initial_metadata((*((name, "1") for name in names), *status))
        return httpbody_pb2.HttpBody(content_type="application/json", data=b"{}")

    services.answers[CHAT] = answer
    answered = gateway("POST", "/v1/chat/completions", {})
    assert answered.status == (error or 200)
    assert answered.body == b"{}"
    seen = {name.lower() for name in answered.headers if name.lower().startswith("x-tollkeeper-")}
    assert seen == set(answer_headers.PUBLIC)


def test_healthz_answers_without_a_credential(gateway, services):
    answer = gateway("GET", "/healthz")
    assert answer.status == 200
    assert answer.json == {"status": "SERVING"}
    assert services.checks == []


def test_access_log_is_json_without_keys_bodies_or_query_strings(gateway):
    gateway("POST", "/v1/messages?key=sk-in-the-query", b'{"secret":"sk-in-the-body"}', x_api_key="sk-in-a-header")
    deadline = time.monotonic() + 15
    while '"/v1/messages"' not in (log := gateway.log.read_text()) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert "sk-in" not in log
    [entry] = [json.loads(line) for line in log.splitlines() if '"/v1/messages"' in line][-1:]
    assert (entry["method"], entry["status"], entry["service"]) == ("POST", 200, "proxy")
    assert entry["rpc"] == "tollkeeper.proxy.v1.WireService.Messages"
    assert "/healthz" not in log


@pytest.mark.parametrize("method", ["GET", "DELETE", "PATCH"])
def test_access_log_says_the_method_that_was_called(gateway, method):
    """A call reaches its service as a POST, as all of gRPC's do."""
    path = {"DELETE": f"/api/admin/keys/{uuid.uuid4()}", "PATCH": f"/api/admin/plans/{uuid.uuid4()}"}
    called = path.get(method, f"/api/credits/tiers/{uuid.uuid4()}")
    assert gateway(method, called, {} if method == "PATCH" else None, authorization="Bearer tk_test_good").status == 200
    deadline = time.monotonic() + 15
    while called not in (log := gateway.log.read_text()) and time.monotonic() < deadline:
        time.sleep(0.1)
    [entry] = [json.loads(line) for line in log.splitlines() if called in line]
    assert entry["method"] == method


def test_access_log_says_what_the_runbook_looks_for_where_the_authorizer_fails(gateway, services):
    def fail(_request):
        raise RuntimeError("the database is away")

    services.deny = fail
    called = f"/api/admin/accounts/{uuid.uuid4()}/stats"
    assert gateway("GET", called, **KEY).status == 503
    deadline = time.monotonic() + 15
    while called not in (log := gateway.log.read_text()) and time.monotonic() < deadline:
        time.sleep(0.1)
    [entry] = [json.loads(line) for line in log.splitlines() if called in line]
    runbook = (Path(__file__).parents[2] / "docs/operating/gateway.md").read_text()
    assert f"`{entry['flags']}` with {entry['status']} (`{entry['details']}`)" in runbook


def test_gateway_listens_where_it_is_told_to_only(gateway):
    [server] = [process for process in psutil.Process().children() if process.name() == "envoy"]
    listening = {c.laddr for c in server.net_connections(kind="all") if c.status == psutil.CONN_LISTEN}
    assert listening == {("127.0.0.1", gateway.port), ("127.0.0.1", gateway.admin_port)}


def test_no_log_of_any_kind_has_a_key_that_came_in_a_query(gateway):
    path = "/v1beta/models/x:generateContent?key=sk-google-in-the-query"
    gateway("POST", path, b"{}")
    gateway("PUT", path, b"{}")
    gateway("POST", path, b"{}", x_long="x" * 70_000)
    connection = gateway.connect()
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        connection.request("POST", path, b"x" * (10 * 1024 * 1024 + 1))
    assert connection.getresponse().status == 413
    connection.close()
    gateway("GET", "/v1/models/the-last-one")
    deadline = time.monotonic() + 15
    while "the-last-one" not in (log := gateway.log.read_text()) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert "the-last-one" in log
    assert "sk-google" not in log


@pytest.mark.parametrize(
    ("query", "left", "key"),
    [
        ("?key=AIza_x-1", "", "AIza_x-1"),
        ("?alt=sse&key=AIza&x=1", "?alt=sse&x=1", "AIza"),
        ("?key=one&key=two", "", "one"),
        ("?key=", "", None),
        ("?key=a%0d%0ab", "", None),
        ("?monkey=a", "?monkey=a", None),
        ("?&key=AIza", "", "AIza"),
        ("?key&key=AIza", "?key", "AIza"),
        ("?a=b=c&x&key=AIza=", "?a=b=c&x", None),
    ],
)
def test_key_in_googles_query_becomes_the_header_and_goes_no_further(gateway, services, query, left, key):
    path = "/v1beta/models/gemini-1.5-pro:streamGenerateContent"
    assert gateway("POST", path + query, {}).status == 200
    metadata = services.calls[0].metadata
    assert metadata.get("x-goog-api-key") == key
    assert metadata["x-envoy-original-path"] == path + left


def test_key_in_a_header_wins_over_one_in_the_query(gateway, services):
    gateway("POST", "/v1beta/models/x:generateContent?key=AIza", {}, x_goog_api_key="mine")
    assert services.calls[0].metadata["x-goog-api-key"] == "mine"


def test_key_on_our_own_api_is_a_filter_and_stays(gateway, services):
    assert gateway("GET", "/api/billing/usage?key=key_1", **KEY).status == 200
    assert services.calls[0].request.key_id == "key_1"


@pytest.mark.parametrize("name", ["q+7-r~z", "yo'", "x!", "x-a.b*", "'x"])
@pytest.mark.parametrize("path", ["/v1/models", "/api/billing/transactions"])
def test_header_whose_name_grpc_does_not_take_is_left_out(gateway, services, name, path):
    assert gateway("GET", path, **KEY, **{name: "1"}, x_kept="2").status == 200
    metadata = services.calls[0].metadata
    assert metadata["x-kept"] == "2"
    assert name not in metadata


@pytest.mark.parametrize("value", [b"caf\xc3\xa9", b"caf\xe9", b"a\tb"])
@pytest.mark.parametrize("path", [b"/v1/models", b"/api/billing/transactions"])
def test_header_value_of_any_bytes_breaks_nothing(gateway, services, value, path):
    head = b"GET " + path + b" HTTP/1.1\r\nhost: x\r\nconnection: close\r\nauthorization: Bearer x\r\n"
    assert gateway.raw(head + b"x-name: " + value + b"\r\n\r\n").startswith(b"HTTP/1.1 200")
