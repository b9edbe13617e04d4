"""Owns the state: objects by kind and id in memory, changed one transaction at a time, kept in a SQLite file."""

from __future__ import annotations

import copy
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import orjson

from deploy.local.sandbox.stripe.refusal import Obj

_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS object (
    kind TEXT NOT NULL, id TEXT NOT NULL, number INTEGER NOT NULL, body BLOB NOT NULL, PRIMARY KEY (kind, id)
) WITHOUT ROWID
"""


class Store:
    """All objects. In memory only where no file is given.

    The file is written in one transaction per request, so a process killed at any moment leaves whole requests behind.
    """

    def __init__(self, file: Path | None = None) -> None:
        self._objects: dict[str, dict[str, Obj]] = {}
        self._numbers: dict[tuple[str, str], int] = {}
        self._last_number = 0
        self._database: sqlite3.Connection | None = None
        if file is not None:
            self._database = sqlite3.connect(file, isolation_level=None)
            self._database.execute("PRAGMA journal_mode = WAL")
            self._database.execute("PRAGMA synchronous = NORMAL")
            self._database.execute(_SCHEMA)
            self._load(self._database)

    def _load(self, database: sqlite3.Connection) -> None:
        for kind, identifier, number, body in database.execute(
            "SELECT kind, id, number, body FROM object ORDER BY number"
        ):
            self._objects.setdefault(kind, {})[identifier] = orjson.loads(body)
            self._numbers[kind, identifier] = self._last_number = number

    def get(self, kind: str, identifier: str) -> Obj | None:
        """An object as last committed. Not to be changed."""
        return self._objects.get(kind, {}).get(identifier)

    def all(self, kind: str) -> Iterator[Obj]:
        """Every committed object of a kind, oldest first. Not to be changed."""
        return iter(tuple(self._objects.get(kind, {}).values()))

    def transaction(self) -> Transaction:
        """A view on which changes may be made."""
        return Transaction(self)

    def commit(self, changes: dict[str, dict[str, Obj | None]]) -> None:
        """Make `changes` (None: gone) the state, on disk first."""
        rows: list[tuple[str, str, int, bytes]] = []
        gone: list[tuple[str, str]] = []
        for kind, objects in changes.items():
            for identifier, obj in objects.items():
                if obj is None:
                    gone.append((kind, identifier))
                    continue
                number = self._numbers.get((kind, identifier))
                if number is None:
                    self._last_number += 1
                    number = self._numbers[kind, identifier] = self._last_number
                rows.append((kind, identifier, number, orjson.dumps(obj) if self._database else b""))
        if self._database is not None:
            self._write(self._database, rows, gone)
        for kind, objects in changes.items():
            kept = self._objects.setdefault(kind, {})
            for identifier, obj in objects.items():
                if obj is None:
                    kept.pop(identifier, None)
                    self._numbers.pop((kind, identifier), None)
                else:
                    kept[identifier] = obj

    @staticmethod
    def _write(
        database: sqlite3.Connection, rows: list[tuple[str, str, int, bytes]], gone: list[tuple[str, str]]
    ) -> None:
        database.execute("BEGIN IMMEDIATE")
        try:
            database.executemany("DELETE FROM object WHERE kind = ? AND id = ?", gone)
            database.executemany("INSERT OR REPLACE INTO object (kind, id, number, body) VALUES (?, ?, ?, ?)", rows)
        except BaseException:
            database.execute("ROLLBACK")
            raise
        database.execute("COMMIT")

    def close(self) -> None:
        """Close the file."""
        if self._database is not None:
            self._database.close()


class Transaction:
    """One request's view: sees its own changes, which nobody else sees before `commit`."""

    def __init__(self, store: Store | Transaction) -> None:
        self._store = store
        self._changes: dict[str, dict[str, Obj | None]] = {}

    def get(self, kind: str, identifier: str) -> Obj | None:
        """An object, or None. Not to be changed: see `edit`."""
        changed = self._changes.get(kind)
        if changed is not None and identifier in changed:
            return changed[identifier]
        return self._store.get(kind, identifier)

    def all(self, kind: str) -> Iterator[Obj]:
        """Every object of a kind, oldest first. Not to be changed: see `edit`."""
        changed = self._changes.get(kind, {})
        seen = set()
        for obj in self._store.all(kind):
            identifier = obj["id"]
            seen.add(identifier)
            current = changed.get(identifier, obj)
            if current is not None:
                yield current
        yield from [obj for identifier, obj in tuple(changed.items()) if obj is not None and identifier not in seen]

    def edit(self, kind: str, identifier: str) -> Obj:
        """A private copy of an object that is there, to be changed in place."""
        changed = self._changes.setdefault(kind, {})
        current = changed.get(identifier)
        if current is not None:
            return current
        original = self.get(kind, identifier)
        assert original is not None, (kind, identifier)
        edited = changed[identifier] = copy.deepcopy(original)
        return edited

    def put(self, kind: str, obj: Obj) -> Obj:
        """Add an object, or put it in the place of the one with its id."""
        self._changes.setdefault(kind, {})[obj["id"]] = obj
        return obj

    def remove(self, kind: str, identifier: str) -> None:
        """Take an object away."""
        self._changes.setdefault(kind, {})[identifier] = None

    def scratch(self) -> Transaction:
        """A view for trying something out: sees what this one sees, and is never committed."""
        return Transaction(self)

    def fresh(self) -> Transaction:
        """The view that this one began with."""
        return Transaction(self._store)

    def commit(self) -> None:
        """Make the changes everybody's."""
        assert isinstance(self._store, Store), "what was tried out is not committed"
        if self._changes:
            self._store.commit(self._changes)
            self._changes = {}
