"""Owns the refusals: a request answered with an error, and the body and headers that each provider gives such an error.

The shapes are those the providers' own SDKs turn into their exception classes; messages follow the providers' wording
where it is known, so that code which looks into them meets what it will meet in production.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from http import HTTPStatus
from typing import Any, Final

import orjson


class Provider(StrEnum):
    """A model provider, by the name the rest of the suite calls it."""

    OPENAI = "openai"
    ANTHROPIC = "anthropic"
    GOOGLE = "google"
    HUGGINGFACE = "huggingface"
    BEDROCK = "bedrock"


class Dialect(StrEnum):
    """A way of writing errors. Google and Anthropic have one for their own API, one for their OpenAI-compatible one."""

    OPENAI = "openai"
    ANTHROPIC = "anthropic"
    ANTHROPIC_COMPATIBLE = "anthropic-compatible"
    GOOGLE = "google"
    GOOGLE_COMPATIBLE = "google-compatible"
    HUGGINGFACE = "huggingface"
    BEDROCK = "bedrock"


class Refusal(Exception):  # noqa: N818  (it is an answer, not a failure)
    """A request that gets an error for an answer.

    Args:
        status: the HTTP status.
        message: the provider's words; None for the provider's usual words for this status.
        code: the machine-readable code where the dialect has one (OpenAI's `code`, Bedrock's exception name).
        param: the offending field, for OpenAI's `param`.
        retry_after: seconds, for a `retry-after` header and whatever the body says of it.
        details: Google's `details`.
    """

    def __init__(
        self,
        status: int,
        message: str | None = None,
        *,
        code: str | None = None,
        param: str | None = None,
        retry_after: int | None = None,
        details: list[dict[str, Any]] | None = None,
    ) -> None:
        super().__init__(message or str(status))
        self.status = status
        self.message = message
        self.code = code
        self.param = param
        self.retry_after = retry_after
        self.details = details


def body(dialect: Dialect, refusal: Refusal, request_id: str) -> bytes:
    """The error body of a unary answer, or of an answer refused before its stream began."""
    return orjson.dumps(_SHAPES[dialect](refusal, request_id))


def headers(dialect: Dialect, refusal: Refusal) -> dict[str, str]:
    """The headers that go with the error."""
    fields = {"content-type": "application/json"}
    if refusal.retry_after is not None:
        fields["retry-after"] = str(refusal.retry_after)
    if dialect is Dialect.BEDROCK:
        fields["x-amzn-errortype"] = bedrock_exception(refusal)
    return fields


def stream_error(dialect: Dialect, refusal: Refusal, request_id: str) -> Any:
    """The error object as it stands inside a stream that has already begun."""
    shape = _SHAPES[dialect](refusal, request_id)
    return shape[0] if dialect is Dialect.GOOGLE_COMPATIBLE else shape


def bedrock_exception(refusal: Refusal) -> str:
    """The name of the exception a Bedrock client raises for this refusal."""
    return refusal.code or _BEDROCK_EXCEPTIONS.get(refusal.status, "InternalServerException")


def _usual(messages: Mapping[int, str], refusal: Refusal) -> str:
    if refusal.message is not None:
        return refusal.message
    try:
        return messages.get(refusal.status) or HTTPStatus(refusal.status).phrase
    except ValueError:  # a status that HTTP does not know, such as 529
        return "Overloaded" if refusal.status >= HTTPStatus.INTERNAL_SERVER_ERROR else "Bad Request"


_OPENAI_MESSAGES: Final = {
    401: "Incorrect API key provided. You can find your API key at https://platform.openai.com/account/api-keys.",
    404: "The model does not exist or you do not have access to it.",
    429: "Rate limit reached for requests. Please try again later.",
    500: "The server had an error while processing your request. Sorry about that!",
    503: "The engine is currently overloaded, please try again later.",
}
_OPENAI_CODES: Final = {401: "invalid_api_key", 404: "model_not_found", 429: "rate_limit_exceeded"}


def _openai_type(status: int) -> str:
    if status == HTTPStatus.TOO_MANY_REQUESTS:
        return "requests"
    return "server_error" if status >= HTTPStatus.INTERNAL_SERVER_ERROR else "invalid_request_error"


def _openai(refusal: Refusal, _request_id: str) -> Any:
    return {
        "error": {
            "message": _usual(_OPENAI_MESSAGES, refusal),
            "type": _openai_type(refusal.status),
            "param": refusal.param,
            "code": refusal.code or (_OPENAI_CODES.get(refusal.status) if refusal.message is None else None),
        }
    }


_ANTHROPIC_TYPES: Final = {
    400: "invalid_request_error",
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    500: "api_error",
    504: "timeout_error",
    529: "overloaded_error",
}
_ANTHROPIC_MESSAGES: Final = {
    401: "invalid x-api-key",
    429: "Number of request tokens has exceeded your per-minute rate limit.",
    500: "Internal server error",
    503: "Overloaded",
    529: "Overloaded",
}


def _anthropic_type(status: int) -> str:
    server_side = status >= HTTPStatus.INTERNAL_SERVER_ERROR
    return _ANTHROPIC_TYPES.get(status, "api_error" if server_side else "invalid_request_error")


def _anthropic(refusal: Refusal, request_id: str) -> Any:
    message = _usual(_ANTHROPIC_MESSAGES, refusal)
    error = {"type": _anthropic_type(refusal.status), "message": message}
    return {"type": "error", "error": error, "request_id": request_id}


def _anthropic_compatible(refusal: Refusal, _request_id: str) -> Any:
    kind = _anthropic_type(refusal.status)
    message = _usual(_ANTHROPIC_MESSAGES, refusal)
    return {"error": {"message": message, "type": kind, "param": refusal.param, "code": kind}}


_GOOGLE_STATUSES: Final = {
    400: "INVALID_ARGUMENT",
    401: "UNAUTHENTICATED",
    403: "PERMISSION_DENIED",
    404: "NOT_FOUND",
    409: "ABORTED",
    429: "RESOURCE_EXHAUSTED",
    500: "INTERNAL",
    501: "UNIMPLEMENTED",
    503: "UNAVAILABLE",
    504: "DEADLINE_EXCEEDED",
}
_GOOGLE_MESSAGES: Final = {
    429: "You exceeded your current quota, please check your plan and billing details.",
    500: "An internal error has occurred. Please retry or report the problem.",
    503: "The model is overloaded. Please try again later.",
}


def _google(refusal: Refusal, _request_id: str) -> Any:
    error: dict[str, Any] = {
        "code": refusal.status,
        "message": _usual(_GOOGLE_MESSAGES, refusal),
        "status": _GOOGLE_STATUSES.get(refusal.status, "UNKNOWN"),
    }
    details = list(refusal.details or ())
    if refusal.retry_after is not None:
        details.append({"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": f"{refusal.retry_after}s"})
    if details:
        error["details"] = details
    return {"error": error}


def _google_compatible(refusal: Refusal, request_id: str) -> Any:
    # Google's OpenAI-compatible endpoint answers errors as a list of one, which SDKs and gateways trip over.
    return [_google(refusal, request_id)]


_HUGGINGFACE_MESSAGES: Final = {
    401: "Invalid username or password.",
    402: "You have exceeded your monthly included credits for Inference Providers.",
    429: "Rate limit exceeded, please try again later.",
    500: "Internal Server Error",
    503: "Service Temporarily Unavailable",
}


def _huggingface(refusal: Refusal, _request_id: str) -> Any:
    # The router's own refusals are a bare string; the model server behind it refuses bad requests in OpenAI's form.
    if refusal.status == HTTPStatus.BAD_REQUEST:
        return _openai(refusal, _request_id)
    return {"error": _usual(_HUGGINGFACE_MESSAGES, refusal)}


_BEDROCK_EXCEPTIONS: Final = {
    400: "ValidationException",
    401: "UnrecognizedClientException",
    403: "AccessDeniedException",
    404: "ResourceNotFoundException",
    408: "ModelTimeoutException",
    424: "ModelErrorException",
    429: "ThrottlingException",
    500: "InternalServerException",
    503: "ServiceUnavailableException",
}
_BEDROCK_MESSAGES: Final = {
    429: "Too many requests, please wait before trying again.",
    500: "The system encountered an unexpected error during processing. Try your request again.",
    503: "Bedrock is unable to process your request.",
}


def _bedrock(refusal: Refusal, _request_id: str) -> Any:
    return {"message": _usual(_BEDROCK_MESSAGES, refusal)}


_SHAPES: Final = {
    Dialect.OPENAI: _openai,
    Dialect.ANTHROPIC: _anthropic,
    Dialect.ANTHROPIC_COMPATIBLE: _anthropic_compatible,
    Dialect.GOOGLE: _google,
    Dialect.GOOGLE_COMPATIBLE: _google_compatible,
    Dialect.HUGGINGFACE: _huggingface,
    Dialect.BEDROCK: _bedrock,
}
