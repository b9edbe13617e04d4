"""What a provider says of an error reaches the client's SDK, but for what names the operator there."""

import json

import pytest
from proxy_upstream import answer, scripted, stream

SAID = "Rate limit reached for gpt-4o in organization org-AbC123xyz456. See http://10.0.3.4:8000."
ERROR = {"message": SAID, "type": "tokens", "param": None, "code": "rate_limit_exceeded"}
CHUNK = {"id": "1", "object": "chat.completion.chunk", "created": 1, "model": "gpt-4o"}
SPOKEN = {**CHUNK, "choices": [{"index": 0, "delta": {"content": "org-AbC123xyz456"}, "finish_reason": None}]}


def told(value):
    return json.dumps(value).encode()


def event(value):
    return b"data: " + told(value) + b"\n\n"


WAYS = {
    "refusal": (False, answer(told({"error": ERROR}), status=400)),
    "in place of an answer": (False, answer(told({"error": ERROR}))),
    "first event": (True, stream(event({"error": ERROR}))),
    "in the midst": (True, stream(event(SPOKEN), event({"error": ERROR}))),
}


@pytest.mark.parametrize(("streamed", "steps"), WAYS.values(), ids=WAYS)
async def test_client_is_told_what_is_wrong_and_not_whose_credential_it_was(start_proxy, streamed, steps):
    async with scripted(steps) as provider:
        proxy = await start_proxy(openai_base_url=provider.url)
        key = (await proxy.make_key()).key
        answered = await proxy.chat(key, stream=streamed)
    errors = [one for one in answered.events() if "error" in one] if streamed else [answered.json()]
    (error,) = (one["error"] for one in errors)
    assert (error["type"], error["code"]) == ("tokens", "rate_limit_exceeded")
    assert error["message"] == "Rate limit reached for gpt-4o in organization [hidden]. See http://[hidden]."
    if answered.headers.get("x-tollkeeper-http-status"):
        assert answered.headers["x-tollkeeper-http-status"] == "400"


async def test_what_a_model_says_is_never_changed(start_proxy):
    done = {**CHUNK, "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}
    async with scripted(stream(event(SPOKEN), event(done), b"data: [DONE]\n\n")) as provider:
        proxy = await start_proxy(openai_base_url=provider.url)
        answered = await proxy.chat((await proxy.make_key()).key, stream=True)
    assert answered.events()[0]["choices"][0]["delta"]["content"] == "org-AbC123xyz456"
