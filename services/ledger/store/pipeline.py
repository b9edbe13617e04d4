"""Owns how a batch talks to Postgres: its statements, prepared once for each connection, go together, as one message.

psycopg's own pipeline makes a cursor and waits for the socket for each statement, which was a quarter of what a small
batch cost. This is its connection, its libpq and its reading of rows, and nothing else of it.
"""

from __future__ import annotations

import asyncio
import itertools
import re
from collections.abc import Callable, Sequence
from typing import Any, Self

import orjson
import psycopg
from psycopg import abc
from psycopg.adapt import Loader, Transformer
from psycopg.errors import error_from_result
from psycopg.pq import ConnStatus, ExecStatus, Format
from psycopg.pq.abc import PGresult
from psycopg.rows import TupleRow

# A batch finds everything by its keys, so each statement has one plan, whatever its parameters and however large the
# tables are when it is made: by their indexes. Else Postgres plans a small batch's statements anew each time, as it
# takes their plans for dearer than they are, and reads small tables whole.
_ONE_PLAN = (
    "SET plan_cache_mode = force_generic_plan; SET jit = off;"
    "SET enable_seqscan = off; SET enable_hashjoin = off; SET enable_mergejoin = off"
)

_numbers = itertools.count(1)


class Statement:
    """A query, `%s` for each of its parameters that go as text, `%b` for those in Postgres' binary form.

    Made once, when its module is loaded.
    """

    __slots__ = ("formats", "name", "query")

    def __init__(self, query: str) -> None:
        first, *others = re.split("(%[sb])", query)
        self.query = (first + "".join(f"${at // 2 + 1}{others[at + 1]}" for at in range(0, len(others), 2))).encode()
        self.formats = [Format.BINARY if placeholder == "%b" else Format.TEXT for placeholder in others[::2]]
        self.name = f"ledger_{next(_numbers)}".encode()


# A statement and its parameters, in UTF-8; None is NULL.
Asked = tuple[Statement, Sequence[bytes | None]]


class _JsonLoader(Loader):
    load = staticmethod(orjson.loads)  # type: ignore[assignment]  # it takes more than bytes


class Connection(psycopg.AsyncConnection[TupleRow]):
    """A connection that one writer has to itself."""

    def __init__(self, *arguments: Any, **words: Any) -> None:
        super().__init__(*arguments, **words)
        self._statements_there: set[bytes] = set()
        self._transformer: abc.Transformer | None = None  # made once: it looks up how each type is read
        for name in ("json", "jsonb"):
            self.adapters.register_loader(name, _JsonLoader)

    @classmethod
    async def opened(cls, url: str, **words: Any) -> Self:
        """Connect, with psycopg's own words for how. It prepares nothing itself: else it would forget ours, too."""
        connection = await cls.connect(url, autocommit=True, prepare_threshold=None, **words)
        try:
            await connection.execute(_ONE_PLAN)
        except BaseException:
            await connection.close()
            raise
        return connection

    async def ask(self, *asked: Asked | None, meanwhile: Callable[[], None] | None = None) -> list[list[TupleRow]]:
        """Send statements in one go; each one's rows, none for None. Where one fails, those after it are not done.

        `meanwhile` is called, and must not fail, while Postgres works.

        Outside of a transaction block they are one transaction, committed at their end: all of them are done, or none.
        Raises the error of the one that failed. A connection that is not answered to the end (it broke, or the caller
        was cancelled) is closed: what it says next would be taken for the answer of something else.
        """
        sent = [one for one in asked if one is not None]
        new = list(dict.fromkeys(statement for statement, _ in sent if statement.name not in self._statements_there))
        try:
            self.pgconn.enter_pipeline_mode()
            for statement in new:
                self.pgconn.send_prepare(statement.name, statement.query)
            for statement, parameters in sent:
                self.pgconn.send_query_prepared(statement.name, parameters, statement.formats)
            self.pgconn.pipeline_sync()
            results = await self._answers(meanwhile)
            self.pgconn.exit_pipeline_mode()
        except BaseException:
            self.pgconn.finish()
            raise
        for statement, result in zip(new, results, strict=False):
            if result.status == ExecStatus.COMMAND_OK:
                self._statements_there.add(statement.name)
        for result in results:
            if result.status == ExecStatus.FATAL_ERROR:
                raise error_from_result(result)
        answers = iter(results[len(new) :])
        return [[] if one is None else self._rows(next(answers)) for one in asked]

    async def _answers(self, meanwhile: Callable[[], None] | None) -> list[PGresult]:
        """The result of each statement, up to the end of the pipeline."""
        while self.pgconn.flush():
            await self._ready(writing=True)
            self.pgconn.consume_input()  # Postgres may wait for us to read before it reads on
        if meanwhile is not None:
            meanwhile()
        results: list[PGresult] = []
        while True:
            while self.pgconn.is_busy():
                await self._ready()
                self.pgconn.consume_input()
            result = self.pgconn.get_result()
            if result is None:  # the end of one statement's results
                if self.pgconn.status == ConnStatus.BAD:
                    raise psycopg.OperationalError("the connection to the database is lost")
            elif result.status == ExecStatus.PIPELINE_SYNC:
                return results
            else:
                results.append(result)

    async def _ready(self, *, writing: bool = False) -> None:
        """Wait until the socket can be read, or written where that is wanted.

        A reader that stays would save some 50 µs of a model call. But uvloop ends one whose socket has an error, and
        says so but once, with whatever came before: the rest would be waited for without end.
        """
        loop = asyncio.get_running_loop()
        ready = loop.create_future()

        def wake() -> None:
            if not ready.done():
                ready.set_result(None)

        socket = self.pgconn.socket
        loop.add_reader(socket, wake)
        if writing:
            loop.add_writer(socket, wake)
        try:
            await ready
        finally:
            loop.remove_reader(socket)
            if writing:
                loop.remove_writer(socket)

    def _rows(self, result: PGresult) -> list[TupleRow]:
        if not result.ntuples:
            return []
        if self._transformer is None:
            self._transformer = Transformer(self)
        self._transformer.set_pgresult(result)
        try:
            return self._transformer.load_rows(0, result.ntuples, tuple)
        finally:
            self._transformer.set_pgresult(None)
