"""The state: kept over a stop and over kill -9, whole requests only; what fell due meanwhile is made up for."""

from __future__ import annotations

import contextlib
import signal
import sqlite3
import subprocess
import sys
import threading
import time

import pytest
import stripe
from sandbox_stripe_process import DAY, SECRET, Shop


def test_everything_is_there_after_a_restart(start_sandbox, tmp_path, receiver):
    arguments = ("--state", str(tmp_path / "state.sqlite"))
    first = start_sandbox(*arguments)
    shop = Shop(first, first.client().v1)
    clock = shop.clock()
    customer = shop.customer(clock)
    subscription = shop.subscribe(customer, shop.price(1900))
    options = {"idempotency_key": "kept"}
    product = shop.v1.products.create({"name": "x"}, options)
    events = [event.id for event in shop.events()]
    assert first.stop() == 0
    second = start_sandbox(*arguments, "--webhook-url", receiver.url, "--webhook-secret", SECRET)
    shop = Shop(second, second.client().v1)
    assert shop.v1.subscriptions.retrieve(subscription.id).status == "active"
    assert [event.id for event in shop.events()] == events
    assert shop.v1.products.create({"name": "x"}, options).id == product.id
    shop.advance(clock, clock.frozen_time + 32 * DAY)
    assert len(shop.v1.invoices.list({"customer": customer.id}).data) == 2


def test_what_was_not_delivered_is_delivered_after_a_restart(start_sandbox, tmp_path, receiver):
    arguments = ("--state", str(tmp_path / "s"), "--webhook-secret", SECRET, "--webhook-url", receiver.url)
    receiver.refuse = 1_000_000
    first = start_sandbox(*arguments)
    customer = Shop(first, first.client().v1).customer(card=None)
    first.stop(signal.SIGKILL)
    receiver.refuse = 0
    second = start_sandbox(*arguments)
    second.drain(delivered=True)
    assert [event.data.object.id for event in receiver.events] == [customer.id]


def test_kill_9_leaves_whole_requests(start_sandbox, tmp_path):
    """What is there after the kill has all that opening it makes, and everything that was answered is there."""
    file = str(tmp_path / "state.sqlite")
    sandbox = start_sandbox("--state", file)
    shop = Shop(sandbox, sandbox.client().v1)
    customer, price = shop.customer(), shop.price(1900)
    answered = []

    def open_many():
        with contextlib.suppress(stripe.APIConnectionError):
            while True:
                answered.append(shop.subscribe(customer, price).id)

    worker = threading.Thread(target=open_many)
    worker.start()
    while len(answered) < 20:
        time.sleep(0.005)
    sandbox.stop(signal.SIGKILL)
    worker.join()
    shop = Shop(again := start_sandbox("--state", file), again.client().v1)
    found = list(shop.v1.subscriptions.list({"customer": customer.id, "limit": 100}).auto_paging_iter())
    assert set(answered) <= {subscription.id for subscription in found}
    assert len(found) - len(answered) in (0, 1)
    for subscription in found:
        assert subscription.status == "active"
        assert shop.v1.invoices.retrieve(subscription.latest_invoice).status == "paid"
    charges = list(shop.v1.charges.list({"customer": customer.id, "limit": 100}).auto_paging_iter())
    assert len(charges) == len(found)


def test_what_fell_due_while_it_was_off_happens_as_of_its_time(start_sandbox, tmp_path):
    """The checkout that should have expired while nobody ran expires at the next start, at the moment it was due."""
    file = tmp_path / "state.sqlite"
    first = start_sandbox("--state", str(file))
    shop = Shop(first, first.client().v1)
    session = shop.v1.checkout.sessions.create({"mode": "setup", "currency": "usd", "success_url": "http://127.0.0.1/"})
    first.stop()
    due = int(time.time()) - 3600
    name = f"expire_checkout:{session.id}"
    with contextlib.closing(sqlite3.connect(file)) as database, database:
        query = "UPDATE object SET body = json_set(CAST(body AS TEXT), '$.due', ?) WHERE kind = '_agenda' AND id = ?"
        assert database.execute(query, (due, name)).rowcount == 1
    second = start_sandbox("--state", str(file))
    shop = Shop(second, second.client().v1)
    deadline = time.monotonic() + 10
    while not (told := shop.events(type="checkout.session.expired")):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert (told[0].created, told[0].data.object.id) == (due, session.id)


def test_without_a_file_nothing_is_kept(start_sandbox):
    own = start_sandbox()
    Shop(own, own.client().v1).customer(card=None)
    own.stop()
    assert start_sandbox().client().v1.customers.list().data == []


def test_it_stops_in_order_and_says_so(start_sandbox):
    own = start_sandbox("--grace-seconds", "1")
    output = own.process.stdout
    own.process.send_signal(signal.SIGTERM)
    assert own.process.wait(timeout=10) == 0
    assert output.read() == "SANDBOX Stripe stopping\n"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--listen", "nowhere"], "--listen must be HOST:PORT"),
        (["--webhook-url", "http://127.0.0.1:1/"], "go together"),
        (["--retry-days", "soon"], "--retry-days must be whole numbers"),
        (["--state", "/nonexistent/folder/file"], "cannot use /nonexistent/folder/file"),
    ],
)
def test_bad_arguments_are_said_in_one_line(arguments, words):
    failed = subprocess.run(
        [sys.executable, "-m", "deploy.local.sandbox.stripe", *arguments],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert failed.returncode != 0
    assert words in failed.stderr.splitlines()[-1]
    assert "Traceback" not in failed.stderr


def test_a_port_in_use_is_said_in_one_line(sandbox):
    taken = sandbox.url.removeprefix("http://")
    failed = subprocess.run(
        [sys.executable, "-m", "deploy.local.sandbox.stripe", "--listen", taken],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert (failed.returncode, failed.stderr.count("\n")) == (1, 1)
    assert failed.stderr.startswith(f"SANDBOX Stripe: cannot listen on {taken}: ")
