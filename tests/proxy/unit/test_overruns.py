"""A stream is ended for its hold only when it has surely said more, and to know that little is counted."""

import itertools

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from proxy_recorded import Record, records, replay

from services.proxy.formats import tokens
from services.proxy.formats.tokens import SaidSoFar

PROSE = "The traveller paid the toll at the bridge, crossed the river and went on to the town before nightfall. "
TEXTS = {
    "prose": PROSE * 100,
    "code": "def toll(bridge: str, axles: int) -> int:\n    return RATES[bridge] * max(axles, 2)\n\n" * 100,
    "chinese": "旅人在桥上付了通行费、过了河、在天黑之前继续往镇上走去。" * 100,
    "russian": "Путник заплатил пошлину на мосту и пошёл дальше в город. " * 100,
    "digits": "".join(str(number) for number in range(2_000)),
    "emoji": "🌉🛣️🚗" * 300,
    "spaces": (" " * 60 + "\n") * 100,
}
HEAD = {"id": "c1", "object": "chat.completion.chunk", "created": 7, "model": "m"}


def in_pieces(text, size):
    return [text[at : at + size] for at in range(0, len(text), size)]


@pytest.mark.parametrize("name", TEXTS)
@pytest.mark.parametrize("size", [3, 40, 400])
def test_text_within_the_limit_is_never_said_to_be_above_it(name, size):
    pieces, limit = in_pieces(TEXTS[name], size), tokens.estimated("m", [TEXTS[name]])
    said_so_far, said = SaidSoFar("m"), []
    for piece in pieces:
        said.append(piece)
        assert said_so_far.at_least(said, limit) <= limit


@given(st.lists(st.text(min_size=1, max_size=40), min_size=1, max_size=40), st.integers(1, 200))
def test_what_is_said_to_be_above_a_limit_has_a_third_more_by_the_public_tokenizer(pieces, limit):
    said_so_far, said = SaidSoFar("m"), []
    for piece in pieces:
        said.append(piece)
        if said_so_far.at_least(said, limit) > limit:
            # Each text apart, since a cut within a word may make two tokens of one.
            assert 3 * sum(tokens.estimated("m", [one]) for one in said) > 4 * limit
            return


@pytest.mark.parametrize("name", ["prose", "code", "chinese", "russian"])
@pytest.mark.parametrize("size", [30, 400])
def test_text_of_twice_the_limit_is_seen_to_be_above_it(name, size):
    limit = tokens.estimated("m", [TEXTS[name]]) // 2
    said_so_far, said = SaidSoFar("m"), []
    assert any(
        said.append(piece) or said_so_far.at_least(said, limit) > limit for piece in in_pieces(TEXTS[name], size)
    )


@pytest.mark.parametrize(("name", "share"), [("prose", 0.75), ("code", 0.9), ("chinese", 0.75), ("russian", 0.5)])
def test_text_that_stays_well_within_its_cap_is_not_counted_at_all(monkeypatch, name, share):
    limit = int(tokens.estimated("m", [TEXTS[name]]) / share)
    monkeypatch.setattr(tokens, "estimated", lambda *_: pytest.fail("it was counted"))
    said_so_far, said = SaidSoFar("m"), []
    for piece in in_pieces(TEXTS[name], 4):
        said.append(piece)
        said_so_far.at_least(said, limit)


@pytest.mark.parametrize("name", TEXTS)
def test_text_that_fills_its_cap_is_counted_a_few_times_and_each_piece_once(monkeypatch, name):
    limit, counted = tokens.estimated("m", [TEXTS[name]]), []
    count = tokens.estimated
    monkeypatch.setattr(tokens, "estimated", lambda model, said: counted.append(list(said)) or count(model, said))
    said_so_far, said = SaidSoFar("m"), []
    for piece in in_pieces(TEXTS[name], 4):
        said.append(piece)
        said_so_far.at_least(said, limit)
    assert len(counted) < 30
    taken = list(itertools.chain(*counted))
    assert taken == said[: len(taken)]


def chunk(content, finish=None, **fields):
    delta = {"content": content} if content else {}
    choice = {"index": 0, "delta": delta, "finish_reason": finish}
    return b"data: " + orjson.dumps(HEAD | {"choices": [choice]} | fields) + b"\n\n"


def counting(output):
    return {"prompt_tokens": 8, "completion_tokens": output, "total_tokens": 8 + output}


def stream(*events):
    return Record("openai_chat", "made", b"".join((*events, b"data: [DONE]\n\n")), stream=True)


async def test_providers_own_running_count_ends_a_stream_that_is_above_and_no_other():
    # By our tokenizer the first is far above, and the second far below; by who said it, neither.
    within = stream(*(chunk(PROSE * 5, usage=counting(10 * number)) for number in (1, 2, 3)), chunk("", "stop"))
    assert (await replay(within, held=30)).statuses == ["ok"]
    above = stream(*(chunk("a", usage=counting(20 * number)) for number in (1, 2, 3)), chunk("", "stop"))
    replayed = await replay(above, held=30)
    assert replayed.statuses == ["cut"]
    assert replayed.call.counted().output_tokens == 40  # the true count, with that of the chunk that went above
    assert replayed.told()[-1]["usage"]["completion_tokens"] == 40


async def test_running_count_of_nothing_is_none():
    events = [chunk(PROSE, usage=counting(0)) for _ in range(50)]
    replayed = await replay(stream(*events), held=100)
    assert replayed.statuses == ["cut"]
    assert replayed.call.counted().output_tokens == 100


async def test_answer_that_has_come_to_its_end_is_never_cut():
    usage = b"data: " + orjson.dumps(HEAD | {"choices": [], "usage": counting(900)}) + b"\n\n"
    replayed = await replay(stream(chunk("a"), chunk(PROSE * 30, "stop"), usage), held=100)
    assert (replayed.statuses, replayed.extensions) == (["ok"], [])
    assert replayed.call.counted().output_tokens == 900


async def test_hold_is_extended_at_once_by_all_that_a_large_chunk_says():
    events = [chunk(PROSE * 100), chunk("b"), chunk("", "stop")]
    replayed = await replay(stream(*events), held=100)
    (more,) = replayed.extensions
    assert more % 100 == 0
    assert 100 + more >= 3 * tokens.estimated("m", [PROSE * 100]) // 4 > more


@pytest.mark.parametrize(
    "form", ["openai_chat", "openai_responses", "anthropic_messages", "gemini", "bedrock_converse"]
)
@pytest.mark.parametrize("asks_for_usage", [True, False])
async def test_stream_that_is_ended_says_what_is_billed(form, asks_for_usage):
    ended = 0
    for record in records(form):
        if record.stream and not record.failed:
            replayed = await replay(record, held=1, asks_for_usage=asks_for_usage)
            if replayed.statuses == ["cut"]:
                ended += 1
                counted, text = replayed.call.counted(), b"".join(replayed.sent).decode()
                names = ("completion_tokens", "output_tokens", "totalTokenCount")
                totals = (counted.output_tokens, counted.output_tokens, counted.input_tokens + counted.output_tokens)
                assert any(f'"{name}":{total}' in text for name, total in zip(names, totals, strict=True))
    assert ended
