"""Owns `setup-stripe`: brings Stripe's products, prices and meters to what pricing's plans say."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable

import grpc

from services.kit.command import Command, CommandError
from services.kit.errors import RemoteError
from services.subscriptions.assembly import Subscriptions
from services.subscriptions.errors import SubscriptionsError
from services.subscriptions.settings import SubscriptionsSettings
from services.subscriptions.stripe.catalogue import CatalogueError, wanted
from services.subscriptions.stripe.catalogue_sync import CatalogueSync


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--dry-run", action="store_true", help="say what would be done, and do nothing")


def _run(chosen: argparse.Namespace, settings: Callable[[], SubscriptionsSettings]) -> int:
    parts = Subscriptions(settings())
    try:
        done = set_up(parts, dry_run=chosen.dry_run)
    except SubscriptionsError as error:
        raise CommandError(f"{error.message}. {error.advice}") from error
    except CatalogueError as error:
        raise CommandError(str(error)) from error
    except grpc.RpcError as error:
        raise CommandError(f"pricing did not answer: {RemoteError.from_rpc(error).message}") from error
    finally:
        parts.close()
    ending = "" if done else "; Stripe holds what it should"
    sys.stdout.write(f"{done} {'to be done' if chosen.dry_run else 'done'}{ending}\n")
    return 0


def set_up(parts: Subscriptions, *, dry_run: bool) -> int:
    """Make the difference, a line for each step; how many steps. What was done stays done where a later one fails.

    Raises SubscriptionsError as Stripe answers, CatalogueError, grpc.RpcError.
    """
    parts.stripe.check()
    sync = CatalogueSync(parts.stripe.client)
    found = sync.read()
    steps = sync.steps(wanted(parts.plans.on_sale()), found)
    for step in steps:
        if not dry_run:
            step.do()
        sys.stdout.write(f"{'would ' if dry_run else ''}{step.verb} {step.what}\n")
    return len(steps)


SETUP_STRIPE: Command[SubscriptionsSettings] = Command(
    name="setup-stripe",
    help="create and update Stripe's products, prices and meters from the plans on sale; idempotent",
    arguments=_arguments,
    run=_run,
)
