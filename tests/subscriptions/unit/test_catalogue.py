from dataclasses import replace

import pytest

from services.subscriptions.clients import PlanCatalogue
from services.subscriptions.errors import PlanNotFound
from services.subscriptions.model.plan import Plan


class Pricing:
    """Counts how often it is asked."""

    def __init__(self, plan):
        self.plans = {1: plan}
        self.asked = 0

    def plan(self, plan_id, version=0):
        self.asked += 1
        if plan_id != "starter":
            raise PlanNotFound("no", plan=plan_id)
        return self.plans[version or max(self.plans)]

    def plans_on_sale(self):
        self.asked += 1
        return (self.plans[max(self.plans)],)


@pytest.fixture
def pricing(plan):
    return Pricing(plan)


@pytest.fixture
def plan():
    numbers = dict.fromkeys(
        ("price_nanos", "annual_discount_basis_points", "promotional_grant_nanos", "credit_nanos", "tokens_per_cycle",
         "requests_per_cycle", "max_tokens_per_request", "requests_per_minute", "tokens_per_minute",
         "multiplier_millionths", "overage_nanos_per_million_tokens", "rollover_cap_nanos", "warn_percent"), 0,
    )  # fmt: skip
    return Plan(
        plan_id="starter", version=1, display_name="", kind="prepaid", providers=(), models=(), metrics=(),
        retired=False, **numbers,
    )  # fmt: skip


def test_newest_plan_is_asked_for_again_when_it_is_no_longer_fresh(pricing, plan):
    now = [0.0]
    plans = PlanCatalogue(pricing, fresh_seconds=30, clock=lambda: now[0])
    assert plans.newest("starter").version == plans.newest("starter").version == 1
    pricing.plans[2] = replace(plan, version=2)
    now[0] = 29.9
    assert (plans.newest("starter").version, pricing.asked) == (1, 1)
    now[0] = 30
    assert (plans.newest("starter").version, pricing.asked) == (2, 2)
    assert plans.on_sale() == plans.on_sale()
    assert pricing.asked == 3


def test_version_is_asked_for_once(pricing):
    plans = PlanCatalogue(pricing, fresh_seconds=0)
    assert [plans.version("starter", 1).version for _ in range(3)] == [1, 1, 1]
    assert pricing.asked == 1


def test_unknown_plan_is_not_remembered_as_unknown(pricing):
    plans = PlanCatalogue(pricing, fresh_seconds=30)
    for _ in range(2):
        with pytest.raises(PlanNotFound):
            plans.newest("gold")
    assert pricing.asked == 2
