"""Owns the use cases of accounts' price overrides and their transactions: set one, end one, list them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime

from sqlalchemy import Engine

from services.kit.logs import get_logger
from services.pricing import store
from services.pricing.errors import OverrideNotFound, PriceNotFound, TooManyOverrides
from services.pricing.live import LiveCatalogue
from services.pricing.overrides import Override, OverrideBook, OverrideEnd, override_faults
from services.pricing.writing import Asked, Turn, not_past, refuse, turn

_log = get_logger(__name__)

_OVERRIDE_FIELD = "price_override"

# Of one account, in force or to come.
MAX_OVERRIDES = 1000

OverrideKey = tuple[str, str, str]


class OverrideService:
    """The use cases, over one database and the live catalogue that this process reads from it."""

    def __init__(self, engine: Engine, live: LiveCatalogue) -> None:
        self._engine = engine
        self._live = live

    def set(self, override: Override, effective_from: datetime | None, asked: Asked) -> tuple[Override, bool]:
        """Set an override from a moment on (None: now), as a version of its own; it, and whether this is a repeat.

        Its `version` and `effective_from` are set here. Raises InvalidArgument, PriceNotFound where the catalogue never
        had a price for the model, TooManyOverrides, IdempotencyConflict.
        """
        # Prices are never taken out of the book again, so this may be asked before the turn.
        if (override.provider, override.model) not in self._live.refresh().book:
            raise PriceNotFound(
                f"{override.provider}/{override.model} is not in the catalogue, so there is nothing to override",
                provider=override.provider,
                model=override.model,
            )
        with turn(self._engine, asked) as ours:
            if ours.replayed is not None:
                return store.read_override(ours.connection, ours.replayed), True
            if len(_held(ours, override.account_id)) >= MAX_OVERRIDES:
                raise TooManyOverrides(
                    f"account {override.account_id} has {MAX_OVERRIDES} prices of its own, the most there may be",
                    account_id=override.account_id,
                    limit=MAX_OVERRIDES,
                )
            moment = not_past(f"{_OVERRIDE_FIELD}.effective_from", effective_from, ours.now)
            written = replace(override, version=ours.latest_version + 1, effective_from=moment)
            refuse(_OVERRIDE_FIELD, override_faults(written))
            ours.new_version(effective_from=moment, account_id=override.account_id)
            store.insert_override(ours.connection, written)
            ours.done(written.version)
        _log.info("price override set", version=written.version, account=written.account_id, author=asked.author)
        self._live.refresh()
        return written, False

    def end(self, key: OverrideKey, asked: Asked) -> bool:
        """End all overrides of an account and model, those to come too; whether this is a repeat.

        Raises OverrideNotFound where none holds or is to hold, IdempotencyConflict.
        """
        account_id, provider, model = key
        with turn(self._engine, asked) as ours:
            if ours.replayed is not None:
                return True
            if not any(override.key == key for override in _held(ours, account_id)):
                raise OverrideNotFound(
                    f"account {account_id} has no price of its own for {provider}/{model}",
                    account_id=account_id,
                    provider=provider,
                    model=model,
                )
            version = ours.new_version(effective_from=ours.now, account_id=account_id)
            store.insert_override_end(ours.connection, OverrideEnd(*key, version.version, ours.now))
            ours.done(version.version)
        _log.info("price override ended", version=version.version, account=account_id, author=asked.author)
        self._live.refresh()
        return False

    def overrides(self, account_id: str, *, include_ended: bool) -> Sequence[Override]:
        """An account's overrides ("": everyone's), by account, provider, model and version."""
        book = self._live.refresh().overrides
        found = book.all() if include_ended else book.from_now_on(datetime.now(UTC))
        return [override for override in found if not account_id or override.account_id == account_id]


def _held(ours: Turn, account_id: str) -> list[Override]:
    """An account's overrides in force or to come, as this turn sees them."""
    overrides = store.read_overrides(ours.connection, account_id=account_id)
    ends = store.read_override_ends(ours.connection, account_id=account_id)
    return list(OverrideBook(overrides, ends).from_now_on(ours.now))
