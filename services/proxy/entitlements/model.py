"""Owns what an account's plan allows."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

ALL = "*"


@dataclass(frozen=True, slots=True)
class Entitlement:
    """What an account may call. Limits of 0 are none; a higher `revision` takes the place of a lower one.

    A call costs the customer the provider's cost times `multiplier_millionths` ÷ 1 000 000. Where `metered`, the plan's
    quotas and overage pay for it: it is recorded and counted, and nothing is deducted.
    """

    account_id: str
    plan_id: str
    revision: int
    active: bool
    providers: frozenset[str]
    models: frozenset[str]
    max_tokens_per_request: int
    requests_per_minute: int
    tokens_per_minute: int
    multiplier_millionths: int
    updated_at: datetime
    metered: bool = False

    def allows_provider(self, provider: str) -> bool:
        """Whether the plan includes the provider."""
        return ALL in self.providers or provider in self.providers

    def allows_model(self, model: str) -> bool:
        """Whether the plan includes the model, where it has a price."""
        return ALL in self.models or model in self.models
