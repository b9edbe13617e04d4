"""Owns what tests of alerts share: raising one, an endpoint as it is kept, and what became of the deliveries."""

from datetime import UTC, datetime

from services.subscriptions.alerts import store
from services.subscriptions.alerts.model import Alert, new_secret
from services.subscriptions.alerts.sending import Sender


def raise_alert(database, key="k", account_id="acme"):
    with database.engine.begin() as connection:
        assert store.raise_alert(connection, Alert(account_id, "limit_80", key, f"words of {key}", {"used": "8"}))


def add_endpoint(database, url):
    """An endpoint for all accounts, written as an allowed one would be."""
    with database.engine.begin() as connection:
        number = len(store.list_endpoints(connection, ("",)))
        endpoint = store.Endpoint(f"endpoint-{number}", "", url, new_secret(), (), datetime.now(UTC))
        store.insert_endpoint(connection, endpoint)
    return endpoint


def make_sender(database, settings, **changes):
    """A sender that may go to this machine's own addresses."""
    values = {"alert_private_addresses": True, "alert_timeout_seconds": 5}
    return Sender(database.engine, settings(**(values | changes)))


def send_all(sender):
    while sender():
        pass


def deliveries(database):
    return database.rows("SELECT status, attempts, last_error FROM alert_deliveries ORDER BY alert_id, endpoint_id")


def make_due(database):
    database.rows("UPDATE alert_deliveries SET next_attempt_at = now() WHERE status = 'pending'")
