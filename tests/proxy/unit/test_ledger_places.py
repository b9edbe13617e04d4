"""Where the ledger's replicas are, and in which order an account's operations are offered to them."""

import asyncio
from collections import Counter

import pytest

from services.proxy.ledger import addresses
from services.proxy.ledger.addresses import Addresses, Place
from services.proxy.ledger.ledger import ranked

ACCOUNTS = [f"account-{number}" for number in range(3000)]


def test_accounts_are_shared_out_evenly():
    for replicas in (2, 3, 5, 8):
        places = [f"10.0.0.{number}:50051" for number in range(replicas)]
        shares = Counter(ranked(account, places)[0] for account in ACCOUNTS)
        assert all(0.85 < share * replicas / len(ACCOUNTS) < 1.15 for share in shares.values()), shares


def test_replica_that_goes_moves_no_account_but_its_own():
    places = [f"10.0.0.{number}:50051" for number in range(4)]
    left = places[:3]
    for account in ACCOUNTS:
        first, second, *_ = ranked(account, places)
        assert ranked(account, left)[0] == (first if first in left else second)


def test_everybody_ranks_alike_whatever_the_order_in_which_they_were_found():
    places = ["10.0.0.1:1", "10.0.0.2:1", "[fd00::3]:1"]
    assert all(ranked(account, places) == ranked(account, reversed(places)) for account in ACCOUNTS[:50])


class Names:
    """A directory whose entries change."""

    def __init__(self, **found):
        self.found = found

    async def __call__(self, host, port):
        if host not in self.found:
            raise OSError(f"no such name: {host}")
        return [(ip, port) for ip in self.found[host]]


@pytest.fixture
async def told(monkeypatch):
    """`told(address, names)`: all that is told of an address, as it is told."""
    monkeypatch.setattr(addresses, "_RESOLVE_SECONDS", 0.05)
    watched = []

    async def start(address, names):
        found = asyncio.Queue()
        watched.append(Addresses(address, found.put_nowait, names))
        await watched[-1].start()
        return found

    yield start
    for one in watched:
        await one.stop()


@pytest.mark.parametrize(
    ("address", "places"),
    [
        ("127.0.0.1:9001", {Place("127.0.0.1:9001")}),
        ("127.0.0.1:9001, 127.0.0.1:9002", {Place("127.0.0.1:9001"), Place("127.0.0.1:9002")}),
        ("[::1]:9001", {Place("[::1]:9001")}),
        ("ipv4:127.0.0.1:9001,127.0.0.1:9002", {Place("127.0.0.1:9001"), Place("127.0.0.1:9002")}),
        ("unix:///run/ledger.sock", {Place("unix:///run/ledger.sock")}),
        ("ledger:9001", {Place("10.0.0.1:9001", "ledger"), Place("[fd00::2]:9001", "ledger")}),
        ("dns:///ledger:9001", {Place("10.0.0.1:9001", "ledger"), Place("[fd00::2]:9001", "ledger")}),
        ("dns://10.0.0.10/ledger:9001", {Place("dns://10.0.0.10/ledger:9001")}),
    ],
)
async def test_an_address_stands_for(told, address, places):
    found = await told(address, Names(ledger=["10.0.0.1", "fd00::2"]))
    assert found.get_nowait() == places


async def test_replicas_that_come_and_go_are_found_and_a_name_that_is_lost_keeps_what_it_had(told):
    names = Names()
    found = await told("ledger:1", names)
    assert found.get_nowait() == set()
    for now in (["10.0.0.1"], ["10.0.0.1", "10.0.0.2"], ["10.0.0.2"]):
        names.found = {"ledger": now}
        assert await asyncio.wait_for(found.get(), 10) == {Place(f"{ip}:1", "ledger") for ip in now}
    for nothing in ({}, {"ledger": []}):
        names.found = nothing
        await asyncio.sleep(0.2)  # some looks, of which nothing is told
        assert found.empty()


async def test_places_that_could_not_be_taken_in_are_told_again(monkeypatch):
    monkeypatch.setattr(addresses, "_RESOLVE_SECONDS", 0.05)
    names, taken_in, failures = Names(ledger=["10.0.0.1"]), asyncio.Queue(), [OSError("no certificate just now")]

    def take_in(places):
        if len(places) > 1 and failures:
            raise failures.pop()
        taken_in.put_nowait(places)

    watched = Addresses("ledger:1", take_in, names)
    await watched.start()
    assert len(await taken_in.get()) == 1
    names.found = {"ledger": ["10.0.0.1", "10.0.0.2"]}
    assert len(await asyncio.wait_for(taken_in.get(), 10)) == 2
    assert not failures
    await watched.stop()


async def test_of_a_name_with_addresses_of_both_families_each_replica_is_found_once():
    found = await addresses.resolved("localhost", 9001)
    assert len({":" in ip for ip, _ in found}) == 1
