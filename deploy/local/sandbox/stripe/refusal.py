"""Owns refusals: the errors that a request can end with, in the JSON shape and with the words of Stripe's."""

from __future__ import annotations

from http import HTTPStatus
from typing import Any, Final

Obj = dict[str, Any]

SANDBOX_PREFIX: Final = "SANDBOX: "


class Refusal(Exception):  # noqa: N818  (Stripe refuses; the word is the domain's)
    """A request that is not carried out.

    `effects_stay` says that what happened before is kept all the same, as a declined charge is.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        kind: str = "invalid_request_error",
        code: str | None = None,
        param: str | None = None,
        effects_stay: bool = False,
        more: Obj | None = None,
    ) -> None:
        super().__init__(message)
        self.status = int(status)
        self.message = message
        self.kind = kind
        self.code = code
        self.param = param
        self.effects_stay = effects_stay
        self.more = more or {}

    def body(self) -> Obj:
        """The answer's JSON."""
        error: Obj = {"type": self.kind, "message": self.message}
        if self.code is not None:
            error["code"] = self.code
            error["doc_url"] = f"https://docs.stripe.com/error-codes#{self.code.replace('_', '-')}"
        if self.param is not None:
            error["param"] = self.param
        return {"error": error | self.more}


def invalid(message: str, param: str | None = None, code: str | None = None) -> Refusal:
    """A 400: the request asks for what cannot be."""
    return Refusal(HTTPStatus.BAD_REQUEST, message, param=param, code=code)


def not_built(what: str, param: str) -> Refusal:
    """A 400 for what Stripe has and this sandbox has not; never to be mistaken for Stripe's own refusal."""
    return Refusal(
        HTTPStatus.BAD_REQUEST,
        f"{SANDBOX_PREFIX}{what} exists in Stripe, but is not built in this sandbox.",
        code="sandbox_not_built",
        param=param,
    )


def no_such(kind: str, identifier: str, param: str, *, in_path: bool = False) -> Refusal:
    """The object is not there: a 404 where the path names it, else a 400."""
    status = HTTPStatus.NOT_FOUND if in_path else HTTPStatus.BAD_REQUEST
    return Refusal(status, f"No such {_SPOKEN.get(kind, kind)}: '{identifier}'", code="resource_missing", param=param)


# How Stripe's messages name the kinds that they do not name as the object field does.
_SPOKEN: Final = {
    "payment_method": "PaymentMethod",
    "invoiceitem": "invoiceitem",
    "billing.meter": "billing meter",
    "test_helpers.test_clock": "test clock",
    "billing_portal.configuration": "configuration",
}
