"""Owns the tokenizer: what one token is, how many a text or a request part has, and where an answer is cut.

A token is, reading from the left and taking as much as fits: one to six ASCII letters, or one to three digits, with
the one space before them if there is one; or else any single character. The rule looks at nothing beyond the token
itself, so the first N tokens of a text, taken alone, are again exactly N tokens: a cut answer's count stays true.

The overheads per message and per call are those OpenAI documents for its chat models (three tokens a message and one
for its role, three to prime the answer). Every format uses them, so a conversation counts the same in all of them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any, Final

import orjson

_TOKEN: Final = re.compile(r" ?[A-Za-z]{1,6}| ?[0-9]{1,3}|.", re.DOTALL)

MESSAGE_OVERHEAD: Final = 4
"""Tokens of one message beside its content."""
ANSWER_OVERHEAD: Final = 3
"""Tokens of one call that prime the answer."""
IMAGE: Final = 765
"""Tokens of one image, whatever its size."""
IMAGE_LOW_DETAIL: Final = 85
"""Tokens of one image sent to OpenAI with `detail: low`."""
_BASE64_CHARACTERS_PER_TOKEN: Final = 256

DEFAULT_ANSWER: Final = "This is the Tollkeeper sandbox: no model was called."
_FILLER: Final = (
    " The text goes on only to fill the number of tokens that was asked for; it says nothing, it means nothing, and it"
    " is the same each time, so that what is counted here can be counted again by whoever reads it."
)


def split(text: str) -> tuple[str, ...]:
    """The tokens of `text`, in order; joined they are `text` again."""
    return tuple(_TOKEN.findall(text))


def count(text: str) -> int:
    """How many tokens `text` has."""
    return len(_TOKEN.findall(text))


def count_json(value: Any) -> int:
    """How many tokens `value` has, written as JSON without spaces: tool definitions, call arguments, unknown parts."""
    return count(orjson.dumps(value).decode())


def count_base64(text: str) -> int:
    """Tokens of a file, sound or document sent inline: one for each 256 characters of base64 begun."""
    return -(-len(text) // _BASE64_CHARACTERS_PER_TOKEN)


def count_call(messages: Iterable[int]) -> int:
    """Tokens of a whole call whose messages have these many tokens each."""
    return ANSWER_OVERHEAD + sum(MESSAGE_OVERHEAD + content for content in messages)


DEFAULT_TOKENS: Final = split(DEFAULT_ANSWER)
_FILLER_TOKENS: Final = split(_FILLER)


def answer_of(length: int) -> tuple[str, ...]:
    """The sandbox's fixed text, exactly `length` tokens of it: the default answer first, then filler without end."""
    if length <= len(DEFAULT_TOKENS):
        return DEFAULT_TOKENS[:length]
    missing = length - len(DEFAULT_TOKENS)
    rounds = -(-missing // len(_FILLER_TOKENS))
    return DEFAULT_TOKENS + (_FILLER_TOKENS * rounds)[:missing]
