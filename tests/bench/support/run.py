"""Owns the frame of a bench's run: a folder of its own, a time after which it ends, and what ends it early."""

import contextlib
import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import FrameType


class Ended(BaseException):
    """The bench was told to end, or took too long."""


def _end(number: int, _frame: FrameType | None) -> None:
    raise Ended("it took too long" if number == signal.SIGALRM else f"ended by {signal.Signals(number).name}")


def end_after(seconds: int) -> None:
    """Have `Ended` raised after so long, whatever hangs then, and by the signals that ask a program to end."""
    for number in (signal.SIGTERM, signal.SIGALRM, signal.SIGHUP):
        signal.signal(number, _end)
    signal.alarm(seconds)


@contextlib.contextmanager
def own_folder() -> Iterator[Path]:
    """A folder that goes with the `with` block."""
    # Others may pass through it: under root, Postgres runs as another user.
    folder = Path(tempfile.mkdtemp(prefix="tollkeeper-bench-"))
    folder.chmod(0o711)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
