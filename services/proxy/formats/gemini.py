"""Owns Gemini's generateContent: what is read of a request, what is changed in it, what its answer used.

Google reads proto JSON, so each field has two spellings, `maxOutputTokens` and `max_output_tokens`; both are read here,
and one that stands in both is refused, since which of them counts is Google's to say. Integers may be 20, 20.0 or "20".
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import orjson

from services import rating
from services.kit.validation import Violations
from services.proxy.formats import reading, tokens
from services.proxy.formats.answer import BROKEN, AnswerReader, Event, believed
from services.proxy.formats.request import AUDIO_COMPONENTS, IMAGE_COMPONENTS, TEXT_COMPONENTS, Request
from services.proxy.sse import data_of, event_of
from services.proxy.upstream import Outgoing, Provider, path_segment
from services.rating import accounting

# What is named by an address or an id, and what its own tools bring, may fill the largest window that Gemini has.
_WINDOW_TOKENS = tokens.LARGEST_WINDOW_TOKENS
# A PDF has at most 1 000 pages: of 258 tokens each before Gemini 3, and since then of 560, or 1 120 where a higher
# resolution is asked for. Source: Gemini API, "Document understanding" and "Media resolution".
_OLDER_MODELS = ("gemini-1", "gemini-2")
_OLDER_PDF_TOKENS, _PDF_TOKENS = 300_000, 600_000
_INTEGER = re.compile("-?[0-9]{1,18}")
_OUTPUT_COUNTS = ("candidatesTokenCount", "thoughtsTokenCount")
# By modality of the answer; in proto JSON it may be said by its number too.
_OUTPUT_COMPONENTS: dict[str, frozenset[str]] = {
    "TEXT": frozenset(),
    "AUDIO": frozenset({"audio_output"}),
    "IMAGE": frozenset({"image_output"}),
}
_ANY_OUTPUT = frozenset({"audio_output", "image_output"})


@dataclass(frozen=True, slots=True, kw_only=True)
class GeminiRequest(Request):
    """A content to generate. The model and whether it is streamed are said by the path.

    `as_array`: the stream goes to the client as one JSON array, as Google sends it to who does not ask for events.
    """

    form: ClassVar[str] = "gemini"
    owner: ClassVar[str] = "google"

    as_array: bool = False

    @classmethod
    def read(cls, raw: bytes, *, model: str = "", stream: bool = False, as_array: bool = False) -> Self:
        """See Request."""
        violations = Violations()
        body = reading.json_object(violations, raw)
        model = reading.model_name(violations, model)
        config = _object(violations, body, "generationConfig", "generation_config")
        cap = _integer(violations, config, "maxOutputTokens", "max_output_tokens", reading.MAX_CAP)
        # 0 is what proto JSON says of a number that is not set.
        choices = _integer(violations, config, "candidateCount", "candidate_count", reading.MAX_CHOICES, least=0) or 1
        count = tokens.InputCount(raw, model, window=_WINDOW_TOKENS)
        pdf_tokens = _pdf_tokens(raw, model)
        _count_contents(count, violations, body.get("contents"), pdf_tokens)
        system = _object(violations, body, "systemInstruction", "system_instruction")
        _count_parts(count, violations, system, pdf_tokens)
        tools = body.get("tools")
        if tools:
            count.definitions(tools)
            _count_reading_tools(count, tools)
        if _field(violations, body, "cachedContent", "cached_content"):
            count.file(None)
        modalities = _field(violations, config, "responseModalities", "response_modalities")
        tier = _tier(violations, body)
        routing = _field(violations, config, "routingConfig", "routing_config")
        violations.raise_if_any()
        reading.refuse_googles_billed_tools(tools)
        if routing:
            raise reading.not_priced("routingConfig")  # another model, at a price of its own
        components = TEXT_COMPONENTS
        if count.has_audio:
            components |= AUDIO_COMPONENTS
        if count.has_images:
            components |= IMAGE_COMPONENTS
        components |= _answered_in(modalities)
        return cls(
            body=body,
            model=model,
            stream=stream,
            choices=choices,
            cap=cap,
            input_bound=count.bound,
            input_guess=count.guess,
            media_guess=count.media_guess,
            unseen=count.unseen,
            service_tier=tier,
            components=components,
            as_array=as_array,
        )

    def outgoing(self, cap: int, provider: Provider, headers: tuple[tuple[str, str], ...] = ()) -> Outgoing:
        """See Request. A stream is asked for as events, whatever framing the client wants."""
        model = provider.id_of(self.model)
        name = "generation_config" if "generation_config" in self.body else "generationConfig"
        config = dict(self.body.get(name) or {})
        field = "max_output_tokens" if "max_output_tokens" in config else "maxOutputTokens"
        config[field] = cap if self.cap is None else min(cap, self.cap)
        method = "streamGenerateContent?alt=sse" if self.stream else "generateContent"
        path = f"models/{path_segment(model)}:{method}"
        body = orjson.dumps({**self.body, name: config})
        return Outgoing(self.form, path, body, self.stream, headers, model=model)

    def for_model(self, raw: bytes, model: str) -> Self:
        """See Request."""
        return self.read(raw, model=model, stream=self.stream, as_array=self.as_array)

    def reader(self) -> AnswerReader:
        """See Request."""
        return GeminiArrayReader() if self.as_array else GeminiReader()

    def texts(self) -> Iterator[str]:
        """See Request."""
        contents = self.body.get("contents")
        system = self.body.get("systemInstruction") or self.body.get("system_instruction")
        for content in (system, *(contents if isinstance(contents, list) else (contents,))):
            parts = content.get("parts") if isinstance(content, dict) else None
            for part in parts if isinstance(parts, list) else (parts,):
                if isinstance(part, dict) and isinstance(part.get("text"), str):
                    yield part["text"]
        if tools := self.body.get("tools"):
            yield orjson.dumps(tools).decode()


class GeminiReader(AnswerReader):
    """Reads a content, or the chunks of a streamed one. Each chunk counts what came so far; the last one counts all."""

    def __init__(self) -> None:
        super().__init__()
        self._ended: dict[int, bool] = {}  # by candidate

    def broken(self, credits_object: Mapping[str, Any] | None) -> bytes:
        """See AnswerReader."""
        told: dict[str, Any] = {"error": {"code": 502, "message": BROKEN, "status": "UNAVAILABLE"}}
        if credits_object is not None:
            told["credits"] = credits_object
        return event_of(orjson.dumps(told))

    @property
    def output_so_far(self) -> int:
        """See AnswerReader."""
        return self.partial.output_tokens if self.partial is not None else 0

    def cut_short(self, credits_object: Mapping[str, Any] | None, counted: rating.Usage) -> bytes:
        """See AnswerReader."""
        candidate = {"content": {"parts": [], "role": "model"}, "finishReason": "MAX_TOKENS", "index": 0}
        usage = {
            "promptTokenCount": counted.input_tokens,
            "candidatesTokenCount": counted.output_tokens - counted.reasoning_tokens,
            "thoughtsTokenCount": counted.reasoning_tokens,
            "totalTokenCount": counted.input_tokens + counted.output_tokens,
        }
        told = {"candidates": [candidate], "usageMetadata": usage, "credits": credits_object}
        return event_of(orjson.dumps(told))

    def _whole(self, answer: dict[str, Any]) -> None:
        self._said(answer)
        self._counted(answer.get("usageMetadata"))

    def _chunk(self, raw: bytes, chunk: dict[str, Any]) -> Event:
        ends = self._said(chunk)
        usage = chunk.get("usageMetadata")
        if ends or self.finished:
            self.finished = True
            self._counted(usage)
        else:
            self.partial = believed(accounting.gemini, usage) or self.partial
        return Event(raw, chunk=chunk if self.finished else None)

    def _counted(self, usage: object) -> None:
        """Take the count of the whole; one without the output, where something was said, counts the input alone."""
        if self.said and isinstance(usage, dict) and not any(usage.get(name) for name in _OUTPUT_COUNTS):
            self.partial = believed(accounting.gemini, usage) or self.partial
        else:
            self.count(accounting.gemini, usage)

    def _said(self, answer: dict[str, Any]) -> bool:
        """Note the parts of an answer; whether all candidates that have begun end with them."""
        usage = answer.get("usageMetadata")
        self.note(answer.get("responseId"), usage.get("serviceTier") if isinstance(usage, dict) else None)
        feedback = answer.get("promptFeedback")
        blocked = isinstance(feedback, dict) and bool(feedback.get("blockReason"))
        candidates = answer.get("candidates")
        for candidate in candidates if isinstance(candidates, list) else ():
            if not isinstance(candidate, dict):
                continue
            index = candidate.get("index")
            index = index if isinstance(index, int) else 0
            self._ended[index] = bool(candidate.get("finishReason")) or self._ended.get(index, False)
            content = candidate.get("content")
            parts = content.get("parts") if isinstance(content, dict) else None
            said = False
            for part in parts if isinstance(parts, list) else ():
                if isinstance(part, dict):
                    said |= self.say(part.get("text"))
                    if part.get("functionCall"):
                        said |= self.say(orjson.dumps(part["functionCall"]).decode())
            self.pieces += said
        return blocked or (bool(self._ended) and all(self._ended.values()))


class GeminiArrayReader(GeminiReader):
    """The same for a client who is given the stream as one JSON array."""

    content_type = "application/json"

    def __init__(self) -> None:
        super().__init__()
        self._opened = False

    def framed(self, event: bytes) -> bytes:
        """See AnswerReader."""
        data = data_of(event)
        if not data:
            return b""
        opening, self._opened = (b",\r\n" if self._opened else b"["), True
        return opening + data

    def closing(self) -> bytes:
        """See AnswerReader."""
        return b"]" if self._opened else b"[]"


def _field(violations: Violations, body: Mapping[str, Any], camel: str, snake: str) -> Any:
    """A field in either spelling; a violation where it stands in both."""
    if camel in body and snake in body:
        violations.add(camel, f"stands here twice, as {snake} too")
    return body.get(camel, body.get(snake))


def _object(violations: Violations, body: Mapping[str, Any], camel: str, snake: str) -> Mapping[str, Any]:
    value = _field(violations, body, camel, snake)
    if value is not None and not isinstance(value, dict):
        violations.add(camel, "must be an object")
    return value if isinstance(value, dict) else {}


def _integer(  # noqa: PLR0917 (a field's spellings and its bounds)
    violations: Violations, body: Mapping[str, Any], camel: str, snake: str, most: int, least: int = 1
) -> int | None:
    value = _field(violations, body, camel, snake)
    if isinstance(value, str) and _INTEGER.fullmatch(value):
        value = int(value)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return reading.integer(violations, {camel: value}, camel, most, at="generationConfig.", least=least)


def _tier(violations: Violations, body: Mapping[str, Any]) -> str:
    """The price tier that is asked for: an enumeration's name, in capitals or not, of which one says nothing."""
    named = _field(violations, body, "serviceTier", "service_tier")
    if isinstance(named, str):
        named = named.lower()
    return reading.service_tier(violations, {"service_tier": None if named == "unspecified" else named})


def _answered_in(modalities: object) -> frozenset[str]:
    """The components of answers in these modalities. Where none are named, models that make images make some."""
    if not modalities:
        return _OUTPUT_COMPONENTS["IMAGE"]
    named = modalities if isinstance(modalities, list) else [modalities]
    return frozenset().union(*(_OUTPUT_COMPONENTS.get(str(one).upper(), _ANY_OUTPUT) for one in named))


def _pdf_tokens(raw: bytes, model: str) -> int | None:
    """The most tokens of a PDF; None where it may fill the window."""
    if model.startswith(_OLDER_MODELS):
        return _OLDER_PDF_TOKENS
    # In either spelling, and where it may be spelt otherwise.
    return None if b"esolution" in raw or b"\\u" in raw else _PDF_TOKENS


def _count_contents(count: tokens.InputCount, violations: Violations, contents: object, pdf_tokens: int | None) -> None:
    if isinstance(contents, dict):  # proto JSON takes one in place of a list of one
        contents = [contents]
    if not isinstance(contents, list) or not contents:
        violations.add("contents", "is required: a list of at least one content")
        return
    violations.count("contents", contents, at_most=reading.MAX_MESSAGES)
    violations.raise_if_any()
    for number, content in enumerate(contents):
        if isinstance(content, dict):
            count.message()
            _count_parts(count, violations, content, pdf_tokens)
        else:
            violations.add(f"contents[{number}]", "must be an object")


def _count_parts(
    count: tokens.InputCount, violations: Violations, content: Mapping[str, Any], pdf_tokens: int | None
) -> None:
    parts = content.get("parts")
    parts = parts if isinstance(parts, list) else [parts]
    violations.count("contents.parts", parts, at_most=reading.MAX_PARTS)
    violations.raise_if_any()
    for part in parts:
        if not isinstance(part, dict):
            continue
        inline = part.get("inlineData") or part.get("inline_data")
        if isinstance(part.get("text"), str):
            count.text(part["text"])
        elif isinstance(inline, dict):
            kind = str(inline.get("mimeType") or inline.get("mime_type"))
            if kind.startswith("image/"):
                count.image(inline.get("data"))
            elif kind.startswith("audio/"):
                count.audio(inline.get("data"))
            else:
                count.file(inline.get("data"), pdf_tokens if kind == "application/pdf" else None)
        elif part.get("fileData") or part.get("file_data"):
            count.file(None)
        else:
            count.json(part)
            given = part.get("functionResponse") or part.get("function_response")
            if isinstance(given, dict) and given.get("parts"):  # images and files that a tool gave
                _count_parts(count, violations, given, pdf_tokens)


def _count_reading_tools(count: tokens.InputCount, tools: object) -> None:
    """What pages, files and programs give to Google's own tools is read as input within the same call."""
    for tool in tools if isinstance(tools, list) else (tools,):
        if not reading.GOOGLES_READING_TOOLS.isdisjoint(reading.googles_tools(tool)):
            count.file(None)
