"""Owns what a browser is told of calls from web pages of other origins (CORS): nothing, unless some are configured."""

from __future__ import annotations

from typing import Any

from gateway import answer_headers
from gateway.options import Options

Json = dict[str, Any]

FILTER = "envoy.filters.http.cors"
MAX_AGE_SECONDS = 600
_TYPE = "type.googleapis.com/envoy.extensions.filters.http.cors.v3."
_METHODS = ("GET", "POST", "PATCH", "DELETE")
# What callers and their SDKs send. `*` would not do: it leaves out authorization.
_REQUEST_HEADERS = (
    *("authorization", "content-type", "idempotency-key", "x-session-id"),
    *("x-api-key", "anthropic-version", "anthropic-beta", "anthropic-dangerous-direct-browser-access"),
    *("x-goog-api-key", "x-goog-api-client", "openai-beta", "openai-organization", "openai-project"),
    "user-agent",  # which SDKs set, and Firefox asks for
    *(
        f"x-stainless-{name}"
        for name in (
            *("arch", "async", "helper", "helper-method", "lang", "os", "package-version", "retry-count"),
            *("runtime", "runtime-version", "timeout"),
        )
    ),
)
_ANSWER_HEADERS = (
    *("retry-after", "x-should-retry", "x-request-id", "request-id"),
    *answer_headers.PUBLIC,
    *(f"x-ratelimit-{what}-{of}" for what in ("limit", "remaining", "reset") for of in ("requests", "tokens")),
    *(f"x-quota-{what}" for what in ("metric", "limit", "remaining", "reset")),
)


def http_filter() -> Json:
    """The filter; it does nothing where there is no policy."""
    return {"name": FILTER, "typed_config": {"@type": _TYPE + "Cors"}}


def policy(options: Options) -> Json:
    """The policy of all routes (`typed_per_filter_config`); empty where no origin may call."""
    if not options.cors_origins:
        return {}
    return {
        FILTER: {
            "@type": _TYPE + "CorsPolicy",
            "allow_origin_string_match": [{"exact": origin} for origin in options.cors_origins],
            "allow_methods": ", ".join(_METHODS),
            "allow_headers": ", ".join(_REQUEST_HEADERS),
            "expose_headers": ", ".join(_ANSWER_HEADERS),
            "max_age": str(MAX_AGE_SECONDS),
            # A key goes in a header that the page sets itself; no cookie is ever looked at.
            "allow_credentials": False,
            # Another origin's question is a method that no path takes.
            "forward_not_matching_preflights": True,
        }
    }
