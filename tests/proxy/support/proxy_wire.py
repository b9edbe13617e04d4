"""Owns calls of every wire format in tests: what is sent, to which RPC, and what came back."""

import json
from dataclasses import dataclass

import orjson
from google.api import httpbody_pb2
from proxy_fakes import price
from tollkeeper.pricing.v1 import resources_pb2
from tollkeeper.proxy.v1 import wire_service_pb2 as pb

HELLO = "Hello, world"

# Nanos for one token, all different, so that one component can be taken for no other.
RATES = {
    "input": 3_000,
    "cache_read": 310,
    "cache_write_5m": 3_700,
    "cache_write_1h": 6_100,
    "audio_input": 40_000,
    "image_input": 5_300,
    "output": 15_000,
    "reasoning": 17_000,
    "audio_output": 80_000,
}
OUTPUTS = ("reasoning", "audio_output")

# By form: the model that is asked, its provider, and a body without the model.
FORMS = {
    "chat": ("gpt-4o", "openai", {"messages": [{"role": "user", "content": HELLO}]}),
    "responses": ("gpt-4o", "openai", {"input": HELLO}),
    "embeddings": ("text-embedding-3-small", "openai", {"input": HELLO}),
    "messages": ("claude-3-haiku", "anthropic", {"messages": [{"role": "user", "content": HELLO}], "max_tokens": 100}),
    "gemini": ("gemini-1.5-pro", "google", {"contents": [{"role": "user", "parts": [{"text": HELLO}]}]}),
    "converse": ("claude-sonnet", "bedrock", {"messages": [{"role": "user", "content": HELLO}]}),
}
STREAMED = [form for form in FORMS if form != "embeddings"]
_RPCS = {
    "chat": "ChatCompletions",
    "responses": "Responses",
    "embeddings": "Embeddings",
    "messages": "Messages",
    "converse": "ChatCompletions",
}


def dear(model, provider, **fields):
    """A price with a rate of its own for every component."""
    found = price(model, provider, **fields)
    del found.rates[:]
    found.rates.extend(
        resources_pb2.Rate(component=name, nanos_per_million=nanos * 1_000_000) for name, nanos in RATES.items()
    )
    return found


def cost_of(**tokens):
    """Nanos for tokens as a provider names them: `input` and `output` are wholes, the others parts of theirs."""
    parts = {name: tokens.pop(name) for name in tuple(tokens) if name not in {"input", "output"}}
    plain = {
        "input": tokens["input"] - sum(count for name, count in parts.items() if name not in OUTPUTS),
        "output": tokens.get("output", 0) - sum(count for name, count in parts.items() if name in OUTPUTS),
    }
    return sum(RATES[name] * count for name, count in (plain | parts).items())


def every_provider(url, **changes):
    """Settings that reach all five providers below one address."""
    return {
        "openai_base_url": f"{url}/openai/v1",
        "openai_api_key": "sandbox",
        "anthropic_base_url": f"{url}/anthropic/v1",
        "anthropic_api_key": "sandbox",
        "google_base_url": f"{url}/google/v1beta/openai",
        "google_native_base_url": f"{url}/google/v1beta",
        "google_api_key": "sandbox",
        "huggingface_base_url": f"{url}/huggingface/v1",
        "huggingface_api_key": "sandbox",
        "bedrock_base_url": f"{url}/bedrock",
        "bedrock_access_key_id": "sandbox",
        "bedrock_secret_access_key": "secret",
    } | changes


@dataclass
class WireAnswer:
    """What came back: response headers and the body, whole."""

    headers: dict
    content_type: str
    body: bytes

    @property
    def status(self):
        return int(self.headers.get("x-tollkeeper-http-status", 200))

    def json(self):
        return json.loads(self.body)

    def objects(self):
        """The objects of a stream's events."""
        lines = [line.partition(b"data:")[2].strip() for line in self.body.splitlines() if line.startswith(b"data:")]
        return [json.loads(line) for line in lines if line.startswith(b"{")]


def saying(form, words, **fields):
    """A body of this form whose user says these words, without the model."""
    text = json.dumps(FORMS[form][2]).replace(HELLO, json.dumps(words)[1:-1])
    return json.loads(text) | fields


def start(proxy, key, form, body=None, *, model=None, stream=False, metadata=()):
    """Begin a call. `body` is a dict without its model, or bytes that are sent as they are."""
    model = FORMS[form][0] if model is None else model
    body = FORMS[form][2] if body is None else body
    sent = (("authorization", f"Bearer {key}"), *metadata)
    if form == "gemini":
        data = httpbody_pb2.HttpBody(data=body if isinstance(body, bytes) else orjson.dumps(body))
        if stream:
            request = pb.StreamGenerateContentRequest(model=model, alt="sse", body=data)
            return proxy.wire.StreamGenerateContent(request, metadata=sent)
        return proxy.wire.GenerateContent(pb.GenerateContentRequest(model=model, body=data), metadata=sent)
    if isinstance(body, dict):
        body = orjson.dumps({"model": model, **body, **({"stream": True} if stream else {})})
    return getattr(proxy.wire, _RPCS[form])(httpbody_pb2.HttpBody(data=body), metadata=sent)


async def ask(proxy, key, form, body=None, **words):
    """Make a call and read its answer to the end."""
    call = start(proxy, key, form, body, **words)
    content_type, pieces = "", []
    async for message in call:
        content_type = content_type or message.content_type
        pieces.append(message.data)
    return WireAnswer(dict(await call.initial_metadata()), content_type, b"".join(pieces))
