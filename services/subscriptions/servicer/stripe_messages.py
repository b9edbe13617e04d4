"""Owns the writing of what Stripe says: subscriptions and invoices → proto. Cents become nanos here."""

from __future__ import annotations

import stripe
from google.protobuf.timestamp_pb2 import Timestamp
from tollkeeper.subscriptions.v1 import billing_service_pb2 as billing_pb
from tollkeeper.subscriptions.v1 import resources_pb2 as pb

from services.kit.times import timestamp
from services.subscriptions.stripe.current import SubscriptionView
from services.subscriptions.stripe.invoices import InvoiceWithLines
from services.subscriptions.stripe.model import Mirror
from services.subscriptions.stripe.names import NANOS_PER_CENT
from services.subscriptions.stripe.recharge_rules import RechargeRule


def _of_seconds(seconds: int) -> Timestamp:
    return Timestamp(seconds=seconds)


def subscription(view: SubscriptionView | Mirror) -> pb.Subscription:
    """A subscription as Stripe has it now, or as it last told of it."""
    return pb.Subscription(
        account_id=view.account_id,
        plan=view.plan_id,
        status=view.status,
        interval=view.interval,
        price_nanos=view.price_nanos,
        current_period_start=timestamp(view.period_start),
        current_period_end=timestamp(view.period_end),
        cancel_at_period_end=view.cancel_at_period_end,
        trial_end=timestamp(view.trial_end),
        stripe_subscription_id=view.subscription_id,
        grace_until=timestamp(view.grace_until),
        pending_plan=view.pending_plan_id,
    )


def auto_recharge(rule: RechargeRule) -> billing_pb.AutoRecharge:
    """A rule of auto-recharge."""
    return billing_pb.AutoRecharge(
        enabled=rule.enabled,
        threshold_nanos=rule.threshold_nanos,
        amount_nanos=rule.amount_nanos,
        monthly_cap_nanos=rule.monthly_cap_nanos,
    )


def invoice(found: InvoiceWithLines) -> pb.Invoice:
    """An invoice with its lines. A preview has no number, and no page."""
    made = found.invoice
    return pb.Invoice(
        invoice_id=made.id or "",
        number=made.number or "",
        status=made.status or "",
        total_nanos=made.total * NANOS_PER_CENT,
        amount_due_nanos=made.amount_due * NANOS_PER_CENT,
        amount_paid_nanos=made.amount_paid * NANOS_PER_CENT,
        currency=made.currency,
        created_at=_of_seconds(made.created),
        period_start=_of_seconds(made.period_start),
        period_end=_of_seconds(made.period_end),
        hosted_invoice_url=made.hosted_invoice_url or "",
        invoice_pdf_url=made.invoice_pdf or "",
        lines=[_line(line) for line in found.lines],
    )


def _line(line: stripe.InvoiceLineItem) -> pb.InvoiceLine:
    return pb.InvoiceLine(
        description=line.description or "",
        amount_nanos=line.amount * NANOS_PER_CENT,
        quantity=line.quantity or 0,
        proration=_is_proration(line),
        period_start=_of_seconds(line.period.start),
        period_end=_of_seconds(line.period.end),
    )


def _is_proration(line: stripe.InvoiceLineItem) -> bool:
    if line.parent is None:
        return False
    details = line.parent.subscription_item_details or line.parent.invoice_item_details
    return details is not None and details.proration
