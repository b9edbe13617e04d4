"""Owns the proof that every provider's own way of counting becomes one usage, in which nothing is counted twice."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.rating import InvalidUsage, PriceCard, Rate, Usage, accounting, cost

USD = 1_000_000_000


def test_openai_chat_counts_cached_and_reasoning_tokens_inside():
    assert accounting.openai_chat(
        {
            "prompt_tokens": 1000,
            "completion_tokens": 500,
            "total_tokens": 1500,
            "prompt_tokens_details": {"cached_tokens": 600, "cache_write_tokens": 100, "audio_tokens": 50},
            "completion_tokens_details": {
                "reasoning_tokens": 300,
                "audio_tokens": 20,
                "accepted_prediction_tokens": 7,
                "rejected_prediction_tokens": 9,
            },
        }
    ) == Usage(
        input_tokens=1000,
        output_tokens=500,
        cache_read_tokens=600,
        cache_write_5m_tokens=100,
        audio_input_tokens=50,
        reasoning_tokens=300,
        audio_output_tokens=20,
    )


def test_openai_chat_counts_reasoning_beside_the_output_where_the_total_says_so():
    beside = {"prompt_tokens": 100, "completion_tokens": 50, "total_tokens": 180}
    details = {"completion_tokens_details": {"reasoning_tokens": 30}}
    assert accounting.openai_chat(beside | details) == Usage(100, 80, reasoning_tokens=30)
    assert accounting.openai_chat(beside | details | {"total_tokens": 150}) == Usage(100, 50, reasoning_tokens=30)
    more = {"prompt_tokens": 100, "completion_tokens": 5, "completion_tokens_details": {"reasoning_tokens": 30}}
    assert accounting.openai_chat(more) == Usage(100, 35, reasoning_tokens=30)


def test_openai_chat_bills_thoughts_that_only_the_total_counts():
    thought = {"prompt_tokens": 20, "completion_tokens": 151, "total_tokens": 553}
    assert accounting.openai_chat(thought) == Usage(20, 533, reasoning_tokens=382)
    alone = {"prompt_tokens": 21, "total_tokens": 81}
    assert accounting.openai_chat(alone) == Usage(21, 60, reasoning_tokens=60)
    # What is above the input here was read from a cache, beside it.
    beside = {"prompt_tokens": 10, "completion_tokens": 5, "prompt_tokens_details": {"cached_tokens": 2000}}
    assert accounting.openai_chat(beside | {"total_tokens": 2015}).output_tokens == 5


def test_openai_chat_counts_cached_audio_once():
    usage = accounting.openai_chat(
        {
            "prompt_tokens": 100,
            "prompt_tokens_details": {
                "cached_tokens": 40,
                "audio_tokens": 30,
                "image_tokens": 25,
                "cached_tokens_details": {"audio_tokens": 20, "image_tokens": 5},
            },
        }
    )
    assert usage == Usage(100, cache_read_tokens=40, audio_input_tokens=10, image_input_tokens=20)


def test_openai_responses_tells_how_long_a_cache_is_kept():
    assert accounting.openai_responses(
        {
            "input_tokens": 1000,
            "output_tokens": 500,
            "total_tokens": 1500,
            "input_tokens_details": {
                "cached_tokens": 200,
                "cache_write_tokens": 300,
                "cache_write_tokens_details": {"ttl_30m_tokens": 180, "ttl_12h_tokens": 120},
            },
            "output_tokens_details": {"reasoning_tokens": 400},
        }
    ) == Usage(1000, 500, 200, cache_write_5m_tokens=180, cache_write_1h_tokens=120, reasoning_tokens=400)


def test_openai_embeddings_are_input_alone():
    assert accounting.openai_embeddings({"prompt_tokens": 8, "total_tokens": 8}) == Usage(8)
    assert accounting.openai_embeddings({"total_tokens": 8}) == Usage(8)


def test_anthropic_counts_cached_tokens_beside_the_input():
    assert accounting.anthropic_messages(
        {
            "input_tokens": 100,
            "cache_read_input_tokens": 2000,
            "cache_creation_input_tokens": 500,
            "cache_creation": {"ephemeral_5m_input_tokens": 300, "ephemeral_1h_input_tokens": 200},
            "output_tokens": 50,
            "output_tokens_details": {"thinking_tokens": 30},
            "server_tool_use": {"web_search_requests": 1},
        }
    ) == Usage(
        input_tokens=2600,
        output_tokens=50,
        cache_read_tokens=2000,
        cache_write_5m_tokens=300,
        cache_write_1h_tokens=200,
        reasoning_tokens=30,
    )


@pytest.mark.parametrize(
    ("usage", "five_minutes", "hour"),
    [
        ({"cache_creation_input_tokens": 500}, 500, 0),
        ({"cache_creation_input_tokens": 500, "cache_creation": {"ephemeral_1h_input_tokens": 200}}, 300, 200),
        ({"cache_creation": {"ephemeral_5m_input_tokens": 3, "ephemeral_1h_input_tokens": 2}}, 3, 2),
        ({"cache_creation_input_tokens": 0, "cache_creation": None}, 0, 0),
    ],
)
def test_anthropic_cache_writes_of_no_stated_age_are_of_five_minutes(usage, five_minutes, hour):
    found = accounting.anthropic_messages({"input_tokens": 10, **usage})
    assert (found.cache_write_5m_tokens, found.cache_write_1h_tokens) == (five_minutes, hour)
    assert found.input_tokens == 10 + five_minutes + hour


def test_bedrock_counts_cached_tokens_beside_the_input():
    usage = {
        "inputTokens": 100,
        "outputTokens": 50,
        "totalTokens": 2650,
        "cacheReadInputTokens": 2000,
        "cacheWriteInputTokens": 500,
        "cacheDetails": [{"ttl": "1h", "inputTokens": 200}, {"ttl": "5m", "inputTokens": 300}],
    }
    assert accounting.bedrock_converse(usage) == Usage(
        2600, 50, 2000, cache_write_5m_tokens=300, cache_write_1h_tokens=200
    )
    assert accounting.bedrock_converse(usage | {"cacheDetails": []}).cache_write_5m_tokens == 500


def test_gemini_counts_thoughts_and_tools_beside_and_cached_tokens_inside():
    assert accounting.gemini(
        {
            "promptTokenCount": 1000,
            "toolUsePromptTokenCount": 60,
            "cachedContentTokenCount": 400,
            "candidatesTokenCount": 200,
            "thoughtsTokenCount": 300,
            "totalTokenCount": 1560,
            "promptTokensDetails": [
                {"modality": "TEXT", "tokenCount": 500},
                {"modality": "AUDIO", "tokenCount": 300},
                {"modality": "IMAGE", "tokenCount": 150},
                {"modality": "VIDEO", "tokenCount": 50},
            ],
            "cacheTokensDetails": [
                {"modality": "TEXT", "tokenCount": 300},
                {"modality": "AUDIO", "tokenCount": 100},
            ],
            "toolUsePromptTokensDetails": [{"modality": "IMAGE", "tokenCount": 10}],
            "candidatesTokensDetails": [
                {"modality": "TEXT", "tokenCount": 50},
                {"modality": "IMAGE", "tokenCount": 100},
                {"modality": "AUDIO", "tokenCount": 50},
            ],
        }
    ) == Usage(
        input_tokens=1060,
        output_tokens=500,
        cache_read_tokens=400,
        reasoning_tokens=300,
        audio_input_tokens=200,
        image_input_tokens=160,
        audio_output_tokens=50,
        image_output_tokens=100,
    )


def test_the_same_call_costs_the_same_in_every_form():
    # 1 000 tokens in, 600 of them from the cache, 500 out, 300 of them thoughts.
    card = PriceCard(
        "any",
        "model",
        "chat",
        (
            Rate("input", nanos_per_million=3 * USD),
            Rate("cache_read", nanos_per_million=USD // 3),
            Rate("output", nanos_per_million=15 * USD),
        ),
    )
    inside = {"cached_tokens": 600}, {"reasoning_tokens": 300}
    usages = [
        accounting.openai_chat(
            {
                "prompt_tokens": 1000,
                "completion_tokens": 500,
                "prompt_tokens_details": inside[0],
                "completion_tokens_details": inside[1],
            }
        ),
        accounting.openai_responses(
            {
                "input_tokens": 1000,
                "output_tokens": 500,
                "input_tokens_details": inside[0],
                "output_tokens_details": inside[1],
            }
        ),
        accounting.anthropic_messages({"input_tokens": 400, "cache_read_input_tokens": 600, "output_tokens": 500}),
        accounting.bedrock_converse({"inputTokens": 400, "cacheReadInputTokens": 600, "outputTokens": 500}),
        accounting.gemini(
            {
                "promptTokenCount": 1000,
                "cachedContentTokenCount": 600,
                "candidatesTokenCount": 200,
                "thoughtsTokenCount": 300,
            }
        ),
    ]
    assert len({cost(card, usage).cost_nanos for usage in usages}) == 1


FORMS = {
    accounting.openai_chat: "prompt_tokens",
    accounting.openai_responses: "output_tokens",
    accounting.openai_embeddings: "prompt_tokens",
    accounting.anthropic_messages: "cache_read_input_tokens",
    accounting.bedrock_converse: "cacheWriteInputTokens",
    accounting.gemini: "thoughtsTokenCount",
}


@pytest.mark.parametrize("form", FORMS)
def test_missing_and_null_fields_count_nothing(form):
    assert form({}) == Usage()
    assert form({FORMS[form]: None}) == Usage()


@pytest.mark.parametrize("form", FORMS)
def test_whole_count_that_is_written_as_a_floating_number_is_a_count(form):
    found = form({FORMS[form]: 12.0})
    assert found == form({FORMS[form]: 12})
    assert all(type(count) is int for count in found)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("value", [-1, -1.0, 1.5, 1e30, float("inf"), float("nan"), "1", True, [1], 2**63])
def test_count_that_is_no_count_is_refused_by_name(form, value):
    with pytest.raises(InvalidUsage) as caught:
        form({FORMS[form]: value})
    assert caught.value.field == FORMS[form]


@pytest.mark.parametrize(
    ("form", "usage", "field"),
    [
        (accounting.openai_chat, {"prompt_tokens_details": []}, "prompt_tokens_details"),
        (
            accounting.openai_chat,
            {"prompt_tokens_details": {"cached_tokens": -1}},
            "prompt_tokens_details.cached_tokens",
        ),
        (
            accounting.anthropic_messages,
            {"cache_creation": {"ephemeral_1h_input_tokens": 0.5}},
            "cache_creation.ephemeral_1h_input_tokens",
        ),
        (accounting.gemini, {"promptTokensDetails": {}}, "promptTokensDetails"),
        (
            accounting.gemini,
            {"promptTokensDetails": [{"modality": "AUDIO", "tokenCount": -1}]},
            "promptTokensDetails[0].tokenCount",
        ),
        (accounting.bedrock_converse, {"cacheDetails": [5]}, "cacheDetails"),
        (accounting.bedrock_converse, {"inputTokens": 2**63 - 1, "cacheReadInputTokens": 1}, "input_tokens"),
    ],
)
def test_what_is_wrong_inside_is_named_by_its_path(form, usage, field):
    with pytest.raises(InvalidUsage) as caught:
        form(usage)
    assert caught.value.field == field


def test_part_above_its_whole_is_not_believed_and_the_whole_is_billed():
    usage = {"prompt_tokens": 10, "completion_tokens": 5, "prompt_tokens_details": {"cached_tokens": 11}}
    assert accounting.openai_chat(usage) == Usage(10, 5)


counts = st.one_of(st.none(), st.integers(0, 3000))


@given(
    st.fixed_dictionaries(
        {},
        optional={
            "prompt_tokens": counts,
            "completion_tokens": counts,
            "total_tokens": counts,
            "prompt_cache_hit_tokens": counts,
            "prompt_tokens_details": st.dictionaries(
                st.sampled_from(["cached_tokens", "cache_write_tokens", "audio_tokens", "image_tokens"]), counts
            ),
            "completion_tokens_details": st.dictionaries(
                st.sampled_from(["reasoning_tokens", "audio_tokens", "image_tokens"]), counts
            ),
        },
    )
)
def test_whatever_an_openai_server_counts_can_be_priced(usage):
    flat = PriceCard(
        "any", "m", "chat", (Rate("input", nanos_per_million=1_000_000), Rate("output", nanos_per_million=1_000_000))
    )
    found = accounting.openai_chat(usage)
    assert cost(flat, found).cost_nanos == found.input_tokens + found.output_tokens
    assert found.input_tokens == (usage.get("prompt_tokens") or 0)
    assert found.output_tokens >= (usage.get("completion_tokens") or 0)


modalities = st.lists(
    st.fixed_dictionaries({"modality": st.sampled_from(["TEXT", "AUDIO", "IMAGE", "VIDEO"]), "tokenCount": counts}),
    max_size=4,
)


@given(
    st.fixed_dictionaries(
        {},
        optional={
            **dict.fromkeys(
                ["promptTokenCount", "cachedContentTokenCount", "candidatesTokenCount", "thoughtsTokenCount"], counts
            ),
            **dict.fromkeys(["promptTokensDetails", "cacheTokensDetails", "candidatesTokensDetails"], modalities),
        },
    )
)
def test_whatever_gemini_counts_can_be_priced(usage):
    flat = PriceCard(
        "any", "m", "chat", (Rate("input", nanos_per_million=1_000_000), Rate("output", nanos_per_million=1_000_000))
    )
    found = accounting.gemini(usage)
    assert cost(flat, found).cost_nanos == found.input_tokens + found.output_tokens
