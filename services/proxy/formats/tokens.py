"""Owns the counting of tokens before a provider has counted: bounds that are never too low, guesses, and estimates.

**The bound on input tokens is never below the real count.** A tokenizer of bytes makes at most one token of each byte,
and the JSON of a request has at least one byte for each byte of text in it (escapes only lengthen it), tool definitions
and schemas included. So the bound is the length of the body; plus what a provider's template adds to each message and
tool, and Anthropic where there are any tools; less the base64 of images and audio, which are no text, and plus a stated
bound for each of those. What is not to be seen here (`Unseen`) is bounded by the model's window, once for all of it
together.

The best guess (four characters of Latin text to a token, one of others) is what a plan's size limit is checked with:
checked with the bound, a limit of 1 000 tokens would refuse prompts of 250.

The estimate is what a call is billed by whose provider gave no count: by OpenAI's public tokenizer, whose tables the
splintr package brings along. Nobody else publishes theirs; of Claude's and Gemini's texts it is a fair estimate, and
the usage record says that it is one.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import orjson
from splintr import AnyTokenizer, Tokenizer

from services.proxy.formats import recordings

# What templates add: role and separators (4 to 8 tokens with every known one) and the opening of the answer.
_MESSAGE_TOKENS = 16
_TOOL_TOKENS = 64
_REQUEST_TOKENS = 64
# What Anthropic adds where there are tools: a system prompt, of 264 to 530 tokens by model and choice, 499 with the
# computer's; and to each tool that it has made itself a definition of its own: 245 for bash, 735 for the computer, 700
# for the text editor. Nothing of it is in the request. Source: Anthropic's docs, "Tool use", "Computer use tool".
_CLAUDE_TOOLS_TOKENS = 700
_CLAUDE_OWN_TOOL_TOKENS = 1_500
# By what the name of a model has in it. An address at AWS need not say whose model it is.
_CLAUDE = ("claude", "anthropic", "arn:")
_CLIENTS_TOOLS = (None, "custom", "function")  # types of tools that the request defines
# The same, as a guess.
_MESSAGE_GUESS = 4
REQUEST_GUESS = 3

# The dearest image of OpenAI's older models: 8 tiles of 170 and 85 with gpt-4o; 1 536 patches at 2.46 with the small
# ones of gpt-5; Claude and Gemini below that. gpt-4o-mini counts its tiles at 5 667 and 2 833. Since gpt-5.4 an image
# may have 10 000 patches, since gpt-5.6 30 000, without asking for it. Source: OpenAI's guide "Images and vision".
_IMAGE_TOKENS = 5_000
_IMAGE_TOKENS_OF = {
    "gpt-4o-mini": 50_000,
    "gpt-5.4": 10_000,
    "gpt-5.5": 10_000,
    "gpt-5.6": 30_000,
    "gpt-6": 30_000,
}
_IMAGE_GUESS = 765  # four tiles
# Audio is 10 to 40 tokens a second.
_AUDIO_TOKENS_A_SECOND = 40
_AUDIO_CHARS_PER_GUESS = 256
# A file, or whatever is named and not brought along, may fill the model's window: what it says can be told only by who
# opens it, and a page of a PDF is an image besides its text.
WINDOW_TOKENS = 200_000
LARGEST_WINDOW_TOKENS = 1_048_576  # Gemini's
_FILE_CHARS_PER_GUESS = 16

# Models that have the older of OpenAI's two public tokenizers.
_OLDER = ("gpt-3.5", "gpt-4-", "text-embedding-")
# A longer text is estimated from its beginning: of some, this much takes seconds.
_MAX_ESTIMATED_CHARS = 2_000_000
_FEW_BYTES_TO_A_TOKEN = 3
_BYTES_OF_A_TOKENS_NUMBER = 4


class Unseen(NamedTuple):
    """What of a request's input is not to be seen here, as it counts in the bound already.

    `files` bounds the tokens of those that are brought along, `named` says whether there is something that is only
    named (an address, an id, what a provider remembers); `window` is the one that was taken for the model's.
    """

    files: int = 0
    named: bool = False
    window: int = WINDOW_TOKENS

    def within(self, window: int) -> int:
        """The most tokens of it in a window of so many: it may fill that, and never more."""
        return window if self.named else min(self.files, window)

    def more(self, window: int) -> int:
        """How many tokens more it may have in a window of so many than in the one that was taken; never less."""
        return self.within(max(window, self.window)) - self.within(self.window)


NOTHING_UNSEEN = Unseen()


class InputCount:
    """Counts a request's input tokens while it is walked through: the bound and the guess.

    `window` is what a model of this form has where its price does not say; `claude`: whether it is surely one of
    Anthropic's, which is told by the name too.
    """

    def __init__(self, raw: bytes, model: str, *, window: int = WINDOW_TOKENS, claude: bool = False) -> None:
        self._seen = len(raw) + _REQUEST_TOKENS
        self._window = window
        self._files = 0
        self._named = False
        self._claude = claude or any(known in model.lower() for known in _CLAUDE)
        self.guess = REQUEST_GUESS
        self.media_guess = 0  # of that, images, recordings and files
        self.has_images = False
        self.has_audio = False
        name = model.rpartition("/")[2]
        self._image_tokens = next(
            (tokens for known, tokens in _IMAGE_TOKENS_OF.items() if name.startswith(known)), _IMAGE_TOKENS
        )

    @property
    def unseen(self) -> Unseen:
        """What is not to be seen of it."""
        return Unseen(self._files, self._named, self._window)

    @property
    def bound(self) -> int:
        """The bound on all of it."""
        return self._seen + self.unseen.within(self._window)

    def message(self) -> None:
        """A message, its content apart."""
        self._seen += _MESSAGE_TOKENS
        self.guess += _MESSAGE_GUESS

    def text(self, text: str) -> None:
        """A text; its bytes are in the bound already."""
        self.guess += guessed(text)

    def json(self, value: Any) -> None:
        """Something that the model reads as JSON, or nearly so."""
        self.guess += len(orjson.dumps(value)) // 4

    def twice(self) -> None:
        """All of it, read once more."""
        self._seen += self.bound

    def definitions(self, value: Any) -> None:
        """Definitions of tools, or a schema."""
        self.json(value)
        self._seen += _TOOL_TOKENS * (len(value) if isinstance(value, list) else 1)
        if self._claude:
            self._seen += _CLAUDE_TOOLS_TOKENS  # also for a schema, which adds a system prompt, too
            tools = (tool for tool in value if isinstance(tool, dict)) if isinstance(value, list) else ()
            self._seen += _CLAUDE_OWN_TOOL_TOKENS * sum(tool.get("type") not in _CLIENTS_TOOLS for tool in tools)

    def image(self, data: object) -> None:
        """An image, by its base64 or its address."""
        self.has_images = True
        self._not_text(data, self._image_tokens, _IMAGE_GUESS)

    def audio(self, data: object) -> None:
        """A recording, by its base64. One of a length that cannot be told may fill the window, as a file may."""
        self.has_audio = True
        length = len(data) if isinstance(data, str) else 0
        seconds = recordings.most_seconds(data) if isinstance(data, str) else None
        guess = length // _AUDIO_CHARS_PER_GUESS + 1
        if seconds is None:
            self._files += self._window
            self._not_text(data, 0, guess)
        else:
            bound = seconds * _AUDIO_TOKENS_A_SECOND
            self._not_text(data, bound, min(bound, guess))

    def file(self, data: object, most: int | None = None) -> None:
        """A file, by its base64, or by nothing where it is only named; of at most so many tokens, else of a window."""
        if isinstance(data, str):
            self._files += self._window if most is None else most
        else:
            self._named = True
        self._not_text(data, 0, len(data) // _FILE_CHARS_PER_GUESS if isinstance(data, str) else 1)

    def _not_text(self, data: object, bound: int, guess: int) -> None:
        """Take a part that is no text out of the body's bytes, and put its own bound there."""
        self.guess += guess
        self.media_guess += guess
        # Only what has a byte in the body for each of its characters, as base64 and addresses have.
        self._seen += bound - (len(data) if isinstance(data, str) and data.isascii() else 0)


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
    tokenizer = _tokenizer("cl100k_base" if model.startswith(_OLDER) else "o200k_base")
    # Flat: a list of as many integers would be made while nothing else of the process can run.
    tokens = len(tokenizer.encode_flat(counted)) // _BYTES_OF_A_TOKENS_NUMBER
    if len(joined) == len(counted):
        return tokens
    return -(-tokens * len(joined) // len(counted))


class SaidSoFar:
    """Counts a text while it is said, as seldom as will do: for an output cap that a provider may ignore.

    What it says is taken for a bound from below, since a stream is ended by it: one that is within what is held must
    never be. But the public tokenizer is not every model's own, and one with a larger vocabulary, or one more at home
    in the text's language, makes fewer tokens of the same text. So only three quarters of what it counts are believed;
    a text may be a third above the limit before that is seen, and whoever counts for a bill sees to that (`Call`).

    It counts nothing before there are so many bytes that it could come to more than the limit, at three to a token.
    Most texts have four and more, so that a stream well within its cap is never counted, and one that fills its cap a
    few times near its end. What has fewer bytes to a token (digits, base64) is seen to be above the limit later.
    """

    def __init__(self, model: str) -> None:
        self._model = model
        self._heard = 0  # pieces
        self._counted = 0  # pieces
        self._uncounted_bytes = 0
        self._tokens = 0

    def at_least(self, said: Sequence[str], limit: int) -> int:
        """How many tokens these pieces have at the least, as far as it matters for a limit of so many."""
        while self._heard < len(said):
            piece = said[self._heard]
            self._uncounted_bytes += len(piece) if piece.isascii() else len(piece.encode())
            self._heard += 1
        if 3 * (self._tokens + self._uncounted_bytes // _FEW_BYTES_TO_A_TOKEN) > 4 * limit:
            self._tokens += estimated(self._model, said[self._counted :])
            self._counted, self._uncounted_bytes = len(said), 0
        return 3 * self._tokens // 4


@lru_cache(maxsize=2)
def _tokenizer(name: str) -> AnyTokenizer:
    return Tokenizer.from_pretrained(name)
