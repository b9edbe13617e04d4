"""Owns the rule which calls are admitted, at which price, with which output cap. Pure: no I/O, no clock.

In this order, each with its own refusal: account suspended; provider or model not in the plan, or not for the key; no
price; larger than the plan allows. (The limits per minute, `rates.py`, and the ledger's hold come after.)

The plan's tokens per request are checked with the best guess of the input, since the bound is about four times the
real count of Latin text and would refuse what the plan means to allow; so a request at the very edge may use some more
than the plan's number. Money is held by the bound, so that no call costs more than its hold. A client's own cap that
does not fit the plan is refused; where it gave none, the cap is what fits.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Collection
from datetime import datetime
from typing import NamedTuple

from services import rating
from services.proxy.catalogue import Catalogue
from services.proxy.entitlements.model import Entitlement
from services.proxy.errors import (
    AccountSuspended,
    ModelAmbiguous,
    ModelNotAllowed,
    ModelNotPriced,
    ProviderNotAllowed,
    RequestTooLargeForPlan,
)
from services.proxy.formats.request import Request
from services.proxy.keys.model import Key

# Models of OpenAI and Perplexity that search the web in every call, for a fee besides the tokens.
_SEARCHING = re.compile(r"-search-(preview|api)|(^|/)sonar")


class Admitted(NamedTuple):
    """An admitted call: its price, and what is to be held for it.

    `service_tier` is the one that is held for, and billed where the answer names none: asking for a cheaper tier is not
    yet getting it.
    `cap` is the output cap that is wanted, for each of `choices` answers; 0 where there are none to cap (embeddings).
    `amount_nanos` and `tokens` are the most that the call can cost and use; the minima are those of the same call with
    one token for each answer.
    """

    card: rating.PriceCard
    multiplier_millionths: int
    service_tier: str
    components: frozenset[str]
    input_bound: int
    choices: int
    cap: int
    billable: bool
    amount_nanos: int
    minimum_amount_nanos: int
    tokens: int
    minimum_tokens: int

    def cap_within(self, amount_nanos: int, tokens: int) -> int:
        """The output cap, for each answer, that a hold of so much pays for: at most the one wanted, and 1 of it."""
        if self.choices == 0:
            return 0
        cap = min(self.cap, (tokens - self.input_bound) // self.choices)
        if self.billable and amount_nanos < self.amount_nanos:
            affordable = rating.affordable_output_tokens(
                self.card,
                amount_nanos,
                self.input_bound,
                service_tier=self.service_tier,
                multiplier_millionths=self.multiplier_millionths,
                components=self.components,
            )
            cap = min(cap, affordable // self.choices)
        assert cap >= min(1, self.cap), "the ledger held less than the minimum"
        return cap

    def cost_of_more(self, output_tokens: int) -> int:
        """The most that so many output tokens more can cost, in nanos; 0 where the call is not paid for."""
        if not self.billable:
            return 0
        most, less = rating.most_billed(
            self.card,
            self.input_bound,
            [self.cap * self.choices + output_tokens, self.cap * self.choices],
            service_tier=self.service_tier,
            multiplier_millionths=self.multiplier_millionths,
            components=self.components,
        )
        return most - less


def may_call(key: Key, entitlement: Entitlement, model: str) -> bool:
    """Whether plan and key allow the model, whoever provides it."""
    return entitlement.allows_model(model) and (not key.allowed_models or model in key.allowed_models)


def choose_card(
    key: Key,
    entitlement: Entitlement,
    catalogue: Catalogue,
    model: str,
    now: datetime,
    *,
    provider: str = "",
    owner: str = "",
    askable: Collection[str] = (),
) -> rating.PriceCard:
    """The price of the model for the account, and with it whose model it is: `provider`'s where one is named.

    Else the `owner` of the wire format, where the plan has it; else the only one that has the model; of several,
    the only one that can be asked in this form (`askable`). Raises AccountSuspended, ModelNotAllowed,
    ProviderNotAllowed, ModelNotPriced, ModelAmbiguous.
    """
    if not entitlement.active:
        raise AccountSuspended("the account is suspended", account_id=entitlement.account_id)
    if provider and not entitlement.allows_provider(provider):
        raise ProviderNotAllowed(f"the plan does not include {provider}", provider=provider, plan=entitlement.plan_id)
    if not may_call(key, entitlement, model):
        raise ModelNotAllowed(
            f"this key may not call {model}; GET /v1/models lists what it may", model=model, plan=entitlement.plan_id
        )
    having = catalogue.providers_of(model, now)
    if provider:
        having = [name for name in having if name == provider]
    if not having:
        named = f"{provider}/{model}" if provider else model
        raise ModelNotPriced(
            f"{named} has no price, so it is not served; GET /v1/models lists what this key may call", model=model
        )
    allowed = [name for name in having if entitlement.allows_provider(name)]
    if not allowed:
        raise ProviderNotAllowed(
            f"the plan does not include {having[0]}", provider=having[0], model=model, plan=entitlement.plan_id
        )
    chosen = _chosen(allowed, model, owner, askable)
    card = catalogue.card(entitlement.account_id, chosen, model, now)
    if card is None:
        raise ModelNotPriced(f"{model} has no price", model=model)
    return card


def _chosen(allowed: list[str], model: str, owner: str, askable: Collection[str]) -> str:
    if owner in allowed:
        return owner
    if len(allowed) > 1:
        allowed = [name for name in allowed if name in askable] or allowed
    if len(allowed) > 1:
        raise ModelAmbiguous(f"several providers have {model}", model=model, providers=", ".join(allowed))
    return allowed[0]


def admit(
    key: Key, entitlement: Entitlement, card: rating.PriceCard, request: Request, *, default_cap: int
) -> Admitted:
    """What to hold for a call at this price. Raises RequestTooLargeForPlan; ModelNotPriced where a part has no rate."""
    if _SEARCHING.search(card.model) and card.rate("request", request.service_tier, 0) is None:
        raise ModelNotPriced(f"{card.model} has no price for its searches", model=card.model, component="request")
    cap = _cap(entitlement, card, request, default_cap)
    billable = key.billable and not entitlement.metered
    input_bound = request.input_within(card.max_input_tokens)
    outputs = [each * request.choices for each in (cap, min(cap, request.least_cap))]
    try:
        tier, (most, least) = _dearer_tier(card, request, input_bound, outputs, entitlement.multiplier_millionths)
    except rating.ComponentNotPriced as error:
        raise ModelNotPriced(str(error), model=card.model, component=error.component) from error
    except rating.CostTooLarge as error:
        raise RequestTooLargeForPlan("the call could cost more than can be counted", model=card.model) from error
    return Admitted(
        card=card,
        multiplier_millionths=entitlement.multiplier_millionths,
        service_tier=tier,
        components=request.components,
        input_bound=input_bound,
        choices=request.choices,
        cap=cap,
        billable=billable,
        amount_nanos=most if billable else 0,
        minimum_amount_nanos=least if billable else 0,
        tokens=input_bound + cap * request.choices,
        minimum_tokens=input_bound + min(cap, request.least_cap) * request.choices,
    )


def _dearer_tier(
    card: rating.PriceCard, request: Request, input_bound: int, outputs: list[int], multiplier_millionths: int
) -> tuple[str, tuple[int, ...]]:
    """The tier that was asked for, or the standard one where that is dearer; and the most that `outputs` cost in it.

    A provider may serve a cheaper tier's request in the standard one, or not know of tiers at all. Raises
    ComponentNotPriced where the tier that was asked for has no price, CostTooLarge.
    """

    def most_billed(tier: str) -> tuple[int, ...]:
        return rating.most_billed(
            card,
            input_bound,
            outputs,
            service_tier=tier,
            multiplier_millionths=multiplier_millionths,
            components=request.components,
        )

    asked = most_billed(request.service_tier)
    if request.service_tier != rating.STANDARD:
        with contextlib.suppress(rating.ComponentNotPriced):
            if (standard := most_billed(rating.STANDARD)) > asked:
                return rating.STANDARD, standard
    return request.service_tier, asked


def _cap(entitlement: Entitlement, card: rating.PriceCard, request: Request, default_cap: int) -> int:
    most = entitlement.max_tokens_per_request
    if request.choices == 0:
        if most and request.input_guess > most:
            raise _too_large(request.input_guess, most)
        return 0
    room = (most - request.input_guess) // request.choices if most else 0
    if most and (room < request.least_cap or (request.cap is not None and request.cap > room)):
        raise _too_large(request.input_guess + (request.cap or 1) * request.choices, most)
    if request.cap is not None:
        return request.cap
    return min([limit for limit in (room, card.max_output_tokens) if limit > 0] or [default_cap])


def _too_large(asked: int, most: int) -> RequestTooLargeForPlan:
    return RequestTooLargeForPlan(
        f"the request is of about {asked} tokens, input and output cap together; the plan allows {most}",
        tokens=asked,
        max_tokens_per_request=most,
    )
