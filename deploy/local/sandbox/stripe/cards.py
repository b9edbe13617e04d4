"""Owns the test cards: which number stands for which card, and how payments with it go.

Numbers and tokens are those of docs.stripe.com/testing.
"""

from __future__ import annotations

import dataclasses
import hashlib
from typing import Final

from deploy.local.sandbox.stripe.refusal import Obj, invalid


@dataclasses.dataclass(frozen=True, kw_only=True)
class Decline:
    """Why a card's issuer says no."""

    code: str
    message: str
    decline_code: str | None = None


DECLINED: Final = Decline(code="card_declined", decline_code="generic_decline", message="Your card was declined.")
_FUNDS: Final = Decline(
    code="card_declined", decline_code="insufficient_funds", message="Your card has insufficient funds."
)
_LOST: Final = Decline(code="card_declined", decline_code="lost_card", message="Your card was declined.")
_STOLEN: Final = Decline(code="card_declined", decline_code="stolen_card", message="Your card was declined.")
_EXPIRED: Final = Decline(code="expired_card", message="Your card has expired.")
_CVC: Final = Decline(code="incorrect_cvc", message="Your card's security code is incorrect.")
_BUSY: Final = Decline(
    code="processing_error", message="An error occurred while processing your card. Try again in a little bit."
)
AUTHENTICATION: Final = Decline(
    code="authentication_required",
    decline_code="authentication_required",
    message="Your card was declined. This transaction requires authentication.",
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Card:
    """One test card and its behaviour."""

    number: str
    brand: str = "visa"
    funding: str = "credit"
    # Refuses to be attached and every charge.
    decline: Decline | None = None
    # Refuses charges while the customer is away, renewals above all.
    decline_off_session: Decline | None = None
    # A charge with it is disputed at once, as fraudulent.
    disputed: bool = False

    @property
    def last4(self) -> str:
        """The digits that are shown."""
        return self.number[-4:]

    def shape(self) -> Obj:
        """The `card` of a payment method."""
        return {
            "brand": self.brand,
            "checks": {"address_line1_check": None, "address_postal_code_check": None, "cvc_check": "pass"},
            "country": "US",
            "display_brand": self.brand,
            "exp_month": 12,
            "exp_year": 2034,
            "fingerprint": hashlib.sha256(self.number.encode()).hexdigest()[:16],
            "funding": self.funding,
            "generated_from": None,
            "last4": self.last4,
            "networks": {"available": [self.brand], "preferred": None},
            "regulated_status": "unregulated",
            "three_d_secure_usage": {"supported": True},
            "wallet": None,
        }


CARDS: Final = {
    card.number: card
    for card in (
        Card(number="4242424242424242"),
        Card(number="4000056655665556", funding="debit"),
        Card(number="5555555555554444", brand="mastercard"),
        Card(number="378282246310005", brand="amex"),
        Card(number="6011111111111117", brand="discover"),
        Card(number="4000000000000002", decline=DECLINED),
        Card(number="4000000000009995", decline=_FUNDS),
        Card(number="4000000000009987", decline=_LOST),
        Card(number="4000000000009979", decline=_STOLEN),
        Card(number="4000000000000069", decline=_EXPIRED),
        Card(number="4000000000000127", decline=_CVC),
        Card(number="4000000000000119", decline=_BUSY),
        Card(number="4000000000000341", decline_off_session=DECLINED),
        Card(number="4000002760003184", decline_off_session=AUTHENTICATION),
        Card(number="4000000000000259", disputed=True),
    )
}

# The names under which tests pass cards where no number may go: `pm_card_visa`, `tok_visa`.
_NAMED: Final = {
    "visa": "4242424242424242",
    "visa_debit": "4000056655665556",
    "mastercard": "5555555555554444",
    "amex": "378282246310005",
    "discover": "6011111111111117",
    "chargeDeclined": "4000000000000002",
    "visa_chargeDeclined": "4000000000000002",
    "chargeDeclinedInsufficientFunds": "4000000000009995",
    "visa_chargeDeclinedInsufficientFunds": "4000000000009995",
    "visa_chargeDeclinedLostCard": "4000000000009987",
    "visa_chargeDeclinedStolenCard": "4000000000009979",
    "chargeDeclinedExpiredCard": "4000000000000069",
    "chargeDeclinedIncorrectCvc": "4000000000000127",
    "chargeDeclinedProcessingError": "4000000000000119",
    "chargeCustomerFail": "4000000000000341",
    "authenticationRequired": "4000002760003184",
    "createDispute": "4000000000000259",
}


def by_number(number: str) -> Card | None:
    """The test card of a number, spaces aside; None where there is none: real cards are never taken."""
    return CARDS.get(number.replace(" ", "").replace("-", ""))


def entered(number: str) -> Card:
    """The test card whose number somebody gives.

    Raises:
        Refusal: it is no test card's.
    """
    card = by_number(number)
    if card is None:
        raise invalid("Your card number is incorrect: use one of Stripe's test cards.", "card", "incorrect_number")
    return card


def by_name(name: str) -> Card | None:
    """The test card that `pm_card_visa` or `tok_visa` means."""
    for prefix in ("pm_card_", "tok_"):
        if name.startswith(prefix):
            number = _NAMED.get(name.removeprefix(prefix))
            return None if number is None else CARDS[number]
    return None
