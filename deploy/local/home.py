"""Owns the suite's home folder: where each file in it is, and the lock that lets one command at a time change it."""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from deploy.local.process import POLL_SECONDS, Record

REPOSITORY = Path(__file__).resolve().parent.parent.parent
_LOCK_WAIT_SECONDS = 120


class HomeBusyError(Exception):
    """Another command holds the home and did not let go in time."""


@dataclasses.dataclass(frozen=True)
class Home:
    """One suite's folder. Everything the suite writes is below it; removing it (after `down`) forgets the suite."""

    folder: Path

    @classmethod
    def of(cls, environ: Mapping[str, str]) -> Home:
        """`TOLLKEEPER_HOME`, else `.local` in the repository."""
        return cls(Path(environ.get("TOLLKEEPER_HOME") or REPOSITORY / ".local").absolute())

    def make(self) -> None:
        """Make the folder; others may pass through it, since Postgres may run as another user, and not list it."""
        if not self.folder.exists():
            self.folder.mkdir(parents=True)
            self.folder.chmod(0o711)
        for name in ("logs", "run"):
            self.path(name).mkdir(mode=0o700, exist_ok=True)

    def path(self, name: str) -> Path:
        """A file or folder in it."""
        return self.folder / name

    def log(self, name: str) -> Path:
        """The log of one process."""
        return self.folder / "logs" / f"{name}.log"

    def record_file(self, name: str) -> Path:
        """Where one process' record is kept."""
        return self.folder / "run" / f"{name}.json"

    def record(self, name: str) -> Record | None:
        """The record of the process last started under `name`."""
        return Record.load(self.record_file(name))

    def records(self) -> list[Record]:
        """Every process on record, alive or not, in the order they were started."""
        found = [Record.load(file) for file in self.path("run").glob("*.json")]
        return sorted((record for record in found if record is not None), key=lambda record: record.started_at)

    def write_private(self, name: str, text: str) -> Path:
        """Write a file that only its owner may read; a reader sees all of it or none."""
        path = self.path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        fresh = path.with_name(path.name + ".new")
        fresh.unlink(missing_ok=True)
        with open(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:  # noqa: PTH123 (its mode)
            file.write(text)
        fresh.replace(path)
        return path

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the home. The kernel lets go of it when this process ends, however it ends.

        Raises:
            HomeBusyError: another command held it for two minutes.
        """
        self.make()
        deadline = time.monotonic() + _LOCK_WAIT_SECONDS
        with self.path("lock").open("w") as file:
            while True:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if time.monotonic() > deadline:
                        raise HomeBusyError(f"another command is at work on {self.folder}") from None
                    time.sleep(POLL_SECONDS)
            yield
