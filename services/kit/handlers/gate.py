"""Owns the limit of calls at once."""

import threading

from services.kit.refusals import Overloaded


class Gate:
    """Counts the calls being served and refuses those above the limit. Shared by all RPCs of an aio server."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.running = 0

    def enter(self) -> None:
        """Count one call in. Raises Overloaded where the limit is reached."""
        if self.running >= self.limit:
            raise Overloaded("the server is at its limit of calls at once", retry_after_seconds=1)
        self.running += 1

    def leave(self) -> None:
        """Count one call out."""
        self.running -= 1


class ThreadedGate(Gate):
    """The same, of a sync server, whose calls come and go in many threads at once."""

    def __init__(self, limit: int) -> None:
        super().__init__(limit)
        self._lock = threading.Lock()

    def enter(self) -> None:
        """Count one call in. Raises Overloaded where the limit is reached."""
        with self._lock:
            super().enter()

    def leave(self) -> None:
        """Count one call out."""
        with self._lock:
            super().leave()
