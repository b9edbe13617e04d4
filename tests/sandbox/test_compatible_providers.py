"""The OpenAI-compatible addresses of Anthropic, Google and Hugging Face: the openai SDK, each provider's own errors."""

from __future__ import annotations

import openai
import pytest

from deploy.local.sandbox.provider import tokens

PROVIDERS = {
    "anthropic": ("/v1", "claude-3-haiku"),
    "google": ("/v1beta/openai", "gemini-1.5-pro"),
    "huggingface": ("/v1", "meta-llama/Llama-3.1-8B-Instruct"),
}
USER = [{"role": "user", "content": "hello"}]


@pytest.fixture(params=PROVIDERS)
def provider(request):
    return request.param


@pytest.fixture(params=["", "named"])
def client(sandbox, provider, request):
    """A client at the provider's own path, and at the same path below the provider's name."""
    path, _ = PROVIDERS[provider]
    prefix = f"/{provider}" if request.param else ""
    with openai.OpenAI(base_url=f"{sandbox.url}{prefix}{path}", api_key="k", max_retries=0) as client:
        yield client


def test_unary_and_streamed_calls_are_counted_for_the_right_provider(client, provider, sandbox):
    model = PROVIDERS[provider][1]
    unary = client.chat.completions.create(model=model, messages=USER)
    with client.chat.completions.stream(model=model, messages=USER, stream_options={"include_usage": True}) as stream:
        streamed = stream.get_final_completion()
    for completion in (unary, streamed):
        assert completion.choices[0].message.content == tokens.DEFAULT_ANSWER
        assert completion.usage.prompt_tokens == 3 + 4 + 1
        assert completion.usage.completion_tokens == len(tokens.DEFAULT_TOKENS)
    assert sandbox.usage()["by_provider"].keys() == {provider}


@pytest.mark.parametrize(
    ("status", "expected"),
    [(400, openai.BadRequestError), (429, openai.RateLimitError), (503, openai.InternalServerError)],
)
def test_errors_become_the_sdks_exceptions(client, provider, status, expected):
    message = [{"role": "user", "content": f"[[sandbox status={status}]]"}]
    with pytest.raises(expected) as raised:
        client.chat.completions.create(model=PROVIDERS[provider][1], messages=message)
    assert raised.value.status_code == status


def test_google_wraps_its_errors_in_a_list(sandbox):
    body = {"model": "gemini-1.5-pro", "messages": []}
    answer = sandbox.call("POST", "/v1beta/openai/chat/completions", body, authorization="Bearer k")
    (error,) = answer.json()
    assert (answer.status, error["error"]["status"]) == (400, "INVALID_ARGUMENT")


def test_hugging_face_says_its_own_errors_in_a_bare_string(sandbox):
    body = {"model": "owner/name", "messages": [{"role": "user", "content": "[[sandbox status=429]]"}]}
    answer = sandbox.call("POST", "/v1/chat/completions", body, authorization="Bearer k")
    assert isinstance(answer.json()["error"], str)


def test_a_provider_named_in_the_path_serves_any_model(sandbox):
    body = {"model": "gpt-4o", "messages": USER}
    assert sandbox.call("POST", "/huggingface/v1/chat/completions", body, authorization="Bearer k").status == 200
    assert sandbox.last_record()["provider"] == "huggingface"


def test_a_provider_has_only_its_own_addresses(sandbox):
    for path in ("/anthropic/v1/embeddings", "/openai/v1/messages", "/bedrock/v1/chat/completion", "/v2/anything"):
        answer = sandbox.call("POST", path, {}, authorization="Bearer k")
        assert answer.status == 404
        assert "Invalid URL" in answer.json()["error"]["message"]
