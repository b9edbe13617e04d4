"""Each refusal has the status and the body that its caller's SDK expects, whoever refused."""

from __future__ import annotations

import contextlib
import http.client
import itertools
import json
import socket

import anthropic
import grpc
import openai
import pytest
from envoy.service.auth.v3 import external_auth_pb2
from envoy.type.v3 import http_status_pb2
from google import genai
from google.api import httpbody_pb2

from deploy.local import envoy, ports
from deploy.local.process import running
from services.kit.errors import Kind, ServiceError, Violation

CHAT = "tollkeeper.proxy.v1.WireService.ChatCompletions"
MESSAGES = "tollkeeper.proxy.v1.WireService.Messages"
GENERATE = "tollkeeper.proxy.v1.WireService.GenerateContent"
MODELS = "tollkeeper.proxy.v1.WireService.ListModels"
CREDIT = "tollkeeper.ledger.v1.LedgerService.CreditAccount"
KEY = {"authorization": "Bearer tk_test_good"}
CREDITS = "/api/admin/accounts/acme/credits"


class Refused(ServiceError):  # noqa: N818
    domain = "tollkeeper.test"
    advice = "None."


class NoCredit(Refused):
    kind = Kind.PAYMENT_REQUIRED
    reason = "INSUFFICIENT_CREDIT"


class TooFast(Refused):
    kind = Kind.EXHAUSTED
    reason = "RATE_LIMITED"


class BadKey(Refused):
    kind = Kind.UNAUTHENTICATED
    reason = "INVALID_API_KEY"


class NotInPlan(Refused):
    kind = Kind.DENIED
    reason = "MODEL_NOT_IN_PLAN"


class BadField(Refused):
    kind = Kind.INVALID
    reason = "INVALID_ARGUMENT"


class Conflict(Refused):
    kind = Kind.CONFLICT
    reason = "IDEMPOTENCY_CONFLICT"


class Down(Refused):
    kind = Kind.UNAVAILABLE
    reason = "LEDGER_UNREACHABLE"


def refuses(error):
    async def answer(_request, _context):
        raise error

    return answer


def info(details):
    [found] = [detail for detail in details if detail["@type"].endswith("google.rpc.ErrorInfo")]
    return found


NASTY = 'no "credit", \\ left\n\t€ \x7f </script> {"reason":"FORGED"} ["'


# ---- a service's refusals on our own API


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (NoCredit("none left"), 402),
        (TooFast("slow down", retry_after_seconds=3), 429),
        (BadKey("unknown"), 401),
        (NotInPlan("not yours"), 403),
        (BadField("wrong"), 400),
        (Conflict("another body"), 409),
        (Down("gone"), 503),
    ],
)
def test_api_refusal_is_a_status_with_one_error_info(gateway, services, error, status):
    services.answers[CREDIT] = refuses(error)
    answer = gateway("POST", CREDITS, {}, **KEY)
    assert answer.status == status
    assert answer.json["code"] == error.code.value[0]
    assert answer.json["message"] == error.message
    assert info(answer.json["details"])["reason"] == error.reason
    assert info(answer.json["details"])["domain"] == "tollkeeper.test"
    assert answer.headers.get("retry-after") == (None if error.retry_after_seconds is None else "3")


def test_all_violations_come_through(gateway, services):
    violations = [Violation("amount_usd", "negative"), Violation("source", "no such source")]
    services.answers[CREDIT] = refuses(BadField("two mistakes", violations=violations))
    details = gateway("POST", CREDITS, {}, **KEY).json["details"]
    assert details[1]["@type"] == "type.googleapis.com/google.rpc.BadRequest"
    assert [violation["field"] for violation in details[1]["fieldViolations"]] == ["amount_usd", "source"]


@pytest.mark.parametrize("path", [CREDITS, "/v1/chat/completions", "/v1/messages", "/v1beta/models/x:generateContent"])
def test_any_words_survive_in_every_shape(gateway, services, path):
    for rpc in (CREDIT, CHAT, MESSAGES, GENERATE):
        services.answers[rpc] = refuses(NoCredit(NASTY, account=NASTY))
    body = gateway("POST", path, {}, **KEY).json
    assert body.get("error", body)["message"] == NASTY


def test_refusal_without_details_gets_an_error_info(gateway, services):
    async def abort(_request, context):
        await context.grpc.abort(grpc.StatusCode.NOT_FOUND, "not here")

    services.answers[CREDIT] = abort
    answer = gateway("POST", CREDITS, {}, **KEY)
    assert answer.status == 404
    assert answer.json["message"] == "not here"
    assert info(answer.json["details"])["reason"] == "NOT_FOUND"


@pytest.mark.parametrize(("path", "rpc"), [(CREDITS, CREDIT), ("/v1/chat/completions", CHAT)])
def test_refusal_after_initial_metadata_keeps_its_status(gateway, services, path, rpc):
    async def answer(_request, context):
        await context.initial(x_ratelimit_limit_requests="10")
        raise NoCredit("none left", retry_after_seconds=2)

    services.answers[rpc] = answer
    answered = gateway("POST", path, {}, **KEY)
    assert answered.status == 402
    assert answered.headers["retry-after"] == "2"
    assert answered.headers["x-ratelimit-limit-requests"] == "10"


# ---- the SDKs, unmodified


@pytest.mark.parametrize(
    ("error", "raised"),
    [
        (BadKey("no such key"), openai.AuthenticationError),
        (NotInPlan("not in the plan"), openai.PermissionDeniedError),
        (TooFast("slow down", retry_after_seconds=3), openai.RateLimitError),
        (NoCredit("none left"), openai.APIStatusError),
        (BadField("wrong", violations=[Violation("max_tokens", "too many")]), openai.BadRequestError),
        (Conflict("another body"), openai.ConflictError),
        (Down("gone"), openai.InternalServerError),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_openai_sdk_raises_its_own_exception(gateway, services, error, raised, stream):
    services.answers[CHAT] = refuses(error)
    with (
        openai.OpenAI(base_url=f"http://127.0.0.1:{gateway.port}/v1", api_key="k", max_retries=0) as client,
        pytest.raises(raised) as caught,
    ):
        client.chat.completions.create(model="m", messages=[{"role": "user", "content": "x"}], stream=stream)
    assert caught.value.status_code == error.kind.http_status
    assert caught.value.body["message"] == error.message
    assert caught.value.code == error.reason.lower()
    assert caught.value.param == ("max_tokens" if error.violations else None)
    assert caught.value.request_id is not None


@pytest.mark.parametrize(
    ("error", "raised", "kind"),
    [
        (BadKey("no such key"), anthropic.AuthenticationError, "authentication_error"),
        (NotInPlan("not in the plan"), anthropic.PermissionDeniedError, "permission_error"),
        (TooFast("slow down"), anthropic.RateLimitError, "rate_limit_error"),
        (NoCredit("none left"), anthropic.APIStatusError, "billing_error"),
        (Down("gone"), anthropic.InternalServerError, "overloaded_error"),
    ],
)
def test_anthropic_sdk_raises_its_own_exception(gateway, services, error, raised, kind):
    services.answers[MESSAGES] = refuses(error)
    with (
        anthropic.Anthropic(base_url=f"http://127.0.0.1:{gateway.port}", api_key="k", max_retries=0) as client,
        pytest.raises(raised) as caught,
    ):
        client.messages.create(model="m", max_tokens=1, messages=[{"role": "user", "content": "x"}])
    assert caught.value.status_code == error.kind.http_status
    assert caught.value.body["type"] == "error"
    assert caught.value.body["error"] == {"type": kind, "message": error.message}
    assert caught.value.body["request_id"] == caught.value.response.headers["x-request-id"]
    assert caught.value.request_id == caught.value.response.headers["x-request-id"]


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (BadKey("no such key"), "false"),
        (NoCredit("none left"), "false"),
        (NotInPlan("not in the plan"), "false"),
        (BadField("wrong"), "false"),
        (TooFast("slow down", retry_after_seconds=3), None),
        (Conflict("the first has not ended"), None),
        (Down("gone"), None),
    ],
)
@pytest.mark.parametrize(("path", "rpc"), [("/v1/chat/completions", CHAT), ("/v1/messages", MESSAGES)])
def test_sdk_is_told_not_to_repeat_what_will_be_refused_again(gateway, services, path, rpc, error, told):  # noqa: PLR0917
    """Claude Code tries a 401 again for minutes, saying nothing, unless it is told not to, as Anthropic does."""
    services.answers[rpc] = refuses(error)
    assert gateway("POST", path, {}, **KEY).headers.get("x-should-retry") == told


def test_sdk_is_told_not_to_repeat_what_is_not_served(gateway):
    assert gateway("POST", "/v1/nothing", {}, **KEY).headers["x-should-retry"] == "false"


@pytest.mark.parametrize("path", ["/v1/messages", "/v1/messages/batches"])
def test_what_the_gateway_refuses_in_anthropics_form_has_its_request_id(gateway, services, path):
    answer = gateway("PUT", path)
    assert answer.status == (405 if path == "/v1/messages" else 404)
    assert answer.headers["request-id"] == answer.headers["x-request-id"] == answer.json["request_id"]
    assert services.calls == []


@pytest.mark.parametrize(
    ("error", "raised", "status"),
    [
        (NoCredit("none left"), genai.errors.ClientError, "RESOURCE_EXHAUSTED"),
        (BadKey("no such key"), genai.errors.ClientError, "UNAUTHENTICATED"),
        (Down("gone"), genai.errors.ServerError, "UNAVAILABLE"),
    ],
)
def test_gemini_sdk_raises_its_own_exception(gateway, services, error, raised, status):
    services.answers[GENERATE] = refuses(error)
    options = {"base_url": f"http://127.0.0.1:{gateway.port}", "api_version": "v1beta"}
    client = genai.Client(api_key="k", http_options=options)
    with pytest.raises(raised) as caught:
        client.models.generate_content(model="gemini-1.5-pro", contents="x")
    client.close()
    assert caught.value.code == error.kind.http_status
    assert caught.value.status == status
    assert caught.value.message == error.message
    assert info(caught.value.details["error"]["details"])["reason"] == error.reason


def test_providers_own_error_passes_untouched_with_its_status(gateway, services):
    raw = b'{"error": {"message": "the provider\'s words", "type": "x"} }'

    async def answer(_request, context):
        await context.initial(x_tollkeeper_http_status="429", retry_after="7")
        return httpbody_pb2.HttpBody(content_type="application/json", data=raw)

    services.answers[CHAT] = answer
    answered = gateway("POST", "/v1/chat/completions", {})
    assert answered.status == 429
    assert answered.body == raw
    assert answered.headers["retry-after"] == "7"
    assert "x-tollkeeper-http-status" not in answered.headers


@pytest.mark.parametrize("nonsense", ["200", "abc", "99999", "-1", ""])
def test_senseless_status_from_a_service_is_ignored(gateway, services, nonsense):
    async def answer(_request, context):
        await context.initial(x_tollkeeper_http_status=nonsense)
        return httpbody_pb2.HttpBody(content_type="application/json", data=b"{}")

    services.answers[CHAT] = answer
    answered = gateway("POST", "/v1/chat/completions", {})
    assert answered.status == 200
    assert answered.body == b"{}"


# ---- Envoy's own refusals


@pytest.mark.parametrize(
    ("method", "path", "status", "reason"),
    [
        ("GET", "/nothing", 404, "ROUTE_NOT_FOUND"),
        ("GET", "/", 404, "ROUTE_NOT_FOUND"),
        ("GET", "/api/nothing", 404, "ROUTE_NOT_FOUND"),
        ("GET", "/api/admin/accounts//stats", 404, "ROUTE_NOT_FOUND"),
        ("POST", "/openapi.json", 405, "METHOD_NOT_ALLOWED"),
        ("DELETE", "/healthz", 405, "METHOD_NOT_ALLOWED"),
        ("PUT", "/api/credits/balance", 405, "METHOD_NOT_ALLOWED"),
        ("GET", CREDITS, 405, "METHOD_NOT_ALLOWED"),
    ],
)
def test_unknown_path_or_method_of_our_api_is_refused_in_json(  # noqa: PLR0917
    gateway, services, method, path, status, reason
):
    answer = gateway(method, path, **KEY)
    assert answer.status == status
    assert info(answer.json["details"])["reason"] == reason
    assert info(answer.json["details"])["metadata"] == {"requestId": answer.headers["x-request-id"]}
    assert services.checks == []


@pytest.mark.parametrize(
    ("version", "method"),
    [
        *itertools.product(("v1", "v1beta", "v1alpha"), ("embedContent", "batchEmbedContents")),
        ("v1alpha", "countTokens"),
        ("v1alpha", "generateContent"),
    ],
)
def test_what_google_has_and_is_not_served_is_a_404_in_googles_form(gateway, services, version, method):
    answer = gateway("POST", f"/{version}/models/gemini-1.5-pro:{method}", {}, x_goog_api_key="k")
    assert answer.status == answer.json["error"]["code"] == 404
    assert answer.json["error"]["status"] == "NOT_FOUND"
    assert services.calls == []


def test_refused_method_is_told_which_are_allowed(gateway):
    assert gateway("PUT", "/api/billing/subscription").headers["allow"] == "DELETE, GET, PATCH"


def test_unknown_path_has_the_shape_of_the_sdk_it_belongs_to(gateway):
    assert gateway("GET", "/v1/nothing").json["error"]["code"] == "route_not_found"
    assert gateway("GET", "/v1/messages/batches").json["error"]["type"] == "not_found_error"
    assert gateway("GET", "/v1beta/nothing").json["error"]["status"] == "NOT_FOUND"
    assert gateway("DELETE", "/v1/models").json["error"]["code"] == "method_not_allowed"


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"amountNanos": "12a"}, "amount_nanos"),
        ({"amountNanos": 1.5}, "amount_nanos"),
        ({"amountNanos": 99999999999999999999}, "amount_nanos"),
        ({"amountNanos": {}}, "amount_nanos"),
        ({"amountUsd": {"a": 1}}, "amount_usd"),
        ({"priority": "first"}, "priority"),
        ({"expiresAt": "tomorrow"}, "expires_at"),
        ({"account_id": "other"}, "account_id"),
    ],
)
def test_wrong_type_in_a_body_names_its_field_and_reaches_nobody(gateway, services, body, field):
    answer = gateway("POST", CREDITS, body, **KEY)
    assert answer.status == 400
    assert field in answer.json["message"]
    assert info(answer.json["details"])["reason"] == "INVALID_REQUEST"
    assert services.calls == []


def test_wrong_field_is_also_a_violation(gateway):
    details = gateway("POST", CREDITS, {"amountNanos": 'a "quoted" one'}, **KEY).json["details"]
    [violation] = details[1]["fieldViolations"]
    assert violation["field"] == "amount_nanos"
    assert 'a "quoted" one' in violation["description"]


@pytest.mark.parametrize("body", [b'{"amountNanos', b"{]", b"[]", b'"text"', b"null x", b"\xff\xfe", b"{}{}"])
def test_malformed_json_is_a_400_in_json(gateway, services, body):
    answer = gateway("POST", CREDITS, body, **KEY)
    assert answer.status == 400
    assert answer.json["code"] == 3
    assert answer.json["message"]
    assert services.calls == []


@pytest.mark.parametrize("query", ["pageSize=many", "nonsense=1", "from=yesterday"])
def test_wrong_query_parameter_names_itself(gateway, services, query):
    answer = gateway("GET", f"/api/billing/transactions?{query}", **KEY)
    assert answer.status == 400
    name = {"pageSize": "page_size"}.get(query.split("=")[0], query.split("=")[0])
    assert name in answer.json["message"]
    assert services.calls == []


def test_unknown_query_parameter_of_an_sdk_is_its_own_business(gateway):
    assert gateway("GET", "/v1/models?limit=3").status == 200


@pytest.mark.parametrize(
    ("path", "told"),
    [
        (CREDITS, lambda body: info(body["details"])["reason"] == "REQUEST_TOO_LARGE"),
        ("/v1/chat/completions", lambda body: body["error"]["code"] == "request_too_large"),
        ("/v1/messages", lambda body: body["error"]["type"] == "request_too_large"),
        ("/v1beta/models/x:generateContent", lambda body: body["error"]["code"] == 413),
    ],
)
@pytest.mark.parametrize("chunked", [False, True])
def test_body_over_the_limit_is_a_413_and_reaches_nobody(gateway, services, path, told, chunked):
    # Valid JSON, so that nothing else can refuse it first.
    body = b'{"description":"' + b"x" * (10 * 1024 * 1024) + b'"}'
    connection = gateway.connect()
    headers = {"content-type": "application/json"} | KEY
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # answered before all of it was sent
        connection.request("POST", path, iter([body]) if chunked else body, headers, encode_chunked=chunked)
    response = connection.getresponse()
    answer = json.loads(response.read())
    connection.close()
    assert response.status == 413
    assert told(answer)
    assert services.calls == []


def test_headers_over_the_limit_are_a_431(gateway, services):
    answer = gateway("GET", "/v1/models", x_long="x" * 70_000)
    assert answer.status == 431
    assert answer.json
    assert services.calls == []


def test_bytes_that_are_not_http_are_refused_and_the_gateway_lives_on(gateway):
    with socket.create_connection(("127.0.0.1", gateway.port), timeout=10) as raw:
        raw.sendall(b"\x16\x03\x01 this is no HTTP\r\n\r\n")
        assert raw.recv(1000).startswith(b"HTTP/1.1 400")
    assert gateway("GET", "/healthz").status == 200


# ---- authorization


def denied(status, body=""):
    def deny(_request):
        answer = external_auth_pb2.CheckResponse()
        answer.status.code = 16
        answer.denied_response.status.code = http_status_pb2.StatusCode.Value(status)
        answer.denied_response.body = body
        return answer

    return deny


def test_authorizers_own_words_pass(gateway, services):
    body = (
        '{"code":16,"message":"This key was revoked.","details":[{"@type":"type.googleapis.com/google.rpc.ErrorInfo",'
        '"reason":"KEY_REVOKED","domain":"tollkeeper.proxy","metadata":{}}]}'
    )
    services.deny = denied("Unauthorized", body)
    answer = gateway("GET", "/api/billing/transactions", **KEY)
    assert answer.status == 401
    assert answer.json["message"] == "This key was revoked."
    assert info(answer.json["details"])["reason"] == "KEY_REVOKED"
    assert services.calls == []


@pytest.mark.parametrize(("body", "message"), [("", "missing or not valid"), ("bare words", "bare words")])
def test_denial_without_a_status_gets_one(gateway, services, body, message):
    services.deny = denied("Unauthorized", body)
    answer = gateway("GET", "/api/billing/transactions", **KEY)
    assert answer.status == 401
    assert answer.json["code"] == 16
    assert message in answer.json["message"]
    assert info(answer.json["details"])["reason"] == "UNAUTHENTICATED"


@pytest.mark.parametrize("path", ["/api/billing/transactions", "/api/ai/openai", CREDITS])
def test_nothing_passes_where_the_authorizer_fails(gateway, services, path):
    def fail(_request):
        raise RuntimeError("the database is away")

    services.deny = fail
    method = "GET" if path.endswith("transactions") else "POST"
    answer = gateway(method, path, None if method == "GET" else {}, **KEY)
    assert answer.status == 503
    assert info(answer.json["details"])["reason"] == "SERVICE_UNAVAILABLE"
    assert services.calls == []


def test_authorizer_sees_path_method_and_key(gateway, services):
    gateway("GET", "/api/billing/transactions?pageSize=1", **KEY)
    [check] = services.checks
    assert (check.method, check.path) == ("GET", "/api/billing/transactions?pageSize=1")
    assert check.headers["authorization"] == KEY["authorization"]


# ---- nobody behind it


@pytest.fixture(scope="module")
def lonely(tmp_path_factory):
    """A gateway whose services all are down."""
    folder = tmp_path_factory.mktemp("lonely")
    port, admin_port = ports.free_port(), ports.free_port()
    nobody = dict.fromkeys(("ledger", "pricing", "subscriptions", "proxy"), ports.free_port())
    (folder / "envoy.json").write_text(envoy.render(port=port, admin_port=admin_port, services=nobody))
    with running(envoy.program(folder / "envoy.json"), folder / "log", lambda: envoy.get(port, "/healthz") is not None):
        yield port


@pytest.mark.parametrize("path", ["/v1/models", "/api/billing/transactions", "/api/credits/tiers"])
def test_without_services_everything_is_refused_with_503(lonely, path):
    connection = http.client.HTTPConnection("127.0.0.1", lonely, timeout=10)
    connection.request("GET", path, headers=KEY)
    response = connection.getresponse()
    body = response.read()
    connection.close()
    assert response.status == 503
    assert response.headers["content-type"] == "application/json"
    assert b"try again shortly" in body.lower()
    assert b"127.0.0.1" not in body


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/api/admin/accounts/mine/credits?accountId=another"),
        ("POST", "/api/admin/accounts/mine/credits?amountUsd=5"),
        ("POST", "/api/admin/keys?accountId=another"),
        ("DELETE", "/api/admin/keys/one?keyId=another"),
        ("PATCH", "/api/billing/subscription?plan=other"),
    ],
)
def test_query_cannot_stand_for_a_field_of_path_or_body(gateway, services, method, path):
    answer = gateway(method, path, b"{}" if method != "DELETE" else None, **KEY)
    assert answer.status == 400
    assert answer.json["message"].startswith("query: ")
    assert info(answer.json["details"])["reason"] == "INVALID_REQUEST"
    assert services.calls == []


@pytest.mark.parametrize(
    ("method", "path", "field"),
    [
        ("GET", "/api/credits/tiers/free?tier=other", "tier"),
        ("GET", "/api/admin/accounts/mine/stats?account_id=another", "account_id"),
        ("GET", "/api/admin/accounts/mine/stats?accountId=another", "accountId"),
        ("GET", "/api/admin/accounts/mine/stats?x=1&%61ccount%49d=another", "accountId"),
        ("PATCH", "/api/admin/plans/mine?plan.planId=other", "plan"),
        ("PATCH", "/api/admin/plans/mine?pla%6e.display_name=other", "plan"),
        ("POST", "/api/ai/openai?provider=anthropic", "provider"),
        ("GET", "/v1/models/one?model=other", "model"),
        ("POST", "/v1beta/models/one:generateContent?model=other", "model"),
        ("POST", "/v1beta/models/one:generateContent?alt=json&mod%65l=other&key=k", "model"),
        ("POST", "/v1/models/one:streamGenerateContent?model=other", "model"),
    ],
)
def test_query_cannot_say_otherwise_what_the_path_says(gateway, services, method, path, field):
    answer = gateway(method, path, b"{}" if method != "GET" else None, **KEY)
    assert answer.status == 400
    assert f"{field}: stands in the path" in answer.body.decode()
    assert services.calls == []


def test_query_of_an_sdk_goes_on_beside_a_path_that_names_a_model(gateway, services):
    path = "/v1beta/models/one:streamGenerateContent?alt=sse&%24fields=*&modelx=1&=model&x.model=2"
    assert gateway("POST", path, {}, **KEY).status == 200
    assert services.calls[0].request.model == "one"


def test_query_is_read_where_it_is_the_only_way_to_say_a_field(gateway, services):
    gateway("DELETE", "/api/billing/subscription?now=true", None, **KEY)
    gateway("GET", "/api/billing/transactions?pageSize=1", None, **KEY)
    assert len(services.calls) == 2
