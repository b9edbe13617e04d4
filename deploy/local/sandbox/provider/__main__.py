"""Owns the command line of the sandbox provider: where it listens, which keys it takes, how it starts and stops."""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys

from aiohttp import web

from deploy.local.sandbox.provider.keys import Keyring
from deploy.local.sandbox.provider.server import SandboxProvider


def _new_event_loop() -> asyncio.AbstractEventLoop:
    try:
        import uvloop  # noqa: PLC0415  (the sandbox works without it, at more CPU time a call)
    except ImportError:
        return asyncio.new_event_loop()
    return uvloop.new_event_loop()


def main() -> None:
    """Serve until SIGTERM or SIGINT."""
    parser = argparse.ArgumentParser(
        prog="python -m deploy.local.sandbox.provider",
        description="SANDBOX model provider: answers in the wire formats of five providers without calling any model.",
    )
    parser.add_argument(
        "--listen", default="127.0.0.1:0", metavar="HOST:PORT", help="port 0 takes a free one (default)"
    )
    parser.add_argument(
        "--api-key",
        action="append",
        default=[],
        metavar="KEY",
        help="a provider key (or AWS access key id) to accept; may be given several times; without it any key will do",
    )
    parser.add_argument(
        "--aws-secret-key",
        metavar="SECRET",
        help="verify the signatures of Bedrock calls with this secret; without it a signature only has to be there",
    )
    parser.add_argument(
        "--grace-seconds",
        type=float,
        default=10.0,
        metavar="SECONDS",
        help="how long calls under way may go on after SIGTERM (default 10)",
    )
    arguments = parser.parse_args()
    host, _, port = arguments.listen.rpartition(":")
    if not port.isdigit():
        parser.error(f"--listen must be HOST:PORT, not {arguments.listen!r}")
    keyring = Keyring(frozenset(arguments.api_key), arguments.aws_secret_key)
    with asyncio.Runner(loop_factory=_new_event_loop) as runner:
        try:
            runner.run(_serve(host.strip("[]") or "127.0.0.1", int(port), keyring, arguments.grace_seconds))
        except OSError as error:
            sys.exit(f"SANDBOX provider: cannot listen on {arguments.listen}: {error.strerror or error}")


async def _serve(host: str, port: int, keyring: Keyring, grace_seconds: float) -> None:
    provider = SandboxProvider(keyring)
    runner = web.ServerRunner(provider.server(), shutdown_timeout=grace_seconds)
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    await runner.setup()
    try:
        await web.TCPSite(runner, host, port, backlog=1024).start()
        bound = runner.addresses[0][1]
        print(f"SANDBOX provider (no real model is ever called) listening on http://{host}:{bound}", flush=True)
        await stop.wait()
        print("SANDBOX provider stopping", flush=True)
    finally:
        provider.stop()
        await runner.cleanup()


if __name__ == "__main__":
    main()
