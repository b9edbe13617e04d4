"""Owns how a gateway that is to stop is emptied: clients are sent elsewhere, and calls under way end by themselves.

    python envoy_drain.py --admin 127.0.0.1:9901 --least-seconds 15 --most-seconds 900

Runs before Envoy gets SIGTERM, which ends it at once. From `/healthcheck/fail` on each answer tells its client to
connect anew, which brings it to another gateway; new connections are still taken for `least-seconds`, in which load
balancers learn that this gateway is going. It ends when no request is under way, or after `most-seconds`.
"""

from __future__ import annotations

import argparse
import http.client
import sys
import time

_POLL_SECONDS = 1.0
_ACTIVE = "http.edge.downstream_rq_active"


def drain(admin: str, *, least_seconds: float, most_seconds: float) -> bool:
    """Empty the Envoy with its admin interface at host:port; whether no request is under way any more.

    Raises:
        OSError: the admin interface does not answer.
    """
    _ask(admin, "POST", "/healthcheck/fail")
    begun = time.monotonic()
    while (passed := time.monotonic() - begun) < most_seconds:
        if passed >= least_seconds and requests_under_way(admin) == 0:
            return True
        time.sleep(min(_POLL_SECONDS, most_seconds - passed))
    return requests_under_way(admin) == 0


def requests_under_way(admin: str) -> int:
    """How many requests of clients that Envoy is serving."""
    for line in _ask(admin, "GET", f"/stats?filter=^{_ACTIVE}$").splitlines():
        name, _, count = line.partition(": ")
        if name == _ACTIVE:
            return int(count)
    return 0  # a statistic is there from the first request on


def _ask(admin: str, method: str, path: str) -> str:
    connection = http.client.HTTPConnection(admin, timeout=5)
    try:
        connection.request(method, path)
        answer = connection.getresponse()
        text = answer.read().decode()
        if answer.status != http.HTTPStatus.OK:
            raise OSError(f"{path}: {answer.status} {text.strip()}")
        return text
    finally:
        connection.close()


def main() -> int:
    """Drain as the command line says; 1 where requests outlasted it."""
    parser = argparse.ArgumentParser(description="Empty an Envoy that is about to be stopped.")
    parser.add_argument("--admin", default="127.0.0.1:9901", metavar="HOST:PORT")
    parser.add_argument("--least-seconds", type=float, default=15)
    parser.add_argument("--most-seconds", type=float, default=900)
    chosen = parser.parse_args()
    emptied = drain(chosen.admin, least_seconds=chosen.least_seconds, most_seconds=chosen.most_seconds)
    return 0 if emptied else 1


if __name__ == "__main__":
    sys.exit(main())
