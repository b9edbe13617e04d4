"""Owns the proxy's configuration."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Literal

from pydantic import Field, model_validator

from services.kit.settings import ServiceSettings


class ProxySettings(ServiceSettings):
    """What the proxy is told, besides what every service is. A field `x` is read from `TOLLKEEPER_PROXY_X`."""

    service: ClassVar[str] = "proxy"

    max_message_bytes: int = Field(default=64 * 1024 * 1024, ge=1024, description="largest message taken or sent")
    max_concurrent: int = Field(default=2048, ge=1, description="calls served at once, streams among them")

    identity_signing_key_file: Path | None = Field(
        default=None, description="private key (PEM) that signs identity tokens"
    )
    identity_ttl_seconds: int = Field(default=60, ge=5, le=60, description="lifetime of an identity token")

    ledger_addr: str = Field(default="127.0.0.1:9001", description="host:port of the ledger")
    ledger_timeout_seconds: float = Field(default=5, gt=0, description="longest wait for one batch of the ledger")
    ledger_batch_operations: int = Field(default=256, ge=1, le=1000, description="most operations in one batch")
    ledger_batches_at_once: int = Field(default=2, ge=1, le=16, description="batches under way at once")
    ledger_waiting_operations: int = Field(default=10_000, ge=1, description="most operations waiting for a batch")
    pricing_addr: str = Field(default="127.0.0.1:9002", description="host:port of pricing")

    cache_seconds: float = Field(
        default=0.9, gt=0, le=1, description="how long a key or an entitlement is believed; revocation takes this long"
    )
    cache_entries: int = Field(default=50_000, ge=1, description="most keys, and most entitlements, kept in memory")

    openai_base_url: str = Field(default="https://api.openai.com/v1", description="OpenAI's address")
    openai_api_key: str = Field(default="", repr=False, description="our key there; empty: not called")
    anthropic_base_url: str = Field(default="https://api.anthropic.com/v1", description="Anthropic's OpenAI form")
    anthropic_api_key: str = Field(default="", repr=False, description="our key there; empty: not called")
    google_base_url: str = Field(
        default="https://generativelanguage.googleapis.com/v1beta/openai", description="Google's OpenAI form"
    )
    google_api_key: str = Field(default="", repr=False, description="our key there; empty: not called")
    huggingface_base_url: str = Field(
        default="https://router.huggingface.co/v1", description="Hugging Face's OpenAI form"
    )
    huggingface_api_key: str = Field(default="", repr=False, description="our key there; empty: not called")

    upstream_connect_seconds: float = Field(default=10, gt=0, description="longest wait for a connection to a provider")
    upstream_idle_seconds: float = Field(default=300, gt=0, description="longest silence of a provider")
    upstream_total_seconds: float = Field(default=900, gt=0, description="longest that one provider call may take")
    upstream_connections: int = Field(default=2048, ge=1, description="connections to providers at once")

    disconnect_policy: Literal["drain", "cancel"] = Field(
        default="drain", description="when the client goes away: read the provider to its end, or close it"
    )
    default_output_tokens: int = Field(
        default=4096, ge=1, description="output cap where neither client, plan nor catalogue says one"
    )
    hold_ttl_seconds: int = Field(
        default=120, ge=4, le=86_400, description="a hold lapses after this; extended while its call is running"
    )
    outbox_interval_seconds: float = Field(default=1, gt=0, description="how often undelivered settlements are retried")

    @model_validator(mode="after")
    def _drained_before_cut(self) -> ProxySettings:
        if self.upstream_idle_seconds > self.upstream_total_seconds:
            raise ValueError("upstream_idle_seconds must not be above upstream_total_seconds")
        return self
