"""The rule of each operation: what it checks, then what it changes. A refusal is raised before anything is changed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from services.ledger.model import operations as asked
from services.ledger.model.moves import Moves
from services.ledger.model.rules import accounts, holds, limits, money, undoing

Rule = Callable[[Moves, Any], asked.Result]

RULES: dict[type, Rule] = {
    asked.OpenAccount: accounts.open_account,
    asked.UpdateAccount: accounts.update_account,
    asked.SetStatus: accounts.set_status,
    asked.Touch: accounts.touch,
    asked.Credit: money.credit,
    asked.Adjust: money.adjust,
    asked.Debit: money.debit,
    asked.Undo: undoing.undo,
    asked.CreateHold: holds.create_hold,
    asked.ExtendHold: holds.extend_hold,
    asked.SettleHold: holds.settle_hold,
    asked.ReleaseHold: holds.release_hold,
    asked.SetLimit: limits.set_limit,
    asked.DeleteLimit: limits.delete_limit,
}
