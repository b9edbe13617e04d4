"""A ledger that was dumped in the midst of its work is restored whole: sound, with what was acknowledged before."""

import asyncio
import os
import subprocess
import sys
from pathlib import Path

import grpc.aio
from tollkeeper.ledger.v1 import ledger_service_pb2 as pb

from deploy.local.postgres import binaries
from services.kit.db import connection_string
from services.ledger.assembly import make_server
from tests.ledger.support.ledger_client import Client

ROOT = Path(__file__).parents[3]
ACCOUNTS = [f"acct-{number}" for number in range(4)]


def run(*words, **settings):
    environment = {"PATH": os.environ["PATH"], **settings}
    return subprocess.run(
        [*map(str, words)], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120, check=False
    )


async def use(ledger, account_id, number):
    """One call's hold and settlement, under names that say which."""
    return await ledger.apply(
        ("hold", pb.CreateHoldRequest(account_id=account_id, hold_id=f"h{number}", amount_nanos=10)),
        ("settle", pb.SettleHoldRequest(account_id=account_id, hold_id=f"h{number}", amount_nanos=7)),
    )


async def spent(ledger, account_id):
    return (await ledger.balance(account_id)).spent_nanos


async def test_ledger_dumped_while_it_works_is_restored_sound_and_goes_on(
    ledger, ledger_settings, identity, make_database, tmp_path
):
    for account_id in ACCOUNTS:
        await ledger.apply(
            ("open_account", pb.OpenAccountRequest(account_id=account_id)),
            ("credit", pb.CreditAccountRequest(account_id=account_id, amount_nanos=10**9, request_id="c")),
        )
        await use(ledger, account_id, 0)
    dumped, done = asyncio.Event(), dict.fromkeys(ACCOUNTS, 1)

    async def work(account_id):
        while not dumped.is_set():
            await use(ledger, account_id, done[account_id])
            done[account_id] += 1

    working = [asyncio.create_task(work(account_id)) for account_id in ACCOUNTS]
    file = tmp_path / "ledger.dump"
    url = connection_string(ledger_settings.database_url)
    dump = await asyncio.to_thread(run, binaries() / "pg_dump", "--format=custom", f"--file={file}", url)
    at_dump = dict(done)
    dumped.set()
    await asyncio.gather(*working)
    assert dump.returncode == 0, dump.stderr

    restored_url = make_database("ledger")
    restore = run(
        binaries() / "pg_restore", "--no-owner", "--exit-on-error", "--dbname", connection_string(restored_url), file
    )
    assert restore.returncode == 0, restore.stderr
    migrate = run(sys.executable, "-m", "services.ledger", "migrate", TOLLKEEPER_LEDGER_DATABASE_URL=restored_url)
    assert migrate.returncode == 0, migrate.stderr
    verify = run(sys.executable, "-m", "services.ledger", "verify", TOLLKEEPER_LEDGER_DATABASE_URL=restored_url)
    assert verify.returncode == 0, verify.stdout + verify.stderr

    server = await make_server(ledger_settings.model_copy(update={"database_url": restored_url}))
    async with server, grpc.aio.insecure_channel(server.address) as channel:
        restored = Client(channel, identity.token)
        for account_id in ACCOUNTS:
            kept = await spent(restored, account_id)
            # Every call is in it whole or not at all, and none that ended before the dump did is newer than it.
            assert kept % 7 == 0
            assert 7 <= kept <= 7 * at_dump[account_id] + 7
            # What callers repeat is done once: what was kept is answered, what was lost is done now.
            for number in range(done[account_id]):
                await use(restored, account_id, number)
            assert await spent(restored, account_id) == await spent(ledger, account_id) == 7 * done[account_id]
