"""Owns what every wire format's request has: what is checked and held for, and the way to its provider and back."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar, Self

from services.proxy.formats import tokens
from services.proxy.formats.answer import AnswerReader
from services.proxy.upstream import Outgoing, Provider

# The price components, besides plain input and output, that a call for text may have.
TEXT_COMPONENTS = frozenset({"cache_read", "cache_write_5m", "cache_write_1h", "reasoning"})
AUDIO_COMPONENTS = frozenset({"audio_input", "audio_output"})
IMAGE_COMPONENTS = frozenset({"image_input"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Request(ABC):
    """What is read of a request.

    `choices` is how many answers are asked for, 0 where the answer has no tokens (embeddings); `cap` is the client's
    output cap for each of them, None where it gave none, 0 where it wants no output. `input_bound` and `input_guess`
    are in tokens (see `tokens.py`), `media_guess` what of the guess is images, recordings and files, `unseen` what of
    the bound is not to be seen; `components` are the price components, besides plain input and output, that such a call
    can have.
    """

    # The providers' name of the form (`upstream.Outgoing.form`), and whose it is.
    form: ClassVar[str]
    owner: ClassVar[str]

    body: dict[str, Any]
    model: str
    stream: bool
    choices: int
    cap: int | None
    input_bound: int
    input_guess: int
    service_tier: str
    components: frozenset[str]
    media_guess: int = 0
    unseen: tokens.Unseen = tokens.NOTHING_UNSEEN

    @classmethod
    @abstractmethod
    def read(cls, raw: bytes, *, model: str = "", stream: bool = False) -> Self:
        """Read a body. A `model` given takes the place of the body's; `stream` is for forms whose body does not say.

        Raises InvalidArgument naming every field that is wrong, of those that are read.
        """

    @property
    def least_cap(self) -> int:
        """The lowest output cap that the provider takes: one that pays for less is refused here, not there."""
        return 1

    @abstractmethod
    def outgoing(self, cap: int, provider: Provider, headers: tuple[tuple[str, str], ...] = ()) -> Outgoing:
        """The request for the provider: what was read, but for the output cap, the asking for usage and the model's id.

        Written anew even where nothing changes: of a name that stands twice in an object one reader takes the first and
        another the last, and what the provider reads must be what was checked here.
        """

    @abstractmethod
    def reader(self) -> AnswerReader:
        """What reads the answer."""

    @abstractmethod
    def texts(self) -> Iterable[str]:
        """All that the model is given to read, for an estimate where the provider does not count."""

    def for_model(self, raw: bytes, model: str) -> Self:
        """The same request, read from its body once more, to another model. Raises InvalidArgument."""
        return self.read(raw, model=model, stream=self.stream)

    def input_within(self, window: int) -> int:
        """The bound on the input in a model that takes so many tokens; 0: that is not known."""
        return self.input_bound + self.unseen.more(window)

    def forms(self) -> frozenset[str]:
        """The forms in which a provider can be asked for this."""
        return frozenset((self.form,))

    def estimated_input(self) -> int:
        """The input tokens, never 0: of texts by the public tokenizer, of all else by the guess."""
        return max(1, tokens.estimated(self.model, self.texts()) + self.media_guess + tokens.REQUEST_GUESS)
