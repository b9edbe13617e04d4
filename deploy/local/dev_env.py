"""Owns `dev.env`: the addresses and keys of a suite, for a developer's shell and for tests."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from deploy.local.home import Home
from deploy.local.postgres import SERVICES

# Each variable with what it is, in the order they stand in the file.
VARIABLES = {
    "TOLLKEEPER_URL": "The gateway.",
    "TOLLKEEPER_ADMIN_KEY": "An admin's API key.",
    "TOLLKEEPER_DEMO_KEY": "The API key of a funded prepaid account.",
    **{f"TOLLKEEPER_{service.upper()}_ADDR": f"The {service} service, gRPC." for service in SERVICES},
    "TOLLKEEPER_SERVICE_TOKEN": "A bearer token for direct gRPC calls, role SERVICE.",
    "TOLLKEEPER_DATABASE_URL": "The Postgres server, as its superuser.",
    "TOLLKEEPER_REDIS_URL": "Redis.",
    "STRIPE_WEBHOOK_SECRET": "Signs Stripe's webhooks to this suite.",
    "TOLLKEEPER_SANDBOX_STRIPE_URL": "The sandbox Stripe; empty where a real secret key is given.",
    "TOLLKEEPER_SANDBOX_PROVIDER_URL": "The sandbox model provider; empty where real provider keys are given.",
}


def write(home: Home, values: Mapping[str, str]) -> Path:
    """Write the value of each of `VARIABLES`, for `set -a; . dev.env` and for tools that read such files."""
    text = "# The local suite, as `make up` left it. For this machine only; it holds keys.\n"
    for name, meaning in VARIABLES.items():
        text += f"# {meaning}\n{name}={_quoted(values[name])}\n"
    return home.write_private("dev.env", text)


def _quoted(value: str) -> str:
    """Bare where a shell takes it so, else in single quotes."""
    if all(character.isalnum() or character in "_-.:/@%+,=" for character in value):
        return value
    return "'" + value.replace("'", "'\\''") + "'"
