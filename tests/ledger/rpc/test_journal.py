"""The journal: double entry, without gaps, chained by hashes; lists of it with filters and stable pages."""

import psycopg
import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from tollkeeper.ledger.v1 import ledger_service_pb2 as pb
from tollkeeper.ledger.v1 import resources_pb2 as resources

from tests.ledger.support.ledger_audit import audit, rows
from tests.ledger.support.ledger_client import refused, violations


async def busy(ledger):
    """An account that has seen every kind of entry that holds and credit write."""
    await ledger.open(credit=1_000)
    await ledger.SetLimit(pb.SetLimitRequest(account_id="acme", window="day", amount=5_000))
    for number in range(6):
        provider = ("openai", "anthropic")[number % 2]
        words = {"key_id": f"k{number % 2}", "workspace": f"w{number % 3}"}
        await ledger.hold(100, f"h{number}", **words)
        usage = resources.UsageReport(
            provider=provider, model=f"m{number % 3}", session=f"s{number}", status=("ok", "cut")[number % 2]
        )
        await ledger.settle(50 + 20 * number, f"h{number}", usage=usage)
    await ledger.hold(10, "given-back")
    await ledger.release("given-back")
    await ledger.hold(400, "open")
    await ledger.settle(500, "open")
    await ledger.credit(300, source="promotion")


async def test_journal_balance_grants_and_holds_agree_and_the_chain_recomputes(ledger, ledger_settings):
    await busy(ledger)
    await ledger.hold(20, "still-open")
    assert len(audit(ledger_settings.database_url)["acme"]) == 19
    with psycopg.connect(ledger_settings.database_url) as connection:
        connection.execute("UPDATE journal SET description = 'forged' WHERE account_id = 'acme' AND sequence = 3")
    with pytest.raises(AssertionError, match="entry 3 was changed"):
        audit(ledger_settings.database_url)


async def test_each_transaction_sums_to_zero_and_says_what_the_balance_was(ledger):
    await busy(ledger)
    types = ("credit_purchase", "promotion", "usage_deduction", "hold", "hold_released")
    entries = [entry for kind in types for entry in await ledger.transactions(type=kind)]
    entries.sort(key=lambda entry: entry.sequence)
    available = 0
    for entry in entries:
        postings = {posting.sub_account: posting.amount_nanos for posting in entry.postings}
        assert sum(postings.values()) == 0
        assert entry.amount_nanos == postings.get("available", 0) + postings.get("held", 0)
        available += postings.get("available", 0)
        assert entry.balance_after_nanos == available
    assert available == (await ledger.balance()).available_nanos


async def test_journal_is_the_same_in_any_time_zone_of_the_database(ledger, ledger_settings):
    url = ledger_settings.database_url
    name = psycopg.conninfo.conninfo_to_dict(url)["dbname"]
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(f"ALTER DATABASE \"{name}\" SET timezone = 'Pacific/Kiritimati'")
    await busy(ledger)
    await ledger.balance()
    audit(url)
    (newest, *_) = await ledger.transactions()
    assert newest.transaction_id == f"txn-{newest.created_at.ToDatetime():%Y%m}-{newest.sequence}"
    replayed = await ledger.settle(500, "open")
    listed = await ledger.transactions(type="usage_deduction")
    assert replayed.transaction in listed
    request = pb.GetTransactionRequest(account_id="acme", transaction_id=newest.transaction_id)
    assert await ledger.GetTransaction(request) == newest


async def test_transactions_leave_out_moves_of_holds_unless_asked_for(ledger):
    await busy(ledger)
    assert {entry.type for entry in await ledger.transactions()} == {"credit_purchase", "promotion", "usage_deduction"}
    assert [entry.hold_id for entry in await ledger.transactions(type="hold_released")] == ["given-back"]


@pytest.mark.parametrize(
    ("words", "found"),
    [
        ({"key_id": "k1"}, ["h5", "h3", "h1"]),
        ({"workspace": "w0"}, ["h3", "h0"]),
        ({"provider": "openai"}, ["h4", "h2", "h0"]),
        ({"model": "m2"}, ["h5", "h2"]),
        ({"provider": "anthropic", "key_id": "k1", "model": "m0"}, ["h3"]),
        ({"provider": "nobody"}, []),
    ],
    ids=str,
)
async def test_transactions_and_usage_are_filtered(ledger, words, found):
    await busy(ledger)
    assert [entry.hold_id for entry in await ledger.transactions(**words)] == found
    assert [record.hold_id for record in await ledger.usage(**words)] == found


async def test_usage_is_filtered_by_session_status_type_and_time(ledger):
    await busy(ledger)
    assert [record.hold_id for record in await ledger.usage(session="s4")] == ["h4"]
    assert [record.hold_id for record in await ledger.usage(status="cut")] == ["h5", "h3", "h1"]
    paid_for = [entry.hold_id for entry in await ledger.transactions(type="usage_deduction")]
    assert [record.hold_id for record in await ledger.usage(type="usage_deduction")] == paid_for
    assert await ledger.usage(type="refund") == []
    third = (await ledger.usage(session="s3"))[0].created_at
    assert [record.hold_id for record in await ledger.usage(from_time=third)] == ["open", "h5", "h4", "h3"]
    assert [record.hold_id for record in await ledger.usage(to_time=third)] == ["h2", "h1", "h0"]
    early = [entry.hold_id for entry in await ledger.transactions(to_time=third)]
    assert early == ["h2", "h1", "h0", ""]


async def test_usage_record_says_what_was_used_and_which_transaction_paid(ledger):
    await ledger.open(credit=100)
    await ledger.hold(50, "h1", key_id="k1", workspace="w1")
    started = Timestamp(seconds=1_790_000_000, nanos=5_000)
    report = resources.UsageReport(
        session="s", provider="openai", model="gpt-4o", endpoint="/v1/chat/completions", input_tokens=11,
        output_tokens=7, cached_tokens=3, cache_write_tokens=2, reasoning_tokens=1, input_cost_nanos=5,
        output_cost_nanos=6, cost_nanos=12, price_version=4, duration_milliseconds=321, status="cut", estimated=True,
        started_at=started, provider_request_id="abc", service_tier="flex", units={"audio_input": 4}, internal=True,
    )  # fmt: skip
    settled = await ledger.settle(18, "h1", usage=report, tokens=18)
    (record,) = await ledger.usage()
    for field in report.DESCRIPTOR.fields_by_name:
        assert getattr(record, field) == getattr(report, field), field
    assert (record.usage_id, record.transaction_id) == (settled.usage_id, settled.transaction.transaction_id)
    assert (record.billed_nanos, record.billable, record.total_tokens) == (18, True, 18)
    assert (record.key_id, record.workspace, record.hold_id) == ("k1", "w1", "h1")
    assert settled.transaction.usage_id == record.usage_id


async def test_usage_without_a_start_began_when_it_was_booked(ledger):
    await ledger.open(credit=100)
    await ledger.hold(50, "h1")
    await ledger.settle(1, "h1", usage=resources.UsageReport(provider="openai"))
    (record,) = await ledger.usage()
    assert record.started_at == record.created_at


async def pages(call, request, field, size):
    """All pages of a list, and the request whose token each was found with."""
    found = []
    request.page_size = size
    while True:
        answer = await call(request)
        found.append(list(getattr(answer, field)))
        request.page_token = answer.next_page_token
        if not request.page_token:
            return found


async def test_pages_are_whole_and_stable_while_new_rows_come(ledger):
    await busy(ledger)
    whole = await ledger.transactions()
    first = await ledger.ListTransactions(pb.ListTransactionsRequest(account_id="acme", page_size=3))
    await ledger.credit(1)
    request = pb.ListTransactionsRequest(account_id="acme", page_token=first.next_page_token)
    rest = await pages(ledger.ListTransactions, request, "transactions", 3)
    assert [*first.transactions, *(entry for page in rest for entry in page)] == whole
    assert [len(page) for page in rest] == [3, 3]
    records = await pages(ledger.ListUsage, pb.ListUsageRequest(account_id="acme"), "records", 4)
    assert [len(page) for page in records] == [4, 3]
    assert [record for page in records for record in page] == await ledger.usage()


async def test_accounts_are_listed_by_id_and_status(ledger):
    for name in ("b", "a", "d", "c"):
        await ledger.open(name)
    await ledger.SuspendAccount(pb.SuspendAccountRequest(account_id="c", request_id="r"))
    found = await pages(ledger.ListAccounts, pb.ListAccountsRequest(), "accounts", 3)
    assert [[account.account_id for account in page] for page in found] == [["a", "b", "c"], ["d"]]
    suspended = await ledger.ListAccounts(pb.ListAccountsRequest(status="suspended"))
    assert [account.account_id for account in suspended.accounts] == ["c"]


async def test_page_token_of_another_request_is_refused(ledger):
    await busy(ledger)
    token = (await ledger.ListUsage(pb.ListUsageRequest(account_id="acme", page_size=1))).next_page_token
    request = pb.ListUsageRequest(account_id="acme", page_token=token, provider="openai")
    assert violations(await refused(ledger.ListUsage(request))) == {"page_token"}
    await ledger.open("other")
    request = pb.ListUsageRequest(account_id="other", page_token=token)
    assert violations(await refused(ledger.ListUsage(request))) == {"page_token"}


async def test_rows_of_each_month_are_in_its_partition(ledger, ledger_settings):
    await busy(ledger)
    assert rows(ledger_settings.database_url, "SELECT 1 FROM journal_default") == []
    assert rows(ledger_settings.database_url, "SELECT 1 FROM usage_default") == []
