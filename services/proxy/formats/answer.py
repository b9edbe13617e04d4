"""Owns what is known of an answer while it comes: the provider's own count, or an estimate where it gives none."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import orjson

from services import rating
from services.kit.logs import get_logger
from services.proxy import provider_json
from services.proxy.formats.reading import MAX_CAP, answered_tier
from services.proxy.sse import BYTE_ORDER_MARK, EventSplitter, data_of, event_of, name_of

_log = get_logger(__name__)

_MAX_IDENTIFIER_CHARS = 200  # what the ledger keeps

# With twenty likely alternatives, each spelt in bytes, a line for each.
_MAX_BYTES_OF_A_TOKEN = 16 * 1024

_EVENT_STARTS = (b"data:", b"event:", b":")

EVENTS = "text/event-stream"
BROKEN = "The provider broke off in the middle of its answer."


@dataclass(frozen=True, slots=True)
class Event:
    """One event as it came. `chunk` is its data where it may be the last one, which carries the credits.

    `done`: the stream ends with it. `withheld`: it is not for the client; what it says is said in the last chunk.
    """

    raw: bytes
    chunk: dict[str, Any] | None = None
    done: bool = False
    withheld: bool = False


class AnswerReader(ABC):
    """Reads one answer.

    `finished`: it has come to its end. `failed`: the provider said, in place of an answer or in the midst of it, that
    it failed. `partial` is what the provider had counted when it broke off; `service_tier` and `provider_request_id`
    are what the provider said of them. `content_type` is what a streamed answer is to the client.
    """

    content_type = EVENTS

    def __init__(self) -> None:
        self.usage: rating.Usage | None = None
        self.partial: rating.Usage | None = None
        self.service_tier: str | None = None
        self.provider_request_id = ""
        self.finished = False
        self.failed = False
        self.pieces = 0
        self.said: list[str] = []
        self._begun = False

    @property
    def owed(self) -> bool:
        """Whether there is anything to pay for: the provider has begun to answer, or has counted."""
        return self._begun and (not self.failed or self.usage is not None or self.pieces > 0)

    @property
    def output_so_far(self) -> int:
        """The provider's own count of all that it has said, where it counts in each chunk; else 0."""
        return 0

    @property
    def estimated(self) -> bool:
        """Whether the counts are ours."""
        return self.usage is None

    def served_in(self, tier: str) -> None:
        """Note the tier that an answer's headers name, where it is known; its body may say otherwise."""
        self.service_tier = answered_tier(tier)

    def take_whole(self, body: bytes) -> None:
        """Read a unary answer."""
        self._begun = self.finished = True
        answer = provider_json.read(body)
        if not isinstance(answer, dict):
            self._no_object(body.removeprefix(BYTE_ORDER_MARK).strip(), answer)
            return
        self._whole(answer)
        # An error in place of an answer is none, whatever its status says.
        self.failed = answer.get("error") is not None and not self.said and self.usage is None

    def _no_object(self, body: bytes, answer: object) -> None:
        """Read what came in place of a JSON object: events that nobody asked for, nothing, a page, or at worst text.

        Of an answer that broke off the count may be there all the same. Google puts its errors into a list.
        """
        if body.startswith(_EVENT_STARTS):
            for event in EventSplitter(len(body) + 2).feed(body + b"\n\n"):
                self.take_event(event)
        elif not body or body.startswith(b"<") or _are_errors(answer):
            self.failed = True  # what stands between the provider and us has answered, not a model
        elif counted := provider_json.last_count(body):
            self._whole(counted)
        else:
            self.said.append(body.decode(errors="replace"))

    def take_end(self, end: bytes, size_bytes: int) -> None:
        """Read the last bytes of a unary answer that nobody is given, for its count: it stands at the end in all forms.

        Without one it had at least so many tokens as so many bytes have.
        """
        self._begun = self.finished = True
        self.pieces = size_bytes // _MAX_BYTES_OF_A_TOKEN
        if counted := provider_json.last_count(end):
            self._whole(counted)

    def take_event(self, raw: bytes) -> Event:
        """Read one event of a stream."""
        data = data_of(raw)
        if not data.startswith(b"{"):
            return self._other(raw, data)
        chunk = provider_json.read(data)
        if not isinstance(chunk, dict):
            self._begun = True
            self.pieces += 1  # of what was said, though most of its bytes are not
            if counted := provider_json.last_count(data):
                self._chunk(raw, counted)
            return Event(raw)
        if self._is_failure(chunk):
            self.failed = True
            return Event(raw)
        self._begun = True
        return self._chunk(raw, chunk)

    def credited(
        self,
        event: Event | None,
        credits_object: Mapping[str, Any],
        counted: Callable[[], rating.Usage],  # noqa: ARG002 (for forms that can say it in a chunk of their own)
    ) -> bytes | None:
        """The last event once more with the call's credits; None where there is no event that could carry them."""
        return None if event is None else with_fields(event, {"credits": credits_object})

    def framed(self, event: bytes) -> bytes:
        """An event in the framing that the client asked for."""
        return event

    def closing(self) -> bytes:
        """What ends the framing, after the last event."""
        return b""

    @abstractmethod
    def broken(self, credits_object: Mapping[str, Any] | None) -> bytes:
        """The event that tells the client that the provider broke off, in the words of this form."""

    @abstractmethod
    def cut_short(self, credits_object: Mapping[str, Any] | None, counted: rating.Usage) -> bytes:
        """The events that end a stream here, as one whose output cap is reached ends in this form.

        `counted` is what is billed, and told as the usage.
        """

    @abstractmethod
    def _whole(self, answer: dict[str, Any]) -> None:
        """Note a unary answer: its usage, identifier, tier and text."""

    @abstractmethod
    def _chunk(self, raw: bytes, chunk: dict[str, Any]) -> Event:
        """Note one chunk of a stream, and say what it is."""

    def _other(self, raw: bytes, data: bytes) -> Event:  # noqa: ARG002 (for forms whose stream has an end mark)
        """An event whose data is no object: a comment, an end mark."""
        return Event(raw)

    def _is_failure(self, chunk: dict[str, Any]) -> bool:
        return chunk.get("error") is not None

    def say(self, text: object) -> bool:
        """Note a piece of what the model said; whether it is one. Output is estimated from these where need be."""
        if not isinstance(text, str) or not text:
            return False
        self.said.append(text)
        return True

    def note(self, identifier: object, tier: object) -> None:
        """Note the answer's own name, the first one that comes, and the tier it was served in, the last."""
        if not self.provider_request_id and isinstance(identifier, str):
            self.provider_request_id = _kept(identifier)
        if tier is not None:
            known = answered_tier(tier)
            if known is None:
                _log.warning("an answer of a tier that is not known; priced as it was admitted", tier=str(tier)[:50])
            self.service_tier = known or self.service_tier

    def count(self, read: Callable[[Mapping[str, Any]], rating.Usage], usage: object) -> bool:
        """Take the provider's count, where it is one that can be believed; whether it is.

        Of an answer that says something, one without output counts the input alone.
        """
        found = believed(read, usage)
        if found is not None and self.said and not found.output_tokens:
            self.partial = found
            return False
        self.usage = found or self.usage
        return found is not None


def _are_errors(answer: object) -> bool:
    return (
        isinstance(answer, list)
        and bool(answer)
        and all(isinstance(one, dict) and one.get("error") is not None for one in answer)
    )


def believed(read: Callable[[Mapping[str, Any]], rating.Usage], usage: object) -> rating.Usage | None:
    """The provider's count, where it is one that can be believed.

    No answer comes without input, so a count of none is no count; nor is one of two thousand million tokens.
    """
    if not isinstance(usage, dict):
        return None
    try:
        found = read(usage)
    except rating.InvalidUsage as error:
        _log.warning("a provider's count is not understood", error=str(error))
        return None
    return found if 0 < found.input_tokens <= MAX_CAP and found.output_tokens <= MAX_CAP else None


def with_fields(event: Event, fields: Mapping[str, Any]) -> bytes | None:
    """The event once more with these fields in its chunk; None where it has no chunk."""
    if event.chunk is None:
        return None
    if (spliced := _spliced(event.raw, event.chunk, fields)) is not None:
        return spliced
    return event_of(orjson.dumps({**event.chunk, **fields}), name_of(event.raw))


def _spliced(raw: bytes, chunk: Mapping[str, Any], fields: Mapping[str, Any]) -> bytes | None:
    """The event as it came, with these fields put at the end of its object.

    None where that end is not the end of the event's last line of data, or where one of them is there already.
    """
    end = raw.rfind(b"}")
    before = raw[max(raw.rfind(b"\n", 0, end), raw.rfind(b"\r", 0, end)) + 1 : end].removeprefix(BYTE_ORDER_MARK)
    behind, *others = raw[end + 1 :].splitlines() or [b""]
    ends_the_data = before.startswith(b"data:") and not behind.strip() and not any(x[:4] == b"data" for x in others)
    if not chunk or not chunk.keys().isdisjoint(fields) or not ends_the_data:
        return None
    return raw[:end] + b"," + orjson.dumps(fields)[1:-1] + raw[end:]


def _kept(identifier: str) -> str:
    """A provider's own text as the ledger keeps it: what it would refuse would leave the call unbilled."""
    return "".join(char for char in identifier if char.isprintable())[:_MAX_IDENTIFIER_CHARS]
