"""Owns the ledger's own commands, beside those that every service has."""

from services.kit.command import Command
from services.ledger.commands.export import EXPORT
from services.ledger.commands.months import MONTHS
from services.ledger.commands.verify import VERIFY
from services.ledger.settings import LedgerSettings

COMMANDS: tuple[Command[LedgerSettings], ...] = (EXPORT, MONTHS, VERIFY)
