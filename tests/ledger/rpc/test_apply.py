"""Apply: results in order, neighbours untouched by a bad operation, linked groups as a whole or not at all."""

import pytest
from tollkeeper.ledger.v1 import ledger_service_pb2 as pb

from tests.ledger.support.ledger_client import fields, reasons, refused, violations


def credit(amount, request_id, account_id="acme"):
    return "credit", pb.CreditAccountRequest(account_id=account_id, amount_nanos=amount, request_id=request_id)


def hold(amount, hold_id, account_id="acme"):
    return "hold", pb.CreateHoldRequest(account_id=account_id, hold_id=hold_id, amount_nanos=amount)


def settle(amount, hold_id, account_id="acme"):
    return "settle", pb.SettleHoldRequest(account_id=account_id, hold_id=hold_id, amount_nanos=amount)


LINKED = (True,)


async def test_results_come_in_order_and_each_operation_sees_those_before_it(ledger):
    results = await ledger.apply(
        ("open_account", pb.OpenAccountRequest(account_id="new")),
        credit(100, "c1", "new"),
        ("set_limit", pb.SetLimitRequest(account_id="new", window="day", amount=90)),
        hold(80, "h1", "new"),
        settle(50, "h1", "new"),
        hold(40, "h2", "new"),
        ("release", pb.ReleaseHoldRequest(account_id="new", hold_id="h2")),
        ("delete_limit", pb.DeleteLimitRequest(account_id="new", limit_id="account::nanos:day")),
        ("suspend", pb.SuspendAccountRequest(account_id="new", request_id="s1")),
        hold(1, "h3", "new"),
        ("resume", pb.ResumeAccountRequest(account_id="new", request_id="s2")),
    )
    assert [result.WhichOneof("kind") for result in results] == [
        "account", "transaction", "limit", "hold", "settle", "hold", "released", "limit_deleted", "account", "error",
        "account",
    ]  # fmt: skip
    assert reasons(results)[9] == "ACCOUNT_SUSPENDED"
    assert [results[4].settle.available_nanos, results[5].hold.available_nanos] == [50, 10]


async def test_one_bad_operation_does_not_fail_its_neighbours(ledger):
    await ledger.open(credit=100)
    results = await ledger.apply(
        hold(60, "h1"),
        hold(60, "h2"),
        hold(10, "no such account!"),
        hold(10, "h3", "nobody"),
        settle(1, "never-made"),
        hold(-1, "h4"),
        hold(40, "h5"),
    )
    assert reasons(results) == [
        "", "INSUFFICIENT_CREDIT", "INVALID_ARGUMENT", "ACCOUNT_NOT_FOUND", "HOLD_NOT_FOUND", "INVALID_ARGUMENT", "",
    ]  # fmt: skip
    assert (fields(results[2]), fields(results[5])) == ({"hold_id"}, {"amount_nanos"})
    assert (await ledger.balance()).held_nanos == 100


async def test_linked_group_succeeds_or_fails_as_a_whole(ledger):
    await ledger.open(credit=100)
    await ledger.hold(50, "h1")
    results = await ledger.apply(
        (*settle(20, "h1"), *LINKED),
        (*credit(1, "c2"), *LINKED),
        hold(500, "h2"),
        (*settle(30, "h1"), *LINKED),
        hold(70, "h2"),
    )
    assert reasons(results) == ["LINKED_OPERATION_FAILED", "LINKED_OPERATION_FAILED", "INSUFFICIENT_CREDIT", "", ""]
    balance = await ledger.balance()
    assert (balance.available_nanos, balance.held_nanos, balance.spent_nanos) == (0, 70, 30)
    assert [entry.sequence for entry in await ledger.transactions()] == [3, 1]


async def test_linked_group_spans_accounts(ledger):
    await ledger.open(credit=100)
    await ledger.open("other")
    results = await ledger.apply((*hold(60, "h1"), *LINKED), hold(1, "h1", "other"))
    assert reasons(results) == ["LINKED_OPERATION_FAILED", "INSUFFICIENT_CREDIT"]
    assert (await ledger.balance()).held_nanos == 0


async def test_malformed_operation_fails_its_group_and_names_its_field(ledger):
    await ledger.open(credit=100)
    results = await ledger.apply((*hold(60, "h1"), *LINKED), hold(-60, "h2"), hold(10, "h3"))
    assert reasons(results) == ["LINKED_OPERATION_FAILED", "INVALID_ARGUMENT", ""]
    assert fields(results[1]) == {"amount_nanos"}
    assert (await ledger.balance()).held_nanos == 10


async def test_operation_of_no_kind_names_kind(ledger):
    await ledger.open(credit=100)
    answer = await ledger.Apply(pb.ApplyRequest(operations=[pb.Operation(), pb.Operation(hold=hold(10, "h1")[1])]))
    assert reasons(answer.results) == ["INVALID_ARGUMENT", ""]
    assert fields(answer.results[0]) == {"kind"}


async def test_batch_replayed_after_it_was_done_is_done_once(ledger):
    await ledger.open()
    batch = [credit(100, "c1"), (*hold(60, "h1"), *LINKED), settle(50, "h1"), hold(500, "h2")]
    first = await ledger.apply(*batch)
    again = await ledger.apply(*batch)
    assert [result.replayed for result in again] == [True, True, True, False]
    for before, after in zip(first, again, strict=True):
        after.replayed = before.replayed
        assert before.SerializeToString(deterministic=True) == after.SerializeToString(deterministic=True)
    assert (await ledger.balance()).spent_nanos == 50


@pytest.mark.parametrize(
    ("operations", "field"),
    [
        ([], "operations"),
        ([pb.Operation()] * 1001, "operations"),
        ([pb.Operation(hold=hold(1, "h")[1], linked=True)], "operations[0].linked"),
    ],
    ids=["none", "too many", "linked to nothing"],
)
async def test_batch_that_is_no_batch_is_refused_as_a_whole(ledger, operations, field):
    await ledger.open(credit=100)
    assert violations(await refused(ledger.Apply(pb.ApplyRequest(operations=operations)))) == {field}
    assert (await ledger.balance()).held_nanos == 0


async def test_a_thousand_operations_are_done_in_one_call(ledger):
    await ledger.open(credit=1_000)
    results = await ledger.apply(*(hold(1, f"h{number}") for number in range(1_000)))
    assert reasons(results) == [""] * 1_000
    assert (await ledger.balance()).held_nanos == 1_000
