"""Owns pricing's commands for a person at a terminal, beside serving and migrating."""

from __future__ import annotations

from services.kit.command import Command
from services.pricing.commands.importing import IMPORT
from services.pricing.commands.pricing import PRICE
from services.pricing.commands.reprice import REPRICE
from services.pricing.commands.tiers import TIERS
from services.pricing.settings import PricingSettings

COMMANDS: tuple[Command[PricingSettings], ...] = (PRICE, IMPORT, TIERS, REPRICE)
