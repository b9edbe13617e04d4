"""Owns the command line of subscriptions: `python -m services.subscriptions serve | migrate | work`, and its own."""

from __future__ import annotations

import sys
import threading
from pathlib import Path

from services.kit.command import main
from services.kit.metrics import serve_metrics
from services.kit.serving import SyncServer
from services.subscriptions.assembly import Subscriptions
from services.subscriptions.commands import COMMANDS
from services.subscriptions.settings import SubscriptionsSettings
from services.subscriptions.worker import work_as_leader

MIGRATIONS = Path(__file__).parent / "migrations"


def serve(settings: SubscriptionsSettings) -> SyncServer:
    """The server, with the background jobs beside it unless the settings say otherwise."""
    parts = Subscriptions(settings)
    server = parts.server()
    server.on_start(parts.stripe.check_soon)
    if settings.deliver_in_serve:
        jobs = parts.background_jobs()
        server.on_start(jobs.start)
        server.on_stop(jobs.stop)
    return server


def work(settings: SubscriptionsSettings, stop: threading.Event) -> None:
    """The background jobs, while this process leads."""
    stop_metrics = serve_metrics(settings.metrics_listen) if settings.metrics_listen else None
    parts = Subscriptions(settings)
    parts.stripe.check_soon()
    try:
        work_as_leader(parts.engine, parts.background_jobs, stop)
    finally:
        parts.close()
        if stop_metrics is not None:
            stop_metrics()


if __name__ == "__main__":
    sys.exit(main(SubscriptionsSettings, serve=serve, work=work, script_location=MIGRATIONS, own=COMMANDS))
