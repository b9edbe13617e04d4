"""Owns Gemini's generateContent and streamGenerateContent, the latter as server-sent events or as a JSON array."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Final

import orjson

from deploy.local.sandbox.provider import tokens
from deploy.local.sandbox.provider.answer import Answer, Finish, groups
from deploy.local.sandbox.provider.prompt import Prompt, Tool
from deploy.local.sandbox.provider.refusal import Dialect, Refusal, stream_error
from deploy.local.sandbox.provider.routes import Endpoint, Route
from deploy.local.sandbox.provider.wire.base import JSON, Body, Chunk

_FINISH: Final = {
    Finish.STOP: "STOP",
    Finish.STOP_SEQUENCE: "STOP",
    Finish.LENGTH: "MAX_TOKENS",
    Finish.TOOL: "STOP",
}
_MOST_CANDIDATES: Final = 8
_MOST_STOPS: Final = 5


@dataclass(frozen=True, slots=True)
class GenerateContent:
    """The wire format of `:generateContent` and, with or without `?alt=sse`, of `:streamGenerateContent`."""

    sse: bool

    @property
    def stream_content_type(self) -> str:
        """Server-sent events only where the client asked for them."""
        return "text/event-stream" if self.sse else JSON

    def read(self, body: Body, route: Route) -> Prompt:
        """Read a request. Raises Refusal where Google would refuse it."""
        contents = _field(body, "contents", list) or []
        if not contents:
            raise _invalid("* GenerateContentRequest.contents: contents is not specified\n")
        counts = [_content_tokens(row, f"contents[{index}]") for index, row in enumerate(contents)]
        system = _field(body, "systemInstruction", Mapping)
        if system:
            counts.append(_content_tokens(system, "system_instruction"))
        config = _field(body, "generationConfig", Mapping) or {}
        declared = _field(body, "tools", list) or []
        tools = _tools(declared)
        thinking = _field(config, "thinkingConfig", Mapping) or {}
        schema = _schema(config)
        return Prompt(
            model=route.model,
            input_tokens=tokens.count_call(counts)
            + sum(tokens.count_json(tool) for tool in declared)
            + (tokens.count_json(schema) if schema else 0),
            last_user_text=_last_user_text(contents),
            stream=route.endpoint is Endpoint.STREAM_GENERATE,
            cap=_number(config, "maxOutputTokens", 1),
            choices=_number(config, "candidateCount", 0, _MOST_CANDIDATES) or 1,
            stops=_stops(config),
            tools=tools,
            required_tool=_required_tool(body, tools),
            json_schema=schema,
            shows_reasoning=bool(_field(thinking, "includeThoughts", bool)),
            body=body,
        )

    def count(self, body: Body, route: Route) -> Prompt:
        """Read what `:countTokens` asks: contents, or a whole call that names its model again. Raises Refusal."""
        whole = _field(body, "generateContentRequest", Mapping)
        if whole is None:
            return self.read({"contents": body.get("contents")}, route)
        if whole.get("model") != f"models/{route.model}":
            raise _invalid("* CountTokensRequest.generate_content_request.model: is not the model of the path\n")
        return self.read(whole, route)

    def counted(self, input_tokens: int) -> dict[str, Any]:
        """A CountTokensResponse."""
        return {"totalTokens": input_tokens, "promptTokensDetails": [{"modality": "TEXT", "tokenCount": input_tokens}]}

    def unary(self, answer: Answer) -> bytes:
        """A `GenerateContentResponse`."""
        parts = []
        if answer.reasoning and answer.prompt.shows_reasoning:
            parts.append({"text": "".join(answer.reasoning), "thought": True})
        if answer.call is not None and answer.finish is Finish.TOOL:
            parts.append(_call_part(answer))
        elif answer.text:
            parts.append({"text": "".join(answer.text)})
        finish = _FINISH[answer.finish]
        candidates = [_candidate(index, parts, finish) for index in range(answer.prompt.choices)]
        return orjson.dumps(_response(answer, candidates, answer.usage.output))

    def stream(self, answer: Answer) -> Iterator[Chunk]:
        """One `GenerateContentResponse` for each piece, each with the usage so far; the last says why it ends."""
        choices = answer.prompt.choices
        said = answer.usage.reasoning
        unseen = 0 if answer.prompt.shows_reasoning else answer.usage.reasoning
        pieces = list(_pieces(answer))
        for at, (part, length) in enumerate(pieces):
            said += 0 if "thought" in part else length * choices
            finish = _FINISH[answer.finish] if at == len(pieces) - 1 else None
            candidates = [_candidate(index, [part], finish) for index in range(choices)]
            frame = self._frame(_response(answer, candidates, said), first=at == 0)
            yield Chunk(frame, length * choices + (unseen if at == 0 else 0), content=True)
        if not self.sse:
            yield Chunk(b"\n]\n")

    def stream_error(self, dialect: Dialect, refusal: Refusal, request_id: str) -> bytes:
        """The error object as the next piece of the stream."""
        return self._frame(stream_error(dialect, refusal, request_id), first=False)

    def _frame(self, value: Any, *, first: bool) -> bytes:
        if self.sse:
            return b"data: " + orjson.dumps(value) + b"\r\n\r\n"
        return (b"[" if first else b",\r\n") + orjson.dumps(value)


def _pieces(answer: Answer) -> Iterator[tuple[dict[str, Any], int]]:
    """The parts of a stream, each with its tokens."""
    if answer.reasoning and answer.prompt.shows_reasoning:
        for text, length in groups(answer.reasoning, answer.chunk_tokens):
            yield {"text": text, "thought": True}, length
    call_tokens = 0
    if answer.call is not None:
        call_tokens = tokens.count(answer.call.name) + len(answer.call.arguments)
        if answer.finish is Finish.TOOL:
            # Gemini streams a call whole.
            yield _call_part(answer), call_tokens
            return
    if not answer.text:
        # Nothing to show: one empty piece, which says why it ends, and has what a call that was cut has cost.
        yield {"text": ""}, call_tokens
    for text, length in groups(answer.text, answer.chunk_tokens):
        yield {"text": text}, length


def _candidate(index: int, parts: list[dict[str, Any]], finish: str | None) -> dict[str, Any]:
    candidate: dict[str, Any] = {"content": {"parts": parts, "role": "model"}, "index": index}
    if finish is not None:
        candidate["finishReason"] = finish
    return candidate


def _call_part(answer: Answer) -> dict[str, Any]:
    assert answer.call is not None
    call = {"id": f"call_sandbox_{answer.number}", "name": answer.call.name, "args": answer.parsed_arguments}
    return {"functionCall": call}


def _response(answer: Answer, candidates: list[dict[str, Any]], said: int) -> dict[str, Any]:
    """One response, its usage counting `said` output tokens, reasoning among them.

    Google counts thoughts apart from the candidates, and the cached tokens as part of the prompt.
    """
    response: dict[str, Any] = {"candidates": candidates}
    if answer.usage_shown:
        usage = answer.usage
        response["usageMetadata"] = {
            "promptTokenCount": usage.input,
            "candidatesTokenCount": said - usage.reasoning,
            "totalTokenCount": usage.input + said,
            "promptTokensDetails": [{"modality": "TEXT", "tokenCount": usage.input}],
        }
        if usage.cached:
            response["usageMetadata"]["cachedContentTokenCount"] = usage.cached
            response["usageMetadata"]["cacheTokensDetails"] = [{"modality": "TEXT", "tokenCount": usage.cached}]
        if usage.reasoning:
            response["usageMetadata"]["thoughtsTokenCount"] = usage.reasoning
    response["modelVersion"] = answer.prompt.model
    response["responseId"] = f"sandbox-{answer.number}"
    return response


def _invalid(message: str) -> Refusal:
    return Refusal(HTTPStatus.BAD_REQUEST, message)


def _snake(name: str) -> str:
    return "".join(f"_{letter.lower()}" if letter.isupper() else letter for letter in name)


def _field(body: Body, name: str, kind: type) -> Any:
    """A field by its JSON name or its proto name, as Google takes either."""
    value = body.get(name)
    if value is None:
        name = _snake(name)
        value = body.get(name)
    if value is None or (isinstance(value, kind) and not (kind is int and isinstance(value, bool))):
        return value
    shown = orjson.dumps(value)[:80].decode(errors="replace")
    message = f"Invalid JSON payload received. Unknown name or wrong type at '{name}': {shown}"
    raise _invalid(message)


def _number(config: Body, name: str, low: int, high: int | None = None) -> int | None:
    given = config.get(name, config.get(_snake(name)))
    # As proto JSON has it: 20.0 and "20" are 20.
    if isinstance(given, str | float) and re.fullmatch(r"-?[0-9]{1,18}(\.0)?", str(given)):
        config = {name: int(float(given))}
    value: int | None = _field(config, name, int)
    if value is not None and (value < low or (high is not None and value > high)):
        limits = f"{low} (inclusive)" if high is None else f"{low} (inclusive) to {high} (inclusive)"
        raise _invalid(
            f"Unable to submit request because {name} must be from {limits}, but the entered value was {value}."
        )
    return value


def _stops(config: Body) -> tuple[str, ...]:
    stops = _field(config, "stopSequences", list) or []
    if len(stops) > _MOST_STOPS or not all(isinstance(stop, str) for stop in stops):
        raise _invalid(f"* GenerateContentRequest.generation_config.stop_sequences: at most {_MOST_STOPS} strings\n")
    return tuple(stops)


def _schema(config: Body) -> Body | None:
    mime: str | None = _field(config, "responseMimeType", str)
    for name in ("responseJsonSchema", "responseSchema"):
        schema: Body | None = _field(config, name, Mapping)
        if schema is not None:
            return schema
    return {} if mime == JSON else None


def _tools(declared: list[Any]) -> tuple[Tool, ...]:
    found = []
    for index, row in enumerate(declared):
        if not isinstance(row, Mapping):
            raise _invalid(f"Invalid value at 'tools[{index}]'")
        for function in _field(row, "functionDeclarations", list) or ():
            if not isinstance(function, Mapping):
                raise _invalid(f"Invalid value at 'tools[{index}].function_declarations[0]'")
            name = _field(function, "name", str)
            if not name:
                raise _invalid(f"* GenerateContentRequest.tools[{index}].function_declarations[0].name: is empty\n")
            schema = _field(function, "parametersJsonSchema", Mapping) or _field(function, "parameters", Mapping)
            found.append(Tool(name, schema or {}))
    return tuple(found)


def _required_tool(body: Body, tools: tuple[Tool, ...]) -> str | None:
    config = _field(_field(body, "toolConfig", Mapping) or {}, "functionCallingConfig", Mapping) or {}
    if str(_field(config, "mode", str) or "").upper() != "ANY":
        return None
    allowed = _field(config, "allowedFunctionNames", list) or [tool.name for tool in tools]
    for tool in tools:
        if tool.name in allowed:
            return tool.name
    raise _invalid("Function calling mode is ANY, but no function declarations are provided.")


def _content_tokens(row: Any, where: str) -> int:
    if not isinstance(row, Mapping):
        raise _invalid(f"Invalid value at '{where}' (type.googleapis.com/google.ai.generativelanguage.v1beta.Content)")
    if row.get("role") not in (None, "user", "model", "function", "system"):
        raise _invalid("Please use a valid role: user, model.")
    parts = row.get("parts")
    if isinstance(parts, Mapping):
        parts = [parts]
    if not isinstance(parts, list) or not parts:
        raise _invalid(f"* GenerateContentRequest.{where}.parts: contents.parts must not be empty.\n")
    return sum(_part_tokens(part, where) for part in parts)


def _part_tokens(part: Any, where: str) -> int:
    if not isinstance(part, Mapping):
        raise _invalid(
            f"Invalid value at '{where}.parts' (type.googleapis.com/google.ai.generativelanguage.v1beta.Part)"
        )
    text = _field(part, "text", str)
    if text is not None:
        return tokens.count(text)
    inline = _field(part, "inlineData", Mapping)
    if inline is not None:
        mime = str(_field(inline, "mimeType", str) or "")
        return tokens.IMAGE if mime.startswith("image/") else tokens.count_base64(str(inline.get("data", "")))
    if _field(part, "fileData", Mapping) is not None:
        return tokens.IMAGE
    call = _field(part, "functionCall", Mapping)
    if call is not None:
        return tokens.count(str(call.get("name", ""))) + tokens.count_json(call.get("args") or {})
    return tokens.count_json(part)


def _last_user_text(contents: list[Body]) -> str:
    for row in reversed(contents):
        if row.get("role") in (None, "user"):
            parts = row.get("parts")
            rows = [parts] if isinstance(parts, Mapping) else parts or []
            return "\n".join(str(part.get("text", "")) for part in rows)
    return ""
