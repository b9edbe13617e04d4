"""Owns logging: one JSON object per line on stderr, from structlog and the standard library alike."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from typing import Any, TextIO

import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

from services.kit.call import CURRENT

# It logs metadata that it cannot decode as it came, credentials included.
_SILENT = ("grpc._cython.cygrpc",)
# Libraries that say more than an operator wants at the level of ours.
_QUIET = ("alembic", "botocore", "grpc", "asyncio", "psycopg", "sqlalchemy", "urllib3", "stripe")


def _add_call(_logger: WrappedLogger, _name: str, event: EventDict) -> EventDict:
    """Add the call being served: request id, RPC, account."""
    call = CURRENT.get()
    if call is not None:
        event.setdefault("request_id", call.request_id)
        event.setdefault("rpc", call.method)
        if call.identity.account_id:
            event.setdefault("account_id", call.identity.account_id)
    return event


def _name_service(service: str) -> Callable[[WrappedLogger, str, EventDict], EventDict]:
    def add(_logger: WrappedLogger, _name: str, event: EventDict) -> EventDict:
        event["service"] = service
        return event

    return add


def configure_logs(service: str, level: str = "info", stream: TextIO | None = None) -> None:
    """Send all logs of this process to `stream` (stderr), from `level` up. Call once, at the start of a process."""
    number = logging.getLevelNamesMapping()[level.upper()]
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        _name_service(service),
        _add_call,
    ]
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *shared,
            structlog.processors.format_exc_info,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.make_filtering_bound_logger(number),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[*shared, structlog.stdlib.ExtraAdder()],
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.format_exc_info,
                structlog.processors.JSONRenderer(default=_plain),
            ],
        )
    )
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(number)
    for name in _SILENT:
        logging.getLogger(name).setLevel(logging.CRITICAL)
    for name in _QUIET:
        logging.getLogger(name).setLevel(max(number, logging.WARNING))


def _plain(value: Any) -> str:
    """What JSON has no form for is written as text: a log line must never fail."""
    return str(value)


def get_logger(name: str) -> structlog.stdlib.BoundLogger:
    """A module's logger; an event is a short fixed text and its values: `log.info("hold expired", hold_id=hold_id)`."""
    logger: structlog.stdlib.BoundLogger = structlog.get_logger(name)
    return logger
