"""The tokenizer: the same text always counts the same, and what is cut counts what it was cut to."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deploy.local.sandbox.provider import tokens


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ("", ()),
        ("hello", ("hello",)),
        ("sandboxes", ("sandbo", "xes")),
        ("one two", ("one", " two")),
        ("a  b", ("a", " ", " b")),
        ("x=12345", ("x", "=", "123", "45")),
        (" 42", (" 42",)),
        ("a1", ("a", "1")),
        ("naïve", ("na", "ï", "ve")),
        ("日本\n", ("日", "本", "\n")),
        ("😀!", ("😀", "!")),
    ],
)
def test_text_is_split_by_the_documented_rule(text, pieces):
    assert tokens.split(text) == pieces
    assert tokens.count(text) == len(pieces)


@given(st.text(), st.integers(min_value=0, max_value=50))
def test_the_first_n_tokens_of_a_text_count_n(text, length):
    pieces = tokens.split(text)
    assert "".join(pieces) == text
    assert tokens.split("".join(pieces[:length])) == pieces[:length]


@given(st.integers(min_value=0, max_value=3000))
def test_an_answer_of_n_tokens_has_n_tokens(length):
    assert tokens.count("".join(tokens.answer_of(length))) == length


def test_longest_answer_has_its_length():
    assert tokens.count("".join(tokens.answer_of(200_000))) == 200_000


def conversations():
    """The same conversation, a system text and one user text, in every format that has both."""
    system, user = "You keep the books.", "What is a ledger, in 12 words?"
    chat = {"messages": [{"role": "system", "content": system}, {"role": "user", "content": user}]}
    return {
        "/v1/chat/completions": {"model": "gpt-4o"} | chat,
        "/v1beta/openai/chat/completions": {"model": "gemini-1.5-pro"} | chat,
        "/huggingface/v1/chat/completions": {"model": "any/model"} | chat,
        "/v1/responses": {"model": "gpt-4o", "instructions": system, "input": user},
        "/v1/messages": {
            "model": "claude-3-haiku",
            "max_tokens": 99,
            "system": system,
            "messages": [{"role": "user", "content": user}],
        },
        "/v1beta/models/gemini-1.5-pro:generateContent": {
            "systemInstruction": {"parts": [{"text": system}]},
            "contents": [{"role": "user", "parts": [{"text": user}]}],
        },
        "/model/anthropic.claude-3-haiku/converse": {
            "system": [{"text": system}],
            "messages": [{"role": "user", "content": [{"text": user}]}],
        },
    }


def test_one_conversation_counts_the_same_in_every_format(sandbox):
    signed = "AWS4-HMAC-SHA256 Credential=k/20260101/us-east-1/bedrock/aws4_request, SignedHeaders=host, Signature="
    for path, body in conversations().items():
        authorization = signed + "0" * 64 if path.startswith("/model/") else "Bearer k"
        date, version = "20260101T000000Z", {"anthropic_version": "2023-06-01"} if path == "/v1/messages" else {}
        answer = sandbox.call("POST", path, body, authorization=authorization, x_amz_date=date, **version)
        assert answer.status == 200, answer.body
    system, user = 5, 9  # You| keep| the| books|.  and  What| is| a| ledger|,| in| 12| words|?
    records = sandbox.usage()["records"]
    assert {record["input_tokens"] for record in records} == {3 + (4 + system) + (4 + user)}
    assert {record["output_tokens"] for record in records} == {len(tokens.DEFAULT_TOKENS)}
    assert len(records) == len(conversations())
