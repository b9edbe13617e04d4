"""Owns AWS Bedrock's Converse as OpenAI's chat: bodies, answers, streams and errors, there and back. No I/O."""

from services.proxy.converse.answer import (
    MalformedAnswerError,
    completion,
    credential_refused,
    error_body,
    openai_usage,
)
from services.proxy.converse.events import EventStreamError
from services.proxy.converse.request import model_path, service_tier, to_converse
from services.proxy.converse.stream import ConverseStream

__all__ = [
    "ConverseStream",
    "EventStreamError",
    "MalformedAnswerError",
    "completion",
    "credential_refused",
    "error_body",
    "model_path",
    "openai_usage",
    "service_tier",
    "to_converse",
]
