"""Owns how the parts of subscriptions are put together, for the command line and for tests."""

from __future__ import annotations

from tollkeeper.subscriptions.v1 import billing_service_pb2_grpc, credits_service_pb2_grpc, operator_service_pb2_grpc

from services.kit.channels import sync_channel
from services.kit.db import sync_engine
from services.kit.serving import SyncServer
from services.subscriptions.clients import LedgerClient, Peers, PlanCatalogue, PricingClient, ProxyClient
from services.subscriptions.clock import Clock, utc_now
from services.subscriptions.deliverer import Deliverer
from services.subscriptions.service.billing import Billing
from services.subscriptions.service.customers import Customers
from services.subscriptions.servicer.billing import BillingServicer
from services.subscriptions.servicer.credits import CreditsServicer
from services.subscriptions.servicer.customers import CustomerServicer
from services.subscriptions.settings import Settings
from services.subscriptions.worker import BackgroundJobs


class Subscriptions:
    """The parts of one process: database engine, channels, use cases. Connects lazily; `close()` ends it."""

    def __init__(self, settings: Settings, *, clock: Clock = utc_now) -> None:
        self.settings = settings
        self.engine = sync_engine(settings)
        addresses = (settings.ledger_addr, settings.pricing_addr, settings.proxy_addr)
        self._channels = [sync_channel(address, settings) for address in addresses]
        ledger_channel, pricing_channel, proxy_channel = self._channels
        ledger, pricing = LedgerClient(ledger_channel), PricingClient(pricing_channel)
        self.plans = PlanCatalogue(pricing, fresh_seconds=settings.plan_cache_seconds)
        self.deliverer = Deliverer(
            self.engine,
            Peers(ledger, ProxyClient(proxy_channel)),
            timeout_seconds=settings.delivery_timeout_seconds,
            clock=clock,
        )
        self.customers = Customers(
            self.engine,
            self.plans,
            self.deliverer,
            inline_delivery_seconds=settings.inline_delivery_seconds,
            clock=clock,
        )
        self.billing = Billing(self.customers, self.plans, pricing, ledger, clock=clock)
        self._clock = clock

    def server(self) -> SyncServer:
        """A server of every contract of subscriptions; what is not built answers UNIMPLEMENTED. Closes the parts."""
        server = SyncServer(self.settings)
        server.on_stop(self.close)
        credits_servicer = CreditsServicer(self.customers, self.billing)
        billing_servicer = BillingServicer(self.customers, self.billing, clock=self._clock)
        customer_servicer = CustomerServicer(self.customers, clock=self._clock)
        server.register(credits_service_pb2_grpc.add_CreditsServiceServicer_to_server, credits_servicer)
        server.register(billing_service_pb2_grpc.add_BillingServiceServicer_to_server, billing_servicer)
        server.register(operator_service_pb2_grpc.add_CustomerServiceServicer_to_server, customer_servicer)
        unbuilt = (
            (
                billing_service_pb2_grpc.add_MeteringServiceServicer_to_server,
                billing_service_pb2_grpc.MeteringServiceServicer,
            ),
            (
                operator_service_pb2_grpc.add_WebhookServiceServicer_to_server,
                operator_service_pb2_grpc.WebhookServiceServicer,
            ),
            (
                operator_service_pb2_grpc.add_ReportServiceServicer_to_server,
                operator_service_pb2_grpc.ReportServiceServicer,
            ),
            (
                operator_service_pb2_grpc.add_AlertServiceServicer_to_server,
                operator_service_pb2_grpc.AlertServiceServicer,
            ),
        )
        for add_to_server, servicer in unbuilt:
            server.register(add_to_server, servicer())
        return server

    def background_jobs(self) -> BackgroundJobs:
        """The background jobs, not started."""
        return BackgroundJobs(self.engine, self.deliverer, self.customers, self.settings)

    def close(self) -> None:
        """Close channels and connections."""
        for channel in self._channels:
            channel.close()
        self.engine.dispose()
