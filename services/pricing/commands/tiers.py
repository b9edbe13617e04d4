"""Owns `tiers`: what plans at given prices and margin earn, before and after Stripe's fee."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable
from pathlib import Path

from google.protobuf.json_format import MessageToDict
from tollkeeper.pricing.v1 import plan_service_pb2

from services.kit.amounts import AmountError, parse_usd
from services.kit.command import Command, CommandError
from services.pricing import wire
from services.pricing.commands.terminal import console, dollars, percent, print_json, table
from services.pricing.economics import ANNUAL_DISCOUNT_BASIS_POINTS, DEFAULT_MARGIN_BASIS_POINTS, Tier, tier
from services.pricing.model import BASIS_POINTS, MAX_PRICE_NANOS, SUBSCRIPTION
from services.pricing.settings import PricingSettings
from services.pricing.shipped import FOLDER, CatalogueFileError, load_plans

_SHARE = re.compile(r"(\d{1,3})(?:\.(\d{1,4}))?")
_COLUMNS = (
    "plan",
    "price",
    "API budget",
    "credits",
    "profit",
    "margin",
    "Stripe fee",
    "net profit",
    "net margin",
    "a year",
)


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--margin", metavar="PERCENT", help="80 or 0.80, for all tiers; default: the plan's own, 80 with --price"
    )
    parser.add_argument(
        "--price",
        action="append",
        default=[],
        metavar="PLAN=USD",
        help="a tier at a monthly price, may be repeated; default: the subscription plans of the plan file",
    )
    parser.add_argument("--plans", type=Path, default=FOLDER / "plans.toml", metavar="FILE", help="default: as shipped")
    parser.add_argument("--json", action="store_true", help="print JSON")


def _run(chosen: argparse.Namespace, _settings: Callable[[], PricingSettings]) -> int:
    margin = None if chosen.margin is None else _margin(chosen.margin)
    tiers = [_of_price(text, margin) for text in chosen.price] or _of_plans(chosen.plans, margin)
    if chosen.json:
        message = plan_service_pb2.GenerateTiersResponse(tiers=map(wire.tier_to_proto, tiers))
        print_json(MessageToDict(message, always_print_fields_with_no_presence=True))
    else:
        console().print(table("Tiers, a month", _COLUMNS, map(_row, tiers)))
    return 0


def _of_plans(file: Path, margin: int | None) -> list[Tier]:
    try:
        plans = load_plans(file)
    except CatalogueFileError as error:
        raise CommandError(str(error)) from error
    return [
        tier(
            plan.plan_id,
            plan.price_nanos,
            plan.margin_basis_points if margin is None else margin,
            plan.annual_discount_basis_points,
        )
        for plan in plans
        if plan.kind == SUBSCRIPTION and plan.price_nanos
    ]


def _of_price(text: str, margin: int | None) -> Tier:
    name, _, usd = text.partition("=")
    try:
        price = parse_usd(usd)
    except AmountError as error:
        raise CommandError(f"--price {text}: the amount {error}") from error
    if not name or price > MAX_PRICE_NANOS:
        raise CommandError(f"--price {text}: must be PLAN=USD, such as pro=99, of at most $100 million")
    return tier(name, price, DEFAULT_MARGIN_BASIS_POINTS if margin is None else margin, ANNUAL_DISCOUNT_BASIS_POINTS)


def _margin(text: str) -> int:
    """Basis points of a percentage, or of a share below 1: 80, 12.5 and 0.80."""
    match = _SHARE.fullmatch(text)
    if match is None:
        raise CommandError("--margin must be a percentage such as 80, or a share such as 0.80")
    whole, decimals = int(match[1]), match[2] or ""
    places = 2 if whole else 4  # a percentage has two decimals in basis points, a share four
    if len(decimals.rstrip("0")) > places:
        raise CommandError(f"--margin {text}: a basis point is the least")
    found = whole * 100 + int(decimals[:places].ljust(places, "0"))
    if found >= BASIS_POINTS:
        raise CommandError("--margin must be below 100 %")
    return found


def _row(one: Tier) -> tuple[str, ...]:
    return (
        one.plan_id,
        dollars(one.price_nanos),
        dollars(one.api_budget_nanos),
        f"{one.credits:,}",
        dollars(one.profit_nanos),
        percent(one.margin_basis_points),
        dollars(one.stripe_fee_nanos),
        dollars(one.net_profit_nanos),
        percent(one.net_margin_basis_points),
        dollars(one.annual_price_nanos),
    )


TIERS: Command[PricingSettings] = Command("tiers", "say what plans at given prices and margin earn", _arguments, _run)
