"""Runs the benchmark of subscriptions: `python -m tests.bench.subscriptions [--quick]`.

Prints a table, then one line of JSON. The exit status is 0 unless something broke: it measures, it does not gate.
"""

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path

from deploy.local.process import StartFailedError
from tests.bench.subscriptions import metering, webhooks
from tests.bench.subscriptions.served import served
from tests.bench.support.servers import BenchFailedError
from tests.bench.support.tables import console, table


def main() -> int:
    """Run it; the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.subscriptions", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one short round, under half a minute")
    quick = parser.parse_args().quick
    load_before = round(os.getloadavg()[0], 2)
    try:
        with tempfile.TemporaryDirectory(prefix="tollkeeper-bench-") as name:
            folder = Path(name)
            folder.chmod(0o711)  # under root, Postgres runs as another user, who has to pass through
            with served(folder) as instance:
                found = {
                    "webhooks": webhooks.measure(webhooks.QUICK if quick else webhooks.DEFAULT, instance),
                    "metering": metering.measure(metering.QUICK if quick else metering.DEFAULT, instance),
                }
    except (BenchFailedError, StartFailedError) as failure:
        sys.stderr.write(f"the bench failed: {failure}\n")
        return 1
    except KeyboardInterrupt:
        return 130
    for part, figures in found.items():
        rows = [(name.replace("_", " "), f"{figure:,.4g}") for name, figure in figures.items()]
        console().print(table(f"Subscriptions: {part}", ("what", "figure"), rows))
    console().print(f"{os.cpu_count()} cores; load {load_before} → {round(os.getloadavg()[0], 2)}")
    sys.stdout.write(json.dumps({"bench": "subscriptions", "cores": os.cpu_count(), "figures": found}) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
