"""What the gateway does at its limits, and when a service fails or a replica is gone."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import socket
import threading
import time
from pathlib import Path

import grpc
import pytest
import yaml
from google.api import httpbody_pb2

from deploy.local import envoy, ports
from gateway import render

KEY = {"authorization": "Bearer tk_test_good"}
TRANSACTIONS = "tollkeeper.ledger.v1.JournalService.ListTransactions"
MODELS = "tollkeeper.proxy.v1.WireService.ListModels"
CHAT = "tollkeeper.proxy.v1.WireService.ChatCompletions"
CREDIT = "tollkeeper.ledger.v1.LedgerService.CreditAccount"
CREDITS = "/api/admin/accounts/acme/credits"
OBSERVABILITY = Path(__file__).parents[2] / "deploy/kubernetes/observability/base"
RULES = yaml.safe_load((OBSERVABILITY / "rules/gateway.yaml").read_text())["spec"]["groups"][0]["rules"]


def unavailable_at_first(times):
    left = iter(range(times))

    async def answer(_request, context):
        if next(left, None) is not None:
            await context.grpc.abort(grpc.StatusCode.UNAVAILABLE, "a moment, please")
        return httpbody_pb2.HttpBody(content_type="application/json", data=b"{}")

    return answer


# ---- retries


def test_read_is_asked_again_where_the_service_is_unavailable(gateway, services):
    services.answers[MODELS] = unavailable_at_first(2)
    assert gateway("GET", "/v1/models").status == 200
    assert len(services.calls) == 3


def test_read_is_asked_three_times_at_most(gateway, services):
    services.answers[MODELS] = unavailable_at_first(10)
    assert gateway("GET", "/v1/models").status == 503
    assert len(services.calls) == 3


@pytest.mark.parametrize(("path", "rpc"), [("/v1/chat/completions", CHAT), (CREDITS, CREDIT)])
def test_write_that_a_service_has_seen_is_never_sent_again(gateway, services, path, rpc):
    services.answers[rpc] = unavailable_at_first(10)
    assert gateway("POST", path, {}, **KEY).status == 503
    assert len(services.calls) == 1


def test_refused_read_is_not_asked_again(gateway, services):
    async def answer(_request, context):
        await context.grpc.abort(grpc.StatusCode.PERMISSION_DENIED, "no")

    services.answers[TRANSACTIONS] = answer
    assert gateway("GET", "/api/billing/transactions", **KEY).status == 403
    assert len(services.calls) == 1


# ---- replicas


def test_call_succeeds_while_one_replica_is_gone(make_gateway, services):
    gateway = make_gateway(services.port, ports.free_port())
    statuses = {gateway("GET", "/v1/models").status for _ in range(20)}
    statuses |= {gateway("POST", CREDITS, {}, **KEY).status for _ in range(20)}
    assert statuses == {200}


def test_replica_that_takes_calls_and_drops_them_is_left_out(make_gateway, services, eventually):
    """It passes every health check it is sent; only the calls show that it is broken."""
    with dropping_replica() as port:
        gateway = make_gateway(services.port, port, changed=without_health_checks)
        for _ in range(60):
            gateway("GET", "/v1/models")
        eventually(lambda: gateway.stat("cluster.proxy.outlier_detection.ejections_active") == 1)
        assert {gateway("POST", "/v1/chat/completions", {}).status for _ in range(20)} == {200}


@contextlib.contextmanager
def dropping_replica():
    """A port that accepts connections and resets each when it is spoken to."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.1)
        stop = threading.Event()

        def drop():
            while not stop.is_set():
                with contextlib.suppress(OSError):
                    connection, _ = server.accept()
                    with connection:
                        connection.settimeout(5)
                        connection.recv(65536)

        thread = threading.Thread(target=drop)
        thread.start()
        try:
            yield server.getsockname()[1]
        finally:
            stop.set()
            thread.join()


def without_health_checks(document):
    for cluster in document["static_resources"]["clusters"]:
        cluster.pop("health_checks", None)


# ---- how many at once


def test_connection_over_the_limit_is_closed_and_those_before_it_go_on(make_gateway, eventually):
    gateway = make_gateway(max_connections=2)
    held = [gateway.connect() for _ in range(2)]
    for connection in held:
        connection.request("GET", "/v1/models")
        assert connection.getresponse().read() is not None
    with socket.create_connection(("127.0.0.1", gateway.port), timeout=10) as third:
        third.settimeout(10)
        with contextlib.suppress(ConnectionResetError, BrokenPipeError):
            third.sendall(b"GET /v1/models HTTP/1.1\r\nhost: x\r\n\r\n")
            assert third.recv(100) == b""
    for connection in held:
        connection.request("GET", "/v1/models")
        assert connection.getresponse().status == 200
        connection.close()
    eventually(lambda: gateway("GET", "/v1/models").status == 200)


def test_call_over_the_limit_under_way_is_a_503_and_reaches_nobody(make_gateway, services):
    gateway = make_gateway(max_requests_per_service=1)
    arrived, go_on = threading.Event(), threading.Event()

    async def answer(_request, _context):
        arrived.set()
        while not go_on.is_set():  # noqa: ASYNC110 (set by another thread)
            await asyncio.sleep(0.01)
        return httpbody_pb2.HttpBody(content_type="application/json", data=b"{}")

    services.answers[CHAT] = answer
    statuses = []
    first = threading.Thread(target=lambda: statuses.append(gateway("POST", "/v1/chat/completions", {}).status))
    first.start()
    try:
        assert arrived.wait(10)
        refused = gateway("POST", "/v1/chat/completions", {})
    finally:
        go_on.set()
        first.join()
    assert refused.status == 503
    assert refused.json["error"]["code"] == "service_unavailable"
    assert statuses == [200]
    assert len(services.calls) == 1


def test_gateway_out_of_memory_refuses_in_json_and_lives_on(make_gateway, services, eventually):
    def tiny_heap(document):
        [heap] = [
            monitor for monitor in document["overload_manager"]["resource_monitors"] if "fixed_heap" in monitor["name"]
        ]
        heap["typed_config"]["max_heap_size_bytes"] = 1_000_000
        # So that the connection is taken and the request is what is refused.
        document["overload_manager"]["actions"] = [
            action
            for action in document["overload_manager"]["actions"]
            if not action["name"].endswith("stop_accepting_connections")
        ]
        del document["overload_manager"]["loadshed_points"]

    gateway = make_gateway(changed=tiny_heap, metrics=render.Address("127.0.0.1", ports.free_port()))
    name = "overload.envoy.overload_actions.stop_accepting_requests.active"
    eventually(lambda: gateway.stat(name) == 1)
    answer = gateway("GET", "/v1/models")
    assert answer.status == 503
    assert json.loads(answer.body)
    assert services.calls == []


# ---- metrics


def test_metrics_are_served_apart_and_nothing_else_of_the_admin_interface_is(make_gateway):
    port = ports.free_port()
    gateway = make_gateway(metrics=render.Address("127.0.0.1", port))
    gateway("GET", "/v1/models")
    scraped = envoy.get(port, "/metrics")
    assert scraped is not None
    assert b'envoy_cluster_upstream_rq_total{envoy_cluster_name="proxy"}' in scraped
    assert envoy.get(port, "/ready") == b"LIVE\n"
    for path in ("/stats", "/config_dump", "/quitquitquit", "/", "/certs", "/metrics/../quitquitquit", "/server_info"):
        assert envoy.get(port, path) is None
    assert envoy.get(gateway.port, "/metrics") is None
    assert envoy.get(gateway.port, "/stats/prometheus") is None


def test_every_connection_that_is_closed_for_load_is_counted_where_the_alert_looks(make_gateway, eventually):
    """Its client gets no answer, so no status tells of it. Of a sum with a series that is not there nothing is told."""
    port = ports.free_port()
    gateway = make_gateway(max_connections=1, metrics=render.Address("127.0.0.1", port))
    [rule] = [rule for rule in RULES if rule["alert"] == "TollkeeperGatewayRefusesForLoad"]
    looked_at = re.findall(r"\b(envoy_\w+)(?:\{[^}]*\})?(?:\[5m\])?\)", rule["expr"])
    assert len(looked_at) == rule["expr"].count("sum by")

    def counted():
        scraped = envoy.get(port, "/metrics").decode()
        of_each = [re.findall(rf"^{name}(?:\{{.*\}})? (\d+)$", scraped, re.MULTILINE) for name in looked_at]
        assert all(of_each), looked_at
        return sum(int(value) for values in of_each for value in values)

    assert counted() == 0
    held = gateway.connect()
    held.request("GET", "/v1/models")
    assert held.getresponse().read() is not None
    with socket.create_connection(("127.0.0.1", gateway.port), timeout=10) as second, contextlib.suppress(OSError):
        second.sendall(b"GET /v1/models HTTP/1.1\r\nhost: x\r\n\r\n")
        assert second.recv(100) == b""
    eventually(lambda: counted() == 1)
    held.close()


# ---- memory

MIB = 1024 * 1024


def allocated(gateway):
    answer = envoy.get(gateway.admin_port, "/memory")
    assert answer is not None
    return int(json.loads(answer)["allocated"])


def test_clients_that_do_not_read_their_answers_hold_up_no_other(make_gateway, services, eventually):
    """All share few connections to a service, each with a window of its own."""
    gateway = make_gateway()
    before, passed = allocated(gateway), 0

    async def answer(_request, _context):
        nonlocal passed
        for _ in range(20 * 16):
            yield httpbody_pb2.HttpBody(content_type="text/event-stream", data=bytes(MIB // 16))
            passed += 1

    services.answers[CHAT] = answer
    with contextlib.ExitStack() as opened:
        for _ in range(10):
            client = opened.enter_context(socket.create_connection(("127.0.0.1", gateway.port), timeout=20))
            client.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\n\r\n{}")
            assert client.recv(1)

        def stands():
            so_far = passed
            time.sleep(0.5)
            return passed == so_far

        eventually(stands)
        filled = allocated(gateway) - before
        statuses = [gateway("GET", "/v1/models").status for _ in range(10)]
    assert statuses == [200] * 10
    assert filled < 8 * MIB  # one account has a thousand calls under way


def test_bodies_that_never_end_do_not_fill_the_memory(make_gateway, eventually):
    """Nobody is asked who they are before a whole body is there, so a few connections could else stop the gateway."""
    gateway = make_gateway(max_heap_bytes=64 * MIB)
    head = b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 10000000\r\n\r\n"
    with contextlib.ExitStack() as opened:
        clients = [
            opened.enter_context(socket.create_connection(("127.0.0.1", gateway.port), timeout=20)) for _ in range(40)
        ]
        for client in clients:
            client.sendall(head)
        for client in clients:
            with contextlib.suppress(OSError):  # cut off
                client.settimeout(0.1)
                client.sendall(b"x" * 9_000_000)
        # What comes between two looks at the heap is let in: a tenth of a second's worth.
        assert allocated(gateway) < 40 * 9_000_000 / 2
    eventually(lambda: envoy.get(gateway.port, "/healthz") is not None)
