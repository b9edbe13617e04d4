"""Owns OpenAI's chat completions, which Anthropic, Google and Hugging Face serve too at compatible addresses."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

import orjson

from deploy.local.sandbox.provider import tokens
from deploy.local.sandbox.provider.answer import Answer, Finish, Usage, groups
from deploy.local.sandbox.provider.prompt import Prompt, Tool
from deploy.local.sandbox.provider.refusal import Dialect, Provider, Refusal, stream_error
from deploy.local.sandbox.provider.routes import Route
from deploy.local.sandbox.provider.wire import openai_fields as fields
from deploy.local.sandbox.provider.wire.base import SSE, Body, Chunk, sse

_ROLES: Final = ("system", "assistant", "user", "function", "tool", "developer")
_PARTS: Final = ("text", "image_url", "input_audio", "refusal", "audio", "file")
_MOST_CHOICES: Final = 128
_MOST_STOPS: Final = 4
# Models of OpenAI that think before they answer take the cap under its new name only.
_THINKING_MODELS: Final = ("o1", "o3", "o4", "gpt-5", "gpt-6")

_FINISH: Final = {
    Finish.STOP: "stop",
    Finish.STOP_SEQUENCE: "stop",
    Finish.LENGTH: "length",
    Finish.TOOL: "tool_calls",
}


class ChatCompletions:
    """The wire format of `POST /v1/chat/completions`."""

    stream_content_type = SSE

    def read(self, body: Body, route: Route) -> Prompt:
        """Read a request. Raises Refusal where OpenAI would refuse it."""
        model = fields.model(body)
        if "messages" not in body:
            raise fields.missing("messages")
        messages = fields.rows(body, "messages")
        if not messages:
            problem = "empty array. Expected an array with minimum length 1, but got an empty array instead."
            raise fields.bad_request(f"Invalid 'messages': {problem}", param="messages", code="empty_array")
        fields.number(body, "temperature", 0, 2)
        fields.number(body, "top_p", 0, 1)
        counts = [_message_tokens(row, f"messages[{index}]") for index, row in enumerate(messages)]
        tools = _tools(body)
        definitions = sum(tokens.count_json(tool) for tool in fields.rows(body, "tools"))
        response_format, schema = _response_format(body)
        stream = fields.boolean(body, "stream")
        options = fields.table(body, "stream_options")
        if options and not stream:
            message = "The 'stream_options' parameter is only allowed when 'stream' is enabled."
            raise fields.bad_request(message, param="stream_options")
        return Prompt(
            model=model,
            input_tokens=tokens.count_call(counts) + definitions + response_format,
            last_user_text=_last_user_text(messages),
            stream=stream,
            cap=_cap(body, model, route),
            choices=fields.integer(body, "n", 1, _MOST_CHOICES) or 1,
            stops=_stops(body),
            tools=tools,
            required_tool=fields.required_tool(body.get("tool_choice"), tools),
            json_schema=schema,
            stream_usage=fields.boolean(options, "include_usage"),
            body=body,
        )

    def unary(self, answer: Answer) -> bytes:
        """A `chat.completion`."""
        message: dict[str, Any] = {
            "role": "assistant",
            "content": "".join(answer.text),
            "refusal": None,
            "annotations": [],
        }
        if answer.call is not None:
            arguments = "".join(answer.call.arguments)
            message["content"] = None
            message["tool_calls"] = [
                {
                    "id": _call_id(answer),
                    "type": "function",
                    "function": {"name": answer.call.name, "arguments": arguments},
                }
            ]
        completion = _head(answer, "chat.completion")
        completion["choices"] = [
            {"index": index, "message": message, "logprobs": None, "finish_reason": _FINISH[answer.finish]}
            for index in range(answer.prompt.choices)
        ]
        if answer.usage_shown:
            completion["usage"] = _usage(answer.usage)
        return orjson.dumps(completion)

    def stream(self, answer: Answer) -> Iterator[Chunk]:
        """`chat.completion.chunk` events, then `[DONE]`."""
        head = _head(answer, "chat.completion.chunk")
        with_usage = answer.prompt.stream_usage and answer.usage_shown
        if answer.prompt.stream_usage:
            head["usage"] = None
        choices = range(answer.prompt.choices)

        def event(index: int, delta: dict[str, Any], finish: str | None = None) -> bytes:
            choice = {"index": index, "delta": delta, "logprobs": None, "finish_reason": finish}
            return sse(head | {"choices": [choice]})

        for index in choices:
            opening: dict[str, Any] = {"role": "assistant", "content": "", "refusal": None}
            said = len(answer.reasoning)
            if answer.call is not None:
                function = {"name": answer.call.name, "arguments": ""}
                call = {"index": 0, "id": _call_id(answer), "type": "function", "function": function}
                opening = {"role": "assistant", "content": None, "tool_calls": [call]}
                said += tokens.count(answer.call.name)
            yield Chunk(event(index, opening), said)
        pieces = answer.text if answer.call is None else answer.call.arguments
        for text, length in groups(pieces, answer.chunk_tokens):
            for index in choices:
                delta: dict[str, Any] = {"content": text}
                if answer.call is not None:
                    delta = {"tool_calls": [{"index": 0, "function": {"arguments": text}}]}
                yield Chunk(event(index, delta), length, content=True)
        for index in choices:
            yield Chunk(event(index, {}, _FINISH[answer.finish]))
        if with_usage:
            yield Chunk(sse(head | {"choices": [], "usage": _usage(answer.usage)}))
        yield Chunk(b"data: [DONE]\n\n")

    def stream_error(self, dialect: Dialect, refusal: Refusal, request_id: str) -> bytes:
        """An event that holds an error object where a chunk should be."""
        return sse(stream_error(dialect, refusal, request_id))


def _head(answer: Answer, kind: str) -> dict[str, Any]:
    return {
        "id": f"chatcmpl-sandbox-{answer.number}",
        "object": kind,
        "created": answer.created,
        "model": answer.prompt.model,
        "service_tier": "default",
        "system_fingerprint": "fp_sandbox",
    }


def _call_id(answer: Answer) -> str:
    return f"call_sandbox_{answer.number}"


def _usage(usage: Usage) -> dict[str, Any]:
    return {
        "prompt_tokens": usage.input,
        "completion_tokens": usage.output,
        "total_tokens": usage.input + usage.output,
        "prompt_tokens_details": {
            "cached_tokens": usage.cached,
            "cache_write_tokens": usage.cache_write + usage.cache_write_1h,
            "audio_tokens": 0,
        },
        "completion_tokens_details": {
            "reasoning_tokens": usage.reasoning,
            "audio_tokens": 0,
            "accepted_prediction_tokens": 0,
            "rejected_prediction_tokens": 0,
        },
    }


def _cap(body: Body, model: str, route: Route) -> int | None:
    old = fields.integer(body, "max_tokens", 1)
    new = fields.integer(body, "max_completion_tokens", 1)
    if old is not None and route.provider is Provider.OPENAI and model.startswith(_THINKING_MODELS):
        message = (
            "Unsupported parameter: 'max_tokens' is not supported with this model. Use 'max_completion_tokens' instead."
        )
        raise fields.bad_request(message, param="max_tokens", code="unsupported_parameter")
    if old is not None and new is not None:
        message = "Setting 'max_tokens' and 'max_completion_tokens' at the same time is not supported."
        raise fields.bad_request(message, param="max_tokens", code="invalid_parameter_combination")
    return old if new is None else new


def _stops(body: Body) -> tuple[str, ...]:
    value = body.get("stop")
    if value is None:
        return ()
    stops = [value] if isinstance(value, str) else value
    if not isinstance(stops, list) or not all(isinstance(stop, str) for stop in stops):
        raise fields.wrong_type("stop", "a string or an array of strings", value)
    if len(stops) > _MOST_STOPS:
        message = f"Invalid 'stop': array too long. Expected an array with maximum length {_MOST_STOPS}."
        raise fields.bad_request(message, param="stop", code="array_above_max_length")
    return tuple(stops)


def _tools(body: Body) -> tuple[Tool, ...]:
    found = []
    for index, row in enumerate(fields.rows(body, "tools")):
        if row.get("type") != "function":
            continue  # custom and hosted tools are counted, and never called
        function = fields.table(row, "function")
        name = function.get("name")
        if not isinstance(name, str) or not name:
            raise fields.missing(f"tools[{index}].function.name")
        found.append(Tool(name, fields.table(function, "parameters")))
    return tuple(found)


def _response_format(body: Body) -> tuple[int, Body | None]:
    """The tokens of a response format's schema, and the schema that the answer has to follow."""
    value = fields.table(body, "response_format")
    match value.get("type", "text"):
        case "text":
            return 0, None
        case "json_object":
            return 0, {}
        case "json_schema":
            schema = fields.table(fields.table(value, "json_schema"), "schema")
            return tokens.count_json(schema), schema
        case other:
            raise fields.unsupported_value("response_format.type", other, ("json_object", "json_schema", "text"))


def _message_tokens(row: Body, param: str) -> int:
    role = row.get("role")
    if role is None:
        raise fields.missing(f"{param}.role")
    if role not in _ROLES:
        raise fields.unsupported_value(f"{param}.role", role, _ROLES)
    total = _content_tokens(row, param, optional=role == "assistant")
    if isinstance(row.get("name"), str):
        total += 1 + tokens.count(row["name"])
    for call in fields.rows(row, "tool_calls"):
        function = fields.table(call, "function")
        total += tokens.count(str(function.get("name", ""))) + tokens.count(str(function.get("arguments", "")))
    return total


def _content_tokens(row: Body, param: str, *, optional: bool) -> int:
    content = row.get("content")
    if isinstance(content, str):
        return tokens.count(content)
    if content is None:
        if optional:
            return 0
        raise fields.bad_request("Invalid value for 'content': expected a string, got null.", param=f"{param}.content")
    if not isinstance(content, list):
        raise fields.wrong_type(f"{param}.content", "one of a string or array of objects", content)
    return sum(
        _part_tokens(part, f"{param}.content[{index}]") for index, part in enumerate(fields.rows(row, "content"))
    )


def _part_tokens(part: Body, param: str) -> int:
    match part.get("type"):
        case "text" | "refusal" as kind:
            text = part.get(kind)
            if not isinstance(text, str):
                raise fields.wrong_type(f"{param}.{kind}", "a string", text)
            return tokens.count(text)
        case "image_url":
            image = fields.table(part, "image_url")
            if not isinstance(image.get("url"), str):
                raise fields.missing(f"{param}.image_url.url")
            return fields.image_tokens(image.get("detail"))
        case "input_audio" | "audio":
            return tokens.count_base64(str(fields.table(part, "input_audio").get("data", "")))
        case "file":
            return tokens.count_base64(str(fields.table(part, "file").get("file_data", "")))
        case other:
            raise fields.unsupported_value(f"{param}.type", other, _PARTS)


def _last_user_text(messages: list[Body]) -> str:
    for row in reversed(messages):
        if row.get("role") == "user":
            content = row.get("content")
            if isinstance(content, str):
                return content
            return "\n".join(str(part.get("text", "")) for part in content or ())
    return ""
