"""Provider keys: each provider's own place for them, and each provider's own refusal."""

from __future__ import annotations

import datetime as dt
import hashlib
import hmac
from urllib.parse import quote

import anthropic
import openai
import pytest
from google import genai
from google.genai import errors, types

from deploy.local.sandbox.provider import sigv4

USER = [{"role": "user", "content": "hello"}]
CHAT = {"model": "gpt-4o", "messages": USER}
MESSAGE = {"model": "claude-3-haiku", "max_tokens": 9, "messages": USER}
GEMINI = "/v1beta/models/gemini-1.5-pro:generateContent"
CONTENTS = {"contents": [{"parts": [{"text": "hello"}]}]}
CONVERSE = "/model/anthropic.claude-3-haiku%3A0/converse"
CONVERSATION = b'{"messages":[{"role":"user","content":[{"text":"hello"}]}]}'


@pytest.mark.parametrize(
    ("path", "body", "accepted"),
    [
        ("/v1/chat/completions", CHAT, [{"authorization": "Bearer {key}"}, {"authorization": "bearer {key}"}]),
        ("/v1/messages", MESSAGE, [{"x_api_key": "{key}"}, {"authorization": "Bearer {key}"}]),
        ("/anthropic/v1/chat/completions", CHAT, [{"authorization": "Bearer {key}"}]),
        (GEMINI, CONTENTS, [{"x_goog_api_key": "{key}"}, {"authorization": "Bearer {key}"}]),
        ("/v1beta/openai/chat/completions", CHAT, [{"authorization": "Bearer {key}"}]),
        ("/huggingface/v1/chat/completions", CHAT, [{"authorization": "Bearer {key}"}]),
    ],
)
def test_key_is_taken_where_the_provider_takes_it(guarded_sandbox, path, body, accepted):
    version = {"anthropic_version": "2023-06-01"} if path == "/v1/messages" else {}
    for headers in accepted:
        right = {name: value.format(key=guarded_sandbox.key) for name, value in headers.items()}
        wrong = {name: value.format(key="wrong") for name, value in headers.items()}
        assert guarded_sandbox.call("POST", path, body, **version, **right).status == 200
        assert guarded_sandbox.call("POST", path, body, **version, **wrong).status in (400, 401)
    assert guarded_sandbox.call("POST", path, body, **version).status in (400, 401, 403)


def test_openai_does_not_take_another_providers_header(guarded_sandbox):
    answer = guarded_sandbox.call("POST", "/v1/chat/completions", CHAT, x_api_key=guarded_sandbox.key)
    assert answer.status == 401
    assert "didn't provide an API key" in answer.json()["error"]["message"]


def test_google_takes_the_key_from_the_query(guarded_sandbox):
    assert guarded_sandbox.call("POST", f"{GEMINI}?key={guarded_sandbox.key}", CONTENTS).status == 200
    assert guarded_sandbox.call("POST", f"{GEMINI}?alt=json&key=wrong", CONTENTS).status == 400


def test_openai_sdk_raises_authentication_error(guarded_sandbox):
    with (
        openai.OpenAI(base_url=f"{guarded_sandbox.url}/v1", api_key="sk-wrong-1234", max_retries=0) as client,
        pytest.raises(openai.AuthenticationError) as raised,
    ):
        client.chat.completions.create(model="gpt-4o", messages=USER)
    assert raised.value.code == "invalid_api_key"
    assert "sk-wrong-1234" not in str(raised.value)


def test_anthropic_sdk_raises_authentication_error(guarded_sandbox):
    with (
        anthropic.Anthropic(base_url=guarded_sandbox.url, api_key="wrong", max_retries=0) as client,
        pytest.raises(anthropic.AuthenticationError) as raised,
    ):
        client.messages.create(**MESSAGE)
    assert raised.value.body["error"]["type"] == "authentication_error"


def test_anthropic_says_which_header_was_wrong(guarded_sandbox):
    for headers, message in (
        ({"x_api_key": "wrong"}, "invalid x-api-key"),
        ({"authorization": "Bearer wrong"}, "Invalid bearer token"),
        ({}, "x-api-key header is required"),
    ):
        answer = guarded_sandbox.call("POST", "/v1/messages", MESSAGE, anthropic_version="2023-06-01", **headers)
        error = {"type": "authentication_error", "message": message}
        assert (answer.status, answer.json()["error"]) == (401, error)


def test_google_sdk_raises_client_error_that_names_the_key(guarded_sandbox):
    client = genai.Client(api_key="wrong", http_options=types.HttpOptions(base_url=guarded_sandbox.url))
    with pytest.raises(errors.ClientError) as raised:
        client.models.generate_content(model="gemini-1.5-pro", contents="hello")
    client.close()
    assert raised.value.code == 400  # as Google does it, and not 401
    assert raised.value.details["error"]["details"][0]["reason"] == "API_KEY_INVALID"


def test_google_without_a_key_is_permission_denied(guarded_sandbox):
    answer = guarded_sandbox.call("POST", GEMINI, CONTENTS)
    assert (answer.status, answer.json()["error"]["status"]) == (403, "PERMISSION_DENIED")


def test_hugging_face_refuses_with_a_bare_string(guarded_sandbox):
    answer = guarded_sandbox.call("POST", "/huggingface/v1/chat/completions", CHAT, authorization="Bearer wrong")
    assert (answer.status, answer.json()) == (401, {"error": "Invalid username or password."})


def test_refused_key_costs_nothing_and_is_logged(start_sandbox):
    guarded = start_sandbox("--api-key", "one", "--api-key", "two")
    for key in ("one", "two"):
        assert guarded.call("POST", "/v1/chat/completions", CHAT, authorization=f"Bearer {key}").status == 200
    assert guarded.call("POST", "/v1/chat/completions", CHAT, authorization="Bearer three").status == 401
    record = guarded.last_record(requests=3)
    assert (record["status"], record["input_tokens"], record["output_tokens"]) == (401, 0, 0)


def test_any_key_will_do_without_the_option_but_none_will_not(sandbox):
    assert sandbox.call("POST", "/v1/chat/completions", CHAT, authorization="Bearer anything").status == 200
    for headers in ({}, {"authorization": "Bearer "}, {"authorization": "Basic eDp5"}):
        assert sandbox.call("POST", "/v1/chat/completions", CHAT, **headers).status == 401


def test_models_need_a_key_too(guarded_sandbox):
    assert guarded_sandbox.call("GET", "/v1/models").status == 401
    assert guarded_sandbox.call("GET", "/v1/models", authorization=f"Bearer {guarded_sandbox.key}").status == 200


def signed(sandbox, access_key, secret, body=CONVERSATION, path=CONVERSE):
    """Headers signed step by step as AWS describes, apart from the code under test."""
    now = dt.datetime.now(dt.UTC).strftime("%Y%m%dT%H%M%SZ")
    day, scope = now[:8], f"{now[:8]}/us-east-1/bedrock/aws4_request"
    host = f"{sandbox.host}:{sandbox.port}"
    canonical = (
        f"POST\n{quote(path, safe='/')}\n\nhost:{host}\nx-amz-date:{now}\n\nhost;x-amz-date\n"
        f"{hashlib.sha256(body).hexdigest()}"
    )
    to_sign = f"AWS4-HMAC-SHA256\n{now}\n{scope}\n{hashlib.sha256(canonical.encode()).hexdigest()}"
    key = f"AWS4{secret}".encode()
    for part in (day, "us-east-1", "bedrock", "aws4_request"):
        key = hmac.digest(key, part.encode(), "sha256")
    signature = hmac.digest(key, to_sign.encode(), "sha256").hex()
    authorization = (
        f"AWS4-HMAC-SHA256 Credential={access_key}/{scope}, SignedHeaders=host;x-amz-date, Signature={signature}"
    )
    return {"authorization": authorization, "x_amz_date": now}


def test_bedrock_verifies_the_signature(guarded_sandbox):
    headers = signed(guarded_sandbox, guarded_sandbox.key, "sandbox-secret")
    assert guarded_sandbox.call("POST", CONVERSE, CONVERSATION, **headers).status == 200

    def exception(path=CONVERSE, body=CONVERSATION, **changed):
        answer = guarded_sandbox.call("POST", path, body, **changed)
        assert answer.status == 403
        return answer.headers["x-amzn-errortype"]

    assert exception(body=CONVERSATION + b" ", **headers) == "InvalidSignatureException"
    assert exception(path=CONVERSE.replace("haiku", "opus"), **headers) == "InvalidSignatureException"
    assert exception(**headers | {"x_amz_date": "20200101T000000Z"}) == "InvalidSignatureException"
    assert exception(**signed(guarded_sandbox, guarded_sandbox.key, "guessed")) == "InvalidSignatureException"
    assert exception(**signed(guarded_sandbox, "AKIDOTHER", "sandbox-secret")) == "UnrecognizedClientException"
    assert exception(authorization=headers["authorization"]) == "IncompleteSignatureException"
    assert exception(authorization="Bearer x", x_amz_date=headers["x_amz_date"]) == "IncompleteSignatureException"
    assert exception() == "MissingAuthenticationTokenException"


def test_published_example_signature_is_recognised():
    # AWS IAM user guide, the ListUsers example of Signature Version 4.
    authorization = (
        "AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/20150830/us-east-1/iam/aws4_request, "
        "SignedHeaders=content-type;host;x-amz-date, "
        "Signature=5d672d79c15b13162d9279b0855cfba6789a8edb4c82c400e06b5924a6f2b5d7"
    )
    headers = {
        "content-type": "application/x-www-form-urlencoded; charset=utf-8",
        "host": "iam.amazonaws.com",
        "x-amz-date": "20150830T123600Z",
    }
    signature = sigv4.read(authorization)
    assert signature is not None

    def holds(secret):
        query = "Action=ListUsers&Version=2010-05-08"
        return sigv4.is_signed_by(signature, secret, method="GET", raw_path="/", query=query, headers=headers, body=b"")

    assert holds("wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY")
    assert not holds("wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEZ")
