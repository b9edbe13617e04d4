"""Owns the proof that plans and quotes over gRPC are the product's, and that bad requests name their fields."""

import grpc
import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from tollkeeper.pricing.v1 import plan_service_pb2 as pb

USD = 1_000_000_000


@pytest.fixture
def admin(pricing, client):
    return client(pricing.server, "ADMIN")


def fields(error):
    return [violation.field for violation in error.violations]


def test_anyone_may_read_a_plan(pricing, serve, client):
    with grpc.insecure_channel(pricing.server.address) as channel:
        stub = type(pricing.plans)(channel)
        plan = stub.GetPlan(pb.GetPlanRequest(plan_id="professional"))
    assert (plan.version, plan.price_nanos, plan.credit_nanos) == (1, 99 * USD, 19_800_000_000)
    assert list(plan.providers) == ["openai", "anthropic", "google"]
    assert plan.HasField("created_at")


@pytest.mark.parametrize(("plan_id", "version"), [("gold", 0), ("free", 2), ("Free", 0)])
def test_unknown_plan_or_version_is_refused(pricing, refused, plan_id, version):
    error = refused(pricing.plans.GetPlan, pb.GetPlanRequest(plan_id=plan_id, version=version))
    assert (error.code, error.reason) == (grpc.StatusCode.NOT_FOUND, "PLAN_NOT_FOUND")


def test_metered_plan_carries_its_quotas(pricing):
    plan = pricing.plans.GetPlan(pb.GetPlanRequest(plan_id="metered-standard", version=1))
    assert [(m.metric, m.included, m.overage_nanos_per_million, m.cap) for m in plan.metrics] == [
        ("llm_tokens", 1_000_000, 20 * USD, "soft"),
        ("api_calls", 100_000, 1_000 * USD, "soft"),
        ("agent_executions", 5_000, 100_000 * USD, "soft"),
        ("storage_gb", 100, 500_000 * USD, "soft"),
        ("user_seats", 25, 15_000_000 * USD, "soft"),
    ]


def test_plans_are_listed_by_kind_and_price_in_pages(admin):
    found, token = [], ""
    while True:
        page = admin.plans.ListPlans(pb.ListPlansRequest(page_size=3, page_token=token))
        found += [plan.plan_id for plan in page.plans]
        token = page.next_page_token
        if not token:
            break
    assert found == [
        *("metered-free", "metered-standard", "metered-enterprise", "payg"),
        *("free", "starter", "professional", "enterprise"),
    ]
    prepaid = admin.plans.ListPlans(pb.ListPlansRequest(kind="prepaid"))
    assert [plan.plan_id for plan in prepaid.plans] == ["payg"]


def test_bad_listing_is_refused(admin, refused):
    assert fields(refused(admin.plans.ListPlans, pb.ListPlansRequest(kind="gold", page_size=-1))) == [
        "kind",
        "page_size",
    ]
    token = admin.plans.ListPlans(pb.ListPlansRequest(page_size=1)).next_page_token
    error = refused(admin.plans.ListPlans, pb.ListPlansRequest(kind="metered", page_token=token))
    assert fields(error) == ["page_token"]


def test_tiers_are_worked_out_from_price_or_budget(admin):
    templates = [
        pb.TierTemplate(plan_id="a", price_nanos=99 * USD),
        pb.TierTemplate(plan_id="b", api_budget_nanos=19_800_000_000),
        pb.TierTemplate(plan_id="c"),
    ]
    by_price, by_budget, free = admin.plans.GenerateTiers(pb.GenerateTiersRequest(templates=templates)).tiers
    assert by_price.credits == by_budget.credits == 1_980
    assert by_price.stripe_fee_nanos == 3_171_000_000
    assert by_price.net_profit_nanos == 76_029_000_000
    assert by_price.annual_price_nanos == 1_009_800_000_000
    assert by_budget.price_nanos == 99 * USD
    assert (free.price_nanos, free.stripe_fee_nanos) == (0, 0)
    half = pb.GenerateTiersRequest(margin_basis_points=5_000, templates=templates[:1])
    assert admin.plans.GenerateTiers(half).tiers[0].credits == 4_950
    none = pb.GenerateTiersRequest(margin_basis_points=0, templates=templates[:1])
    assert admin.plans.GenerateTiers(none).tiers[0].credits == 9_900


@pytest.mark.parametrize(
    ("template", "margin", "field"),
    [
        (pb.TierTemplate(price_nanos=1, api_budget_nanos=1), 8000, "templates[0]"),
        (pb.TierTemplate(price_nanos=-1), 8000, "templates[0].price_nanos"),
        (pb.TierTemplate(price_nanos=1), 8000, "templates[0].price_nanos"),
        (pb.TierTemplate(api_budget_nanos=2**63 - 1), 8000, "templates[0].api_budget_nanos"),
        (pb.TierTemplate(api_budget_nanos=10**17), 9999, "templates[0].api_budget_nanos"),
        (pb.TierTemplate(price_nanos=USD), 10_000, "margin_basis_points"),
        (pb.TierTemplate(price_nanos=USD), -1, "margin_basis_points"),
        (None, 8000, "templates"),
    ],
)
def test_bad_tier_is_refused_by_field(admin, refused, template, margin, field):
    request = pb.GenerateTiersRequest(margin_basis_points=margin, templates=[template] if template else [])
    assert fields(refused(admin.plans.GenerateTiers, request)) == [field]


def test_user_price_of_a_cost(admin, refused):
    quote = admin.plans.QuoteUserPrice
    assert quote(pb.QuoteUserPriceRequest(cost_nanos=5 * USD)).price_nanos == 25 * USD
    assert quote(pb.QuoteUserPriceRequest(cost_nanos=5 * USD, margin_basis_points=0)).price_nanos == 5 * USD
    assert fields(refused(quote, pb.QuoteUserPriceRequest(cost_nanos=-1))) == ["cost_nanos"]
    assert fields(refused(quote, pb.QuoteUserPriceRequest(cost_nanos=2**62))) == ["cost_nanos"]
    assert fields(refused(quote, pb.QuoteUserPriceRequest(margin_basis_points=10_000))) == ["margin_basis_points"]


def test_overage_of_a_plan(pricing, refused):
    quote = pricing.plans.QuoteOverage
    found = quote(pb.QuoteOverageRequest(plan_id="professional", used={"llm_tokens": 6_000_000}))
    assert (found.lines[0].overage, found.total_nanos) == (1_000_000, USD)
    metered = quote(pb.QuoteOverageRequest(plan_id="metered-standard", used={"user_seats": 26, "storage_gb": 102}))
    assert metered.total_nanos == 16 * USD
    error = refused(quote, pb.QuoteOverageRequest(plan_id="free", used={"tokens": 1, "llm_tokens": -1}))
    assert fields(error) == ["used[llm_tokens]", "used[tokens]"]
    assert refused(quote, pb.QuoteOverageRequest(plan_id="none")).reason == "PLAN_NOT_FOUND"
    error = refused(quote, pb.QuoteOverageRequest(plan_id="metered-standard", used={"user_seats": 2**62}))
    assert fields(error) == ["used"]


def test_recommendation_projects_to_the_cycles_end(pricing):
    start, end = Timestamp(seconds=1_793_491_200), Timestamp(seconds=1_796_083_200)  # thirty days
    request = pb.RecommendPlanRequest(
        plan_id="starter",
        spend_nanos=6 * USD,
        tokens=1_000_000,
        requests=300,
        cycle_start=start,
        cycle_end=end,
        at=Timestamp(seconds=start.seconds + 10 * 86_400),
    )
    found = pricing.plans.RecommendPlan(request)
    assert (found.projected_spend_nanos, found.projected_tokens, found.projected_requests) == (18 * USD, 3_000_000, 900)
    assert (found.plan.plan_id, found.covers) == ("professional", True)
    request.spend_nanos += 1
    assert pricing.plans.RecommendPlan(request).plan.plan_id == "enterprise"
    request.tokens = 10**9
    found = pricing.plans.RecommendPlan(request)
    assert (found.plan.plan_id, found.covers) == ("enterprise", False)


def test_bad_recommendation_is_refused_by_field(pricing, refused):
    recommend, start = pricing.plans.RecommendPlan, Timestamp(seconds=1_793_491_200)
    assert fields(refused(recommend, pb.RecommendPlanRequest())) == ["cycle_start", "cycle_end"]
    error = refused(recommend, pb.RecommendPlanRequest(cycle_start=start, cycle_end=start))
    assert fields(error) == ["cycle_end"]
    later = Timestamp(seconds=start.seconds + 86_400)
    soon = Timestamp(seconds=start.seconds + 1)
    error = refused(
        recommend,
        pb.RecommendPlanRequest(spend_nanos=2**62, tokens=-1, cycle_start=start, cycle_end=later, at=soon),
    )
    assert fields(error) == ["tokens"]
    error = refused(recommend, pb.RecommendPlanRequest(spend_nanos=2**62, cycle_start=start, cycle_end=later, at=soon))
    assert fields(error) == ["spend_nanos"]
    known = pb.RecommendPlanRequest(plan_id="gold", cycle_start=start, cycle_end=later)
    assert refused(recommend, known).reason == "PLAN_NOT_FOUND"
