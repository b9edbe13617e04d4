"""OpenAI embeddings: unit vectors, the same for the same text, counted without overhead."""

from __future__ import annotations

import math

import openai
import pytest

from deploy.local.sandbox.provider import tokens


@pytest.fixture
def client(sandbox):
    with openai.OpenAI(base_url=f"{sandbox.url}/v1", api_key=sandbox.key, max_retries=0) as client:
        yield client


def embed(client, value, **options):
    return client.embeddings.create(model="text-embedding-3-small", input=value, **options)


@pytest.mark.parametrize("encoding", ["float", "base64"])
def test_same_text_gives_the_same_unit_vector(client, encoding):
    first = embed(client, ["one text", "another"], encoding_format=encoding)
    again = embed(client, "one text")  # the SDK asks for base64 of its own accord
    assert [row.index for row in first.data] == [0, 1]
    vector = first.data[0].embedding
    if encoding == "base64":
        assert isinstance(vector, str)
        return
    assert len(vector) == 1536
    assert math.isclose(math.hypot(*vector), 1, rel_tol=1e-5)
    assert vector == pytest.approx(again.data[0].embedding, abs=1e-7)
    assert vector != first.data[1].embedding


def test_dimensions_are_those_asked_for(client):
    assert len(embed(client, "text", dimensions=256).data[0].embedding) == 256


def test_usage_counts_texts_and_tokens(client):
    texts = embed(client, ["hello there", "friend"])
    assert texts.usage.prompt_tokens == tokens.count("hello there") + tokens.count("friend")
    assert texts.usage.total_tokens == texts.usage.prompt_tokens
    assert embed(client, [[1, 2, 3], [4]]).usage.prompt_tokens == 4
    assert embed(client, [1, 2, 3]).usage.prompt_tokens == 3


def test_embeddings_have_no_output_tokens_in_the_log(client, sandbox):
    embed(client, "hello there")
    record = sandbox.last_record()
    assert (record["endpoint"], record["input_tokens"], record["output_tokens"]) == ("embeddings", 2, 0)
    assert record["completed"] is True


@pytest.mark.parametrize("changes", [{"input": []}, {"input": [1, "a"]}, {"input": {}}, {"dimensions": 0}])
def test_bad_requests_are_400(sandbox, changes):
    body = {"model": "text-embedding-3-small", "input": "x"} | changes
    assert sandbox.call("POST", "/v1/embeddings", body, authorization="Bearer k").status == 400


def test_faults_work_for_embeddings_too(client):
    with pytest.raises(openai.RateLimitError):
        embed(client, "[[sandbox status=429]]")
