"""Owns the Prometheus metrics of RPCs (rate, errors, duration) and the endpoint serving all metrics of a process.

    tollkeeper_rpc_ended_total{service, method, code, reason}   RPCs ended, by outcome
    tollkeeper_rpc_seconds{service, method}                     histogram of their duration
    tollkeeper_rpc_running{server}                              RPCs being served
    tollkeeper_job_failing{task}                                whether a worker's job failed when it was last tried

RPCs are counted in plain integers, made into metrics when scraped: the client library's own counters would cost a tenth
of what serving a small call costs.
"""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections.abc import Callable, Iterator

from prometheus_client import REGISTRY, Gauge, start_http_server
from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from services.kit.addresses import BindError, split_address

_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)

_RUNNING = Gauge("tollkeeper_rpc_running", "RPCs being served", ["server"])
# Not "job": Prometheus calls what it scrapes so. For the workers, which have nothing else to tell it by.
JOB_FAILING = Gauge(
    "tollkeeper_job_failing", "1 where a worker's background job has failed at its last attempt", ["task"]
)


class RpcMetrics:
    """The counts of one RPC since the process began. Use `rpc_metrics` to get the one of a path."""

    def __init__(self, path: str) -> None:
        _, self.service, self.method = path.split("/")
        self._lock = threading.Lock()
        self._in_bucket = [0] * (len(_BUCKETS) + 1)
        self._seconds = 0.0
        self._outcomes: dict[tuple[str, str], int] = {}

    def ended(self, seconds: float, code: str, reason: str = "") -> None:
        """Count one RPC that took `seconds`, by status code name and reason."""
        outcome = (code, reason)
        with self._lock:
            self._in_bucket[bisect_left(_BUCKETS, seconds)] += 1
            self._seconds += seconds
            self._outcomes[outcome] = self._outcomes.get(outcome, 0) + 1

    def add_to(self, ended: CounterMetricFamily, seconds: HistogramMetricFamily) -> None:
        """Add what was counted to the two families."""
        with self._lock:
            outcomes, in_bucket, total = dict(self._outcomes), list(self._in_bucket), self._seconds
        for (code, reason), count in outcomes.items():
            ended.add_metric([self.service, self.method, code, reason], count)
        buckets, so_far = [], 0
        for bound, count in zip([*map(str, _BUCKETS), "+Inf"], in_bucket, strict=True):
            so_far += count
            buckets.append((bound, so_far))
        seconds.add_metric([self.service, self.method], buckets, total)


_rpcs: dict[str, RpcMetrics] = {}


def rpc_metrics(path: str) -> RpcMetrics:
    """The counts of the RPC with this full path ("/package.Service/Method")."""
    return _rpcs.setdefault(path, RpcMetrics(path))


class _RpcCollector(Collector):
    """Makes the counts into metrics when Prometheus asks."""

    def collect(self) -> Iterator[Metric]:
        ended = CounterMetricFamily(
            "tollkeeper_rpc_ended", "RPCs ended, by outcome", labels=["service", "method", "code", "reason"]
        )
        seconds = HistogramMetricFamily(
            "tollkeeper_rpc_seconds", "Time from an RPC's arrival to its end", labels=["service", "method"]
        )
        for rpc in list(_rpcs.values()):
            rpc.add_to(ended, seconds)
        yield ended
        yield seconds


REGISTRY.register(_RpcCollector())


def observe_running(server: str, running: Callable[[], float]) -> None:
    """Let the gauge of running RPCs of the named server ask `running`."""
    _RUNNING.labels(server).set_function(running)


def serve_metrics(address: str) -> Callable[[], None]:
    """Serve /metrics on host:port from a thread of its own; the result stops it. Raises BindError."""
    host, port = split_address(address)
    try:
        httpd, thread = start_http_server(port, addr=host)
    except OSError as error:
        raise BindError(f"metrics: cannot listen on {address}: {error.strerror or error}") from error

    def stop() -> None:
        httpd.shutdown()
        httpd.server_close()
        thread.join()

    return stop
