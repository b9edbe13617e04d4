"""Owns the way to model providers over HTTP: addresses, credentials, retries, circuits, and what their failures mean.

`configuration` says which providers there are, `credentials` which of their keys is used next (by the rule of
`breaker`, for all accounts and for each: `standing`), `attempt` sends one request once (`outgoing`, signed by `signing`
for AWS), `client` does so until there is an answer or nothing is left to try, `answer` is what came back, and
`discreet` what of it names the operator.
"""

from services.proxy.upstream.answer import (
    MAX_ERROR_BYTES,
    Answer,
    ProviderRefusalError,
    UnreadAnswerError,
    failure,
    retry_after_seconds,
)
from services.proxy.upstream.client import Upstreams
from services.proxy.upstream.configuration import ConfigurationError, Provider
from services.proxy.upstream.discreet import discreet
from services.proxy.upstream.outgoing import Outgoing, path_segment

__all__ = [
    "MAX_ERROR_BYTES",
    "Answer",
    "ConfigurationError",
    "Outgoing",
    "Provider",
    "ProviderRefusalError",
    "UnreadAnswerError",
    "Upstreams",
    "discreet",
    "failure",
    "path_segment",
    "retry_after_seconds",
]
