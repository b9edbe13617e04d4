"""The command `months`: from a month's partitions to files that are what the database had."""

import asyncio
import hashlib
import json
import re

import pyarrow.parquet as pq
import pytest

from services.kit.command import main
from services.ledger.__main__ import MIGRATIONS
from services.ledger.archive import write_archive
from services.ledger.assembly import make_server
from services.ledger.commands import COMMANDS
from services.ledger.settings import LedgerSettings
from services.ledger.store.months import MonthError, detach
from services.ledger.store.partitions import month_name
from tests.ledger.support.ledger_audit import rows
from tests.ledger.support.ledger_past import THREE, TWO, connected, make_past, months_ago, two_old_months


def run(capsys, monkeypatch, settings, *words):
    monkeypatch.setenv("TOLLKEEPER_LEDGER_DATABASE_URL", settings.database_url)
    arguments = {"serve": make_server, "script_location": MIGRATIONS, "own": COMMANDS, "arguments": ["months", *words]}
    status = main(LedgerSettings, **arguments)
    told = capsys.readouterr()
    return status, told.out, told.err


@pytest.fixture
def past(ledger_settings):
    async def make():
        async with connected(ledger_settings) as connection:
            await make_past(connection, 4)
            await two_old_months(connection)

    asyncio.run(make())
    return ledger_settings


def test_commands_take_a_month_from_its_partitions_to_verified_files(past, tmp_path, capsys, monkeypatch):
    def command(*words):
        return run(capsys, monkeypatch, past, *words)

    oldest, month, folder = month_name(months_ago(4)), month_name(THREE), tmp_path / "archive"
    before = {
        t: rows(past.database_url, f"SELECT * FROM {t}_{THREE:%Y_%m} ORDER BY 1, 2") for t in ("journal", "usage")
    }
    assert command("detach", month)[0::2] == (
        1,
        f"ledger: months are detached in order: {oldest} is older than {month}\n",
    )
    assert command("archive", month, "--output", str(folder))[0] == 1
    assert command("detach", oldest)[:2] == (
        0,
        f"{oldest} is detached: 0 journal entries, 0 usage records; archive it next\n",
    )
    assert json.loads(command("detach", month, "--json")[1]) == {"month": month, "journal_rows": 8, "usage_rows": 2}
    status, out, _ = command("archive", month, "--output", str(folder), "--json")
    manifest = json.loads(out)
    assert (status, manifest["dropped"]) == (0, False)
    assert json.loads((folder / f"ledger-{month}.json").read_text())["tables"] == manifest["tables"]
    for name, table in manifest["tables"].items():
        content = (folder / table["file"]).read_bytes()
        assert hashlib.sha256(content).hexdigest() == table["sha256"]
        found = pq.read_table(folder / table["file"]).to_pylist()
        wanted = [as_archived(row) for row in before[name]]
        assert found == wanted
        assert table["rows"] == len(wanted)
        assert table["first"]["account_id"] == "acme"
        assert table["last"]["account_id"] == "bert"
    assert not list(folder.glob("*.part"))
    listed = {row["month"]: row for row in json.loads(command("list", "--json")[1])}
    assert (listed[month]["state"], listed[month]["archived"], listed[month]["journal_rows"]) == ("detached", True, 8)
    assert command("archive", month, "--output", str(folder), "--drop")[0] == 0
    assert (
        command("archive", month, "--output", str(folder), "--drop")[2] == f"ledger: {month} is dropped, not detached\n"
    )
    status, out, _ = command("list")
    assert status == 0
    assert re.search(rf"{oldest} +detached", out)
    assert re.search(rf"{month} +dropped +yes +8 +2 +0", out)
    assert re.search(rf"{month_name(TWO)} +attached", out)


def as_archived(row):
    words = row._asdict()
    for name in ("grant_uses", "units"):
        if name in words:
            words[name] = json.dumps(words[name])
    return words


def test_wrong_arguments_and_places_are_told_in_a_line(past, tmp_path, capsys, monkeypatch):
    for words in (["detach", "2026-13"], ["detach", "x"], ["create", "--ahead", "0"], ["create", "--ahead", "61"], []):
        with pytest.raises(SystemExit, match="2"):
            run(capsys, monkeypatch, past, *words)
    capsys.readouterr()
    (tmp_path / "file").write_text("")
    status, _, told = run(capsys, monkeypatch, past, "archive", month_name(THREE), "--output", str(tmp_path / "file"))
    assert (status, told.count("\n")) == (1, 1)


def test_months_are_made_as_far_ahead_as_asked(past, capsys, monkeypatch):
    status, out, _ = run(capsys, monkeypatch, past, "create", "--ahead", "5")
    assert (status, out.count("made ")) == (0, 4)
    assert run(capsys, monkeypatch, past, "create", "--ahead", "5")[1] == "nothing was missing\n"


async def test_archive_that_is_not_what_the_database_has_drops_nothing(
    connection, ledger_settings, tmp_path, monkeypatch
):
    await two_old_months(connection)
    for moment in (months_ago(4), THREE):
        await detach(connection, month_name(moment))
    real = pq.ParquetFile.iter_batches

    def damaged(self, **words):
        return list(real(self, **words))[:-1]

    monkeypatch.setattr(pq.ParquetFile, "iter_batches", damaged)
    with pytest.raises(MonthError, match="not what was written"):
        await write_archive(connection, month_name(THREE), tmp_path)
    assert not list(tmp_path.glob("*.parquet"))
    assert not list(tmp_path.glob("*.json"))
