"""Owns previews: the invoice that is to come, tried out on a view of the state that is then forgotten."""

from __future__ import annotations

from deploy.local.sandbox.stripe.engine import standing, subscriptions
from deploy.local.sandbox.stripe.engine.clock import job
from deploy.local.sandbox.stripe.engine.events import emit
from deploy.local.sandbox.stripe.refusal import Obj
from deploy.local.sandbox.stripe.world import World


@job("upcoming")
def _upcoming(world: World, identifier: str, _due: int) -> None:
    found = world.find("subscription", identifier)
    if found is None or found["status"] not in ("active", "trialing", "past_due"):
        return
    preview = foresee(world, identifier)
    if preview is not None:
        emit(world, "invoice.upcoming", preview)


def foresee(world: World, identifier: str) -> Obj | None:
    """The invoice that the next period will begin with, as things stand; None where there will be none."""
    scratch = world.scratch()
    found = scratch.get("subscription", identifier)
    if found["status"] in standing.ENDED or subscriptions.ends_with_period(found):
        return None
    made = subscriptions.renewal(scratch, identifier, found["_period_end"])
    return as_preview(made, period_end=found["_period_end"])


def as_preview(invoice: Obj, *, period_end: int | None = None) -> Obj:
    """An invoice that was only tried out, marked as such."""
    shown = {**invoice, "id": f"upcoming_{invoice['id']}", "auto_advance": True}
    shown["lines"] = {
        **invoice["lines"],
        "data": [
            {**entry, "id": entry["id"].replace("il_", "il_tmp_", 1), "invoice": shown["id"]}
            for entry in invoice["lines"]["data"]
        ],
        "url": f"/v1/invoices/{shown['id']}/lines",
    }
    if period_end is not None:
        shown |= {"created": period_end, "next_payment_attempt": period_end + 3600}
    balance, total = invoice["starting_balance"], invoice["total"]
    shown["ending_balance"] = balance + total if total < 0 else min(0, balance + total)
    return shown
