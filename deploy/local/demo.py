"""Owns `demo`: one unary and one streamed model call, and what they did to the balance, to the nano."""

from __future__ import annotations

import http.client
import json
from collections.abc import Iterator
from decimal import Decimal
from http import HTTPStatus
from typing import Any

from deploy.local.bootstrap import RestError, call
from deploy.local.ports import HOST

NANOS_PER_CREDIT = 10_000_000
MODEL = "gpt-4o"
_PATH = "/v1/chat/completions"
_TIMEOUT_SECONDS = 60


class WrongBillError(Exception):
    """The balance did not fall by what the calls said they cost."""


def run(port: int, key: str) -> None:
    """Make the calls on the gateway at `port` with a customer's key, and print what they cost.

    Raises:
        RestError: a call was refused.
        WrongBillError: what the balance fell by is not the sum of the costs.
        OSError: nobody answered.
    """
    before = _balance_nanos(port, key)
    print(f"balance before   {_usd(before)}")
    cost = _unary(port, key) + _streamed(port, key)
    after = _balance_nanos(port, key)
    print(f"balance after    {_usd(after)}")
    if before - after != cost:
        raise WrongBillError(f"the balance fell by {before - after} nanos, the calls cost {cost}")
    print(f"before - after   {_usd(before - after)}, which is what the two calls cost, to the nano")


def _balance_nanos(port: int, key: str) -> int:
    return int(call(port, "GET", "/api/credits/balance", key=key)["availableNanos"])


def _unary(port: int, key: str) -> int:
    connection, response = _post(port, key, {"messages": [{"role": "user", "content": "What is a toll?"}]})
    answer = json.loads(response.read())
    connection.close()
    cost = _nanos(response.headers["x-tollkeeper-cost-credits"])
    print(f"unary call       {_words(answer['usage'])}: {_usd(cost)}")
    return cost


def _streamed(port: int, key: str) -> int:
    question = {"messages": [{"role": "user", "content": "And a tollkeeper?"}], "stream": True}
    connection, response = _post(port, key, question)
    usage: dict[str, Any] = {}
    credits_spent: Any = None
    chunks = 0
    for event in _events(response):
        chunks += 1
        usage = event.get("usage") or usage
        credits_spent = event.get("credits", credits_spent)
    connection.close()
    if credits_spent is None:
        raise WrongBillError("the stream ended without saying what it cost")
    cost = _nanos(credits_spent["costCredits"])
    print(f"streamed call    {_words(usage)} in {chunks} chunks: {_usd(cost)}")
    return cost


def _post(port: int, key: str, body: dict[str, Any]) -> tuple[http.client.HTTPConnection, http.client.HTTPResponse]:
    connection = http.client.HTTPConnection(HOST, port, timeout=_TIMEOUT_SECONDS)
    headers = {"authorization": f"Bearer {key}", "content-type": "application/json"}
    connection.request("POST", _PATH, body=json.dumps({"model": MODEL, "max_tokens": 60} | body), headers=headers)
    response = connection.getresponse()
    if response.status != HTTPStatus.OK:
        raise RestError("POST", _PATH, response.status, response.read())
    return connection, response


def _events(response: http.client.HTTPResponse) -> Iterator[dict[str, Any]]:
    """The JSON of each server-sent event, up to `[DONE]`."""
    for line in response:
        if line.startswith(b"data: ") and line.strip() != b"data: [DONE]":
            yield json.loads(line.removeprefix(b"data: "), parse_float=Decimal)


def _nanos(credits_text: object) -> int:
    nanos = Decimal(str(credits_text)) * NANOS_PER_CREDIT
    assert nanos == int(nanos), "a cost is a whole number of nanos"
    return int(nanos)


def _usd(nanos: int) -> str:
    return f"${Decimal(nanos) / 1_000_000_000:.9f}"


def _words(usage: dict[str, Any]) -> str:
    return f"{usage['prompt_tokens']} tokens in, {usage['completion_tokens']} out"
