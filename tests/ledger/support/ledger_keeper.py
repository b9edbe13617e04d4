"""Owns one process for a test that kills it: started from here, since a process with gRPC's threads must not fork.

The first line of standard input says what to run; standard output gives its pid once its port answers. It is ended with
standard input, however the test ends.
"""

import json
import sys
import time
from pathlib import Path

from deploy.local import ports, postgres
from deploy.local.process import Program, StartFailedError, await_ready, start

START_SECONDS = 30.0


def started(program, port, log):
    """The program, listening. A Postgres waits until what a killed one has forked is gone."""
    deadline = time.monotonic() + START_SECONDS
    while True:
        child = start(program, log, dies_with_parent=True)
        try:
            await_ready(child, lambda: ports.answers(port), log, START_SECONDS)
        except StartFailedError as failure:
            if not postgres.old_server_lingers(failure) or time.monotonic() > deadline:
                raise
            time.sleep(0.1)
        else:
            return child


def main():
    """Keep one process."""
    words = json.loads(sys.stdin.readline())
    program = Program(
        name=words["name"],
        argv=tuple(words["argv"]),
        env=words["env"],
        cwd=Path(words["cwd"]),
        user=tuple(words["user"]) if words["user"] else None,
    )
    child = started(program, words["port"], Path(words["log"]))
    sys.stdout.write(f"{child.record.pid}\n")
    sys.stdout.flush()
    sys.stdin.read()
    child.stop()


if __name__ == "__main__":
    main()
