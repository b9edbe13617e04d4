"""Everything at once: what the provider counted is what was billed, and every hold has ended."""

import asyncio
import random

import grpc.aio


async def test_sum_billed_is_the_sum_used_whatever_happens(start_proxy, ledger, provider, eventually):
    chance = random.Random(7)
    first, second = await start_proxy(), await start_proxy()
    key = (await first.make_key()).key
    ledger.delay_seconds = 0.005

    async def client(number):
        proxy = (first, second)[number % 2]
        stream = chance.random() < 0.6
        fault = " status=500" if chance.random() < 0.1 else " fault=reset" if chance.random() < 0.05 else ""
        text = f"[[sandbox output_tokens={chance.randint(1, 40)} delay_ms=3{fault}]]"
        call = proxy.start_chat(key, text=text, stream=stream, max_tokens=100)
        leaves_after = chance.randint(0, 10) if chance.random() < 0.3 else None
        await asyncio.sleep(chance.random() / 4)
        seen = 0
        try:
            async for _ in call:
                seen += 1
                if leaves_after is not None and seen > leaves_after:
                    call.cancel()
                    break
        except (grpc.aio.AioRpcError, asyncio.CancelledError):
            pass

    async def troubled_ledger():
        for kinds in ({"settle"}, set(), {"settle", "release"}, set(), {"hold"}, set()):
            ledger.down = kinds
            await asyncio.sleep(0.15)

    await asyncio.gather(troubled_ledger(), *(client(number) for number in range(160)))
    await eventually(lambda: not ledger.open_holds, seconds=20)
    assert ledger.settled
    totals = (await provider.usage())["totals"]
    assert sum(usage.input_tokens for usage in ledger.usages) == totals["input_tokens"]
    assert sum(usage.output_tokens for usage in ledger.usages) == totals["output_tokens"]
    assert not any(usage.estimated for usage in ledger.usages)
    spent = sum(bill.amount_nanos for bill in ledger.bills)
    assert ledger.accounts["acme"].available == 10_000_000_000 - spent
    assert sum((u.input_tokens * 5_000 + u.output_tokens * 15_000) * 3 // 2 for u in ledger.usages) == spent
