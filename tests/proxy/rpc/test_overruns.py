"""A provider that ignores its output cap: the hold grows, or the stream ends; nothing is spent that is not there."""

import pytest
from proxy_fakes import FakePricing
from proxy_wire import FORMS, RATES, ask, dear, every_provider, saying

CAP = 50
SAID = 1_000
STREAMS = ("chat", "converse", "responses", "messages", "gemini")
CAPPED = {
    "chat": {"max_tokens": CAP},
    "converse": {"max_tokens": CAP},
    "responses": {"max_output_tokens": CAP},
    "messages": {"max_tokens": CAP},
    "gemini": {"generationConfig": {"maxOutputTokens": CAP}},
}
# Where usage of an ended stream stands, and its output; and the word for why it ended.
ENDED = {
    "chat": ("usage", "completion_tokens", "length"),
    "converse": ("usage", "completion_tokens", "length"),
    "responses": ("usage", "output_tokens", "max_output_tokens"),
    "messages": ("usage", "output_tokens", "max_tokens"),
    "gemini": ("usageMetadata", "candidatesTokenCount", "MAX_TOKENS"),
}
DEAREST_OUTPUT = max(RATES["output"], RATES["reasoning"])  # as a hold counts it


@pytest.fixture
def pricing():
    models = {(model, provider) for model, provider, _ in FORMS.values()}
    return FakePricing([dear(model, provider, max_output=8192) for model, provider in sorted(models)])


@pytest.fixture
async def proxy(start_proxy, provider):
    return await start_proxy(**every_provider(provider.url))


async def overrun(proxy, key, form, words):
    return await ask(proxy, key, form, saying(form, f"[[sandbox {words}]]", **CAPPED[form]), stream=True)


async def held(proxy, key, ledger, form, words):
    """What such a call holds, of an account that has no more: let it be made once by a rich one."""
    await overrun(proxy, key, form, words)
    first = next(body for kind, body in ledger.log if kind == "hold")
    for kept in (ledger.holds, ledger.settled, ledger.log):
        kept.clear()
    return first.amount_nanos


def extensions(ledger):
    return [body for kind, body in ledger.log if kind == "extend"]


@pytest.mark.parametrize("form", STREAMS)
@pytest.mark.parametrize("tokens_a_chunk", [1, 20, 50, 300])
async def test_stream_above_a_hold_that_cannot_grow_ends_and_overdraws_by_no_more_than_a_chunk(
    proxy, key, ledger, form, tokens_a_chunk
):
    words = f"ignore-cap output_tokens={SAID} chunk_tokens={tokens_a_chunk} delay_ms=1"
    account = ledger.accounts["acme"]
    account.available = await held(proxy, key, ledger, form, words)
    got = await overrun(proxy, key, form, words)
    told, name, reason = ENDED[form]
    assert reason in got.body.decode()
    (usage,) = ledger.usages
    assert (usage.status, usage.estimated) == ("cut", True)
    assert len(extensions(ledger)) == 1
    # Gemini counts as it goes, and that is the true count; all others are estimated, and never above what was held.
    above = max(usage.output_tokens - CAP, 0)
    assert above <= tokens_a_chunk if form == "gemini" else above == 0
    assert account.available >= -above * DEAREST_OUTPUT * 3 // 2
    assert account.available >= 0 or form == "gemini"
    counts = [one.get(told) or one.get("response", {}).get(told) for one in got.objects()]
    assert [count for count in counts if count][-1][name] == usage.output_tokens
    costs = [one["credits"]["costNanos"] for one in got.objects() if "credits" in one]
    assert costs == [str(ledger.bills[0].amount_nanos)]
    assert not ledger.open_holds


@pytest.mark.parametrize("form", STREAMS)
@pytest.mark.parametrize("tokens_a_chunk", [1, 50])
async def test_stream_ends_soon_after_what_is_held_has_been_said(proxy, key, ledger, form, tokens_a_chunk):
    words = f"ignore-cap output_tokens={SAID} chunk_tokens={tokens_a_chunk} delay_ms=1"
    ledger.accounts["acme"].available = await held(proxy, key, ledger, form, words)
    got = await overrun(proxy, key, form, words)
    ledger.accounts["acme"].available = 10**12
    whole = await overrun(proxy, key, form, words)
    assert len(got.body) < len(whole.body) / 3


@pytest.mark.parametrize("form", STREAMS)
@pytest.mark.parametrize("tokens_a_chunk", [1, 50])
async def test_hold_that_can_grow_does_and_the_true_usage_is_billed(proxy, key, ledger, form, tokens_a_chunk):
    await overrun(proxy, key, form, f"ignore-cap output_tokens={SAID} chunk_tokens={tokens_a_chunk}")
    (usage,) = ledger.usages
    assert (usage.status, usage.estimated, usage.output_tokens) == ("ok", False, SAID)
    more = extensions(ledger)
    assert more
    assert sum(one.additional_tokens for one in more) <= SAID


@pytest.mark.parametrize("form", STREAMS)
@pytest.mark.parametrize("tokens_a_chunk", [1, 7, 50])
async def test_stream_that_fills_its_cap_asks_for_no_more_and_is_never_cut(proxy, key, ledger, form, tokens_a_chunk):
    await overrun(proxy, key, form, f"output_tokens=400 chunk_tokens={tokens_a_chunk}")
    (usage,) = ledger.usages
    assert (usage.status, usage.estimated, usage.output_tokens) == ("ok", False, CAP)
    assert not extensions(ledger)
