"""The server as a process: says it is a sandbox, starts quickly, stops in order, costs little."""

from __future__ import annotations

import concurrent.futures
import http.client
import json
import signal
import subprocess
import sys
import time

import pytest


def test_it_says_that_it_is_a_sandbox(sandbox):
    assert sandbox.banner.startswith("SANDBOX provider (no real model is ever called) listening on http://127.0.0.1:")
    assert sandbox.call("GET", "/healthz").json() == {"status": "ok", "sandbox": True}
    answer = sandbox.chat()
    assert answer.headers["server"] == "tollkeeper-sandbox-provider"
    assert answer.json()["system_fingerprint"] == "fp_sandbox"


def test_it_starts_and_stops_in_seconds(start_sandbox):
    began = time.monotonic()
    own = start_sandbox()
    started = time.monotonic()
    assert own.chat().status == 200
    own.process.send_signal(signal.SIGTERM)
    assert own.process.wait(timeout=5) == 0
    assert started - began < 5  # under a second on an idle machine
    assert own.process.stdout.read() == "SANDBOX provider stopping\n"


def test_a_port_in_use_is_said_in_one_line(sandbox):
    taken = f"{sandbox.host}:{sandbox.port}"
    failed = subprocess.run(
        [sys.executable, "-m", "deploy.local.sandbox.provider", "--listen", taken],
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )
    assert failed.returncode == 1
    assert failed.stderr.startswith(f"SANDBOX provider: cannot listen on {taken}: ")
    assert failed.stderr.count("\n") == 1


def test_sigterm_lets_a_stream_end_but_not_a_hanging_call(start_sandbox):
    own = start_sandbox()

    def stream():
        return own.chat("[[sandbox output_tokens=10 delay_ms=100]]", stream=True)

    def hang():
        with pytest.raises((http.client.RemoteDisconnected, ConnectionResetError)):
            own.chat("[[sandbox fault=hang]]")

    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        streamed, hanging = pool.submit(stream), pool.submit(hang)
        while own.usage()["in_flight"] < 2:
            time.sleep(0.01)
        own.process.send_signal(signal.SIGTERM)
        hanging.result(timeout=5)
        answer = streamed.result(timeout=10)
    assert not answer.broken
    assert answer.events()[-1] == "[DONE]"
    assert own.process.wait(timeout=5) == 0


def test_grace_is_bounded(start_sandbox):
    own = start_sandbox("--grace-seconds", "0.3")
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        streamed = pool.submit(own.chat, "[[sandbox output_tokens=100 delay_ms=1000]]", stream=True)
        while not own.usage()["in_flight"]:
            time.sleep(0.01)
        own.process.send_signal(signal.SIGTERM)
        assert own.process.wait(timeout=8) == 0
        assert streamed.result(timeout=5).broken


def test_large_bodies_are_taken_and_too_large_ones_refused(sandbox):
    large = sandbox.chat("ab " * 1_000_000)
    assert large.json()["usage"]["prompt_tokens"] == 3 + 4 + 1_000_001
    head = {"authorization": "Bearer k", "content-length": str(65 * 1024 * 1024)}
    connection = sandbox.connect()
    connection.putrequest("POST", "/v1/chat/completions")
    for name, value in head.items():
        connection.putheader(name, value)
    connection.endheaders()
    block = b" " * (1024 * 1024)
    try:
        for _ in range(65):
            connection.send(block)
    except (BrokenPipeError, ConnectionResetError):
        pass  # it has heard enough
    else:
        assert connection.getresponse().status == 413
    connection.close()


def test_a_unary_call_costs_less_than_a_millisecond_of_cpu(sandbox):
    connection = sandbox.connect()
    body = json.dumps({"model": "gpt-4o", "messages": [{"role": "user", "content": "hello"}]})

    def call(times):
        for _ in range(times):
            connection.request("POST", "/v1/chat/completions", body, {"authorization": "Bearer k"})
            connection.getresponse().read()

    call(50)
    before = sandbox.cpu_seconds()
    call(1000)
    spent = sandbox.cpu_seconds() - before
    connection.close()
    assert spent / 1000 < 0.001


def test_a_long_stream_leaves_others_their_turn(sandbox):
    def read_as_fast_as_it_comes():
        with sandbox.open_chat("[[sandbox output_tokens=30000]]", stream=True) as connection:
            end = b""
            while b"[DONE]" not in end:
                end = end[-10:] + connection.recv(1 << 20)

    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        long = pool.submit(read_as_fast_as_it_comes)
        answered = 0
        while not long.done():
            assert sandbox.chat().status == 200
            answered += 1
    assert answered > 5


def test_a_connection_is_kept_for_the_next_call(sandbox):
    connection = sandbox.connect()
    for stream in (False, True, False):
        body = {"model": "gpt-4o", "stream": stream, "messages": [{"role": "user", "content": "hello"}]}
        connection.request("POST", "/v1/chat/completions", json.dumps(body), {"authorization": "Bearer k"})
        response = connection.getresponse()
        response.read()
        assert not response.will_close
        assert connection.sock is not None
    connection.close()
