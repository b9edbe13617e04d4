"""Bad input: each request names every field that is wrong, is never a fault of ours, and writes nothing."""

import grpc
from google.protobuf.timestamp_pb2 import Timestamp
from tollkeeper.ledger.v1 import ledger_service_pb2 as pb
from tollkeeper.ledger.v1 import resources_pb2 as resources

from tests.ledger.support.ledger_audit import rows
from tests.ledger.support.ledger_client import fields, refused, violations

LONG = "x" * 10_000
NUL = "a\0b"
MOST = 2**63 - 1
LEAST = -(2**63)
FAR = Timestamp(seconds=253_402_300_799)
BEFORE = Timestamp(seconds=-1)
TOKEN = "W251bGwsMV0"


def report(**words):
    return pb.SettleHoldRequest(account_id="acme", hold_id="h1", usage=resources.UsageReport(**words))


CASES = [
    ("OpenAccount", pb.OpenAccountRequest(), {"account_id"}),
    ("OpenAccount", pb.OpenAccountRequest(account_id=LONG, display_name=LONG), {"account_id", "display_name"}),
    ("OpenAccount", pb.OpenAccountRequest(account_id="a", display_name=NUL, request_id=NUL),
     {"display_name", "request_id"}),
    ("OpenAccount", pb.OpenAccountRequest(account_id="a", cycle_anchor=FAR), {"cycle_anchor"}),
    ("OpenAccount", pb.OpenAccountRequest(account_id="a", cycle_anchor=Timestamp(nanos=-5)), {"cycle_anchor"}),
    ("OpenAccount", pb.OpenAccountRequest(account_id="a", overdraft=resources.Overdraft(kind="lots")),
     {"overdraft.kind"}),
    ("OpenAccount", pb.OpenAccountRequest(account_id="a", overdraft=resources.Overdraft(limit_nanos=5)),
     {"overdraft.limit_nanos"}),
    ("OpenAccount", pb.OpenAccountRequest(account_id="a", overdraft=resources.Overdraft(kind="fixed", limit_nanos=-1)),
     {"overdraft.limit_nanos"}),
    ("GetAccount", pb.GetAccountRequest(account_id=NUL), {"account_id"}),
    ("GetBalance", pb.GetBalanceRequest(account_id=LONG), {"account_id"}),
    ("ListAccounts", pb.ListAccountsRequest(status=NUL, page_size=-1, page_token=TOKEN),
     {"status", "page_size", "page_token"}),
    ("SuspendAccount", pb.SuspendAccountRequest(account_id="acme", reason=NUL), {"reason", "request_id"}),
    ("ResumeAccount", pb.ResumeAccountRequest(account_id="acme", request_id=LONG), {"request_id"}),
    ("CreditAccount", pb.CreditAccountRequest(), {"account_id", "request_id", "amount_nanos"}),
    ("CreditAccount", pb.CreditAccountRequest(account_id="acme", request_id="r", amount_nanos=-1), {"amount_nanos"}),
    ("CreditAccount", pb.CreditAccountRequest(account_id="acme", request_id="r", amount_nanos=0), {"amount_nanos"}),
    ("CreditAccount", pb.CreditAccountRequest(account_id="acme", request_id="r", amount_nanos=MOST), {"amount_nanos"}),
    ("CreditAccount", pb.CreditAccountRequest(account_id="acme", request_id="r", amount_nanos=1, amount_usd="1"),
     {"amount_usd"}),
    ("CreditAccount", pb.CreditAccountRequest(account_id="acme", request_id="r", amount_usd="0.0000000001"),
     {"amount_usd"}),
    ("CreditAccount", pb.CreditAccountRequest(account_id="acme", request_id="r", amount_usd="9000000000"),
     {"amount_usd"}),
    ("CreditAccount", pb.CreditAccountRequest(account_id="acme", request_id="r", amount_nanos=1, source=LONG,
                                              description=NUL, priority=-1, expires_at=BEFORE),
     {"source", "description", "priority", "expires_at"}),
    ("CreateHold", pb.CreateHoldRequest(account_id="acme", amount_nanos=-1, tokens=MOST, requests=LEAST, key_id=LONG,
                                        workspace=NUL, ttl_seconds=86_401),
     {"hold_id", "amount_nanos", "tokens", "requests", "key_id", "workspace", "ttl_seconds"}),
    ("CreateHold", pb.CreateHoldRequest(account_id="acme", hold_id="h", amount_nanos=MOST, ttl_seconds=-1),
     {"amount_nanos", "ttl_seconds"}),
    ("CreateHold", pb.CreateHoldRequest(account_id="acme", hold_id="h", amount_nanos=5, minimum_amount_nanos=6,
                                        tokens=5, minimum_tokens=-1),
     {"minimum_amount_nanos", "minimum_tokens"}),
    ("CreateHold", pb.CreateHoldRequest(account_id="acme", hold_id="h", amount_nanos=5, billable=False),
     {"amount_nanos"}),
    ("SettleHold", pb.SettleHoldRequest(account_id="acme", hold_id=NUL, amount_nanos=LEAST, tokens=-1, description=NUL),
     {"hold_id", "amount_nanos", "tokens", "description"}),
    ("SettleHold", report(session=NUL, provider=NUL, model=LONG, endpoint=NUL, provider_request_id=NUL,
                          service_tier=NUL, status="fine", started_at=BEFORE),
     {"usage.session", "usage.provider", "usage.model", "usage.endpoint", "usage.provider_request_id",
      "usage.service_tier", "usage.status", "usage.started_at"}),
    ("SettleHold", report(input_tokens=-1, output_tokens=MOST, cached_tokens=LEAST, cache_write_tokens=-1,
                          reasoning_tokens=-1),
     {"usage.input_tokens", "usage.output_tokens", "usage.cached_tokens", "usage.cache_write_tokens",
      "usage.reasoning_tokens"}),
    ("SettleHold", report(input_cost_nanos=-1, output_cost_nanos=MOST, cost_nanos=-1, price_version=-1,
                          duration_milliseconds=-1),
     {"usage.input_cost_nanos", "usage.output_cost_nanos", "usage.cost_nanos", "usage.price_version",
      "usage.duration_milliseconds"}),
    ("ReleaseHold", pb.ReleaseHoldRequest(account_id="acme", hold_id=LONG, description=NUL),
     {"hold_id", "description"}),
    ("GetHold", pb.GetHoldRequest(account_id="acme", hold_id=NUL), {"hold_id"}),
    ("SetLimit", pb.SetLimitRequest(account_id="acme", scope=NUL, unit=NUL, mode=NUL, window=NUL, warn_percent=-1,
                                    subject=NUL, request_id=NUL),
     {"scope", "unit", "mode", "window", "warn_percent", "subject", "request_id", "amount"}),
    ("SetLimit", pb.SetLimitRequest(account_id="acme", scope="key", window="day", amount=1), {"subject"}),
    ("SetLimit", pb.SetLimitRequest(account_id="acme", scope="plan", subject="s", window="day", amount=1), {"subject"}),
    ("SetLimit", pb.SetLimitRequest(account_id="acme", window="day"), {"amount_nanos"}),
    ("SetLimit", pb.SetLimitRequest(account_id="acme", window="day", amount_nanos=-1), {"amount_nanos"}),
    ("SetLimit", pb.SetLimitRequest(account_id="acme", window="day", amount=1, amount_nanos=1), {"amount"}),
    ("SetLimit", pb.SetLimitRequest(account_id="acme", window="day", unit="tokens", amount=MOST), {"amount"}),
    ("SetLimit", pb.SetLimitRequest(account_id="acme", window="day", unit="tokens", amount_usd="1"), {"amount"}),
    *[("DeleteLimit", pb.DeleteLimitRequest(account_id="acme", limit_id=limit_id), {"limit_id"})
      for limit_id in ("", LONG, f"key:{NUL}:nanos:day", f"key:{LONG}:nanos:day", "account:x:nanos:day",
                       "key::nanos:day")],
    ("ListLimits", pb.ListLimitsRequest(account_id="acme", scope=NUL, subject=NUL), {"scope", "subject"}),
    ("GetTransaction", pb.GetTransactionRequest(account_id="acme", transaction_id=NUL), {"transaction_id"}),
    ("ListTransactions", pb.ListTransactionsRequest(account_id="acme", type=NUL, key_id=NUL, workspace=LONG,
                                                    provider=NUL, model=LONG, from_time=BEFORE, to_time=FAR,
                                                    page_size=-1, page_token=LONG),
     {"type", "key", "workspace", "provider", "model", "from", "to", "page_size", "page_token"}),
    ("ListUsage", pb.ListUsageRequest(account_id="acme", session=NUL, status=NUL, key_id=NUL, workspace=NUL,
                                      provider=LONG, model=NUL, page_token=TOKEN, type=NUL),
     {"session", "status", "type", "key", "workspace", "provider", "model", "page_token"}),
]  # fmt: skip


def everything(url):
    tables = ("accounts", "grants", "holds", "journal", "usage", "requests", "subject_limits")
    return {table: rows(url, f"SELECT * FROM {table}") for table in tables}


async def test_bad_request_names_its_fields_and_writes_nothing(ledger, ledger_settings):
    await ledger.open(credit=100)
    await ledger.hold(10, "h1")
    before = everything(ledger_settings.database_url)
    for name, request, named in CASES:
        refusal = await refused(getattr(ledger, name)(request))
        found = (refusal.reason, refusal.code, violations(refusal))
        assert found == ("INVALID_ARGUMENT", grpc.StatusCode.INVALID_ARGUMENT, named), f"{name} {request}"
    assert everything(ledger_settings.database_url) == before


async def test_whole_of_bad_input_in_one_batch_is_answered_one_by_one(ledger, ledger_settings):
    kinds = {
        "OpenAccount": "open_account", "CreditAccount": "credit", "CreateHold": "hold", "SettleHold": "settle",
        "ReleaseHold": "release", "SetLimit": "set_limit", "DeleteLimit": "delete_limit", "SuspendAccount": "suspend",
        "ResumeAccount": "resume",
    }  # fmt: skip
    await ledger.open(credit=100)
    await ledger.hold(10, "h1")
    before = everything(ledger_settings.database_url)
    cases = [(kinds[name], request, named) for name, request, named in CASES if name in kinds]
    results = await ledger.apply(*((kind, request) for kind, request, _ in cases))
    assert [fields(result) for result in results] == [named for _, _, named in cases]
    assert everything(ledger_settings.database_url) == before


async def test_transaction_that_is_not_there_is_not_found(ledger):
    await ledger.open(credit=100)
    (there,) = await ledger.transactions()
    month = there.transaction_id.split("-")[1]

    def get(transaction_id):
        return ledger.GetTransaction(pb.GetTransactionRequest(account_id="acme", transaction_id=transaction_id))

    absent = ["txn-197001-1", "x", "1", "txn", *(f"txn-{month}-{n}" for n in ("0", "01", "2", "9" * 30, "x", ""))]
    assert {(await refused(get(transaction_id))).reason for transaction_id in absent} == {"TRANSACTION_NOT_FOUND"}
    assert await get(there.transaction_id) == there


async def test_unknown_account_is_not_found_by_any_rpc(ledger):
    calls = [
        ledger.GetAccount(pb.GetAccountRequest(account_id="nobody")),
        ledger.GetBalance(pb.GetBalanceRequest(account_id="nobody")),
        ledger.SuspendAccount(pb.SuspendAccountRequest(account_id="nobody", request_id="r")),
        ledger.credit(5, "nobody"),
        ledger.hold(5, "h1", "nobody"),
        ledger.GetHold(pb.GetHoldRequest(account_id="nobody", hold_id="h1")),
        ledger.SetLimit(pb.SetLimitRequest(account_id="nobody", window="day", amount=5)),
        ledger.DeleteLimit(pb.DeleteLimitRequest(account_id="nobody", limit_id="account::nanos:day")),
        ledger.ListLimits(pb.ListLimitsRequest(account_id="nobody")),
        ledger.ListTransactions(pb.ListTransactionsRequest(account_id="nobody")),
        ledger.ListUsage(pb.ListUsageRequest(account_id="nobody")),
    ]
    assert {(await refused(call)).reason for call in calls} == {"ACCOUNT_NOT_FOUND"}


async def test_more_than_an_account_can_hold_is_refused_as_that(ledger):
    await ledger.open("house", overdraft=resources.Overdraft(kind="unlimited"))
    for number in range(4):
        await ledger.hold(10**18, f"h{number}", "house")
        await ledger.settle(10**18, f"h{number}", "house")
        await ledger.credit(10**18, "house")
    assert (await refused(ledger.hold(1, "more", "house"))).reason == "INSUFFICIENT_CREDIT"
    assert (await refused(ledger.credit(1, "house"))).reason == "ACCOUNT_FULL"
    assert (await ledger.balance("house")).available_nanos == 0
