"""Owns the command line of subscriptions as tests run it, by its environment: as a process, or in this one."""

import os
import subprocess
import sys
from contextlib import contextmanager
from types import SimpleNamespace

from services.kit.command import main
from services.subscriptions.__main__ import MIGRATIONS, serve
from services.subscriptions.commands import COMMANDS
from services.subscriptions.settings import SubscriptionsSettings

_TOLD = (
    "listen", "database_url", "identity_jwks_file", "service_token", "ledger_addr", "pricing_addr", "proxy_addr",
    "plan_cache_seconds", "poll_seconds", "stripe_api_key", "stripe_api_base", "stripe_timeout_seconds",
)  # fmt: skip


def environment(settings):
    """What tells a process these settings."""
    told = {name: str(getattr(settings, name)) for name in _TOLD}
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("TOLLKEEPER_", "STRIPE_"))}
    return clean | {f"TOLLKEEPER_SUBSCRIPTIONS_{name.upper()}": value for name, value in told.items()}


def run(settings, *arguments):
    """A command, to its end: `returncode`, `stdout`, `stderr`."""
    return subprocess.run(
        [sys.executable, "-m", "services.subscriptions", *arguments],
        env=environment(settings), capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip


def run_here(capsys, monkeypatch, settings, *arguments):
    """The same in this process, which has loaded already what a process of its own takes two seconds to load."""
    for name in [name for name in os.environ if name.startswith(("TOLLKEEPER_", "STRIPE_"))]:
        monkeypatch.delenv(name)
    for name, value in environment(settings).items():
        monkeypatch.setenv(name, value)
    capsys.readouterr()  # what was printed before
    status = main(SubscriptionsSettings, serve=serve, script_location=MIGRATIONS, own=COMMANDS, arguments=arguments)
    printed = capsys.readouterr()
    return SimpleNamespace(returncode=status, stdout=printed.out, stderr=printed.err)


@contextmanager
def running(settings, *arguments):
    """A command that goes on; its log is read from `stderr`. It is killed when the test is done with it."""
    process = subprocess.Popen(
        [sys.executable, "-m", "services.subscriptions", *arguments],
        env=environment(settings), stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        process.stderr.close()


def logged(process, *words):
    """The first lines of its log that hold these words, in whatever order they come; one line for one."""
    found = {}
    for line in process.stderr:
        found |= {one: line for one in words if one in line and one not in found}
        if len(found) == len(words):
            break
    return found[words[0]] if len(words) == 1 else [found[one] for one in words]
