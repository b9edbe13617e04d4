"""Sixty-four clients of two replicas hammer one, ten and ten thousand accounts: no deadlock, no lost update."""

import asyncio
from collections import Counter
from random import Random

import psycopg
import pytest

from services.ledger.group_commit import GroupCommit
from tests.ledger.support.ledger_audit import audit
from tests.ledger.support.ledger_memory import credit, debit, hold, opened, set_limit, settle

CLIENTS, STEPS = 64, 12
START = 10**9


async def hammer(commits, number, names, spent):
    """One client: batches over several accounts, in any order, some linked across accounts, at both replicas."""
    random = Random(number)
    for step in range(STEPS):
        chosen = random.sample(names, min(len(names), 4))
        amount = random.randrange(1, 100)
        key = f"{number}-{step}"
        groups = [[debit(amount, f"d{key}", name)] for name in chosen]
        groups += [[hold(500, f"h{key}", name)] for name in chosen]
        groups.append([settle(amount, f"h{key}", name) for name in reversed(chosen)])  # linked, across accounts
        results = await commits[step % 2].submit(groups)
        assert not [r.outcome for r in results if isinstance(r.outcome, Exception)]
        spent.update(dict.fromkeys(chosen, 2 * amount))


@pytest.mark.parametrize("accounts", [1, 10, 10_000])
async def test_no_update_is_lost_and_none_waits_for_ever(ledger_settings, accounts):
    names = [f"a{number}" for number in range(accounts)]
    commits = [GroupCommit(ledger_settings) for _ in range(2)]
    for replica in commits:
        replica.start()
    for first in range(0, accounts, 500):
        units = [
            [opened(name), credit(START, "c", name), set_limit(START, name)] for name in names[first : first + 500]
        ]
        await commits[0].submit(units)
    spent = Counter()
    async with asyncio.timeout(120):
        await asyncio.gather(*(hammer(commits, number, names, spent) for number in range(CLIENTS)))
    for replica in commits:
        await replica.stop()
    with psycopg.connect(ledger_settings.database_url) as connection:
        rows = connection.execute("SELECT account_id, spent, available, held, limits->0->>9 FROM accounts").fetchall()
    found = {name: (used, available, held, int(counted)) for name, used, available, held, counted in rows}
    assert found == {name: (spent[name], START - spent[name], 0, spent[name]) for name in names}
    audit(ledger_settings.database_url)
