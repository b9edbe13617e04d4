"""Owns the prices and usages that rating's properties are tried on."""

from hypothesis import strategies as st

from services.rating import SERVICE_TIERS, PriceCard, Rate, Usage
from services.rating.card import TOKEN_COMPONENTS, UNIT_COMPONENTS

INPUT_PARTS = (
    "cache_read_tokens",
    "cache_write_5m_tokens",
    "cache_write_1h_tokens",
    "audio_input_tokens",
    "image_input_tokens",
)
OUTPUT_PARTS = ("reasoning_tokens", "audio_output_tokens", "image_output_tokens")

rates = st.integers(0, 10**12)
counts = st.one_of(st.integers(0, 30), st.integers(0, 500_000))
tiers = st.sampled_from(SERVICE_TIERS)
multipliers = st.integers(1, 5_000_000)


@st.composite
def cards(draw, *, rising=False):
    """Cards whose plain and unit components are priced in every tier, parts in some, with up to two thresholds.

    `rising`: a longer call is never at a lower rate.
    """
    found = []
    for tier in SERVICE_TIERS:
        components = ["input", "output", *UNIT_COMPONENTS[:3]]
        components += draw(st.lists(st.sampled_from(TOKEN_COMPONENTS + UNIT_COMPONENTS), max_size=6))
        for component in dict.fromkeys(components):
            thresholds = sorted({0, *draw(st.lists(st.integers(1, 400_000), max_size=2))})
            prices = [draw(rates) for _ in thresholds]
            if rising:
                prices.sort()
            found += [Rate(component, tier, above, price) for above, price in zip(thresholds, prices, strict=True)]
    return PriceCard("openai", "a-model", "chat", tuple(found), version=7)


@st.composite
def usages(draw):
    """Usages whose parts are within their wholes."""
    parts = {name: draw(counts) for name in (*INPUT_PARTS, *OUTPUT_PARTS) if draw(st.booleans())}
    return Usage(
        input_tokens=draw(counts) + sum(parts.get(name, 0) for name in INPUT_PARTS),
        output_tokens=draw(counts) + sum(parts.get(name, 0) for name in OUTPUT_PARTS),
        images=draw(st.integers(0, 5)),
        characters=draw(counts),
        milliseconds=draw(counts),
        requests=draw(st.integers(0, 3)),
        **parts,
    )


@st.composite
def token_usages(draw):
    """Usages of tokens, images and requests: what an upper bound is asked for."""
    usage = draw(usages())
    return Usage(
        **{
            name: getattr(usage, name)
            for name in ("input_tokens", "output_tokens", "images", "requests", *INPUT_PARTS, *OUTPUT_PARTS)
        }
    )
