"""Owns histories of an account, written through the RPCs: one with everything in it, and random ones."""

from random import Random

from tollkeeper.ledger.v1 import ledger_service_pb2 as pb
from tollkeeper.ledger.v1 import resources_pb2 as resources

LIMITS = (
    ("account", "", "nanos", "day"),
    ("plan", "", "tokens", "cycle"),
    ("key", "k1", "requests", "lifetime"),
    ("key", "k1", "nanos", "month"),
    ("workspace", "w1", "tokens", "day"),
)


async def done(ledger, *operations):
    """What a batch answers. Raises AssertionError where one is refused."""
    results = await ledger.apply(*operations)
    assert [result.error.message for result in results if result.HasField("error")] == []
    return results


def usage(number):
    return resources.UsageReport(provider="openai", model="gpt-4o", input_tokens=number)


async def whole_history(ledger, clock, account_id="acme"):
    """An account to which everything has happened that can, over two months, and which has two open holds."""
    words = {"account_id": account_id}

    def hold(hold_id, nanos, **more):
        more = {"tokens": 9, "key_id": "k1", "workspace": "w1", "ttl_seconds": 3600} | more
        return "hold", pb.CreateHoldRequest(**words, hold_id=hold_id, amount_nanos=nanos, **more)

    def settle(hold_id, nanos):
        return "settle", pb.SettleHoldRequest(**words, hold_id=hold_id, amount_nanos=nanos, tokens=7, usage=usage(7))

    def debit(request_id, nanos, **more):
        return "debit", pb.DebitAccountRequest(**words, request_id=request_id, amount_nanos=nanos, tokens=3, **more)

    def refund(name, request_id, nanos=None):
        return "refund", pb.RefundTransactionRequest(
            **words, transaction_id=name, request_id=request_id, amount_nanos=nanos
        )

    def credit(request_id, nanos, **more):
        return "credit", pb.CreditAccountRequest(**words, request_id=request_id, amount_nanos=nanos, **more)

    await ledger.open(account_id, overdraft=resources.Overdraft(kind="fixed", limit_nanos=100))
    for scope, subject, unit, window in LIMITS:
        limit = pb.SetLimitRequest(
            **words, scope=scope, subject=subject, unit=unit, window=window, amount=10**9, mode="soft"
        )
        await ledger.SetLimit(limit)
    await done(
        ledger,
        credit("c1", 500, source="subscription", expires_at=clock.stamp(days=20), rollover_cap_nanos=50),
        credit("c2", 1000, description="a purchase"),
        hold("early", 60),
        debit("d0", 40, key_id="k1", usage=usage(3)),
        settle("early", 55),
    )
    clock.wait(days=33)
    results = await done(
        ledger,
        hold("h1", 100),
        ("extend", pb.ExtendHoldRequest(**words, hold_id="h1", additional_nanos=20, request_id="e1")),
        hold("h2", 30, workspace=""),
        hold("h3", 10, key_id="", ttl_seconds=60),
        hold("free", 0, billable=False),
        settle("h1", 110),
        ("release", pb.ReleaseHoldRequest(**words, hold_id="h2")),
        settle("free", 0),
        debit("d1", 25, workspace="w1"),
        credit("promo", 30, source="promotion", priority=1, expires_at=clock.stamp(seconds=90)),
        ("adjust", pb.AdjustBalanceRequest(**words, amount_nanos=15, direction="credit", request_id="a1")),
        ("adjust", pb.AdjustBalanceRequest(**words, amount_nanos=5, direction="debit", request_id="a2")),
    )
    charged, debited = results[5].settle.transaction, results[8].debit.transaction
    promotion = results[9].transaction
    clock.wait(seconds=100)  # h3 lapses, the promotion expires
    await done(
        ledger,
        settle("h3", 12),
        refund(charged.transaction_id, "r1", 40),
        refund(charged.transaction_id, "r2", 10),
        refund(debited.transaction_id, "r3"),
        (
            "reverse",
            pb.ReverseTransactionRequest(**words, transaction_id=promotion.transaction_id, request_id="v1"),
        ),
        hold("open1", 70),
        hold("open2", 5, key_id="k2", workspace=""),
        debit("d2", 0),
        hold("over", 10),
        settle("over", 2000),
        credit("c3", 300),
    )


async def random_history(ledger, clock, seed, account_id="acme", *, steps=120):
    """Operations drawn from a seed, in batches; refusals are part of it."""
    random = Random(seed)
    await ledger.open(account_id, credit=500)
    for scope, subject, unit, window in LIMITS:
        limit = pb.SetLimitRequest(account_id=account_id, scope=scope, subject=subject, unit=unit,
            window=window, amount=random.randrange(100, 5000))  # fmt: skip
        await ledger.SetLimit(limit)
    names = []
    for step in range(steps):
        words = {"account_id": account_id}
        place = {"key_id": random.choice(["", "k1", "k2"]), "workspace": random.choice(["", "w1"])}
        held = f"h{random.randrange(step + 1)}"
        nanos, key = random.randrange(60), f"q{step}"
        name = random.choice(names) if names else "txn-202601-1"
        (kind, request) = random.choice(
            [
                ("credit", pb.CreditAccountRequest(**words, amount_nanos=nanos + 1, request_id=key,
                    expires_at=random.choice([None, clock.stamp(seconds=random.randrange(1, 5000))]))),
                ("hold", pb.CreateHoldRequest(**words, **place, hold_id=f"h{step}", amount_nanos=nanos, tokens=9,
                    ttl_seconds=random.choice([5, 600]))),
                ("hold", pb.CreateHoldRequest(**words, **place, hold_id=f"h{step}", amount_nanos=nanos)),
                ("settle", pb.SettleHoldRequest(**words, hold_id=held, amount_nanos=nanos, tokens=4)),
                ("settle", pb.SettleHoldRequest(**words, hold_id=held, amount_nanos=nanos, tokens=4)),
                ("release", pb.ReleaseHoldRequest(**words, hold_id=held)),
                ("extend", pb.ExtendHoldRequest(**words, hold_id=held, additional_nanos=nanos + 1, request_id=key)),
                ("debit", pb.DebitAccountRequest(**words, **place, amount_nanos=nanos, tokens=3, request_id=key)),
                ("refund", pb.RefundTransactionRequest(**words, transaction_id=name, request_id=key,
                    amount_nanos=nanos // 2 + 1)),
                ("reverse", pb.ReverseTransactionRequest(**words, transaction_id=name, request_id=key)),
            ]
        )  # fmt: skip
        (result,) = await ledger.apply((kind, request))
        answer = result.settle.transaction if kind == "settle" else result.debit.transaction
        names += [found.transaction_id for found in (answer, result.transaction) if found.transaction_id]
        clock.wait(seconds=random.choice([0, 0, 1, 30, 4000]))
