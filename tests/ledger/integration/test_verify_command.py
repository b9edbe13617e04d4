"""`verify` finds every account sound or names the first broken entry, and goes on where it was interrupted."""

import argparse
import asyncio
import contextlib
import json
import os
import pty
import signal
import subprocess
import sys
from pathlib import Path

import psycopg
import pytest
from tollkeeper.ledger.v1 import ledger_service_pb2 as pb

from services.kit.command import CommandError
from services.kit.db import async_engine
from services.ledger.commands import verify
from services.ledger.commands.verify import Found
from tests.ledger.support.ledger_clock import Clock
from tests.ledger.support.ledger_history import whole_history

ROOT = Path(__file__).parents[3]


class Cli:
    """The command on one database, and a way to change rows behind its back."""

    def __init__(self, url):
        self._url = url

    def words(self, *arguments):
        environment = {"PATH": os.environ["PATH"], "TOLLKEEPER_LEDGER_DATABASE_URL": self._url}
        words = [sys.executable, "-m", "services.ledger", "verify", *map(str, arguments)]
        return {"args": words, "env": environment, "cwd": ROOT}

    def verify(self, *arguments):
        return subprocess.run(**self.words(*arguments), capture_output=True, text=True, timeout=120, check=False)

    def interrupted(self, file, number):
        """Send a signal to a run while it waits to print; the first line, the exit status, and what it had kept."""
        # Without a buffer of ours, which would take what the pipe has no room for.
        words = self.words("--resume", file) | {"stdout": subprocess.PIPE, "pipesize": 4096, "bufsize": 0}
        with subprocess.Popen(**words) as process:
            first = process.stdout.readline().decode()
            while b"a0500" not in process.stdout.readline():
                assert process.poll() is None
            kept = json.loads(file.read_text())
            process.send_signal(number)
            process.communicate(timeout=60)
        return first.strip(), process.returncode, kept

    def on_terminal(self, output, *arguments):
        """Run with standard error on a terminal, standard output in a file; the exit status and what was shown."""
        ours, theirs = pty.openpty()
        with output.open("w") as file:
            process = subprocess.Popen(**self.words(*arguments), stdout=file, stderr=theirs)
        os.close(theirs)
        shown = b""
        with os.fdopen(ours, "rb", buffering=0) as terminal, contextlib.suppress(OSError):  # the other side is closed
            while piece := terminal.read(4096):
                shown += piece
        return process.wait(60), shown.decode()

    def change(self, statement):
        with psycopg.connect(self._url) as connection:
            assert connection.execute(statement).rowcount > 0


@pytest.fixture
def cli(ledger_settings):
    return Cli(ledger_settings.database_url)


async def opened(ledger, count):
    """Accounts with a few entries each."""
    for number in range(count):
        account_id = f"a{number:04}"
        await ledger.apply(
            ("open_account", pb.OpenAccountRequest(account_id=account_id)),
            ("credit", pb.CreditAccountRequest(account_id=account_id, amount_nanos=100, request_id="c")),
            ("hold", pb.CreateHoldRequest(account_id=account_id, hold_id="h", amount_nanos=10)),
            ("settle", pb.SettleHoldRequest(account_id=account_id, hold_id="h", amount_nanos=7)),
        )


async def test_sound_ledger_is_found_sound(ledger, monkeypatch, cli):
    await whole_history(ledger, Clock(monkeypatch))
    await opened(ledger, 3)
    answer = cli.verify()
    assert (answer.returncode, answer.stdout) == (0, "4 accounts, 40 entries: all sound\n"), answer
    answer = cli.verify("--json")
    (line,) = answer.stdout.splitlines()
    assert json.loads(line) == {"accounts": 4, "entries": 40, "unsound": 0, "first": ""}


async def test_first_broken_entry_is_named_and_the_exit_status_says_so(ledger, cli):
    await opened(ledger, 5)
    cli.change("UPDATE journal SET description = 'x' WHERE account_id IN ('a0001', 'a0003') AND sequence > 1")
    answer = cli.verify()
    assert answer.returncode == 1
    lines = answer.stdout.splitlines()
    assert [line.split()[0] for line in lines[:-1]] == ["a0001", "a0001", "a0003", "a0003"]
    assert lines[-1] == f"5 accounts, 15 entries: 2 unsound; the first: {lines[0]}"
    assert "-2 HASH_BROKEN: expected hash" in lines[0]
    *found, result = map(json.loads, cli.verify("--json").stdout.splitlines())
    assert [(x["account"], x["entries"], [w["sequence"] for w in x["findings"]]) for x in found] == [
        ("a0001", 3, [2, 3]),
        ("a0003", 3, [2, 3]),
    ]
    assert (result["unsound"], result["first"]) == (2, lines[0])


async def test_accounts_that_are_named_are_verified_alone(ledger, cli):
    await opened(ledger, 4)
    cli.change("UPDATE accounts SET overdrawn = 1 WHERE account_id = 'a0001'")
    answer = cli.verify("--account", "a0002", "--account", "a0000")
    assert (answer.returncode, answer.stdout) == (0, "2 accounts, 6 entries: all sound\n")
    assert cli.verify("--account", "a0002", "--account", "a0001").returncode == 1
    answer = cli.verify("--account", "none")
    assert (answer.returncode, answer.stderr) == (1, "ledger: there is no account none\n")


async def test_many_accounts_are_verified_whatever_their_size(ledger, cli):
    """More than are read together."""
    await opened(ledger, 520)
    cli.change("UPDATE usage SET billed = billed + 1 WHERE account_id = 'a0519'")
    answer = cli.verify()
    assert answer.returncode == 1
    assert answer.stdout.splitlines()[-1].startswith("520 accounts, 1560 entries: 1 unsound; the first: a0519 ")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
async def test_interrupted_run_goes_on_after_the_last_account_it_verified(ledger, cli, tmp_path, number):
    await opened(ledger, 520)
    cli.change("UPDATE accounts SET cycle_spent = 1 WHERE account_id = 'a0007'")
    # Five hundred accounts are read together. What is wrong with those after them does not fit into the pipe.
    cli.change("UPDATE journal SET description = 'x' WHERE account_id > 'a0499'")
    file = tmp_path / "place"
    first, status, kept = cli.interrupted(file, number)
    assert status == (130 if number == signal.SIGINT else -number)
    assert first.startswith("a0007 BALANCE_DIFFERS: expected ")
    assert (kept["after"], kept["accounts"], kept["unsound"]) == ("a0499", 500, 1)
    await ledger.open("a0100x")
    await ledger.open("a9999")  # opened meanwhile
    answer = cli.verify("--resume", file)
    assert answer.returncode == 1
    *lines, last = answer.stdout.splitlines()
    assert not [line for line in lines if line < "a0500"]
    assert last == f"521 accounts, 1560 entries: 21 unsound; the first: {first}"
    assert not file.exists()


async def test_interruption_that_was_forgotten_while_waiting_ends_the_run_after_its_batch(
    ledger, ledger_settings, monkeypatch
):
    await opened(ledger, 2)
    verified, engine = verify.verified, async_engine(ledger_settings)

    async def forgetful(*arguments, **words):
        asyncio.current_task().cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.sleep(0)
        return await verified(*arguments, **words)

    monkeypatch.setattr(verify, "verified", forgetful)
    chosen = argparse.Namespace(account=None, resume=None, json=False)
    with pytest.raises(asyncio.CancelledError):
        await asyncio.create_task(verify._verified(engine, chosen, Found(), verify._Report(as_json=False)))
    await engine.dispose()


def test_file_that_no_run_kept_is_refused_and_left_alone(cli, tmp_path):
    file = tmp_path / "mine"
    for content in ("", "[]", '{"after": 1}', '{"else": 1}'):
        file.write_text(content)
        with pytest.raises(CommandError, match="not what an interrupted run keeps"):
            Found.read(file)
    answer = cli.verify("--resume", file)
    assert (answer.returncode, answer.stderr) == (1, f"ledger: {file}: not what an interrupted run keeps\n")
    assert file.read_text() == content
    assert cli.verify("--resume", tmp_path / "none" / "file").returncode == 1


async def test_bar_is_on_the_terminal_and_the_result_in_the_file(ledger, cli, tmp_path):
    await opened(ledger, 2)
    status, shown = cli.on_terminal(tmp_path / "out", "--json")
    assert status == 0
    assert "2 accounts, 0 unsound" in shown
    assert "6/6" in shown
    assert json.loads((tmp_path / "out").read_text())["accounts"] == 2
