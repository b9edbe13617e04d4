"""Owns the use cases of alerts: endpoints, the list of what was raised, sending it again."""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from datetime import datetime
from urllib.parse import urlsplit

from sqlalchemy import Engine

from services.kit.validation import Violations
from services.subscriptions import store as accounts_store
from services.subscriptions.alerts import store
from services.subscriptions.alerts.addresses import is_address, is_public
from services.subscriptions.alerts.model import TYPES, new_secret
from services.subscriptions.alerts.store import Endpoint, RaisedAlert
from services.subscriptions.clock import Clock, utc_now
from services.subscriptions.errors import AccountNotFound, AlertNotFound, EndpointNotFound, TooManyEndpoints

EVERY_ACCOUNT = "*"  # what an operator names to have an endpoint for all accounts
_MAX_ENDPOINTS = 10
_MAX_URL_CHARS = 2000


@dataclass(frozen=True, slots=True)
class NewEndpoint:
    """What an endpoint is made with. `types` empty: all."""

    account_id: str
    url: str
    types: tuple[str, ...]

    def require_sound(self, *, private_addresses: bool) -> None:
        """Raise InvalidArgument naming every field that is wrong."""
        violations = Violations()
        check_owner(violations, self.account_id)
        violations.text("url", self.url, max_length=_MAX_URL_CHARS, required=True)
        if not _is_address(self.url, ("https", "http") if private_addresses else ("https",)):
            violations.add("url", "must be an https address without credentials")
        elif not private_addresses and not _may_be_public(urlsplit(self.url).hostname or ""):
            violations.add("url", "must be at a public address")
        violations.count("types", self.types, at_most=len(TYPES))
        for number, name in enumerate(self.types):
            violations.one_of(f"types[{number}]", name, TYPES)
        violations.raise_if_any()


def check_owner(violations: Violations, account_id: str) -> None:
    """Whose endpoints: an account's, or the operator's for all. Who may name that is for access to say."""
    if account_id != EVERY_ACCOUNT:
        violations.identifier("account_id", account_id)


def _is_address(url: str, schemes: tuple[str, ...]) -> bool:
    try:
        parts = urlsplit(url)
        valid_port = parts.port is None or parts.port > 0
    except ValueError:
        return False
    plain = url.isascii() and url.isprintable() and " " not in url
    return plain and valid_port and parts.scheme in schemes and bool(parts.hostname) and parts.username is None


def _may_be_public(host: str) -> bool:
    """Whether a host is not plainly one's own. What its name means is looked at whenever it is called."""
    name = host.rstrip(".")
    return is_public(name) if is_address(name) else name != "localhost" and not name.endswith(".localhost")


class Alerts:
    """Alerts and where they are sent."""

    def __init__(self, engine: Engine, *, private_addresses: bool, clock: Clock = utc_now) -> None:
        self._engine = engine
        self._private_addresses = private_addresses
        self._clock = clock

    def add_endpoint(self, new: NewEndpoint) -> Endpoint:
        """Add an endpoint, with a secret of its own. Raises InvalidArgument, AccountNotFound, TooManyEndpoints."""
        new.require_sound(private_addresses=self._private_addresses)
        account_id = "" if new.account_id == EVERY_ACCOUNT else new.account_id
        endpoint = Endpoint(
            endpoint_id=f"endpoint-{secrets.token_hex(12)}",
            account_id=account_id,
            url=new.url,
            signing_secret=new_secret(),
            types=tuple(dict.fromkeys(new.types)),
            created_at=self._clock(),
        )
        with self._engine.begin() as connection:
            if account_id and accounts_store.find_account(connection, account_id) is None:
                raise AccountNotFound(f"there is no account {account_id}", account_id=account_id)
            store.lock_endpoints(connection, account_id)
            if len(store.list_endpoints(connection, (account_id,))) >= _MAX_ENDPOINTS:
                raise TooManyEndpoints(f"an account has at most {_MAX_ENDPOINTS} endpoints")
            store.insert_endpoint(connection, endpoint)
        return endpoint

    def endpoints(self, account_id: str) -> list[Endpoint]:
        """The account's endpoints, by creation."""
        with self._engine.connect() as connection:
            return store.list_endpoints(connection, ("" if account_id == EVERY_ACCOUNT else account_id,))

    def delete_endpoint(self, account_id: str, endpoint_id: str) -> None:
        """End an endpoint. Raises EndpointNotFound where the account has no such one."""
        owner = "" if account_id == EVERY_ACCOUNT else account_id
        with self._engine.begin() as connection:
            if not store.delete_endpoint(connection, owner, endpoint_id):
                raise EndpointNotFound(f"there is no endpoint {endpoint_id}", endpoint_id=endpoint_id)

    def raised(
        self, account_id: str, *, before: tuple[datetime, str] | None, page_size: int
    ) -> tuple[list[RaisedAlert], RaisedAlert | None]:
        """A page of alerts, newest first, and the last of it where there are more."""
        with self._engine.connect() as connection:
            found = store.list_alerts(connection, account_id, before=before, limit=page_size + 1)
        page = found[:page_size]
        return page, page[-1] if len(found) > page_size else None

    def replay(self, alert_id: str) -> RaisedAlert:
        """Send an alert again, everywhere it goes today. Raises AlertNotFound."""
        with self._engine.begin() as connection:
            if store.find_alert(connection, alert_id) is None:
                raise AlertNotFound(f"there is no alert {alert_id}", alert_id=alert_id)
            store.send_again(connection, alert_id)
            found = store.find_alert(connection, alert_id)
        assert found is not None
        return found
