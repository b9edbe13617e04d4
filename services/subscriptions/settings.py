"""Owns the configuration of subscriptions: `TOLLKEEPER_SUBSCRIPTIONS_X`, else `TOLLKEEPER_X`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, ClassVar

from pydantic import Field, field_validator
from pydantic_settings import NoDecode

from services.kit.settings import ServiceSettings


class SubscriptionsSettings(ServiceSettings):
    """What subscriptions is told."""

    service: ClassVar[str] = "subscriptions"

    ledger_addr: str = Field(default="127.0.0.1:50051", description="host:port, or any gRPC target, of the ledger")
    pricing_addr: str = Field(default="127.0.0.1:50052", description="the same of pricing")
    proxy_addr: str = Field(default="127.0.0.1:50054", description="the same of the proxy")

    plan_cache_seconds: float = Field(
        default=30, ge=0, le=60, description="how long a plan is believed to be the newest"
    )
    deliver_in_serve: bool = Field(default=True, description="run the background jobs inside `serve` too")
    delivery_threads: int = Field(default=2, ge=1, le=64, description="deliveries made at once by one process")
    delivery_timeout_seconds: float = Field(default=5, gt=0, le=15, description="longest one delivery may take")
    inline_delivery_seconds: float = Field(
        default=5, ge=0, le=30, description="how long a change waits to be delivered"
    )
    poll_seconds: float = Field(default=1, gt=0, description="pause of a background job that found nothing to do")
    outbox_retention_days: float = Field(default=30, gt=0, description="how long what was delivered is kept")

    quota_cache_seconds: float = Field(
        default=10, ge=0, le=60, description="longest that a use counter in Redis is believed; 0 asks the database"
    )
    meter_report_seconds: float = Field(default=300, gt=0, description="pause between reports to Stripe's meters")
    meter_report_threads: int = Field(default=8, ge=1, le=64, description="reports sent to Stripe at once")
    reconcile_hours: float = Field(default=6, gt=0, description="pause between comparisons of metered use")

    stripe_api_key: str = Field(
        default="", repr=False, description="secret or restricted key of Stripe; empty for none"
    )
    stripe_api_base: str = Field(default="", description="address of Stripe's API; empty for Stripe itself")
    stripe_timeout_seconds: float = Field(default=8, gt=0, le=60, description="longest wait for one answer of Stripe's")
    stripe_retries: int = Field(default=2, ge=0, le=5, description="how often a request to Stripe is sent again")
    return_url: str = Field(
        default="http://localhost:8080/", description="where Stripe's pages send a browser that nobody told otherwise"
    )
    top_up_min_nanos: int = Field(default=1_000_000_000, ge=500_000_000, description="least credit bought at once")
    top_up_max_nanos: int = Field(default=10_000_000_000_000, gt=0, description="most credit bought at once")
    recharge_seconds: float = Field(default=15, gt=0, description="pause between looks at a balance for auto-recharge")
    request_retention_days: float = Field(default=40, ge=35, description="how long a request id to Stripe is known")
    stripe_webhook_secrets: Annotated[tuple[str, ...], NoDecode] = Field(
        default=(), repr=False, description="what Stripe signs events with, separated by commas; during rotation two"
    )
    stripe_webhook_tolerance_seconds: int = Field(
        default=300, ge=1, le=3600, description="how long ago an event may have been signed"
    )
    stripe_threads: int = Field(default=4, ge=1, le=64, description="accounts that events are applied to at once")
    stripe_event_retention_days: float = Field(
        default=90,
        ge=31,
        description="how long events are kept once they are applied; Stripe tells of them for 30 days",
    )
    stripe_reconcile_hours: float = Field(
        default=6, gt=0, description="pause between searches for what Stripe has and we were not told"
    )
    stripe_collect_renewals: bool = Field(
        default=True,
        description="have a renewal paid as soon as Stripe has drafted it, not about an hour later; off where others "
        "add to drafts",
    )
    grace_days: int = Field(
        default=14, ge=0, le=365, description="days of grace after a failed payment, where the plan says none"
    )

    alert_seconds: float = Field(default=30, gt=0, description="pause between looks at limits and balances for alerts")
    alert_timeout_seconds: float = Field(default=10, gt=0, le=60, description="longest one delivery of an alert takes")
    alert_threads: int = Field(default=4, ge=1, le=64, description="deliveries of alerts made at once by one process")
    alert_private_addresses: bool = Field(
        default=False, description="let alerts go to http and to private addresses: for a machine of one's own"
    )
    low_balance_nanos: int = Field(default=1_000_000_000, description="at or below this balance an alert is raised")
    smtp_host: str = Field(default="", description="mail server for alerts; empty: none are mailed")
    smtp_port: int = Field(default=587, ge=1, le=65_535, description="its port")
    smtp_starttls: bool = Field(default=True, description="encrypt before logging in")
    smtp_user: str = Field(default="", description="who logs in there; empty: nobody")
    smtp_password: str = Field(default="", repr=False, description="with which password")
    smtp_sender: str = Field(default="tollkeeper@localhost", description="whom alerts come from")

    @field_validator("stripe_webhook_secrets", mode="before")
    @classmethod
    def _split_secrets(cls, secrets: object) -> object:
        """Without empty ones: what is signed with nothing could be signed by anyone."""
        if isinstance(secrets, str):
            secrets = secrets.split(",")
        return (
            tuple(secret.strip() for secret in secrets if secret.strip()) if isinstance(secrets, Iterable) else secrets
        )
