"""Owns the sending of alerts by e-mail, over SMTP."""

from __future__ import annotations

import smtplib
import ssl
from email.message import EmailMessage
from email.utils import localtime

from services.subscriptions.alerts.store import Due
from services.subscriptions.alerts.webhooks import NotSentError
from services.subscriptions.settings import SubscriptionsSettings


class EmailSender:
    """Sends alerts to the account's e-mail address. Raises NotSentError."""

    def __init__(self, settings: SubscriptionsSettings) -> None:
        self._settings = settings

    def __call__(self, due: Due) -> None:
        """One attempt. A message keeps its id, so that a mailbox can tell a repeat."""
        settings, is_taken = self._settings, False
        try:
            message = self._message(due)
            with smtplib.SMTP(settings.smtp_host, settings.smtp_port, timeout=settings.alert_timeout_seconds) as smtp:
                if settings.smtp_starttls:
                    smtp.starttls(context=ssl.create_default_context())
                if settings.smtp_user:
                    smtp.login(settings.smtp_user, settings.smtp_password)
                smtp.send_message(message, to_addrs=[due.email])
                is_taken = True
        except (OSError, ValueError, smtplib.SMTPException) as error:
            if is_taken:
                return  # whatever the server answers to a goodbye, it has the message, and would send it on again
            raise NotSentError(f"the mail was not taken: {type(error).__name__}") from error

    def _message(self, due: Due) -> EmailMessage:
        message = EmailMessage()
        message["From"], message["To"] = self._settings.smtp_sender, due.email
        message["Subject"] = f"[{due.alert.account_id}] {due.alert.message.split('. ')[0].rstrip('.')}"
        message["Date"] = localtime()
        message["Message-ID"] = f"<{due.alert_id}@{self._settings.smtp_sender.rpartition('@')[2]}>"
        message.set_content(f"{due.alert.message}\n\nAccount: {due.alert.account_id}\n")
        return message
