"""Owns the counts of tokens that clients ask for before a call. They cost nothing, so nothing is held or billed.

Claude Code and others who cannot have one send the whole context as a message of one token instead, which is billed.
"""

from __future__ import annotations

import time

from pyreqwest.exceptions import PyreqwestError

from services.kit.errors import HTTP_STATUS_KEY, RETRY_AFTER_KEY
from services.proxy import admission
from services.proxy.calls.delivery import Head, Metadata
from services.proxy.calls.life import Parts
from services.proxy.clock import utc_now
from services.proxy.errors import AccountNotFound, FormNotSpoken, KeyTypeNotAllowed, ProviderUnavailable
from services.proxy.formats.counting import CountRequest
from services.proxy.keys.model import ADMIN, Key
from services.proxy.rates import REQUESTS, Limit
from services.proxy.upstream import ProviderRefusalError, UnreadAnswerError, failure

_MAX_ANSWER_BYTES = 64 * 1024


async def count(parts: Parts, key: Key, request: CountRequest, headers: Metadata) -> tuple[Head, bytes]:
    """Ask the model's provider; its answer, or its own refusal.

    Admitted as a call is: account, plan, key, price, and as many counts in a minute as calls, each for itself. Raises
    those refusals, and what `Upstreams.post` raises of its own.
    """
    if key.key_type == ADMIN:
        raise KeyTypeNotAllowed("an admin key calls no models", key_type=key.key_type)
    entitlement = await parts.entitlements.get(key.account_id)
    if entitlement is None:
        raise AccountNotFound("no entitlement of this account is known", account_id=key.account_id)
    forms = frozenset((request.of.form,))
    card = admission.choose_card(
        key,
        entitlement,
        parts.catalogue.current,
        request.model,
        utc_now(),
        owner=request.of.owner,
        askable=parts.upstreams.speaking(forms),
    )
    provider = parts.upstreams.provider(card.provider)
    if not provider.forms & forms:
        raise FormNotSpoken(
            f"{card.model} of {card.provider} is not counted in this form", provider=card.provider, model=card.model
        )
    limits = (
        Limit(key.account_id, f"key:{key.limit_subject}:counts", REQUESTS, key.requests_per_minute, 1),
        Limit(key.account_id, "account:counts", REQUESTS, entitlement.requests_per_minute, 1),
    )
    standing = (await parts.rates.take(limits)).headers()
    outgoing = request.outgoing(provider, headers)
    deadline = time.monotonic() + parts.settings.upstream_total_seconds
    try:
        async with parts.upstreams.post(provider, outgoing, deadline=deadline, account=key.account_id) as answer:
            return Head(standing, answer.content_type), await answer.whole(_MAX_ANSWER_BYTES)
    except ProviderRefusalError as refusal:
        metadata = [(HTTP_STATUS_KEY, str(refusal.status)), *standing]
        if refusal.retry_after:
            metadata.append((RETRY_AFTER_KEY, refusal.retry_after))
        return Head(tuple(metadata), refusal.content_type), refusal.body
    except UnreadAnswerError as error:
        raise ProviderUnavailable("the provider's answer was not understood", provider=provider.name) from error
    except PyreqwestError as error:
        raise failure(provider.name, error) from error
