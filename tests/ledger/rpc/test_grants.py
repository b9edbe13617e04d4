"""Lists of grants: newest first, what is left of each now, pages that stay as they are."""

import pytest
from tollkeeper.ledger.v1 import ledger_service_pb2 as pb

from tests.ledger.support.ledger_client import refused, violations
from tests.ledger.support.ledger_clock import Clock


async def listed(ledger, **words):
    return await ledger.ListGrants(pb.ListGrantsRequest(account_id="acme", **words))


def left(answer):
    return [(grant.amount_nanos, grant.remaining_nanos) for grant in answer.grants]


async def test_grants_with_something_left_and_with_include_spent_all_that_were_ever_given(ledger, monkeypatch):
    clock = Clock(monkeypatch)
    await ledger.open()
    await ledger.credit(10, source="purchase")
    await ledger.credit(20, source="promotion", priority=5, expires_at=clock.stamp(hours=1), rollover_cap_nanos=4)
    await ledger.credit(30)
    await ledger.hold(25, "h1")
    assert left(await listed(ledger)) == [(30, 30), (20, 20), (10, 10)]
    assert [grant.reserved_nanos for grant in (await listed(ledger)).grants] == [0, 20, 5]
    await ledger.settle(22, "h1")
    assert left(await listed(ledger)) == [(30, 30), (10, 8)]
    assert left(await listed(ledger, include_spent=True)) == [(30, 30), (20, 0), (10, 8)]


async def test_grant_says_what_gave_it_and_what_is_carried_over_is_a_grant_of_its_own(ledger, monkeypatch):
    clock = Clock(monkeypatch)
    await ledger.open()
    given = await ledger.credit(
        20, source="subscription", priority=5, expires_at=clock.stamp(hours=1), rollover_cap_nanos=4
    )
    clock.wait(hours=2)
    carried, spent = (await listed(ledger, include_spent=True)).grants
    assert (spent.transaction_id, spent.created_at) == (given.transaction_id, given.created_at)
    assert (spent.source, spent.priority, spent.rollover_cap_nanos, spent.remaining_nanos) == ("subscription", 5, 4, 0)
    assert (carried.amount_nanos, carried.remaining_nanos, carried.created_at) == (4, 4, spent.expires_at)
    (expiry,) = await ledger.transactions(type="expiry")
    assert carried.transaction_id == expiry.transaction_id
    assert list((await listed(ledger)).grants) == [carried]


@pytest.mark.parametrize("include_spent", [True, False])
async def test_pages_of_grants_are_whole_and_stable_while_more_are_given(ledger, include_spent):
    await ledger.open()
    for amount in range(1, 8):
        await ledger.credit(amount)
    request = pb.ListGrantsRequest(account_id="acme", page_size=3, include_spent=include_spent)
    found = []
    while True:
        answer = await ledger.ListGrants(request)
        found.append([grant.amount_nanos for grant in answer.grants])
        await ledger.credit(100)
        request.page_token = answer.next_page_token
        if not request.page_token:
            break
    assert found == [[7, 6, 5], [4, 3, 2], [1]]


async def test_malformed_list_of_grants_names_the_field_and_no_account_has_none(ledger):
    await ledger.open()
    request = pb.ListGrantsRequest(account_id="acme", page_size=-1, page_token="x")
    assert violations(await refused(ledger.ListGrants(request))) == {"page_size", "page_token"}
    request = pb.ListGrantsRequest(account_id="nobody")
    assert (await refused(ledger.ListGrants(request))).reason == "ACCOUNT_NOT_FOUND"
