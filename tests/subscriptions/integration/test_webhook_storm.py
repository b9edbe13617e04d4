"""A storm of webhooks: each event three times, shuffled, from 16 clients, service and Postgres killed meanwhile.

First customers live at Stripe, and a service is told of each step as it happens: where that one ends is what must come
out. Then the same events hit a second service, with a Postgres of its own, in a storm. 180 deliveries unless
`TOLLKEEPER_TEST_WEBHOOK_DELIVERIES` says how many; the figures are printed.
"""

import os
import random
import time
from collections import Counter

import pytest
from sqlalchemy import create_engine, text
from subscriptions_events import body_of
from subscriptions_peers import FakeLedger, FakeProxy, eventually
from subscriptions_storm import LIVES, Clients, KillablePostgres, KillableService, folder_for

from deploy.local import postgres
from services.kit import migrations
from services.kit.db import parsed_url
from services.subscriptions.__main__ import MIGRATIONS
from services.subscriptions.model.account import AccountWords

DELIVERIES = int(os.environ.get("TOLLKEEPER_TEST_WEBHOOK_DELIVERIES", "180"))
SEED = int(os.environ.get("TOLLKEEPER_TEST_SEED", "0")) or random.randrange(2**32)
COPIES = 3
SERVICE_KILLS, POSTGRES_KILLS = (1, 1) if DELIVERIES <= 1000 else (6, 3)


@pytest.fixture
def storm_postgres(servers_folder):
    server = KillablePostgres(folder_for(servers_folder, "storm"))
    server.start()
    yield server
    server.stop()


@pytest.fixture
def storm_url(storm_postgres):
    url = postgres.create_database(
        storm_postgres.server.url(), name="storm", owner="tollkeeper_subscriptions", password="storm"
    )
    migrations.upgrade(url, MIGRATIONS)
    return url


@pytest.fixture
def storm_peers():
    with FakeLedger().serve() as ledger, FakeProxy().serve() as proxy:
        yield ledger, proxy


@pytest.fixture
def storm_settings(settings, storm_url, storm_peers, told):
    ledger, proxy = storm_peers
    return settings(
        database_url=storm_url, ledger_addr=ledger.address, proxy_addr=proxy.address, **told.stripe.settings()
    )


@pytest.fixture
def service(storm_settings, tmp_path):
    made = KillableService(storm_settings, tmp_path / "service.log")
    yield made
    made.stop()


def live(told, deliveries):
    """Customers live, and the first service is told of each step; all events, oldest first."""
    events = told.news()
    number = 0
    while len(events) * COPIES < deliveries:
        account = f"account-{number}"
        told.customer(account)
        for _ in LIVES[number % len(LIVES)](told, account):
            new = told.news()
            told.tell(new)
            told.apply()
            events += new
        number += 1
    return events


STATES = {
    # Whose subscription was over before anybody heard of it keeps the cycles it had.
    "accounts": "SELECT account_id, a.plan_id, a.plan_version, a.status, CASE WHEN in_force THEN cycle_anchor END"
    " FROM accounts AS a JOIN subscriptions USING (account_id) ORDER BY 1",
    "subscriptions": "SELECT account_id, subscription_id, status, in_force, plan_id, interval, price_nanos, period_end,"
    " cancel_at_period_end, grace_until, pending_plan_id FROM subscriptions ORDER BY 1",
    "payments": "SELECT account_id, source_id, kind, amount_nanos, credit_nanos, returned FROM stripe_payments"
    " ORDER BY 1, 2",
    "credit": "SELECT account_id, source_id, sum(amount_nanos - taken_back_nanos), max(expires_at) FROM stripe_grants"
    " GROUP BY 1, 2 ORDER BY 1, 2",
    "to come": "SELECT account_id, due_at, amount_nanos, expires_at FROM stripe_grants WHERE granted_at IS NULL"
    " ORDER BY 1, 2",
}


def state(rows):
    return {name: rows(query) for name, query in STATES.items()}


def at_ledger(ledger, accounts):
    """What each account has there of credit that was paid for, and its limits."""
    found = {}
    for account in accounts:
        book = ledger.books[account]
        paid = sum(nanos for key, nanos in book["left"].items() if not key.startswith("tx-promo:"))
        found[account] = (paid, {unit: limit.amount for unit, limit in book["limits"].items()})
    return found


def at_proxy(proxy, accounts):
    return {account: proxy.entitlements[account].plan_id for account in accounts}


@pytest.mark.timeout(180 + DELIVERIES // 5)
def test_storm_ends_where_the_order_of_events_does_with_each_grant_once(  # noqa: PLR0917 (fixtures)
    told, ledger, proxy, parts, storm_settings, storm_postgres, storm_peers, service, database
):
    chance = random.Random(SEED)
    begun = time.monotonic()
    events = live(told, DELIVERIES)
    accounts = list(told.customers)
    lived = time.monotonic()

    storm_ledger, storm_proxy = storm_peers
    second = parts(**storm_settings.model_dump(include=storm_settings.model_fields_set))
    for account in accounts:
        second.customers.create(AccountWords(account, "", "", "free"))
    bodies = [body_of(event) for event in events] * COPIES
    chance.shuffle(bodies)
    service.start()
    # What is not delivered must not be found by reconciling either.
    told.stripe.fault("status", "/v1/events*", method="GET", status=500, count=None)
    clients = Clients(service.address, bodies)
    storm_began = time.monotonic()
    with clients.running():
        blows = [service.kill] * SERVICE_KILLS + [storm_postgres.kill] * POSTGRES_KILLS
        chance.shuffle(blows)
        for number, blow in enumerate(blows, start=1):
            clients.wait(len(bodies) * number // (len(blows) + 1))
            blow()
        clients.wait(len(bodies))
    delivered = time.monotonic()

    engine = create_engine(parsed_url(storm_settings.database_url))

    def rows(query):
        with engine.begin() as connection:
            result = connection.execute(text(query))
            return [tuple(row) for row in result] if result.returns_rows else []

    if DELIVERIES <= 1000:  # what the killed ones had claimed lapses in a minute: here, now
        rows("UPDATE stripe_leases SET leased_until = now()")
        rows("UPDATE outbox SET leased_until = NULL, next_attempt_at = now() WHERE delivered_at IS NULL")
        rows("UPDATE stripe_events SET next_attempt_at = now() WHERE status = 'pending'")
    eventually(
        lambda: rows(
            "SELECT NOT EXISTS (SELECT 1 FROM stripe_events WHERE status = 'pending')"
            " AND NOT EXISTS (SELECT 1 FROM outbox WHERE delivered_at IS NULL)"
        )[0][0],
        timeout_seconds=120,
    )
    settled = time.monotonic()

    assert rows("SELECT count(*) FROM stripe_events") == [(len(events),)], "acknowledged, so kept"
    assert rows("SELECT event_id, last_error FROM stripe_events WHERE status = 'failed'") == []
    expected, found = state(database.rows), state(rows)
    for name in STATES:
        assert found[name] == expected[name], name
    assert at_ledger(storm_ledger, accounts) == at_ledger(ledger, accounts)
    assert at_proxy(storm_proxy, accounts) == at_proxy(proxy, accounts)
    effects = Counter(what for what in storm_ledger.applied)
    assert max(effects.values()) == 1, "nothing took effect twice"
    grants = [request_id for _, request_id in effects if request_id.startswith(("invoice:", "payment:"))]
    engine.dispose()
    print(
        f"seed {SEED}: {len(bodies)} deliveries of {len(events)} events of {len(accounts)} customers,"
        f" {len(bodies) - len(events)} of them duplicates; {service.kills} kills of the service,"
        f" {storm_postgres.kills} of Postgres; {len(grants)} grants, each once; attempts {dict(clients.outcomes)};"
        f" lives {lived - begun:.1f} s, delivered in {delivered - storm_began:.1f} s,"
        f" settled {settled - delivered:.1f} s later"
    )
