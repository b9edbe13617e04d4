"""Owns the tests of metrics: what is counted is what is scraped, from one thread or many."""

import socket
import threading
import urllib.request

import pytest
from prometheus_client.parser import text_string_to_metric_families

from services.kit.addresses import BindError
from services.kit.metrics import rpc_metrics, serve_metrics

pytestmark = pytest.mark.enable_socket


def scraped(port):
    text = urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5).read().decode()
    return {
        (sample.name, *sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


@pytest.fixture
def port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        number = probe.getsockname()[1]
    stop = serve_metrics(f"127.0.0.1:{number}")
    yield number
    stop()


def test_what_is_counted_is_scraped(port):
    rpc = rpc_metrics("/metrics.v1.One/Get")
    rpc.ended(0.004, "OK")
    rpc.ended(0.004, "OK")
    rpc.ended(700, "RESOURCE_EXHAUSTED", "BALANCE_TOO_LOW")
    samples = scraped(port)
    named = [("method", "Get"), ("service", "metrics.v1.One")]

    def ended(code, reason):
        return samples[("tollkeeper_rpc_ended_total", ("code", code), named[0], ("reason", reason), named[1])]

    def bucket(bound):
        return samples[("tollkeeper_rpc_seconds_bucket", ("le", bound), *named)]

    assert ended("OK", "") == 2
    assert ended("RESOURCE_EXHAUSTED", "BALANCE_TOO_LOW") == 1
    assert (bucket("0.0025"), bucket("0.005"), bucket("120.0"), bucket("+Inf")) == (0, 2, 2, 3)
    assert samples[("tollkeeper_rpc_seconds_count", *named)] == 3
    assert samples[("tollkeeper_rpc_seconds_sum", *named)] == pytest.approx(700.008)


def test_no_count_is_lost_between_threads(port):
    rpc = rpc_metrics("/metrics.v1.Two/Get")
    threads = [threading.Thread(target=lambda: [rpc.ended(0.1, "OK") for _ in range(5000)]) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = [v for k, v in scraped(port).items() if k[0].endswith("_total") and ("service", "metrics.v1.Two") in k]
    assert found == [40_000]


def test_a_taken_port_is_told_by_its_address(port):
    with pytest.raises(BindError, match=f"metrics: cannot listen on 127.0.0.1:{port}"):
        serve_metrics(f"127.0.0.1:{port}")


@pytest.mark.parametrize("address", ["", "localhost", "localhost:", ":9000", "localhost:http", "localhost:70000"])
def test_what_is_no_address_is_told(address):
    with pytest.raises(BindError, match="host:port"):
        serve_metrics(address)
