"""Owns how the parts of subscriptions are put together, for the command line and for tests."""

from __future__ import annotations

from tollkeeper.subscriptions.v1 import billing_service_pb2_grpc, credits_service_pb2_grpc, operator_service_pb2_grpc

from services.kit.channels import sync_channel
from services.kit.db import sync_engine
from services.kit.serving import SyncServer
from services.subscriptions.alerts.jobs import alert_jobs
from services.subscriptions.alerts.service import Alerts
from services.subscriptions.alerts.servicer import AlertServicer
from services.subscriptions.alerts.watching import Views
from services.subscriptions.clients import LedgerClient, Peers, PlanCatalogue, PricingClient, ProxyClient
from services.subscriptions.clock import Clock, utc_now
from services.subscriptions.deliverer import Deliverer
from services.subscriptions.metering.billing import KeptBillingRecords
from services.subscriptions.metering.counters import UseCounters, redis_client
from services.subscriptions.metering.feed import LedgerFeed
from services.subscriptions.metering.jobs import metering_jobs
from services.subscriptions.metering.reporting import MeterReporter
from services.subscriptions.metering.service import BillingRecords, Metering
from services.subscriptions.metering.servicer import MeteringServicer
from services.subscriptions.metering.standing import LedgerStandings
from services.subscriptions.metering.stripe_meters import StripeMeterReporter
from services.subscriptions.reports.service import Reports
from services.subscriptions.reports.servicer import ReportServicer
from services.subscriptions.reports.usage import LedgerUsage
from services.subscriptions.service.billing import Billing
from services.subscriptions.service.customers import Customers
from services.subscriptions.service.following import LedgerFollowing
from services.subscriptions.servicer.billing import BillingServicer
from services.subscriptions.servicer.credits import CreditsServicer
from services.subscriptions.servicer.customers import CustomerServicer
from services.subscriptions.servicer.webhooks import WebhookServicer
from services.subscriptions.settings import SubscriptionsSettings
from services.subscriptions.stripe.client import StripeAccess, stripe_client
from services.subscriptions.stripe.event_parts import EventParts
from services.subscriptions.stripe.parts import StripeParts
from services.subscriptions.stripe.use_cases import StripeUseCases
from services.subscriptions.worker import BackgroundJobs, ScheduledJob

# Goes through the ledger's accounts.
_FOLLOW_SECONDS = 30.0


class Subscriptions:
    """The parts of one process: database engine, channels, use cases. Connects lazily; `close()` ends it."""

    def __init__(
        self,
        settings: SubscriptionsSettings,
        *,
        clock: Clock = utc_now,
        billing_records: BillingRecords | None = None,
        meter_reporter: MeterReporter | None = None,
    ) -> None:
        self.settings = settings
        self.engine = sync_engine(settings)
        addresses = (settings.ledger_addr, settings.pricing_addr, settings.proxy_addr)
        self._channels = [sync_channel(address, settings) for address in addresses]
        ledger_channel, pricing_channel, proxy_channel = self._channels
        self.ledger = ledger = LedgerClient(ledger_channel)
        pricing = PricingClient(pricing_channel)
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
        self.following = LedgerFollowing(self.engine, ledger, clock=clock)
        self.stripe = StripeAccess(stripe_client(settings))
        self.stripe_events = EventParts.over(self.engine, self.stripe, self.plans, ledger, settings, clock=clock)
        stripe_parts = StripeParts.over(self.engine, self.stripe, self.customers, self.plans, ledger, clock=clock)
        self.stripe_use_cases = StripeUseCases.over(stripe_parts, self.stripe_events.application, settings)
        self.counters = UseCounters(redis_client(settings.redis_url), seconds=settings.quota_cache_seconds)
        self.feed = LedgerFeed(ledger_channel)
        self.billing_records = billing_records or KeptBillingRecords(self.engine)
        if meter_reporter is None and self.stripe.configured:
            meter_reporter = StripeMeterReporter(self.stripe.client)
        self.meter_reporter = meter_reporter
        self.metering = Metering(
            self.engine,
            self.customers,
            self.plans,
            self.counters,
            billing=self.billing_records,
            standings=LedgerStandings(ledger),
            clock=clock,
        )
        self.billing = Billing(self.customers, self.plans, pricing, ledger, self.metering, clock=clock)
        usage = LedgerUsage(ledger_channel)
        self.reports = Reports(self.engine, self.customers, self.plans, ledger, usage, clock=clock)
        self._clock = clock

    def server(self) -> SyncServer:
        """A server of every contract of subscriptions. Closes the parts when it stops."""
        server = SyncServer(self.settings)
        server.on_stop(self.close)
        credits_servicer = CreditsServicer(self.customers, self.billing, self.stripe_use_cases, self.settings)
        billing_servicer = BillingServicer(
            self.customers, self.billing, self.stripe_use_cases, self.reports, self.settings, clock=self._clock
        )
        customer_servicer = CustomerServicer(self.customers, self.reports, clock=self._clock)
        server.register(credits_service_pb2_grpc.add_CreditsServiceServicer_to_server, credits_servicer)
        server.register(billing_service_pb2_grpc.add_BillingServiceServicer_to_server, billing_servicer)
        server.register(operator_service_pb2_grpc.add_CustomerServiceServicer_to_server, customer_servicer)
        metering_servicer = MeteringServicer(self.metering, clock=self._clock)
        server.register(billing_service_pb2_grpc.add_MeteringServiceServicer_to_server, metering_servicer)
        told = self.stripe_events
        webhook_servicer = WebhookServicer(told.intake, told.log, told.reconciliation, clock=self._clock)
        server.register(operator_service_pb2_grpc.add_WebhookServiceServicer_to_server, webhook_servicer)
        alerts = Alerts(self.engine, private_addresses=self.settings.alert_private_addresses, clock=self._clock)
        server.register(operator_service_pb2_grpc.add_AlertServiceServicer_to_server, AlertServicer(alerts))
        report_servicer = ReportServicer(self.reports)
        server.register(operator_service_pb2_grpc.add_ReportServiceServicer_to_server, report_servicer)
        return server

    def background_jobs(self) -> BackgroundJobs:
        """The background jobs, not started."""
        further = metering_jobs(
            self.engine,
            self.settings,
            plans=self.plans,
            feed=self.feed,
            counters=self.counters,
            billing=self.billing_records,
            reporter=self.meter_reporter,
            clock=self._clock,
        )
        further.append(ScheduledJob("follow-ledger", self.following, _FOLLOW_SECONDS))
        further += self.stripe_use_cases.jobs(self.settings, configured=self.stripe.configured)
        further += self.stripe_events.jobs(self.settings)
        further += alert_jobs(
            self.engine, self.settings, views=Views(self.ledger, self.metering, self.plans), clock=self._clock
        )
        return BackgroundJobs(self.engine, self.deliverer, self.customers, self.settings, further)

    def close(self) -> None:
        """Close channels and connections."""
        for channel in self._channels:
            channel.close()
        self.counters.close()
        self.engine.dispose()
