"""`setup-stripe`: Stripe's catalogue from the plans on sale; done twice, it changes nothing the second time."""

from decimal import Decimal
from functools import partial

import pytest
import stripe
from subscriptions_peers import USD
from subscriptions_process import run, run_here
from subscriptions_shop import publish_plans

from services.subscriptions.commands.setup_stripe import set_up
from services.subscriptions.stripe.catalogue import CatalogueError

METRICS = ("agent_executions", "api_calls", "llm_tokens", "storage_gb", "user_seats")


@pytest.fixture
def v1(stripe_sandbox):
    return stripe_sandbox.v1


@pytest.fixture
def do(parts, stripe_sandbox, capsys):
    """`do()`: sets up; the lines it writes."""

    def make(*, dry_run=False):
        capsys.readouterr()
        count = set_up(parts(**stripe_sandbox.settings()), dry_run=dry_run)
        lines = capsys.readouterr().out.splitlines()
        assert len(lines) == count
        return lines

    return make


def catalogue(v1):
    """All that Stripe holds, as far as it can be seen."""
    return [
        [one.to_dict() for one in found.auto_paging_iter()]
        for found in (
            v1.products.list({"limit": 100}),
            v1.prices.list({"limit": 100, "expand": ["data.tiers"]}),
            v1.billing.meters.list({"limit": 100}),
        )
    ]


def price(v1, lookup_key):
    listed = v1.prices.list({"lookup_keys": [lookup_key], "expand": ["data.tiers"]}).data
    assert len(listed) == 1
    return listed[0]


def test_plans_on_sale_become_products_and_prices(do, v1, pricing):
    publish_plans(pricing)
    do()
    products, prices, meters = catalogue(v1)
    assert sorted(product["id"] for product in products) == [
        "tk_business", "tk_metered-enterprise", "tk_metered-standard", "tk_professional", "tk_starter"
    ]  # fmt: skip
    month, year = price(v1, "tk:starter:1:month"), price(v1, "tk:starter:1:year")
    assert (month.unit_amount, month.recurring.interval, month.currency) == (1900, "month", "usd")
    assert (year.unit_amount, year.recurring.interval) == (19_380, "year")  # twelve times 19, less 15 %
    assert price(v1, "tk:professional:1:year").unit_amount == 100_980
    told = {"managed_by": "tollkeeper", "plan": "starter", "plan_version": "1", "interval": "year"}
    assert year.metadata.to_dict() == told
    assert {one["metadata"]["managed_by"] for one in [*products, *prices]} == {"tollkeeper"}
    assert sorted(meter["event_name"] for meter in meters) == [f"tollkeeper_{metric}" for metric in METRICS]


def test_metered_prices_ask_nothing_up_to_what_is_included_and_the_overage_above(do, v1, pricing):
    publish_plans(pricing)
    do()
    found = price(v1, "tk:metered-standard:1:llm_tokens")
    assert (found.recurring.usage_type, found.billing_scheme, found.tiers_mode) == ("metered", "tiered", "graduated")
    tiers = [(tier.up_to, Decimal(tier.unit_amount_decimal)) for tier in found.tiers]
    assert tiers == [(1_000_000, Decimal(0)), (None, Decimal("0.002"))]  # $20 a million
    seats = price(v1, "tk:metered-standard:1:user_seats")
    assert [(tier.up_to, Decimal(tier.unit_amount_decimal)) for tier in seats.tiers] == [(25, 0), (None, 1500)]
    meters = {meter.event_name: meter for meter in v1.billing.meters.list().data}
    assert found.recurring.meter == meters["tollkeeper_llm_tokens"].id
    assert meters["tollkeeper_llm_tokens"].default_aggregation.formula == "sum"
    # Quotas are for a month: what is metered is not sold by the year.
    assert v1.prices.list({"lookup_keys": ["tk:metered-standard:1:year"]}).data == []


def test_dry_run_says_what_it_would_do_and_does_nothing(do, v1):
    lines = do(dry_run=True)
    assert "would create product tk_starter" in lines
    assert "would create price tk:starter:1:year ($193.80 by the year)" in lines
    assert catalogue(v1) == [[], [], []]
    assert [f"would {line}" for line in do()] == lines


def test_second_run_changes_nothing(do, v1, pricing):
    publish_plans(pricing)
    assert do()
    before = catalogue(v1)
    assert do() == []
    assert catalogue(v1) == before


def test_changed_plan_brings_a_new_price_and_leaves_the_old(do, v1, pricing):
    do()
    old = price(v1, "tk:starter:1:month")
    pricing.publish("starter", display_name="Starter", price_nanos=25 * USD, annual_discount_basis_points=1500)
    assert do() == [
        "create price tk:starter:2:month ($25.00 by the month)", "create price tk:starter:2:year ($255.00 by the year)"
    ]  # fmt: skip
    assert price(v1, "tk:starter:1:month").to_dict() == old.to_dict()
    assert price(v1, "tk:starter:2:month").unit_amount == 2500


def test_plan_not_sold_any_more_is_left_as_it_is(do, v1, pricing):
    do()
    before = catalogue(v1)
    pricing.publish("starter", price_nanos=19 * USD, retired=True)
    assert do() == []
    assert catalogue(v1) == before


def test_name_of_a_plan_follows(do, v1, pricing):
    do()
    pricing.publish("starter", display_name="Beginner", price_nanos=19 * USD)
    assert "update product tk_starter" in do()
    assert v1.products.retrieve("tk_starter").name == "Beginner"


def test_product_of_somebody_else_is_never_edited(do, v1):
    v1.products.create({"id": "tk_starter", "name": "Not ours"})
    before = catalogue(v1)
    with pytest.raises(CatalogueError, match="product tk_starter is there and was not made by this command"):
        do()
    assert catalogue(v1) == before


@pytest.mark.parametrize("active", [True, False])
def test_price_of_somebody_else_keeps_its_lookup_key(do, v1, active):
    product = v1.products.create({"name": "Not ours"})
    made = v1.prices.create(
        {"product": product.id, "currency": "usd", "unit_amount": 5, "lookup_key": "tk:starter:1:month"}
    )
    v1.prices.update(made.id, {"active": active})
    before = catalogue(v1)
    with pytest.raises(CatalogueError, match=r"tk:starter:1:month and was not made by this command"):
        do()
    assert catalogue(v1) == before


def test_what_is_not_ours_and_not_in_the_way_is_left_alone(do, v1):
    product = v1.products.create({"name": "Not ours"})
    made = v1.prices.create({"product": product.id, "currency": "usd", "unit_amount": 5, "lookup_key": "mugs"})
    do()
    assert v1.products.retrieve(product.id).to_dict() == product.to_dict()
    assert v1.prices.retrieve(made.id).to_dict() == made.to_dict()


def test_price_that_somebody_archived_is_sold_again(do, v1):
    do()
    v1.prices.update(price(v1, "tk:starter:1:month").id, {"active": False})
    assert do() == ["activate price tk:starter:1:month"]
    assert (price(v1, "tk:starter:1:month").active, do()) == (True, [])


def test_price_of_another_amount_is_replaced(do, v1):
    product = v1.products.create({"id": "tk_starter", "name": "Starter", "metadata": {"managed_by": "tollkeeper"}})
    wrong = v1.prices.create(
        {
            "product": product.id, "currency": "usd", "unit_amount": 100, "recurring": {"interval": "month"},
            "lookup_key": "tk:starter:1:month", "metadata": {"managed_by": "tollkeeper"},
        }
    )  # fmt: skip
    assert f"archive price {wrong.id}" in do()
    assert price(v1, "tk:starter:1:month").unit_amount == 1900
    assert not v1.prices.retrieve(wrong.id).active
    assert do() == []


def test_meter_that_adds_up_otherwise_stops_it(do, v1, pricing):
    publish_plans(pricing)
    v1.billing.meters.create(
        {"display_name": "x", "event_name": "tollkeeper_llm_tokens", "default_aggregation": {"formula": "count"}}
    )
    with pytest.raises(CatalogueError, match="adds up by count, not by sum"):
        do()
    assert catalogue(v1)[:2] == [[], []]


@pytest.mark.parametrize("price_nanos", [USD // 1000, 19 * USD + 1])
def test_price_that_is_not_whole_cents_is_refused_and_nothing_is_made(do, v1, pricing, price_nanos):
    pricing.publish("odd", price_nanos=price_nanos)
    with pytest.raises(CatalogueError, match=f"plan odd by the month: {price_nanos} nanos are not whole cents"):
        do()
    assert catalogue(v1) == [[], [], []]


def test_year_whose_discount_leaves_parts_of_a_cent_is_charged_in_whole_ones(do, v1, pricing):
    pricing.publish("odd", price_nanos=2999 * USD // 100, annual_discount_basis_points=1500)  # $305.898
    do()
    (year,) = v1.prices.list({"lookup_keys": ["tk:odd:1:year"]}).data
    assert year.unit_amount == 30_590
    assert do() == []


def test_run_that_breaks_off_is_finished_by_the_next(do, v1, stripe_sandbox, pricing):
    publish_plans(pricing)
    stripe_sandbox.fault("cut", "/v1/prices", count=3)
    with pytest.raises(Exception, match="Stripe cannot be reached now"):
        do()
    assert do()
    assert do() == []
    keys = [one["lookup_key"] for one in catalogue(v1)[1]]
    assert len(keys) == len(set(keys))


# As a command


@pytest.fixture
def command(capsys, monkeypatch):
    """`command(settings, …)`: the command in this process; `returncode`, `stdout`, `stderr`."""
    return partial(run_here, capsys, monkeypatch)


def test_command_sets_up_and_says_when_nothing_is_left_to_do(settings, stripe_sandbox):
    told = settings(**stripe_sandbox.settings())
    dry = run(told, "setup-stripe", "--dry-run")
    assert (dry.returncode, dry.stdout.splitlines()[-1]) == (0, "3 to be done")
    done = run(told, "setup-stripe")
    assert (done.returncode, done.stdout.splitlines()[-1]) == (0, "3 done")
    again = run(told, "setup-stripe")
    assert (again.returncode, again.stdout) == (0, "0 done; Stripe holds what it should\n")


@pytest.mark.parametrize("dry_run", [["--dry-run"], []], ids=["dry-run", "apply"])
def test_command_with_a_wrong_key_says_so_at_once_and_fails(command, settings, stripe_sandbox, pricing, dry_run):
    refused = command(settings(**stripe_sandbox.settings(stripe_api_key="sk_test_wrong")), "setup-stripe", *dry_run)
    assert refused.returncode == 1
    assert "Stripe does not accept the key" in refused.stderr
    assert "TOLLKEEPER_SUBSCRIPTIONS_STRIPE_API_KEY" in refused.stderr
    assert "sk_test_wrong" not in refused.stdout + refused.stderr
    assert "Traceback" not in refused.stderr
    assert pricing.calls == []


def test_command_without_a_key_says_so_and_fails(command, settings):
    refused = command(settings(), "setup-stripe")
    assert refused.returncode == 1
    assert "there is no key of Stripe's" in refused.stderr


def test_command_says_which_plan_stripe_cannot_charge_for(command, settings, stripe_sandbox, pricing):
    pricing.publish("odd", price_nanos=1)
    refused = command(settings(**stripe_sandbox.settings()), "setup-stripe")
    assert (refused.returncode, "plan odd by the month" in refused.stderr) == (1, True)
    assert "Traceback" not in refused.stderr


def test_command_says_that_stripe_or_pricing_is_away(command, settings, stripe_sandbox, pricing):
    pricing.down = True
    refused = command(settings(**stripe_sandbox.settings()), "setup-stripe")
    assert (refused.returncode, "pricing did not answer" in refused.stderr) == (1, True)
    stripe_sandbox.outage(60)
    refused = command(settings(**stripe_sandbox.settings()), "setup-stripe")
    assert (refused.returncode, "Stripe cannot be reached now" in refused.stderr) == (1, True)


def test_key_is_taken_with_the_line_end_that_a_file_gives_it(parts, stripe_sandbox):
    told = stripe_sandbox.settings()
    parts(**told | {"stripe_api_key": told["stripe_api_key"] + "\n"}).stripe.check()
    with pytest.raises(stripe.AuthenticationError):
        stripe_sandbox.client(key="sk_test_other").v1.products.list()
