"""Owns the sandbox provider that these tests speak to: the real server in its own process, and a plain HTTP client."""

from __future__ import annotations

import http.client
import json
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import psutil
import pytest

KEY = "sandbox-key"


@dataclass
class Answer:
    """What came back: whole, or as far as the connection held."""

    status: int
    headers: dict[str, str]
    body: bytes
    broken: bool = False

    def json(self) -> Any:
        return json.loads(self.body)

    def events(self) -> list[Any]:
        """The data of the server-sent events, parsed; `[DONE]` as it is."""
        found = re.findall(r"^data: (.*?)\r?$", self.body.decode(), re.MULTILINE)
        return [text if text == "[DONE]" else json.loads(text) for text in found]

    def event_names(self) -> list[str]:
        return re.findall(r"^event: (.*)$", self.body.decode(), re.MULTILINE)


@dataclass
class Sandbox:
    """A running sandbox provider."""

    process: subprocess.Popen[str]
    host: str
    port: int
    banner: str
    key: str = KEY

    @property
    def url(self) -> str:
        return f"http://{self.host}:{self.port}"

    def call(self, method: str, path: str, body: Any = None, **headers: str) -> Answer:
        """Make one request; header names are given with underscores. A cut answer is returned with `broken`."""
        raw = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        connection = self.connect()
        try:
            connection.request(method, path, raw, {name.replace("_", "-"): value for name, value in headers.items()})
            response = connection.getresponse()
            fields = {name.lower(): value for name, value in response.getheaders()}
            try:
                return Answer(response.status, fields, response.read())
            except http.client.IncompleteRead as error:
                return Answer(response.status, fields, error.partial, broken=True)
        finally:
            connection.close()

    def chat(self, text: str = "hello", *, headers: dict[str, str] | None = None, **members: Any) -> Answer:
        """A chat completion with one user message."""
        body = {"model": "gpt-4o", "messages": [{"role": "user", "content": text}]} | members
        return self.call("POST", "/v1/chat/completions", body, authorization=f"Bearer {self.key}", **(headers or {}))

    def messages(self, text: str = "hello", **members: Any) -> Answer:
        """An Anthropic message with one user turn."""
        turn = {"role": "user", "content": text}
        body = {"model": "claude-3-haiku", "max_tokens": 1000, "messages": [turn]} | members
        return self.call("POST", "/v1/messages", body, x_api_key=self.key, anthropic_version="2023-06-01")

    def connect(self) -> http.client.HTTPConnection:
        """A connection of the test's own."""
        return http.client.HTTPConnection(self.host, self.port, timeout=20)

    def open_chat(self, text: str, **members: Any) -> socket.socket:
        """A socket on which a chat completion has been asked for, its answer still to be read."""
        raw = json.dumps({"model": "gpt-4o", "messages": [{"role": "user", "content": text}]} | members).encode()
        head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer k\r\ncontent-length: {len(raw)}"
        connection = socket.create_connection((self.host, self.port), timeout=20)
        connection.sendall(head.encode() + b"\r\n\r\n" + raw)
        return connection

    def usage(self, query: str = "") -> Any:
        return self.call("GET", f"/sandbox/usage{query}").json()

    def last_record(self, *, requests: int = 1) -> Any:
        """The newest entry of the request log, once `requests` calls are over (a moment after their clients saw it)."""
        deadline = time.monotonic() + 10
        while True:
            report = self.usage()
            if len(report["records"]) >= requests and not report["in_flight"]:
                assert len(report["records"]) == requests
                return report["records"][-1]
            assert time.monotonic() < deadline, report
            time.sleep(0.02)

    def arm(self, fault: Any, **members: Any) -> Answer:
        return self.call("POST", "/sandbox/faults", {"fault": fault} | members)

    def cpu_seconds(self) -> float:
        times = psutil.Process(self.process.pid).cpu_times()
        return float(times.user + times.system)


def start(*arguments: str) -> Sandbox:
    process = subprocess.Popen(
        [sys.executable, "-m", "deploy.local.sandbox.provider", *arguments],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    banner = process.stdout.readline()
    match = re.search(r"http://([\d.]+):(\d+)$", banner.strip())
    assert match, f"it did not start: {banner!r}"
    return Sandbox(process, match[1], int(match[2]), banner)


def stop(sandbox: Sandbox) -> int:
    """Stop it as a supervisor would; the exit code."""
    assert sandbox.process.stdout is not None
    with sandbox.process.stdout:
        sandbox.process.send_signal(signal.SIGTERM)
        try:
            return sandbox.process.wait(timeout=15)
        finally:
            sandbox.process.kill()


@pytest.fixture(scope="session")
def running_sandbox() -> Iterator[Sandbox]:
    sandbox = start()
    yield sandbox
    stop(sandbox)


@pytest.fixture
def sandbox(running_sandbox: Sandbox) -> Sandbox:
    """The session's sandbox, accepting any key, with an empty request log and no armed faults."""
    running_sandbox.call("DELETE", "/sandbox/usage")
    running_sandbox.call("DELETE", "/sandbox/faults")
    return running_sandbox


@pytest.fixture(scope="session")
def guarded_sandbox() -> Iterator[Sandbox]:
    """A sandbox that accepts one key only, and verifies AWS signatures."""
    sandbox = start("--api-key", KEY, "--aws-secret-key", "sandbox-secret")
    yield sandbox
    stop(sandbox)


@pytest.fixture
def start_sandbox() -> Iterator[Callable[..., Sandbox]]:
    """Starts sandboxes of the test's own, with the given arguments."""
    started: list[Sandbox] = []

    def begin(*arguments: str) -> Sandbox:
        started.append(start(*arguments))
        return started[-1]

    yield begin
    for sandbox in started:
        stop(sandbox)
