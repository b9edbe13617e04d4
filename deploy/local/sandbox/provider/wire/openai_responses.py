"""Owns OpenAI's responses: the `response` object and the typed events that build it up."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

import orjson

from deploy.local.sandbox.provider import tokens
from deploy.local.sandbox.provider.answer import Answer, Finish, Usage, groups
from deploy.local.sandbox.provider.prompt import Prompt, Tool
from deploy.local.sandbox.provider.refusal import Dialect, Refusal, stream_error
from deploy.local.sandbox.provider.routes import Route
from deploy.local.sandbox.provider.wire import openai_fields as fields
from deploy.local.sandbox.provider.wire.base import SSE, Body, Chunk, sse

_ROLES: Final = ("assistant", "system", "developer", "user")
_LEAST_CAP: Final = 16
_PARTS: Final = ("input_text", "input_image", "output_text", "refusal", "input_file", "input_audio")

# What the answer repeats of the request, and what it says where the request did not.
_REPEATED: Final[dict[str, Any]] = {
    "background": False,
    "instructions": None,
    "max_output_tokens": None,
    "max_tool_calls": None,
    "metadata": {},
    "parallel_tool_calls": True,
    "previous_response_id": None,
    "reasoning": {"effort": None, "summary": None},
    "safety_identifier": None,
    "store": True,
    "temperature": 1.0,
    "text": {"format": {"type": "text"}},
    "tool_choice": "auto",
    "tools": [],
    "top_logprobs": 0,
    "top_p": 1.0,
    "truncation": "disabled",
    "user": None,
}


class Responses:
    """The wire format of `POST /v1/responses`."""

    stream_content_type = SSE

    def read(self, body: Body, route: Route) -> Prompt:  # noqa: ARG002  (the format does not depend on the address)
        """Read a request. Raises Refusal where OpenAI would refuse it."""
        model = fields.model(body)
        if body.get("previous_response_id") is not None:
            # The sandbox stores no responses, so there is none to go on from.
            message = f"Previous response with id '{body['previous_response_id']}' not found."
            raise fields.bad_request(message, param="previous_response_id", code="previous_response_not_found")
        fields.number(body, "temperature", 0, 2)
        fields.number(body, "top_p", 0, 1)
        counts, last_user_text = _input(body)
        instructions = body.get("instructions")
        if isinstance(instructions, str):
            counts.append(tokens.count(instructions))
        tools = _tools(body)
        definitions = sum(tokens.count_json(tool) for tool in fields.rows(body, "tools"))
        schema = _schema(body)
        return Prompt(
            model=model,
            input_tokens=tokens.count_call(counts) + definitions + (tokens.count_json(schema) if schema else 0),
            last_user_text=last_user_text,
            stream=fields.boolean(body, "stream"),
            cap=fields.integer(body, "max_output_tokens", _LEAST_CAP),
            tools=tools,
            required_tool=fields.required_tool(body.get("tool_choice"), tools),
            json_schema=schema,
            body=body,
        )

    def count(self, body: Body, route: Route) -> Prompt:
        """Read what `POST /v1/responses/input_tokens` asks. Raises Refusal."""
        return self.read(body, route)

    def counted(self, input_tokens: int) -> dict[str, Any]:
        """A `response.input_tokens`."""
        return {"object": "response.input_tokens", "input_tokens": input_tokens}

    def unary(self, answer: Answer) -> bytes:
        """A `response`, completed or incomplete."""
        return orjson.dumps(_response(answer, _end_status(answer), _output(answer)))

    def stream(self, answer: Answer) -> Iterator[Chunk]:
        """Numbered events from `response.created` to `response.completed` or `response.incomplete`."""
        events = _Events()
        yield events.chunk("response.created", response=_response(answer, "in_progress", []))
        yield events.chunk("response.in_progress", response=_response(answer, "in_progress", []))
        output = _output(answer)
        for index, item in enumerate(output):
            match item["type"]:
                case "reasoning":
                    yield events.chunk("response.output_item.added", output_index=index, item=item)
                case "message":
                    yield from _message_events(events, answer, index, item)
                case _:
                    yield from _call_events(events, answer, index, item)
            said = len(answer.reasoning) if item["type"] == "reasoning" else 0
            yield events.chunk("response.output_item.done", said, output_index=index, item=item)
        status = _end_status(answer)
        yield events.chunk(f"response.{status}", response=_response(answer, status, output))

    def stream_error(self, dialect: Dialect, refusal: Refusal, request_id: str) -> bytes:
        """An `error` event."""
        error = stream_error(dialect, refusal, request_id)["error"]
        # Its place in the sequence is not known here; clients do not rely on it in an error.
        return sse(
            {
                "type": "error",
                "code": error["code"] or error["type"],
                "message": error["message"],
                "param": error["param"],
                "sequence_number": 0,
            },
            "error",
        )


class _Events:
    """Writes the events of one stream, numbering them."""

    def __init__(self) -> None:
        self._next = 0

    def chunk(self, event: str, said: int = 0, *, content: bool = False, **members: Any) -> Chunk:
        data = {"type": event, **members, "sequence_number": self._next}
        self._next += 1
        return Chunk(sse(data, event), said, content)


def _message_events(events: _Events, answer: Answer, index: int, item: dict[str, Any]) -> Iterator[Chunk]:
    place = {"item_id": item["id"], "output_index": index, "content_index": 0}
    opened = item | {"status": "in_progress", "content": []}
    yield events.chunk("response.output_item.added", output_index=index, item=opened)
    part = item["content"][0]
    yield events.chunk("response.content_part.added", **place, part=part | {"text": ""})
    for text, length in groups(answer.text, answer.chunk_tokens):
        yield events.chunk("response.output_text.delta", length, content=True, **place, delta=text, logprobs=[])
    yield events.chunk("response.output_text.done", **place, text=part["text"], logprobs=[])
    yield events.chunk("response.content_part.done", **place, part=part)


def _call_events(events: _Events, answer: Answer, index: int, item: dict[str, Any]) -> Iterator[Chunk]:
    assert answer.call is not None
    place = {"item_id": item["id"], "output_index": index}
    opened = item | {"status": "in_progress", "arguments": ""}
    name_tokens = tokens.count(answer.call.name)
    yield events.chunk("response.output_item.added", name_tokens, output_index=index, item=opened)
    for text, length in groups(answer.call.arguments, answer.chunk_tokens):
        yield events.chunk("response.function_call_arguments.delta", length, content=True, **place, delta=text)
    yield events.chunk("response.function_call_arguments.done", **place, arguments=item["arguments"], name=item["name"])


def _end_status(answer: Answer) -> str:
    return "incomplete" if answer.finish is Finish.LENGTH else "completed"


def _response(answer: Answer, status: str, output: list[dict[str, Any]]) -> dict[str, Any]:
    body = answer.prompt.body
    ended = status != "in_progress"
    response: dict[str, Any] = {
        "id": f"resp_sandbox_{answer.number}",
        "object": "response",
        "created_at": answer.created,
        "status": status,
        "error": None,
        "incomplete_details": {"reason": "max_output_tokens"} if status == "incomplete" else None,
        "model": answer.prompt.model,
        "output": output,
        "service_tier": "default" if ended else "auto",
        "usage": _usage(answer.usage) if ended and answer.usage_shown else None,
    }
    return response | {name: usual if body.get(name) is None else body[name] for name, usual in _REPEATED.items()}


def _usage(usage: Usage) -> dict[str, Any]:
    return {
        "input_tokens": usage.input,
        "input_tokens_details": {
            "cached_tokens": usage.cached,
            "cache_write_tokens": usage.cache_write + usage.cache_write_1h,
        },
        "output_tokens": usage.output,
        "output_tokens_details": {"reasoning_tokens": usage.reasoning},
        "total_tokens": usage.input + usage.output,
    }


def _output(answer: Answer) -> list[dict[str, Any]]:
    items: list[dict[str, Any]] = []
    status = _end_status(answer)
    if answer.reasoning:
        items.append({"id": f"rs_sandbox_{answer.number}", "type": "reasoning", "summary": []})
    if answer.call is not None:
        items.append(
            {
                "id": f"fc_sandbox_{answer.number}",
                "type": "function_call",
                "status": status,
                "call_id": f"call_sandbox_{answer.number}",
                "name": answer.call.name,
                "arguments": "".join(answer.call.arguments),
            }
        )
    elif answer.text or not answer.reasoning:
        text = {"type": "output_text", "text": "".join(answer.text), "annotations": [], "logprobs": []}
        items.append(
            {
                "id": f"msg_sandbox_{answer.number}",
                "type": "message",
                "status": status,
                "role": "assistant",
                "content": [text],
            }
        )
    return items


def _schema(body: Body) -> Body | None:
    value = fields.table(fields.table(body, "text"), "format")
    match value.get("type", "text"):
        case "text":
            return None
        case "json_object":
            return {}
        case "json_schema":
            return fields.table(value, "schema")
        case other:
            raise fields.unsupported_value("text.format.type", other, ("text", "json_object", "json_schema"))


def _tools(body: Body) -> tuple[Tool, ...]:
    found = []
    for index, row in enumerate(fields.rows(body, "tools")):
        if row.get("type") != "function":
            continue  # hosted tools are counted, and never called
        name = row.get("name")
        if not isinstance(name, str) or not name:
            raise fields.missing(f"tools[{index}].name")
        found.append(Tool(name, fields.table(row, "parameters")))
    return tuple(found)


def _input(body: Body) -> tuple[list[int], str]:
    """The tokens of each input item, and the last user text."""
    value = body.get("input")
    if value is None:
        raise fields.missing("input")
    if isinstance(value, str):
        return [tokens.count(value)], value
    items = fields.rows(body, "input")
    last_user_text = ""
    counts = []
    for index, item in enumerate(items):
        param = f"input[{index}]"
        kind = item.get("type", "message")
        if kind == "message":
            counts.append(_message_tokens(item, param))
            if item.get("role") == "user":
                last_user_text = _text(item)
        elif isinstance(kind, str):
            # Calls, their outputs and reasoning are repeated to the model as they are.
            counts.append(tokens.count_json(item))
        else:
            raise fields.wrong_type(f"{param}.type", "a string", kind)
    return counts, last_user_text


def _message_tokens(item: Body, param: str) -> int:
    role = item.get("role")
    if role not in _ROLES:
        raise fields.unsupported_value(f"{param}.role", role, _ROLES)
    content = item.get("content")
    if content is None:
        raise fields.missing(f"{param}.content")
    if isinstance(content, str):
        return tokens.count(content)
    return sum(
        _part_tokens(part, f"{param}.content[{index}]") for index, part in enumerate(fields.rows(item, "content"))
    )


def _part_tokens(part: Body, param: str) -> int:
    match part.get("type"):
        case "input_text" | "output_text":
            text = part.get("text")
            if not isinstance(text, str):
                raise fields.wrong_type(f"{param}.text", "a string", text)
            return tokens.count(text)
        case "refusal":
            return tokens.count(str(part.get("refusal", "")))
        case "input_image":
            return fields.image_tokens(part.get("detail"))
        case "input_file":
            return tokens.count_base64(str(part.get("file_data", "")))
        case "input_audio":
            return tokens.count_base64(str(fields.table(part, "input_audio").get("data", "")))
        case other:
            raise fields.unsupported_value(f"{param}.type", other, _PARTS)


def _text(item: Body) -> str:
    content = item.get("content")
    if isinstance(content, str):
        return content
    return "\n".join(str(part.get("text", "")) for part in content or ())
