"""Owns the suite that is measured: as `make up` starts it, in a home of its own, its customer with every limit."""

import contextlib
import http.client
import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
from tollkeeper.proxy.v1 import entitlement_service_pb2 as entitlement_pb
from tollkeeper.proxy.v1.entitlement_service_pb2_grpc import EntitlementServiceStub

from deploy.local import bootstrap, peers, suite
from deploy.local.home import Home
from deploy.local.ports import HOST, free_port
from tests.bench.gateway import calls
from tests.bench.ledger.books import Books
from tests.bench.support.servers import BenchFailedError, finished, python_program

ACCOUNT = "bench"
_UP_SECONDS, _DOWN_SECONDS = 180.0, 120.0
_PROVISION_SECONDS = 30.0
_CREDIT_USD = "100000.00"
# Checked for each call, and never reached.
_DAY_USD, _MONTH_USD = "50000.00", "90000.00"
_REQUESTS_A_MINUTE, _TOKENS_A_MINUTE = 100_000_000, 100_000_000_000
# Above any revision that subscriptions will push meanwhile.
_REVISIONS = 1_000_000_000
# Named as a part of the measurement; the others of the suite are `rest`.
_NAMED = ("envoy", "proxy", "ledger", "postgres", "redis")


@dataclass(frozen=True)
class Tested:
    """A running suite and its customer's key. `upstream_port` is the provider's, `pids` are by name of the part."""

    environment: Mapping[str, str]
    folder: Path
    local: suite.Suite
    upstream_port: int
    key: str
    pids: dict[str, list[int]]

    @property
    def books(self) -> Books:
        """The ledger's rows, as the superuser sees them."""
        return Books(f"{self.local.servers.admin_url.rpartition('/')[0]}/tollkeeper_ledger")

    def provider_calls(self) -> int:
        """How many calls have reached the provider through the gateway."""
        connection = http.client.HTTPConnection(HOST, self.upstream_port, timeout=10)
        try:
            connection.request("GET", calls.COUNT_PATH)
            return int(json.loads(connection.getresponse().read())["called"])
        finally:
            connection.close()

    def verified(self) -> str:
        """What the ledger's own `verify` says of the account. Raises BenchFailedError where it is not sound."""
        log = self.folder / "verify.log"
        words = ("services.ledger", "verify", "--account", ACCOUNT)
        program = python_program("verify", *words, env=self.local.settings("ledger"))
        finished(program, log, timeout_seconds=300)
        return log.read_text().strip().splitlines()[-1]


@contextlib.contextmanager
def running(folder: Path, upstream_port: int, more: Mapping[str, str]) -> Iterator[Tested]:
    """The suite for the length of a `with` block, its provider the upstream; `more` are further settings."""
    environment = {
        # Real providers' keys of whoever runs this are none of the bench's.
        **{variable: "" for _, variable in peers.PROVIDERS.values()},
        "TOLLKEEPER_HOME": str(folder / "home"),
        "TOLLKEEPER_GATEWAY_PORT": str(free_port()),
        "TOLLKEEPER_PROXY_OPENAI_BASE_URL": f"http://{HOST}:{upstream_port}/v1",
        "TOLLKEEPER_PROXY_OPENAI_API_KEY": "sk-bench",
        **more,
    }

    def command(word: str, seconds: float) -> None:
        program = python_program(word, "deploy.local", word, env=environment)
        finished(program, folder / f"{word}.log", timeout_seconds=seconds)

    try:
        command("up", _UP_SECONDS)
        local = suite.of(program_environment(environment), say=lambda _line: None)
        require_durable(local)
        yield Tested(environment, folder, local, upstream_port, _customer(local), _pids(local.home))
    finally:
        command("down", _DOWN_SECONDS)


def program_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """All that the suite's own commands see."""
    return dict(python_program("suite", "deploy.local", env=environment).env)


def require_durable(local: suite.Suite) -> None:
    """Raise BenchFailedError where a commit does not wait for the disk."""
    books = Books(local.servers.admin_url)
    for setting in ("fsync", "synchronous_commit", "full_page_writes"):
        (value,) = books.one(f"SHOW {setting}")
        if value != "on":
            raise BenchFailedError(f"Postgres runs with {setting} = {value}: what it books is not durable")


def _pids(home: Home) -> dict[str, list[int]]:
    found: dict[str, list[int]] = {}
    for record in home.records():
        found.setdefault(record.name if record.name in _NAMED else "rest", []).append(record.pid)
    return found


def _customer(local: suite.Suite) -> str:
    """An account with credit and with every limit there is, and its key, limited too; the key."""
    admin_key = local.credentials.get("admin_key")
    assert admin_key is not None

    def post(path: str, **body: Any) -> dict[str, Any]:
        return bootstrap.call(local.gateway_port, "POST", path, key=admin_key, body=body)

    deadline = time.monotonic() + _PROVISION_SECONDS
    while not post("/api/admin/accounts", accountId=ACCOUNT, plan="payg")["provisioned"]:
        if time.monotonic() > deadline:
            raise BenchFailedError("the customer's account was not provisioned in time")
        time.sleep(0.2)
    at = f"/api/admin/accounts/{ACCOUNT}"
    post(f"{at}/credits", amountUsd=_CREDIT_USD, source="purchase", requestId="bench-credit")
    for window, amount in (("day", _DAY_USD), ("month", _MONTH_USD)):
        post(f"{at}/limits", scope="account", unit="nanos", window=window, amountUsd=amount, mode="hard")
    _lift_rates(local)
    made = post(
        "/api/admin/keys",
        accountId=ACCOUNT,
        name="bench",
        workspace="bench",
        dailyLimitUsd=_DAY_USD,
        monthlyLimitUsd=_MONTH_USD,
        requestsPerMinute=_REQUESTS_A_MINUTE,
        tokensPerMinute=_TOKENS_A_MINUTE,
    )
    return str(made["key"])


def _lift_rates(local: suite.Suite) -> None:
    """Set the account's limits per minute so high that none is reached: they are counted and checked as any."""
    token = local.credentials.service_token("developer")
    call: dict[str, Any] = {"metadata": (("authorization", f"Bearer {token}"),), "timeout": 10}
    with grpc.insecure_channel(f"{HOST}:{local.port('proxy')}") as channel:
        stub = EntitlementServiceStub(channel)
        entitlement = stub.GetEntitlement(entitlement_pb.GetEntitlementRequest(account_id=ACCOUNT), **call)
        entitlement.requests_per_minute = _REQUESTS_A_MINUTE
        entitlement.tokens_per_minute = _TOKENS_A_MINUTE
        entitlement.revision += _REVISIONS
        stub.SetEntitlement(entitlement_pb.SetEntitlementRequest(entitlement=entitlement), **call)
