"""Changing and closing accounts, extending holds, and credit that rolls over."""

from datetime import UTC, datetime, timedelta

from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.timestamp_pb2 import Timestamp
from tollkeeper.ledger.v1 import ledger_service_pb2 as pb
from tollkeeper.ledger.v1 import resources_pb2 as resources

from tests.ledger.support.ledger_audit import audit
from tests.ledger.support.ledger_client import refused, violations


async def update(ledger, request_id, *paths, **words):
    account = resources.Account(account_id="acme", **words)
    return await ledger.UpdateAccount(
        pb.UpdateAccountRequest(account=account, update_mask=FieldMask(paths=paths), request_id=request_id)
    )


async def test_update_changes_what_its_mask_names_and_nothing_else(ledger):
    await ledger.open(display_name="Acme", overdraft=resources.Overdraft(kind="fixed", limit_nanos=5))
    changed = await update(ledger, "u1", "display_name", display_name="New", overdraft=resources.Overdraft(kind="none"))
    assert (changed.display_name, changed.overdraft.kind, changed.overdraft.limit_nanos) == ("New", "fixed", 5)
    changed = await update(ledger, "u2", "overdraft", overdraft=resources.Overdraft(kind="unlimited"))
    await ledger.hold(10**12, "h1")
    assert changed == await ledger.GetAccount(pb.GetAccountRequest(account_id="acme")) or changed.last_sequence == 0
    refusal = await refused(update(ledger, "u3", "status", "cycle_anchor", status="closed"))
    assert violations(refusal) == {"update_mask.paths[0]", "account.cycle_anchor"}


async def test_a_new_anchor_begins_a_new_cycle_and_its_limits_anew(ledger):
    await ledger.open(credit=100)
    limit = pb.SetLimitRequest(account_id="acme", window="cycle", amount=60)
    await ledger.SetLimit(limit)
    await ledger.hold(50, "h1")
    await ledger.settle(50, "h1")
    anchor = Timestamp()
    anchor.FromDatetime(datetime.now(UTC) + timedelta(days=10))
    await update(ledger, "u1", "cycle_anchor", cycle_anchor=anchor)
    balance = await ledger.balance()
    assert (balance.cycle_spent_nanos, balance.cycle_end) == (0, anchor)
    assert (await ledger.limits())["account::nanos:cycle"].used == 0
    await ledger.hold(50, "h2")


async def test_account_with_a_call_under_way_is_not_closed_and_a_closed_one_takes_nothing(ledger):
    await ledger.open(credit=100)
    await ledger.hold(0, "h1")
    close = pb.CloseAccountRequest(account_id="acme", reason="gone", request_id="c1")
    refusal = await refused(ledger.CloseAccount(close))
    assert (refusal.reason, refusal.metadata["openHolds"]) == ("ACCOUNT_HAS_HOLDS", "1")
    await ledger.settle(0, "h1")
    closed = await ledger.CloseAccount(close)
    assert (closed.status, closed.status_reason) == ("closed", "gone")
    assert (await refused(ledger.hold(1, "h2"))).reason == "ACCOUNT_CLOSED"
    assert (await refused(ledger.credit(1))).reason == "ACCOUNT_CLOSED"
    resume = pb.ResumeAccountRequest(account_id="acme", request_id="r1")
    assert (await refused(ledger.ResumeAccount(resume))).reason == "ACCOUNT_CLOSED"
    assert (await ledger.balance()).available_nanos == 100


async def extend(ledger, nanos, request_id, hold_id="h1", **words):
    return await ledger.ExtendHold(
        pb.ExtendHoldRequest(account_id="acme", hold_id=hold_id, additional_nanos=nanos, request_id=request_id, **words)
    )


async def test_extended_hold_covers_more_and_lasts_longer(ledger, ledger_settings):
    await ledger.open(credit=100)
    await ledger.SetLimit(pb.SetLimitRequest(account_id="acme", unit="tokens", window="day", amount=50))
    made = (await ledger.hold(40, "h1", tokens=20, ttl_seconds=60)).hold
    extended = await extend(ledger, 30, "e1", additional_tokens=10, ttl_seconds=600)
    assert (extended.hold.amount_nanos, extended.hold.tokens, extended.available_nanos) == (70, 30, 30)
    assert extended.hold.expires_at.seconds >= made.expires_at.seconds + 500
    assert (await ledger.limits())["account::tokens:day"].held == 30
    again = await extend(ledger, 30, "e1", additional_tokens=10, ttl_seconds=600)
    assert again.hold == extended.hold
    await ledger.settle(70, "h1", tokens=30)
    assert (await ledger.balance()).available_nanos == 30
    assert (await refused(extend(ledger, 1, "e2"))).reason == "HOLD_ENDED"
    audit(ledger_settings.database_url)


async def test_extension_that_is_refused_leaves_the_hold_as_it_was(ledger):
    await ledger.open(credit=100)
    await ledger.SetLimit(pb.SetLimitRequest(account_id="acme", unit="tokens", window="day", amount=50))
    made = (await ledger.hold(40, "h1", tokens=20)).hold
    assert (await refused(extend(ledger, 61, "e1"))).reason == "INSUFFICIENT_CREDIT"
    assert (await refused(extend(ledger, 1, "e1", additional_tokens=31))).reason == "LIMIT_EXCEEDED"
    await ledger.SuspendAccount(pb.SuspendAccountRequest(account_id="acme", request_id="s"))
    assert (await refused(extend(ledger, 1, "e1"))).reason == "ACCOUNT_SUSPENDED"
    assert (await ledger.GetHold(pb.GetHoldRequest(account_id="acme", hold_id="h1"))) == made
    assert (await refused(extend(ledger, 1, "e1", hold_id="none"))).reason == "HOLD_NOT_FOUND"
    assert violations(await refused(extend(ledger, 0, "e1"))) == {"additional_nanos"}


async def test_a_later_end_alone_needs_no_credit(ledger):
    await ledger.open(credit=10)
    await ledger.hold(10, "h1", ttl_seconds=10)
    await ledger.hold(0, "h2")
    await ledger.settle(25, "h2")
    assert (await ledger.balance()).available_nanos == -25
    extended = await extend(ledger, 0, "e1", ttl_seconds=100)
    assert extended.hold.amount_nanos == 10


async def test_what_is_left_rolls_over_up_to_its_cap_for_one_more_cycle(ledger, ledger_settings):
    anchor = Timestamp()
    ends = datetime.now(UTC) + timedelta(seconds=1)
    anchor.FromDatetime(ends)
    await ledger.open(cycle_anchor=anchor)
    await ledger.credit(100, source="subscription", expires_at=anchor, rollover_cap_nanos=30)
    balance = await ledger.balance_once_expired()
    assert (balance.available_nanos, balance.expired_nanos) == (30, 70)
    (grant,) = balance.grants
    assert (grant.source, grant.remaining_nanos, grant.rollover_cap_nanos) == ("subscription", 30, 0)
    assert grant.expires_at == balance.cycle_end
    (expiry,) = await ledger.transactions(type="expiry")
    assert expiry.created_at == anchor  # dated when it was due, not when it was noticed
    audit(ledger_settings.database_url)
