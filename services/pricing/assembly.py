"""Owns how the parts of pricing are put together, for the command line and for tests."""

from __future__ import annotations

import grpc
from tollkeeper.pricing.v1.plan_service_pb2_grpc import add_PlanServiceServicer_to_server
from tollkeeper.pricing.v1.pricing_service_pb2_grpc import add_PricingServiceServicer_to_server

from services.kit.channels import sync_channel
from services.kit.db import sync_engine
from services.kit.serving import SyncServer
from services.pricing.clients import LedgerClient, SubscriptionsClient
from services.pricing.live import LiveCatalogue
from services.pricing.margins import MarginReports
from services.pricing.override_service import OverrideService
from services.pricing.plan_service import PlanService
from services.pricing.plan_servicer import PlanServicer
from services.pricing.repricing import Repricer
from services.pricing.service import PricingService
from services.pricing.servicer import PricingServicer
from services.pricing.settings import PricingSettings
from services.pricing.shipped import load_shipped
from services.pricing.watching import Watches


class Parts:
    """The parts of one process: database engine, live catalogue, channels, use cases. Connects lazily."""

    def __init__(self, settings: PricingSettings) -> None:
        self.settings = settings
        self.engine = sync_engine(settings)
        self.live = LiveCatalogue(self.engine, settings.poll_seconds)
        self._channels: list[grpc.Channel] = []
        ledger = LedgerClient(self._channel(settings.ledger_addr)) if settings.ledger_addr else None
        customers = (
            SubscriptionsClient(self._channel(settings.subscriptions_addr)) if settings.subscriptions_addr else None
        )
        self.prices = PricingService(self.engine, self.live)
        self.overrides = OverrideService(self.engine, self.live)
        self.plans = PlanService(self.engine, self.live)
        self.repricer = Repricer(self.live, ledger)
        self.margins = MarginReports(self.plans, customers, ledger)

    def _channel(self, address: str) -> grpc.Channel:
        channel = sync_channel(address, self.settings, timeout_seconds=self.settings.service_timeout_seconds)
        self._channels.append(channel)
        return channel

    def close(self) -> None:
        """Close channels and connections."""
        for channel in self._channels:
            channel.close()
        self.engine.dispose()


def make_server(settings: PricingSettings) -> SyncServer:
    """A server of both contracts. On its start an empty database gets the shipped catalogue."""
    parts = Parts(settings)
    server = SyncServer(settings)
    watches = Watches(parts.live, settings.watcher_limit, server.draining)
    prices = PricingServicer(parts.prices, parts.overrides, parts.repricer, watches)
    server.register(add_PricingServiceServicer_to_server, prices)
    server.register(add_PlanServiceServicer_to_server, PlanServicer(parts.plans, parts.margins))

    def ship() -> None:
        parts.prices.ship(load_shipped())

    server.on_start(ship)
    server.on_start(parts.live.start)
    server.on_stop(parts.close)
    server.on_stop(parts.live.stop)
    return server
