"""Owns the command line every service has: `python -m services.<service> serve | migrate | work`, and its own."""

from __future__ import annotations

import argparse
import asyncio
import inspect
import os
import signal
import sys
import threading
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any, Generic, TypeVar

import sqlalchemy.exc
from pydantic import ValidationError
from pydantic_settings import SettingsError

from services.kit import migrations
from services.kit.access import RegistrationError
from services.kit.addresses import BindError
from services.kit.db import DatabaseUrlError
from services.kit.identity import KeyFileError
from services.kit.logs import configure_logs, get_logger
from services.kit.loops import run_async
from services.kit.serving import AioServer, SyncServer
from services.kit.settings import ServiceSettings, misspelt
from services.kit.tls import TlsFileError

_log = get_logger(__name__)

_S = TypeVar("_S", bound=ServiceSettings)


class CommandError(Exception):
    """What a person at the terminal did wrong, or what stood in the way: told in a line, without a traceback."""


class _MisconfiguredError(Exception):
    """The environment does not give the settings; its cause says which."""


# Failures an operator can act on: told in a line, without a traceback.
_TOLD = (
    BindError,
    KeyFileError,
    TlsFileError,
    DatabaseUrlError,
    RegistrationError,
    migrations.MigrationError,
    CommandError,
)


@dataclass(frozen=True, slots=True)
class Command(Generic[_S]):
    """A command of one service's own.

    `run(chosen, settings)` gets its arguments and a function that gives the service's settings, having checked that the
    database is at this release's schema: a command that needs neither does not call it. It returns the exit status (0
    done, 1 what was looked for is wrong); raises CommandError for what it cannot do.
    """

    name: str
    help: str
    arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace, Callable[[], _S]], int]


def main(
    settings_class: type[_S],
    *,
    serve: Callable[[_S], AioServer | SyncServer | Awaitable[AioServer]],
    script_location: Path | None = None,
    work: Callable[[_S, Any], Awaitable[None] | None] | None = None,
    own: Sequence[Command[_S]] = (),
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
    runs: dict[str, Callable[[argparse.Namespace], int]] = {}

    def configured() -> _S:
        try:
            settings = settings_class()
        except (ValidationError, SettingsError) as error:
            raise _MisconfiguredError from error
        configure_logs(service, settings.log_level)
        for variable, meant in misspelt(os.environ, f"TOLLKEEPER_{service.upper()}_", settings_class.model_fields):
            _log.warning("no such setting", variable=variable, meant=meant)
        return settings

    def migrated() -> _S:
        settings = configured()
        if script_location is not None:
            migrations.require_head(settings.database_url, script_location, how=f"run `{program} migrate`")
        return settings

    commands.add_parser("serve", help="serve gRPC until SIGTERM or SIGINT")
    runs["serve"] = lambda _: _serve(migrated(), serve)
    if script_location is not None:
        migrate = commands.add_parser("migrate", help="bring the database to this release's schema")
        migrate.add_argument("--check", action="store_true", help="change nothing; fail where the schema is behind")
        runs["migrate"] = lambda chosen: _migrate(configured(), script_location, program, check=chosen.check)
    if work is not None:
        commands.add_parser("work", help="run the background jobs until SIGTERM or SIGINT")
        runs["work"] = lambda _: _work(migrated(), work)
    for command in own:
        command.arguments(commands.add_parser(command.name, help=command.help, description=command.help))
        runs[command.name] = partial(_own, command, migrated)
    chosen = parser.parse_args(arguments)
    return _reported(settings_class, lambda: runs[chosen.command](chosen))


def _own(command: Command[_S], settings: Callable[[], _S], chosen: argparse.Namespace) -> int:
    return command.run(chosen, settings)


def _migrate(settings: ServiceSettings, script_location: Path, program: str, *, check: bool) -> int:
    if not check:
        migrations.upgrade(settings.database_url, script_location)
    migrations.require_head(settings.database_url, script_location, how=f"run `{program} migrate`")
    revision = migrations.current(settings.database_url) or "none"
    sys.stdout.write(f"{settings.service}: at revision {revision}\n")
    return 0


def _reported(settings_class: type[ServiceSettings], run: Callable[[], int]) -> int:
    """Run, turning failures into a line on stderr (or a logged traceback) and an exit status."""
    service = settings_class.service
    try:
        return run()
    except _MisconfiguredError as error:
        return _misconfigured(settings_class, error.__cause__)
    except _TOLD as error:
        return _failed(service, str(error))
    except sqlalchemy.exc.OperationalError as error:
        return _failed(service, f"the database did not answer: {error.orig}")
    except KeyboardInterrupt:
        return 130
    except Exception:  # noqa: BLE001 (the last line of defence: whatever it is, it goes to the log)
        _log.exception("failed")
        return 1


def _failed(service: str, message: str) -> int:
    sys.stderr.write(f"{service}: {message.strip()}\n")
    return 1


def _misconfigured(settings_class: type[ServiceSettings], error: BaseException | None) -> int:
    """Name each wrong setting by its variable, never repeating its value: it may be a secret."""
    if not isinstance(
        error, ValidationError
    ):  # a SettingsError: not even JSON, for a field that takes JSON; its message holds no value
        sys.stderr.write(f"{settings_class.service}: {error}\n")
        return 2
    for problem in error.errors(include_url=False, include_input=False, include_context=False):
        name = "_".join(str(part) for part in problem["loc"][:1]).upper()
        variable = f"TOLLKEEPER_{settings_class.service.upper()}_{name} (or TOLLKEEPER_{name})"
        sys.stderr.write(f"{settings_class.service}: {variable}: {problem['msg']}\n")
    return 2


def _serve(settings: _S, serve: Callable[[_S], AioServer | SyncServer | Awaitable[AioServer]]) -> int:
    if not inspect.iscoroutinefunction(serve):
        server = serve(settings)
        assert isinstance(server, AioServer | SyncServer)
        server.run()
        return 0

    async def made_and_served() -> None:
        await (await serve(settings)).serve()

    run_async(made_and_served)
    return 0


def _work(settings: _S, work: Callable[[_S, Any], Awaitable[None] | None]) -> int:
    if not inspect.iscoroutinefunction(work):
        asked = threading.Event()

        def ask(_number: int, _frame: FrameType | None) -> None:
            asked.set()

        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, ask)
        work(settings, asked)
        return 0

    async def worked() -> None:
        asked = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, asked.set)
        await work(settings, asked)

    run_async(worked)
    return 0
