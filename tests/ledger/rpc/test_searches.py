"""What may go through all records of an account does not keep others from their reads, however much is asked of it."""

import asyncio

import grpc
import psycopg
import pytest
from tollkeeper.ledger.v1 import ledger_service_pb2 as pb

from services.kit.db import connection_string
from services.kit.errors import RemoteError
from services.ledger.service import MAX_SEARCHES_ASKED

SEARCHES = {
    "sums": lambda ledger, n: ledger.SummarizeUsage(pb.SummarizeUsageRequest(account_id=f"a{n}")),
    "records": lambda ledger, n: ledger.ListUsage(pb.ListUsageRequest(account_id=f"a{n}", model="none")),
    "workspaces": lambda ledger, n: ledger.ListWorkspaces(pb.ListWorkspacesRequest(account_id=f"a{n}")),
    "months": lambda ledger, n: ledger.GetMonthlySummary(pb.GetMonthlySummaryRequest(account_id=f"a{n}")),
    "all": lambda ledger, _: ledger.SummarizeAllUsage(pb.SummarizeAllUsageRequest()),
}


@pytest.fixture
async def blocking(ledger, ledger_settings):
    """Until it is rolled back, a connection for which whatever reads usage waits."""
    url = connection_string(ledger_settings.database_url)
    async with await psycopg.AsyncConnection.connect(url) as blocking:
        await blocking.execute("LOCK TABLE usage IN ACCESS EXCLUSIVE MODE")
        yield blocking


async def _waits(ledger_settings):
    """Come back when something waits for the lock."""
    waiting = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
    url = connection_string(ledger_settings.database_url)
    async with await psycopg.AsyncConnection.connect(url, autocommit=True) as watching:
        while not (await (await watching.execute(waiting)).fetchone())[0]:  # noqa: ASYNC110 (Postgres tells nobody)
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("accounts", [1, 12], ids=["of one account", "of many"])
@pytest.mark.parametrize("what", sorted(SEARCHES))
async def test_long_searches_leave_connections_for_short_reads(ledger, blocking, ledger_settings, what, accounts):
    for number in range(accounts):
        await ledger.open(f"a{number}")
    await ledger.open("other", credit=5)
    asked = [asyncio.ensure_future(SEARCHES[what](ledger, number % accounts)) for number in range(24)]
    await _waits(ledger_settings)
    for _ in range(3):
        assert (await ledger.balance("other")).available_nanos == 5
    await blocking.rollback()
    await asyncio.gather(*asked)


async def test_one_account_has_only_so_many_searches_wait(ledger, blocking, ledger_settings):
    await ledger.open("a0")
    await ledger.open("other")
    asked = [asyncio.ensure_future(SEARCHES["sums"](ledger, 0)) for _ in range(MAX_SEARCHES_ASKED)]
    await _waits(ledger_settings)
    while (refusal := await _refusal(ledger)) is None:
        pass
    assert refusal.reason == "OVERLOADED"
    other = asyncio.ensure_future(ledger.SummarizeUsage(pb.SummarizeUsageRequest(account_id="other")))
    await blocking.rollback()
    await asyncio.gather(*asked, other)
    await SEARCHES["sums"](ledger, 0)


async def _refusal(ledger):
    """Of one search more; None where all those before it have not come to the server yet."""
    try:
        await ledger.SummarizeUsage(pb.SummarizeUsageRequest(account_id="a0"), timeout=0.2)
    except grpc.RpcError as error:
        return None if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED else RemoteError.from_rpc(error)
    raise AssertionError("it was answered")
