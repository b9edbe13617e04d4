"""Owns the command line of the sandbox Stripe: where it listens, its keys and its file, how it starts and stops."""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import socket
import sqlite3
import sys
from pathlib import Path

from aiohttp import web

from deploy.local.sandbox import command
from deploy.local.sandbox.stripe.server import SandboxStripe
from deploy.local.sandbox.stripe.store import Store
from deploy.local.sandbox.stripe.world import Settings


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m deploy.local.sandbox.stripe",
        description="SANDBOX Stripe: answers as Stripe's API does, and moves no money.",
    )
    command.add_listen(parser)
    parser.add_argument(
        "--api-key",
        action="append",
        default=[],
        metavar="KEY",
        help="a secret key to accept, sk_test_…; may be given several times (default sk_test_sandbox)",
    )
    parser.add_argument(
        "--state", type=Path, metavar="FILE", help="keep everything in this SQLite file (default: nowhere)"
    )
    parser.add_argument(
        "--public-url", metavar="URL", help="what its pages' addresses begin with (default: where it listens)"
    )
    parser.add_argument("--webhook-url", metavar="URL", help="an endpoint that hears of every event")
    parser.add_argument("--webhook-secret", metavar="SECRET", help="what its deliveries are signed with, whsec_…")
    parser.add_argument(
        "--retry-days",
        default="3,5,7",
        metavar="DAYS",
        help="days between the attempts to collect a renewal (default 3,5,7)",
    )
    parser.add_argument(
        "--after-retries",
        choices=("canceled", "unpaid", "past_due"),
        default="canceled",
        help="what a subscription becomes when the last attempt failed (default canceled)",
    )
    parser.add_argument(
        "--grace-seconds", type=float, default=10.0, metavar="SECONDS", help="for requests under way at SIGTERM"
    )
    return parser


def main() -> None:
    """Serve until SIGTERM or SIGINT."""
    parser = _parser()
    arguments = parser.parse_args()
    host, port = command.host_and_port(parser, arguments.listen)
    if bool(arguments.webhook_url) != bool(arguments.webhook_secret):
        parser.error("--webhook-url and --webhook-secret go together")
    days = arguments.retry_days.split(",") if arguments.retry_days else []
    if not all(day.isdigit() and int(day) > 0 for day in days):
        parser.error(f"--retry-days must be whole numbers with commas between, not {arguments.retry_days!r}")
    settings = Settings(
        base_url=(arguments.public_url or "").rstrip("/"),
        retry_days=tuple(map(int, days)),
        after_retries=arguments.after_retries,
        webhook_url=arguments.webhook_url,
        webhook_secret=arguments.webhook_secret,
    )
    keys = frozenset(arguments.api_key or ["sk_test_sandbox"])
    with asyncio.Runner(loop_factory=command.new_event_loop) as runner:
        try:
            runner.run(
                _serve(
                    host,
                    port,
                    settings,
                    keys,
                    state=arguments.state,
                    grace_seconds=arguments.grace_seconds,
                )
            )
        except OSError as error:
            sys.exit(f"SANDBOX Stripe: cannot listen on {arguments.listen}: {error.strerror or error}")
        except sqlite3.Error as error:
            sys.exit(f"SANDBOX Stripe: cannot use {arguments.state}: {error}")


async def _serve(
    host: str, port: int, settings: Settings, keys: frozenset[str], *, state: Path | None, grace_seconds: float
) -> None:
    # Bound before anything else, for its port is part of the addresses of its pages.
    listener = socket.create_server(
        (host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET, backlog=1024
    )
    address = f"http://{f'[{host}]' if ':' in host else host}:{listener.getsockname()[1]}"
    store = Store(state)
    sandbox = SandboxStripe(store, dataclasses.replace(settings, base_url=settings.base_url or address), keys)
    runner = web.AppRunner(sandbox.application(), access_log=None, shutdown_timeout=grace_seconds)
    stop = command.on_signal()
    await runner.setup()
    try:
        await web.SockSite(runner, listener).start()
        print(f"SANDBOX Stripe (no real money is ever moved) listening on {address}", flush=True)
        await stop.wait()
        print("SANDBOX Stripe stopping", flush=True)
    finally:
        sandbox.stop()
        await runner.cleanup()
        store.close()


if __name__ == "__main__":
    main()
