"""Owns the check of credentials: where each provider expects its key, and how it refuses a wrong or missing one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Final

from deploy.local.sandbox.provider import sigv4
from deploy.local.sandbox.provider.refusal import Dialect, Refusal

_GOOGLE_SERVICE: Final = "generativelanguage.googleapis.com"


@dataclass(frozen=True, slots=True)
class Presented:
    """What of a request the check looks at. `headers` are looked up without regard to case."""

    method: str
    raw_path: str
    query: str
    headers: Mapping[str, str]
    body: bytes


@dataclass(frozen=True, slots=True)
class Keyring:
    """The keys the sandbox accepts. Without any, every key that is not empty is accepted.

    `aws_secret_key`, where given, is the secret of every access key, and Bedrock signatures are then verified.
    """

    keys: frozenset[str] = frozenset()
    aws_secret_key: str | None = None

    def check(self, dialect: Dialect, presented: Presented) -> str:
        """The key the request came with.

        Raises:
            Refusal: no key, or one that is not accepted, in the provider's own words and status.
        """
        if dialect is Dialect.BEDROCK:
            return self._check_signature(presented)
        key = _KEY_OF[dialect](presented)
        if not key:
            raise _missing(dialect)
        if self.keys and key not in self.keys:
            raise _wrong(dialect, key, by_bearer=key == _bearer(presented))
        return key

    def _check_signature(self, presented: Presented) -> str:
        authorization = presented.headers.get("authorization", "")
        if not authorization:
            raise Refusal(
                HTTPStatus.FORBIDDEN, "Missing Authentication Token", code="MissingAuthenticationTokenException"
            )
        signature = sigv4.read(authorization)
        if signature is None or "x-amz-date" not in presented.headers or signature.service != "bedrock":
            message = "Authorization header requires Credential, Signature, SignedHeaders and an X-Amz-Date header."
            raise Refusal(HTTPStatus.FORBIDDEN, message, code="IncompleteSignatureException")
        if self.keys and signature.access_key not in self.keys:
            message = "The security token included in the request is invalid."
            raise Refusal(HTTPStatus.FORBIDDEN, message, code="UnrecognizedClientException")
        if self.aws_secret_key is not None and not sigv4.is_signed_by(
            signature,
            self.aws_secret_key,
            method=presented.method,
            raw_path=presented.raw_path,
            query=presented.query,
            headers=presented.headers,
            body=presented.body,
        ):
            message = "The request signature we calculated does not match the signature you provided."
            raise Refusal(HTTPStatus.FORBIDDEN, message, code="InvalidSignatureException")
        return signature.access_key


def _bearer(presented: Presented) -> str:
    scheme, _, token = presented.headers.get("authorization", "").partition(" ")
    return token.strip() if scheme.lower() == "bearer" else ""


def _anthropic_key(presented: Presented) -> str:
    return presented.headers.get("x-api-key", "") or _bearer(presented)


def _google_key(presented: Presented) -> str:
    for field in presented.query.split("&"):
        name, _, value = field.partition("=")
        if name == "key" and value:
            return value
    return presented.headers.get("x-goog-api-key", "") or _bearer(presented)


_KEY_OF: Final = {
    Dialect.OPENAI: _bearer,
    Dialect.HUGGINGFACE: _bearer,
    Dialect.ANTHROPIC: _anthropic_key,
    Dialect.ANTHROPIC_COMPATIBLE: _anthropic_key,
    Dialect.GOOGLE: _google_key,
    Dialect.GOOGLE_COMPATIBLE: _bearer,
}


def _missing(dialect: Dialect) -> Refusal:
    match dialect:
        case Dialect.ANTHROPIC | Dialect.ANTHROPIC_COMPATIBLE:
            return Refusal(HTTPStatus.UNAUTHORIZED, "x-api-key header is required")
        case Dialect.GOOGLE:
            message = (
                "Method doesn't allow unregistered callers (callers without established identity). Please use API Key"
                " or other form of API consumer identity to call this API."
            )
            return Refusal(HTTPStatus.FORBIDDEN, message)
        case Dialect.GOOGLE_COMPATIBLE:
            return Refusal(HTTPStatus.BAD_REQUEST, "Missing Authorization header.")
        case Dialect.HUGGINGFACE:
            return Refusal(HTTPStatus.UNAUTHORIZED)
        case _:
            message = (
                "You didn't provide an API key. You need to provide your API key in an Authorization header using"
                " Bearer auth (i.e. Authorization: Bearer YOUR_KEY)."
            )
            return Refusal(HTTPStatus.UNAUTHORIZED, message)


def _wrong(dialect: Dialect, key: str, *, by_bearer: bool) -> Refusal:
    match dialect:
        case Dialect.ANTHROPIC | Dialect.ANTHROPIC_COMPATIBLE:
            return Refusal(HTTPStatus.UNAUTHORIZED, "Invalid bearer token" if by_bearer else "invalid x-api-key")
        case Dialect.GOOGLE if by_bearer:
            message = "Request had invalid authentication credentials. Expected OAuth 2 access token."
            return Refusal(HTTPStatus.UNAUTHORIZED, message)
        case Dialect.GOOGLE | Dialect.GOOGLE_COMPATIBLE:
            # Google answers a wrong API key with 400, and only its details tell it from a bad request.
            reason = {
                "@type": "type.googleapis.com/google.rpc.ErrorInfo",
                "reason": "API_KEY_INVALID",
                "domain": "googleapis.com",
                "metadata": {"service": _GOOGLE_SERVICE},
            }
            message = "API key not valid. Please pass a valid API key."
            return Refusal(HTTPStatus.BAD_REQUEST, message, details=[reason])
        case Dialect.HUGGINGFACE:
            return Refusal(HTTPStatus.UNAUTHORIZED)
        case _:
            shown = f"{key[:3]}***{key[-4:]}" if len(key) > len("sk-") + 4 else "***"
            message = (
                f"Incorrect API key provided: {shown}. You can find your API key at"
                " https://platform.openai.com/account/api-keys."
            )
            return Refusal(HTTPStatus.UNAUTHORIZED, message, code="invalid_api_key")
