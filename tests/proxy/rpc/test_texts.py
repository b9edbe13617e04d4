"""What customers wrote and models answered is in the log where an operator wants it there, and nowhere else."""

import json
import logging

import pytest
from structlog.testing import capture_logs

ASKED = "What did the heron say to the tollkeeper?"
ANSWERED = "This is the Tollkeeper sandbox: no model was called."
LINE = "text of a call"


@pytest.fixture
def everything_logged(caplog):
    """`everything_logged()`: all that was logged so far, by us and by libraries, from debug up, as one text."""
    caplog.set_level(logging.DEBUG)
    with capture_logs() as ours:
        yield lambda: repr(ours) + caplog.text + repr([record.__dict__ for record in caplog.records])


async def lines_of(proxy, key, **asked):
    with capture_logs() as logged:
        answer = await proxy.chat(key, text=ASKED, **asked)
    return answer, [entry for entry in logged if entry["event"] == LINE]


async def test_no_log_has_a_text_of_a_call_by_default(proxy, key, provider, refused, everything_logged):
    assert ANSWERED in (await proxy.chat(key, text=ASKED)).body.decode()
    await proxy.chat(key, text=ASKED, metadata=(("x-api-key", key), ("idempotency-key", "once")))
    await proxy.chat(key, text=ASKED, stream=True)
    for fault in ("status=400", "fault=cut-stream", "fault=no-usage", "fault=stream-error"):
        await provider.arm(fault)
        await proxy.chat(key, text=ASKED, stream=True)
    await refused(proxy.chat(key, text=ASKED, max_tokens=0))
    await refused(proxy.chat(key, text=ASKED, model="gpt-unknown"))
    await refused(proxy.chat(key, raw=ASKED.encode()))
    logged = everything_logged()
    assert "MODEL_NOT_PRICED" in logged  # what is looked through is what is logged
    assert "heron" not in logged
    assert "sandbox: no model" not in logged
    assert key not in logged


async def test_texts_of_calls_are_logged_where_an_operator_says_so(start_proxy):
    with capture_logs() as logged:
        proxy = await start_proxy(log_texts=True)
    assert [entry["setting"] for entry in logged if entry["log_level"] == "warning"] == ["LOG_TEXTS"]
    made = await proxy.make_key()
    answer, [line] = await lines_of(proxy, made.key)
    assert json.loads(line["request"])["messages"] == [{"role": "user", "content": ASKED}]
    assert line["answer"] == answer.body.decode()
    assert (line["request_bytes"], line["answer_bytes"]) == (len(line["request"]), len(answer.body))
    assert line["call_id"] == answer.headers["x-tollkeeper-request-id"]
    assert (line["account_id"], line["key_id"]) == ("acme", made.record.key_id)
    assert (line["endpoint"], line["provider"], line["model"]) == ("/v1/chat/completions", "openai", "gpt-4o")


async def test_logged_stream_is_its_events_joined_up_to_the_bound(start_proxy):
    proxy = await start_proxy(log_texts=True, log_text_bytes=300)
    key = (await proxy.make_key()).key
    answer, [line] = await lines_of(proxy, key, stream=True)
    assert len(answer.pieces) > 1
    assert line["answer"] == answer.body.decode()[:300]
    assert line["answer_bytes"] == len(answer.body) > 300


async def test_call_that_is_refused_has_its_line_without_an_answer(start_proxy, refused):
    proxy = await start_proxy(log_texts=True)
    key = (await proxy.make_key()).key
    with capture_logs() as logged:
        await refused(proxy.chat(key, text=ASKED, model="gpt-unknown"))
    [line] = [entry for entry in logged if entry["event"] == LINE]
    assert ASKED in line["request"]
    assert (line["answer"], line["answer_bytes"]) == ("", 0)


async def test_repeated_answer_is_logged_as_it_was_given(start_proxy):
    proxy = await start_proxy(log_texts=True)
    key = (await proxy.make_key()).key
    asked = {"metadata": (("x-api-key", key), ("idempotency-key", "once"))}
    first, [line] = await lines_of(proxy, key, **asked)
    again, [repeated] = await lines_of(proxy, key, **asked)
    assert again.body == first.body
    assert repeated["answer"] == line["answer"] == first.body.decode()


async def test_credential_is_in_no_line_even_where_a_customer_wrote_it_down(start_proxy):
    proxy = await start_proxy(log_texts=True, log_text_bytes=1000)
    key = (await proxy.make_key()).key
    with capture_logs() as logged:
        await proxy.chat(key, text=f"{key} {'x' * 860} {key} {key}")
    assert key[:12] not in repr(logged)
