"""Owns the making of the first operator's key, which no other key could ask for."""

from __future__ import annotations

import sys

import orjson

from services.kit.db import async_engine
from services.proxy.clock import utc_now
from services.proxy.keys.model import ADMIN, Key, new_key_id, new_secret, sha256
from services.proxy.keys.store import KeyStore
from services.proxy.settings import ProxySettings

_PREFIX = "tk_admin_"


async def bootstrap_admin_key(settings: ProxySettings) -> int:
    """Make an admin key of no account and print it, this once: `{"keyId": …, "key": …}`. Each run makes another."""
    engine = async_engine(settings)
    secret = new_secret(_PREFIX)
    key = Key(
        key_id=new_key_id(),
        account_id="",
        name="Bootstrap",
        key_type=ADMIN,
        prefix=_PREFIX,
        last_four=secret[-4:],
        workspace="",
        allowed_models=frozenset(),
        daily_limit_nanos=0,
        monthly_limit_nanos=0,
        requests_per_minute=0,
        tokens_per_minute=0,
        created_at=utc_now(),
    )
    try:
        await KeyStore(engine).add(
            key, key_sha256=sha256(secret), created_by="bootstrap", request_id=None, request_sha256=None
        )
    finally:
        await engine.dispose()
    sys.stdout.write(orjson.dumps({"keyId": key.key_id, "key": secret}).decode() + "\n")
    return 0
