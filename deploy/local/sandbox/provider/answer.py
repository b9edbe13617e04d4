"""Owns the answer: which tokens are said to which prompt under which behaviour, where they stop, and their usage.

Pure. The wire formats write what is decided here; the usage is counted from these very tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import Enum, auto

import orjson

from deploy.local.sandbox.provider import tokens
from deploy.local.sandbox.provider.behaviour import IGNORE_CAP, NO_USAGE, Behaviour, DirectiveError
from deploy.local.sandbox.provider.prompt import Prompt, Tool
from deploy.local.sandbox.provider.sample import sample


class Finish(Enum):
    """Why the answer ends."""

    STOP = auto()
    STOP_SEQUENCE = auto()
    LENGTH = auto()
    TOOL = auto()


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call of a function; `arguments` is JSON in tokens, not closed where the cap cut it."""

    name: str
    arguments: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of the whole call; `input` includes the cached and cache-written ones, `output` the reasoning ones."""

    input: int
    output: int
    cached: int
    cache_write: int
    cache_write_1h: int
    reasoning: int


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer. Where several choices were asked for they are all alike, so it is written down once.

    Attributes:
        number: the request's number in the request log; every id in the answer is made of it.
        created: Unix time in seconds.
        prompt: what was asked.
        reasoning: the tokens thought before the first visible one, of each choice.
        text: the tokens said, of each choice; empty where a tool is called.
        call: the tool called, if any.
        finish: why it ends.
        stop: the stop text at which it ended, if so.
        usage: the tokens of the whole call.
        usage_shown: whether the client gets to see the usage.
        chunk_tokens: tokens of one chunk when streamed.
    """

    number: int
    created: int
    prompt: Prompt
    reasoning: tuple[str, ...]
    text: tuple[str, ...]
    call: ToolCall | None
    finish: Finish
    stop: str | None
    usage: Usage
    usage_shown: bool
    chunk_tokens: int

    @property
    def parsed_arguments(self) -> object:
        """The tool call's arguments as an object; empty where they were cut and so are no JSON."""
        assert self.call is not None
        try:
            return orjson.loads("".join(self.call.arguments))
        except orjson.JSONDecodeError:
            return {}


def groups(pieces: Sequence[str], size: int) -> Iterator[tuple[str, int]]:
    """The texts of the chunks that `pieces` make, each with its number of tokens."""
    if size == 1:
        for piece in pieces:
            yield piece, 1
        return
    for start in range(0, len(pieces), size):
        group = pieces[start : start + size]
        yield "".join(group), len(group)


def compose(prompt: Prompt, behaviour: Behaviour, *, number: int, created: int) -> Answer:
    """Decide the answer.

    Raises:
        DirectiveError: the behaviour names a tool that the prompt does not offer.
    """
    wanted = behaviour.output_tokens
    cap = prompt.cap
    if IGNORE_CAP in behaviour.faults and cap:  # a cap of 0 is an embedding's, which has nothing to say
        wanted = 2 * cap if wanted is None else wanted
        cap = None
    reasoning = _shorten(tokens.answer_of(behaviour.reasoning), cap if wanted is None else _least(cap, wanted))
    room = None if cap is None else cap - len(reasoning)
    length = None if wanted is None else wanted - len(reasoning)

    tool = _called_tool(prompt, behaviour)
    call = None
    text: tuple[str, ...] = ()
    stop = None
    if tool is not None:
        call, finish, said = _tool_call(tool, room)
    else:
        text, finish, stop = _text(prompt, length, room)
        said = len(text)

    cached = min(behaviour.cached, prompt.input_tokens)
    written = min(behaviour.cache_write, prompt.input_tokens - cached)
    written_1h = min(behaviour.cache_write_1h, prompt.input_tokens - cached - written)
    usage = Usage(
        input=prompt.input_tokens,
        output=prompt.choices * (len(reasoning) + said),
        cached=cached,
        cache_write=written,
        cache_write_1h=written_1h,
        reasoning=prompt.choices * len(reasoning),
    )
    return Answer(
        number=number,
        created=created,
        prompt=prompt,
        reasoning=reasoning,
        text=text,
        call=call,
        finish=finish,
        stop=stop,
        usage=usage,
        usage_shown=NO_USAGE not in behaviour.faults,
        chunk_tokens=behaviour.chunk_tokens,
    )


def _least(cap: int | None, wanted: int) -> int:
    return wanted if cap is None else min(cap, wanted)


def _shorten(pieces: tuple[str, ...], limit: int | None) -> tuple[str, ...]:
    return pieces if limit is None else pieces[:limit]


def _called_tool(prompt: Prompt, behaviour: Behaviour) -> Tool | None:
    name = behaviour.tool or prompt.required_tool
    if name is None:
        return None
    for tool in prompt.tools:
        if tool.name == name:
            return tool
    raise DirectiveError(f"sandbox: the request offers no tool {name!r}")


def _tool_call(tool: Tool, room: int | None) -> tuple[ToolCall | None, Finish, int]:
    """The call of `tool`, why it ends, and its tokens: its name and its arguments count."""
    name_tokens = tokens.count(tool.name)
    arguments = tokens.split(orjson.dumps(sample(tool.schema)).decode())
    if room is None or name_tokens + len(arguments) <= room:
        return ToolCall(tool.name, arguments), Finish.TOOL, name_tokens + len(arguments)
    if name_tokens > room:
        # Not even the name fits, so there is no call to show and nothing was said.
        return None, Finish.LENGTH, 0
    return ToolCall(tool.name, arguments[: room - name_tokens]), Finish.LENGTH, room


def _text(prompt: Prompt, length: int | None, room: int | None) -> tuple[tuple[str, ...], Finish, str | None]:
    """The text said, why it ends, and the stop text at which it does."""
    if prompt.json_schema is not None:
        pieces = _json_text(prompt, length)
    elif length is None:
        pieces = tokens.DEFAULT_TOKENS
    else:
        pieces = tokens.answer_of(length)
    finish, stop = Finish.STOP, None
    if prompt.stops:
        whole = "".join(pieces)
        found = [(whole.find(text), text) for text in prompt.stops if text and text in whole]
        if found:
            at, stop = min(found)
            pieces, finish = tokens.split(whole[:at]), Finish.STOP_SEQUENCE
    if room is not None and len(pieces) > room:
        return pieces[:room], Finish.LENGTH, None
    return pieces, finish, stop


def _json_text(prompt: Prompt, length: int | None) -> tuple[str, ...]:
    """A JSON answer; line ends after it fill it up to `length` tokens, since they leave it the same JSON."""
    value = sample(prompt.json_schema) if prompt.json_schema else {"answer": tokens.DEFAULT_ANSWER}
    pieces = tokens.split(orjson.dumps(value).decode())
    return pieces + ("\n",) * ((length or 0) - len(pieces))
