"""Owns how the parts that take in and apply what Stripe tells are put together."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import Engine

from services.subscriptions.clients import LedgerClient, PlanCatalogue
from services.subscriptions.clock import Clock
from services.subscriptions.settings import SubscriptionsSettings
from services.subscriptions.stripe.application import Application
from services.subscriptions.stripe.client import StripeAccess
from services.subscriptions.stripe.effects import Effects
from services.subscriptions.stripe.gathering import Gathering
from services.subscriptions.stripe.intake import Intake
from services.subscriptions.stripe.jobs import stripe_jobs
from services.subscriptions.stripe.reading import StripeReader
from services.subscriptions.stripe.reconcile import Reconciliation
from services.subscriptions.stripe.renewals import Renewals
from services.subscriptions.stripe.replay import EventLog
from services.subscriptions.worker import ScheduledJob

# Well within the lease under which it is read.
_GATHER_SECONDS = 20.0
_REPLAY_WAIT_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class EventParts:
    """Intake, application, the operators' view, and the search for what was missed."""

    engine: Engine
    configured: bool
    intake: Intake
    application: Application
    log: EventLog
    reconciliation: Reconciliation
    clock: Clock

    @classmethod
    def over(
        cls,
        engine: Engine,
        access: StripeAccess,
        plans: PlanCatalogue,
        ledger: LedgerClient,
        settings: SubscriptionsSettings,
        *,
        clock: Clock,
    ) -> EventParts:
        """The parts over these."""
        reader = StripeReader(access)
        intake = Intake(
            engine,
            secrets=settings.stripe_webhook_secrets,
            tolerance_seconds=settings.stripe_webhook_tolerance_seconds,
        )
        application = Application(
            engine,
            reader,
            Gathering(reader, plans, seconds=_GATHER_SECONDS),
            Effects(grace_days=settings.grace_days),
            renewals=Renewals(access, reader, ledger, enabled=settings.stripe_collect_renewals),
            clock=clock,
        )
        return cls(
            engine,
            access.configured,
            intake,
            application,
            EventLog(engine, application, wait_seconds=_REPLAY_WAIT_SECONDS),
            Reconciliation(engine, reader, intake, application, clock=clock),
            clock,
        )

    def jobs(self, settings: SubscriptionsSettings) -> list[ScheduledJob]:
        """The background jobs."""
        return stripe_jobs(
            self.engine,
            settings,
            configured=self.configured,
            application=self.application,
            reconciliation=self.reconciliation,
            clock=self.clock,
        )
