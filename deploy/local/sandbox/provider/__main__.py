"""Owns the command line of the sandbox provider: where it listens, which keys it takes, how it starts and stops."""

from __future__ import annotations

import argparse
import asyncio
import sys

from aiohttp import web

from deploy.local.sandbox import command
from deploy.local.sandbox.provider.keys import Keyring
from deploy.local.sandbox.provider.server import SandboxProvider


def main() -> None:
    """Serve until SIGTERM or SIGINT."""
    parser = argparse.ArgumentParser(
        prog="python -m deploy.local.sandbox.provider",
        description="SANDBOX model provider: answers in the wire formats of five providers without calling any model.",
    )
    command.add_listen(parser)
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
    host, port = command.host_and_port(parser, arguments.listen)
    keyring = Keyring(frozenset(arguments.api_key), arguments.aws_secret_key)
    with asyncio.Runner(loop_factory=command.new_event_loop) as runner:
        try:
            runner.run(_serve(host, port, keyring, arguments.grace_seconds))
        except OSError as error:
            sys.exit(f"SANDBOX provider: cannot listen on {arguments.listen}: {error.strerror or error}")


async def _serve(host: str, port: int, keyring: Keyring, grace_seconds: float) -> None:
    provider = SandboxProvider(keyring)
    runner = web.ServerRunner(provider.server(), shutdown_timeout=grace_seconds)
    stop = command.on_signal()
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
