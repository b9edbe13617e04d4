"""Owns the requests of the load: holds and their settlements as the proxy sends them, in bytes."""

import random
from collections.abc import Sequence
from dataclasses import dataclass

from tollkeeper.ledger.v1 import ledger_service_pb2 as pb
from tollkeeper.ledger.v1 import resources_pb2 as resources

KEY_ID = "key-1"
WORKSPACE = "research"
# Of the proxy's own setting.
TTL_SECONDS = 120
_SERVICE = "/tollkeeper.ledger.v1.LedgerService"
APPLY = f"{_SERVICE}/Apply"
CREATE_HOLD = f"{_SERVICE}/CreateHold"

_MODELS = (("openai", "gpt-4o"), ("anthropic", "claude-sonnet-4-5"), ("google", "gemini-2.5-flash"))


@dataclass(frozen=True, slots=True)
class Call:
    """One model call: whose it is, the name of its hold, and how much it holds and costs."""

    account_id: str
    hold_id: str
    held_nanos: int
    held_tokens: int
    cost_nanos: int
    input_tokens: int
    output_tokens: int


class Calls:
    """Makes calls at accounts drawn at random, each with a hold of its own."""

    def __init__(self, accounts: Sequence[str], run: str) -> None:
        self._accounts = accounts
        self._run = run
        self._random = random.Random(run)
        self._made = 0

    def next(self) -> Call:
        """A call that is like no other of any run."""
        self._made += 1
        chance = self._random.random
        input_tokens, output_tokens = 200 + int(3000 * chance()), 50 + int(900 * chance())
        cost = 2500 * input_tokens + 10_000 * output_tokens
        return Call(
            account_id=self._accounts[int(len(self._accounts) * chance())],
            # As long, and as far from any order, as the proxy's.
            hold_id=f"{self._random.getrandbits(64):016x}-{self._run}-{self._made:07d}",
            held_nanos=cost + 10_000 * 1000,
            held_tokens=input_tokens + 4096,
            cost_nanos=cost,
            input_tokens=input_tokens,
            output_tokens=output_tokens,
        )


def hold_request(call: Call) -> pb.CreateHoldRequest:
    """What is asked before the call."""
    return pb.CreateHoldRequest(
        account_id=call.account_id,
        hold_id=call.hold_id,
        amount_nanos=call.held_nanos,
        minimum_amount_nanos=call.cost_nanos,
        tokens=call.held_tokens,
        minimum_tokens=call.input_tokens,
        requests=1,
        key_id=KEY_ID,
        workspace=WORKSPACE,
        ttl_seconds=TTL_SECONDS,
    )


def settle_request(call: Call) -> pb.SettleHoldRequest:
    """What is booked after it, with all that is known of it."""
    provider, model = _MODELS[call.cost_nanos % len(_MODELS)]
    input_cost = 2500 * call.input_tokens
    report = resources.UsageReport(
        session=f"session-{call.hold_id[:8]}",
        provider=provider,
        model=model,
        endpoint="/v1/chat/completions",
        input_tokens=call.input_tokens,
        output_tokens=call.output_tokens,
        cached_tokens=call.input_tokens // 4,
        reasoning_tokens=call.output_tokens // 8,
        input_cost_nanos=input_cost,
        output_cost_nanos=call.cost_nanos - input_cost,
        cost_nanos=call.cost_nanos,
        price_version=7,
        duration_milliseconds=400 + call.output_tokens * 12,
        status="ok",
        provider_request_id=f"chatcmpl-{call.hold_id[:24]}",
        service_tier="standard",
    )
    report.started_at.GetCurrentTime()
    return pb.SettleHoldRequest(
        account_id=call.account_id,
        hold_id=call.hold_id,
        amount_nanos=call.cost_nanos,
        tokens=call.input_tokens + call.output_tokens,
        usage=report,
        description=f"{provider} {model}",
    )


def apply_request(ended: Sequence[Call], begun: Sequence[Call]) -> bytes:
    """A batch, serialised: settlements of `ended` calls mixed with holds for `begun` ones."""
    batch = pb.ApplyRequest()
    add = batch.operations.add
    for number in range(max(len(ended), len(begun))):
        if number < len(ended):
            add(settle=settle_request(ended[number]))
        if number < len(begun):
            add(hold=hold_request(begun[number]))
    return batch.SerializeToString()


def refused(answer: bytes) -> list[str]:
    """What an answer of `Apply` says went wrong: refusals, and repeats, of which there are none in this load."""
    results = pb.ApplyResponse.FromString(answer).results
    wrong = [result.error.message for result in results if result.HasField("error")]
    return wrong + ["was applied before" for result in results if result.replayed]
