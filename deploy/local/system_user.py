"""Owns the system user that Postgres runs as where root starts the suite, since it refuses to run as root."""

from __future__ import annotations

import os
import pwd
import shutil
import stat
import subprocess
from pathlib import Path

NAME = "tollkeeper-postgres"
# Where no user can be added (a read-only /etc, no useradd): the one that every Unix has.
FALLBACK_NAME = "nobody"


def needed() -> bool:
    """Whether this process is root."""
    return os.geteuid() == 0


def ensure() -> pwd.struct_passwd:
    """The user, added to the system on first use.

    Raises:
        RuntimeError: it can not be added, and there is no `nobody` either.
    """
    for attempt in (None, _useradd, _adduser):
        if attempt is not None:
            attempt()
        try:
            return pwd.getpwnam(NAME)
        except KeyError:
            continue
    try:
        return pwd.getpwnam(FALLBACK_NAME)
    except KeyError:
        raise RuntimeError(f"Postgres does not run as root, and the user {NAME} could not be added") from None


def _useradd() -> None:
    if shutil.which("useradd"):
        command = ["useradd", "--system", "--user-group", "--no-create-home", "--shell", "/bin/false", NAME]
        subprocess.run(command, check=False, capture_output=True)


def _adduser() -> None:
    """The form of BusyBox, so Alpine."""
    if shutil.which("adduser"):
        subprocess.run(["adduser", "-S", "-D", "-H", NAME], check=False, capture_output=True)


def _may(user: pwd.struct_passwd, path: Path, others: int) -> bool:
    """Whether the permission bits `others` (in the form for others) are given to `user` on `path`."""
    status = path.stat()
    if status.st_uid == user.pw_uid:
        others <<= 6
    elif status.st_gid == user.pw_gid:
        others <<= 3
    return status.st_mode & others == others


def let_reach(user: pwd.struct_passwd, path: Path) -> list[Path]:
    """Let `user` pass through every folder above `path`, not list it. Gives the folders whose mode was changed."""
    changed = []
    for folder in path.resolve().parents:
        if not _may(user, folder, stat.S_IXOTH):
            folder.chmod(stat.S_IMODE(folder.stat().st_mode) | stat.S_IXOTH)
            changed.append(folder)
    return changed


def let_read(user: pwd.struct_passwd, tree: Path) -> None:
    """Let `user` read everything below `tree` and run what its owner may run, where the tree is shut to it."""
    if _may(user, tree, stat.S_IROTH | stat.S_IXOTH):
        return
    for path in [tree, *tree.rglob("*")]:
        if not path.is_symlink():
            mode = stat.S_IMODE(path.stat().st_mode)
            path.chmod(mode | stat.S_IROTH | (stat.S_IXOTH if mode & stat.S_IXUSR else 0))
