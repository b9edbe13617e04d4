"""Owns `reconcile`: finds what Stripe has and we were not told, and `replay`: has one event applied again."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from datetime import timedelta

from services.kit.command import Command, CommandError
from services.subscriptions.assembly import Subscriptions
from services.subscriptions.clock import utc_now
from services.subscriptions.errors import SubscriptionsError
from services.subscriptions.settings import SubscriptionsSettings
from services.subscriptions.stripe.events import APPLIED, IGNORED
from services.subscriptions.stripe.reconcile import DEFAULT_SINCE, LONGEST_SINCE


def _reconcile_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--days",
        type=int,
        default=DEFAULT_SINCE.days,
        metavar="N",
        help=f"how far back, 1 to {LONGEST_SINCE.days}; default {DEFAULT_SINCE.days}",
    )
    parser.add_argument("--events-only", action="store_true", help="look for events; leave out customers' objects")


def _reconcile(chosen: argparse.Namespace, settings: Callable[[], SubscriptionsSettings]) -> int:
    if not 1 <= chosen.days <= LONGEST_SINCE.days:
        raise CommandError(f"--days must be from 1 to {LONGEST_SINCE.days}: Stripe keeps events no longer")
    since = utc_now() - timedelta(days=chosen.days)
    parts = Subscriptions(settings())
    try:
        parts.stripe.check()
        found = parts.stripe_events.reconciliation.events(since)
        while parts.stripe_events.application.advance():
            pass
        sys.stdout.write(f"{found.seen} events seen, {found.recovered} of them recovered\n")
        if chosen.events_only:
            return 0
        compared = parts.stripe_events.reconciliation.objects(since)
    except SubscriptionsError as error:
        raise CommandError(f"{error.message}. {error.advice}") from error
    finally:
        parts.close()
    sys.stdout.write(f"{compared.done} customers compared, {compared.failed} could not be\n")
    return 1 if compared.failed else 0


def _replay_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("event_id", metavar="EVENT", help="Stripe's id of an event that was taken in, evt_…")


def _replay(chosen: argparse.Namespace, settings: Callable[[], SubscriptionsSettings]) -> int:
    parts = Subscriptions(settings())
    try:
        event = parts.stripe_events.log.replay(chosen.event_id)
    except SubscriptionsError as error:
        raise CommandError(f"{error.message}. {error.advice}") from error
    finally:
        parts.close()
    sys.stdout.write(f"{event.event_id} {event.type}: {event.status} {event.last_error}".rstrip() + "\n")
    return 0 if event.status in (APPLIED, IGNORED) else 1


RECONCILE: Command[SubscriptionsSettings] = Command(
    name="reconcile",
    help="take in the events that were missed, and compare every customer with what Stripe has; idempotent",
    arguments=_reconcile_arguments,
    run=_reconcile,
)
REPLAY: Command[SubscriptionsSettings] = Command(
    name="replay",
    help="apply a Stripe event again; what it did is not done twice",
    arguments=_replay_arguments,
    run=_replay,
)
