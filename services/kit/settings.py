"""Owns how a service is configured: environment variables, the service's own first, then the suite's."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, ClassVar

from pydantic import Field, field_validator
from pydantic_settings import BaseSettings, EnvSettingsSource, NoDecode, PydanticBaseSettingsSource, SettingsConfigDict

# How alike two names are (0 to 1) of which one is taken for the other misspelt.
_ALIKE = 0.82


class ServiceSettings(BaseSettings):
    """What every service is told. A field `x` is read from `TOLLKEEPER_<SERVICE>_X`, else from `TOLLKEEPER_X`.

    Subclasses set `service` ("ledger") and add fields. Unset variables and empty ones mean the default.
    """

    model_config = SettingsConfigDict(frozen=True, extra="ignore", env_ignore_empty=True)

    service: ClassVar[str] = "service"

    listen: str = Field(default="127.0.0.1:0", description="host:port of the gRPC server; port 0 takes a free one")
    metrics_listen: str = Field(default="", description="host:port of the Prometheus endpoint; empty for none")
    log_level: str = Field(default="info", pattern="^(debug|info|warning|error)$", description="least level logged")

    database_url: str = Field(default="", repr=False, description="postgresql://user:password@host:port/database")
    database_pool_size: int = Field(default=10, ge=1, le=1000, description="connections held by one process")
    statement_timeout_seconds: float = Field(default=10, gt=0, description="longest a database statement may run")
    redis_url: str = Field(default="", repr=False, description="redis://…, rediss://… or unix://…; empty for none")

    identity_jwks_file: Path | None = Field(default=None, description="public keys of identity and service tokens")
    service_token: str = Field(default="", repr=False, description="the token this service shows to others")
    service_token_file: Path | None = Field(default=None, description="file with that token, read again on change")

    tls_cert_file: Path | None = Field(default=None, description="certificate chain (PEM) of this service")
    tls_key_file: Path | None = Field(default=None, description="its private key (PEM)")
    tls_ca_file: Path | None = Field(default=None, description="CA (PEM) of its peers, clients and servers: mutual TLS")
    tls_service_names: Annotated[tuple[str, ...], NoDecode] = Field(
        default=(), description="names in client certificates (SAN) that are services, separated by commas"
    )

    otlp_endpoint: str = Field(default="", description="http(s)://host:port that takes traces by OTLP; empty for none")
    trace_share: float = Field(default=1, ge=0, le=1, description="of traces that begin here, the share that is kept")

    drain_seconds: float = Field(
        default=0, ge=0, le=60, description="how long calls are still taken after SIGTERM, health saying that it ends"
    )
    grace_seconds: float = Field(default=20, ge=0, description="how long running calls may take after SIGTERM")
    deadline_seconds: float = Field(default=30, gt=0, description="given to unary calls that come without a deadline")
    max_message_bytes: int = Field(default=16 * 1024 * 1024, ge=1024, description="largest message taken or sent")
    max_concurrent: int = Field(default=256, ge=1, description="calls served at once; threads, on a sync server")
    reuse_port: bool = Field(default=False, description="let several processes listen on the same port")
    reflection: bool = Field(default=True, description="whether gRPC reflection is served")

    @field_validator("tls_service_names", mode="before")
    @classmethod
    def _split(cls, names: object) -> object:
        return tuple(name.strip() for name in names.split(",") if name.strip()) if isinstance(names, str) else names

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,  # noqa: ARG003 (replaced by the two below)
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003 (a service reads no file it was not told of)
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Constructor arguments, then the service's own variables, then the suite's."""
        return (
            init_settings,
            EnvSettingsSource(settings_cls, env_prefix=f"TOLLKEEPER_{cls.service.upper()}_"),
            EnvSettingsSource(settings_cls, env_prefix="TOLLKEEPER_"),
        )


def misspelt(variables: Iterable[str], prefix: str, known: Iterable[str]) -> list[tuple[str, str]]:
    """Of `variables` those that begin with `prefix` and name nothing `known` but nearly do, each with what it means.

    Others are left alone: a shell may hold variables of other services, or of other programs.
    """
    names = {f"{prefix}{name}".upper(): name.upper() for name in known}
    ours = sorted(name for name in map(str.upper, variables) if name.startswith(prefix) and name not in names)
    near = ((name, get_close_matches(name.removeprefix(prefix), names.values(), 1, _ALIKE)) for name in ours)
    return [(name, prefix + found[0]) for name, found in near if found]
