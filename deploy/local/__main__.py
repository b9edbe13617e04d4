"""Owns the command line: `python -m deploy.local up | down | status | logs [NAME] | demo | setup-stripe`."""

from __future__ import annotations

import argparse
import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg

from deploy.local import bootstrap, demo, suite
from deploy.local.home import Home, HomeBusyError
from deploy.local.launcher import Launcher
from deploy.local.postgres import SERVICES, RoleTakenError
from deploy.local.process import StartFailedError, log_tail

# What a person can act on: told in words, without a traceback.
_TOLD = (
    StartFailedError,
    suite.PortBusyError,
    suite.SettingError,
    HomeBusyError,
    RoleTakenError,
    bootstrap.RestError,
    demo.WrongBillError,
    psycopg.OperationalError,
    FileNotFoundError,
    ConnectionError,
)


def up(_arguments: argparse.Namespace) -> int:
    """Start what does not run; wait until all of it serves."""
    home = Home.of(os.environ)
    began = time.monotonic()
    with home.lock():
        local = suite.of(say=_say)
        launcher = Launcher(home, _say)
        with launcher.taking_back():
            local.up(launcher)
            bootstrap.ensure_keys(local)
        dev_env = local.write_dev_env()
    _greet(local, dev_env, time.monotonic() - began)
    return 0


def _greet(local: suite.Suite, dev_env: Path, seconds: float) -> None:
    key = local.credentials.get("demo_key")
    message = '{"model": "gpt-4o", "messages": [{"role": "user", "content": "What is a toll?"}]}'
    print(
        f"""
Tollkeeper is up after {seconds:.1f} s at {local.url}
Demo key   {key}
All keys   {dev_env}

Try it:

  curl {local.url}/v1/chat/completions \\
    -H 'authorization: Bearer {key}' \\
    -H 'content-type: application/json' \\
    -d '{message}'
"""
    )


def down(_arguments: argparse.Namespace) -> int:
    """End every process of the suite, the last started first. What it keeps on disk stays."""
    home = Home.of(os.environ)
    if not home.folder.exists():
        _say("nothing is running")
        return 0
    with home.lock():
        stopped = Launcher(home, _say).take_down(suite.ORDER)
    if not stopped:
        _say("nothing is running")
    return 0


def status(_arguments: argparse.Namespace) -> int:
    """Show each process and its health; exit status 1 where not all are healthy."""
    home = Home.of(os.environ)
    if not home.path("ports.json").exists():
        print(f"nothing has been started in {home.folder}")
        return 1
    parts = suite.of(say=_say).parts()
    healthy = True
    print(f"{'NAME':<22}{'PID':>9}{'PORT':>7}  HEALTH")
    for part in parts:
        record = home.record(part.name)
        if record is None:
            pid, health = "-", "not started"
        elif not record.alive():
            pid, health = str(record.pid), "dead"
        else:
            pid, health = str(record.pid), "healthy" if part.ready() else "not ready"
        healthy = healthy and health == "healthy"
        print(f"{part.name:<22}{pid:>9}{part.port or '-':>7}  {health}")
    return 0 if healthy else 1


def logs(arguments: argparse.Namespace) -> int:
    """Show the end of one log, or of all; with --follow what is added to them, too."""
    folder = Home.of(os.environ).path("logs")
    files = [folder / f"{arguments.name}.log"] if arguments.name else sorted(folder.glob("*.log"))
    missing = [file for file in files if not file.exists()]
    if missing or not files:
        known = ", ".join(sorted(file.stem for file in folder.glob("*.log"))) or "none yet"
        print(f"no such log; there are: {known}", file=sys.stderr)
        return 1
    for file in files:
        if len(files) > 1:
            print(f"==> {file.stem} <==")
        print(log_tail(file, arguments.lines))
    if arguments.follow:
        for line in _added(files):
            print(line, flush=True)
    return 0


def _added(files: list[Path]) -> Iterator[str]:
    """Lines as they are added, each with its log's name where there are several. Ends with Ctrl-C."""
    readers = {file.stem: file.open(errors="replace") for file in files}
    for reader in readers.values():
        reader.seek(0, os.SEEK_END)
    while True:
        for name, reader in readers.items():
            for line in reader:
                yield f"{name + ': ' if len(readers) > 1 else ''}{line.rstrip()}"
        time.sleep(0.2)


def show_demo(_arguments: argparse.Namespace) -> int:
    """Make one unary and one streamed call with the demo key, and show what they cost."""
    local = suite.of(say=_say)
    key = local.credentials.get("demo_key")
    if key is None or not local.gateway_runs():
        print("the suite is not up; run `make up` first", file=sys.stderr)
        return 1
    demo.run(local.gateway_port, key)
    return 0


def set_up_stripe(arguments: argparse.Namespace) -> int:
    """Bring Stripe's products, prices and meters to what the plans say. A sandbox Stripe has them since `up`."""
    return _run("subscriptions", suite.SET_UP, *(["--dry-run"] if arguments.dry_run else []))


def run_command(arguments: argparse.Namespace) -> int:
    """Run a service's own command with the suite's settings, such as `run ledger verify`."""
    return _run(arguments.service, *arguments.words)


def _run(service: str, *words: str) -> int:
    program = suite.of(say=_say).service_program(service, *words)
    return subprocess.run(program.argv, env=dict(program.env), check=False).returncode


def _say(line: str) -> None:
    with contextlib.suppress(BrokenPipeError):  # nobody reads any more; that is no reason to stop half-way
        print(f"  {line}", flush=True)


def main() -> int:
    """Run the command named on the command line; its exit status."""
    parser = argparse.ArgumentParser(prog="python -m deploy.local", description="The whole suite on this machine.")
    commands = parser.add_subparsers(dest="command", required=True)
    actions: list[tuple[str, Callable[[argparse.Namespace], int]]] = [
        ("up", up),
        ("down", down),
        ("status", status),
        ("logs", logs),
        ("demo", show_demo),
        (suite.SET_UP, set_up_stripe),
        ("run", run_command),
    ]
    for name, action in actions:
        command = commands.add_parser(name, help=(action.__doc__ or "").rstrip("."))
        command.set_defaults(action=action)
        if action is set_up_stripe:
            command.add_argument("--dry-run", action="store_true", help="say what would be done, and do nothing")
        if action is run_command:
            command.add_argument("service", choices=SERVICES)
            command.add_argument("words", nargs=argparse.REMAINDER, help="its command and what belongs to it; --help")
        if action is logs:
            command.add_argument("name", nargs="?", help="of one process; all where it is not given")
            command.add_argument("-n", "--lines", type=int, default=20)
            command.add_argument("-f", "--follow", action="store_true", help="go on until Ctrl-C")
    arguments = parser.parse_args()
    try:
        return int(arguments.action(arguments))
    except BrokenPipeError:
        return 0
    except _TOLD as failure:
        print(f"\n{arguments.command} failed: {failure}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    finally:
        _close_output()


def _close_output() -> None:
    """Flush what was printed; a reader that went away, as `head` does, is no failure."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == "__main__":
    sys.exit(main())
