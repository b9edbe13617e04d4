"""Owns the suite's first account and keys: an admin key from the proxy's own command, the rest over REST with it."""

from __future__ import annotations

import http.client
import json
import subprocess
import time
from http import HTTPStatus
from typing import Any

from deploy.local.ports import HOST
from deploy.local.process import StartFailedError, describe_exit
from deploy.local.suite import Suite

DEMO_ACCOUNT = "demo"
DEMO_CREDIT_USD = "10.00"
_TIMEOUT_SECONDS = 30
# Services that have just started are still finding each other, and the proxy is still told the prices.
_PATIENCE_SECONDS = 30
_PAUSE_SECONDS = 0.1


class RestError(Exception):
    """The gateway answered with something other than asked for; the message has its words."""

    def __init__(self, method: str, path: str, status: int, body: bytes) -> None:
        super().__init__(f"{method} {path} was answered with {status}: {body[:2000].decode(errors='replace')}")
        self.status = status


def call(port: int, method: str, path: str, *, key: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
    """One REST call through the gateway; the answer's JSON object.

    Raises:
        RestError: it was refused.
        OSError: nobody answered.
    """
    connection = http.client.HTTPConnection(HOST, port, timeout=_TIMEOUT_SECONDS)
    try:
        connection.request(
            method,
            path,
            body=None if body is None else json.dumps(body),
            headers={"authorization": f"Bearer {key}", "content-type": "application/json"},
        )
        response = connection.getresponse()
        answer = response.read()
    finally:
        connection.close()
    if response.status != HTTPStatus.OK:
        raise RestError(method, path, response.status, answer)
    parsed: dict[str, Any] = json.loads(answer)
    return parsed


def ensure_keys(suite: Suite) -> None:
    """See that the admin key and the demo account's key are known and taken; make what is missing.

    Raises:
        StartFailedError: the proxy's command made no admin key.
        RestError: the gateway refused what an admin may do.
    """
    admin_key = suite.credentials.get("admin_key")
    if admin_key is None or not _taken(suite, admin_key, "/api/admin/keys?pageSize=1"):
        admin_key = _make_admin_key(suite)
    demo_key = suite.credentials.get("demo_key")
    if demo_key is None or not _taken(suite, demo_key, "/v1/models"):
        demo_key = _make_demo_account(suite, admin_key)
        _patient_call(suite, "GET", "/v1/models", key=demo_key)


def _patient_call(
    suite: Suite, method: str, path: str, *, key: str, body: dict[str, Any] | None = None
) -> dict[str, Any]:
    """As `call`, and again while the answer is "not available now". Everything asked for here may be asked twice."""
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while True:
        try:
            return call(suite.gateway_port, method, path, key=key, body=body)
        except RestError as refusal:
            if refusal.status != HTTPStatus.SERVICE_UNAVAILABLE or time.monotonic() > deadline:
                raise
        time.sleep(_PAUSE_SECONDS)


def _taken(suite: Suite, key: str, path: str) -> bool:
    """Whether `key` is one that the suite knows: the database may be another one than when it was made."""
    try:
        _patient_call(suite, "GET", path, key=key)
    except RestError as refusal:
        if refusal.status == HTTPStatus.UNAUTHORIZED:
            return False
        raise
    return True


def _make_admin_key(suite: Suite) -> str:
    program = suite.service_program("proxy", "bootstrap-admin-key")
    log = suite.home.log("proxy")
    with log.open("ab") as errors:
        result = subprocess.run(
            program.argv,
            env=dict(program.env),
            cwd=program.cwd,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=errors,
            timeout=60,
            check=False,
        )
    name = "proxy bootstrap-admin-key"
    if result.returncode != 0:
        raise StartFailedError(name, f"failed with {describe_exit(result.returncode)}", log)
    try:
        key = str(json.loads(result.stdout)["key"])
    except (ValueError, KeyError, TypeError):
        raise StartFailedError(name, "printed no key", log) from None
    suite.credentials.keep("admin_key", key)
    return key


def _make_demo_account(suite: Suite, admin_key: str) -> str:
    """Make the account, its credit and its key; the key."""

    def post(path: str, body: dict[str, Any]) -> dict[str, Any]:
        return _patient_call(suite, "POST", path, key=admin_key, body=body)

    try:
        post("/api/admin/accounts", {"accountId": DEMO_ACCOUNT, "displayName": "Demo", "plan": "payg"})
    except RestError as refusal:
        if refusal.status != HTTPStatus.CONFLICT:  # it is there, under words of its own
            raise
    post(
        f"/api/admin/accounts/{DEMO_ACCOUNT}/credits",
        {
            "amountUsd": DEMO_CREDIT_USD,
            "source": "purchase",
            "description": "To try Tollkeeper with",
            "requestId": "demo-credit",  # so that it is given once, however often this runs
        },
    )
    key = {"accountId": DEMO_ACCOUNT, "name": "Demo key", "keyType": "standard", "prefix": "tk_demo_"}
    made = str(post("/api/admin/keys", key)["key"])
    suite.credentials.keep("demo_key", made)
    return made
