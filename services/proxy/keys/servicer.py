"""Owns the passage between KeyService's messages and keys, and what is checked of a request."""

from __future__ import annotations

import hashlib
from datetime import datetime
from typing import Any

from tollkeeper.proxy.v1 import key_service_pb2 as pb
from tollkeeper.proxy.v1 import key_service_pb2_grpc, resources_pb2

from services.kit.amounts import request_amount
from services.kit.call import current_identity
from services.kit.paging import page_position, page_token
from services.kit.replays import tell_replayed
from services.kit.times import moment_of, timestamp
from services.kit.validation import Violations
from services.proxy.clock import utc_now
from services.proxy.keys.model import (
    ADMIN,
    DEFAULT_PREFIX,
    KEY_TYPES,
    PREFIX,
    PREFIX_RULE,
    STANDARD,
    STATUSES,
    Key,
)
from services.proxy.keys.service import Keys, KeyWish

_MAX_NAME_CHARS = 200
_MAX_MODEL_CHARS = 200
_MAX_ALLOWED_MODELS = 100
_MAX_PER_MINUTE = 2**31 - 1
_MAX_LIMIT_NANOS = 10**18  # the ledger's largest amount
_DEFAULT_PAGE_SIZE = 100
_DEFAULT_OVERLAP_SECONDS = 86_400
_MAX_OVERLAP_SECONDS = 30 * 86_400


class KeyServicer(key_service_pb2_grpc.KeyServiceServicer):
    """KeyService."""

    def __init__(self, keys: Keys) -> None:
        self._keys = keys

    async def CreateKey(self, request: pb.CreateKeyRequest, context: Any) -> pb.CreateKeyResponse:
        """See the contract."""
        violations = Violations()
        violations.identifier("account_id", request.account_id, required=request.key_type != ADMIN)
        violations.identifier("request_id", request.request_id, required=False)
        # Before the rest is checked: a repeat is answered even where its `expires_at` has passed meanwhile.
        digest = _digest(request)
        if request.request_id and not violations.found:
            before = await self._keys.made_for(request.account_id, request.request_id, digest)
            if before is not None:
                return _replayed(before, context)
        wish = _wish(request, violations)
        violations.raise_if_any()
        key, secret = await self._keys.create(
            wish,
            created_by=current_identity().subject,
            request_id=request.request_id,
            request_sha256=digest,
        )
        if not secret:
            return _replayed(key, context)
        return pb.CreateKeyResponse(key_id=key.key_id, key=secret, record=message(key))

    async def GetKey(self, request: pb.GetKeyRequest, _context: Any) -> resources_pb2.Key:
        """See the contract."""
        violations = Violations()
        violations.identifier("key_id", request.key_id)
        violations.raise_if_any()
        return message(await self._keys.get(request.key_id))

    async def ListKeys(self, request: pb.ListKeysRequest, _context: Any) -> pb.ListKeysResponse:
        """See the contract."""
        violations = Violations()
        violations.identifier("account_id", request.account_id, required=False)
        if request.status:
            violations.one_of("status", request.status, STATUSES)
        size = violations.page_size("page_size", request.page_size, default=_DEFAULT_PAGE_SIZE)
        before = page_position(violations, request, datetime, str)
        violations.raise_if_any()
        found, more = await self._keys.page(
            account_id=request.account_id, status=request.status, before=before, size=size
        )
        return pb.ListKeysResponse(
            keys=[message(key) for key in found],
            next_page_token=page_token(request, found[-1].created_at, found[-1].key_id) if more else "",
        )

    async def RotateKey(self, request: pb.RotateKeyRequest, context: Any) -> pb.CreateKeyResponse:
        """See the contract."""
        violations = Violations()
        violations.identifier("key_id", request.key_id)
        violations.identifier("request_id", request.request_id, required=False)
        overlap = request.overlap_seconds if request.HasField("overlap_seconds") else _DEFAULT_OVERLAP_SECONDS
        violations.between("overlap_seconds", overlap, 0, _MAX_OVERLAP_SECONDS)
        violations.raise_if_any()
        key, secret = await self._keys.rotate(
            request.key_id,
            overlap_seconds=overlap,
            created_by=current_identity().subject,
            request_id=request.request_id,
            request_sha256=_digest(request),
        )
        if not secret:
            return _replayed(key, context)
        return pb.CreateKeyResponse(key_id=key.key_id, key=secret, record=message(key))

    async def RevokeKey(self, request: pb.RevokeKeyRequest, _context: Any) -> resources_pb2.Key:
        """See the contract."""
        violations = Violations()
        violations.identifier("key_id", request.key_id)
        violations.raise_if_any()
        return message(await self._keys.revoke(request.key_id))


def _digest(request: pb.CreateKeyRequest | pb.RotateKeyRequest) -> bytes:
    """What tells one body from another. No two kinds of request are alike: each has its request id in another field."""
    return hashlib.sha256(request.SerializeToString(deterministic=True)).digest()


def _replayed(key: Key, context: Any) -> pb.CreateKeyResponse:
    tell_replayed(context)
    return pb.CreateKeyResponse(key_id=key.key_id, record=message(key))


def _wish(request: pb.CreateKeyRequest, violations: Violations) -> KeyWish:
    violations.text("name", request.name, max_length=_MAX_NAME_CHARS)
    key_type = violations.one_of("key_type", request.key_type or STANDARD, KEY_TYPES)
    prefix = request.prefix or DEFAULT_PREFIX
    if PREFIX.fullmatch(prefix) is None:
        violations.add("prefix", PREFIX_RULE)
    violations.identifier("workspace", request.workspace, required=False)
    violations.count("allowed_models", request.allowed_models, at_most=_MAX_ALLOWED_MODELS)
    for number, model in enumerate(request.allowed_models[:_MAX_ALLOWED_MODELS]):
        violations.text(f"allowed_models[{number}]", model, max_length=_MAX_MODEL_CHARS, required=True)
    daily, monthly = (_limit(request, violations, window) for window in ("daily", "monthly"))
    if not request.account_id:
        for field, amount in (("daily_limit_nanos", daily), ("monthly_limit_nanos", monthly)):
            if amount:
                violations.add(field, "a key of no account spends nothing, so it has no limit")
    violations.between("requests_per_minute", request.requests_per_minute, 0, _MAX_PER_MINUTE)
    violations.non_negative("tokens_per_minute", request.tokens_per_minute)
    return KeyWish(
        account_id=request.account_id,
        name=request.name,
        key_type=key_type,
        prefix=prefix,
        workspace=request.workspace,
        allowed_models=frozenset(request.allowed_models),
        daily_limit_nanos=daily,
        monthly_limit_nanos=monthly,
        requests_per_minute=request.requests_per_minute,
        tokens_per_minute=request.tokens_per_minute,
        expires_at=_expiry(request, violations),
    )


def _limit(request: pb.CreateKeyRequest, violations: Violations, window: str) -> int:
    nanos_field, usd_field = f"{window}_limit_nanos", f"{window}_limit_usd"
    if request.HasField(nanos_field) and not getattr(request, nanos_field):  # type: ignore[arg-type]
        # Who says nothing may be spent is not to get a key that may spend all.
        violations.add(nanos_field, "must be greater than zero; leave it out for no limit")
    amount = request_amount(
        violations,
        getattr(request, nanos_field) if request.HasField(nanos_field) else None,  # type: ignore[arg-type]
        getattr(request, usd_field),
        nanos_field=nanos_field,
        usd_field=usd_field,
        required=False,
    )
    return violations.between(usd_field if getattr(request, usd_field) else nanos_field, amount, 0, _MAX_LIMIT_NANOS)


def _expiry(request: pb.CreateKeyRequest, violations: Violations) -> datetime | None:
    if not request.HasField("expires_at"):
        return None
    wrong = len(violations.found)
    expires_at = moment_of(violations, "expires_at", request.expires_at)
    if expires_at <= utc_now() and len(violations.found) == wrong:
        violations.add("expires_at", "must be in the future")
    return expires_at


def message(key: Key) -> resources_pb2.Key:
    """A key's message."""
    return resources_pb2.Key(
        key_id=key.key_id,
        account_id=key.account_id,
        name=key.name,
        key_type=key.key_type,
        prefix=key.prefix,
        last_four=key.last_four,
        workspace=key.workspace,
        allowed_models=sorted(key.allowed_models),
        daily_limit_nanos=key.daily_limit_nanos,
        monthly_limit_nanos=key.monthly_limit_nanos,
        expires_at=timestamp(key.expires_at),
        status=key.status(utc_now()),
        created_at=timestamp(key.created_at),
        revoked_at=timestamp(key.revoked_at),
        requests_per_minute=key.requests_per_minute,
        tokens_per_minute=key.tokens_per_minute,
        replaced_by_key_id=key.replaced_by_key_id,
        first_key_id=key.limit_subject,
    )
