"""Sums of usage: exactly what the records say, by any dimension."""

from datetime import UTC, datetime

import psycopg
import pytest
from tollkeeper.ledger.v1 import ledger_service_pb2 as pb
from tollkeeper.ledger.v1 import resources_pb2 as resources

from services.kit import validation
from tests.ledger.support.ledger_client import refused

CALLS = (
    # provider, model, key, workspace, input, output, cost, billed
    ("openai", "gpt-4o", "k1", "web", 10, 5, 100, 150),
    ("openai", "gpt-4o", "k2", "web", 20, 7, 200, 300),
    ("openai", "gpt-4-turbo", "k1", "", 1, 1, 40, 60),
    ("google", "gemini-1.5-pro", "k1", "app", 3, 9, 7, 11),
)


class Later(datetime):
    """The time when the month is over."""

    @classmethod
    def now(cls, tz=None):
        return cls(2099, 1, 1, tzinfo=tz)


@pytest.fixture
async def used(ledger):
    await ledger.open(credit=10_000)
    for number, (provider, model, key_id, workspace, read, written, cost, billed) in enumerate(CALLS):
        await ledger.hold(billed, f"h{number}", key_id=key_id, workspace=workspace)
        report = resources.UsageReport(
            provider=provider, model=model, input_tokens=read, output_tokens=written, cost_nanos=cost,
            internal=provider == "google",
        )  # fmt: skip
        await ledger.settle(billed, f"h{number}", usage=report)
    await ledger.open("other", credit=10_000)
    await ledger.hold(5, "h0", "other")
    await ledger.settle(5, "h0", "other", usage=resources.UsageReport(provider="openai", cost_nanos=5))
    return ledger


def figures(summary):
    return summary.requests, summary.total_tokens, summary.cost_nanos, summary.billed_nanos


async def test_sums_by_each_dimension_are_those_of_the_records(used):
    async def sums(*group_by, **words):
        request = pb.SummarizeUsageRequest(account_id="acme", group_by=group_by, **words)
        return (await used.SummarizeUsage(request)).summaries

    (whole,) = await sums()
    assert figures(whole) == (4, 56, 347, 521)
    assert (whole.internal_requests, whole.internal_tokens) == (1, 12)
    assert {x.provider: figures(x) for x in await sums("provider")} == {
        "google": (1, 12, 7, 11),
        "openai": (3, 44, 340, 510),
    }
    assert [(x.key_id, x.model, x.requests) for x in await sums("key", "model")] == [
        ("k1", "gemini-1.5-pro", 1),
        ("k1", "gpt-4-turbo", 1),
        ("k1", "gpt-4o", 1),
        ("k2", "gpt-4o", 1),
    ]
    today = datetime.now(UTC)
    assert [(x.day, x.month) for x in await sums("day", "month")] == [(f"{today:%Y-%m-%d}", f"{today:%Y-%m}")]
    assert [figures(x) for x in await sums(key_id="k1", provider="openai")] == [(2, 17, 140, 210)]


async def test_workspaces_of_a_month_include_calls_of_none(used):
    answer = await used.ListWorkspaces(pb.ListWorkspacesRequest(account_id="acme"))
    assert {x.workspace: x.billed_nanos for x in answer.workspaces} == {"": 60, "app": 11, "web": 450}
    earlier = await used.ListWorkspaces(pb.ListWorkspacesRequest(account_id="acme", month="2020-12"))
    assert (earlier.month, list(earlier.workspaces)) == ("2020-12", [])


async def test_workspaces_come_page_by_page_each_once_and_all_of_the_month_that_the_first_page_is_of(used, monkeypatch):
    found, token = [], ""
    while True:
        answer = await used.ListWorkspaces(pb.ListWorkspacesRequest(account_id="acme", page_size=1, page_token=token))
        found += [(answer.month, x.workspace, x.requests) for x in answer.workspaces]
        if not (token := answer.next_page_token):
            break
        # What is used meanwhile, in a workspace that has been given, moves nothing.
        await used.hold(1, f"meanwhile-{len(found)}")
        await used.settle(1, f"meanwhile-{len(found)}")
    month = f"{datetime.now(UTC):%Y-%m}"
    assert found == [(month, "", 1), (month, "app", 1), (month, "web", 2)]
    first = await used.ListWorkspaces(pb.ListWorkspacesRequest(account_id="acme", page_size=1))
    monkeypatch.setattr(validation, "datetime", Later)
    rest = pb.ListWorkspacesRequest(account_id="acme", page_token=first.next_page_token)
    answer = await used.ListWorkspaces(rest)
    assert (answer.month, [x.workspace for x in answer.workspaces]) == (month, ["app", "web"])


async def test_many_accounts_come_to_what_each_has(used):
    await used.credit(30, "other", source="promotion")
    bought = await used.credit(70, "other")
    await used.ReverseTransaction(
        pb.ReverseTransactionRequest(
            account_id="other", transaction_id=bought.transaction_id, amount_nanos=20, request_id="back"
        )
    )
    await used.open("idle")
    asked = pb.SummarizeAccountsRequest(account_ids=["other", "acme", "idle", "nobody"], types=["credit_purchase"])
    found = {x.account_id: x for x in (await used.SummarizeAccounts(asked)).accounts}
    assert {name: x.cost_nanos for name, x in found.items()} == {"acme": 347, "other": 5}
    given = {name: [(c.type, c.amount_nanos, c.refunded_nanos) for c in x.credits] for name, x in found.items()}
    first = ("credit_purchase", 10_000, 0)
    assert given == {"acme": [first], "other": [first, ("credit_purchase", 70, 20)]}
    asked.from_time.FromDatetime(datetime(2020, 1, 1, tzinfo=UTC))
    asked.to_time.FromDatetime(datetime(2020, 2, 1, tzinfo=UTC))
    assert not (await used.SummarizeAccounts(asked)).accounts


async def test_sums_over_all_accounts(used):
    answer = await used.SummarizeAllUsage(pb.SummarizeAllUsageRequest(group_by=["provider"]))
    assert {x.provider: x.cost_nanos for x in answer.summaries} == {"google": 7, "openai": 345}
    assert answer.active_accounts == 2


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        (pb.SummarizeUsageRequest(account_id="acme", group_by=["colour"]), "group_by[0]"),
        (pb.SummarizeUsageRequest(account_id="acme", group_by=["day", "day"]), "group_by[1]"),
        (pb.ListWorkspacesRequest(account_id="acme", month="2026-13"), "month"),
        (pb.ListWorkspacesRequest(account_id="acme", month="last"), "month"),
        (pb.SummarizeAccountsRequest(), "account_ids"),
        (pb.SummarizeAccountsRequest(account_ids=["a"] * 1001), "account_ids"),
        (pb.SummarizeAccountsRequest(account_ids=["acme", "a b"]), "account_ids[1]"),
        (pb.SummarizeAccountsRequest(account_ids=["acme"], types=["gift"]), "types[0]"),
    ],
)
async def test_malformed_sum_names_the_field(ledger, request_, field):
    name = type(request_).__name__.removesuffix("Request")
    refusal = await refused(getattr(ledger, name)(request_))
    assert [violation.field for violation in refusal.violations] == [field]


@pytest.mark.parametrize(
    ("words", "total"),
    [
        ({"window": "lifetime"}, 521 + 1_007),
        ({"window": "lifetime", "scope": "key", "subject": "k1"}, 221 + 1_000),
        ({"window": "lifetime", "scope": "workspace", "subject": "web", "unit": "requests"}, 2 + 40),
        ({"window": "month"}, 521),
    ],
    ids=str,
)
async def test_new_lifetime_limit_counts_what_archived_records_come_to(used, ledger_settings, words, total):
    with psycopg.connect(ledger_settings.database_url) as connection:
        connection.execute(
            "INSERT INTO archived_use VALUES ('acme', 'k1', 'web', 1000, 0, 40), ('acme', 'k2', '', 7, 0, 5), "
            "('other', 'k1', 'web', 1, 1, 1)"
        )
    limit = await used.SetLimit(pb.SetLimitRequest(account_id="acme", amount=9_999, **words))
    assert limit.used == total
