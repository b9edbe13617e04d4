"""Owns the model call that is measured, as bytes: what clients send, what the provider answers, what it costs."""

from typing import Any

import orjson

MODEL = "gpt-4o"
PATH = "/v1/chat/completions"
# The same answer without the gateway; calls of it are counted apart.
DIRECT_PATH = "/direct/chat/completions"
COUNT_PATH = "/count"
RPC = "/tollkeeper.proxy.v1.WireService/ChatCompletions"
CHUNKS = 20

_INPUT_TOKENS, _OUTPUT_TOKENS = 20, 10
# gpt-4o is 5 USD in and 15 USD out per million tokens; the prepaid plan bills one and a half times that.
PRICE_NANOS = (_INPUT_TOKENS * 5_000 + _OUTPUT_TOKENS * 15_000) * 3 // 2

_USAGE = {
    "prompt_tokens": _INPUT_TOKENS,
    "completion_tokens": _OUTPUT_TOKENS,
    "total_tokens": _INPUT_TOKENS + _OUTPUT_TOKENS,
    "prompt_tokens_details": {"cached_tokens": 0, "audio_tokens": 0},
    "completion_tokens_details": {"reasoning_tokens": 0, "audio_tokens": 0},
}
_HEAD = {"id": "chatcmpl-bench", "created": 1_767_225_600, "model": MODEL}
_MESSAGES = [
    {"role": "system", "content": "You are a helpful assistant."},
    {"role": "user", "content": "What is a toll, and who keeps it?"},
]


def body(*, stream: bool) -> bytes:
    """What a client sends."""
    call: dict[str, Any] = {"model": MODEL, "messages": _MESSAGES, "max_tokens": 64}
    return orjson.dumps(call | {"stream": True} if stream else call)


def asks_for_stream(request: bytes) -> bool:
    """Whether a request, as sent here or written anew by the proxy, asks for a stream."""
    return b'"stream":true' in request


def http_request(path: str, port: int, key: str, *, stream: bool) -> bytes:
    """A whole HTTP/1.1 request."""
    sent = body(stream=stream)
    return (
        f"POST {path} HTTP/1.1\r\nhost: 127.0.0.1:{port}\r\nauthorization: Bearer {key}\r\n"
        f"content-type: application/json\r\ncontent-length: {len(sent)}\r\n\r\n"
    ).encode() + sent


def completion() -> bytes:
    """A unary answer's body."""
    text = "A toll is a fee for passing; whoever keeps the road keeps it."
    message = {"role": "assistant", "content": text, "refusal": None}
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": "stop"}
    return orjson.dumps({"object": "chat.completion", **_HEAD, "choices": [choice], "usage": _USAGE})


def events() -> list[bytes]:
    """A streamed answer's events: `CHUNKS` with text, the end's, the one with usage, and DONE."""

    def event(choices: list[dict[str, Any]], **more: Any) -> bytes:
        chunk = {"object": "chat.completion.chunk", **_HEAD, "choices": choices, **more}
        return b"data: " + orjson.dumps(chunk) + b"\n\n"

    def choice(delta: dict[str, Any], reason: str | None = None) -> list[dict[str, Any]]:
        return [{"index": 0, "delta": delta, "logprobs": None, "finish_reason": reason}]

    texts = [event(choice({"content": f" word{number}"}), usage=None) for number in range(CHUNKS)]
    return [*texts, event(choice({}, "stop"), usage=None), event([], usage=_USAGE), b"data: [DONE]\n\n"]
