"""Owns how pricing is configured, beyond what every service is told."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from services.kit.settings import ServiceSettings


class PricingSettings(ServiceSettings):
    """Pricing's settings: `TOLLKEEPER_PRICING_X`, else `TOLLKEEPER_X`."""

    service: ClassVar[str] = "pricing"

    max_concurrent: int = Field(default=64, ge=8, description="calls served at once, watches included; one thread each")
    max_watchers: int = Field(
        default=32, ge=1, description="watches of the catalogue served at once, at most half of all"
    )
    poll_seconds: float = Field(default=0.25, gt=0, le=0.5, description="how often the database is asked for changes")

    ledger_addr: str = Field(default="", description="host:port of the ledger, for re-pricing and the margin report")
    subscriptions_addr: str = Field(default="", description="host:port of subscriptions, for the margin report")
    service_timeout_seconds: float = Field(default=10, gt=0, description="longest one call to another service may take")

    @property
    def watcher_limit(self) -> int:
        """How many watches may run: never so many that other calls find no thread."""
        return min(self.max_watchers, self.max_concurrent // 2)
