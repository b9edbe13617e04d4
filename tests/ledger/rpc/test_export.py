"""Exports: every row once, in files that other programs read, whatever is written meanwhile."""

import asyncio
import contextlib
import csv
import io
import json
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace

import grpc
import psycopg
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tollkeeper.ledger.v1 import ledger_service_pb2 as pb
from tollkeeper.ledger.v1 import resources_pb2 as resources

from services.ledger import service
from services.ledger.export import parquet
from tests.ledger.support.ledger_client import refused, violations
from tests.ledger.support.ledger_clock import Clock, stamp

USAGE_COLUMNS = (
    "usage_id,account_id,created_at,started_at,key_id,workspace,session,provider,model,endpoint,service_tier,status,"
    "input_tokens,output_tokens,total_tokens,cached_tokens,cache_write_tokens,reasoning_tokens,units,input_cost_nanos,"
    "output_cost_nanos,cost_nanos,billed_nanos,billable,internal,estimated,price_version,duration_milliseconds,hold_id,"
    "transaction_id,provider_request_id"
)
TRANSACTION_COLUMNS = (
    "transaction_id,account_id,sequence,created_at,type,amount_nanos,funding_nanos,available_nanos,held_nanos,"
    "spent_nanos,expired_nanos,balance_after_nanos,grant_uses,description,request_id,hold_id,usage_id,"
    "original_transaction_id,refunded_nanos,key_id,workspace,provider,model,hash"
)


async def received(ledger, **words):
    """An export's bytes and rows; how it comes in pieces is as promised."""
    pieces = [x async for x in ledger.Export(pb.ExportRequest(**({"account_id": "acme"} | words)))]
    assert all(0 < len(piece.chunk) <= 64 * 1024 for piece in pieces)
    assert all(len(piece.chunk) == 64 * 1024 and not piece.rows for piece in pieces[:-1])
    return b"".join(piece.chunk for piece in pieces), pieces[-1].rows


async def comma_separated(ledger, **words):
    content, count = await received(ledger, **words)
    text = content.decode()
    assert text.endswith("\r\n")
    rows = list(csv.DictReader(io.StringIO(text, newline="")))
    assert len(rows) == count
    return rows


async def table(ledger, **words):
    content, count = await received(ledger, format="parquet", **words)
    found = pq.read_table(pa.BufferReader(content))
    assert found.num_rows == count
    return found


async def used(ledger, number, **words):
    await ledger.hold(10, f"h{number}", key_id="k1", workspace="w1")
    words = {"provider": "openai", "model": "gpt-4o", "input_tokens": number, "output_tokens": 2} | words
    return await ledger.settle(number, f"h{number}", usage=resources.UsageReport(**words), description="said, twice")


@pytest.fixture
async def busy(ledger):
    await ledger.open(credit=10**18)
    for number in range(1, 6):
        await used(ledger, number)
    await ledger.open("other", credit=5)
    return ledger


def written(moment):
    return f"{moment.ToDatetime():%Y-%m-%dT%H:%M:%S.%fZ}"


async def test_usage_as_csv_is_each_record_oldest_first(busy):
    await used(
        busy,
        9,
        session='comma, "quote"\nline',
        cached_tokens=1,
        cost_nanos=7,
        estimated=True,
        units={"image": 3, "b": 1},
    )
    rows = await comma_separated(busy)
    records = list(reversed(await busy.usage()))
    assert ",".join(rows[0]) == USAGE_COLUMNS
    assert [row["usage_id"] for row in rows] == [record.usage_id for record in records]
    for row, record in zip(rows, records, strict=True):
        for name, value in row.items():
            own = getattr(record, name)
            if name in {"created_at", "started_at"}:
                assert value == written(own)
            elif name == "units":
                assert json.loads(value) == dict(own)
            else:
                assert value == (str(own).lower() if isinstance(own, bool) else str(own)), name
    assert (rows[-1]["session"], rows[-1]["estimated"], rows[0]["billable"]) == ('comma, "quote"\nline', "true", "true")


async def test_transactions_as_csv_are_each_entry_oldest_first_without_moves_of_holds(busy):
    (newest, *_) = await busy.transactions()
    await busy.RefundTransaction(
        pb.RefundTransactionRequest(
            account_id="acme", transaction_id=newest.transaction_id, amount_nanos=2, request_id="r"
        )
    )
    await busy.hold(5, "still-open")
    rows = await comma_separated(busy, what="transactions")
    entries = list(reversed(await busy.transactions()))
    assert ",".join(rows[0]) == TRANSACTION_COLUMNS
    assert [row["transaction_id"] for row in rows] == [entry.transaction_id for entry in entries]
    same = ("account_id", "sequence", "type", "amount_nanos", "balance_after_nanos", "description", "request_id",
            "hold_id", "usage_id", "original_transaction_id", "refunded_nanos", "key_id", "workspace",
            "hash")  # fmt: skip
    for row, entry in zip(rows, entries, strict=True):
        assert [row[name] for name in same] == [str(getattr(entry, name)) for name in same]
        assert row["created_at"] == written(entry.created_at)
        moves = {posting.sub_account: posting.amount_nanos for posting in entry.postings}
        for name in ("funding", "available", "held", "spent", "expired"):
            assert int(row[f"{name}_nanos"]) == moves.get(name, 0)
        assert json.loads(row["grant_uses"]) == [[use.grant_id, use.amount_nanos] for use in entry.grant_uses]
    assert rows[-2]["refunded_nanos"] == "2"


@pytest.mark.parametrize("what", ["usage", "transactions"])
async def test_parquet_has_the_same_columns_and_values_with_their_types(busy, what):
    await used(busy, 9, units={"image": 3})
    rows, found = await comma_separated(busy, what=what), await table(busy, what=what)
    assert found.schema.names == list(rows[0])
    for field in found.schema:
        counted = field.name.endswith(("_nanos", "_tokens")) or field.name in {
            "sequence", "price_version", "duration_milliseconds",
        }  # fmt: skip
        timed = field.name in {"created_at", "started_at"}
        yes_or_no = field.name in {"billable", "estimated", "internal"}
        expected = (
            pa.int64() if counted else pa.timestamp("us", "UTC") if timed else pa.bool_() if yes_or_no else pa.string()
        )
        assert field.type == expected, field.name
    for row, other in zip(rows, found.to_pylist(), strict=True):
        for name, value in other.items():
            if isinstance(value, datetime):
                assert row[name] == f"{value:%Y-%m-%dT%H:%M:%S.%fZ}"
            else:
                assert row[name] == (str(value).lower() if isinstance(value, bool) else str(value))


async def test_amounts_beyond_what_a_float_holds_are_exact(ledger):
    await ledger.open()
    most = 10**18 - 1
    await ledger.credit(most)
    (row,) = await comma_separated(ledger, what="transactions")
    assert (int(row["amount_nanos"]), int(row["funding_nanos"])) == (most, -most)
    (other,) = (await table(ledger, what="transactions")).to_pylist()
    assert (other["amount_nanos"], other["funding_nanos"]) == (most, -most)


@pytest.mark.parametrize("start", ["=", "+", "-", "@", "\t", "\n", "\r"])
async def test_text_that_a_spreadsheet_would_run_is_put_behind_a_quote_in_csv_alone(busy, start):
    formula = f'{start}HYPERLINK("http://x")'
    await used(busy, 9, session=formula, model="minus - inside")
    row = (await comma_separated(busy))[-1]
    assert (row["session"], row["model"]) == (f"'{formula}", "minus - inside")
    assert (await table(busy)).to_pylist()[-1]["session"] == formula
    spent = (await comma_separated(busy, what="transactions"))[-1]
    assert spent["amount_nanos"] == "-9"  # a number is no formula


@pytest.mark.parametrize("what", ["usage", "transactions"])
async def test_nothing_to_export_is_a_whole_file_without_rows(ledger, what):
    await ledger.open()
    content, count = await received(ledger, what=what)
    columns = USAGE_COLUMNS if what == "usage" else TRANSACTION_COLUMNS
    assert (content.decode(), count) == (f"{columns}\r\n", 0)
    assert (await table(ledger, what=what)).schema.names == columns.split(",")


async def test_export_is_of_the_time_asked_for_by_default_of_this_month(ledger, monkeypatch):
    clock = Clock(monkeypatch, datetime(2026, 3, 31, 23, 59, 59, tzinfo=UTC))
    await ledger.open(credit=100)
    await used(ledger, 1)
    clock.now = datetime(2026, 4, 1, tzinfo=UTC)
    await used(ledger, 2)
    clock.wait(microseconds=1)
    await used(ledger, 3)
    clock.wait(microseconds=1)
    assert [row["hold_id"] for row in await comma_separated(ledger)] == ["h2", "h3"]
    before = {"to_time": stamp(datetime(2026, 4, 1, tzinfo=UTC)), "from_time": stamp(datetime(2026, 3, 1, tzinfo=UTC))}
    assert [row["hold_id"] for row in await comma_separated(ledger, **before)] == ["h1"]
    until = {"to_time": stamp(datetime(2026, 4, 1, tzinfo=UTC) + timedelta(microseconds=1))}
    assert [row["hold_id"] for row in await comma_separated(ledger, **until)] == ["h2"]


@pytest.mark.parametrize(
    ("words", "fields"),
    [
        ({"what": "money", "format": "xls"}, {"format", "what"}),
        ({"from_time": stamp(datetime(2026, 3, 2, tzinfo=UTC)), "to_time": stamp(datetime(2026, 3, 1, tzinfo=UTC))},
         {"from"}),
        ({"account_id": "no account"}, {"account_id"}),
    ],
    ids=["words", "times", "account"],
)  # fmt: skip
async def test_malformed_export_names_the_field(ledger, words, fields):
    assert violations(await refused(received(ledger, **words))) == fields


async def test_export_of_an_account_that_is_not_there_is_refused(ledger):
    assert (await refused(received(ledger, account_id="nobody"))).reason == "ACCOUNT_NOT_FOUND"


ROWS = 3_000


@pytest.fixture
async def large(busy, ledger_settings):
    """Many records, put there at once: what the account says of itself does not matter here."""
    with psycopg.connect(ledger_settings.database_url) as connection:
        columns = "account_id, key_id, workspace, transaction_id, billed, billable, provider, model, endpoint, status, "
        columns += "input_tokens, output_tokens, cached_tokens, cache_write_tokens, reasoning_tokens, input_cost, "
        columns += "output_cost, cost, price_version, duration_milliseconds, estimated, started_at, "
        columns += "provider_request_id, service_tier, created_at"
        connection.execute(
            f"INSERT INTO usage (hold_id, usage_number, session, {columns}) "
            f"SELECT 'many-' || n, 100 + n, repeat(md5(n::text), 5), {columns} "
            f"FROM usage, generate_series(1, {ROWS}) n WHERE usage_number = 1"
        )
    return busy


async def test_large_export_has_every_row_once_in_groups_of_bounded_size(large, monkeypatch):
    monkeypatch.setattr(parquet, "ROW_GROUP_ROWS", 1_000)
    rows = await comma_separated(large)
    assert len(rows) == ROWS + 5
    assert len({row["usage_id"] for row in rows}) == ROWS + 5
    content, _ = await received(large, format="parquet")
    file = pq.ParquetFile(pa.BufferReader(content))
    groups = [file.metadata.row_group(number).num_rows for number in range(file.num_row_groups)]
    assert (sum(groups), len(groups), max(groups)) == (ROWS + 5, 4, 1_000)
    assert file.read().column("usage_id").to_pylist() == [row["usage_id"] for row in rows]


async def test_export_is_of_one_moment_whatever_is_written_meanwhile(large):
    request = pb.ExportRequest(account_id="acme", to_time=stamp(datetime.now(UTC) + timedelta(days=1)))
    stream = aiter(large.Export(request))
    pieces = [await anext(stream)]
    await used(large, 9)
    pieces += [piece async for piece in stream]
    text = b"".join(piece.chunk for piece in pieces).decode()
    assert pieces[-1].rows == ROWS + 5
    assert ",h9," not in text
    assert len(await comma_separated(large)) == ROWS + 6


def open_snapshots(url):
    """Transactions of readers that are under way."""
    with psycopg.connect(url, autocommit=True) as connection:
        query = """SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()
                   AND application_name = 'tollkeeper-ledger' AND xact_start IS NOT NULL"""
        return connection.execute(query).fetchone()[0]


@pytest.fixture
async def held_up(monkeypatch):
    """Exports to Parquet stop at their first rows, once `begun` is set, and go on when `going_on` is."""
    begun, going_on = asyncio.Event(), asyncio.Event()
    real, loop = parquet.ParquetFile.add, asyncio.get_running_loop()

    def add(file, rows):
        loop.call_soon_threadsafe(begun.set)
        asyncio.run_coroutine_threadsafe(going_on.wait(), loop).result()
        return real(file, rows)

    monkeypatch.setattr(parquet.ParquetFile, "add", add)
    yield SimpleNamespace(begun=begun, going_on=going_on)
    going_on.set()


@pytest.mark.parametrize("how", ["cancelled", "deadline"])
async def test_export_that_its_reader_gives_up_ends_and_lets_go_of_what_it_holds(large, ledger_settings, held_up, how):
    stub = large.journal.Export
    request = pb.ExportRequest(account_id="acme", format="parquet")
    call = stub(request, metadata=large.metadata, timeout=0.5 if how == "deadline" else 30)
    reading = asyncio.create_task(call.read())
    await held_up.begun.wait()
    assert open_snapshots(ledger_settings.database_url) == 1
    if how == "cancelled":
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reading
    else:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await reading
        assert caught.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
    held_up.going_on.set()
    # Its place is free again, and with it what it held.
    assert await once_there_is_room(large) == ROWS + 5
    assert open_snapshots(ledger_settings.database_url) == 0


async def once_there_is_room(ledger):
    for _ in range(500):
        with contextlib.suppress(grpc.RpcError):
            return (await received(ledger))[1]
        await asyncio.sleep(0.01)
    raise AssertionError("the export that was given up is still under way")


async def test_account_has_one_export_at_a_time_and_all_together_a_few(busy, held_up, monkeypatch):
    for account_id in ("b", "c"):
        await busy.open(account_id)
    monkeypatch.setattr(service, "MAX_EXPORTS", 2)
    first = asyncio.create_task(table(busy))
    await held_up.begun.wait()
    second = await refused(received(busy))
    assert (second.reason, second.kind.http_status) == ("OVERLOADED", 429)
    assert (await received(busy, account_id="b"))[1] == 0
    monkeypatch.setattr(service, "MAX_EXPORTS", 1)
    assert (await refused(received(busy, account_id="c"))).reason == "OVERLOADED"
    held_up.going_on.set()
    assert (await first).num_rows == 5
    assert (await received(busy))[1] == 5
