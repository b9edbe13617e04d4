"""Owns all SQL on keys."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncEngine

from services.proxy.keys.model import ACTIVE, EXPIRED, REVOKED, Key
from services.proxy.tables import keys

_COLUMNS = tuple(keys.c[name] for name in Key.__dataclass_fields__)


class KeyStore:
    """Keys in Postgres; every method is one transaction."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine

    async def add(self, key: Key, **columns: Any) -> bool:
        """Insert a key; False where its account and request id are there already (nothing is changed then).

        `columns`: key_sha256, created_by, request_id, request_sha256.
        """
        async with self._engine.begin() as connection:
            return (await connection.execute(_insertion(key, columns))).first() is not None

    async def replace(self, key_id: str, new: Key, *, ends_at: datetime, **columns: Any) -> bytes | None:
        """Insert a key in the place of another, which ends at `ends_at` at the latest; the other's hash.

        None where nothing was changed: the other one had ended before `new` was made or was replaced, or the new one's
        account and request id are there already. `columns` as of `add`. Locks the other's row, so of two at once the
        second changes nothing.
        """
        active = sa.or_(keys.c.expires_at.is_(None), keys.c.expires_at > new.created_at)
        ending = (
            sa.update(keys)
            .where(keys.c.key_id == key_id, keys.c.replaced_by_key_id == "", keys.c.revoked_at.is_(None), active)
            # LEAST passes over NULL.
            .values(replaced_by_key_id=new.key_id, expires_at=sa.func.least(keys.c.expires_at, ends_at))
            .returning(keys.c.key_sha256)
        )
        async with self._engine.connect() as connection, connection.begin() as transaction:
            ended = (await connection.execute(ending)).scalar()
            if ended is None or (await connection.execute(_insertion(new, columns))).first() is None:
                await transaction.rollback()
                return None
        return bytes(ended)

    async def by_sha256(self, digest: bytes) -> Key | None:
        """The key with this hash. Reads by its unique index, takes no lock."""
        return await self._one(keys.c.key_sha256 == digest)

    async def by_id(self, key_id: str) -> Key | None:
        """The key with this id. Reads by primary key, takes no lock."""
        return await self._one(keys.c.key_id == key_id)

    async def by_request(self, account_id: str, request_id: str) -> tuple[Key, bytes] | None:
        """The key made for this request id, and the hash of that request. Reads by `keys_request_once`."""
        wanted = (keys.c.account_id == account_id) & (keys.c.request_id == request_id)
        async with self._engine.connect() as connection:
            row = (await connection.execute(sa.select(*_COLUMNS, keys.c.request_sha256).where(wanted))).first()
        return (_key(row[:-1]), bytes(row[-1])) if row is not None else None

    async def newest(
        self,
        *,
        account_id: str,
        status: str,
        now: datetime,
        before: tuple[datetime, str] | None,
        limit: int,
    ) -> list[Key]:
        """Keys, newest first, from after `before` (created_at, key_id). Reads by one of the `keys_newest` indexes."""
        statement = sa.select(*_COLUMNS).order_by(keys.c.created_at.desc(), keys.c.key_id.desc()).limit(limit)
        if account_id:
            statement = statement.where(keys.c.account_id == account_id)
        ended = keys.c.expires_at <= now
        if status == REVOKED:
            statement = statement.where(keys.c.revoked_at.is_not(None))
        elif status == EXPIRED:
            statement = statement.where(keys.c.revoked_at.is_(None), ended)
        elif status == ACTIVE:
            statement = statement.where(keys.c.revoked_at.is_(None), sa.or_(keys.c.expires_at.is_(None), ~ended))
        if before is not None:
            statement = statement.where(sa.tuple_(keys.c.created_at, keys.c.key_id) < before)
        async with self._engine.connect() as connection:
            return [_key(row) for row in await connection.execute(statement)]

    async def revoke(self, key_id: str, now: datetime) -> tuple[Key, bytes] | None:
        """End a key, from `now` unless it had ended before; the key and its hash. Locks the key's row."""
        statement = (
            sa.update(keys)
            .where(keys.c.key_id == key_id)
            .values(revoked_at=sa.func.coalesce(keys.c.revoked_at, now))
            .returning(*_COLUMNS, keys.c.key_sha256)
        )
        async with self._engine.begin() as connection:
            row = (await connection.execute(statement)).first()
        return (_key(row[:-1]), bytes(row[-1])) if row is not None else None

    async def _one(self, condition: sa.ColumnElement[bool]) -> Key | None:
        async with self._engine.connect() as connection:
            row = (await connection.execute(sa.select(*_COLUMNS).where(condition))).first()
        return _key(row) if row is not None else None


def _insertion(key: Key, columns: dict[str, Any]) -> Any:
    """Inserts a key, unless one is there; gives its id then.

    Any unique index decides, not `keys_request_once` alone: of two equal requests at once, whose keys have the same id,
    the second may meet the first in either.
    """
    record = {name: getattr(key, name) for name in Key.__dataclass_fields__}
    record["allowed_models"] = sorted(key.allowed_models)
    return insert(keys).values(**record, **columns).on_conflict_do_nothing().returning(keys.c.key_id)


def _key(row: Any) -> Key:
    values = dict(zip(Key.__dataclass_fields__, row, strict=True))
    values["allowed_models"] = frozenset(values["allowed_models"])
    return Key(**values)
