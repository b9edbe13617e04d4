"""Owns the client, a program of its own: sends requests made beforehand, and says how many were answered how soon.

    python -m tests.bench.ledger.load JOB RESULT

`JOB` is a file with the fields of `Job` as JSON; `RESULT` is written. What the client makes and reads beside sending is
done before and after the time that is measured. Single calls are written by `tests.bench.support.unary`; batches, which
cost a client nothing beside what they cost the ledger, go by gRPC's own client.
"""

import asyncio
import dataclasses
import gc
import itertools
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import grpc.aio
import uvloop

from services.proxy.ledger.ledger import ranked
from tests.bench.ledger.operations import APPLY, CREATE_HOLD, Call, Calls, apply_request, hold_request, refused
from tests.bench.support import processors
from tests.bench.support.figures import percentile
from tests.bench.support.unary import Connection
from tests.bench.support.window import Window

_TIMEOUT_SECONDS = 30.0
_SETTLED_AT_ONCE = 256


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
    """One measurement. `kind` is `apply`, `hold` or `echo`; `run` makes its holds' names unlike those of any other.

    `at_once`: requests under way; `batch`: operations of each; `at_most`: operations made beforehand, after which the
    measurement ends early; `pids`: whose processor time to read, by name; `bodies`: of `given`, batches in hex.
    """

    kind: str
    run: str
    addresses: list[str]
    at_once: int = 1
    seconds: float = 0
    warm_seconds: float = 0
    at_most: int = 0
    batch: int = 1
    pids: dict[str, list[int]] = dataclasses.field(default_factory=dict)
    accounts: list[str] = dataclasses.field(default_factory=list)
    token: str = ""
    method: str = ""
    bodies: list[str] = dataclasses.field(default_factory=list)


async def _ready_channels(job: Job) -> list[grpc.aio.Channel]:
    options = [("grpc.enable_http_proxy", 0), ("grpc.use_local_subchannel_pool", 1)]
    channels = [grpc.aio.insecure_channel(address, options=options) for address in job.addresses]
    await asyncio.wait_for(asyncio.gather(*(channel.channel_ready() for channel in channels)), _TIMEOUT_SECONDS)
    return channels


def _sender(channel: grpc.aio.Channel, token: str) -> Callable[[bytes], Any]:
    """Sends batches as bytes, gives bytes: no message is made or read."""
    call: Any = channel.unary_unary(APPLY)
    metadata = (("authorization", f"Bearer {token}"),)
    return lambda request: call(request, metadata=metadata, timeout=_TIMEOUT_SECONDS)


async def _single_callers(job: Job, method: str) -> list[Connection]:
    """A connection to each address, for single calls."""
    headers = [("grpc-timeout", f"{_TIMEOUT_SECONDS:.0f}S")]
    if job.token:
        headers.append(("authorization", f"Bearer {job.token}"))
    return [await Connection.opened(address, method, headers) for address in job.addresses]


async def _send_all(
    send: Callable[[bytes], Any], requests: Iterator[bytes], window: Window, answers: list[bytes]
) -> None:
    """Send one request after another until the window is over or there are no more."""
    clock = time.perf_counter
    for request in requests:
        sent = clock()
        answers.append(await send(request))
        window.note(sent, clock())
        if window.over:
            return
    # Nothing more to send: what the others still do would be measured with one fewer at once.
    window.ends = min(window.ends, clock())
    window.over = True


async def _measured(
    job: Job, sends: Sequence[Callable[[bytes], Any]], lines: Sequence[Iterator[bytes]]
) -> tuple[Window, list[list[bytes]], dict[str, float]]:
    """Send each line of requests, one at a time within a line; the window, all answers, and who used which cores.

    The senders take the lines by turns.
    """
    answers: list[list[bytes]] = [[] for _ in lines]
    begins = time.perf_counter() + job.warm_seconds
    window = Window(begins, begins + job.seconds)
    pids = job.pids | {"client": [os.getpid()]}
    gc.collect()
    gc.freeze()
    sending = asyncio.gather(
        *(_send_all(sends[n % len(sends)], line, window, answers[n]) for n, line in enumerate(lines))
    )
    await asyncio.sleep(job.warm_seconds)
    before = processors.read(pids)
    # Not until the last answer: what is still under way when the window ends does not count, nor does its time.
    await asyncio.wait([sending], timeout=max(0.0, window.ends - time.perf_counter()))
    after = processors.read(pids)
    await sending
    return window, answers, processors.cores(before, after)


def _shares(job: Job, sends: Sequence[Callable[[bytes], Any]]) -> list[tuple[Callable[[bytes], Any], Calls]]:
    """A sender and the calls of its own accounts for each replica that has any, as the proxy shares them out."""
    accounts: dict[str, list[str]] = {address: [] for address in job.addresses}
    for account_id in job.accounts:
        accounts[ranked(account_id, accounts)[0]].append(account_id)
    shares = enumerate(zip(sends, accounts.values(), strict=True))
    return [(send, Calls(own, f"{job.run}{number}")) for number, (send, own) in shares if own]


def _result(window: Window, batch: int, cores: dict[str, float]) -> dict[str, Any]:
    took = window.took()
    if not took:
        raise RuntimeError("nothing was answered in the time measured: too few requests were made, or it is too slow")
    return {
        "rate": window.rate() * batch,
        "p50_ms": percentile(took, 50) * 1000,
        "p99_ms": percentile(took, 99) * 1000,
        "seconds": window.ends - window.begins,
        "cores": cores,
    }


async def _settled(send: Callable[[bytes], Any], calls: Sequence[Call]) -> int:
    """Settle the holds that a measurement leaves open; how many operations that took."""
    for first in range(0, len(calls), _SETTLED_AT_ONCE):
        _require_done([await send(apply_request(calls[first : first + _SETTLED_AT_ONCE], []))])
    return len(calls)


def _require_done(answers: Sequence[bytes]) -> None:
    for answer in answers:
        wrong = refused(answer)
        if wrong:
            raise RuntimeError(f"{len(wrong)} operations of a batch were not done: {wrong[0]}")


async def _apply(job: Job, channels: Sequence[grpc.aio.Channel]) -> dict[str, Any]:
    """Batches, each half holds and half settlements of the holds of the batch before it in its line."""
    shares = _shares(job, [_sender(channel, job.token) for channel in channels])
    lines = [shares[number % len(shares)] for number in range(job.at_once)]
    half = job.batch // 2
    batches = max(2, job.at_most // job.batch // job.at_once)
    begun = [[[calls.next() for _ in range(half)] for _ in range(batches)] for _, calls in lines]
    # The first of a line only holds; it is sent before the window begins.
    requests = [[apply_request(ended, new) for ended, new in itertools.pairwise([[], *line])] for line in begun]
    sends = [send for send, _ in lines]
    window, answers, cores = await _measured(job, sends, [iter(line) for line in requests])
    operations = 0
    for send, line, answered in zip(sends, begun, answers, strict=True):
        _require_done(answered)
        operations += half * (2 * len(answered) - 1)
        operations += await _settled(send, line[len(answered) - 1])
    return _result(window, job.batch, cores) | {"operations": operations}


async def _hold(job: Job, channels: Sequence[grpc.aio.Channel]) -> dict[str, Any]:
    """Unary CreateHold calls; afterwards each hold is settled."""
    callers = await _single_callers(job, CREATE_HOLD)
    shares = _shares(job, [caller.call for caller in callers])
    lines = [shares[number % len(shares)] for number in range(job.at_once)]
    made = [[calls.next() for _ in range(job.at_most // job.at_once)] for _, calls in lines]
    requests = [[hold_request(call).SerializeToString() for call in line] for line in made]
    window, answers, cores = await _measured(job, [send for send, _ in lines], [iter(line) for line in requests])
    for caller in callers:
        caller.close()
    held = [call for line, answered in zip(made, answers, strict=True) for call in line[: len(answered)]]
    settled = await _settled(_sender(channels[0], job.token), held)
    return _result(window, 1, cores) | {"operations": len(held) + settled}


async def _echo(job: Job, _channels: Sequence[grpc.aio.Channel]) -> dict[str, Any]:
    """The same bytes as `hold` sends, to a server that does nothing."""
    request = hold_request(Calls(["acct-00000000"], job.run).next()).SerializeToString()
    callers = await _single_callers(job, job.method)
    lines = [itertools.repeat(request, job.at_most // job.at_once) for _ in range(job.at_once)]
    window, _, cores = await _measured(job, [caller.call for caller in callers], lines)
    for caller in callers:
        caller.close()
    return _result(window, 1, cores)


async def _given(job: Job, channels: Sequence[grpc.aio.Channel]) -> dict[str, Any]:
    """The batches that the job brings, one after another; nothing is measured."""
    send = _sender(channels[0], job.token)
    _require_done([await send(bytes.fromhex(body)) for body in job.bodies])
    return {}


_KINDS = {"apply": _apply, "hold": _hold, "echo": _echo, "given": _given}


async def _done(job: Job) -> dict[str, Any]:
    channels = await _ready_channels(job)
    try:
        return await _KINDS[job.kind](job, channels)
    finally:
        for channel in channels:
            await channel.close()


def main() -> None:
    """Do the job that the first argument names; write its result where the second says."""
    job = Job(**json.loads(Path(sys.argv[1]).read_text()))
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        result = runner.run(_done(job))
    Path(sys.argv[2]).write_text(json.dumps(result))


if __name__ == "__main__":
    main()
