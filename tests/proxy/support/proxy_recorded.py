"""Owns recorded answers in tests: read from their files, and replayed as a provider's bytes may come."""

import asyncio
import contextlib
import itertools
import random
import re
import tomllib
from dataclasses import dataclass, field
from pathlib import Path

import orjson
from pyreqwest.exceptions import ReadError

from deploy.local.sandbox.provider import eventstream
from services import rating
from services.proxy.calls.call import Asked, Call, Settled
from services.proxy.calls.streaming import relay
from services.proxy.clock import utc_now
from services.proxy.converse.exchange import answer_of
from services.proxy.errors import ProviderUnavailable
from services.proxy.formats.anthropic_messages import MessagesRequest
from services.proxy.formats.gemini import GeminiRequest
from services.proxy.formats.openai_chat import CONVERSE, ChatRequest
from services.proxy.formats.openai_embeddings import EmbeddingsRequest
from services.proxy.formats.openai_responses import ResponsesRequest
from services.proxy.keys.model import STANDARD, Key
from services.proxy.sse import data_of
from services.proxy.upstream import Outgoing

RECORDED = Path(__file__).parents[1] / "recorded"
EVENTS, AWS_EVENTS, JSON = "text/event-stream", "application/vnd.amazon.eventstream", "application/json"
QUESTION = "What is a toll?"
MESSAGES = [{"role": "user", "content": QUESTION}]

# By file: what reads the request, and what is asked for.
FORMS = {
    "openai_chat": (ChatRequest, {"messages": MESSAGES}),
    "openai_responses": (ResponsesRequest, {"input": QUESTION}),
    "openai_embeddings": (EmbeddingsRequest, {"input": QUESTION}),
    "anthropic_messages": (MessagesRequest, {"messages": MESSAGES, "max_tokens": 4000}),
    "gemini": (GeminiRequest, {"contents": [{"role": "user", "parts": [{"text": QUESTION}]}]}),
    "bedrock_converse": (ChatRequest, {"messages": MESSAGES}),
}
SETTLED = Settled("call-recorded", 65_000_000, 1_000_000_000)
CREDITS = b',"credits":' + orjson.dumps(SETTLED.credits())


@dataclass(frozen=True)
class Record:
    """One recorded answer; README.md beside the files says what each field is. `body` is the bytes as they come."""

    form: str
    name: str
    body: bytes
    stream: bool = False
    usage: dict | None = None
    partial: dict = field(default_factory=dict)
    failed: bool = False
    free: bool = False
    said: str = ""
    id: str = ""
    tier: str | None = None
    beta: bool = False
    source: str = ""

    def __str__(self):
        return f"{self.form}/{self.name}"

    @property
    def counts(self):
        """The usage as it is to be read; None where the provider does not count."""
        return None if self.usage is None else rating.Usage(**self.usage)

    @property
    def content_type(self):
        if not self.stream:
            return JSON
        return AWS_EVENTS if self.form == "bedrock_converse" else EVENTS

    def request(self, *, asks_for_usage=True, **words):
        """A request that such an answer may come to; `words` as the form's request takes them.

        Without `asks_for_usage` a chat completion's client has not asked for the chunk that says it.
        """
        kind, fields = FORMS[self.form]
        if kind is GeminiRequest:
            return kind.read(orjson.dumps(fields), model="recorded", stream=self.stream, **words)
        stream = {"stream": True} if self.stream else {}
        if self.stream and kind is ChatRequest and asks_for_usage:
            stream["stream_options"] = {"include_usage": True}
        return kind.read(orjson.dumps({"model": "recorded", **fields, **stream}))


def records(*forms):
    """The records of these forms, or of all."""
    found = []
    for form in forms or FORMS:
        for fields in tomllib.loads((RECORDED / f"{form}.toml").read_text())["record"]:
            body = fields.pop("body")
            framed = form == "bedrock_converse" and fields.get("stream")
            found.append(Record(form, body=converse_frames(body) if framed else body.encode(), **fields))
    return found


def converse_events(body):
    """The events of a recorded ConverseStream: type and payload."""
    return [tuple(line.split(" ", 1)) for line in body.strip().splitlines()]


def converse_frames(body):
    """A recorded ConverseStream in its binary frames."""
    frames = []
    for kind, payload in converse_events(body):
        name, _, exception = kind.partition(":")
        made = eventstream.exception(exception, payload.encode()) if exception else None
        frames.append(made or eventstream.event(name, payload.encode()))
    return b"".join(frames)


# -------------------------------------------------------------------------------------------------------------- pieces


def cut_every(body, size):
    return [body[start : start + size] for start in range(0, len(body), size)]


def cut_at(body, *places):
    edges = [0, *sorted(places), len(body)]
    return [body[start:end] for start, end in itertools.pairwise(edges) if start != end]


def cut_at_random(body, seed):
    choose = random.Random(seed)
    return cut_at(body, *(choose.randrange(len(body)) for _ in range(1 + len(body) // 40)))


def within_characters(body):
    """The places at which a cut takes a character of several bytes in two."""
    return [place for place, byte in enumerate(body) if 0x80 <= byte < 0xC0]


def with_lines_split(body):
    """The same events, each object over three `data` lines."""
    return re.sub(rb"data: ?\{(.*)\}( *)\n", rb"data: {\ndata: \1\ndata: }\2\n", body)


# -------------------------------------------------------------------------------------------------------------- replay


class RecordedAnswer:
    """A provider's answer whose bytes come in these pieces; with `breaks` the connection is lost after them."""

    def __init__(self, pieces, content_type, *, breaks=False):
        self._pieces, self.content_type, self._breaks = pieces, content_type, breaks
        self.is_events = content_type == EVENTS
        self.is_event_stream_aws = content_type == AWS_EVENTS

    async def pieces(self):
        for piece in self._pieces:
            yield piece
        if self._breaks:
            raise ReadError("the connection was lost", {"causes": None})

    async def whole(self, _limit_bytes):
        return b"".join(self._pieces)


@dataclass
class Replayed:
    """What came of an answer: the call, what the client was sent event by event, how the call was settled."""

    call: Call
    sent: list = field(default_factory=list)
    statuses: list = field(default_factory=list)
    extensions: list = field(default_factory=list)
    failure: Exception | None = None

    @property
    def reader(self):
        return self.call.reader

    @property
    def passed_on(self):
        """What the client was sent, but for the credits."""
        return b"".join(self.sent).replace(CREDITS, b"", 1)

    def told(self):
        """The objects in the events that the client was sent."""
        found = []
        for event in self.sent:
            with contextlib.suppress(orjson.JSONDecodeError):  # an end mark, a comment, half an event
                found.append(orjson.loads(data_of(event)))
        return found


KEY = Key(
    key_id="key-1",
    account_id="acme",
    name="recorded",
    key_type=STANDARD,
    prefix="",
    last_four="",
    workspace="",
    allowed_models=frozenset(),
    daily_limit_nanos=0,
    monthly_limit_nanos=0,
    requests_per_minute=0,
    tokens_per_minute=0,
    created_at=utc_now(),
)


async def replay(record, pieces=None, *, breaks=False, held=None, **words):
    """Have an answer read, metered and passed on; its bytes as recorded, or in these pieces.

    With `held` so many output tokens are held, and no more are to be had.
    """
    call = Call(KEY, Asked("recorded"), record.request(**words))
    replayed = Replayed(call)
    raw = RecordedAnswer([record.body] if pieces is None else pieces, record.content_type, breaks=breaks)
    form = CONVERSE if record.form == "bedrock_converse" else call.request.form
    answer = answer_of(raw, Outgoing(form, "recorded", b"{}", record.stream, model="recorded"), "recorded")

    async def end_hold(status):
        replayed.statuses.append(status)
        return SETTLED if call.reader.owed else None

    async def extend_hold(tokens):
        replayed.extensions.append(tokens)
        return held is None

    if not record.stream:
        body = await answer.whole(2**30)
        call.reader.take_whole(body)
        replayed.sent.append(body)
        await end_hold("ok")
        return replayed

    async def relayed():
        try:
            call.held_output_tokens = 10**9 if held is None else held
            step = call.held_output_tokens
            await relay(
                call,
                answer,
                end_hold,
                extend_hold,
                discreet=lambda words: words,
                output_tokens=step,
                cancel_on_disconnect=False,
            )
        except Exception as error:  # noqa: BLE001 (whatever it is, who reads the answer must not wait for ever)
            await call.delivery.end(error)

    relaying = asyncio.ensure_future(relayed())
    try:
        await call.delivery.head()
        async for piece in call.delivery.pieces():
            replayed.sent.append(piece)
    except ProviderUnavailable as error:
        replayed.failure = error
    await relaying
    return replayed
