"""Owns the command line every service has: `python -m services.<service> serve | migrate | work`."""

from __future__ import annotations

import argparse
import asyncio
import inspect
import signal
import sys
import threading
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from types import FrameType
from typing import Any, TypeVar

import sqlalchemy.exc
from pydantic import ValidationError
from pydantic_settings import SettingsError

from services.kit import migrations
from services.kit.access import RegistrationError
from services.kit.addresses import BindError
from services.kit.db import DatabaseUrlError
from services.kit.identity import KeyFileError
from services.kit.logs import configure_logs, get_logger
from services.kit.serving import AioServer, SyncServer, run_async
from services.kit.settings import ServiceSettings

_log = get_logger(__name__)

_S = TypeVar("_S", bound=ServiceSettings)

# Failures an operator can act on: told in a line, without a traceback.
_TOLD = (BindError, KeyFileError, DatabaseUrlError, RegistrationError, migrations.MigrationError)


def main(
    settings_class: type[_S],
    *,
    serve: Callable[[_S], AioServer | SyncServer | Awaitable[AioServer]],
    script_location: Path | None = None,
    work: Callable[[_S, Any], Awaitable[None] | None] | None = None,
    arguments: Sequence[str] | None = None,
) -> int:
    """Run a service's command; the exit status (0 done or stopped by a signal, 1 failed, 2 misused or misconfigured).

    `serve(settings)` makes the server; where it is a coroutine function it runs in the server's event loop.
    `work(settings, stop)` runs until the event `stop` is set (an asyncio.Event for a coroutine function, else a
    threading.Event). With `script_location` (the migrations folder) there is `migrate`, and the other two refuse to
    start on a database that is behind.
    """
    service = settings_class.service
    program = f"python -m services.{service}"
    parser = argparse.ArgumentParser(prog=program, description=f"Tollkeeper's {service} service.")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("serve", help="serve gRPC until SIGTERM or SIGINT")
    if script_location is not None:
        migrate = commands.add_parser("migrate", help="bring the database to this release's schema")
        migrate.add_argument("--check", action="store_true", help="change nothing; fail where the schema is behind")
    if work is not None:
        commands.add_parser("work", help="run the background jobs until SIGTERM or SIGINT")
    chosen = parser.parse_args(arguments)
    try:
        settings = settings_class()
    except (ValidationError, SettingsError) as error:
        return _misconfigured(settings_class, error)
    configure_logs(service, settings.log_level)

    def migrated() -> None:
        if script_location is not None:
            migrations.require_head(settings.database_url, script_location, how=f"run `{program} migrate`")

    def run() -> None:
        if chosen.command == "migrate" and script_location is not None:
            if not chosen.check:
                migrations.upgrade(settings.database_url, script_location)
            migrated()
            sys.stdout.write(f"{service}: at revision {migrations.current(settings.database_url) or 'none'}\n")
        elif chosen.command == "work" and work is not None:
            migrated()
            _work(settings, work)
        else:
            migrated()
            _serve(settings, serve)

    return _reported(service, run)


def _reported(service: str, run: Callable[[], None]) -> int:
    """Run, turning failures into a line on stderr (or a logged traceback) and an exit status."""
    try:
        run()
    except _TOLD as error:
        return _failed(service, str(error))
    except sqlalchemy.exc.OperationalError as error:
        return _failed(service, f"the database did not answer: {error.orig}")
    except KeyboardInterrupt:
        return 130
    except Exception:  # noqa: BLE001 (the last line of defence: whatever it is, it goes to the log)
        _log.exception("failed")
        return 1
    return 0


def _failed(service: str, message: str) -> int:
    sys.stderr.write(f"{service}: {message.strip()}\n")
    return 1


def _misconfigured(settings_class: type[ServiceSettings], error: ValidationError | SettingsError) -> int:
    """Name each wrong setting by its variable, never repeating its value: it may be a secret."""
    if isinstance(error, SettingsError):  # not even JSON, for a field that takes JSON; its message holds no value
        sys.stderr.write(f"{settings_class.service}: {error}\n")
        return 2
    for problem in error.errors(include_url=False, include_input=False, include_context=False):
        name = "_".join(str(part) for part in problem["loc"][:1]).upper()
        variable = f"TOLLKEEPER_{settings_class.service.upper()}_{name} (or TOLLKEEPER_{name})"
        sys.stderr.write(f"{settings_class.service}: {variable}: {problem['msg']}\n")
    return 2


def _serve(settings: _S, serve: Callable[[_S], AioServer | SyncServer | Awaitable[AioServer]]) -> None:
    if not inspect.iscoroutinefunction(serve):
        server = serve(settings)
        assert isinstance(server, AioServer | SyncServer)
        server.run()
        return

    async def made_and_served() -> None:
        await (await serve(settings)).serve()

    run_async(made_and_served)


def _work(settings: _S, work: Callable[[_S, Any], Awaitable[None] | None]) -> None:
    if not inspect.iscoroutinefunction(work):
        asked = threading.Event()

        def ask(_number: int, _frame: FrameType | None) -> None:
            asked.set()

        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, ask)
        work(settings, asked)
        return

    async def worked() -> None:
        asked = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, asked.set)
        await work(settings, asked)

    run_async(worked)
