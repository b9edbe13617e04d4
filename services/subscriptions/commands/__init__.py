"""Owns subscriptions' commands for a person at a terminal, beside serving, working and migrating."""

from __future__ import annotations

from services.kit.command import Command
from services.subscriptions.commands.reconcile import RECONCILE, REPLAY
from services.subscriptions.commands.redeliver import REDELIVER
from services.subscriptions.commands.setup_stripe import SETUP_STRIPE
from services.subscriptions.settings import SubscriptionsSettings

COMMANDS: tuple[Command[SubscriptionsSettings], ...] = (SETUP_STRIPE, RECONCILE, REPLAY, REDELIVER)
