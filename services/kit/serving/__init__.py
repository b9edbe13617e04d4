"""Owns a gRPC server's life: bind, start, health, drain on SIGTERM. One class for aio services, one for sync ones.

Both have the same surface: `register` servicers, add `on_start` and `on_stop` hooks, then `run()`, or `start()` and
`stop()` (as tests do). Health answers SERVING only after the start hooks have ended well. On SIGTERM or SIGINT it
answers NOT_SERVING; after `drain_seconds`, in which balancers look elsewhere, no new call is taken, those running get
`grace_seconds`, then the stop hooks run, last added first.
"""

from services.kit.serving.aio import AioServer
from services.kit.serving.sync import SyncServer

__all__ = ["AioServer", "SyncServer"]
