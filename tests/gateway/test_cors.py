"""Which web pages may call, and what their browsers are told."""

from __future__ import annotations

import grpc
import pytest

TRANSACTIONS = "tollkeeper.ledger.v1.JournalService.ListTransactions"
ORIGIN = "https://app.example.com"
KEY = {"authorization": "Bearer tk_test_good"}
PATHS = ["/v1/chat/completions", "/v1/models", "/v1/messages", "/api/billing/transactions", "/api/ai/openai"]


@pytest.fixture(scope="module")
def open_gateway(make_gateway):
    return make_gateway(cors_origins=(ORIGIN, "http://localhost:3000"))


def preflight(gateway, path, origin=ORIGIN, headers="authorization,content-type"):
    return gateway(
        "OPTIONS",
        path,
        origin=origin,
        access_control_request_method="POST",
        access_control_request_headers=headers,
    )


@pytest.mark.parametrize("path", PATHS)
def test_preflight_of_a_configured_origin_is_answered_here(open_gateway, services, path):
    answer = preflight(open_gateway, path)
    assert answer.status == 200
    assert answer.headers["access-control-allow-origin"] == ORIGIN
    assert {"GET", "POST", "PATCH", "DELETE"} <= set(answer.headers["access-control-allow-methods"].split(", "))
    allowed = set(answer.headers["access-control-allow-headers"].split(", "))
    assert {"authorization", "content-type", "x-api-key", "x-goog-api-key", "anthropic-version"} <= allowed
    assert answer.headers["access-control-max-age"] == "600"
    assert answer.headers.get("access-control-allow-credentials") != "true"
    assert services.calls == []
    assert services.checks == []


# As the SDKs' own pages send them, beside what a browser adds: Firefox asks for the user-agent that a program sets.
SDK_HEADERS = {
    "openai": "authorization,content-type,user-agent,openai-organization,openai-project,x-stainless-retry-count",
    "anthropic": "x-api-key,content-type,user-agent,anthropic-version,anthropic-beta,x-stainless-helper,"
    "x-stainless-helper-method,anthropic-dangerous-direct-browser-access",
    "google": "x-goog-api-key,x-goog-api-client,content-type,user-agent",
    "ai-sdk": "authorization,content-type,user-agent",
}


@pytest.mark.parametrize("sdk", SDK_HEADERS)
def test_all_that_an_sdk_sends_from_a_page_is_allowed(open_gateway, sdk):
    answer = preflight(open_gateway, "/v1/messages", headers=SDK_HEADERS[sdk])
    assert set(SDK_HEADERS[sdk].split(",")) <= set(answer.headers["access-control-allow-headers"].split(", "))


@pytest.mark.parametrize("path", ["/v1/models", "/api/billing/transactions"])
def test_answer_to_a_configured_origin_may_be_read_by_the_page(open_gateway, path):
    answer = open_gateway("GET", path, **KEY, origin=ORIGIN)
    assert answer.status == 200
    assert answer.headers["access-control-allow-origin"] == ORIGIN
    exposed = set(answer.headers["access-control-expose-headers"].split(", "))
    assert {"x-request-id", "x-tollkeeper-cost-credits", "retry-after", "x-should-retry"} <= exposed


def test_page_may_read_a_refusal_too(open_gateway, services):
    async def refuse(_request, context):
        await context.grpc.abort(grpc.StatusCode.PERMISSION_DENIED, "not yours")

    services.answers[TRANSACTIONS] = refuse
    answer = open_gateway("GET", "/api/billing/transactions", **KEY, origin=ORIGIN)
    assert answer.status == 403
    assert answer.headers["access-control-allow-origin"] == ORIGIN


@pytest.mark.parametrize(
    "origin",
    [
        "https://evil.example",
        "https://app.example.com.evil.example",
        "http://app.example.com",
        "null",
        ORIGIN + ":8443",
    ],
)
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/api/billing/checkout"])
def test_other_origins_are_told_nothing(open_gateway, services, path, origin):
    answer = preflight(open_gateway, path, origin=origin)
    assert answer.status == 405
    assert not [name for name in answer.headers if name.startswith("access-control-")]
    assert services.calls == []
    assert not [
        name for name in open_gateway("GET", "/v1/models", origin=origin).headers if name.startswith("access-control-")
    ]


def test_without_configuration_no_origin_may_call(gateway, services):
    answer = preflight(gateway, "/v1/chat/completions")
    assert answer.status == 405
    assert not [name for name in answer.headers if name.startswith("access-control-")]
    assert services.calls == []
