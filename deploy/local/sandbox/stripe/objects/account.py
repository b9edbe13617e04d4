"""Owns the account that a key belongs to, and its balance."""

from __future__ import annotations

from stripe.params._account_retrieve_current_params import AccountRetrieveCurrentParams
from stripe.params._balance_retrieve_params import BalanceRetrieveParams

from deploy.local.sandbox.stripe.refusal import Obj
from deploy.local.sandbox.stripe.routes import Call, route

ACCOUNT = "acct_1SandboxTollkeeper"


@route("GET", "/v1/account", AccountRetrieveCurrentParams)
def retrieve(_call: Call) -> Obj:
    """The one account of the sandbox."""
    return {
        "id": ACCOUNT,
        "object": "account",
        "business_type": "company",
        "charges_enabled": True,
        "country": "US",
        "default_currency": "usd",
        "details_submitted": True,
        "email": "sandbox@example.com",
        "metadata": {},
        "payouts_enabled": True,
        "type": "standard",
    }


@route("GET", "/v1/balance", BalanceRetrieveParams)
def balance(call: Call) -> Obj:
    """What has been taken, less refunds, disputes and fees: all of it counts as available."""
    amounts: dict[str, int] = {}
    for movement in call.world.all("balance_transaction"):
        amounts[movement["currency"]] = amounts.get(movement["currency"], 0) + movement["net"]
    available = [
        {"amount": amount, "currency": currency, "source_types": {"card": amount}}
        for currency, amount in sorted((amounts or {"usd": 0}).items())
    ]
    pending = [{**entry, "amount": 0, "source_types": {"card": 0}} for entry in available]
    return {"object": "balance", "available": available, "livemode": False, "pending": pending}
