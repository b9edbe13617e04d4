from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime

import grpc
import pytest
from subscriptions_peers import USD
from tollkeeper.subscriptions.v1 import operator_service_pb2 as pb

from services.kit.identity import Role


def create(account_id="acme", **fields):
    return pb.CreateAccountRequest(account_id=account_id, **fields)


def move(plan, request_id="move-1", account_id="acme"):
    return pb.SetAccountPlanRequest(account_id=account_id, plan=plan, request_id=request_id)


def fields_of(refusal):
    return {violation.field for violation in refusal.violations}


def test_account_on_the_free_plan_has_limits_credit_and_entitlement(operator, ledger, proxy):
    account = operator(operator.customers.CreateAccount, create(display_name="Acme", email="ops@acme.example"))
    assert (account.plan, account.plan_version, account.status, account.provisioned) == ("free", 1, "active", True)
    assert account.created_at == account.cycle_start
    book = ledger.books["acme"]
    assert book["anchor"] == account.created_at.ToDatetime(tzinfo=UTC)
    assert {k: (x.amount, x.mode, x.warn_percent) for k, x in book["limits"].items()} == {
        "plan::tokens:cycle": (50_000, "hard", 80),
        "plan::requests:cycle": (100, "hard", 80),
    }
    (grant,) = book["grants"]
    assert (grant.amount_nanos, grant.source, grant.expires_at) == (5 * USD, "promotion", account.cycle_end)
    entitlement = proxy.entitlements["acme"]
    assert (entitlement.plan_id, entitlement.active) == ("free", True)
    assert (list(entitlement.providers), list(entitlement.models)) == (["openai"], ["gpt-3.5-turbo"])
    assert (entitlement.max_tokens_per_request, entitlement.requests_per_minute) == (1000, 10)
    assert entitlement.multiplier_millionths == 1_000_000


def test_account_is_opened_and_limited_before_it_is_funded_and_funded_before_it_may_call(operator, ledger, proxy):
    operator(operator.customers.CreateAccount, create())
    order = [what for _, what in ledger.applied]
    revision = proxy.entitlements["acme"].revision
    assert order[:3] == ["open", f"plan-limit:{revision}:tokens", f"plan-limit:{revision}:requests"]
    assert order[3].startswith("promo:")
    assert len(order) == 4


def test_paid_and_prepaid_plans_give_no_credit_before_payment(operator, ledger, proxy):
    operator(operator.customers.CreateAccount, create("a", plan="starter"))
    operator(operator.customers.CreateAccount, create("b", plan="payg"))
    assert ledger.books["a"]["grants"] == ledger.books["b"]["grants"] == []
    assert ledger.books["b"]["limits"] == {}
    assert proxy.entitlements["b"].multiplier_millionths == 1_500_000


def test_peers_are_called_with_the_service_token_and_the_callers_request_id(operator, ledger):
    metadata = (*operator.metadata, ("x-request-id", "req-42"))
    operator.customers.CreateAccount(create(), metadata=metadata, timeout=20)
    assert ledger.metadata[0]["authorization"].startswith("Bearer ")
    assert ledger.metadata[0]["x-request-id"] == "req-42"


def test_same_words_again_give_the_same_account_and_change_nothing(operator, ledger, proxy):
    first = operator(operator.customers.CreateAccount, create(plan="free"))
    calls = len(ledger.calls), len(proxy.calls)
    again = operator(operator.customers.CreateAccount, create(request_id="another"))
    assert again == first
    assert (len(ledger.calls), len(proxy.calls)) == calls
    assert operator.trailing(operator.customers.CreateAccount, create())["idempotency-replayed"] == "true"


@pytest.mark.parametrize("other", [{"display_name": "Other"}, {"email": "a@b"}, {"plan": "payg"}])
def test_other_words_for_a_taken_account_id_are_refused(operator, database, other):
    operator(operator.customers.CreateAccount, create())
    before = database.rows("SELECT * FROM accounts")
    refusal = operator.refused(operator.customers.CreateAccount, create(**other))
    assert (refusal.code, refusal.reason) == (grpc.StatusCode.ALREADY_EXISTS, "ACCOUNT_EXISTS")
    assert database.rows("SELECT * FROM accounts") == before


def test_account_moved_since_is_still_the_same_to_a_repeat(operator):
    operator(operator.customers.CreateAccount, create())
    operator(operator.customers.SetAccountPlan, move("payg"))
    assert operator(operator.customers.CreateAccount, create()).plan == "payg"


def test_same_request_from_sixteen_clients_at_once_creates_one_account(operator, ledger, database):
    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda _: operator(operator.customers.CreateAccount, create()), range(16)))
    assert len({(a.created_at.ToNanoseconds(), a.provisioned) for a in answers}) == 1
    assert len(ledger.books["acme"]["grants"]) == 1
    assert database.rows("SELECT count(*), max(attempts) FROM outbox") == [(4, 1)]


BAD = {
    "no id": ({"account_id": ""}, {"account_id"}),
    "a space": ({"account_id": "a b"}, {"account_id"}),
    "10 000 characters": ({"account_id": "a" * 10_000}, {"account_id"}),
    "injection": ({"account_id": "a'; DROP TABLE accounts; --"}, {"account_id"}),
    "long name": ({"display_name": "n" * 201}, {"display_name"}),
    "control character": ({"display_name": "a\x00b"}, {"display_name"}),
    "e-mail without @": ({"email": "acme.example"}, {"email"}),
    "e-mail in two lines": ({"email": "a@b\r\nBcc: c@d"}, {"email"}),
    "long e-mail": ({"email": "a@" + "b" * 300}, {"email"}),
    "plan": ({"plan": "../free"}, {"plan"}),
    "request id": ({"request_id": "r" * 65}, {"request_id"}),
    "all at once": (
        {"account_id": "-", "display_name": "\x01", "email": "x", "plan": " ", "request_id": " "},
        {"account_id", "display_name", "email", "plan", "request_id"},
    ),
}


@pytest.mark.parametrize(("fields", "named"), BAD.values(), ids=BAD.keys())
def test_bad_input_names_every_field_and_writes_nothing(operator, database, peers, fields, named):
    refusal = operator.refused(operator.customers.CreateAccount, create(**({"account_id": "acme"} | fields)))
    assert (refusal.code, fields_of(refusal)) == (grpc.StatusCode.INVALID_ARGUMENT, named)
    assert database.rows("SELECT count(*) FROM accounts") == [(0,)]
    assert peers.ledger.calls == peers.pricing.calls == []


def test_text_at_its_limits_is_taken_and_given_back_unchanged(operator):
    words = {"display_name": "Ærø & Søn «€» 🦆" + "é" * 180, "email": "o'brien+x@例え.jp"}
    account = operator(operator.customers.CreateAccount, create("A" + ":" * 63, **words))
    assert (account.display_name, account.email) == (words["display_name"], words["email"])


def test_unknown_plan_is_not_found_and_named(operator, database):
    refusal = operator.refused(operator.customers.CreateAccount, create(plan="gold"))
    assert (refusal.code, refusal.reason) == (grpc.StatusCode.NOT_FOUND, "PLAN_NOT_FOUND")
    assert fields_of(refusal) == {"plan"}
    assert database.rows("SELECT count(*) FROM accounts") == [(0,)]


def test_retired_plan_is_not_sold(operator):
    refusal = operator.refused(operator.customers.CreateAccount, create(plan="legacy"))
    assert (refusal.code, refusal.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "PLAN_RETIRED")


def test_pricing_down_is_unavailable_and_writes_nothing(operator, pricing, database):
    pricing.down = True
    refusal = operator.refused(operator.customers.CreateAccount, create())
    assert (refusal.code, refusal.reason) == (grpc.StatusCode.UNAVAILABLE, "PEER_UNAVAILABLE")
    assert database.rows("SELECT count(*) FROM accounts") == [(0,)]


def test_pricing_down_does_not_matter_to_what_is_known_already(operator, pricing):
    operator(operator.customers.CreateAccount, create())
    operator(operator.customers.SetAccountPlan, move("payg"))
    pricing.down = True
    assert operator(operator.customers.CreateAccount, create()).plan == "payg"
    assert operator(operator.customers.SetAccountPlan, move("payg")).plan == "payg"


def test_unknown_customer_is_not_found(operator):
    refusal = operator.refused(operator.customers.GetCustomer, pb.GetCustomerRequest(account_id="nobody"))
    assert (refusal.code, refusal.reason) == (grpc.StatusCode.NOT_FOUND, "ACCOUNT_NOT_FOUND")


def test_customer_sees_itself_and_nobody_else(operator, connect):
    operator(operator.customers.CreateAccount, create())
    customer = connect(operator.address, Role.ACCOUNT, "acme")
    assert customer(customer.customers.GetCustomer, pb.GetCustomerRequest()).account_id == "acme"
    other = customer.refused(customer.customers.GetCustomer, pb.GetCustomerRequest(account_id="other"))
    assert other.reason == "ACCOUNT_MISMATCH"
    assert customer.refused(customer.customers.ListCustomers, pb.ListCustomersRequest()).reason == "ROLE_TOO_LOW"
    assert customer.refused(customer.customers.CreateAccount, create("b")).reason == "ROLE_TOO_LOW"


def pages(operator, **fields):
    token, found = "", []
    while True:
        page = operator(operator.customers.ListCustomers, pb.ListCustomersRequest(page_token=token, **fields))
        found.append([account.account_id for account in page.accounts])
        token = page.next_page_token
        if not token:
            return found


def test_customers_are_listed_by_id_in_pages_and_filtered(operator):
    for account_id, plan in [("b", "payg"), ("a", "free"), ("C", "payg"), ("d", "free"), ("e", "payg")]:
        operator(operator.customers.CreateAccount, create(account_id, plan=plan))
    assert pages(operator) == [["C", "a", "b", "d", "e"]]
    assert pages(operator, page_size=2) == [["C", "a"], ["b", "d"], ["e"]]
    assert pages(operator, page_size=5) == [["C", "a", "b", "d", "e"]]
    assert pages(operator, plan="payg", page_size=2) == [["C", "b"], ["e"]]
    assert pages(operator, status="closed") == [[]]


@pytest.mark.parametrize("token", ["x", "%%%", "é", "bnVsbA==", "WyJhIiwgMV0=", "W10=", "A" * 10_000])
def test_page_token_that_was_never_given_is_refused(operator, token):
    refusal = operator.refused(operator.customers.ListCustomers, pb.ListCustomersRequest(page_token=token))
    assert (refusal.code, fields_of(refusal)) == (grpc.StatusCode.INVALID_ARGUMENT, {"page_token"})


def test_page_token_of_other_filters_is_refused(operator):
    for account_id in ("a", "b"):
        operator(operator.customers.CreateAccount, create(account_id))
    page = operator(operator.customers.ListCustomers, pb.ListCustomersRequest(page_size=1))
    other = pb.ListCustomersRequest(page_size=1, page_token=page.next_page_token, plan="free")
    assert fields_of(operator.refused(operator.customers.ListCustomers, other)) == {"page_token"}


def test_bad_filters_are_named(operator):
    request = pb.ListCustomersRequest(plan=" ", status="happy", page_size=-1)
    assert fields_of(operator.refused(operator.customers.ListCustomers, request)) == {"plan", "status", "page_size"}


def test_move_sets_the_new_plans_terms_and_ends_limits_it_lacks(operator, ledger, proxy, database):
    operator(operator.customers.CreateAccount, create())
    first = proxy.entitlements["acme"].revision
    moved = operator(operator.customers.SetAccountPlan, move("payg"))
    assert (moved.plan, moved.provisioned) == ("payg", True)
    assert ledger.books["acme"]["limits"] == {}
    assert (proxy.entitlements["acme"].plan_id, proxy.entitlements["acme"].revision) == ("payg", first + 1)
    back = operator(operator.customers.SetAccountPlan, move("starter", "move-2"))
    assert (back.plan, back.plan_version) == ("starter", 1)
    assert {k: x.amount for k, x in ledger.books["acme"]["limits"].items()} == {
        "plan::tokens:cycle": 500_000,
        "plan::requests:cycle": 1000,
    }
    changes = database.rows("SELECT from_plan_id, plan_id FROM plan_changes ORDER BY created_at")
    assert changes == [("free", "payg"), ("payg", "starter")]


def test_moving_to_and_fro_within_a_cycle_gives_one_promotion(operator, ledger):
    operator(operator.customers.CreateAccount, create(plan="payg"))
    for number, plan in enumerate(["free", "payg", "free", "starter", "free"]):
        operator(operator.customers.SetAccountPlan, move(plan, f"move-{number}"))
    assert len(ledger.books["acme"]["grants"]) == 1


def test_move_repeated_gives_the_first_result_and_pushes_nothing(operator, proxy):
    operator(operator.customers.CreateAccount, create())
    first = proxy.entitlements["acme"].revision
    operator(operator.customers.SetAccountPlan, move("payg"))
    operator(operator.customers.SetAccountPlan, move("starter", "move-2"))
    assert operator(operator.customers.SetAccountPlan, move("payg")).plan == "payg"
    assert operator.trailing(operator.customers.SetAccountPlan, move("payg"))["idempotency-replayed"] == "true"
    assert (proxy.entitlements["acme"].plan_id, proxy.entitlements["acme"].revision) == ("starter", first + 2)


def test_request_id_of_another_move_is_refused(operator):
    operator(operator.customers.CreateAccount, create())
    operator(operator.customers.SetAccountPlan, move("payg"))
    refusal = operator.refused(operator.customers.SetAccountPlan, move("starter"))
    assert (refusal.code, refusal.reason) == (grpc.StatusCode.ALREADY_EXISTS, "IDEMPOTENCY_CONFLICT")


def test_account_keeps_its_plan_version_until_it_is_moved(operator, pricing, proxy):
    operator(operator.customers.CreateAccount, create(plan="payg"))
    pricing.publish("payg", kind="prepaid", requests_per_minute=900, providers=["*"], models=["*"])
    assert operator(operator.customers.GetCustomer, pb.GetCustomerRequest(account_id="acme")).plan_version == 1
    assert operator(operator.customers.SetAccountPlan, move("payg")).plan_version == 2
    assert proxy.entitlements["acme"].requests_per_minute == 900


def test_moves_of_one_account_at_once_leave_ledger_and_proxy_on_its_plan(operator, ledger, proxy):
    operator(operator.customers.CreateAccount, create())
    first = proxy.entitlements["acme"].revision
    plans = ["payg", "starter"] * 8
    with ThreadPoolExecutor(8) as pool:
        moves = [move(plan, f"move-{number}") for number, plan in enumerate(plans)]
        list(pool.map(lambda request: operator(operator.customers.SetAccountPlan, request), moves))
    account = operator(operator.customers.GetCustomer, pb.GetCustomerRequest(account_id="acme"))
    assert account.provisioned
    assert (proxy.entitlements["acme"].plan_id, proxy.entitlements["acme"].revision) == (account.plan, first + 16)
    assert len(ledger.books["acme"]["limits"]) == (2 if account.plan == "starter" else 0)


@pytest.mark.parametrize(
    ("request_", "named"),
    [
        (pb.SetAccountPlanRequest(), {"account_id", "plan", "request_id"}),
        (move("free", "x" * 65), {"request_id"}),
        (move("fr ee"), {"plan"}),
    ],
)
def test_bad_move_names_every_field(operator, request_, named):
    assert fields_of(operator.refused(operator.customers.SetAccountPlan, request_)) == named


def test_move_of_an_unknown_account_or_to_an_unknown_plan_is_not_found(operator):
    assert operator.refused(operator.customers.SetAccountPlan, move("payg")).reason == "ACCOUNT_NOT_FOUND"
    operator(operator.customers.CreateAccount, create())
    assert operator.refused(operator.customers.SetAccountPlan, move("gold")).reason == "PLAN_NOT_FOUND"


def test_cycle_of_an_account_follows_the_clock(operator, clock):
    account = operator(operator.customers.CreateAccount, create())
    end = account.cycle_end.ToDatetime(tzinfo=UTC)
    clock.forward(end - datetime.now(UTC))
    later = operator(operator.customers.GetCustomer, pb.GetCustomerRequest(account_id="acme"))
    assert later.cycle_start == account.cycle_end
