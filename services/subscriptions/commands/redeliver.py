"""Owns `redeliver`: after a restore, tells ledger and proxy again what every account has been given and is allowed."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable

from services.kit.command import Command, CommandError
from services.kit.errors import RemoteError
from services.subscriptions.assembly import Subscriptions
from services.subscriptions.service.redelivery import PATIENCE_SECONDS, Redelivery
from services.subscriptions.settings import SubscriptionsSettings


def _arguments(_parser: argparse.ArgumentParser) -> None:
    pass


def _run(_chosen: argparse.Namespace, settings: Callable[[], SubscriptionsSettings]) -> int:
    parts = Subscriptions(settings())
    try:
        done = Redelivery(parts.engine, parts.plans, parts.deliverer).run()
    except RemoteError as error:
        raise CommandError(f"pricing did not answer: {error.message}; run this again") from error
    finally:
        parts.close()
    sys.stdout.write(f"{done.accounts} accounts told of again, {done.waiting} deliveries wait\n")
    if done.gave_up:
        sys.stdout.write(
            f"nothing arrived for {PATIENCE_SECONDS:.0f} s: ledger or proxy do not answer, or refuse (see the log); "
            "what waits is delivered by the worker when they do, or run this again\n"
        )
    if done.without_plan:
        sys.stdout.write(f"{done.without_plan} accounts are on plans that pricing does not have: see the log\n")
    return 1 if done.waiting or done.without_plan else 0


REDELIVER: Command[SubscriptionsSettings] = Command(
    name="redeliver",
    help="after a restore: tell ledger and proxy again what every account was given and is allowed; idempotent",
    arguments=_arguments,
    run=_run,
)
