"""What providers document, replayed however bytes may come: passed on as it came, and billed for exactly that."""

import re
import typing

import botocore.session
import openai.types
import orjson
import pytest
from anthropic.types import Message, RawMessageStreamEvent
from anthropic.types.beta import BetaMessage, BetaRawMessageStreamEvent
from google.genai import types as google_types
from openai.types import chat as openai_chat
from openai.types import responses as openai_responses
from proxy_recorded import (
    CREDITS,
    FORMS,
    RECORDED,
    converse_events,
    cut_at,
    cut_at_random,
    cut_every,
    records,
    replay,
    with_lines_split,
    within_characters,
)
from pydantic import TypeAdapter

from services.proxy.formats import tokens

RECORDS = records()
STREAMS = [record for record in RECORDS if record.stream]
EVENT_STREAMS = [record for record in STREAMS if record.form != "bedrock_converse"]
COUNTED = [record for record in RECORDS if record.usage is not None]
SOUND_STREAMS = [record for record in STREAMS if not record.failed]
BOM = b"\xef\xbb\xbf"


def billed_as_documented(replayed, record):
    """Assert that all of what is documented was read, and nothing else."""
    reader = replayed.reader
    assert reader.usage == record.counts
    assert reader.failed == record.failed
    assert reader.owed != record.free
    assert reader.service_tier == record.tier
    if record.form != "bedrock_converse":  # whose id is ours
        assert reader.provider_request_id == record.id
    if record.usage is None and not record.free:
        counted = replayed.call.counted()
        assert counted.input_tokens == record.partial.get("input_tokens", replayed.call.request.estimated_input())
        assert counted.cache_read_tokens == record.partial.get("cache_read_tokens", 0)
        assert counted.output_tokens >= tokens.estimated("recorded", [record.said]) > 0


def passed_on_as_it_came(replayed, record, body):
    assert b"".join(replayed.sent).count(CREDITS) == (record.stream and not record.failed)
    if record.form != "bedrock_converse":
        assert replayed.passed_on.rstrip() == body.rstrip()


@pytest.mark.parametrize("record", RECORDS, ids=str)
async def test_answer_is_passed_on_as_it_came_and_billed_for_the_documented_usage(record):
    replayed = await replay(record)
    billed_as_documented(replayed, record)
    passed_on_as_it_came(replayed, record, record.body)
    if record.stream:
        assert len(replayed.statuses) == 1
        assert replayed.statuses == ["failed" if record.failed else "ok"]


@pytest.mark.parametrize("record", STREAMS, ids=str)
@pytest.mark.parametrize("size", [1, 2, 3, 7])
async def test_bytes_in_pieces_of_any_size_make_the_same_answer(record, size):
    replayed = await replay(record, cut_every(record.body, size))
    billed_as_documented(replayed, record)
    passed_on_as_it_came(replayed, record, record.body)
    assert len(replayed.sent) == len((await replay(record)).sent)


@pytest.mark.parametrize("record", STREAMS, ids=str)
async def test_bytes_cut_at_random_places_make_the_same_answer(record):
    for seed in range(10):
        replayed = await replay(record, cut_at_random(record.body, seed))
        billed_as_documented(replayed, record)
        passed_on_as_it_came(replayed, record, record.body)


@pytest.mark.parametrize("record", [one for one in EVENT_STREAMS if within_characters(one.body)], ids=str)
async def test_character_cut_in_two_is_whole_again(record):
    for place in within_characters(record.body):
        replayed = await replay(record, cut_at(record.body, place))
        billed_as_documented(replayed, record)
        passed_on_as_it_came(replayed, record, record.body)
        assert "".join(replayed.reader.said) == record.said


WAYS_TO_WRITE = {
    "crlf": lambda body: body.replace(b"\n", b"\r\n"),
    "cr": lambda body: body.replace(b"\n", b"\r"),
    "no space after the colon": lambda body: body.replace(b"data: ", b"data:"),
    "comments between events": lambda body: b": hello\n\n" + re.sub(rb"\n\n(?=.)", b"\n\n: keep-alive\n\n", body),
    "comments within events": lambda body: re.sub(rb"(?m)^data: ", b": a comment\ndata: ", body),
    "ids and retries": lambda body: re.sub(rb"(?m)^data: (.*)$", rb"id: 7\ndata: \1\nretry: 1000", body),
    "data over several lines": with_lines_split,
    "byte order mark": lambda body: BOM + body,
    "blank lines at the start": lambda body: b"\n\n" + body,
    "no blank line at the end": bytes.rstrip,
}


@pytest.mark.parametrize("record", EVENT_STREAMS, ids=str)
@pytest.mark.parametrize("way", WAYS_TO_WRITE)
async def test_events_written_in_any_allowed_way_are_the_same_answer(record, way):
    body = WAYS_TO_WRITE[way](record.body)
    assert body != record.body
    for pieces in ([body], cut_every(body, 1), cut_at_random(body, 7)):
        replayed = await replay(record, pieces)
        billed_as_documented(replayed, record)
        passed_on_as_it_came(replayed, record, body)
        assert "".join(replayed.reader.said) == record.said


@pytest.mark.parametrize("record", SOUND_STREAMS, ids=str)
@pytest.mark.parametrize("breaks", [True, False], ids=["connection lost", "ended too early"])
async def test_stream_that_is_cut_off_is_billed_for_what_came_and_never_for_more(record, breaks):
    whole = (await replay(record)).call.counted()
    for place in {*range(0, len(record.body), 23), len(record.body) - 1}:
        replayed = await replay(record, [record.body[:place]], breaks=breaks)
        if replayed.failure is not None:  # nothing had come: nothing is owed, and another provider may be asked
            assert replayed.sent == replayed.statuses == []
            continue
        assert len(replayed.statuses) == 1
        reader, counted = replayed.reader, replayed.call.counted()
        if reader.owed:
            assert reader.usage in {None, record.counts}
            assert reader.estimated == (reader.usage is None)
            assert counted.input_tokens > 0
            assert counted.output_tokens > 0 or counted == whole
            assert counted.output_tokens <= max(whole.output_tokens, tokens.estimated("recorded", [record.said]) + 9)
            assert b"".join(replayed.sent).count(CREDITS[1:]) == 1
        if replayed.statuses == ["ok"]:
            assert reader.finished
        else:
            assert "error" in orjson.dumps(replayed.told()[-1]).decode()


@pytest.mark.parametrize("record", [one for one in EVENT_STREAMS if one.form == "gemini"], ids=str)
async def test_geminis_stream_is_one_json_array_for_who_asks_for_no_events(record):
    expected = [orjson.loads(data) for data in re.findall(rb"(?m)^data: (\{.*\}) *$", record.body)]
    for pieces in (cut_every(record.body, 1), [record.body], cut_at_random(record.body, 3)):
        replayed = await replay(record, pieces, as_array=True)
        billed_as_documented(replayed, record)
        array = orjson.loads(b"".join(replayed.sent))
        assert ("credits" in array[-1]) == (not record.failed)
        array[-1].pop("credits", None)
        assert array == expected
    cut = await replay(record, [record.body[:-20]], breaks=True, as_array=True)
    if cut.failure is None:  # what broke off in the midst is an array all the same, its last entry the error
        assert "error" in orjson.loads(b"".join(cut.sent))[-1]


def without_usage(record):
    """The same answer from a provider that does not count."""

    def stripped(value):
        if isinstance(value, dict):
            return {key: stripped(inner) for key, inner in value.items() if key not in {"usage", "usageMetadata"}}
        return [stripped(inner) for inner in value] if isinstance(value, list) else value

    if not record.stream:
        return orjson.dumps(stripped(orjson.loads(record.body)))
    events = []
    for event in record.body.decode().strip().split("\n\n"):
        head, data, rest = event.partition("data: ")
        if rest.startswith("{"):
            told = stripped(orjson.loads(rest))
            if told.get("choices") == []:
                continue
            rest = orjson.dumps(told).decode()
        events.append(head + data + rest + "\n\n")
    return "".join(events).encode()


@pytest.mark.parametrize("record", [one for one in COUNTED if one.form != "bedrock_converse"], ids=str)
async def test_missing_usage_is_counted_and_estimated(record):
    replayed = await replay(record, [without_usage(record)])
    assert replayed.reader.owed
    assert replayed.reader.estimated
    counted = replayed.call.counted()
    assert counted.input_tokens == replayed.call.request.estimated_input() > 0
    if record.form == "openai_embeddings":
        assert counted.output_tokens == 0
        return
    assert "".join(replayed.reader.said) == record.said
    said = tokens.estimated("recorded", [record.said])
    assert counted.output_tokens == max(1, said, replayed.reader.pieces)
    if record.stream:
        assert replayed.statuses == ["ok"]
        assert b"".join(replayed.sent).count(CREDITS[1:]) == 1
    if record.form == "openai_chat" and record.stream:
        assert [told["usage"]["completion_tokens"] for told in replayed.told() if told.get("usage")] == [
            counted.output_tokens
        ]


# ----------------------------------------------------------------------------------------- the providers' own shapes

_SHAPES = {
    ("openai_chat", False): openai_chat.ChatCompletion,
    ("openai_chat", True): openai_chat.ChatCompletionChunk,
    ("openai_responses", False): openai_responses.Response,
    ("openai_responses", True): openai_responses.ResponseStreamEvent,
    ("openai_embeddings", False): openai.types.CreateEmbeddingResponse,
    ("anthropic_messages", False): Message,
    ("anthropic_messages", True): RawMessageStreamEvent,
    ("gemini", False): google_types.GenerateContentResponse,
    ("gemini", True): google_types.GenerateContentResponse,
}
_BETA = {False: BetaMessage, True: BetaRawMessageStreamEvent}


def objects_of(record):
    """The objects that an answer is made of, but for pings and errors, which the SDKs read apart."""
    if not record.stream:
        return [orjson.loads(record.body)]
    found = [orjson.loads(data) for data in re.findall(rb"(?m)^data: (\{.*\}) *$", record.body)]
    return [told for told in found if told.get("type") not in {"ping", "error"} and told.get("error") is None]


def own_shape(record):
    """Whether it is the provider's whose SDK there is, and in plain JSON."""
    return record.form != "bedrock_converse" and not record.source and "base64" not in record.name


@pytest.mark.parametrize("record", [one for one in RECORDS if own_shape(one)], ids=str)
def test_record_has_the_shape_of_the_providers_own_sdk(record):
    shape = _BETA[record.stream] if record.beta else _SHAPES[record.form, record.stream]
    for told in objects_of(record):
        TypeAdapter(shape).validate_python(told)


def kinds(union):
    return {
        typing.get_args(kind.model_fields["type"].annotation)[0] for kind in typing.get_args(typing.get_args(union)[0])
    }


def test_every_kind_of_event_that_the_sdks_know_is_recorded():
    recorded = {
        form: {told["type"] for record in records(form) if record.stream for told in objects_of(record)}
        for form in ("openai_responses", "anthropic_messages")
    }
    # Shell tools and compaction on their own run at OpenAI and are refused here, as the other billed tools are.
    not_served = {kind for kind in kinds(openai_responses.ResponseStreamEvent) if "shell" in kind or "compact" in kind}
    assert kinds(openai_responses.ResponseStreamEvent) - not_served - {"error"} <= recorded["openai_responses"]
    assert kinds(RawMessageStreamEvent) == recorded["anthropic_messages"]


def same_shape(shape, value, at):
    """Assert that a value has no member which AWS's own model of it lacks."""
    if shape.type_name == "structure" and not shape.is_document_type:
        for name, inner in value.items():
            assert name in {*shape.members, "p"}, f"{at}.{name}"
            if name in shape.members:
                same_shape(shape.members[name], inner, f"{at}.{name}")
    elif shape.type_name == "list":
        for inner in value:
            same_shape(shape.member, inner, at)


def test_converse_has_the_shape_of_the_aws_model():
    model = botocore.session.get_session().get_service_model("bedrock-runtime")
    stream = model.operation_model("ConverseStream").output_shape.members["stream"]
    whole = model.operation_model("Converse").output_shape
    for fields in RECORDED.joinpath("bedrock_converse.toml").read_text().split("[[record]]")[1:]:
        body = fields.split("'''")[1]
        if "stream = true" not in fields:
            same_shape(whole, orjson.loads(body), "Converse")
            continue
        for kind, payload in converse_events(body):
            name = kind.removeprefix("exception:")
            same_shape(stream.members[name], orjson.loads(payload), name)


def test_every_form_is_recorded_whole_and_streamed():
    for form in FORMS:
        found = {record.stream for record in records(form)}
        assert found == ({False} if form == "openai_embeddings" else {False, True})
