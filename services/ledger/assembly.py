"""Owns how the parts of the ledger's server are put together, for the command line and for tests."""

from __future__ import annotations

from tollkeeper.ledger.v1 import ledger_service_pb2_grpc as contract

from services.kit.db import async_engine
from services.kit.serving import AioServer
from services.ledger.feed import UsageFeed
from services.ledger.group_commit import GroupCommit
from services.ledger.presence import Presence
from services.ledger.service import Ledger
from services.ledger.servicer.accounts import AccountServicer
from services.ledger.servicer.journal import JournalServicer
from services.ledger.servicer.ledger import LedgerServicer
from services.ledger.settings import LedgerSettings
from services.ledger.store.feed import FeedReads
from services.ledger.store.reads import Reads
from services.ledger.verifying import Verifier
from services.ledger.worker import make_partitions


async def make_server(settings: LedgerSettings) -> AioServer:
    """The ledger's server, not started yet."""
    engine = async_engine(settings)
    presence = Presence(settings)
    commits = GroupCommit(settings, presence)
    ledger = Ledger(commits, Reads(engine))
    server = AioServer(settings)
    feed = UsageFeed(FeedReads(engine), server.draining)
    server.register(contract.add_AccountServiceServicer_to_server, AccountServicer(ledger, Verifier(engine)))
    server.register(contract.add_LedgerServiceServicer_to_server, LedgerServicer(ledger))
    server.register(contract.add_JournalServiceServicer_to_server, JournalServicer(ledger, feed))
    server.on_start(lambda: make_partitions(settings))
    server.on_start(commits.start)
    server.on_start(presence.start)
    server.on_stop(engine.dispose)
    server.on_stop(presence.stop)
    server.on_stop(commits.stop)
    return server
