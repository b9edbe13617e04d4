"""What is noted of an answer is always something the ledger takes."""

import orjson

from services.kit.validation import Violations
from services.proxy.formats.openai_chat import ChatReader


def test_any_identifier_of_a_provider_is_one_the_ledger_keeps():
    for identifier in ("chatcmpl-1", "a\0b\x1f\x85c", "x" * 5_000, "", 7, None, {"id": 1}):
        reader = ChatReader()
        reader.take_whole(orjson.dumps({"id": identifier, "choices": [{"message": {"content": "hi"}}]}))
        v = Violations()
        v.text("provider_request_id", reader.provider_request_id, max_length=200)
        assert not v.found, identifier
