"""Lists of holds: newest first, by status, in pages that are whole while holds come and end."""

import pytest
from tollkeeper.ledger.v1 import ledger_service_pb2 as pb

from services.ledger.store import reads
from tests.ledger.support.ledger_client import refused, violations
from tests.ledger.support.ledger_clock import Clock

STATUSES = ("open", "settled", "released", "expired")


async def listed(ledger, *, meanwhile=None, **words):
    """All pages of a list of holds, each as its ids."""
    request = pb.ListHoldsRequest(account_id="acme", **words)
    found = []
    while True:
        answer = await ledger.ListHolds(request)
        found.append([hold.hold_id for hold in answer.holds])
        if meanwhile:
            await meanwhile(len(found))
        request.page_token = answer.next_page_token
        if not request.page_token:
            return found


async def busy(ledger, clock):
    """Twenty holds, five of each status, with other entries between them."""
    await ledger.open(credit=1_000)
    for number in range(20):
        await ledger.hold(1, f"h{number:02}", ttl_seconds=60 if STATUSES[number % 4] == "expired" else 86_400)
        await ledger.credit(1)
    for number in range(20):
        if STATUSES[number % 4] == "settled":
            await ledger.settle(number % 3, f"h{number:02}")
        elif STATUSES[number % 4] == "released":
            await ledger.release(f"h{number:02}")
    clock.wait(seconds=60)


def names(*numbers):
    return [f"h{number:02}" for number in numbers]


@pytest.fixture
def clock(monkeypatch):
    return Clock(monkeypatch)


async def test_holds_are_listed_newest_first_each_as_it_stands(ledger, clock):
    await busy(ledger, clock)
    answer = await ledger.ListHolds(pb.ListHoldsRequest(account_id="acme"))
    assert [hold.hold_id for hold in answer.holds] == names(*range(19, -1, -1))
    assert [hold.status for hold in answer.holds] == [STATUSES[number % 4] for number in range(19, -1, -1)]
    one = await ledger.GetHold(pb.GetHoldRequest(account_id="acme", hold_id="h05"))
    assert answer.holds[14] == one
    assert (one.status, one.settled_nanos) == ("settled", 2)


@pytest.mark.parametrize("status", STATUSES)
@pytest.mark.parametrize("looks", [(2_000, 25), (3, 25), (3, 2)], ids=str)
async def test_holds_of_a_status_are_all_found_however_few_entries_are_looked_at(
    ledger, clock, monkeypatch, status, looks
):
    await busy(ledger, clock)
    monkeypatch.setattr(reads, "HOLD_ENTRIES", looks[0])
    monkeypatch.setattr(reads, "HOLD_LOOKS", looks[1])
    first = STATUSES.index(status)
    wanted = names(*range(16 + first, -1, -4))
    found = await listed(ledger, status=status, page_size=2)
    assert [name for page in found for name in page] == wanted
    assert max(len(page) for page in found) <= 2
    if looks[0] * looks[1] > 100:
        assert [len(page) for page in found] == [2, 2, 1]


async def test_pages_of_holds_are_whole_and_stable_while_more_are_made_and_end(ledger, clock):
    await busy(ledger, clock)

    async def meanwhile(number):
        await ledger.hold(1, f"new{number}")
        await ledger.settle(1, f"new{number}")

    found = await listed(ledger, page_size=8, meanwhile=meanwhile)
    assert found == [names(*range(19, 11, -1)), names(*range(11, 3, -1)), names(3, 2, 1, 0)]


async def test_account_without_holds_has_one_empty_page(ledger):
    await ledger.open()
    for status in ("", *STATUSES):
        assert await listed(ledger, status=status) == [[]]


async def test_malformed_list_of_holds_names_the_field(ledger):
    await ledger.open()
    request = pb.ListHoldsRequest(account_id="acme", status="lost", page_size=-1, page_token="x")
    assert violations(await refused(ledger.ListHolds(request))) == {"status", "page_size", "page_token"}
    request = pb.ListHoldsRequest(account_id="nobody")
    assert (await refused(ledger.ListHolds(request))).reason == "ACCOUNT_NOT_FOUND"
