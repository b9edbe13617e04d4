"""Owns answers that come whole: Converse's answer, its usage and its errors in OpenAI's form.

What OpenAI's form cannot say is lost on the way: which source a text cites, images and sounds that a model makes, calls
of tools that Bedrock runs by itself. Of the usage it is how the writes to the cache were spread over the cache points;
the sums by age are kept. Whoever bills reads the original (`usage` of the answer, `ConverseStream.usage`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from http import HTTPStatus
from typing import Any

import orjson

_FINISH_REASONS = {
    "end_turn": "stop",
    "stop_sequence": "stop",
    "max_tokens": "length",
    "model_context_window_exceeded": "length",
    "tool_use": "tool_calls",
    "guardrail_intervened": "content_filter",
    "content_filtered": "content_filter",
}
_TIERS = ("default", "flex", "priority")
# What answers and their last chunks pass on of Converse's own, for those who asked for it.
_PASSED = ("trace", "performanceConfig")
SERVER_TOOL_USE = "server_tool_use"
_MAX_COUNT = 2**63 - 1

# An exception's type and code in OpenAI's form.
_ERRORS = {
    "ValidationException": ("invalid_request_error", None),
    "SerializationException": ("invalid_request_error", None),
    "AccessDeniedException": ("permission_error", "access_denied"),
    "ResourceNotFoundException": ("invalid_request_error", "model_not_found"),
    "ThrottlingException": ("rate_limit_error", "rate_limit_exceeded"),
    "TooManyRequestsException": ("rate_limit_error", "rate_limit_exceeded"),
    "ServiceQuotaExceededException": ("rate_limit_error", "rate_limit_exceeded"),
    "ModelNotReadyException": ("rate_limit_error", "model_not_ready"),
    "ModelTimeoutException": ("server_error", "timeout"),
    "ModelErrorException": ("server_error", "model_error"),
    "ModelStreamErrorException": ("server_error", "model_error"),
    "InternalServerException": ("server_error", None),
    "ServiceUnavailableException": ("server_error", "service_unavailable"),
}
# These speak of the operator's credential, and name accounts, users and keys.
_CREDENTIAL_EXCEPTIONS = frozenset(
    {
        "AccessDeniedException",
        "ExpiredTokenException",
        "IncompleteSignatureException",
        "InvalidClientTokenId",
        "InvalidSignatureException",
        "MissingAuthenticationTokenException",
        "NotAuthorized",
        "OptInRequired",
        "SignatureDoesNotMatch",
        "UnrecognizedClientException",
    }
)
_CREDENTIAL_MESSAGE = "The model cannot be called here now."
_MAX_MESSAGE_CHARS = 4_000


class MalformedAnswerError(ValueError):
    """An answer that is not what Converse answers."""


def completion(answer: Mapping[str, Any], *, model: str, identifier: str, created: int) -> dict[str, Any]:
    """Converse's answer as a chat completion of this id, created at this Unix time in seconds.

    Beside OpenAI's own fields: `message.reasoning_content`, the model's thoughts as text; `message.reasoning_blocks`,
    the same as Bedrock wants them back with the results of tools; `stop_reason` of the choice in Converse's words;
    `trace` and `performanceConfig` where there are such. Raises MalformedAnswerError.
    """
    try:
        blocks = answer["output"]["message"]["content"]
        message = _message(blocks)
    except (KeyError, TypeError, AttributeError, orjson.JSONEncodeError) as error:
        raise MalformedAnswerError(f"no answer of Converse: {error!r}"[:200]) from error
    reason = answer.get("stopReason")
    choice = {
        "index": 0,
        "message": message,
        "logprobs": None,
        "finish_reason": finish_reason(reason),
        "stop_reason": reason,
    }
    return {
        "id": identifier,
        "object": "chat.completion",
        "created": created,
        "model": model,
        "choices": [choice],
        **beside_choices(answer),
    }


def finish_reason(stop_reason: object) -> str:
    """OpenAI's word for why an answer ended. One that is not known ended somehow, and is `stop`."""
    return _FINISH_REASONS.get(stop_reason, "stop") if isinstance(stop_reason, str) else "stop"


def beside_choices(answer: Mapping[str, Any]) -> dict[str, Any]:
    """What stands beside the choices, from an answer or a stream's `metadata`: usage, tier, and what is passed on."""
    found = {name: answer[name] for name in _PASSED if answer.get(name) is not None}
    usage = openai_usage(answer.get("usage"))
    if usage is not None:
        found["usage"] = usage
    tier = answer.get("serviceTier")
    if isinstance(tier, Mapping) and tier.get("type") in _TIERS:
        found["service_tier"] = tier["type"]
    return found


def openai_usage(usage: object) -> dict[str, Any] | None:
    """Converse's usage in OpenAI's form; None where a count is none.

    `accounting.openai_chat` of it is `accounting.bedrock_converse` of the original. Bedrock counts what it read from
    and wrote to caches beside the input, OpenAI within; what is kept for an hour has `ttl_1h_tokens`, as OpenAI has
    `ttl_12h_tokens`. Bedrock does not count reasoning apart.
    """
    if not isinstance(usage, Mapping):
        return None
    details = usage.get("cacheDetails") or []
    if not isinstance(details, list) or not all(isinstance(detail, Mapping) for detail in details):
        return None
    hours = [detail.get("inputTokens") for detail in details if detail.get("ttl") == "1h"]
    names = ("inputTokens", "outputTokens", "cacheReadInputTokens", "cacheWriteInputTokens")
    counts = [0 if count is None else count for count in (*(usage.get(name) for name in names), *hours)]
    if not all(isinstance(count, int) and not isinstance(count, bool) and count >= 0 for count in counts):
        return None
    fresh, output, read, written = counts[:4]
    hour = sum(counts[4:])
    written = max(written, hour)
    prompt = fresh + read + written
    if max(prompt, output) > _MAX_COUNT:
        return None
    of_prompt: dict[str, Any] = {"cached_tokens": read, "cache_write_tokens": written}
    if hour:
        of_prompt["cache_write_tokens_details"] = {"ttl_5m_tokens": written - hour, "ttl_1h_tokens": hour}
    return {
        "prompt_tokens": prompt,
        "completion_tokens": output,
        "total_tokens": prompt + output,
        "prompt_tokens_details": of_prompt,
    }


def error_body(status: int, error_type: str, body: bytes) -> bytes:
    """Bedrock's error answer as OpenAI's, for the same status: from that the openai SDK chooses its exception.

    `error_type` is the header `x-amzn-errortype`, empty where there was none.
    """
    document = _document(body)
    return orjson.dumps(
        {"error": error_object(_exception(status, error_type, document), _text(document), status=status)}
    )


def credential_refused(status: int, error_type: str, body: bytes) -> bool:
    """Whether Bedrock refused the operator's credential, or what it may do, rather than the request."""
    return _exception(status, error_type, _document(body)) in _CREDENTIAL_EXCEPTIONS


def error_object(exception: str, message: str, *, status: int = 500) -> dict[str, Any]:
    """OpenAI's error object for an exception of Bedrock's; `status` tells what those are that are not known here."""
    client_side = HTTPStatus.BAD_REQUEST <= status < HTTPStatus.INTERNAL_SERVER_ERROR
    kind, code = _ERRORS.get(exception, ("invalid_request_error" if client_side else "server_error", None))
    if exception in _CREDENTIAL_EXCEPTIONS:
        kind, code, message = "permission_error", "access_denied", _CREDENTIAL_MESSAGE
    return {"message": (message or exception)[:_MAX_MESSAGE_CHARS], "type": kind, "param": None, "code": code}


def _message(blocks: list[Mapping[str, Any]]) -> dict[str, Any]:
    calls: list[dict[str, Any]] = []
    thoughts: list[dict[str, Any]] = []
    for block in blocks:
        use, reasoning = block.get("toolUse"), block.get("reasoningContent")
        if use is not None and use.get("type") != SERVER_TOOL_USE:
            arguments = orjson.dumps(use.get("input") or {}).decode()
            function = {"name": use["name"], "arguments": arguments}
            calls.append({"id": use["toolUseId"], "type": "function", "function": function})
        elif reasoning is not None:
            thoughts.append({"index": len(thoughts), **reasoning})
    said = [text for block in blocks for text in _texts(block)]
    message: dict[str, Any] = {"role": "assistant", "content": "".join(said) if said else None, "refusal": None}
    if calls:
        message["tool_calls"] = calls
    if thoughts:
        texts = [thought["reasoningText"]["text"] for thought in thoughts if "reasoningText" in thought]
        message |= {"reasoning_content": "".join(texts) if texts else None, "reasoning_blocks": thoughts}
    return message


def _texts(block: Mapping[str, Any]) -> Iterator[str]:
    """What a block says to the reader: its text, or the text that it has with citations."""
    cited = block.get("citationsContent")
    for part in (cited.get("content") or ()) if cited is not None else (block,):
        if isinstance(part.get("text"), str):
            yield part["text"]


def _document(body: bytes) -> Mapping[str, Any]:
    try:
        document = orjson.loads(body)
    except orjson.JSONDecodeError:
        return {}
    return document if isinstance(document, dict) else {}


def _text(document: Mapping[str, Any]) -> str:
    """The message of an error, which AWS writes with a small or a large M."""
    found = document.get("message") or document.get("Message")
    return found if isinstance(found, str) else ""


def _exception(status: int, error_type: str, document: Mapping[str, Any]) -> str:
    """The exception's bare name: `aws.protocols#restJson1` allows a namespace before it and an address behind."""
    named = error_type or document.get("__type") or document.get("code")
    bare = named.partition(":")[0].rpartition("#")[2][:100] if isinstance(named, str) else ""
    return bare or _NAMELESS.get(status, "InternalServerException")


_NAMELESS: dict[int, str] = {
    HTTPStatus.BAD_REQUEST: "ValidationException",
    HTTPStatus.UNAUTHORIZED: "UnrecognizedClientException",
    HTTPStatus.FORBIDDEN: "AccessDeniedException",
    HTTPStatus.NOT_FOUND: "ResourceNotFoundException",
    HTTPStatus.REQUEST_TIMEOUT: "ModelTimeoutException",
    HTTPStatus.FAILED_DEPENDENCY: "ModelErrorException",
    HTTPStatus.TOO_MANY_REQUESTS: "ThrottlingException",
    HTTPStatus.SERVICE_UNAVAILABLE: "ServiceUnavailableException",
}
