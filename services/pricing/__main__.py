"""Owns pricing's command line: `python -m services.pricing serve | migrate`."""

from __future__ import annotations

import sys
from pathlib import Path

from tollkeeper.pricing.v1.plan_service_pb2_grpc import add_PlanServiceServicer_to_server
from tollkeeper.pricing.v1.pricing_service_pb2_grpc import add_PricingServiceServicer_to_server

from services.kit.command import main
from services.kit.db import sync_engine
from services.kit.serving import SyncServer
from services.pricing.live import LiveCatalogue
from services.pricing.plan_servicer import PlanServicer
from services.pricing.service import PricingService
from services.pricing.servicer import PricingServicer
from services.pricing.settings import PricingSettings
from services.pricing.shipped import load_shipped
from services.pricing.watching import Watches

MIGRATIONS = Path(__file__).parent / "migrations"


def make_server(settings: PricingSettings) -> SyncServer:
    """A server of both contracts. On its start an empty database gets the shipped catalogue."""
    engine = sync_engine(settings)
    live = LiveCatalogue(engine, settings.poll_seconds)
    service = PricingService(engine, live)
    server = SyncServer(settings)
    watches = Watches(live, settings.watcher_limit, server.draining)
    server.register(add_PricingServiceServicer_to_server, PricingServicer(service, watches))
    server.register(add_PlanServiceServicer_to_server, PlanServicer(service))

    def ship() -> None:
        service.ship(load_shipped())

    server.on_start(ship)
    server.on_start(live.start)
    server.on_stop(engine.dispose)
    server.on_stop(live.stop)
    return server


if __name__ == "__main__":
    sys.exit(main(PricingSettings, serve=make_server, script_location=MIGRATIONS))
