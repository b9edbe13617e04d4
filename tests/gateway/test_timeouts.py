"""How long each kind of call may take. The shipped times are shortened here, so that a test can wait for them."""

from __future__ import annotations

import asyncio
import json
import socket

import pytest
from google.api import httpbody_pb2

from gateway import render
from services.proxy.settings import ProxySettings

KEY = {"authorization": "Bearer tk_test_good"}
CREDIT = "tollkeeper.ledger.v1.LedgerService.CreditAccount"
CREDITS = "/api/admin/accounts/acme/credits"
CHAT = "tollkeeper.proxy.v1.WireService.ChatCompletions"
# 30 s, 10 s and 120 s as shipped; 300 s of silence, 930 s on a model call.
SHORT, SILENCE = "0.6s", "1.5s"


def shortened(document):
    [edge] = document["static_resources"]["listeners"]
    manager = edge["filter_chains"][0]["filters"][0]["typed_config"]
    assert (manager["request_headers_timeout"], manager["request_timeout"]) == ("10s", "120s")
    manager |= {"request_headers_timeout": SHORT, "request_timeout": SHORT}
    for route in manager["route_config"]["virtual_hosts"][0]["routes"]:
        if "timeout" in route.get("route", {}):
            assert (route["route"]["timeout"], route["route"]["idle_timeout"]) in {
                ("30s", "300s"),
                ("0s", "300s"),
                ("0s", "930s"),
            }
            route["route"]["idle_timeout"] = SILENCE
            if route["route"]["timeout"] == "30s":
                route["route"]["timeout"] = SHORT


def seconds(duration):
    return float(duration.removesuffix("s"))


def asked_by(route):
    [method] = [header for header in route["match"]["headers"] if header["name"] == ":method"]
    return method["string_match"]["exact"]


def test_it_is_the_proxy_that_ends_a_model_call():
    proxy = {name: field.default for name, field in ProxySettings.model_fields.items()}
    # Its provider's time, then the bill: after three waits for the ledger a settlement is the outbox's.
    longest = proxy["upstream_total_seconds"] + max(proxy["grace_seconds"], 3 * proxy["ledger_timeout_seconds"])
    services = {name: [render.Address("127.0.0.1", 9001)] for name in ("ledger", "pricing", "subscriptions", "proxy")}
    document = render.configuration(listen=render.Address("127.0.0.1", 8080), admin=None, services=services)
    [edge] = document["static_resources"]["listeners"]
    manager = edge["filter_chains"][0]["filters"][0]["typed_config"]
    routes = [
        route
        for route in manager["route_config"]["virtual_hosts"][0]["routes"]
        if route.get("name", "").startswith("tollkeeper.proxy.v1.WireService.")
    ]
    listings = [route["route"]["timeout"] for route in routes if asked_by(route) == "GET"]
    assert len(listings) > 3
    assert set(listings) == {"30s"}, "of a proxy that hangs, too, its models are not asked for without end"
    calls = [route["route"] for route in routes if asked_by(route) == "POST"]
    assert len(calls) > 8
    for route in calls:
        assert route["timeout"] == "0s"
        assert seconds(route["idle_timeout"]) > longest
        # One whose client does not read the answer is not kept for so long.
        assert seconds(route["flush_timeout"]) == seconds(manager["stream_idle_timeout"]) == 300


@pytest.fixture(scope="module")
def hasty(make_gateway):
    return make_gateway(changed=shortened)


def test_unary_call_of_our_own_api_has_a_deadline(hasty, services):
    async def answer(_request, _context):
        await asyncio.sleep(20)

    services.answers[CREDIT] = answer
    refused = hasty("POST", CREDITS, {}, **KEY)
    assert refused.status == 504
    assert refused.json["details"][0]["reason"] == "DEADLINE_EXCEEDED"


def test_stream_lasts_as_long_as_it_says_something(hasty, services):
    async def answer(_request, _context):
        for number in range(8):
            await asyncio.sleep(0.25)  # in all three times what a unary call may take
            yield httpbody_pb2.HttpBody(content_type="text/event-stream", data=b"data: %d\n\n" % number)

    services.answers[CHAT] = answer
    answered = hasty("POST", "/v1/chat/completions", {})
    assert answered.status == 200
    assert answered.body.count(b"data:") == 8


def test_model_call_that_says_nothing_is_ended(hasty, services):
    async def answer(_request, _context):
        await asyncio.sleep(20)

    services.answers[CHAT] = answer
    refused = hasty("POST", "/v1/chat/completions", {})
    assert refused.status == 504
    assert refused.json["error"]["code"] == "deadline_exceeded"


@pytest.mark.parametrize(
    "sent",
    [
        b"GET /v1/models HTTP/1.1\r\nhost: x\r\nx-slow:",
        b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\n{",
    ],
    ids=["headers", "body"],
)
def test_request_that_does_not_arrive_is_a_408_and_reaches_nobody(hasty, services, sent):
    with socket.create_connection(("127.0.0.1", hasty.port), timeout=20) as slow:
        slow.sendall(sent)
        head, _, body = slow.recv(65536).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 408")
    assert json.loads(body)
    assert services.calls == []
