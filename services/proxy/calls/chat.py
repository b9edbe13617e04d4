"""Owns OpenAI's chat completions as bytes: what is read of a request, what is changed in it, what an answer used.

**The bound on input tokens is never below the real count.** A tokenizer of bytes makes at most one token of each byte,
and the JSON of a request has at least one byte for each byte of text in it (escapes only lengthen it), tool definitions
and schemas included. So the bound is the length of the body; plus what a provider's template adds to each message and
tool; less the base64 of images and audio, which are no text, and plus a stated bound for each of those.

The best guess (four characters of Latin text to a token, one of others) is what a plan's size limit is checked with:
checked with the bound, a limit of 1 000 tokens would refuse prompts of 250.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import orjson

from services import rating
from services.kit.validation import Violations

MAX_CHOICES = 128
MAX_MODEL_CHARS = 200
MAX_CAP = 2**31 - 1

# What templates add: role and separators (4 to 8 tokens with every known one) and the opening of the answer.
_MESSAGE_TOKENS = 16
_TOOL_TOKENS = 64
_REQUEST_TOKENS = 64

# The dearest image of OpenAI's models: 8 tiles of 170 and 85 with gpt-4o; 1 536 patches at 2.46 with the small ones of
# gpt-4.1; Claude and Gemini below that. gpt-4o-mini counts its tiles at 5 667 and 2 833.
_IMAGE_TOKENS = 5_000
_IMAGE_TOKENS_OF = {"gpt-4o-mini": 50_000}
# Audio is 10 to 40 tokens a second; at 8 kbit/s, the least that carries speech, a second is 1 333 of base64.
_AUDIO_CHARS_PER_TOKEN = 32
# A file that is named and not brought along may fill the model's window.
_FILE_TOKENS = 200_000

# What one request may have of each: a body of ten megabytes could otherwise hold millions, and keep everyone waiting.
MAX_MESSAGES = 5_000
MAX_PARTS = 5_000
MAX_TOOLS = 1_000
# What JSON is written with nests this deep; what it is read with, deeper.
_MAX_DEPTH = 250

_CAP_FIELDS = ("max_completion_tokens", "max_tokens")
_TIERS = {"flex": "flex", "priority": "priority", "batch": "batch"}

_TEXT_COMPONENTS = frozenset({"cache_read", "cache_write_5m", "cache_write_1h", "reasoning"})
_AUDIO_COMPONENTS = frozenset({"audio_input", "audio_output"})
_IMAGE_COMPONENTS = frozenset({"image_input"})


@dataclass(frozen=True, slots=True)
class ChatRequest:
    """What is read of a request. `cap` is the client's, for each of `choices` answers; None where it gave none.

    `input_bound` and `input_guess` are in tokens; `components` are the price components, besides plain input and
    output, that such a call can have.
    """

    body: dict[str, Any]
    model: str
    stream: bool
    choices: int
    cap: int | None
    input_bound: int
    input_guess: int
    service_tier: str
    components: frozenset[str]

    def to_send(self, cap: int, cap_field: str) -> bytes:
        """The body for the provider: what was read, but for the cap and, in a stream, the asking for usage.

        Written anew even where nothing changes: of a name that stands twice in an object one reader takes the first and
        another the last, and what the provider reads must be what was checked here.
        """
        changes: dict[str, Any] = {}
        if self.cap is None:
            changes[cap_field] = cap
        elif cap < self.cap:
            changes |= {name: cap for name in _CAP_FIELDS if self.body.get(name) is not None}
        if self.stream:
            options = self.body.get("stream_options") or {}
            if options.get("include_usage") is not True:
                changes["stream_options"] = {**options, "include_usage": True}
        return orjson.dumps(self.body | changes)


def read(raw: bytes) -> ChatRequest:
    """Read a request. Raises InvalidArgument naming every field that is wrong, of those that are read."""
    violations = Violations()
    try:
        body = orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        violations.add("body", f"is not JSON: {error.msg} at character {error.pos}")
        body = {}
    if not isinstance(body, dict):
        violations.add("body", "must be a JSON object")
    elif raw.count(b"[") + raw.count(b"{") > _MAX_DEPTH:  # else it cannot be that deep
        try:
            orjson.dumps(body)
        except orjson.JSONEncodeError:
            violations.add("body", f"must not be nested more than {_MAX_DEPTH} levels deep")
    violations.raise_if_any()
    model = _model(violations, body)
    stream = _boolean(violations, body, "stream")
    choices = _integer(violations, body, "n", MAX_CHOICES) or 1
    caps = [_integer(violations, body, name, MAX_CAP) for name in _CAP_FIELDS]
    options = body.get("stream_options")
    if options is not None and not isinstance(options, dict):
        violations.add("stream_options", "must be an object")
    tier = body.get("service_tier")
    if tier is not None and not isinstance(tier, str):
        violations.add("service_tier", "must be a string")
    count = _InputCount(raw, model)
    count.messages(violations, body)
    count.tools(violations, body)
    violations.raise_if_any()
    components = _TEXT_COMPONENTS
    if count.has_audio or body.get("audio") is not None:
        components |= _AUDIO_COMPONENTS
    if count.has_images:
        components |= _IMAGE_COMPONENTS
    return ChatRequest(
        body=body,
        model=model,
        stream=stream,
        choices=choices,
        cap=max((cap for cap in caps if cap is not None), default=None),
        input_bound=max(1, count.bound),
        input_guess=max(1, count.guess),
        service_tier=tier_of(tier),
        components=components,
    )


def tier_of(name: object) -> str:
    """The price tier for a `service_tier` as asked for or answered; the standard one where it names no other."""
    return _TIERS.get(name, rating.STANDARD) if isinstance(name, str) else rating.STANDARD


@dataclass(slots=True)
class TextCount:
    """Guesses the tokens of a text that comes in pieces: four ASCII characters to one, one of any other."""

    ascii_chars: int = 0
    other_chars: int = 0

    def add(self, text: str) -> None:
        """Count a piece."""
        ascii_chars = len(text) if text.isascii() else len(text.encode("ascii", "ignore"))
        self.ascii_chars += ascii_chars
        self.other_chars += len(text) - ascii_chars

    @property
    def tokens(self) -> int:
        """The guess so far."""
        return (self.ascii_chars + 3) // 4 + self.other_chars


def guess_tokens(text: str) -> int:
    """A best guess of the tokens of a text."""
    count = TextCount()
    count.add(text)
    return count.tokens


def _model(violations: Violations, body: Mapping[str, Any]) -> str:
    model = body.get("model")
    if model is None or model == "":
        violations.add("model", "is required")
    elif not isinstance(model, str):
        violations.add("model", "must be a string")
    else:
        return violations.text("model", model, max_length=MAX_MODEL_CHARS)
    return ""


def _boolean(violations: Violations, body: Mapping[str, Any], name: str) -> bool:
    value = body.get(name)
    if value is not None and not isinstance(value, bool):
        violations.add(name, "must be true or false")
    return value is True


def _integer(violations: Violations, body: Mapping[str, Any], name: str, most: int) -> int | None:
    value = body.get(name)
    if value is None:
        return None
    if not isinstance(value, int) or isinstance(value, bool):
        violations.add(name, "must be an integer")
        return None
    return violations.between(name, value, 1, most)


def _has_parts(message: Any) -> bool:
    return isinstance(message, dict) and isinstance(message.get("content"), list)


class _InputCount:
    """Counts a request's input tokens: the bound and the guess."""

    def __init__(self, raw: bytes, model: str) -> None:
        self.bound = len(raw) + _REQUEST_TOKENS
        self.guess = 3
        self.has_images = False
        self.has_audio = False
        self._image_tokens = next(
            (tokens for name, tokens in _IMAGE_TOKENS_OF.items() if model.startswith(name)), _IMAGE_TOKENS
        )

    def messages(self, violations: Violations, body: Mapping[str, Any]) -> None:
        """Count the conversation."""
        messages = body.get("messages")
        if not isinstance(messages, list) or not messages:
            violations.add("messages", "is required: a list of at least one message")
            return
        violations.count("messages", messages, at_most=MAX_MESSAGES)
        parts = sum(len(x["content"]) for x in messages[:MAX_MESSAGES] if _has_parts(x))
        if parts > MAX_PARTS:
            violations.add("messages", f"must have at most {MAX_PARTS} parts in all, not {parts}")
        violations.raise_if_any()
        for number, message in enumerate(messages):
            if not isinstance(message, dict):
                violations.add(f"messages[{number}]", "must be an object")
                continue
            self.bound += _MESSAGE_TOKENS
            self.guess += 4
            content = message.get("content")
            if isinstance(content, str):
                self.guess += guess_tokens(content)
            elif isinstance(content, list):
                for part in content:
                    self._part(part)
            elif content is not None:
                violations.add(f"messages[{number}].content", "must be a string or a list of parts")
            rest = {name: value for name, value in message.items() if name not in {"role", "content"} and value}
            if rest:  # tool calls, names, refusals: whatever a message says besides
                self.guess += len(orjson.dumps(rest)) // 4

    def tools(self, violations: Violations, body: Mapping[str, Any]) -> None:
        """Count tool definitions, an answer's schema, and a predicted answer."""
        for name in ("tools", "functions", "response_format", "prediction"):
            value = body.get(name)
            if isinstance(value, list):
                violations.count(name, value, at_most=MAX_TOOLS)
            if value:
                self.guess += len(orjson.dumps(value)) // 4
                self.bound += _TOOL_TOKENS * (len(value) if isinstance(value, list) else 1)

    def _part(self, part: Any) -> None:
        if isinstance(part, str):
            self.guess += guess_tokens(part)
            return
        if not isinstance(part, dict):
            return
        match part.get("type"):
            case "image_url":
                self.has_images = True
                image = part.get("image_url")
                url = image.get("url") if isinstance(image, dict) else image
                self._not_text(url if isinstance(url, str) else "", self._image_tokens)
                self.guess += 765  # four tiles
            case "input_audio":
                self.has_audio = True
                audio = part.get("input_audio")
                data = audio.get("data") if isinstance(audio, dict) else ""
                data = data if isinstance(data, str) else ""
                self._not_text(data, len(data) // _AUDIO_CHARS_PER_TOKEN + 1)
                self.guess += len(data) // 256 + 1
            case "file":
                file = part.get("file")
                data = file.get("file_data") if isinstance(file, dict) else None
                # What a file says can be told only by who opens it: its base64 stays in the bound as if it were text.
                self.bound += 0 if isinstance(data, str) else _FILE_TOKENS
                self.guess += len(data) // 16 if isinstance(data, str) else 1
            case _:
                self.guess += sum(guess_tokens(text) for text in part.values() if isinstance(text, str))

    def _not_text(self, data: str, tokens: int) -> None:
        """Take a part that is no text out of the body's bytes, and put its own bound there."""
        # Only what has a byte in the body for each of its characters, as base64 and addresses have.
        self.bound += tokens - (len(data) if data.isascii() else 0)


def read_usage(usage: Any) -> rating.Usage | None:
    """The provider's count, in canonical form; None where there is none that can be believed.

    OpenAI counts cached tokens within the input and reasoning within the output. No answer comes without input, so a
    count of none is no count.
    """
    if not isinstance(usage, dict):
        return None
    total_input, total_output = _count(usage, "prompt_tokens"), _count(usage, "completion_tokens")
    if not total_input or total_output is None:
        return None
    of_input, of_output = usage.get("prompt_tokens_details"), usage.get("completion_tokens_details")
    of_input = of_input if isinstance(of_input, dict) else {}
    of_output = of_output if isinstance(of_output, dict) else {}
    cache_read, cache_write = _count(of_input, "cached_tokens") or 0, _count(of_input, "cache_write_tokens") or 0
    audio_input = _count(of_input, "audio_tokens") or 0
    reasoning, audio_output = _count(of_output, "reasoning_tokens") or 0, _count(of_output, "audio_tokens") or 0
    if cache_read + cache_write + audio_input > total_input:
        cache_read = cache_write = audio_input = 0  # parts above their whole: the whole is what is billed
    if reasoning + audio_output > total_output:
        reasoning = audio_output = 0
    return rating.Usage(
        input_tokens=total_input,
        output_tokens=total_output,
        cache_read_tokens=cache_read,
        cache_write_5m_tokens=cache_write,
        reasoning_tokens=reasoning,
        audio_input_tokens=audio_input,
        audio_output_tokens=audio_output,
    )


def _count(counts: Mapping[str, Any], name: str) -> int | None:
    value = counts.get(name)
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= MAX_CAP else None


def count_output(choices: Any, key: str, count: TextCount) -> bool:
    """Count what `choices` say under `key` (`message` or `delta`); whether they say anything."""
    found = False
    for choice in choices if isinstance(choices, list) else ():
        said = choice.get(key) if isinstance(choice, dict) else None
        if not isinstance(said, dict):
            continue
        for name in ("content", "refusal", "reasoning_content", "reasoning"):
            text = said.get(name)
            if isinstance(text, str) and text:
                count.add(text)
                found = True
        calls = said.get("tool_calls")
        for call in calls if isinstance(calls, list) else ():
            function = call.get("function") if isinstance(call, dict) else None
            for text in function.values() if isinstance(function, dict) else ():
                if isinstance(text, str):
                    count.add(text)
                    found = True
    return found
