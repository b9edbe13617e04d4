"""Settlements that the ledger has not taken: kept, delivered once, and never thrown away."""

import asyncio

import psycopg

from services.kit.db import connection_string


def rows(database_url):
    with psycopg.connect(connection_string(database_url)) as connection:
        return connection.execute("SELECT kind, attempts, refused FROM outbox").fetchall()


async def test_settlement_that_the_ledger_refuses_is_kept_for_an_operator(
    proxy, key, ledger, proxy_database, eventually
):
    call = proxy.start_chat(key, text="[[sandbox output_tokens=3 first_byte_ms=300]]", max_tokens=9)
    await eventually(lambda: ledger.holds)
    ledger.holds.clear()
    async for _ in call:
        pass
    assert [(row[0], row[2]) for row in await asyncio.to_thread(rows, proxy_database)] == [("settle", "HOLD_NOT_FOUND")]


async def test_two_replicas_deliver_once(start_proxy, ledger, eventually, proxy_database):
    patient = {"ledger_timeout_seconds": 10}  # what is sent again since its answer was late comes twice, rightly
    first, second = await start_proxy(**patient), await start_proxy(**patient)
    del second
    key = (await first.make_key()).key
    ledger.down.add("settle")
    await asyncio.gather(*(first.chat(key, max_tokens=5) for _ in range(20)))
    assert len(await asyncio.to_thread(rows, proxy_database)) == 20
    ledger.down.clear()
    await eventually(lambda: len(ledger.settled) == 20)
    await eventually(lambda: asyncio.to_thread(lambda: not rows(proxy_database)))
    assert len([1 for kind, _ in ledger.log if kind == "settle"]) == 20


async def test_settlement_survives_ledger_and_database_both_away(proxy, key, ledger, eventually, postgres_server):
    call = proxy.start_chat(key, text="[[sandbox output_tokens=3 first_byte_ms=300]]", max_tokens=9)
    await eventually(lambda: ledger.holds)
    ledger.down.add("settle")
    name = connection_string(proxy.server.settings.database_url).rsplit("/", 1)[1]
    with psycopg.connect(connection_string(postgres_server.url()), autocommit=True) as admin:
        admin.execute(f'ALTER DATABASE "{name}" ALLOW_CONNECTIONS false')
        admin.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", [name])
        async for _ in call:
            pass
        assert not ledger.settled
        ledger.down.clear()
        await eventually(lambda: ledger.settled)
        admin.execute(f'ALTER DATABASE "{name}" ALLOW_CONNECTIONS true')
    assert not ledger.open_holds
