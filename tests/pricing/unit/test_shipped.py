"""Owns the proof that price and plan files are read exactly, and refused whole with file, line and field."""

from datetime import UTC, datetime

import pytest

from services.pricing.model import MILLION
from services.pricing.shipped import FOLDER, MAX_FILE_BYTES, CatalogueFileError, load_plans, load_prices, load_shipped

USD = 1_000_000_000

PRICES = """currency = "USD"
effective_from = 2026-01-01T00:00:00Z
reason = "test"

[[models]]
provider = "openai"
model = "first"
mode = "chat"
rates = [{ component = "input", usd = "5" }]

[[models]]
provider = "openai"
model = "second"
mode = "chat"
rates = [{ component = "input", usd = "0.000000001", per = 1000 }, { component = "output", usd = "15" }]
"""

PLAN = """currency = "USD"
[[plans]]
plan_id = "basic"
display_name = "Basic"
kind = "subscription"
price_usd = "10"
margin_percent = "12.5"
multiplier = "1.25"
providers = ["openai"]
models = ["*"]
"""


@pytest.fixture
def write(tmp_path):
    def write(text):
        file = tmp_path / "a file.toml"
        file.write_bytes(text if isinstance(text, bytes) else text.encode())
        return file

    return write


def test_shipped_catalogue_is_sound_and_complete():
    shipped = load_shipped()
    assert shipped.effective_from == datetime(2026, 1, 1, tzinfo=UTC)
    assert {price.provider for price in shipped.prices} == {"openai", "anthropic", "google", "huggingface", "bedrock"}
    assert len(shipped.plans) == 8


def test_shipped_plans_are_those_of_the_product():
    plans = {plan.plan_id: plan for plan in load_plans(FOLDER / "plans.toml")}
    table = {
        "free": (0, 50_000, 100, 1_000, 10),
        "starter": (19, 500_000, 1_000, 4_000, 60),
        "professional": (99, 5_000_000, 10_000, 8_000, 300),
        "enterprise": (499, 50_000_000, 100_000, 32_000, 1_000),
    }
    for plan_id, (price, tokens, requests, most, per_minute) in table.items():
        plan = plans[plan_id]
        assert plan.price_nanos == price * USD
        assert (plan.tokens_per_cycle, plan.requests_per_cycle) == (tokens, requests)
        assert (plan.max_tokens_per_request, plan.requests_per_minute) == (most, per_minute)
        assert (plan.margin_basis_points, plan.annual_discount_basis_points, plan.warn_percent) == (8_000, 1_500, 80)
        assert plan.multiplier_millionths == MILLION
        assert plan.overage_nanos_per_million_tokens == USD
    assert plans["free"].promotional_grant_nanos == 5 * USD
    assert plans["free"].models == ("gpt-3.5-turbo",)
    assert set(plans["starter"].models) == {"gpt-3.5-turbo", "claude-3-haiku"}
    assert set(plans["professional"].models) == {
        *plans["starter"].models,
        *("gpt-4-turbo", "gpt-4o", "claude-3-sonnet", "gemini-1.5-pro"),
    }
    assert (plans["enterprise"].providers, plans["enterprise"].models) == (("*",), ("*",))
    payg = plans["payg"]
    assert (payg.kind, payg.multiplier_millionths, payg.price_nanos) == ("prepaid", 1_500_000, 0)
    assert (payg.max_tokens_per_request, payg.requests_per_minute) == (32_000, 600)


def test_amounts_in_files_are_exact(write):
    _, _, prices = load_prices(write(PRICES))
    assert [rate.nanos_per_million for rate in prices[1].card.rates] == [1_000, 15 * USD]
    (plan,) = load_plans(write(PLAN))
    assert (plan.margin_basis_points, plan.multiplier_millionths) == (1_250, 1_250_000)


@pytest.mark.parametrize(
    ("was", "becomes", "told"),
    [
        ('currency = "USD"\n', "", "currency: is required"),
        ('"USD"', '"EUR"', 'currency: must be "USD"'),
        ("2026-01-01T00:00:00Z", "2026-01-01T00:00:00", "effective_from: must have a UTC offset"),
        ('component = "output"', 'component = "outptu"', "15: models[1].rates[1].component: must be one of"),
        ('component = "output"', 'component = "input"', "15: models[1].rates[1]: prices the same as rates[0]"),
        ('usd = "15"', 'usd = "-15"', "15: models[1].rates[1].usd: must not be negative"),
        ('usd = "15"', "usd = 15.0", "15: models[1].rates[1].usd: must be str, not float"),
        ('usd = "15"', 'usd = "1e3"', "15: models[1].rates[1].usd: must be a decimal number"),
        ('usd = "15"', 'usd = "15", usd_each = "1"', "15: models[1].rates[1].usd_each: is not known here"),
        ("per = 1000", "per = 7", "15: models[1].rates[0].per: must be one of"),
        ('model = "second"', 'model = "first"', "11: models[1]: openai/first stands already at models[0]"),
        ('model = "second"', 'model = ""', "13: models[1].model: must be 1 to 200"),
        ('mode = "chat"\nrates = [{ component = "input", usd = "5" }]', 'mode = "talk"\nrates = []', "models[0].mode"),
        ('rates = [{ component = "input", usd = "5" }]', "rates = []", "9: models[0].rates: must not be empty"),
        ('rates = [{ component = "input", usd = "5" }]', "rates = [5]", "9: models[0].rates[0]: must be a table"),
        ("[[models]]", "[[model]]", "model: is not known here"),
    ],
)
def test_bad_price_file_is_refused_by_line_and_field(write, was, becomes, told):
    assert was in PRICES
    with pytest.raises(CatalogueFileError, match=r"a file\.toml") as caught:
        load_prices(write(PRICES.replace(was, becomes)))
    assert told in str(caught.value)


@pytest.mark.parametrize(
    ("was", "becomes", "told"),
    [
        ('"basic"', '"Basic plan"', "3: plans[0].plan_id: must be"),
        ('"subscription"', '"barter"', "5: plans[0].kind: must be one of"),
        ('"12.5"', '"100"', "2: plans[0].margin_basis_points: must be from 0 to 9999"),
        ('"1.25"', '"0"', "2: plans[0].multiplier_millionths: must be from 1"),
        ('"1.25"', "1.25", "8: plans[0].multiplier: must be str, not float"),
        ('models = ["*"]', "models = []", "10: plans[0].models: must hold at least one name"),
        ('models = ["*"]', 'models = ["*", "gpt-4o"]', "10: plans[0].models: must hold nothing beside *"),
        ('"10"', '"10.0000000001"', "6: plans[0].price_usd: must have at most nine decimals"),
        ('kind = "subscription"', 'kind = "metered"', "2: plans[0].metrics: a metered plan must have"),
    ],
)
def test_bad_plan_file_is_refused_by_line_and_field(write, was, becomes, told):
    assert was in PLAN
    with pytest.raises(CatalogueFileError, match=r"a file\.toml") as caught:
        load_plans(write(PLAN.replace(was, becomes)))
    assert told in str(caught.value)


@pytest.mark.parametrize("junk", [b"\xff" * 100, b"[" * 100_000, b"x" * (MAX_FILE_BYTES + 1), b"", b"= 5", b"\x00"])
def test_junk_is_refused(write, junk):
    with pytest.raises(CatalogueFileError, match=r"a file\.toml"):
        load_prices(write(junk))


def test_missing_file_is_named(tmp_path):
    with pytest.raises(CatalogueFileError, match=r"none\.toml: No such file"):
        load_prices(tmp_path / "none.toml")
