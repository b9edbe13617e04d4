"""Owns real processes of the test service, and migration histories for them."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

_ENV = "from services.kit.migrations import run_environment\n\nrun_environment()\n"
_REVISION = '''
"""{name}"""
from alembic import op

revision = {revision!r}
down_revision = {down!r}
branch_labels = depends_on = None


def upgrade():
    {body}


def downgrade():
    pass
'''


@pytest.fixture
def write_history():
    """`write_history(folder, body, body, …)`: a migrations folder; each body is the code of one migration, in order."""

    def write(folder, *bodies):
        (folder / "versions").mkdir(parents=True, exist_ok=True)
        (folder / "env.py").write_text(_ENV)
        down = None
        for number, body in enumerate(bodies, start=1):
            revision = f"{number:04d}"
            text = _REVISION.format(name=revision, revision=revision, down=down, body=body)
            (folder / "versions" / f"{revision}.py").write_text(text)
            down = revision
        return folder

    return write


class Process:
    """A started command of the test service, its log read as it comes."""

    def __init__(self, command, environment, log):
        self.log_file = log
        with log.open("wb") as stream:
            self.popen = subprocess.Popen(
                [sys.executable, "-m", "kit_service", command], env=environment, stdout=stream, stderr=stream
            )

    @property
    def output(self):
        return self.log_file.read_text()

    def entries(self):
        return [json.loads(line) for line in self.output.splitlines() if line.startswith("{")]

    def event(self, name, timeout=20):
        """The first log entry of this name, once it is there."""
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            for entry in self.entries():
                if entry["event"] == name:
                    return entry
            if self.popen.poll() is not None and name not in self.output:
                break
            time.sleep(0.05)
        raise AssertionError(f"no {name!r} in:\n{self.output}")

    def signal(self, number=signal.SIGTERM):
        self.popen.send_signal(number)

    def status(self, timeout=20):
        return self.popen.wait(timeout)


@pytest.fixture
def start(tmp_path, import_roots, jwks_file):
    """`start("serve", KIT_KIND="sync", TOLLKEEPER_KITTEST_X=…)` starts the test service; it ends with the test."""
    started = []

    def begin(command, **environment):
        root = Path(__file__).parents[3]
        base = {k: v for k, v in os.environ.items() if not k.startswith("TOLLKEEPER_")}
        base |= {
            "PYTHONPATH": os.pathsep.join([str(root), *import_roots]),
            "TOLLKEEPER_IDENTITY_JWKS_FILE": str(jwks_file),
            "TOLLKEEPER_KITTEST_LISTEN": "127.0.0.1:0",
        }
        process = Process(command, base | environment, tmp_path / f"process-{len(started)}.log")
        started.append(process)
        return process

    yield begin
    for process in started:
        if process.popen.poll() is None:
            process.popen.kill()
        process.popen.wait(10)
