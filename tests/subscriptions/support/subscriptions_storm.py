"""Owns what a storm of webhooks needs: lives of customers at Stripe, a Postgres and a service that are killed, clients.

The clients deliver as Stripe does: each delivery until it is acknowledged, whatever happens to the service.
"""

import contextlib
import os
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import stripe
from google.api import httpbody_pb2
from subscriptions_events import signature
from tollkeeper.subscriptions.v1 import operator_service_pb2_grpc

from deploy.local import ports
from deploy.local.postgres import EmbeddedPostgres
from deploy.local.process import log_tail

_FAST_RECONNECT = [
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 500),
    ("grpc.use_local_subchannel_pool", 1),
]


# Becomes another user, then another program: uid, gid, its argv.
_AS_USER = (
    sys.executable, "-I", "-c",
    (
        "import os, sys; uid, gid = map(int, sys.argv[1:3]); os.setgroups([]); os.setgid(gid); os.setuid(uid);"
        " os.execv(sys.argv[3], sys.argv[3:])"
    ),
)  # fmt: skip


class _Killable:
    """A process, once a subclass has it started, which can be killed again and again."""

    def __init__(self):
        self._process = None
        self.kills = 0

    def kill(self):
        """kill -9 it, and start it again on what it has left."""
        self._process.kill()
        self._process.wait()
        self.kills += 1
        self.start()

    def stop(self):
        if self._process is not None:
            self._process.kill()
            self._process.wait()


class KillablePostgres(_Killable):
    """A server of its own whose commits survive a kill.

    It is not started as `EmbeddedPostgres.serving` does: a fork that runs anything before its exec, be it a change of
    user, does not go with the threads of gRPC that run here.
    """

    def __init__(self, folder):
        self.server = EmbeddedPostgres(folder=folder, port=ports.free_port(), password="storm", durable=True)
        self._log = folder / "postgres.log"
        super().__init__()

    def start(self):
        """Start it; again, where the one that was killed has not quite gone."""
        self.server.initialise()
        program = self.server.program()
        argv = [*(_AS_USER if program.user else ()), *(str(part) for part in program.user or ()), *program.argv]
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            if self._process is None or self._process.poll() is not None:
                with self._log.open("ab") as log:
                    self._process = subprocess.Popen(
                        argv, env=dict(program.env), cwd=program.cwd, stdout=log, stderr=log, start_new_session=True
                    )
            if self.server.ready():
                return
            time.sleep(0.1)
        raise AssertionError(log_tail(self._log))


class KillableService(_Killable):
    """`python -m services.subscriptions serve` on one address, killed and started again."""

    def __init__(self, settings, log):
        self.address = f"127.0.0.1:{ports.free_port()}"
        names = ("database_url", "identity_jwks_file", "service_token", "ledger_addr", "pricing_addr", "proxy_addr",
                 "stripe_api_key", "stripe_api_base", "stripe_webhook_secrets")  # fmt: skip
        told = {f"TOLLKEEPER_SUBSCRIPTIONS_{name.upper()}": _plain(getattr(settings, name)) for name in names}
        more = {"LISTEN": self.address, "POLL_SECONDS": "0.05"}
        self._environment = os.environ | told | {f"TOLLKEEPER_SUBSCRIPTIONS_{k}": v for k, v in more.items()}
        self._log = log
        super().__init__()

    def start(self):
        with self._log.open("ab") as stream:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "services.subscriptions", "serve"],
                env=self._environment, stdout=stream, stderr=stream,
            )  # fmt: skip
        host, port = self.address.split(":")
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            assert self._process.poll() is None, self._log.read_text()[-2000:]
            with contextlib.suppress(OSError), socket.create_connection((host, int(port)), timeout=1):
                return
            time.sleep(0.05)
        raise AssertionError("the service did not start")


def _plain(value):
    return ",".join(value) if isinstance(value, tuple) else str(value)


class Clients:
    """Sixteen clients that deliver bodies, each until it is acknowledged. `done` counts acknowledgements."""

    def __init__(self, address, bodies, *, count=16):
        self._address = address
        self._lock = threading.Lock()
        self._bodies = iter(bodies)
        self._count = count
        self.done = 0
        self.outcomes = Counter()
        self._stopped = threading.Event()
        self._changed = threading.Condition(self._lock)

    @contextlib.contextmanager
    def running(self):
        """The clients at work, until all is delivered or the block is left."""
        with ThreadPoolExecutor(self._count) as pool:
            futures = [pool.submit(self._deliver) for _ in range(self._count)]
            try:
                yield
            finally:
                self._stopped.set()
            for future in futures:
                future.result()

    def wait(self, done, timeout_seconds=300):
        """Until so many are acknowledged."""
        with self._changed:
            assert self._changed.wait_for(lambda: self.done >= done, timeout_seconds), f"{self.done} of {done}"

    def _deliver(self):
        with grpc.insecure_channel(self._address, options=_FAST_RECONNECT) as channel:
            stub = operator_service_pb2_grpc.WebhookServiceStub(channel)
            while not self._stopped.is_set():
                with self._lock:
                    body = next(self._bodies, None)
                if body is None:
                    return
                self._until_acknowledged(stub, body)

    def _until_acknowledged(self, stub, body):
        while not self._stopped.is_set():
            metadata = (("stripe-signature", signature(body)),)
            try:
                answer = stub.ReceiveStripeEvent(httpbody_pb2.HttpBody(data=body), metadata=metadata, timeout=5)
            except grpc.RpcError as error:
                with self._lock:
                    self.outcomes[error.code().name] += 1
                self._stopped.wait(0.2)
                continue
            assert answer.received
            with self._changed:
                self.outcomes["acknowledged"] += 1
                self.done += 1
                self._changed.notify_all()
            return


# Lives of customers, a step at a time: each generator does one thing at Stripe and pauses.


def subscribes_and_is_refunded(told, account):
    told.subscribe(account)
    yield
    told.refund(told.charge(account), 500)
    yield
    told.refund(told.charge(account))
    yield


def upgrades_and_wins_a_dispute(told, account):
    made = told.subscribe(account)
    yield
    told.move(made, "professional", payment_behavior="error_if_incomplete")
    yield
    dispute = told.stripe.dispute(told.charge(account).id)
    yield
    told.stripe.close_dispute(dispute["id"], "won")
    yield


def cancels_and_comes_back(told, account):
    made = told.subscribe(account, "professional")
    yield
    told.stripe.v1.subscriptions.cancel(made.id)
    yield
    told.subscribe(account)
    yield


def cancels_for_good_after_a_lost_dispute(told, account):
    made = told.subscribe(account)
    yield
    dispute = told.stripe.dispute(told.charge(account).id, amount=700)
    yield
    told.stripe.close_dispute(dispute["id"], "lost")
    told.stripe.v1.subscriptions.cancel(made.id)
    yield


def buys_credit_twice_and_never_pays_for_a_plan(told, account):
    told.buy(account, 2500)
    yield
    told.buy(account, 1000)
    told.subscribe(account, payment_behavior="default_incomplete")
    yield
    told.refund(told.charge(account), 250)
    yield


def pays_for_a_year_and_is_declined(told, account):
    told.subscribe(account, interval="year")
    yield
    told.stripe.give_card(told.customers[account], "pm_card_chargeCustomerFail")
    with contextlib.suppress(stripe.CardError):
        told.buy(account, 900)
    yield


LIVES = (
    subscribes_and_is_refunded,
    upgrades_and_wins_a_dispute,
    cancels_and_comes_back,
    cancels_for_good_after_a_lost_dispute,
    buys_credit_twice_and_never_pays_for_a_plan,
    pays_for_a_year_and_is_declined,
)


def folder_for(servers_folder, name) -> Path:
    folder = servers_folder / name
    folder.mkdir(mode=0o711)
    return folder
