"""`python -m services.ledger export`: a whole file or none, and a line that says what is wrong."""

import asyncio
import csv
import io
import os
import stat
import sys
from types import SimpleNamespace

import psycopg
import pyarrow.parquet as pq
import pytest
from tollkeeper.ledger.v1 import ledger_service_pb2 as pb


@pytest.fixture
async def busy(ledger):
    await ledger.open(credit=1_000)
    for number in range(1, 4):
        await ledger.hold(10, f"h{number}")
        await ledger.settle(number, f"h{number}")
    return ledger


@pytest.fixture
def export(ledger_settings):
    """Runs the command; its status, standard output (bytes) and standard error (text)."""

    async def run(*words, stdout=asyncio.subprocess.PIPE, **environment):
        environment = os.environ | {"TOLLKEEPER_LEDGER_DATABASE_URL": ledger_settings.database_url} | environment
        command = (sys.executable, "-m", "services.ledger", "export", *map(str, words))
        process = await asyncio.create_subprocess_exec(
            *command, stdout=stdout, stderr=asyncio.subprocess.PIPE, env=environment
        )
        out, err = await process.communicate()
        return SimpleNamespace(status=process.returncode, out=out, err=err.decode())

    return run


async def test_export_to_standard_output_is_what_the_rpc_streams(busy, export):
    done = await export("--account", "acme")
    assert (done.status, done.err) == (0, "3 rows\n")
    chunks = [piece.chunk async for piece in busy.Export(pb.ExportRequest(account_id="acme"))]
    assert done.out == b"".join(chunks)


async def test_export_of_transactions_to_a_parquet_file(busy, export, tmp_path):
    file = tmp_path / "with a space.parquet"
    words = ("--what", "transactions", "--format", "parquet", "--output", file)
    done = await export("--account", "acme", *words)
    assert (done.status, done.out, done.err) == (0, b"", "4 rows\n")
    assert pq.read_table(file).column("amount_nanos").to_pylist() == [1_000, -1, -2, -3]
    assert stat.S_IMODE(file.stat().st_mode) == 0o600  # a customer's data
    assert list(tmp_path.iterdir()) == [file]


async def test_times_are_utc_unless_they_say_otherwise(busy, export):
    records = list(reversed(await busy.usage()))
    second = records[1].created_at.ToDatetime()
    done = await export("--account", "acme", "--from", second.isoformat(), "--to", "9000-01-01T00:00+02:00")
    assert [row["hold_id"] for row in csv.DictReader(io.StringIO(done.out.decode()))] == ["h2", "h3"]
    done = await export("--account", "acme", "--from", "2000-01-01", "--to", f"{second.isoformat()}Z")
    assert [row["hold_id"] for row in csv.DictReader(io.StringIO(done.out.decode()))] == ["h1"]


async def test_what_is_due_has_happened_in_an_export(busy, export, ledger_settings):
    await busy.hold(10, "lapses")
    with psycopg.connect(ledger_settings.database_url) as connection:
        connection.execute("UPDATE holds SET expires_at = now() WHERE hold_id = 'lapses'")
        connection.execute("UPDATE accounts SET next_event_at = now()")
    assert (await export("--account", "acme", "--what", "transactions")).status == 0
    with psycopg.connect(ledger_settings.database_url) as connection:
        assert connection.execute("SELECT status FROM holds WHERE hold_id = 'lapses'").fetchone() == ("expired",)


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        (("--account", "nobody"), 1, "ledger: ACCOUNT_NOT_FOUND: there is no account nobody\n"),
        (("--account", "no account"), 1, "ledger: --account must be 1 to 64"),
        (("--account", "acme", "--from", "2026-02-01", "--to", "2026-01-01"), 1, "ledger: from must not be after `to`"),
        (("--account", "acme", "--from", "soon"), 2, "'soon' is no time such as 2026-11-01"),
        (("--account", "acme", "--format", "xls"), 2, "invalid choice: 'xls'"),
        (("--account", "acme", "--output", "/nowhere/at/all.csv"), 1, "ledger: /nowhere/at/all.csv cannot be written"),
        (("--account", "acme", "--output", "/dev/null"), 1, "ledger: /dev/null is no file\n"),
        ((), 2, "required: --account"),
    ],
    ids=str,
)
async def test_what_cannot_be_exported_is_told_in_a_line(busy, export, words, status, said):
    done = await export(*words)
    assert (done.status, done.out) == (status, b"")
    assert said in done.err
    assert "Traceback" not in done.err


async def test_export_that_fails_leaves_what_was_there_before(busy, export, tmp_path, ledger_settings):
    file = tmp_path / "usage.csv"
    file.write_text("of yesterday")
    done = await export("--account", "acme", "--output", file, TOLLKEEPER_LEDGER_DATABASE_POOL_SIZE="0")
    assert done.status == 2
    with psycopg.connect(ledger_settings.database_url) as connection:
        connection.execute("ALTER TABLE usage RENAME TO gone")
    done = await export("--account", "acme", "--output", file)
    assert done.status == 1
    assert file.read_text() == "of yesterday"
    assert list(tmp_path.iterdir()) == [file]


async def test_reader_that_stops_reading_ends_the_export_with_a_line(busy, export):
    reading, writing = os.pipe()
    os.close(reading)
    try:
        done = await export("--account", "acme", stdout=writing)
    finally:
        os.close(writing)
    assert (done.status, done.err) == (1, "ledger: - cannot be written: Broken pipe\n")
