"""Owns the configuration of subscriptions: `TOLLKEEPER_SUBSCRIPTIONS_X`, else `TOLLKEEPER_X`."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from services.kit.settings import ServiceSettings


class Settings(ServiceSettings):
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
