"""What is noted of an answer is always something the ledger takes, and what it is billed by is what a model said."""

import orjson
import pytest

from services.kit.validation import Violations
from services.proxy.formats.openai_chat import ChatReader


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
