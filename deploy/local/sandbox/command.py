"""Owns what both sandboxes' command lines share: where one listens, its event loop, and the signal that ends it."""

from __future__ import annotations

import argparse
import asyncio
import signal


def add_listen(parser: argparse.ArgumentParser) -> None:
    """The argument that says where to listen; `host_and_port` reads it."""
    parser.add_argument(
        "--listen", default="127.0.0.1:0", metavar="HOST:PORT", help="port 0 takes a free one (default)"
    )


def host_and_port(parser: argparse.ArgumentParser, listen: str) -> tuple[str, int]:
    """Where to listen. Ends the program with a message where `listen` is no HOST:PORT."""
    host, _, port = listen.rpartition(":")
    if not port.isdigit():
        parser.error(f"--listen must be HOST:PORT, not {listen!r}")
    return host.strip("[]") or "127.0.0.1", int(port)


def new_event_loop() -> asyncio.AbstractEventLoop:
    """uvloop's, where it is installed: the sandboxes work without it, at more CPU time a call."""
    try:
        import uvloop  # noqa: PLC0415
    except ImportError:
        return asyncio.new_event_loop()
    return uvloop.new_event_loop()


def on_signal() -> asyncio.Event:
    """Set at SIGTERM or SIGINT; made in the running loop."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    return stop
