"""Converse's answers, usage and errors in OpenAI's form."""

import httpx2
import openai
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai.types.chat import ChatCompletion
from proxy_converse import HEAD

from services.proxy import converse
from services.rating import InvalidUsage, accounting

USAGE = {"inputTokens": 30, "outputTokens": 628, "totalTokens": 658}
COUNTS = st.none() | st.integers(0, 50) | st.integers(0, 2**40)


def answer(*content, stop_reason="end_turn", **members):
    return {
        "output": {"message": {"role": "assistant", "content": list(content)}},
        "stopReason": stop_reason,
        "usage": USAGE,
        "metrics": {"latencyMs": 1275},
        **members,
    }


def completed(*content, **members):
    made = converse.completion(answer(*content, **members), **HEAD)
    ChatCompletion.model_validate(made, strict=True)
    return made


def message(*content, **members):
    return completed(*content, **members)["choices"][0]["message"]


def test_text_answer():
    assert completed({"text": "Here is "}, {"text": "a list."}, serviceTier={"type": "flex"}) == {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": HEAD["created"],
        "model": "claude",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "Here is a list.", "refusal": None},
                "logprobs": None,
                "finish_reason": "stop",
                "stop_reason": "end_turn",
            }
        ],
        "service_tier": "flex",
        "usage": {
            "prompt_tokens": 30,
            "completion_tokens": 628,
            "total_tokens": 658,
            "prompt_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
        },
    }


def test_tool_uses_are_tool_calls():
    use = {"toolUseId": "tooluse_k", "name": "top_song", "input": {"sign": "WZPZ"}}
    made = message({"text": "I look."}, {"toolUse": use}, {"toolUse": use | {"input": {}}}, stop_reason="tool_use")
    assert made["content"] == "I look."
    assert [(call["id"], call["type"], call["function"]["name"]) for call in made["tool_calls"]] == [
        ("tooluse_k", "function", "top_song")
    ] * 2
    assert [call["function"]["arguments"] for call in made["tool_calls"]] == ['{"sign":"WZPZ"}', "{}"]
    assert message({"toolUse": use})["content"] is None


def test_thoughts_can_be_sent_back_as_they_came():
    blocks = [
        {"reasoningContent": {"reasoningText": {"text": "Hm.", "signature": "c2ln"}}},
        {"reasoningContent": {"redactedContent": "cmVk"}},
    ]
    made = message(*blocks, {"text": "Yes."})
    assert made["reasoning_content"] == "Hm."
    body = {"model": "m", "messages": [{"role": "user", "content": "x"}, made]}
    assert converse.to_converse(body, 1)["messages"][1]["content"] == [*blocks, {"text": "Yes."}]


def test_cited_text_is_text_and_a_tool_of_bedrocks_own_no_call():
    cited = {"citationsContent": {"content": [{"text": "As said."}], "citations": [{"title": "Doc"}]}}
    server = {"toolUse": {"toolUseId": "x", "name": "nova_grounding", "input": {}, "type": "server_tool_use"}}
    made = message(server, cited)
    assert made["content"] == "As said."
    assert "tool_calls" not in made


@pytest.mark.parametrize(
    ("stop_reason", "finish_reason"),
    [
        ("end_turn", "stop"),
        ("stop_sequence", "stop"),
        ("max_tokens", "length"),
        ("model_context_window_exceeded", "length"),
        ("tool_use", "tool_calls"),
        ("guardrail_intervened", "content_filter"),
        ("content_filtered", "content_filter"),
        ("malformed_model_output", "stop"),
        (None, "stop"),
    ],
)
def test_stop_reasons(stop_reason, finish_reason):
    choice = completed({"text": "x"}, stop_reason=stop_reason)["choices"][0]
    assert (choice["finish_reason"], choice["stop_reason"]) == (finish_reason, stop_reason)


def test_guardrails_trace_is_passed_on():
    trace = {"guardrail": {"actionReason": "Guardrail blocked."}}
    assert completed({"text": "No."}, stop_reason="guardrail_intervened", trace=trace)["trace"] == trace


@pytest.mark.parametrize(
    "wrong",
    [
        {},
        {"output": None},
        {"output": {"message": {"content": None}}},
        {"output": {"message": {"content": ["x"]}}},
        {"output": {"message": {"content": [{"toolUse": {"name": "x"}}]}}},
        {"output": {"message": {"content": [{"reasoningContent": {"reasoningText": {}}}]}}},
        {"output": {"message": {"content": [{"reasoningContent": "x"}]}}},
    ],
)
def test_answer_that_is_none_is_an_error_of_its_own(wrong):
    with pytest.raises(converse.MalformedAnswerError):
        converse.completion(wrong, **HEAD)


@given(
    st.fixed_dictionaries(
        {"inputTokens": COUNTS, "outputTokens": COUNTS},
        optional={
            "totalTokens": COUNTS,
            "cacheReadInputTokens": COUNTS,
            "cacheWriteInputTokens": COUNTS,
            "cacheDetails": st.none()
            | st.lists(
                st.fixed_dictionaries({"ttl": st.sampled_from(["5m", "1h", "8h"]), "inputTokens": COUNTS}), max_size=4
            ),
        },
    )
)
def test_what_is_billed_is_the_same_in_both_forms(usage):
    assert accounting.openai_chat(converse.openai_usage(usage)) == accounting.bedrock_converse(usage)


@pytest.mark.parametrize(
    "usage",
    [
        {"inputTokens": -1, "outputTokens": 1},
        {"inputTokens": 1.5, "outputTokens": 1},
        {"inputTokens": True, "outputTokens": 1},
        {"inputTokens": 2**63 - 1, "outputTokens": 1, "cacheReadInputTokens": 1},
        {"inputTokens": 1, "cacheDetails": "x"},
        {"inputTokens": 1, "cacheDetails": [{"ttl": "1h", "inputTokens": "2"}]},
    ],
)
def test_counts_that_are_none_are_not_passed_on(usage):
    assert converse.openai_usage(usage) is None
    assert "usage" not in completed({"text": "x"}, usage=usage)
    with pytest.raises(InvalidUsage):
        accounting.bedrock_converse(usage)


def raised(status, error_type, body):
    """The exception that the openai SDK makes of the error."""
    raw = converse.error_body(status, error_type, body)
    client = openai.OpenAI(api_key="k", base_url="http://127.0.0.1/v1")
    response = httpx2.Response(status, content=raw, request=httpx2.Request("POST", "http://127.0.0.1/v1"))
    return client._make_status_error_from_response(response)


@pytest.mark.parametrize(
    ("status", "name", "kind", "type_", "code"),
    [
        (400, "ValidationException", openai.BadRequestError, "invalid_request_error", None),
        (404, "ResourceNotFoundException", openai.NotFoundError, "invalid_request_error", "model_not_found"),
        (429, "ThrottlingException", openai.RateLimitError, "rate_limit_error", "rate_limit_exceeded"),
        (429, "ModelNotReadyException", openai.RateLimitError, "rate_limit_error", "model_not_ready"),
        (408, "ModelTimeoutException", openai.APIStatusError, "server_error", "timeout"),
        (424, "ModelErrorException", openai.APIStatusError, "server_error", "model_error"),
        (500, "InternalServerException", openai.InternalServerError, "server_error", None),
        (503, "ServiceUnavailableException", openai.InternalServerError, "server_error", "service_unavailable"),
    ],
)
def test_errors_become_the_sdks_own(status, name, kind, type_, code):
    error = raised(status, f"{name}:http://internal.amazon.com/coral/com.amazon.bedrock/", b'{"message":"Why."}')
    assert isinstance(error, kind)
    assert (error.type, error.code, error.body["message"]) == (type_, code, "Why.")
    assert not converse.credential_refused(status, name, b"")


def test_exception_is_found_in_header_body_or_status():
    by_body = orjson.dumps({"__type": "com.amazon.coral#ThrottlingException", "Message": "Slow."})
    assert raised(429, "", by_body).code == "rate_limit_exceeded"
    assert raised(429, "", by_body).body["message"] == "Slow."
    assert raised(429, "", b"<html>").code == "rate_limit_exceeded"
    assert raised(418, "TeapotException", b"{}").body == {
        "message": "TeapotException",
        "type": "invalid_request_error",
        "param": None,
        "code": None,
    }


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("AccessDeniedException", "User: arn:aws:iam::123456789012:user/ops is not authorized to perform this."),
        ("UnrecognizedClientException", "The security token AKIDEXAMPLE is invalid."),
        ("InvalidSignatureException", "The Canonical String should have been …"),
        ("ExpiredTokenException", "The token AKIDEXAMPLE has expired."),
    ],
)
def test_words_about_the_operators_credential_are_not_shown(name, text):
    body = orjson.dumps({"message": text})
    assert converse.credential_refused(403, name, body)
    error = raised(403, name, body)
    assert isinstance(error, openai.PermissionDeniedError)
    assert error.code == "access_denied"
    assert not any(word in str(error) for word in ("arn:", "AKID", "String"))


@given(st.integers(400, 599), st.text(max_size=30), st.binary(max_size=50))
def test_any_error_is_one_of_openais(status, error_type, body):
    error = orjson.loads(converse.error_body(status, error_type, body))["error"]
    assert error["message"]
    assert error.keys() == {"message", "type", "param", "code"}
