"""Owns AWS Signature Version 4: the headers that show a request to be signed with an access key."""

from __future__ import annotations

from dataclasses import dataclass, field

from botocore.auth import SigV4Auth  # type: ignore[import-untyped]
from botocore.awsrequest import AWSRequest  # type: ignore[import-untyped]
from botocore.credentials import ReadOnlyCredentials  # type: ignore[import-untyped]

from services.proxy.upstream.outgoing import Headers

_SERVICE = "bedrock"


@dataclass(frozen=True, slots=True)
class AwsKey:
    """An access key and the region it is used in; `session_token` is empty for a lasting one."""

    access_key_id: str = field(repr=False)
    secret_access_key: str = field(repr=False)
    session_token: str = field(repr=False)
    region: str


def signed(key: AwsKey, url: str, content_type: str, body: bytes) -> Headers:
    """The headers that sign a POST of `body` to `url`: authorization, its time, and the session token if there is one.

    `url` must be as it is sent, its path percent-encoded: that path is what is signed, encoded once more as every
    service but S3 wants it (https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_sigv-create-signed-request.html).
    The signature is over host, content type and body too, and good for some minutes.
    """
    request = AWSRequest(method="POST", url=url, data=body, headers={"content-type": content_type})
    credentials = ReadOnlyCredentials(key.access_key_id, key.secret_access_key, key.session_token or None)
    SigV4Auth(credentials, _SERVICE, key.region).add_auth(request)
    return tuple(
        (name.lower(), str(value)) for name, value in request.headers.items() if name.lower() != "content-type"
    )
