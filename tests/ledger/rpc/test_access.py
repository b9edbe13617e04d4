"""Access: services write, operators manage, customers read their own account and nothing else."""

import pytest
from tollkeeper.ledger.v1 import ledger_service_pb2 as pb

from services.kit.identity import Role
from tests.ledger.support.ledger_client import refused

READS = {
    "GetAccount": pb.GetAccountRequest,
    "GetBalance": pb.GetBalanceRequest,
    "ListLimits": pb.ListLimitsRequest,
    "ListTransactions": pb.ListTransactionsRequest,
    "ListUsage": pb.ListUsageRequest,
}


@pytest.fixture
async def customer(ledger):
    await ledger.open(credit=100)
    await ledger.open("other", credit=7)
    await ledger.hold(5, "h1", "other")
    return ledger.acting_as(Role.ACCOUNT, account_id="acme")


@pytest.mark.parametrize("name", READS)
async def test_customer_reads_its_own_account_without_naming_it(customer, name):
    own = await getattr(customer, name)(READS[name]())
    named = await getattr(customer, name)(READS[name](account_id="acme"))
    if name == "GetBalance":
        assert (own.account_id, own.available_nanos) == (named.account_id, named.available_nanos) == ("acme", 100)
    else:
        assert own == named


@pytest.mark.parametrize("name", READS)
async def test_customer_cannot_read_another_account(customer, name):
    refusal = await refused(getattr(customer, name)(READS[name](account_id="other")))
    assert (refusal.reason, refusal.kind.http_status) == ("ACCOUNT_MISMATCH", 403)


async def test_customer_cannot_read_another_accounts_hold_or_transaction(customer, ledger):
    (theirs,) = await ledger.transactions("other")
    for account_id, reason in (("other", "ACCOUNT_MISMATCH"), ("", "HOLD_NOT_FOUND")):
        request = pb.GetHoldRequest(account_id=account_id, hold_id="h1")
        assert (await refused(customer.GetHold(request))).reason == reason
    request = pb.GetTransactionRequest(transaction_id=theirs.transaction_id)
    assert (await customer.GetTransaction(request)).account_id == "acme"  # ids are the account's own
    request = pb.GetTransactionRequest(account_id="other", transaction_id=theirs.transaction_id)
    assert (await refused(customer.GetTransaction(request))).reason == "ACCOUNT_MISMATCH"


SERVICE = ["OpenAccount", "Apply", "CreateHold", "SettleHold", "ReleaseHold"]
ADMIN = ["ListAccounts", "SuspendAccount", "ResumeAccount", "CreditAccount", "SetLimit", "DeleteLimit"]


@pytest.mark.parametrize("name", [*SERVICE, *ADMIN])
async def test_customer_cannot_write(customer, name):
    request = getattr(pb, f"{name}Request")()
    if "account_id" in request.DESCRIPTOR.fields_by_name:
        request.account_id = "acme"
    assert (await refused(getattr(customer, name)(request))).reason == "ROLE_TOO_LOW"
    public = await refused(getattr(customer.acting_as(Role.PUBLIC), name)(request))
    assert public.kind.http_status in {401, 403}


@pytest.mark.parametrize("name", SERVICE)
async def test_operator_cannot_do_what_only_services_do(customer, name):
    operator = customer.acting_as(Role.ADMIN)
    assert (await refused(getattr(operator, name)(getattr(pb, f"{name}Request")()))).reason == "ROLE_TOO_LOW"


async def test_operator_manages_any_account_but_has_to_name_it(customer):
    operator = customer.acting_as(Role.ADMIN)
    assert (await operator.credit(5, "other")).balance_after_nanos == 7
    assert (await operator.balance("other")).available_nanos == 7
    assert (await refused(operator.GetBalance(pb.GetBalanceRequest()))).kind.http_status == 400


async def test_call_without_a_credential_is_refused(ledger):
    ledger.metadata = ()
    assert (await refused(ledger.balance())).reason == "CREDENTIAL_MISSING"
