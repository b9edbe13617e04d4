"""Owns a whole service for tests of the command line: `python -m kit_service serve | migrate | work`.

Environment: KIT_KIND aio, async-factory or sync; KIT_MIGRATIONS a folder of migrations, or nothing.
"""

import asyncio
import os
import sys
import threading
from pathlib import Path

import kit_echo_pb2_grpc
from kit_echo import AioEcho, SyncEcho

from services.kit.command import main
from services.kit.logs import get_logger
from services.kit.serving import AioServer, SyncServer
from services.kit.settings import ServiceSettings

log = get_logger("kit_service")
KIND = os.environ.get("KIT_KIND", "aio")
MIGRATIONS = os.environ.get("KIT_MIGRATIONS")
ADD = kit_echo_pb2_grpc.add_EchoServiceServicer_to_server


class Settings(ServiceSettings):
    service = "kittest"
    numbers: tuple[int, ...] = ()


def served(settings):
    if KIND == "sync":
        # Never released: a thread that no signal stops.
        server, servicer = SyncServer(settings), SyncEcho(threading.Event(), threading.Event())
    else:
        server, servicer = AioServer(settings), AioEcho()

        async def release_soon():
            async def wait():
                await servicer.started.wait()
                await server.draining.wait()
                await asyncio.sleep(0.5)
                servicer.release.set()

            server.releasing = asyncio.ensure_future(wait())

        server.on_start(release_soon)
    server.register(ADD, servicer)
    server.on_stop(lambda: log.info("stop hook", running=server._gate.running))
    return server


async def served_async(settings):
    await asyncio.sleep(0)
    return served(settings)


async def work(settings, stop):
    log.info("working")
    await stop.wait()
    log.info("worked")


def work_sync(settings, stop):
    log.info("working")
    stop.wait()
    log.info("worked")


if __name__ == "__main__":
    sys.exit(
        main(
            Settings,
            serve=served_async if KIND == "async-factory" else served,
            work=work_sync if KIND == "sync" else work,
            script_location=Path(MIGRATIONS) if MIGRATIONS else None,
        )
    )
