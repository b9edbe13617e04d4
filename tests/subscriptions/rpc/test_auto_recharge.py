"""Auto-recharge: credit is bought once for each fall below the threshold, within the cap, and charged once."""

from datetime import timedelta
from types import SimpleNamespace

import grpc
import pytest
from subscriptions_peers import USD, eventually
from subscriptions_shop import at_once
from subscriptions_stripe import FAILS_LATER
from tollkeeper.subscriptions.v1 import billing_service_pb2 as pb

from services.subscriptions.stripe.recharge_rules import RechargeRule

PAYMENTS = "/v1/payment_intents"


class Job:
    """The job of one process, driven by hand; `credit_comes` is Stripe telling of the payment."""

    def __init__(self, parts, ledger, database, account_id):
        self.parts = parts
        self.recharges = parts.stripe_use_cases.recharges
        self.book = ledger.books[account_id]
        self.database = database
        self.account_id = account_id

    def look(self, times=1):
        for _ in range(times):
            self.database.rows("UPDATE auto_recharges SET look_at = now()")
            assert self.recharges.look_next()

    def has(self, dollars):
        """The balance is so much."""
        self.book["grants"] = [SimpleNamespace(amount_nanos=dollars * USD)]
        self.book["cycle_spent"] = 0

    def credit_comes(self):
        """The newest payment's credit is in the ledger."""
        (payment, amount), *_ = self.database.rows(
            "SELECT payment_intent_id, amount_nanos FROM recharges WHERE account_id = :a ORDER BY created_at DESC",
            a=self.account_id,
        )
        self.database.rows(
            "INSERT INTO stripe_payments (source_id, account_id, kind, amount_nanos, credit_nanos, paid_at)"
            " VALUES (:s, :a, 'auto_recharge', :n, :n, now())",
            s=payment, a=self.account_id, n=amount,
        )  # fmt: skip
        self.database.rows(
            "INSERT INTO stripe_grants (account_id, request_id, source_id, part, source, amount_nanos, due_at,"
            " rollover_cap_nanos, granted_at) VALUES (:a, :r, :s, 1, 'purchase', :n, now(), 0, now())",
            a=self.account_id, r=f"payment:{payment}", s=payment, n=amount,
        )  # fmt: skip
        self.book["grants"].append(SimpleNamespace(amount_nanos=amount))

    def purchases(self):
        return self.database.rows(
            "SELECT status, amount_nanos / 1000000000 FROM recharges WHERE account_id = :a ORDER BY created_at",
            a=self.account_id,
        )

    def alerts(self):
        rows = self.database.rows("SELECT type, message FROM alerts WHERE account_id = :a", a=self.account_id)
        return [(kind, message) for kind, message in rows if kind == "payment_failed"]

    def is_on(self):
        return self.recharges.get(self.account_id).enabled


@pytest.fixture
def acme(shop):
    """A customer with a card, from having bought credit for 5 dollars."""
    made = shop.customer()
    shop.sandbox.pay(made.top_up("5.00").checkout_url)
    return made


@pytest.fixture
def job(parts, ledger, database, shop, acme):
    return Job(parts(**shop.sandbox.settings()), ledger, database, acme.account_id)


def test_credit_is_bought_once_below_the_threshold(acme, job):
    acme.set_recharge(threshold=10, amount=20)
    job.has(10)
    job.look(3)
    assert job.purchases() == []  # at the threshold is not below it
    job.has(9)
    job.look(4)
    assert acme.charged() == [500, 2000]
    assert job.purchases() == [("paid", 20)]
    payment = acme.shop.sandbox.v1.payment_intents.list({"customer": acme.customer_id}).data[0]
    assert (payment.metadata["account_id"], payment.metadata["purpose"]) == (acme.account_id, "auto_recharge")


def test_each_fall_below_the_threshold_brings_one_purchase(acme, job):
    acme.set_recharge(threshold=10, amount=20)
    for falls in (1, 2, 3):
        job.has(1)
        job.look(2)
        job.credit_comes()
        job.look(2)
        assert job.purchases() == [("granted", 20)] * falls
    assert acme.charged() == [500, 2000, 2000, 2000]


def test_purchase_that_does_not_lift_the_balance_is_not_repeated(acme, job):
    acme.set_recharge(threshold=100, amount=20)
    job.has(1)
    job.look(2)
    job.credit_comes()
    job.look(4)
    assert acme.charged() == [500, 2000]
    job.has(100)
    job.look()
    job.has(99)
    job.look(2)
    assert acme.charged() == [500, 2000, 2000]


def test_same_rule_set_again_buys_nothing_more(acme, job):
    acme.set_recharge(threshold=100, amount=20)
    job.has(1)
    job.look(2)
    acme.set_recharge(threshold=100, amount=20)
    job.look()
    job.credit_comes()
    job.look(2)
    acme.set_recharge(threshold=100, amount=20)
    job.look(3)
    assert acme.charged() == [500, 2000]
    acme.set_recharge(threshold=100, amount=30)  # another rule begins anew
    job.look(2)
    assert acme.charged() == [500, 2000, 3000]


def test_no_more_is_bought_in_a_month_than_the_cap_and_the_next_month_begins_anew(acme, job, clock):
    acme.set_recharge(threshold=10, amount=20, cap=50)
    for _ in range(4):
        job.has(1)
        job.look(2)
        if job.purchases()[-1][0] == "paid":
            job.credit_comes()
            job.look()
    assert job.purchases() == [("granted", 20)] * 2
    now = clock()
    clock.forward((now.replace(day=1) + timedelta(days=32)).replace(day=1) - now)
    job.has(1)
    job.look(2)
    assert acme.charged() == [500, 2000, 2000, 2000]


def test_declined_card_turns_it_off_and_alerts_once(shop, ledger, database, parts):
    acme = shop.customer()
    shop.sandbox.pay(acme.top_up("5.00").checkout_url, card=FAILS_LATER)
    job = Job(parts(**shop.sandbox.settings()), ledger, database, acme.account_id)
    acme.set_recharge(threshold=10, amount=20)
    job.has(1)
    job.look()
    assert (job.purchases(), job.is_on()) == ([("failed", 20)], False)
    ((_, message),) = job.alerts()
    assert "$20.00 failed: Your card was declined." in message
    assert not job.recharges.look_next()
    assert acme.charged() == [500]
    acme.set_recharge(threshold=10, amount=20)  # set again, it is tried again, and alerted of again
    job.look()
    assert (len(job.purchases()), len(job.alerts()), job.is_on()) == (2, 2, False)


@pytest.mark.parametrize(
    ("fault", "more"),
    [("cut", {}), ("cut-before", {}), ("status", {"status": 500}), ("status", {"status": 429})],
    ids=["cut", "cut-before", "500", "429"],
)
def test_purchase_tried_again_after_a_fault_is_charged_once(shop, acme, job, fault, more):
    acme.set_recharge(threshold=10, amount=20)
    job.has(1)
    shop.sandbox.fault(fault, PAYMENTS, count=6, **more)
    job.look()
    assert (job.purchases(), job.is_on(), job.alerts()) == ([("pending", 20)], True, [])
    job.look()
    shop.sandbox.clear_faults()
    job.look(2)
    assert (job.purchases(), acme.charged()) == ([("paid", 20)], [500, 2000])


@pytest.mark.parametrize("is_paid", [False, True])
def test_fault_that_stripe_remembers_ends_when_it_is_certain_whether_it_was_paid(shop, acme, job, clock, is_paid):
    acme.set_recharge(threshold=10, amount=20)
    job.has(3)
    shop.sandbox.fault("broken", PAYMENTS)
    job.look(3)
    assert (job.purchases(), acme.charged()) == ([("pending", 20)], [500])
    if is_paid:  # for all that the fault said
        pay_as_the_job_does(shop, acme, job)
    clock.forward(timedelta(hours=1))
    job.look(2)
    assert acme.charged() == [500, 2000]
    assert (job.purchases()[-1], job.is_on(), job.alerts()) == (("paid", 20), True, [])


def pay_as_the_job_does(shop, acme, job):
    """The payment of the purchase under way, as Stripe may have made it before it failed to say so."""
    ((request_id, method),) = job.database.rows(
        "SELECT request_id, payment_method_id FROM recharges WHERE account_id = :a", a=acme.account_id
    )
    shop.sandbox.v1.payment_intents.create(
        {
            "amount": 2000, "currency": "usd", "customer": acme.customer_id, "payment_method": method, "confirm": True,
            "off_session": True, "metadata": {"purpose": "auto_recharge", "request_id": request_id},
        }
    )  # fmt: skip


def test_process_that_dies_after_paying_is_taken_over_and_charges_once(shop, acme, job, parts):
    acme.set_recharge(threshold=10, amount=20)
    job.has(1)
    shop.sandbox.fault("cut", PAYMENTS, count=3)
    job.look()  # it has paid, and knows nothing of it
    job.recharges = parts(**shop.sandbox.settings()).stripe_use_cases.recharges
    job.look(2)
    assert (job.purchases(), acme.charged()) == ([("paid", 20)], [500, 2000])


def test_processes_that_look_at_once_buy_once(shop, acme, job, parts):
    acme.set_recharge(threshold=10, amount=20)
    job.has(1)
    shop.sandbox.fault("slow", PAYMENTS, delay_ms=300, count=4)
    rule = job.recharges.get(acme.account_id)
    looks = [parts(**shop.sandbox.settings()).stripe_use_cases.recharges._look for _ in range(4)]
    at_once(*[lambda look=look: look(rule) for look in looks])
    job.look()
    assert (job.purchases(), acme.charged()) == ([("paid", 20)], [500, 2000])


def test_rule_turned_off_while_the_balance_is_looked_at_buys_nothing(acme, job):
    acme.set_recharge(threshold=10, amount=20)
    job.has(1)
    rule, balance = job.recharges.get(acme.account_id), job.recharges._ledger.balance

    def slow_balance(account_id):
        acme.set_recharge(threshold=10, amount=20, enabled=False)
        return balance(account_id)

    job.recharges._ledger.balance = slow_balance
    job.recharges._look(rule)
    assert (job.purchases(), acme.charged()) == ([], [500])


def test_process_that_slept_through_a_purchase_does_not_buy_by_what_it_saw(acme, job, parts, shop):
    acme.set_recharge(threshold=10, amount=20)
    job.has(1)
    rule = job.recharges.get(acme.account_id)
    late = parts(**shop.sandbox.settings()).stripe_use_cases.recharges
    balance = late._ledger.balance

    def slow_balance(account_id):
        seen = balance(account_id)
        job.look(2)  # meanwhile another one buys, the credit comes, and the rule is armed again
        job.credit_comes()
        job.look(2)
        return seen

    late._ledger.balance = slow_balance
    late._look(rule)
    assert (job.purchases(), acme.charged()) == ([("granted", 20)], [500, 2000])


def test_purchase_that_stripe_was_not_reached_for_is_given_up_before_keys_are_forgotten(shop, acme, job, clock):
    acme.set_recharge(threshold=10, amount=20)
    job.has(1)
    shop.sandbox.outage(60)
    # Which card to charge is asked first: nothing is begun while even that is not answered.
    job.look()
    assert job.purchases() == []
    shop.sandbox.outage(0)
    shop.sandbox.fault("cut-before", PAYMENTS, count=3)
    job.look()
    assert job.purchases() == [("pending", 20)]
    clock.forward(timedelta(hours=20, minutes=1))
    job.look()
    assert (job.purchases(), job.is_on(), len(job.alerts())) == ([("failed", 20)], False, 1)
    assert acme.charged() == [500]


def test_payment_that_nothing_is_told_of_is_asked_after(shop, acme, job, clock):
    acme.set_recharge(threshold=10, amount=20)
    job.has(1)
    job.look()
    clock.forward(timedelta(minutes=11))
    job.look()
    assert job.purchases() == [("paid", 20)]  # it is paid: its credit is on the way
    assert len(acme.charged()) == 2


def test_card_taken_away_meanwhile_turns_it_off(shop, acme, job):
    acme.set_recharge(threshold=10, amount=20)
    for method in shop.sandbox.v1.payment_methods.list({"customer": acme.customer_id}).data:
        shop.sandbox.v1.payment_methods.detach(method.id)
    job.has(1)
    job.look()
    assert (job.purchases(), job.is_on(), len(job.alerts())) == ([("failed", 20)], False, 1)


def test_ledger_that_is_away_is_waited_for(acme, job, ledger):
    acme.set_recharge(threshold=10, amount=20)
    ledger.down = True
    with pytest.raises(grpc.RpcError):  # the job's thread logs it, and goes on after a pause
        job.look()
    ledger.down = False
    job.has(1)
    job.look()
    assert job.purchases() == [("paid", 20)]


@pytest.mark.parametrize("status", ["suspended", "closed"])
def test_account_that_the_ledger_has_stopped_buys_nothing_until_it_is_open_again(acme, job, status):
    acme.set_recharge(threshold=10, amount=20)
    job.has(3)
    job.book["status"] = status
    job.look(2)
    assert (job.purchases(), acme.charged()) == ([], [500])
    job.book["status"] = "open"
    job.look()
    assert acme.charged() == [500, 2000]


def test_rule_of_an_account_that_is_closed_for_good_is_off(acme, job, database):
    acme.set_recharge(threshold=10, amount=20)
    job.has(3)
    job.book["status"] = "closed"
    job.recharges.look_next()
    assert job.is_on(), "it may be closed at the ledger alone: that is learned of soon"
    database.rows("UPDATE accounts SET status = 'closed' WHERE account_id = :a", a=acme.account_id)
    database.rows("UPDATE auto_recharges SET look_at = now()")
    job.recharges.look_next()
    assert (job.is_on(), acme.charged(), job.alerts()) == (False, [500], [])
    database.rows("UPDATE auto_recharges SET look_at = now()")
    assert not job.recharges.look_next(), "it is looked at no more"


def test_rule_that_is_off_buys_nothing(acme, job):
    acme.set_recharge(threshold=10, amount=20)
    acme.set_recharge(threshold=10, amount=20, enabled=False)
    job.has(1)
    assert not job.recharges.look_next()
    assert acme.charged() == [500]


def test_job_runs_beside_the_service(shop, acme, job, served):
    acme.set_recharge(threshold=10, amount=20)
    job.has(1)
    with served(jobs=True, **shop.sandbox.settings(recharge_seconds=0.2)):
        eventually(lambda: job.purchases() == [("paid", 20)])
    assert acme.charged() == [500, 2000]


# From Stripe's event to the balance


def test_credit_that_was_bought_arrives_once(told, ledger, database):
    told.customer()
    told.buy(cents=500)
    told.settle()
    recharges = told.parts.stripe_use_cases.recharges
    job = Job(told.parts, ledger, database, "acme")
    recharges.set(RechargeRule("acme", True, 11 * USD, 20 * USD, 0, True))
    job.look(2)
    told.settle()
    job.look(2)
    assert (job.purchases(), told.credit()) == ([("granted", 20)], 25 * USD)
    told.tell(told.stripe.events(type="payment_intent.succeeded"))
    told.apply()
    assert told.credit() == 25 * USD


def test_credit_that_was_bought_arrives_though_nothing_is_told_of_its_payment(told, ledger, database):
    told.customer()
    told.buy(cents=500)
    told.settle()
    told.parts.stripe_use_cases.recharges.set(RechargeRule("acme", True, 11 * USD, 20 * USD, 0, True))
    job = Job(told.parts, ledger, database, "acme")
    job.look()
    told.clock.forward(timedelta(minutes=11))
    job.look()
    told.deliver()
    assert told.credit() == 25 * USD
    job.look()
    assert job.purchases() == [("granted", 20)]
    told.settle()
    assert told.credit() == 25 * USD


@pytest.mark.parametrize("is_settled", [True, False])
@pytest.mark.parametrize("how", ["refund", "dispute"])
def test_payment_that_is_returned_is_not_made_again(told, ledger, database, how, is_settled):
    """The balance falls by what we took back: nobody has used that, and whoever disputes a payment wants no other."""
    told.customer()
    told.buy(cents=500)
    told.settle()
    job = Job(told.parts, ledger, database, "acme")
    job.recharges.set(RechargeRule("acme", True, 11 * USD, 20 * USD, 0, True))
    job.look()
    told.settle()
    job.look(2 if is_settled else 0)
    if how == "refund":
        told.refund(told.charge())
    else:
        told.stripe.dispute(told.charge().id)
    told.settle()
    assert told.credit() == 5 * USD
    job.look(5)
    assert (job.purchases(), job.is_on()) == ([("granted", 20)], True)
    told.buy(cents=1500)  # of the customer's own accord: the next fall brings a purchase
    told.settle()
    job.look()
    ledger.books["acme"]["cycle_spent"] = 15 * USD
    job.look()
    assert job.purchases() == [("granted", 20), ("paid", 20)]


# The rule


def test_rule_is_read_as_it_was_set(acme):
    assert acme.ask(acme.billing.GetAutoRecharge, pb.GetAutoRechargeRequest()) == pb.AutoRecharge()
    told = acme.set_recharge(threshold=10, amount=20, cap=100)
    assert (told.enabled, told.threshold_nanos, told.amount_nanos) == (True, 10 * USD, 20 * USD)
    assert acme.ask(acme.billing.GetAutoRecharge, pb.GetAutoRechargeRequest()) == told


def test_rule_without_a_card_is_refused(shop):
    acme = shop.customer()
    rule = pb.AutoRecharge(enabled=True, threshold_nanos=USD, amount_nanos=5 * USD)
    error = acme.refused(acme.billing.SetAutoRecharge, pb.SetAutoRechargeRequest(auto_recharge=rule))
    assert (error.code, error.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "PAYMENT_METHOD_MISSING")
    assert not acme.ask(acme.billing.GetAutoRecharge, pb.GetAutoRechargeRequest()).enabled


@pytest.mark.parametrize(
    ("rule", "field"),
    [
        (None, "auto_recharge"),
        ({"amount_nanos": 5 * USD}, "auto_recharge.threshold_nanos"),
        ({"threshold_nanos": USD}, "auto_recharge.amount_nanos"),
        ({"threshold_nanos": -1, "amount_nanos": 5 * USD}, "auto_recharge.threshold_nanos"),
        ({"threshold_nanos": USD, "amount_nanos": 5 * USD + 1}, "auto_recharge.amount_nanos"),
        ({"threshold_nanos": USD, "amount_nanos": USD // 2}, "auto_recharge.amount_nanos"),
        ({"threshold_nanos": USD, "amount_nanos": 10_001 * USD}, "auto_recharge.amount_nanos"),
        (
            {"threshold_nanos": USD, "amount_nanos": 5 * USD, "monthly_cap_nanos": 4 * USD},
            "auto_recharge.monthly_cap_nanos",
        ),
        ({"threshold_nanos": USD, "amount_nanos": 5 * USD, "monthly_cap_nanos": -1}, "auto_recharge.monthly_cap_nanos"),
    ],
)
def test_bad_rule_is_named_and_asks_stripe_nothing(shop, acme, rule, field):
    shop.sandbox.outage(60)
    request = pb.SetAutoRechargeRequest()
    if rule is not None:
        request.auto_recharge.CopyFrom(pb.AutoRecharge(enabled=True, **rule))
    error = acme.refused(acme.billing.SetAutoRecharge, request)
    assert error.code is grpc.StatusCode.INVALID_ARGUMENT
    assert field in {violation.field for violation in error.violations}


def test_nobody_sets_another_accounts_rule(shop, acme):
    other = shop.customer("other")
    for method, request in (
        (other.billing.SetAutoRecharge, pb.SetAutoRechargeRequest(account_id=acme.account_id)),
        (other.billing.GetAutoRecharge, pb.GetAutoRechargeRequest(account_id=acme.account_id)),
    ):
        assert other.refused(method, request).code is grpc.StatusCode.PERMISSION_DENIED
