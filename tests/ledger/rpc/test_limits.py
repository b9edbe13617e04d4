"""Limits: counted and checked inside the hold, at every scope."""

import asyncio

from sqlalchemy import Engine, event
from tollkeeper.ledger.v1 import ledger_service_pb2 as pb
from tollkeeper.ledger.v1 import resources_pb2 as resources

from tests.ledger.support.ledger_client import refused


async def test_hold_refused_when_key_cap_reached_names_the_limit(ledger):
    await ledger.open(credit=1_000)
    limit = pb.SetLimitRequest(account_id="acme", scope="key", subject="k1", window="day", amount_nanos=100)
    assert (await ledger.SetLimit(limit)).limit_id == "key:k1:nanos:day"
    await ledger.hold(80, "h1", key_id="k1")
    refusal = await refused(ledger.hold(21, "h2", key_id="k1"))
    assert (refusal.reason, refusal.kind.http_status) == ("LIMIT_EXCEEDED", 429)
    assert {k: refusal.metadata[k] for k in ("limitId", "amount", "used", "held", "required")} == {
        "limitId": "key:k1:nanos:day",
        "amount": "100",
        "used": "0",
        "held": "80",
        "required": "21",
    }
    assert refusal.retry_after_seconds > 0
    await ledger.hold(21, "h2", key_id="k2")  # another key's calls do not count


async def test_settling_moves_the_share_from_held_to_used(ledger):
    await ledger.open(credit=1_000)
    for unit in ("nanos", "tokens", "requests"):
        await ledger.SetLimit(pb.SetLimitRequest(account_id="acme", unit=unit, window="month", amount=500))
    await ledger.hold(100, "h1", tokens=40)
    await ledger.hold(100, "h2", tokens=40)
    limits = await ledger.limits()
    assert {name: (x.used, x.held) for name, x in limits.items()} == {
        "account::nanos:month": (0, 200),
        "account::tokens:month": (0, 80),
        "account::requests:month": (0, 2),
    }
    await ledger.settle(60, "h1", tokens=25)
    await ledger.release("h2")
    limits = await ledger.limits()
    assert {name: (x.used, x.held) for name, x in limits.items()} == {
        "account::nanos:month": (60, 0),
        "account::tokens:month": (25, 0),
        "account::requests:month": (1, 0),
    }


async def test_concurrent_holds_never_pass_a_limit(ledger):
    await ledger.open(credit=10_000)
    request = pb.SetLimitRequest(
        account_id="acme", scope="plan", unit="requests", window="cycle", amount=17, mode="hard"
    )
    await ledger.SetLimit(request)
    answers = await asyncio.gather(*(ledger.hold(1, f"h{n}") for n in range(60)), return_exceptions=True)
    assert sum(not isinstance(answer, BaseException) for answer in answers) == 17


async def test_token_hold_is_cut_to_what_the_plan_has_left(ledger):
    await ledger.open(credit=1_000)
    await ledger.SetLimit(pb.SetLimitRequest(account_id="acme", scope="plan", unit="tokens", window="cycle", amount=50))
    made = await ledger.hold(10, "h1", tokens=80, minimum_tokens=20)
    assert made.hold.tokens == 50
    assert (await refused(ledger.hold(10, "h2", tokens=80, minimum_tokens=20))).reason == "LIMIT_EXCEEDED"


async def test_holds_and_settlements_say_what_is_left_of_the_quotas(ledger):
    await ledger.open(credit=1_000)
    assert not (await ledger.hold(10, "h0", tokens=1)).quotas
    assert not (await ledger.settle(10, "h0", tokens=1)).quotas
    cycle_end = (await ledger.balance()).cycle_end
    for unit, amount, mode in (("tokens", 101, "hard"), ("requests", 2, "soft")):
        limit = pb.SetLimitRequest(account_id="acme", scope="plan", unit=unit, window="cycle", amount=amount, mode=mode)
        await ledger.SetLimit(limit)

    def quotas(tokens, requests):
        told = (("tokens", 101, tokens), ("requests", 2, requests))
        return [resources.Quota(unit=u, amount=a, remaining=r, resets_at=cycle_end) for u, a, r in told]

    assert (await ledger.hold(10, "h1", tokens=60)).quotas == quotas(40, 0)
    assert not (await ledger.hold(10, "h1", tokens=60)).quotas  # a replay
    assert (await ledger.settle(5, "h1", tokens=25)).quotas == quotas(75, 0)
    assert not (await ledger.settle(5, "h1", tokens=25)).quotas
    hold = pb.CreateHoldRequest(account_id="acme", hold_id="h2", amount_nanos=1, tokens=10)
    more = pb.ExtendHoldRequest(account_id="acme", hold_id="h2", additional_tokens=5, request_id="e")
    settle = pb.SettleHoldRequest(account_id="acme", hold_id="h2", amount_nanos=1, tokens=12)
    made, extended, settled = await ledger.apply(("hold", hold), ("extend", more), ("settle", settle))
    assert made.hold.quotas == quotas(65, 0)
    assert extended.hold.quotas == quotas(60, 0)
    assert settled.settle.quotas == quotas(63, 0)


async def test_soft_limit_warns_and_lets_pass(ledger):
    await ledger.open(credit=1_000)
    await ledger.SetLimit(pb.SetLimitRequest(account_id="acme", window="day", amount_nanos=100, mode="soft"))
    assert not (await ledger.hold(79, "h1")).warnings
    assert [w.reason for w in (await ledger.hold(1, "h2")).warnings] == ["LIMIT_NEAR"]
    assert [w.reason for w in (await ledger.hold(100, "h3")).warnings] == ["LIMIT_EXCEEDED"]


async def test_limit_kept_when_changed_and_gone_when_deleted(ledger):
    await ledger.open(credit=1_000)
    await ledger.SetLimit(pb.SetLimitRequest(account_id="acme", window="day", amount_nanos=100))
    await ledger.hold(90, "h1")
    changed = await ledger.SetLimit(pb.SetLimitRequest(account_id="acme", window="day", amount_usd="0.00000005"))
    assert (changed.amount, changed.held) == (50, 90)
    assert (await refused(ledger.hold(1, "h2"))).reason == "LIMIT_EXCEEDED"
    await ledger.DeleteLimit(pb.DeleteLimitRequest(account_id="acme", limit_id="account::nanos:day"))
    await ledger.hold(1, "h2")
    await ledger.settle(80, "h1")  # a share of a limit that is gone goes nowhere
    assert await ledger.limits() == {}


async def test_limit_ended_and_made_again_in_one_batch_forgets_nothing(ledger):
    await ledger.open(credit=1_000)
    limit = pb.SetLimitRequest(account_id="acme", window="day", amount=100)
    await ledger.SetLimit(limit)
    await ledger.hold(50, "h0")
    await ledger.settle(40, "h0")
    await ledger.hold(50, "h1")
    ended = pb.DeleteLimitRequest(account_id="acme", limit_id="account::nanos:day")
    await ledger.apply(("delete_limit", ended), ("set_limit", limit))
    made = (await ledger.limits())["account::nanos:day"]
    assert (made.used, made.held) == (40, 50)
    assert (await refused(ledger.hold(11, "h2"))).reason == "LIMIT_EXCEEDED"


async def test_limits_of_one_call_are_counted_together_each_with_its_own_use(ledger):
    """A transaction for each of a thousand limits took half a minute on a busy machine."""
    for account_id, first in (("acme", 3), ("other", 5)):
        await ledger.open(account_id, credit=1_000)
        for used, key in enumerate(("k1", "k2"), first):
            await ledger.hold(20, key, account_id, key_id=key, workspace="w1")
            report = resources.UsageReport(provider="openai", input_tokens=used)
            await ledger.settle(10 + used, key, account_id, tokens=used, usage=report)
    kinds = [
        {"scope": scope, "subject": subject, "unit": unit, "window": window, "amount": 1_000}
        for scope, subject in (("account", ""), ("key", "k1"), ("key", "k2"), ("key", "none"), ("workspace", "w1"))
        for unit in ("nanos", "tokens", "requests")
        for window in ("day", "lifetime")
    ]
    limits = [
        ("set_limit", pb.SetLimitRequest(account_id=name, **words)) for name in ("acme", "other") for words in kinds
    ]
    statements = []

    @event.listens_for(Engine, "before_cursor_execute")
    def count(_connection, _cursor, statement, *_):
        statements.append(statement)

    try:
        results = await ledger.apply(*limits)
    finally:
        event.remove(Engine, "before_cursor_execute", count)
    used = {(result.limit.account_id, result.limit.subject, result.limit.unit): result.limit.used for result in results}
    assert [used["acme", subject, "nanos"] for subject in ("", "k1", "k2", "none", "w1")] == [27, 13, 14, 0, 27]
    assert [used["other", subject, "tokens"] for subject in ("", "k1", "k2", "none", "w1")] == [11, 5, 6, 0, 11]
    assert [used["acme", subject, "requests"] for subject in ("", "k1", "k2", "none", "w1")] == [2, 1, 1, 0, 2]
    assert all(result.WhichOneof("kind") == "limit" for result in results)
    # Of each account its row and its role, and once each scope, unit and window, however many keys there are.
    assert len(statements) <= 2 * (2 + 3 * 3 * (1 + 2)), len(statements)


async def test_sums_end_where_numbers_do(ledger):
    await ledger.open(credit=1_000)
    report = resources.UsageReport(provider="openai", cost_nanos=10**18)
    for number in range(10):
        await ledger.hold(0, f"h{number}")
        await ledger.settle(0, f"h{number}", usage=report)
    (summary,) = (await ledger.SummarizeUsage(pb.SummarizeUsageRequest(account_id="acme"))).summaries
    assert (summary.requests, summary.cost_nanos) == (10, 2**63 - 1)
