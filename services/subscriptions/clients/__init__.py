"""Owns the other services as subscriptions sees them: pricing's plans, the ledger, the proxy.

Methods raise grpc.RpcError where a peer refuses or does not answer, except where their docstrings say more.
"""

from __future__ import annotations

from dataclasses import dataclass

from services.subscriptions.clients.ledger import LedgerClient
from services.subscriptions.clients.pricing import PlanCatalogue, PricingClient
from services.subscriptions.clients.proxy import ProxyClient

__all__ = ["LedgerClient", "Peers", "PlanCatalogue", "PricingClient", "ProxyClient"]


@dataclass(frozen=True, slots=True)
class Peers:
    """The services that deliveries go to."""

    ledger: LedgerClient
    proxy: ProxyClient
