"""What is noted of an answer is always something the ledger takes, and what it is billed by is what a model said."""

import orjson
import pytest
from proxy_recorded import KEY

from services import rating
from services.kit.validation import Violations
from services.proxy.calls.call import Asked, Call
from services.proxy.formats import tokens
from services.proxy.formats.openai_chat import ChatReader, ChatRequest
from services.proxy.formats.openai_responses import ResponsesReader


def test_any_identifier_of_a_provider_is_one_the_ledger_keeps():
    for identifier in ("chatcmpl-1", "a\0b\x1f\x85c", "x" * 5_000, "", 7, None, {"id": 1}):
        reader = ChatReader()
        reader.take_whole(orjson.dumps({"id": identifier, "choices": [{"message": {"content": "hi"}}]}))
        v = Violations()
        v.text("provider_request_id", reader.provider_request_id, max_length=200)
        assert not v.found, identifier


def test_events_in_place_of_a_whole_answer_are_read_as_such():
    said = b'data: {"choices":[{"index":0,"delta":{"content":"hello"},"finish_reason":null}]}\n\n'
    usage = b'data: {"choices":[],"usage":{"prompt_tokens":9,"completion_tokens":3}}\n\n'
    reader = ChatReader()
    reader.take_whole(b": hi\n\n" + said + usage + b"data: [DONE]")
    assert (reader.usage.input_tokens, reader.usage.output_tokens) == (9, 3)
    reader = ChatReader()
    reader.take_whole(said)
    assert (reader.usage, reader.said, reader.owed) == (None, ["hello"], True)


@pytest.mark.parametrize("body", [b"", b" \n", b"<!doctype html><p>Sorry", b"<html></html>"])
def test_page_in_place_of_an_answer_is_not_owed_for(body):
    reader = ChatReader()
    reader.take_whole(body)
    assert not reader.owed


@pytest.mark.parametrize("body", [b"hello", b'{"choices": [{"mess', b"[1]"])
def test_what_is_no_answer_of_this_form_is_owed_for_as_text(body):
    reader = ChatReader()
    reader.take_whole(body)
    assert reader.owed
    assert reader.estimated


USAGE = b'"usage": {"prompt_tokens": 9, "completion_tokens": 3}'


def event(content, more=b""):
    return b'data: {"choices": [{"index": 0, "delta": {"content": "' + content + b'"}}]' + more + b"}\n\n"


def test_unary_answer_that_breaks_off_after_its_count_is_billed_by_it():
    reader = ChatReader()
    reader.take_whole(b'{"id": "c", ' + USAGE + b', "choices": [{"message": {"content": "he')
    assert reader.usage == rating.Usage(input_tokens=9, output_tokens=3)


@pytest.mark.parametrize("odd", [b"\\ud83d", b"\xff", b'", "x": NaN, "y": "', b"\t"])
def test_stream_is_read_also_where_it_is_not_quite_json(odd):
    reader = ChatReader()
    reader.take_event(event(b"a" + odd))
    usage = reader.take_event(b'data: {"choices": [], "x": "' + odd + b'", ' + USAGE + b"}\n\n")
    assert reader.usage == rating.Usage(input_tokens=9, output_tokens=3)
    assert "".join(reader.said).encode().startswith(b"a")
    assert b'"credits":{"nanos":1}' in reader.credited(usage, {"nanos": 1}, lambda: None)


def test_count_is_read_also_of_half_an_event():
    reader = ChatReader()
    reader.take_event(event(b"a"))
    assert reader.take_event(b'data: {"choices": [], ' + USAGE + b', "x": "\n\n').chunk is None
    assert reader.usage == rating.Usage(input_tokens=9, output_tokens=3)


@pytest.mark.parametrize(
    "body", [b'[{"error": {"code": 503}}]', b'\xef\xbb\xbf[{"error": "busy"}]', b"\xef\xbb\xbf<p>"]
)
def test_googles_list_of_errors_is_not_owed_for(body):
    reader = ChatReader()
    reader.take_whole(body)
    assert not reader.owed


def test_event_whose_type_is_no_name_is_passed_over():
    reader = ResponsesReader()
    assert reader.take_event(b'data: {"type": {"a": 1}}\n\n').chunk is None


@pytest.fixture
def call():
    request = ChatRequest.read(b'{"model": "gpt-4o", "messages": [{"role": "user", "content": "hi"}]}')
    return Call(KEY, Asked("e"), request)


def test_estimate_is_never_above_what_is_held(call):
    call.held_input_tokens, call.held_output_tokens = 4, 10
    call.reader.take_whole(b"word " * 1_000)
    assert call.counted() == rating.Usage(input_tokens=4, output_tokens=10)


def test_text_that_cannot_be_tokenized_is_estimated_all_the_same(call, monkeypatch):
    call.reader.say("lone \ud83d")
    assert call.counted().output_tokens > 1

    def failing(model, texts):
        raise ValueError

    monkeypatch.setattr(tokens, "estimated", failing)
    assert min(call.counted()[:2]) > 1
