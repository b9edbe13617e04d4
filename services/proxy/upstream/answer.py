"""Owns what a provider gives back: an answer being read, its refusals, and what a failure means to the client."""

from __future__ import annotations

import asyncio
import contextlib
import math
import re
import time
import zlib
from collections.abc import AsyncGenerator
from email.utils import parsedate_to_datetime
from enum import Enum, auto

import orjson
from pyreqwest.exceptions import (
    BodyDecodeError,
    PoolTimeoutError,
    PyreqwestError,
    ReadTimeoutError,
    RequestError,
    RequestTimeoutError,
)
from pyreqwest.response import Response

from services.kit.errors import ServiceError
from services.kit.logs import get_logger
from services.kit.loops import raise_if_cancelled
from services.proxy.errors import ProviderTimeout, ProviderUnavailable

_log = get_logger(__name__)

# Of an error: more is nobody's words, but what was sent, echoed; and all of it is looked through.
MAX_ERROR_BYTES = 128 * 1024
# Of an answer above the limit: what is kept, and after how much it is given up.
_END_BYTES = 64 * 1024
_MOST_BYTES = 1024 * 1024 * 1024
_MAX_RETRY_AFTER_SECONDS = 10_000_000.0
_DURATION = re.compile(r"[0-9]{1,9}(\.[0-9]{1,9})?s")

_GZIP = 16 + zlib.MAX_WBITS  # how zlib is told that a header of gzip comes first

_AWS_EVENTS = "application/vnd.amazon.eventstream"

_SERVER_ERRORS = frozenset({500, 502, 503, 504, 529})
_BUSY = frozenset({408, 429})
# 402: the operator's account there is out of money; its words would read as if the customer's were.
_REJECTED = frozenset({401, 402})
_DENIED = 403
_BAD_REQUEST = 400
TOO_MANY = 429

# Why Google refuses a key with 400, and AWS one with 400 or 403.
_GOOGLE_REASONS = frozenset({"API_KEY_INVALID", "API_KEY_EXPIRED"})
_AWS_EXCEPTIONS = frozenset(
    {
        "ExpiredTokenException",
        "IncompleteSignatureException",
        "InvalidClientTokenId",
        "InvalidSignatureException",
        "MissingAuthenticationTokenException",
        "SignatureDoesNotMatch",
        "UnrecognizedClientException",
    }
)


class ProviderRefusalError(Exception):
    """A provider's own error answer, to be passed to the client as it came. AWS names its kind in a header."""

    def __init__(self, status: int, content_type: str, body: bytes, retry_after: str, aws_exception: str = "") -> None:
        super().__init__(f"provider answered {status}")
        self.status = status
        self.content_type = content_type
        self.body = body
        self.retry_after = retry_after
        self.aws_exception = aws_exception


class UnreadAnswerError(Exception):
    """A good answer that cannot be passed on: the provider has made it all the same, and bills it.

    `end` is what is kept of it, its last bytes; `size_bytes` is how much was read.
    """

    def __init__(self, message: str, end: bytes, size_bytes: int) -> None:
        super().__init__(message)
        self.end = end
        self.size_bytes = size_bytes


class Meaning(Enum):
    """What a refusal says, and so what comes next."""

    FINAL = auto()  # about the request: passed on
    BUSY = auto()  # not now: tried again
    FAILED = auto()  # the provider is not well: tried again
    REJECTED = auto()  # our credential is no good
    DENIED = auto()  # our credential is not allowed this


class Answer:
    """A provider's good answer, being read. Reading raises transport failures (see `failure`)."""

    def __init__(self, response: Response, idle_seconds: float | None = None) -> None:
        """With `idle_seconds` a piece is waited for no longer than that; else the connection's own limit holds."""
        self._reader = response.body_reader
        self._ahead: list[bytes | None] = []
        self._idle_seconds = idle_seconds
        self._length = header_of(response, "content-length")  # of what is read; empty where it came compressed
        self._gzip: zlib._Decompress | None = None
        # The older name of gzip (RFC 9110, 8.4.1.3) is one that the client does not know.
        if header_of(response, "content-encoding").strip().lower() == "x-gzip":
            self._gzip, self._length = zlib.decompressobj(_GZIP), ""
        self.content_type = header_of(response, "content-type") or "application/json"
        self.service_tier = header_of(response, "x-gemini-service-tier")  # in Google's own words

    @property
    def is_events(self) -> bool:
        """Whether it is a stream of server-sent events."""
        return self.content_type.lower().startswith("text/event-stream")

    @property
    def is_event_stream_aws(self) -> bool:
        """Whether it is a stream of AWS's binary events."""
        return self.content_type.lower().startswith(_AWS_EVENTS)

    async def read_ahead(self) -> bool:
        """Read the first piece and keep it; False where the body is empty. Before anything else is read."""
        self._ahead.append(await self._piece())
        return self._ahead[0] is not None

    async def pieces(self) -> AsyncGenerator[bytes]:
        """The body as it comes; to be read once."""
        while (piece := self._ahead.pop() if self._ahead else await self._piece()) is not None:
            yield piece

    async def whole(self, limit_bytes: int) -> bytes:
        """The whole body. Raises UnreadAnswerError where it is above the limit."""
        pieces, size = [], 0
        while (piece := self._ahead.pop() if self._ahead else await self._piece()) is not None:
            pieces.append(piece)
            size += len(piece)
            if size > limit_bytes:
                end = b"".join(pieces)[-_END_BYTES:]
                del pieces
                raise UnreadAnswerError(
                    f"the provider's answer is above {limit_bytes} bytes", *await self._end(end, size)
                )
            if str(size) == self._length:
                break  # to be told that it has ended would be another way to the client's thread and back
        return b"".join(pieces)

    async def _end(self, end: bytes, size: int) -> tuple[bytes, int]:
        """Read on for what stands at the end, as counts do: the last bytes, and how many there were."""
        with contextlib.suppress(PyreqwestError):
            while size < _MOST_BYTES and (piece := await self._piece()) is not None:
                end = (end + piece)[-_END_BYTES:]
                size += len(piece)
        return end, size

    async def _piece(self) -> bytes | None:
        """The next piece, None at the end. Raises PyreqwestError."""
        if self._idle_seconds is None:
            piece = await self._reader.read_chunk()
        else:
            try:
                async with asyncio.timeout(self._idle_seconds):
                    piece = await self._reader.read_chunk()
            except TimeoutError as error:
                if isinstance(error, PyreqwestError):
                    raise
                raise ReadTimeoutError("the provider fell silent", {"causes": None}) from error
        # The client forgets that it is cancelled where a piece comes at that moment, which is often in a quick stream.
        raise_if_cancelled()
        if self._gzip is not None and piece is not None:
            try:
                return self._gzip.decompress(piece)
            except zlib.error as error:
                raise BodyDecodeError("the answer is not in the encoding it names", {"causes": None}) from error
        return None if piece is None else bytes(piece)


def header_of(response: Response, name: str) -> str:
    """A header's value; empty where there is none, or one that is no text: the answer is one all the same."""
    try:
        return response.get_header(name) or ""
    except ValueError:
        return ""


def meaning_of(status: int, body: bytes, aws_exception: str) -> Meaning:
    """What an error answer says. `aws_exception` is its `x-amzn-errortype`.

    Where a body must be looked into, only its own fields count: its messages may quote what the customer sent.
    """
    if status in _REJECTED or aws_exception.partition(":")[0] in _AWS_EXCEPTIONS:
        return Meaning.REJECTED
    if status == _DENIED:
        return Meaning.DENIED
    if status == _BAD_REQUEST and _google_reasons(body) & _GOOGLE_REASONS:
        return Meaning.REJECTED
    if status == TOO_MANY and _openai_code(body) == "insufficient_quota":
        return Meaning.REJECTED
    if status in _SERVER_ERRORS:
        return Meaning.FAILED
    return Meaning.BUSY if status in _BUSY else Meaning.FINAL


def retry_after_seconds(header: str, now: float | None = None) -> float | None:
    """What a Retry-After says, in seconds or as an HTTP date (RFC 9110, 10.2.3); None where it says nothing.

    `now` is the wall clock's time, in seconds since 1970.
    """
    text = header.strip()
    if not text:
        return None
    try:
        # Whole seconds by the standard; some providers send fractions.
        seconds = float(text)
    except ValueError:
        try:
            seconds = parsedate_to_datetime(text).timestamp() - (time.time() if now is None else now)
        except (ValueError, OverflowError):
            return None
    if not math.isfinite(seconds):
        return None
    return min(max(0.0, seconds), _MAX_RETRY_AFTER_SECONDS)


def timed_out(error: PyreqwestError) -> bool:
    """Whether the provider was reached and then silent for too long."""
    if not isinstance(error, RequestTimeoutError) or isinstance(error, PoolTimeoutError):
        return False
    return not unreached(error)


def unreached(error: PyreqwestError) -> bool:
    """Whether there was no connection at all.

    The client's classes for that are also for a connection that stood, where no answer came or it broke.
    """
    causes = error.details.get("causes") or () if isinstance(error, RequestError) else ()
    return any("(Connect)" in cause["message"] for cause in causes)


def failure(provider: str, error: PyreqwestError) -> ServiceError:
    """What a transport failure is to the client."""
    _log.warning("provider call failed", provider=provider, error=repr(error))
    if timed_out(error):
        return ProviderTimeout("the provider did not answer in time", provider=provider)
    return ProviderUnavailable("the provider could not be reached", provider=provider, retry_after_seconds=1)


def _json(body: bytes) -> object:
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError:
        return None


def googles_retry_after(body: bytes) -> str:
    """What Google says in an error's details in place of a Retry-After, in the form of one; empty where nothing."""
    for detail in _google_details(body):
        delay = detail.get("retryDelay")
        if isinstance(delay, str) and _DURATION.fullmatch(delay):
            return str(math.ceil(float(delay[:-1])))
    return ""


def _google_reasons(body: bytes) -> set[str]:
    """The reasons in the details of a Google error."""
    return {str(detail.get("reason")) for detail in _google_details(body)}


def _google_details(body: bytes) -> list[dict[str, object]]:
    """The details of a Google error, which its OpenAI form wraps in a list."""
    told = _json(body)
    if isinstance(told, list):
        told = told[0] if told else None
    error = told.get("error") if isinstance(told, dict) else None
    details = error.get("details") if isinstance(error, dict) else None
    return [one for one in details if isinstance(one, dict)] if isinstance(details, list) else []


def _openai_code(body: bytes) -> str:
    told = _json(body)
    error = told.get("error") if isinstance(told, dict) else None
    return str(error.get("code")) if isinstance(error, dict) else ""
