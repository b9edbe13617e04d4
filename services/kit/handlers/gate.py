"""Owns the limit of calls at once."""

import threading

from services.kit.refusals import Overloaded

# Of all places, what is left to calls that are answered at once.
_SPARE_SHARE = 8


class Gate:
    """Counts the calls being served and refuses those above the limit. Shared by all RPCs of an aio server."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.running = 0

    def most(self, *, streamed: bool) -> int:
        """How many may run with one call more; fewer where that is answered by a stream.

        Streams last as long as their clients like, so they leave places to authorization and whatever else is short.
        """
        return self.limit - self.limit // _SPARE_SHARE if streamed else self.limit

    def enter(self, most: int) -> None:
        """Count one call in. Raises Overloaded where `most` are running."""
        if self.running >= most:
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

    def enter(self, most: int) -> None:
        """Count one call in. Raises Overloaded where `most` are running."""
        with self._lock:
            super().enter(most)

    def leave(self) -> None:
        """Count one call out."""
        with self._lock:
            super().leave()
