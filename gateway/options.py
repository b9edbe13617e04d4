"""Owns what an operator may set of the gateway: addresses, certificates, origins, limits.

All else follows from the contracts.
"""

from __future__ import annotations

import dataclasses
import ipaddress
import urllib.parse
from typing import Any

MAX_ORIGINS = 100
MAX_TRUSTED_HOPS = 10
MINIMUM_HEAP_BYTES = 64 * 1024 * 1024
# What the proxy may need to end and settle a call once its provider's time is over.
SETTLING_SECONDS = 30


@dataclasses.dataclass(frozen=True)
class Address:
    """A TCP address."""

    host: str
    port: int

    @classmethod
    def parse(cls, text: str) -> Address:
        """From `host:port`.

        Raises:
            ValueError: it is not of that form.
        """
        host, _, port = text.rpartition(":")
        if not host or not port.isdigit() or not 0 < int(port) < 65536:  # noqa: PLR2004 (a TCP port)
            raise ValueError(f"not host:port: {text!r}")
        return cls(host.strip("[]"), int(port))

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can reach it."""
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"

    @property
    def is_name(self) -> bool:
        """Whether the host is a DNS name, not an address."""
        try:
            ipaddress.ip_address(self.host)
        except ValueError:
            return True
        return False

    def as_envoy(self) -> dict[str, Any]:
        """The address in Envoy's form."""
        return {"socket_address": {"address": self.host, "port_value": self.port}}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """What may be set. The defaults are those of the local suite: no TLS, no browser from elsewhere.

    Folders are as Envoy sees them. One holds `tls.crt` and `tls.key`, as Kubernetes mounts a Secret of type
    kubernetes.io/tls; Envoy takes up what is put there anew by renaming, without a restart.
    """

    # The certificate that clients see; without it the listener speaks plain HTTP.
    certificate_folder: str | None = None
    # What the services know the gateway by, and `ca.crt` that theirs are signed by; without it plain HTTP/2 to them.
    identity_folder: str | None = None
    # Where Envoy finds the files that `render.files` makes beside envoy.json.
    configuration_folder: str = "/etc/envoy"
    # Web pages that may call from a browser: `https://app.example.com`. None: no page of another origin may.
    cors_origins: tuple[str, ...] = ()
    # Proxies before this one whose x-forwarded-for is believed; 0: the peer itself is the client.
    trusted_hops: int = 0
    # Where Prometheus scrapes (`/metrics`) and the orchestrator asks for readiness (`/ready`).
    metrics: Address | None = None
    # A collector that takes traces by OTLP over HTTP, and the share of those that begin here which is kept.
    traces: Address | None = None
    trace_percent: int = 100
    # How long a model call may be silent, which a unary one is until its answer: above all that the proxy gives one
    # (TOLLKEEPER_PROXY_UPSTREAM_TOTAL_SECONDS), since a call that is ended here goes on there, and is billed.
    model_call_seconds: int = 900 + SETTLING_SECONDS
    max_heap_bytes: int = 1024 * 1024 * 1024
    max_connections: int = 20_000
    # Under way at once, for each service; what comes on top is a 503.
    max_requests_per_service: int = 10_000

    def __post_init__(self) -> None:
        """Refuse what can not be meant.

        Raises:
            ValueError: naming the option.
        """
        if len(self.cors_origins) > MAX_ORIGINS:
            raise ValueError(f"cors_origins: more than {MAX_ORIGINS}")
        for origin in self.cors_origins:
            _check_origin(origin)
        if not 0 <= self.trusted_hops <= MAX_TRUSTED_HOPS:
            raise ValueError(f"trusted_hops: not between 0 and {MAX_TRUSTED_HOPS}")
        if not 0 <= self.trace_percent <= 100:  # noqa: PLR2004
            raise ValueError("trace_percent: not between 0 and 100")
        if self.max_heap_bytes < MINIMUM_HEAP_BYTES:
            raise ValueError(f"max_heap_bytes: below {MINIMUM_HEAP_BYTES}, which Envoy needs at rest")
        for name in ("model_call_seconds", "max_connections", "max_requests_per_service"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: below 1")


def _check_origin(origin: str) -> None:
    parts = urllib.parse.urlsplit(origin)
    # A browser sends scheme, host and port and nothing else, in lower case; any other text would never match.
    if parts.scheme not in {"http", "https"} or not parts.hostname or f"{parts.scheme}://{parts.netloc}" != origin:
        raise ValueError(f"cors_origins: not of the form https://host[:port]: {origin!r}")
    if origin != origin.lower() or "@" in parts.netloc:
        raise ValueError(f"cors_origins: not in lower case, or with a user: {origin!r}")
