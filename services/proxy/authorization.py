"""Owns the gateway's question whether an HTTP request may pass: `envoy.service.auth.v3.Authorization`.

The answer to a known key, or to a token of the identity provider that is configured, is a short-lived identity token in
`x-tollkeeper-identity`; the credential itself goes no further.
"""

from __future__ import annotations

import time
from datetime import datetime
from typing import Any

import orjson
from envoy.config.core.v3 import base_pb2  # type: ignore[import-untyped]
from envoy.service.auth.v3 import external_auth_pb2 as pb  # type: ignore[import-untyped]
from envoy.service.auth.v3 import external_auth_pb2_grpc
from envoy.type.v3 import http_status_pb2  # type: ignore[import-untyped]
from google.rpc import code_pb2, status_pb2  # type: ignore[import-untyped]

from services.kit.bounded import keep
from services.kit.errors import Kind, ServiceError
from services.kit.identity import IDENTITY_KEY, Identity, TokenSigner
from services.kit.refusals import CredentialMissing
from services.proxy.clock import utc_now
from services.proxy.keys.credentials import CREDENTIAL_HEADERS, KnownKeys, credential
from services.proxy.keys.model import Key, identity_of
from services.proxy.oidc import OidcVerifier, looks_like_a_token

CHECK = "/envoy.service.auth.v3.Authorization/Check"

# A token is given out again while more than this share of its life is left.
_FRESH_SHARE = 0.5
_MAX_TOKENS = 50_000


class IdentityTokens:
    """Identity tokens of credentials: signed once (a signature is dear), then given out again while they are fresh."""

    def __init__(self, signer: TokenSigner, *, ttl_seconds: int) -> None:
        self._signer = signer
        self._ttl_seconds = ttl_seconds
        self._signed: dict[str, tuple[str, float, datetime | None]] = {}

    def of(self, name: str, identity: Identity, expires_at: datetime | None) -> str:
        """A token that says who holds the credential of this name; it never outlives the credential."""
        found = self._signed.get(name)
        # A key's end may come nearer, by rotation.
        if found is not None and time.monotonic() < found[1] and found[2] == expires_at:
            return found[0]
        ttl = float(self._ttl_seconds)
        if expires_at is not None:
            ttl = min(ttl, (expires_at - utc_now()).total_seconds())
        token = self._signer.sign(identity, ttl)
        keep(self._signed, name, (token, time.monotonic() + ttl * _FRESH_SHARE, expires_at), at_most=_MAX_TOKENS)
        return token


class AuthorizationServicer(external_auth_pb2_grpc.AuthorizationServicer):  # type: ignore[misc]
    """Authorization."""

    def __init__(self, known: KnownKeys, tokens: IdentityTokens, oidc: OidcVerifier | None = None) -> None:
        self._known = known
        self._tokens = tokens
        self._oidc = oidc

    async def Check(self, request: pb.CheckRequest, _context: Any) -> pb.CheckResponse:  # noqa: N802
        """Whether the request may pass. A refused credential is a denial; a database that is away is an error."""
        try:
            secret = credential(request.attributes.request.http.headers)
            if secret is None:
                raise CredentialMissing("this call needs an API key")
            return _allowed(await self._token_of(secret))
        except ServiceError as refusal:
            if refusal.kind is not Kind.UNAUTHENTICATED:
                raise
            return _denied(refusal)

    async def _token_of(self, secret: str) -> str:
        if self._oidc is not None and looks_like_a_token(secret):
            verdict = await self._oidc.verified(secret)
            return self._tokens.of(verdict.name, verdict.identity, verdict.expires_at)
        key = self._known.usable(secret)
        if not isinstance(key, Key):
            key = await key
        return self._tokens.of(key.key_id, identity_of(key), key.expires_at)


def _allowed(token: str) -> pb.CheckResponse:
    identity = base_pb2.HeaderValueOption(
        header=base_pb2.HeaderValue(key=IDENTITY_KEY, value=token),
        append_action=base_pb2.HeaderValueOption.OVERWRITE_IF_EXISTS_OR_ADD,
    )
    return pb.CheckResponse(
        status=status_pb2.Status(code=code_pb2.OK),
        ok_response=pb.OkHttpResponse(headers=[identity], headers_to_remove=CREDENTIAL_HEADERS),
    )


def _denied(refusal: ServiceError) -> pb.CheckResponse:
    info = {
        "@type": "type.googleapis.com/google.rpc.ErrorInfo",
        "reason": refusal.reason,
        "domain": refusal.domain,
        "metadata": refusal.metadata,
    }
    # Compact, code first: the gateway reads it by scanning.
    body = orjson.dumps({"code": refusal.code.value[0], "message": refusal.message, "details": [info]})
    return pb.CheckResponse(
        status=status_pb2.Status(code=refusal.code.value[0], message=refusal.message),
        denied_response=pb.DeniedHttpResponse(
            status=http_status_pb2.HttpStatus(code=http_status_pb2.StatusCode.Value("Unauthorized")),
            headers=[
                base_pb2.HeaderValueOption(
                    header=base_pb2.HeaderValue(key="content-type", value="application/json"),
                    append_action=base_pb2.HeaderValueOption.OVERWRITE_IF_EXISTS_OR_ADD,
                )
            ],
            body=body.decode(),
        ),
    )
