"""Owns the proof that plans are versioned: accounts keep theirs, old ones stay readable, each change is made once."""

import queue
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest
from google.protobuf.field_mask_pb2 import FieldMask
from tollkeeper.pricing.v1 import plan_service_pb2 as pb
from tollkeeper.pricing.v1 import pricing_service_pb2 as prices_pb
from tollkeeper.pricing.v1.resources_pb2 import Plan, PlanMetric

USD = 1_000_000_000


@pytest.fixture
def admin(pricing, client):
    return client(pricing.server, "ADMIN")


def plan(plan_id="team", **fields):
    defaults = {
        "display_name": "Team",
        "kind": "subscription",
        "price_nanos": 49 * USD,
        "margin_basis_points": 8000,
        "multiplier_millionths": 1_000_000,
        "providers": ["openai"],
        "models": ["gpt-4o"],
        "warn_percent": 80,
    }
    return Plan(plan_id=plan_id, **defaults | fields)


def creating(request_id="c1", reason="", **fields):
    return pb.CreatePlanRequest(plan=plan(**fields), request_id=request_id, reason=reason)


def updating(*paths, request_id="u1", plan_id="team", reason="", **fields):
    mask = FieldMask(paths=paths) if paths else None
    return pb.UpdatePlanRequest(
        plan=Plan(plan_id=plan_id, **fields), update_mask=mask, request_id=request_id, reason=reason
    )


def read(pricing, plan_id="team", version=0):
    return pricing.plans.GetPlan(pb.GetPlanRequest(plan_id=plan_id, version=version))


def test_plan_is_made_and_sold(pricing, admin):
    made = admin.plans.CreatePlan(creating(version=7, credit_nanos=1, retired=True))
    assert (made.version, made.credit_nanos, made.retired) == (1, 9_800_000_000, False)
    assert made.HasField("created_at")
    assert read(pricing) == made
    assert "team" in [one.plan_id for one in admin.plans.ListPlans(pb.ListPlansRequest()).plans]


def test_change_makes_a_version_and_leaves_the_old_one(pricing, admin):
    first = admin.plans.CreatePlan(creating(reason="new market"))
    second = admin.plans.UpdatePlan(updating("price_nanos", price_nanos=59 * USD, reason="dearer"))
    assert (second.version, second.price_nanos, second.display_name) == (2, 59 * USD, "Team")
    assert (read(pricing), read(pricing, version=1), read(pricing, version=2)) == (second, first, second)
    found = admin.plans.ListPlanVersions(pb.ListPlanVersionsRequest(plan_id="team"))
    assert list(found.plans) == [second, first]
    assert [(one.author, one.reason) for one in found.authorship] == [
        ("the-admin", "dearer"),
        ("the-admin", "new market"),
    ]


def test_shipped_plan_can_be_changed(pricing, admin):
    admin.plans.UpdatePlan(updating("price_nanos", plan_id="professional", price_nanos=119 * USD))
    assert (read(pricing, "professional").price_nanos, read(pricing, "professional", 1).price_nanos) == (
        119 * USD,
        99 * USD,
    )
    quote = pb.QuoteOverageRequest(plan_id="professional", plan_version=1, used={"llm_tokens": 6_000_000})
    assert pricing.plans.QuoteOverage(quote).total_nanos == USD


def test_without_a_mask_what_is_set_changes(pricing, admin):
    admin.plans.CreatePlan(creating(requests_per_minute=60))
    changed = admin.plans.UpdatePlan(updating(price_nanos=59 * USD, models=["*"]))
    assert (changed.price_nanos, list(changed.models), changed.requests_per_minute) == (59 * USD, ["*"], 60)


def test_mask_can_set_a_field_to_nothing(pricing, admin):
    admin.plans.CreatePlan(creating(requests_per_minute=60))
    assert admin.plans.UpdatePlan(updating("requests_per_minute")).requests_per_minute == 0


def test_star_changes_all(pricing, admin):
    admin.plans.CreatePlan(creating(requests_per_minute=60))
    request = updating("*")
    request.plan.CopyFrom(plan(display_name="Teams"))
    changed = admin.plans.UpdatePlan(request)
    assert (changed.display_name, changed.requests_per_minute) == ("Teams", 0)


def test_change_of_nothing_makes_no_version(pricing, admin):
    admin.plans.CreatePlan(creating())
    same = admin.plans.UpdatePlan(updating("price_nanos", price_nanos=49 * USD))
    assert same.version == 1
    again = updating("price_nanos", price_nanos=59 * USD, request_id="")
    assert [admin.plans.UpdatePlan(again).version for _ in range(2)] == [2, 2]


def test_retired_plan_is_not_sold_and_stays_readable(pricing, admin, refused):
    admin.plans.CreatePlan(creating())
    gone = admin.plans.RetirePlan(pb.RetirePlanRequest(plan_id="team", request_id="x1", reason="merged"))
    assert (gone.version, gone.retired) == (2, True)
    assert "team" not in [one.plan_id for one in admin.plans.ListPlans(pb.ListPlansRequest()).plans]
    everything = admin.plans.ListPlans(pb.ListPlansRequest(include_retired=True)).plans
    assert gone in everything
    kept = read(pricing, version=1)
    assert (kept.retired, kept.credit_nanos) == (False, 9_800_000_000)
    assert refused(admin.plans.CreatePlan, creating("c2")).reason == "PLAN_EXISTS"
    assert admin.plans.UpdatePlan(updating("retired")).retired is False
    assert "team" in [one.plan_id for one in admin.plans.ListPlans(pb.ListPlansRequest()).plans]


def test_repeats_make_one_version_each(pricing, admin):
    requests = [
        (admin.plans.CreatePlan, creating()),
        (admin.plans.UpdatePlan, updating(price_nanos=59 * USD)),
        (admin.plans.RetirePlan, pb.RetirePlanRequest(plan_id="team", request_id="x1")),
    ]
    first = [call(request) for call, request in requests]
    for (call, request), answer in zip(requests, first, strict=True):
        again, made = call.with_call(request)
        assert again == answer
        assert dict(made.trailing_metadata())["idempotency-replayed"] == "true"
    assert [one.version for one in first] == [1, 2, 3]
    assert read(pricing).version == 3


def test_other_body_with_the_same_key_is_refused(admin, refused):
    admin.plans.CreatePlan(creating())
    for call, request in (
        (admin.plans.CreatePlan, creating(price_nanos=USD)),
        (admin.plans.UpdatePlan, updating(price_nanos=USD, request_id="c1")),
        (admin.plans.RetirePlan, pb.RetirePlanRequest(plan_id="team", request_id="c1")),
    ):
        error = refused(call, request)
        assert (error.code, error.reason) == (grpc.StatusCode.ALREADY_EXISTS, "IDEMPOTENCY_CONFLICT")


def test_plan_that_exists_is_not_made_again(admin, refused):
    error = refused(admin.plans.CreatePlan, creating(plan_id="free"))
    assert (error.code, error.reason) == (grpc.StatusCode.ALREADY_EXISTS, "PLAN_EXISTS")


def test_unknown_plan_is_not_changed_retired_or_listed(admin, refused):
    for call, request in (
        (admin.plans.UpdatePlan, updating(price_nanos=1)),
        (admin.plans.RetirePlan, pb.RetirePlanRequest(plan_id="team", request_id="x1")),
        (admin.plans.ListPlanVersions, pb.ListPlanVersionsRequest(plan_id="team")),
    ):
        assert refused(call, request).reason == "PLAN_NOT_FOUND"


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"plan_id": "Team!"}, {"plan.plan_id"}),
        ({"display_name": ""}, {"plan.display_name"}),
        ({"display_name": "a\x00b"}, {"plan.display_name"}),
        ({"kind": "gold", "price_nanos": -1}, {"plan.kind", "plan.price_nanos"}),
        ({"price_nanos": 49 * USD + 1}, {"plan.price_nanos"}),
        ({"margin_basis_points": 10_000}, {"plan.margin_basis_points"}),
        ({"multiplier_millionths": 0}, {"plan.multiplier_millionths"}),
        ({"warn_percent": 0}, {"plan.warn_percent"}),
        ({"providers": []}, {"plan.providers"}),
        ({"models": ["*", "gpt-4o"]}, {"plan.models"}),
        ({"models": ["a\x00"]}, {"plan.models"}),
        ({"models": [str(n) for n in range(1001)]}, {"plan.models"}),
        ({"kind": "metered"}, {"plan.metrics"}),
        ({"metrics": [PlanMetric(metric="llm_tokens", cap="hard")]}, {"plan.metrics"}),
        (
            {
                "kind": "metered",
                "metrics": [PlanMetric(metric="tokens", cap="none", included=-1)] * 2,
            },
            {
                *("plan.metrics[0].metric", "plan.metrics[0].cap", "plan.metrics[0].included"),
                *("plan.metrics[1].metric", "plan.metrics[1].cap", "plan.metrics[1].included"),
            },
        ),
        ({"kind": "metered", "metrics": [PlanMetric(metric="llm_tokens", cap="hard")] * 1000}, {"plan.metrics"}),
        (
            {"kind": "metered", "metrics": [PlanMetric(metric="api_calls", cap="soft", overage_nanos_per_million=333)]},
            {"plan.metrics[0].overage_nanos_per_million"},
        ),
    ],
)
def test_bad_plan_is_refused_by_field_and_not_made(admin, refused, fields, named):
    error = refused(admin.plans.CreatePlan, creating(**fields))
    assert error.code is grpc.StatusCode.INVALID_ARGUMENT
    assert {violation.field for violation in error.violations} == named
    assert "team" not in [one.plan_id for one in admin.plans.ListPlans(pb.ListPlansRequest()).plans]


@pytest.mark.parametrize(
    ("request_", "named"),
    [
        (updating("price_nanos", price_nanos=-1), {"plan.price_nanos"}),
        (updating("kind", kind="prepaid"), {"plan.kind"}),
        (updating("version", "nonsense", version=3), {"update_mask.paths"}),
        (updating(), {"update_mask.paths"}),
        (updating("price_nanos", plan_id=""), {"plan.plan_id"}),
        (updating("price_nanos", reason="x" * 501), {"reason"}),
        (pb.UpdatePlanRequest(request_id="u1"), {"plan", "plan.plan_id", "update_mask.paths"}),
    ],
)
def test_bad_change_is_refused_by_field_and_not_made(pricing, admin, refused, request_, named):
    admin.plans.CreatePlan(creating())
    error = refused(admin.plans.UpdatePlan, request_)
    assert error.code is grpc.StatusCode.INVALID_ARGUMENT
    assert {violation.field for violation in error.violations} == named
    assert read(pricing).version == 1


def test_change_to_nothing_but_zero_is_told_how_to_say_so(admin, refused):
    admin.plans.CreatePlan(creating(tokens_per_cycle=5))
    assert "must name what is to become 0" in refused(admin.plans.UpdatePlan, updating(tokens_per_cycle=0)).message
    assert admin.plans.UpdatePlan(updating("tokens_per_cycle")).tokens_per_cycle == 0


def test_only_operators_change_plans(pricing, client, refused):
    customer = client(pricing.server, "ACCOUNT", "acme").plans
    for call, request in (
        (customer.CreatePlan, creating()),
        (customer.UpdatePlan, updating(price_nanos=1)),
        (customer.RetirePlan, pb.RetirePlanRequest(plan_id="free", request_id="x1")),
        (customer.ListPlanVersions, pb.ListPlanVersionsRequest(plan_id="free")),
    ):
        assert refused(call, request).code is grpc.StatusCode.PERMISSION_DENIED


def test_versions_are_listed_in_pages(admin):
    admin.plans.CreatePlan(creating())
    for number in range(4):
        admin.plans.UpdatePlan(updating(price_nanos=(number + 1) * USD, request_id=f"u{number}"))
    found, token = [], ""
    while True:
        page = admin.plans.ListPlanVersions(pb.ListPlanVersionsRequest(plan_id="team", page_size=2, page_token=token))
        found += [one.version for one in page.plans]
        assert len(page.plans) == len(page.authorship)
        token = page.next_page_token
        if not token:
            break
    assert found == [5, 4, 3, 2, 1]


def test_changes_at_once_take_turns(pricing, admin):
    admin.plans.CreatePlan(creating())

    def send(number):
        return admin.plans.UpdatePlan(updating(price_nanos=(number + 1) * USD, request_id=f"u{number}")).version

    with ThreadPoolExecutor(8) as pool:
        versions = list(pool.map(send, range(8)))
    assert sorted(versions) == list(range(2, 10))
    assert read(pricing).price_nanos == (versions.index(9) + 1) * USD


def test_watch_tells_of_a_plans_change_within_a_second(serve, settings, client):
    with serve(settings) as one, serve(settings) as other:
        call, came = client(other).prices.WatchCatalogue(prices_pb.WatchCatalogueRequest()), queue.Queue()

        def follow():
            try:
                for change in call:
                    came.put(change)
            except grpc.RpcError:
                pass  # cancelled

        thread = threading.Thread(target=follow, daemon=True)
        thread.start()
        try:
            assert len(came.get(timeout=5).plans) == 8
            admin = client(one, "ADMIN").plans
            for send, request in (
                (admin.CreatePlan, creating()),
                (admin.UpdatePlan, updating(price_nanos=59 * USD)),
                (admin.RetirePlan, pb.RetirePlanRequest(plan_id="team", request_id="x1")),
            ):
                started = time.monotonic()
                made = send(request)
                change = came.get(timeout=5)
                assert time.monotonic() - started < 1
                assert list(change.plans) == [made]
                assert (change.version, change.complete, len(change.prices)) == (1, True, 0)
        finally:
            call.cancel()
            thread.join(5)
