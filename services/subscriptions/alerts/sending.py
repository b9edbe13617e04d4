"""Owns how an alert leaves: signed webhooks over HTTPS, and e-mail by SMTP. Retried over days, then given up.

An endpoint is a stranger's address, so what is not public is not called: its name must resolve to public addresses
only (`private_addresses` lifts that, for a machine of one's own), and a redirection is a failure.
"""

from __future__ import annotations

import ipaddress
import smtplib
import socket
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from datetime import timedelta
from email.message import EmailMessage
from typing import Any
from urllib.parse import urlsplit

from prometheus_client import Counter, Gauge
from sqlalchemy import Engine

from services.kit.logs import get_logger
from services.subscriptions.alerts import store
from services.subscriptions.alerts.model import body_of, retry_delay_seconds, signature
from services.subscriptions.alerts.store import Due
from services.subscriptions.settings import Settings

_log = get_logger(__name__)

_AT_ONCE = 20
_RETENTION = timedelta(days=90)
_DELETED_AT_ONCE = 1000
_HTTPS_PORT, _HTTP_PORT = 443, 80
_MAX_READ_BYTES = 4096

_SENT = Counter("tollkeeper_alert_deliveries_total", "Attempts to deliver alerts", ["way", "outcome"])
_OVERDUE = Gauge("tollkeeper_alert_overdue_seconds", "How long the longest overdue delivery of an alert has waited")

Send = Callable[[Due], None]


class NotSentError(Exception):
    """An attempt that failed, in words for an operator; never with a secret in them."""


class Sender:
    """The job that sends what is due: one piece of work is up to 20 deliveries, one after the other."""

    def __init__(self, engine: Engine, settings: Settings) -> None:
        self._engine = engine
        self._webhook: Send = WebhookSender(
            timeout_seconds=settings.alert_timeout_seconds, private_addresses=settings.alert_private_addresses
        )
        self._email: Send | None = EmailSender(settings) if settings.smtp_host else None
        # Nobody else takes them while each may last as long as it can.
        self._lease = timedelta(seconds=_AT_ONCE * settings.alert_timeout_seconds * 2)

    def __call__(self) -> bool:
        """Send what is due; whether there may be more."""
        with self._engine.begin() as connection:
            claimed = store.claim_deliveries(connection, lease=self._lease, limit=_AT_ONCE)
        for due in claimed:
            self._deliver(due)
        return len(claimed) == _AT_ONCE

    def _deliver(self, due: Due) -> None:
        way = "webhook" if due.endpoint_id else "email"
        try:
            if due.endpoint_id:
                self._webhook(due)
            elif self._email is not None:
                self._email(due)
            else:
                with self._engine.begin() as connection:
                    store.note_skipped(connection, due)
                return
        except NotSentError as error:
            _SENT.labels(way, "failed").inc()
            seconds = retry_delay_seconds(due.attempts)
            log = _log.warning if seconds is not None else _log.error
            log("an alert was not delivered", alert_id=due.alert_id, way=way, attempts=due.attempts, error=str(error))
            with self._engine.begin() as connection:
                retry_in = timedelta(seconds=seconds) if seconds is not None else None
                store.note_failed(connection, due, str(error), retry_in)
            return
        _SENT.labels(way, "delivered").inc()
        with self._engine.begin() as connection:
            store.note_delivered(connection, due)


class AlertUpkeep:
    """The job that says how late deliveries are, and deletes alerts of 90 days ago."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def __call__(self) -> bool:
        """Do both; whether there may be more to delete."""
        with self._engine.begin() as connection:
            _OVERDUE.set(store.oldest_due_seconds(connection))
            deleted = store.delete_old(connection, older_than=_RETENTION, limit=_DELETED_AT_ONCE)
        return deleted == _DELETED_AT_ONCE


class _NoRedirection(urllib.request.HTTPRedirectHandler):
    """Leaves a redirection the answer that it is: an error."""

    def redirect_request(self, *_arguments: Any) -> None:
        """Never another request."""
        return


class WebhookSender:
    """Posts alerts to endpoints. Raises NotSentError for whatever is not a 2xx."""

    def __init__(self, *, timeout_seconds: float, private_addresses: bool) -> None:
        self._timeout_seconds = timeout_seconds
        self._private_addresses = private_addresses
        handlers = (urllib.request.ProxyHandler({}), _NoRedirection())
        self._opener = urllib.request.build_opener(*handlers)

    def __call__(self, due: Due) -> None:
        """One attempt."""
        if not self._private_addresses:
            require_public(due.url)
        body, timestamp = body_of(due.alert_id, due.alert, due.created_at), int(time.time())
        request = urllib.request.Request(  # noqa: S310 (the scheme was checked when the endpoint was made)
            due.url,
            data=body,
            headers={
                "content-type": "application/json",
                "user-agent": "Tollkeeper",
                "webhook-id": due.alert_id,
                "webhook-timestamp": str(timestamp),
                "webhook-signature": signature(due.signing_secret, due.alert_id, timestamp, body),
            },
            method="POST",
        )
        try:
            with self._opener.open(request, timeout=self._timeout_seconds) as answer:
                answer.read(_MAX_READ_BYTES)
        except urllib.error.HTTPError as error:
            with error:
                raise NotSentError(f"the endpoint answered {error.code}") from None
        except (OSError, ValueError) as error:
            raise NotSentError(f"the endpoint was not reached: {type(error).__name__}") from error


def require_public(url: str) -> None:
    """Raise NotSentError where the address's host is, or may be, on a network that is not public."""
    parts = urlsplit(url)
    port = parts.port or (_HTTPS_PORT if parts.scheme == "https" else _HTTP_PORT)
    try:
        found = socket.getaddrinfo(parts.hostname, port, type=socket.SOCK_STREAM)
    except OSError as error:
        raise NotSentError("the endpoint's name does not resolve") from error
    if not all(ipaddress.ip_address(address[4][0]).is_global for address in found):
        raise NotSentError("the endpoint is not on a public address")


class EmailSender:
    """Sends alerts to the account's e-mail address. Raises NotSentError."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    def __call__(self, due: Due) -> None:
        """One attempt."""
        message = EmailMessage()
        message["From"], message["To"] = self._settings.smtp_sender, due.email
        message["Subject"] = f"[{due.alert.account_id}] {due.alert.message.split('. ')[0].rstrip('.')}"
        message["Message-ID"] = f"<{due.alert_id}@{self._settings.smtp_sender.rpartition('@')[2]}>"
        message.set_content(f"{due.alert.message}\n\nAccount: {due.alert.account_id}\n")
        settings = self._settings
        try:
            with smtplib.SMTP(settings.smtp_host, settings.smtp_port, timeout=settings.alert_timeout_seconds) as smtp:
                if settings.smtp_starttls:
                    smtp.starttls(context=ssl.create_default_context())
                if settings.smtp_user:
                    smtp.login(settings.smtp_user, settings.smtp_password)
                smtp.send_message(message)
        except (OSError, smtplib.SMTPException) as error:
            raise NotSentError(f"the mail was not taken: {type(error).__name__}") from error
