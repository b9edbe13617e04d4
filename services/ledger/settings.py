"""Owns how the ledger is configured."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from services.kit.settings import ServiceSettings


class LedgerSettings(ServiceSettings):
    """Environment of the ledger: `TOLLKEEPER_LEDGER_…`."""

    service: ClassVar[str] = "ledger"

    max_concurrent: int = Field(default=2048, ge=1, description="calls served at once")
    writers: int = Field(default=2, ge=1, le=16, description="batches committed at the same time, a connection each")
    max_batch: int = Field(default=256, ge=1, le=1000, description="operations committed together")
    max_queued: int = Field(default=20_000, ge=1000, description="operations that may wait; more are refused")
    remembered_rows: int = Field(
        default=200_000, ge=0, description="rows of accounts remembered between batches, about 0.5 KB each; 0: none"
    )
    sweep_seconds: float = Field(default=1, gt=0, description="how often the worker looks for what is due")
    retention_days: int = Field(
        default=90, ge=90, description="how long ended holds and the keys of requests that moved no money are kept"
    )
