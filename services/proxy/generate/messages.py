"""Owns the typed form of a model call: its request as a chat completion's JSON, and the JSON's answer as messages."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import orjson
from google.protobuf import json_format, struct_pb2
from tollkeeper.proxy.v1 import generate_service_pb2 as pb

from services.kit.validation import Violations
from services.proxy import provider_json
from services.proxy.calls.call import Call
from services.proxy.formats.answer import believed
from services.proxy.formats.reading import MAX_CAP, MAX_MESSAGES, MAX_MODEL_CHARS
from services.rating import accounting

_ROLES = ("assistant", "developer", "system", "tool", "user")
# What the typed form says by fields of its own.
_OWN = ("model", "messages", "stream", "stream_options", "max_tokens", "max_completion_tokens", "n")
_MAX_WHOLE = 2**53  # above it a floating number has not each integer
_MAX_SESSION_CHARS = 128
_MAX_REQUEST_ID_CHARS = 255


def chat_body(request: pb.GenerateRequest, *, stream: bool) -> bytes:
    """The chat completion that is asked for. Raises InvalidArgument naming every field that is wrong."""
    violations = Violations()
    violations.identifier("provider", request.provider, required=False)
    violations.text("model", request.model, max_length=MAX_MODEL_CHARS, required=True)
    violations.count("messages", request.messages, at_least=1, at_most=MAX_MESSAGES)
    violations.between("max_output_tokens", request.max_output_tokens, 0, MAX_CAP)
    violations.identifier("workspace", request.workspace, required=False)
    violations.text("session", request.session, max_length=_MAX_SESSION_CHARS)
    violations.text("request_id", request.request_id, max_length=_MAX_REQUEST_ID_CHARS)
    if request.request_id and stream:
        violations.add("request_id", "is for answers that come whole; a stream is not kept")
    options = _plain(violations, "options", request.options)
    for name in _OWN:
        if name in options:
            violations.add(f"options.{name}", "is said by a field of its own, or not at all")
    violations.raise_if_any()
    messages = [_message(violations, number, message) for number, message in enumerate(request.messages)]
    violations.raise_if_any()
    body = {**options, "model": request.model, "messages": messages}
    if request.max_output_tokens:
        body["max_completion_tokens"] = request.max_output_tokens
    if stream:
        body["stream"] = True
    return orjson.dumps(body)


def _message(violations: Violations, number: int, message: pb.Message) -> dict[str, Any]:
    at = f"messages[{number}]"
    violations.one_of(f"{at}.role", message.role, _ROLES)
    if message.text and message.parts:
        violations.add(f"{at}.parts", "must not stand beside text")
    found: dict[str, Any] = {"role": message.role}
    found["content"] = [_plain(violations, f"{at}.parts", part) for part in message.parts] or message.text
    if message.tool_calls:
        found["tool_calls"] = [_plain(violations, f"{at}.tool_calls", call) for call in message.tool_calls]
        found["content"] = found["content"] or None
    if message.refusal:
        found["refusal"] = message.refusal
    if message.tool_call_id:
        found["tool_call_id"] = message.tool_call_id
    return found


def _plain(violations: Violations, at: str, struct: struct_pb2.Struct) -> dict[str, Any]:
    """A Struct as JSON values; its numbers, which are all floating, as integers where they are whole."""
    try:
        found: dict[str, Any] = _whole(json_format.MessageToDict(struct))
    except ValueError:
        violations.add(at, "must have no numbers that JSON has not")
        return {}
    return found


def _whole(value: Any) -> Any:
    match value:
        case float() if value.is_integer() and abs(value) < _MAX_WHOLE:
            return int(value)
        case dict():
            return {name: _whole(inner) for name, inner in value.items()}
        case list():
            return [_whole(inner) for inner in value]
        case _:
            return value


def struct(value: dict[str, Any]) -> struct_pb2.Struct:
    """A JSON object as a Struct."""
    found = struct_pb2.Struct()
    json_format.ParseDict(value, found)
    return found


def response(body: bytes, call: Call) -> pb.GenerateResponse:
    """A whole chat completion's message."""
    answer: Any = provider_json.read(body)
    choice = answer["choices"][0]
    message = choice["message"]
    return pb.GenerateResponse(
        message=pb.Message(
            role="assistant",
            text=message.get("content") or "",
            refusal=message.get("refusal") or "",
            tool_calls=[struct(one) for one in message.get("tool_calls") or ()],
        ),
        finish_reason=choice.get("finish_reason") or "",
        provider=call.provider,
        model=call.request.model,
        usage=_usage(answer.get("usage"), call),
        credits=_credits(answer["credits"], call),
    )


def piece(chunk: Mapping[str, Any], call: Call, finish_reason: str) -> pb.StreamGenerateResponse:
    """A chunk's message; of the last one, which has the credits, with the reason why the model finished."""
    choices = chunk.get("choices") or [{}]
    delta = choices[0].get("delta") or {}
    found = pb.StreamGenerateResponse(
        text_delta=delta.get("content") or "",
        refusal_delta=delta.get("refusal") or "",
        tool_call_deltas=[struct(one) for one in delta.get("tool_calls") or ()],
    )
    if (credits_object := chunk.get("credits")) is not None:
        found.finish_reason = finish_reason
        found.usage.CopyFrom(_usage(chunk.get("usage"), call))
        found.credits.CopyFrom(_credits(credits_object, call))
    return found


def _usage(usage: object, call: Call) -> pb.TokenCounts:
    """As it was billed; of an answer that is given again, which is not counted anew, as it says."""
    told = believed(accounting.openai_chat, usage) if call.price_version == 0 else None
    counted = told or call.counted()
    return pb.TokenCounts(
        input_tokens=counted.input_tokens,
        output_tokens=counted.output_tokens,
        cached_tokens=counted.cache_read_tokens,
        reasoning_tokens=counted.reasoning_tokens,
        estimated=call.reader.estimated and call.price_version > 0,
    )


def _credits(told: Mapping[str, Any], call: Call) -> pb.CallCredits:
    return pb.CallCredits(
        cost_nanos=int(told["costNanos"]),
        remaining_nanos=call.available_nanos,
        request_id=told["requestId"],
        price_version=call.price_version,
    )
