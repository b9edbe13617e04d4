"""Ports of suites that start side by side on one machine."""

import contextlib
import json
import socket
import subprocess
import sys

from deploy.local.ports import HOST, free_port

CHOOSE = "import json; from deploy.local.ports import free_port; print(json.dumps([free_port() for _ in range(40)]))"


def test_processes_that_choose_at_the_same_time_choose_otherwise():
    choosing = [subprocess.Popen([sys.executable, "-c", CHOOSE], stdout=subprocess.PIPE) for _ in range(4)]
    chosen = [port for process in choosing for port in json.loads(process.communicate(timeout=30)[0])]
    assert len(set(chosen)) == len(chosen)


def test_port_that_is_taken_is_not_chosen():
    with contextlib.ExitStack() as stack:
        # More than a process has of its own.
        taken = [stack.enter_context(socket.create_server((HOST, free_port()))) for _ in range(80)]
        assert len({server.getsockname()[1] for server in taken}) == 80
