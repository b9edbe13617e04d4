"""Owns idempotency keys: the first answer to a key is every answer to it, for a day.

Source: docs.stripe.com/api/idempotent_requests.
"""

from __future__ import annotations

import hashlib
from http import HTTPStatus
from typing import Final

import orjson

from deploy.local.sandbox.stripe.refusal import Obj, Refusal
from deploy.local.sandbox.stripe.store import Transaction

KEPT: Final = "_replay"
_KEPT_SECONDS: Final = 24 * 3600
_LONGEST_KEY: Final = 255


def fingerprint(method: str, path: str, params: Obj) -> str:
    """What makes two requests the same."""
    told = orjson.dumps([method, path, params], option=orjson.OPT_SORT_KEYS)
    return hashlib.sha256(told).hexdigest()


def replay(transaction: Transaction, key: str, request: str, path: str, now: float) -> tuple[int, Obj] | None:
    """The first answer to this key, or None where it has not been answered in the last day.

    Raises:
        Refusal: the key is too long, or came with another request.
    """
    if len(key) > _LONGEST_KEY:
        raise Refusal(
            HTTPStatus.BAD_REQUEST,
            f"Idempotency keys may have at most {_LONGEST_KEY} characters.",
            kind="idempotency_error",
        )
    kept = transaction.get(KEPT, key)
    if kept is None or kept["created"] < now - _KEPT_SECONDS:
        return None
    if kept["request"] != request:
        what = "parameters" if kept["path"] == path else f"endpoint they were first used for ('{kept['path']}')"
        words = "with the same parameters they were first used with" if what == "parameters" else f"for the same {what}"
        raise Refusal(
            HTTPStatus.BAD_REQUEST,
            f"Keys for idempotent requests can only be used {words}. "
            f"Try using a key other than '{key}' if you meant to execute a different request.",
            kind="idempotency_error",
        )
    return int(kept["status"]), kept["body"]


def keep(transaction: Transaction, key: str, request: str, path: str, *, status: int, body: Obj, now: float) -> None:
    """Keep an answer, in the transaction of its effect."""
    kept: Obj = {"id": key, "request": request, "path": path, "status": status, "body": body, "created": now}
    transaction.remove(KEPT, key)
    transaction.put(KEPT, kept)


def in_use(key: str) -> Refusal:
    """The 409 for a key whose first request is still being carried out."""
    return Refusal(
        HTTPStatus.CONFLICT,
        "There is currently another in-progress request using this Idempotent Key (that probably means you submitted "
        f"twice, and the other request is still going through): {key}. Please try again later.",
        kind="idempotency_error",
        code="idempotency_key_in_use",
    )


def forget(transaction: Transaction, now: float) -> None:
    """Let go of what is older than a day."""
    for kept in list(transaction.all(KEPT)):
        if kept["created"] >= now - _KEPT_SECONDS:
            break
        transaction.remove(KEPT, kept["id"])
