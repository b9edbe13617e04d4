"""Owns AWS Signature Version 4: reading the Authorization header of a Bedrock call and checking its signature.

Written from AWS's description (IAM user guide, "Create a signed AWS API request") without any AWS library, so that a
client that signs with one is checked by something that does not share its mistakes.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final
from urllib.parse import parse_qsl, quote

ALGORITHM: Final = "AWS4-HMAC-SHA256"

_AUTHORIZATION: Final = re.compile(
    rf"{ALGORITHM} +Credential=(?P<key>[^/,\s]+)/(?P<date>\d{{8}})/(?P<region>[^/,\s]+)/(?P<service>[^/,\s]+)"
    r"/aws4_request"
    r", *SignedHeaders=(?P<headers>[a-z0-9;_-]+), *Signature=(?P<signature>[0-9a-f]{64})"
)


@dataclass(frozen=True, slots=True)
class Signature:
    """What the Authorization header says: who signed, for what scope, which headers, and the signature in hex."""

    access_key: str
    date: str
    region: str
    service: str
    signed_headers: tuple[str, ...]
    signature: str


def read(authorization: str) -> Signature | None:
    """Take an Authorization header apart; None where it is not one of Signature Version 4."""
    match = _AUTHORIZATION.fullmatch(authorization)
    if match is None:
        return None
    return Signature(
        access_key=match["key"],
        date=match["date"],
        region=match["region"],
        service=match["service"],
        signed_headers=tuple(match["headers"].split(";")),
        signature=match["signature"],
    )


def is_signed_by(
    signature: Signature,
    secret_key: str,
    *,
    method: str,
    raw_path: str,
    query: str,
    headers: Mapping[str, str],
    body: bytes,
) -> bool:
    """Whether `secret_key` made this signature over this request.

    Args:
        signature: what the Authorization header says.
        secret_key: the secret belonging to its access key.
        method: the HTTP method.
        raw_path: the path as it came over the wire, still percent-encoded.
        query: the query string without its question mark.
        headers: the request's headers, looked up without regard to case.
        body: the body as it came.
    """
    canonical = "\n".join(
        [
            method,
            # Every service but S3 signs the path encoded once more than it is sent.
            quote(raw_path, safe="/-_.~"),
            _canonical_query(query),
            *(f"{name}:{' '.join(headers.get(name, '').split())}" for name in signature.signed_headers),
            "",
            ";".join(signature.signed_headers),
            hashlib.sha256(body).hexdigest(),
        ]
    )
    scope = f"{signature.date}/{signature.region}/{signature.service}/aws4_request"
    to_sign = "\n".join(
        [ALGORITHM, headers.get("x-amz-date", ""), scope, hashlib.sha256(canonical.encode()).hexdigest()]
    )
    key = f"AWS4{secret_key}".encode()
    for part in (signature.date, signature.region, signature.service, "aws4_request"):
        key = _hmac(key, part)
    return hmac.compare_digest(_hmac(key, to_sign).hex(), signature.signature)


def _canonical_query(query: str) -> str:
    pairs = sorted((quote(name, safe="-_.~"), quote(value, safe="-_.~")) for name, value in parse_qsl(query, True))
    return "&".join(f"{name}={value}" for name, value in pairs)


def _hmac(key: bytes, message: str) -> bytes:
    return hmac.new(key, message.encode(), hashlib.sha256).digest()
