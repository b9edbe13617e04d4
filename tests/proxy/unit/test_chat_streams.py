"""A client's plain loop over a chat stream, `chunk.choices[0]` of each, never fails; usage asked for comes apart."""

import orjson
import pytest
from proxy_recorded import SETTLED, Record, cut_at_random, cut_every, records, replay

from services.proxy.formats.openai_chat import ChatReader

HEAD = {"id": "c1", "object": "chat.completion.chunk", "created": 7, "model": "m"}
USAGE = {"prompt_tokens": 12, "completion_tokens": 3, "total_tokens": 15}
STREAMS = [one for one in records("openai_chat", "bedrock_converse") if one.stream and not one.failed]
COST = str(SETTLED.billed_nanos)


def said(content, index=0, finish=None, **fields):
    delta = {} if content is None else {"content": content}
    return HEAD | {"choices": [{"index": index, "delta": delta, "finish_reason": finish}]} | fields


def usage(**fields):
    return HEAD | {"choices": [], "usage": USAGE} | fields


def stream(*chunks, done=True):
    events = [b"data: " + orjson.dumps(one) + b"\n\n" for one in chunks]
    body = b"".join(events) + (b"data: [DONE]\n\n" if done else b"")
    return Record("openai_chat", "made", body, stream=True)


async def plainly(record, pieces=None, **words):
    """What a client is sent who has not asked for usage; that each chunk has a choice, and only the last credits."""
    replayed = await replay(record, pieces, asks_for_usage=False, **words)
    told = replayed.told()
    assert all(one.get("error") or one["choices"] for one in told)
    assert [one["credits"]["costNanos"] for one in told if "credits" in one] == [COST]
    assert "credits" in told[-1]
    return replayed, told


def words(told):
    return "".join(one["choices"][0]["delta"].get("content") or "" for one in told)


@pytest.mark.parametrize("record", STREAMS, ids=str)
async def test_recorded_stream_is_read_by_a_plain_loop_and_billed_the_same(record):
    for pieces in (None, cut_every(record.body, 3), cut_at_random(record.body, 5)):
        replayed, told = await plainly(record, pieces)
        asked = await replay(record, pieces)
        assert replayed.reader.usage == asked.reader.usage == record.counts
        assert "".join(replayed.reader.said) == record.said
        assert replayed.statuses == ["ok"]
        apart = [one for one in asked.told() if not one["choices"]]
        for one in apart[-1:]:
            assert told[-1]["usage"] == one["usage"]
        deltas = [[choice["delta"] for choice in one["choices"]] for one in asked.told() if one["choices"]]
        assert [[choice["delta"] for choice in one["choices"]] for one in told] == deltas or len(told) > len(deltas)


async def test_usage_and_credits_stand_beside_the_finish_reason():
    _, told = await plainly(stream(said("a"), said(None, finish="stop"), usage(service_tier="default")))
    assert [one["choices"][0]["finish_reason"] for one in told] == [None, "stop"]
    assert (told[-1]["usage"], told[-1]["service_tier"]) == (USAGE, "default")


async def test_null_usage_of_the_finish_chunk_is_not_told_beside_the_count():
    record = stream(said("a", usage=None), said(None, finish="stop", usage=None), usage())
    replayed, told = await plainly(record)
    assert told[-1]["usage"] == USAGE
    assert b"".join(replayed.sent).count(b'"usage"') == 2


async def test_who_asks_for_usage_gets_it_in_a_chunk_without_choices():
    replayed = await replay(stream(said("a"), said(None, finish="stop"), usage()))
    told = replayed.told()
    assert [one["choices"] == [] for one in told] == [False, False, True]
    assert (told[-1]["usage"], told[-1]["credits"]["costNanos"]) == (USAGE, COST)


async def test_last_of_several_choices_to_finish_is_the_last_chunk():
    chunks = [said("a", 0), said("b", 1), said(None, 0, "stop"), said("c", 1), said(None, 1, "length"), usage()]
    _, told = await plainly(stream(*chunks))
    choices = [one["choices"][0] for one in told]
    assert [(one["index"], one["finish_reason"]) for one in choices][-3:] == [(0, "stop"), (1, None), (1, "length")]


async def test_choices_one_after_another_lose_nothing():
    chunks = [said("a", 0), said("b", 0, "stop"), said("c", 1), said("d", 1, "stop"), usage()]
    _, told = await plainly(stream(*chunks))
    assert words(told) == "abcd"
    assert [one["choices"][0]["finish_reason"] for one in told] == [None, "stop", None, "stop"]


async def test_usage_in_the_finish_chunk_stays_there():
    _, told = await plainly(stream(said("a"), said("b", finish="stop", usage=USAGE)))
    assert (words(told), told[-1]["usage"]) == ("ab", USAGE)


async def test_usage_in_every_chunk_is_told_as_it_came():
    counts = [USAGE | {"completion_tokens": count} for count in (1, 2, 3)]
    chunks = [said("a", usage=counts[0]), said("b", usage=counts[1]), said(None, finish="stop", usage=counts[2])]
    replayed, told = await plainly(stream(*chunks))
    assert [one["usage"] for one in told] == counts
    assert replayed.reader.usage.output_tokens == 3
    # With one more chunk that counts the whole, its count is the one.
    replayed, told = await plainly(stream(*chunks, usage(usage=USAGE | {"completion_tokens": 9})))
    assert [one["usage"]["completion_tokens"] for one in told] == [1, 2, 9]
    assert replayed.reader.usage.output_tokens == 9


async def test_without_usage_ours_is_told():
    for done in (True, False):
        replayed, told = await plainly(stream(said("a"), said(None, finish="stop"), done=done))
        assert replayed.reader.estimated
        assert told[-1]["choices"][0]["finish_reason"] == "stop"
        assert told[-1]["usage"]["completion_tokens"] == replayed.call.counted().output_tokens


async def test_missing_end_mark_is_no_loss():
    _, told = await plainly(stream(said("a"), said(None, finish="stop"), usage(), done=False))
    assert (told[-1]["choices"][0]["finish_reason"], told[-1]["usage"]) == ("stop", USAGE)


@pytest.mark.parametrize("counted", [True, False])
async def test_without_a_finish_reason_the_credits_come_in_a_choice_that_says_nothing(counted):
    replayed, told = await plainly(stream(said("a"), said("b"), *([usage()] if counted else [])))
    assert [one["choices"][0]["delta"] for one in told] == [{"content": "a"}, {"content": "b"}, {}]
    assert told[-1]["choices"] == [{"index": 0, "delta": {}, "finish_reason": None}]
    assert told[-1]["usage"]["completion_tokens"] == replayed.call.counted().output_tokens
    assert told[-1]["id"] == "c1"


async def test_count_that_more_was_said_after_is_not_told_as_the_whole():
    chunks = [said("a"), usage(), said("b"), said(None, finish="stop")]
    replayed, told = await plainly(stream(*chunks))
    assert replayed.reader.estimated
    assert [one.get("usage") for one in told][:-1] == [None, None]
    assert told[-1]["usage"]["completion_tokens"] == replayed.call.counted().output_tokens


async def test_stream_that_breaks_off_says_so_and_shows_no_empty_chunk():
    for body in (stream(said("a"), usage(), done=False), stream(said("a"), done=False)):
        replayed, told = await plainly(body, breaks=True)
        assert told[-1]["error"]["code"] == "provider_stream_broken"
        assert replayed.statuses == ["cut"]


async def test_what_stands_without_choices_at_the_start_is_told_at_the_end():
    filtered = HEAD | {"choices": [], "prompt_filter_results": [{"prompt_index": 0}], "self": 1}
    _, told = await plainly(stream(filtered, said("a"), said(None, finish="stop"), usage()))
    assert told[-1]["prompt_filter_results"] == filtered["prompt_filter_results"]
    _, told = await plainly(stream(filtered, said("a"), usage()))
    assert told[-1]["self"] == 1


async def test_finish_chunk_in_any_bytes_carries_the_credits_once():
    record = stream(said("ä€𝄞"), said("z", finish="stop"), usage())
    for size in (1, 2, 3, 5):
        for way in (lambda body: body, lambda body: body.replace(b"\n", b"\r\n"), bytes.rstrip):
            _, told = await plainly(record, cut_every(way(record.body), size))
            assert (words(told), told[-1]["usage"]) == ("ä€𝄞z", USAGE)


def test_only_a_chunk_that_may_be_the_last_waits():
    reader = ChatReader(tells_usage=False)
    chunks = [said("a"), said("b", 1), usage(), said("c", finish="stop"), said("d", 1), said("e", 1, "stop"), usage()]
    events = [reader.take_event(b"data: " + orjson.dumps(one) + b"\n\n") for one in chunks]
    assert [event.chunk is not None for event in events] == [False, False, False, False, False, True, False]
    assert [event.withheld for event in events] == [False, False, True, False, False, False, True]
