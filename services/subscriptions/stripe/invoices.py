"""Owns the reading of an account's invoices: those made, and the one to come."""

from __future__ import annotations

from dataclasses import dataclass

import stripe

from services.subscriptions.errors import InvoiceNotFound
from services.subscriptions.stripe.client import StripeAccess, is_missing, stripe_errors
from services.subscriptions.stripe.parts import StripeParts

# Lines shown of one invoice; one of a metered plan has six, each change of plan adds two.
_MOST_LINES = 100

_NONE_TO_COME = "invoice_upcoming_none"


@dataclass(frozen=True, slots=True)
class InvoiceWithLines:
    """An invoice and what it is made of."""

    invoice: stripe.Invoice
    lines: tuple[stripe.InvoiceLineItem, ...]


@dataclass(frozen=True, slots=True)
class InvoicePage:
    """Invoices, newest first; `next_after` is empty on the last page."""

    invoices: tuple[InvoiceWithLines, ...]
    next_after: str


class Invoices:
    """An account's invoices, which are those of its own customer, and of nobody else's."""

    def __init__(self, parts: StripeParts) -> None:
        self._parts = parts
        self._access = parts.access

    def list(self, account_id: str, *, page_size: int, after: str) -> InvoicePage:
        """A page of invoices from beyond the id `after` on. Raises AccountNotFound, what `stripe_errors` says."""
        client = self._access.client
        self._parts.customers.get(account_id)
        customer_id = self._parts.stripe_customers.find(account_id)
        if customer_id is None:
            return InvoicePage((), "")
        params: stripe.params.InvoiceListParams = {"customer": customer_id, "limit": page_size}
        if after:
            params["starting_after"] = after
        with stripe_errors("list invoices", account_id=account_id):
            try:
                listed = client.v1.invoices.list(params=params)
            except stripe.InvalidRequestError as error:
                if is_missing(error):  # the page token's invoice is not there any more, or is somebody else's
                    return InvoicePage((), "")
                raise
            own = [invoice for invoice in listed.data if _customer_of(invoice) == customer_id]
            found = tuple(self._with_lines(invoice) for invoice in own)
        return InvoicePage(found, listed.data[-1].id if listed.has_more and listed.data else "")

    def upcoming(self, account_id: str) -> InvoiceWithLines:
        """The invoice to come. Raises AccountNotFound, InvoiceNotFound, what `stripe_errors` says."""
        _ = self._access.client
        self._parts.customers.get(account_id)
        customer_id = self._parts.stripe_customers.find(account_id)
        subscription = self._parts.current.find(customer_id) if customer_id is not None else None
        if customer_id is None or subscription is None:
            raise InvoiceNotFound(f"account {account_id} has no subscription")
        previewed = preview(self._access, {"customer": customer_id, "subscription": subscription.id}, account_id)
        return with_lines(previewed)

    def _with_lines(self, invoice: stripe.Invoice) -> InvoiceWithLines:
        if not invoice.lines.has_more:
            return with_lines(invoice)
        listed = self._access.client.v1.invoices.line_items.list(invoice.id, params={"limit": _MOST_LINES})
        return InvoiceWithLines(invoice, tuple(listed.data))


def with_lines(invoice: stripe.Invoice) -> InvoiceWithLines:
    """An invoice with the lines that came with it."""
    return InvoiceWithLines(invoice, tuple(invoice.lines.data))


def preview(access: StripeAccess, params: stripe.params.InvoiceCreatePreviewParams, account_id: str) -> stripe.Invoice:
    """An invoice as it would be. Raises InvoiceNotFound where there would be none, what `stripe_errors` says."""
    with stripe_errors("preview an invoice", account_id=account_id):
        try:
            return access.client.v1.invoices.create_preview(params=params)
        except stripe.InvalidRequestError as error:
            if error.code == _NONE_TO_COME:
                raise InvoiceNotFound("nothing further will be invoiced") from error
            raise


def _customer_of(invoice: stripe.Invoice) -> str | None:
    customer = invoice.customer
    return customer.id if isinstance(customer, stripe.Customer) else customer
