"""Owns the outside world of a suite: model providers and Stripe, real where there are keys, else sandboxes."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path

from deploy.local.credentials import Credentials
from deploy.local.ports import HOST

PROVIDER = "sandbox-provider"
STRIPE = "sandbox-stripe"
# How long a sandbox lets calls under way go on when it is stopped.
_GRACE = ("--grace-seconds", "3")
# The model providers, each with where the sandbox speaks its OpenAI form, and the usual name of a real key's variable.
PROVIDERS = {
    "openai": ("/v1", "OPENAI_API_KEY"),
    "anthropic": ("/anthropic/v1", "ANTHROPIC_API_KEY"),
    "google": ("/v1beta/openai", "GOOGLE_API_KEY"),
    "huggingface": ("/huggingface/v1", "HF_TOKEN"),
}
# AWS Bedrock has a credential in two parts, and no form but its own. Only our variable makes it real: AWS' usual ones
# stand in many a shell.
_BEDROCK = "TOLLKEEPER_PROXY_BEDROCK"
_AWS = {
    "SECRET_ACCESS_KEY": "AWS_SECRET_ACCESS_KEY",
    "SESSION_TOKEN": "AWS_SESSION_TOKEN",
    "REGION": "AWS_REGION",
    "BASE_URL": "",
}
_GOOGLE_NATIVE = "TOLLKEEPER_PROXY_GOOGLE_NATIVE_BASE_URL"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Providers:
    """The model providers. With one real provider there is no sandbox for the others: the two never mix."""

    environ: Mapping[str, str]
    credentials: Credentials
    port: int

    def real(self) -> dict[str, str]:
        """The settings of the real providers that the environment gives a key or an address of."""
        settings = {}
        for provider, (_, variable) in PROVIDERS.items():
            prefix = f"TOLLKEEPER_PROXY_{provider.upper()}"
            if key := self.environ.get(f"{prefix}_API_KEY") or self.environ.get(variable):
                settings[f"{prefix}_API_KEY"] = key
            if address := self.environ.get(f"{prefix}_BASE_URL"):
                settings[f"{prefix}_BASE_URL"] = address
        if address := self.environ.get(_GOOGLE_NATIVE):
            settings[_GOOGLE_NATIVE] = address
        if key := self.environ.get(f"{_BEDROCK}_ACCESS_KEY_ID"):
            settings[f"{_BEDROCK}_ACCESS_KEY_ID"] = key
            for part, usual in _AWS.items():
                if value := self.environ.get(f"{_BEDROCK}_{part}") or self.environ.get(usual):
                    settings[f"{_BEDROCK}_{part}"] = value
        return settings

    @property
    def url(self) -> str:
        """Where the sandbox is; empty where there is none."""
        return "" if self.real() else f"http://{HOST}:{self.port}"

    def settings(self) -> dict[str, str]:
        """What the proxy is told of them."""
        if real := self.real():
            return real
        settings = {
            _GOOGLE_NATIVE: f"{self.url}/v1beta",
            f"{_BEDROCK}_BASE_URL": self.url,
            f"{_BEDROCK}_ACCESS_KEY_ID": self._key(),
            f"{_BEDROCK}_SECRET_ACCESS_KEY": self._aws_secret(),
        }
        for provider, (path, _) in PROVIDERS.items():
            prefix = f"TOLLKEEPER_PROXY_{provider.upper()}"
            settings[f"{prefix}_BASE_URL"] = f"{self.url}{path}"
            settings[f"{prefix}_API_KEY"] = self._key()
        return settings

    def _key(self) -> str:
        return self.credentials.own("sandbox_provider_key", "sk-sandbox-")

    def _aws_secret(self) -> str:
        return self.credentials.own("sandbox_aws_secret")

    def command(self) -> tuple[str, ...]:
        """The sandbox's module and arguments."""
        listen = ("--listen", f"{HOST}:{self.port}")
        keys = ("--api-key", self._key(), "--aws-secret-key", self._aws_secret())
        return "deploy.local.sandbox.provider", *listen, *keys, *_GRACE


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stripe:
    """Stripe, or the sandbox that keeps its customers in `state` and sends its webhooks to the gateway."""

    environ: Mapping[str, str]
    credentials: Credentials
    port: int
    gateway_url: str
    state: Path

    def real(self) -> dict[str, str]:
        """The settings of the real Stripe, where the environment gives its secret key."""
        prefix = "TOLLKEEPER_SUBSCRIPTIONS_STRIPE"
        names = (f"{prefix}_API_KEY", "STRIPE_SECRET_KEY", "STRIPE_API_KEY")
        key = next((self.environ[name] for name in names if self.environ.get(name)), None)
        if key is None:
            return {}
        secrets = self.environ.get(f"{prefix}_WEBHOOK_SECRETS") or self.environ.get("STRIPE_WEBHOOK_SECRET", "")
        return {
            f"{prefix}_API_KEY": key,
            f"{prefix}_API_BASE": self.environ.get(f"{prefix}_API_BASE", ""),
            f"{prefix}_WEBHOOK_SECRETS": secrets,
        }

    @property
    def url(self) -> str:
        """Where the sandbox is; empty where there is none."""
        return "" if self.real() else f"http://{HOST}:{self.port}"

    @property
    def webhook_secret(self) -> str:
        """What webhooks to this suite are signed with."""
        given = self.real().get("TOLLKEEPER_SUBSCRIPTIONS_STRIPE_WEBHOOK_SECRETS")
        return given or self.credentials.own("stripe", "whsec_")

    def settings(self) -> dict[str, str]:
        """What the subscriptions service is told of it."""
        return self.real() or {
            "TOLLKEEPER_SUBSCRIPTIONS_STRIPE_API_KEY": self._key(),
            "TOLLKEEPER_SUBSCRIPTIONS_STRIPE_API_BASE": self.url,
            "TOLLKEEPER_SUBSCRIPTIONS_STRIPE_WEBHOOK_SECRETS": self.webhook_secret,
        }

    def _key(self) -> str:
        return self.credentials.own("sandbox_stripe_key", "sk_test_sandbox")

    def command(self) -> tuple[str, ...]:
        """The sandbox's module and arguments."""
        listen = ("--listen", f"{HOST}:{self.port}", "--state", str(self.state))
        webhook = ("--webhook-url", f"{self.gateway_url}/webhook/stripe", "--webhook-secret", self.webhook_secret)
        return "deploy.local.sandbox.stripe", *listen, "--api-key", self._key(), *webhook, *_GRACE
