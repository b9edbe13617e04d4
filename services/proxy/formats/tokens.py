"""Owns the counting of tokens before a provider has counted: bounds that are never too low, guesses, and estimates.

**The bound on input tokens is never below the real count.** A tokenizer of bytes makes at most one token of each byte,
and the JSON of a request has at least one byte for each byte of text in it (escapes only lengthen it), tool definitions
and schemas included. So the bound is the length of the body; plus what a provider's template adds to each message and
tool; less the base64 of images and audio, which are no text, and plus a stated bound for each of those.

The best guess (four characters of Latin text to a token, one of others) is what a plan's size limit is checked with:
checked with the bound, a limit of 1 000 tokens would refuse prompts of 250.

The estimate is what a call is billed by whose provider gave no count: by OpenAI's public tokenizer, whose tables the
splintr package brings along. Nobody else publishes theirs; of Claude's and Gemini's texts it is a fair estimate, and
the usage record says that it is one.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from typing import Any

import orjson
from splintr import AnyTokenizer, Tokenizer

# What templates add: role and separators (4 to 8 tokens with every known one) and the opening of the answer.
_MESSAGE_TOKENS = 16
_TOOL_TOKENS = 64
_REQUEST_TOKENS = 64
# The same, as a guess.
_MESSAGE_GUESS = 4
REQUEST_GUESS = 3

# The dearest image of OpenAI's models: 8 tiles of 170 and 85 with gpt-4o; 1 536 patches at 2.46 with the small ones of
# gpt-4.1; Claude and Gemini below that. gpt-4o-mini counts its tiles at 5 667 and 2 833.
_IMAGE_TOKENS = 5_000
_IMAGE_TOKENS_OF = {"gpt-4o-mini": 50_000}
_IMAGE_GUESS = 765  # four tiles
# Audio is 10 to 40 tokens a second; at 8 kbit/s, the least that carries speech, a second is 1 333 of base64.
_AUDIO_CHARS_PER_TOKEN = 32
# A file, or whatever is named and not brought along, may fill the model's window: what it says can be told only by who
# opens it, and a page of a PDF is an image besides its text.
WINDOW_TOKENS = 200_000
LARGEST_WINDOW_TOKENS = 1_048_576  # Gemini's
_FILE_CHARS_PER_GUESS = 16

# Models that have the older of OpenAI's two public tokenizers.
_OLDER = ("gpt-3.5", "gpt-4-", "text-embedding-")
# A longer text is estimated from its beginning: it is tokenized on the event loop.
_MAX_ESTIMATED_CHARS = 2_000_000


class InputCount:
    """Counts a request's input tokens while it is walked through: the bound and the guess."""

    def __init__(self, raw: bytes, model: str) -> None:
        self.bound = len(raw) + _REQUEST_TOKENS
        self.guess = REQUEST_GUESS
        self.media_guess = 0  # of that, images, recordings and files
        self.has_images = False
        self.has_audio = False
        self._image_tokens = next(
            (tokens for name, tokens in _IMAGE_TOKENS_OF.items() if model.startswith(name)), _IMAGE_TOKENS
        )

    def message(self) -> None:
        """A message, its content apart."""
        self.bound += _MESSAGE_TOKENS
        self.guess += _MESSAGE_GUESS

    def text(self, text: str) -> None:
        """A text; its bytes are in the bound already."""
        self.guess += guessed(text)

    def json(self, value: Any) -> None:
        """Something that the model reads as JSON, or nearly so."""
        self.guess += len(orjson.dumps(value)) // 4

    def definitions(self, value: Any) -> None:
        """Definitions of tools, or a schema."""
        self.json(value)
        self.bound += _TOOL_TOKENS * (len(value) if isinstance(value, list) else 1)

    def image(self, data: object) -> None:
        """An image, by its base64 or its address."""
        self.has_images = True
        self._not_text(data, self._image_tokens, _IMAGE_GUESS)

    def audio(self, data: object) -> None:
        """A recording, by its base64."""
        self.has_audio = True
        length = len(data) if isinstance(data, str) else 0
        self._not_text(data, length // _AUDIO_CHARS_PER_TOKEN + 1, length // 256 + 1)

    def file(self, data: object, window: int = WINDOW_TOKENS) -> None:
        """A file, by its base64, or by nothing where it is only named."""
        self._not_text(data, window, len(data) // _FILE_CHARS_PER_GUESS if isinstance(data, str) else 1)

    def _not_text(self, data: object, bound: int, guess: int) -> None:
        """Take a part that is no text out of the body's bytes, and put its own bound there."""
        self.guess += guess
        self.media_guess += guess
        # Only what has a byte in the body for each of its characters, as base64 and addresses have.
        self.bound += bound - (len(data) if isinstance(data, str) and data.isascii() else 0)


def guessed(text: str) -> int:
    """A best guess of the tokens of a text: four ASCII characters to one, one of any other."""
    if text.isascii():
        return (len(text) + 3) // 4
    ascii_chars = len(text.encode("ascii", "ignore"))
    return (ascii_chars + 3) // 4 + len(text) - ascii_chars


def estimated(model: str, texts: Iterable[str]) -> int:
    """The tokens of texts, by the model's public tokenizer or the nearest one."""
    joined = "".join(texts)
    counted = joined[:_MAX_ESTIMATED_CHARS]
    tokens = len(_tokenizer("cl100k_base" if model.startswith(_OLDER) else "o200k_base").encode(counted))
    if len(joined) == len(counted):
        return tokens
    return -(-tokens * len(joined) // len(counted))


@lru_cache(maxsize=2)
def _tokenizer(name: str) -> AnyTokenizer:
    return Tokenizer.from_pretrained(name)
