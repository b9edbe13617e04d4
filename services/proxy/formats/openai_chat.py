"""Owns OpenAI's chat completions: what is read of a request, what is changed in it, what its answer used."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import orjson

from services import rating
from services.kit.validation import Violations
from services.proxy import converse
from services.proxy.formats import reading, tokens
from services.proxy.formats.answer import BROKEN, AnswerReader, Event, believed, with_fields
from services.proxy.formats.request import AUDIO_COMPONENTS, IMAGE_COMPONENTS, TEXT_COMPONENTS, Request
from services.proxy.sse import DONE, event_of
from services.proxy.upstream import Outgoing, Provider
from services.rating import accounting

CONVERSE = "converse"

# What OpenAI and Bedrock bill besides the tokens, and others who speak this form: searches of xAI and Qwen, plug-ins of
# routers, answers that are made and not given (`best_of`); what lets a router choose another model, or a dearer maker
# of this one; an answer that is fetched later.
_BILLED_APART = (
    "web_search_options",
    "guardrailConfig",
    "performanceConfig",
    "search_parameters",
    "enable_search",
    "plugins",
    "best_of",
    "models",
    "fallbacks",
    "route",
    "preset",
    "deferred",
)
# Types of tools that the client runs: OpenAI's, and Anthropic's own.
_PLAIN_TOOLS = frozenset({"function", "custom", "bash", "text_editor", "computer", "memory"})
# Fields by which others tell their tools, Google above all, as proto JSON spells them.
_BILLED_FIELDS = (
    *("webSearch", "fileSearch", "codeInterpreter", "codeExecution", "imageGeneration", "xSearch", "liveSearch"),
    *("browserSearch", "googleSearch", "googleMaps", "enterpriseWebSearch", "exaAiSearch", "parallelAiSearch"),
    *("retrieval", "mcpServers"),
)
_LONG_PARTS = ("video", "audio", "file", "document")
_CAP_FIELDS = ("max_completion_tokens", "max_tokens")
_SAID = ("content", "refusal", "reasoning_content", "reasoning")
# The choices of a chunk that says something else: as clients read them who have not asked for a chunk without any.
_NOTHING_MORE = {"index": 0, "delta": {}, "finish_reason": None}


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatRequest(Request):
    """A chat completion. AWS Bedrock is asked in its own form, Converse, and answers in this one."""

    form: ClassVar[str] = "chat"
    owner: ClassVar[str] = "openai"

    @classmethod
    def read(cls, raw: bytes, *, model: str = "", stream: bool = False) -> Self:
        """See Request."""
        violations = Violations()
        body, model = reading.body_and_model(violations, raw, model)
        stream = reading.boolean(violations, body, "stream")
        choices = reading.integer(violations, body, "n", reading.MAX_CHOICES) or 1
        caps = [reading.integer(violations, body, name, reading.MAX_CAP) for name in _CAP_FIELDS]
        reading.mapping(violations, body, "stream_options")
        tier = reading.service_tier(violations, {"service_tier": converse.service_tier(body)})
        count = tokens.InputCount(raw, model)
        _count_messages(count, violations, body.get("messages"))
        _count_definitions(count, violations, body)
        violations.raise_if_any()
        _refuse_billed_apart(body)
        components = TEXT_COMPONENTS
        modalities = body.get("modalities")
        wanted = {str(one) for one in modalities} if isinstance(modalities, list) else set()
        if count.has_audio or body.get("audio") is not None or "audio" in wanted:
            components |= AUDIO_COMPONENTS
        if "image" in wanted:
            components |= {"image_output"}
        if count.has_images:
            components |= IMAGE_COMPONENTS
        return cls(
            body=body,
            model=model,
            stream=stream,
            choices=choices,
            cap=max((cap for cap in caps if cap is not None), default=None),
            input_bound=max(1, count.bound),
            input_guess=max(1, count.guess),
            media_guess=count.media_guess,
            unseen=count.unseen,
            service_tier=tier,
            components=components,
        )

    def forms(self) -> frozenset[str]:
        """See Request."""
        return frozenset((self.form, CONVERSE))

    def outgoing(self, cap: int, provider: Provider, headers: tuple[tuple[str, str], ...] = ()) -> Outgoing:
        """See Request."""
        model = provider.id_of(self.model)
        body = {**self.body, "model": model}
        if self.form not in provider.forms:
            sent = orjson.dumps(converse.to_converse(body, cap))
            return Outgoing(CONVERSE, converse.model_path(model, self.stream), sent, self.stream, model=model)
        given = [name for name in _CAP_FIELDS if body.get(name) is not None]
        if given and provider.name != self.owner and provider.cap_field not in given:
            # By the other name it may be passed over, and the answer be as long as it likes.
            body = {name: value for name, value in body.items() if name not in given}
            given = []
        lowered = cap if self.cap is None else min(cap, self.cap)
        # Beside a prediction OpenAI refuses the newer name. Source: its guide "Predicted Outputs", limitations.
        older = bool(body.get("prediction")) and provider.name == self.owner
        field = "max_tokens" if older else provider.cap_field
        body |= {name: min(lowered, body[name]) for name in given} or {field: lowered}
        if self.stream and not self._asks_for_usage:
            body["stream_options"] = {**(self.body.get("stream_options") or {}), "include_usage": True}
        return Outgoing(self.form, "chat/completions", orjson.dumps(body), self.stream, headers, model=model)

    def reader(self) -> AnswerReader:
        """See Request."""
        return ChatReader(tells_usage=self._asks_for_usage)

    @property
    def _asks_for_usage(self) -> bool:
        """Whether the client expects a last chunk without choices, which says the usage."""
        return (self.body.get("stream_options") or {}).get("include_usage") is True

    def texts(self) -> Iterator[str]:
        """See Request."""
        for message in self.body.get("messages", ()):
            yield from texts_of_message(message)
        for name in ("tools", "functions", "response_format"):
            if value := self.body.get(name):
                yield orjson.dumps(value).decode()


def texts_of_message(message: Mapping[str, Any]) -> Iterator[str]:
    """The text of one message: its content, or the text parts of it, and the calls of tools."""
    content = message.get("content")
    if isinstance(content, str):
        yield content
    elif isinstance(content, list):
        yield from (part["text"] for part in content if isinstance(part, dict) and isinstance(part.get("text"), str))
    if calls := message.get("tool_calls"):
        yield orjson.dumps(calls).decode()


class ChatReader(AnswerReader):
    """Reads a chat completion, or the chunks of a streamed one.

    Without `tells_usage` the client has not asked for a chunk without choices, and its loop reads `choices[0]` of each:
    what such a chunk says, the usage above all, is said in the last one that has choices, which waits for it.
    """

    def __init__(self, *, tells_usage: bool = True) -> None:
        super().__init__()
        self._tells_usage = tells_usage
        self._withheld: dict[str, Any] = {}
        self._head: dict[str, Any] = {}
        self._ended: dict[int, bool] = {}  # by choice
        self._counted_pieces = 0

    def credited(
        self, event: Event | None, credits_object: Mapping[str, Any], counted: Callable[[], rating.Usage]
    ) -> bytes:
        """See AnswerReader. Where nothing waits there is a chunk of our own: the head of the others.

        Where no usage came it says our count. Usage that has been passed on already is not told twice, since a client
        may add up what it is told.
        """
        chunk = event.chunk if event is not None else None
        told = self._untold(chunk or {})
        if self.estimated and not isinstance((chunk or {}).get("usage"), dict):
            told["usage"] = _usage_of(counted())
        told["credits"] = credits_object
        last = with_fields(event, told) if event is not None else None
        return last or self._chunk_of(choices=[] if self._tells_usage else [_NOTHING_MORE], **told)

    def _untold(self, chunk: Mapping[str, Any]) -> dict[str, Any]:
        """What chunks that were withheld say, and this one does not."""
        found = {name: value for name, value in self._withheld.items() if chunk.get(name) is None}
        if not self.estimated and "usage" in self._withheld:  # came after the chunk's own, and is what is billed
            found["usage"] = self._withheld["usage"]
        return found

    @property
    def output_so_far(self) -> int:
        """See AnswerReader. Some count in every chunk, Google and xAI among them."""
        partial = self.partial
        return partial.output_tokens if partial is not None and self._counted_pieces == self.pieces else 0

    def cut_short(self, credits_object: Mapping[str, Any] | None, counted: rating.Usage) -> bytes:
        """See AnswerReader."""
        open_ones = [index for index, ended in self._ended.items() if not ended]
        ends = [{"index": index, "delta": {}, "finish_reason": "length"} for index in open_ones or [0]]
        told = {"usage": _usage_of(counted), "credits": credits_object}
        if not self._tells_usage:
            return self._chunk_of(choices=ends, **told) + event_of(DONE)
        return self._chunk_of(choices=ends) + self._chunk_of(choices=[], **told) + event_of(DONE)

    def broken(self, credits_object: Mapping[str, Any] | None) -> bytes:
        """See AnswerReader."""
        error = {"message": BROKEN, "type": "server_error", "param": None, "code": "provider_stream_broken"}
        told = {"error": error} if credits_object is None else {"error": error, "credits": credits_object}
        return event_of(orjson.dumps(told))

    def _chunk_of(self, /, **fields: Any) -> bytes:
        """A chunk of our own, with the head of the provider's others."""
        return event_of(orjson.dumps({**self._head, "object": "chat.completion.chunk", **fields}))

    def _other(self, raw: bytes, data: bytes) -> Event:
        if data != DONE:
            return Event(raw)
        self._finish()
        return Event(raw, done=True)

    def _whole(self, answer: dict[str, Any]) -> None:
        self._noted(answer)
        self._said(answer.get("choices"), "message")
        self._counted(answer.get("usage"), last=True)

    def _chunk(self, raw: bytes, chunk: dict[str, Any]) -> Event:
        self._noted(chunk)
        choices, usage = chunk.get("choices"), chunk.get("usage")
        if self._said(choices, "delta"):
            self.pieces += 1
            if self.usage is not None:  # it was no count of the whole: more is said
                self.partial, self.usage = self.usage, None
        ended = self.finished if not choices else self._ends(choices)
        last = ended or not choices
        self._counted(usage, last=last)
        self.finished = False
        if ended:
            self._finish()
        if self._tells_usage:
            return Event(raw, chunk=chunk if last and isinstance(usage, dict) else None)
        if not choices and ("choices" in chunk or "usage" in chunk):
            self._withheld |= {name: value for name, value in chunk.items() if name != "choices" and value is not None}
            return Event(raw, withheld=True)
        if self._withheld and (isinstance(usage, dict) or self.usage is None):
            self._withheld.pop("usage", None)  # it was no count of the whole, or there is a later one
        return Event(raw, chunk=chunk if ended else None)

    def _ends(self, choices: object) -> bool:
        """Note which choices have ended; whether all have that have begun."""
        for choice in choices if isinstance(choices, list) else ():
            if not isinstance(choice, dict):
                continue
            index = choice.get("index")
            index = index if isinstance(index, int) else 0
            self._ended[index] = bool(choice.get("finish_reason")) or self._ended.get(index, False)
        return bool(self._ended) and False not in self._ended.values()

    def _counted(self, usage: object, *, last: bool) -> None:
        """Take a count. One that comes with what is said counts what came so far: the call's, where no more is said."""
        if not isinstance(usage, dict) or not _counts_output(usage):
            return
        if last:
            self.count(accounting.openai_chat, usage)
        else:
            self.partial = believed(accounting.openai_chat, usage) or self.partial
            self._counted_pieces = self.pieces

    def _finish(self) -> None:
        self.finished = True
        partial = self.partial
        if self.usage is None and partial is not None and self._counted_pieces == self.pieces:
            self.usage = partial if partial.output_tokens or not self.said else None

    def _noted(self, answer: dict[str, Any]) -> None:
        tier = answer.get("service_tier")
        if tier is not None or not self.provider_request_id:
            self.note(answer.get("id"), tier)
        if not self._head:
            self._head = {name: answer.get(name) for name in ("id", "created", "model")}

    def _said(self, choices: object, key: str) -> bool:
        """Note what `choices` say under `key` (`message` or `delta`); whether they say anything."""
        found = False
        for choice in choices if isinstance(choices, list) else ():
            said = choice.get(key) if isinstance(choice, dict) else None
            if not isinstance(said, dict):
                continue
            for name in _SAID:
                if text := said.get(name):
                    found |= self.say(text)
            if isinstance(said.get("audio"), dict):
                found |= self.say(said["audio"].get("transcript"))
            if said.get("tool_calls") or said.get("function_call"):
                found |= self._called(said)
        return found

    def _called(self, said: Mapping[str, Any]) -> bool:
        """Note the calls of tools in a message or delta; whether they say anything."""
        found = False
        calls = said.get("tool_calls")
        for call in (*(calls if isinstance(calls, list) else ()), {"function": said.get("function_call")}):
            function = (call.get("function") or call.get("custom")) if isinstance(call, dict) else None
            for text in function.values() if isinstance(function, dict) else ():
                found |= self.say(text)
        return found


def _refuse_billed_apart(body: Mapping[str, Any]) -> None:
    """Raise ToolNotPriced for what has a price besides the tokens, or leaves the price to the provider."""
    for name in _BILLED_APART:
        if body.get(name) not in (None, False):
            raise reading.not_priced(name)
    if isinstance(body.get("provider"), dict):  # a router's choice of whose; as a name it means nothing
        raise reading.not_priced("provider")
    tools = body.get("tools")
    reading.refuse_billed_tools(tools, _PLAIN_TOOLS)
    for tool in tools if isinstance(tools, list) else (tools,):
        for name in reading.googles_tools(tool):
            if name.startswith(_BILLED_FIELDS):
                raise reading.not_priced(name)
    extra = body.get("extra_body")
    google = extra.get("google") if isinstance(extra, dict) else None
    reading.refuse_googles_billed_tools(google.get("tools") if isinstance(google, dict) else None)


def _usage_of(counted: rating.Usage) -> dict[str, int]:
    return {
        "prompt_tokens": counted.input_tokens,
        "completion_tokens": counted.output_tokens,
        "total_tokens": counted.input_tokens + counted.output_tokens,
    }


def _counts_output(usage: Mapping[str, Any]) -> bool:
    """Whether it counts all of a call, not its input alone: by name or, of thoughts without an answer, by the total."""
    given, total = usage.get("prompt_tokens"), usage.get("total_tokens")
    thought = isinstance(given, int) and isinstance(total, int) and total > given
    return usage.get("completion_tokens") is not None or thought


def _has_parts(message: Any) -> bool:
    return isinstance(message, dict) and isinstance(message.get("content"), list)


def _count_messages(count: tokens.InputCount, violations: Violations, messages: object) -> None:
    if not isinstance(messages, list) or not messages:
        violations.add("messages", "is required: a list of at least one message")
        return
    violations.count("messages", messages, at_most=reading.MAX_MESSAGES)
    parts = sum(len(x["content"]) for x in messages[: reading.MAX_MESSAGES] if _has_parts(x))
    if parts > reading.MAX_PARTS:
        violations.add("messages", f"must have at most {reading.MAX_PARTS} parts in all, not {parts}")
    violations.raise_if_any()
    for number, message in enumerate(messages):
        if not isinstance(message, dict):
            violations.add(f"messages[{number}]", "must be an object")
            continue
        count.message()
        content = message.get("content")
        if isinstance(content, str):
            count.text(content)
        elif isinstance(content, list):
            for part in content:
                _count_part(count, part)
        elif content is not None:
            violations.add(f"messages[{number}].content", "must be a string or a list of parts")
        _count_beside_content(count, message)


def _count_beside_content(count: tokens.InputCount, message: Mapping[str, Any]) -> None:
    """Count whatever a message says besides: tool calls, names, refusals, by its id what a model has spoken."""
    if message.get("audio"):
        count.file(None)
        count.has_audio = True
    rest = {name: value for name, value in message.items() if name not in {"role", "content"} and value}
    if rest:
        count.json(rest)


def _count_definitions(count: tokens.InputCount, violations: Violations, body: Mapping[str, Any]) -> None:
    """Count tool definitions, an answer's schema, and a predicted answer."""
    for name in ("tools", "functions", "response_format", "prediction"):
        value = body.get(name)
        if isinstance(value, list):
            violations.count(name, value, at_most=reading.MAX_TOOLS)
        if value:
            count.definitions(value)
    extra = body.get("extra_body")
    google = extra.get("google") if isinstance(extra, dict) else None
    if isinstance(google, dict) and (google.get("cached_content") or google.get("cachedContent")):
        count.file(None, tokens.LARGEST_WINDOW_TOKENS)


def _count_part(count: tokens.InputCount, part: Any) -> None:
    if isinstance(part, str):
        count.text(part)
    if not isinstance(part, dict):
        return
    match part.get("type"):
        case "image_url":
            image = part.get("image_url")
            reading.count_image(count, image.get("url") if isinstance(image, dict) else image)
        case "input_audio":
            audio = part.get("input_audio")
            count.audio(audio.get("data") if isinstance(audio, dict) else None)
        case "file":
            file = part.get("file")
            count.file(file.get("file_data") if isinstance(file, dict) else None)
        case kind:
            for text in part.values():
                if isinstance(text, str):
                    count.text(text)
            _count_others_part(count, str(kind))


def _count_others_part(count: tokens.InputCount, kind: str) -> None:
    """Count a part that others know who speak OpenAI's form: images, and what is as long as a file."""
    if "image" in kind:
        count.image(None)
    elif any(name in kind for name in _LONG_PARTS):
        count.file(None)
