"""Owns the proxy's configuration."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from services.kit.settings import ServiceSettings

_MAX_FALLBACKS = 5


class ProxySettings(ServiceSettings):
    """What the proxy is told, besides what every service is. A field `x` is read from `TOLLKEEPER_PROXY_X`."""

    service: ClassVar[str] = "proxy"

    max_message_bytes: int = Field(default=64 * 1024 * 1024, ge=1024, description="largest message taken or sent")
    max_concurrent: int = Field(default=2048, ge=1, description="calls served at once, streams among them")

    account_calls: int = Field(
        default=1024,
        ge=1,
        description="model calls of one account under way at once, those whose client has left among them",
    )

    identity_signing_key_file: Path | None = Field(
        default=None, description="private key (PEM) that signs identity tokens"
    )
    identity_ttl_seconds: int = Field(default=60, ge=5, le=60, description="lifetime of an identity token")

    oidc_issuer: str = Field(default="", description="issuer whose tokens open /api/*, as they name it; empty for none")
    oidc_jwks_url: str = Field(default="", description="https address of its public keys")
    oidc_audience: str = Field(default="tollkeeper", description="audience that its tokens for us name")
    oidc_account_claim: str = Field(default="tollkeeper_account", description="claim that names the holder's account")
    oidc_role_claim: str = Field(default="tollkeeper_role", description="claim that names the holder's role, or roles")
    oidc_admin_role: str = Field(default="admin", min_length=1, description="role there that is an operator's")

    ledger_addr: str = Field(
        default="127.0.0.1:9001",
        description="host:port of the ledger, whose name stands for all its replicas; several with commas between",
    )
    ledger_timeout_seconds: float = Field(default=5, gt=0, description="longest wait for one batch of the ledger")
    ledger_batch_operations: int = Field(default=256, ge=1, le=1000, description="most operations in one batch")
    ledger_batches_at_once: int = Field(default=2, ge=1, le=16, description="batches under way at once")
    ledger_waiting_operations: int = Field(default=10_000, ge=1, description="most operations waiting for a batch")
    pricing_addr: str = Field(default="127.0.0.1:9002", description="host:port of pricing")

    cache_seconds: float = Field(
        default=0.9, gt=0, le=1, description="how long a key or an entitlement is believed; revocation takes this long"
    )
    cache_entries: int = Field(default=50_000, ge=1, description="most keys, and most entitlements, kept in memory")

    # Providers, and how they are called: services/proxy/upstream. Several keys stand between commas; the first is the
    # one that is preferred. A provider without a key is not called.
    openai_base_url: str = Field(default="https://api.openai.com/v1", description="OpenAI's address")
    openai_api_key: str = Field(default="", repr=False, description="our keys there, between commas")
    openai_headers: dict[str, str] = Field(
        default={}, description='headers sent there besides; JSON: {"OpenAI-Organization": "org-…"}'
    )
    openai_models: dict[str, str] = Field(
        default={}, description="its ids of models, by the catalogue's names where they differ; JSON"
    )
    anthropic_base_url: str = Field(
        default="https://api.anthropic.com/v1",
        description="Anthropic's address, for both its forms",
    )
    anthropic_api_key: str = Field(default="", repr=False, description="our keys there, between commas")
    anthropic_headers: dict[str, str] = Field(default={}, description="headers sent there besides; JSON")
    anthropic_models: dict[str, str] = Field(
        default={}, description='its ids of models, by our names; JSON: {"claude-3-haiku": "claude-3-haiku-20240307"}'
    )
    google_base_url: str = Field(
        default="https://generativelanguage.googleapis.com/v1beta/openai", description="Google's OpenAI form"
    )
    google_native_base_url: str = Field(
        default="https://generativelanguage.googleapis.com/v1beta", description="Google's own form"
    )
    google_api_key: str = Field(default="", repr=False, description="our keys there, between commas")
    google_headers: dict[str, str] = Field(default={}, description="headers sent there besides; JSON")
    google_models: dict[str, str] = Field(default={}, description="its ids of models, by our names; JSON")
    huggingface_base_url: str = Field(
        default="https://router.huggingface.co/v1", description="Hugging Face's OpenAI form"
    )
    huggingface_api_key: str = Field(default="", repr=False, description="our keys there, between commas")
    huggingface_headers: dict[str, str] = Field(default={}, description="headers sent there besides; JSON")
    huggingface_models: dict[str, str] = Field(default={}, description="its ids of models, by our names; JSON")
    bedrock_base_url: str = Field(
        default="https://bedrock-runtime.{region}.amazonaws.com", description="AWS Bedrock's address"
    )
    bedrock_region: str = Field(default="us-east-1", description="region that Bedrock is called in and signed for")
    bedrock_access_key_id: str = Field(default="", repr=False, description="ids of our access keys, between commas")
    bedrock_secret_access_key: str = Field(default="", repr=False, description="their secrets, in the same order")
    bedrock_session_token: str = Field(
        default="", repr=False, description="their session tokens, in the same order; empty where they are lasting ones"
    )
    bedrock_headers: dict[str, str] = Field(default={}, description="headers sent there besides; JSON")
    bedrock_models: dict[str, str] = Field(
        default={},
        description='its ids of models or profiles, by our names; JSON: {"claude-sonnet": "us.anthropic.claude-…"}',
    )
    providers_file: Path | None = Field(
        default=None,
        description="TOML file of further providers in OpenAI's form (upstream/configuration.py)",
    )

    upstream_connect_seconds: float = Field(default=10, gt=0, description="longest wait for a connection to a provider")
    upstream_first_byte_seconds: float = Field(
        default=300, gt=0, description="longest silence before an answer's first byte; a unary one is silent until then"
    )
    upstream_idle_seconds: float = Field(default=300, gt=0, description="longest silence within an answer")
    upstream_total_seconds: float = Field(
        default=900, gt=0, description="longest that one call may take, all its attempts together"
    )
    upstream_connections: int = Field(default=2048, ge=1, description="connections to providers at once")
    upstream_attempts: int = Field(default=3, ge=1, le=10, description="most attempts of one call")
    upstream_retry_after_seconds: float = Field(
        default=5, ge=0, description="longest Retry-After that a call waits for; a longer one is passed on"
    )
    upstream_breaker_failures: int = Field(
        default=10, ge=1, description="failures in a row after which a credential is not used for a while"
    )
    upstream_breaker_seconds: float = Field(default=10, gt=0, description="how long that is; then one call tries it")
    upstream_credential_rest_seconds: float = Field(
        default=60, gt=0, description="how long a credential that its provider refuses is not used"
    )

    disconnect_policy: Literal["drain", "cancel"] = Field(
        default="drain", description="when the client goes away: read the provider to its end, or close it"
    )
    default_output_tokens: int = Field(
        default=4096, ge=1, description="output cap where neither client, plan nor catalogue says one"
    )
    fallbacks: dict[str, list[str]] = Field(
        default={},
        description="by model, what answers in its place when its provider fails before the first byte, in order, each "
        'as provider/model; JSON: {"gpt-4o": ["anthropic/claude-3-haiku"]}',
    )
    hold_ttl_seconds: int = Field(
        default=120, ge=4, le=86_400, description="a hold lapses after this; extended while its call is running"
    )
    outbox_interval_seconds: float = Field(default=1, gt=0, description="how often undelivered settlements are retried")
    replicas: int = Field(
        default=1, ge=1, le=10_000, description="replicas that share limits per minute equally while Redis is away"
    )

    log_texts: bool = Field(
        default=False,
        description="write what every model call was asked and answered to the log, where whoever reads it can read it",
    )
    log_text_bytes: int = Field(
        default=16 * 1024, ge=1, le=1024 * 1024, description="most of a request, and of an answer, that is written then"
    )

    answers_ttl_seconds: int = Field(
        default=86_400, ge=60, description="how long the answer to an idempotency key is given again"
    )
    answers_lease_seconds: float = Field(
        default=30, ge=3, description="a killed proxy's call with an idempotency key may be repeated after this"
    )
    answers_sweep_seconds: float = Field(default=60, gt=0, description="how often answers past their time are deleted")
    answers_max_bytes: int = Field(
        default=8 * 1024 * 1024, ge=1024, description="largest answer kept; repeats of a larger one are refused"
    )

    @field_validator("fallbacks")
    @classmethod
    def _fallbacks_named_whole(cls, value: dict[str, list[str]]) -> dict[str, list[str]]:
        for model, others in value.items():
            if len(others) > _MAX_FALLBACKS:
                raise ValueError(f"{model}: at most {_MAX_FALLBACKS} fallbacks")
            for other in others:
                provider, _, name = other.partition("/")
                if not provider or not name:
                    raise ValueError(f"{model}: {other!r} is not provider/model")
        return value

    @model_validator(mode="after")
    def _issuer_with_its_keys(self) -> ProxySettings:
        local = ("http://127.0.0.1", "http://localhost")
        if self.oidc_issuer and not self.oidc_jwks_url.startswith(("https://", *local)):
            raise ValueError("oidc_jwks_url must be an https address where oidc_issuer is set")
        return self

    @model_validator(mode="after")
    def _drained_before_cut(self) -> ProxySettings:
        if self.upstream_first_byte_seconds > self.upstream_total_seconds:
            raise ValueError("upstream_first_byte_seconds must not be above upstream_total_seconds")
        if self.upstream_idle_seconds > self.upstream_first_byte_seconds:
            raise ValueError("upstream_idle_seconds must not be above upstream_first_byte_seconds")
        return self
