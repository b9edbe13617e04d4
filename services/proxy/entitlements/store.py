"""Owns all SQL on entitlements."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncEngine

from services.proxy.entitlements.model import Entitlement
from services.proxy.tables import entitlements

_FIELDS = tuple(Entitlement.__dataclass_fields__)
_COLUMNS = tuple(entitlements.c[name] for name in _FIELDS)


class EntitlementStore:
    """Entitlements in Postgres; every method is one transaction."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine

    async def put(self, wanted: Entitlement) -> Entitlement:
        """Store an entitlement unless one of the same or a higher revision is there; the one in force afterwards.

        Locks the account's row, so of two at once the higher revision wins whatever their order.
        """
        values = {name: getattr(wanted, name) for name in _FIELDS}
        values["providers"], values["models"] = sorted(wanted.providers), sorted(wanted.models)
        statement = insert(entitlements).values(**values)
        statement = statement.on_conflict_do_update(
            index_elements=["account_id"],
            set_={name: statement.excluded[name] for name in _FIELDS if name != "account_id"},
            where=entitlements.c.revision < statement.excluded.revision,
        )
        async with self._engine.begin() as connection:
            await connection.execute(statement)
            row = (await connection.execute(_selected(wanted.account_id))).one()
        return _entitlement(row)

    async def get(self, account_id: str) -> Entitlement | None:
        """The entitlement in force. Reads by primary key, takes no lock."""
        async with self._engine.connect() as connection:
            row = (await connection.execute(_selected(account_id))).first()
        return _entitlement(row) if row is not None else None


def _selected(account_id: str) -> sa.Select[Any]:
    return sa.select(*_COLUMNS).where(entitlements.c.account_id == account_id)


def _entitlement(row: Any) -> Entitlement:
    values = dict(zip(_FIELDS, row, strict=True))
    values["providers"], values["models"] = frozenset(values["providers"]), frozenset(values["models"])
    return Entitlement(**values)
