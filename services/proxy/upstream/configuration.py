"""Owns which providers there are: base addresses, credentials and headers, read from settings and the providers' file.

Whatever is wrong with them is told when the proxy starts, all at once, each by the name of its setting or field.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from services.kit.command import CommandError
from services.proxy.settings import ProxySettings
from services.proxy.upstream.outgoing import Headers, is_reserved, is_well_formed
from services.proxy.upstream.signing import AwsKey

_MAX_FILE_BYTES = 1024 * 1024
_MAX_PROVIDERS = 100
_MAX_KEYS = 100
_MAX_KEY_LENGTH = 8192
_MAX_HEADERS = 50
_MAX_MODELS = 10_000
_MAX_ID_LENGTH = 2048  # the longest ARN of AWS

_VISIBLE = re.compile(r"[\x21-\x7e]+")
_REGION = re.compile(r"[a-z0-9-]{1,64}")
_REGION_FIELD = "{region}"

# The version of the Messages API that this proxy knows, where the client asks for none.
_ANTHROPIC_DEFAULTS = (("anthropic-version", "2023-06-01"),)


class ConfigurationError(CommandError):
    """The providers' settings or their file are wrong; the message names every field."""


class Authentication(Enum):
    """How a credential is shown."""

    BEARER = "authorization"
    X_API_KEY = "x-api-key"
    X_GOOG_API_KEY = "x-goog-api-key"
    SIGNATURE_V4 = "signature"


@dataclass(frozen=True, slots=True)
class Base:
    """One of a provider's base addresses, how a credential is shown there, and headers where nobody sets them."""

    url: str
    authentication: Authentication = Authentication.BEARER
    defaults: Headers = ()


@dataclass(frozen=True, slots=True, eq=False)
class Provider:
    """A provider that may be called. `cap_field` is what its OpenAI form calls the output cap.

    `models` are its own ids of models, by the catalogue's names, where they differ.
    """

    name: str
    cap_field: str
    bases: Mapping[str, Base]
    keys: tuple[str, ...] | tuple[AwsKey, ...] = field(repr=False)
    headers: Headers = ()
    models: Mapping[str, str] = field(default_factory=dict)
    forms: frozenset[str] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "forms", frozenset(self.bases))

    def id_of(self, model: str) -> str:
        """What this provider calls the model that the catalogue, plans and bills call `model`."""
        return self.models.get(model, model)


# ------------------------------------------------------------------------------------------------------------- fields


def _checked_url(url: str) -> str:
    try:
        parts = urlsplit(url)
        plain = parts.port is None or parts.port > 0
    except ValueError:
        raise ValueError("must be a URL") from None
    if parts.scheme not in {"http", "https"} or not parts.hostname or not plain:
        raise ValueError("must be an address that begins with https:// or http://")
    if parts.query or parts.fragment or parts.username is not None:
        raise ValueError("must have no query, fragment or user name")
    return url.rstrip("/")


def _checked_key(key: str) -> str:
    if len(key) > _MAX_KEY_LENGTH or not _VISIBLE.fullmatch(key):
        raise ValueError(f"must be up to {_MAX_KEY_LENGTH} visible ASCII characters without blanks")
    return key


def _checked_headers(headers: dict[str, str]) -> dict[str, str]:
    for name, value in headers.items():
        if not is_well_formed(name, value):
            raise ValueError(f"{name!r} is not a well-formed header")
        if is_reserved(name, operators=True):
            raise ValueError(f"{name!r} is not one that may be set")
    return headers


def _checked_models(models: dict[str, str]) -> dict[str, str]:
    for name, identifier in models.items():
        if not name or name != name.strip():
            raise ValueError(f"{name!r} is no name of a model")
        if len(identifier) > _MAX_ID_LENGTH or not _VISIBLE.fullmatch(identifier) or identifier in {".", ".."}:
            raise ValueError(
                f"the id of {name!r} must be 1 to {_MAX_ID_LENGTH} visible ASCII characters without blanks"
            )
    return models


BaseUrl = Annotated[str, AfterValidator(_checked_url)]
Keys = Annotated[list[Annotated[str, AfterValidator(_checked_key)]], Field(max_length=_MAX_KEYS)]
ExtraHeaders = Annotated[dict[str, str], Field(max_length=_MAX_HEADERS), AfterValidator(_checked_headers)]
ModelIds = Annotated[dict[str, str], Field(max_length=_MAX_MODELS), AfterValidator(_checked_models)]


class _Listed(BaseModel):
    """One provider of the file."""

    model_config = ConfigDict(extra="forbid", strict=True)

    name: str = Field(pattern=r"^[a-z][a-z0-9_-]{0,62}$")
    base_url: BaseUrl
    api_keys: Keys = []
    api_key_file: str = ""
    headers: ExtraHeaders = {}
    models: ModelIds = {}
    forms: list[Literal["chat", "responses", "embeddings"]] = Field(default=["chat"], min_length=1, max_length=3)
    cap_field: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"


class _ProvidersFile(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    providers: list[_Listed] = Field(default=[], max_length=_MAX_PROVIDERS)


# ------------------------------------------------------------------------------------------------------------ sources


def providers_of(settings: ProxySettings) -> dict[str, Provider]:
    """The providers that have a credential, by name. Raises ConfigurationError."""
    reading = _Reading(settings)
    found = [
        reading.openai_form("openai", ("chat", "responses", "embeddings"), cap_field="max_completion_tokens"),
        reading.anthropic(),
        reading.google(),
        reading.openai_form("huggingface", ("chat",)),
        reading.bedrock(),
    ]
    providers = {provider.name: provider for provider in found}
    if settings.providers_file is not None:
        providers |= reading.listed(settings.providers_file, set(providers))
    if reading.wrong:
        raise ConfigurationError("; ".join(reading.wrong))
    return {name: provider for name, provider in providers.items() if provider.keys}


class _Reading:
    """Reads what there is; `wrong` says what cannot be."""

    def __init__(self, settings: ProxySettings) -> None:
        self._settings = settings
        self.wrong: list[str] = []

    def openai_form(self, name: str, forms: Iterable[str], cap_field: str = "max_tokens") -> Provider:
        base = Base(self._url(f"{name}_base_url"))
        return self._provider(name, cap_field, dict.fromkeys(forms, base))

    def anthropic(self) -> Provider:
        url = self._url("anthropic_base_url")
        messages = Base(url, Authentication.X_API_KEY, _ANTHROPIC_DEFAULTS)
        return self._provider("anthropic", "max_tokens", {"chat": Base(url), "messages": messages})

    def google(self) -> Provider:
        base = Base(self._url("google_base_url"))
        native = Base(self._url("google_native_base_url"), Authentication.X_GOOG_API_KEY)
        return self._provider("google", "max_tokens", {"chat": base, "embeddings": base, "gemini": native})

    def bedrock(self) -> Provider:
        region = self._settings.bedrock_region
        if not _REGION.fullmatch(region):
            self._refuse("bedrock_region", "must be the name of a region, such as us-east-1")
        base = Base(
            self._url("bedrock_base_url", lambda url: url.replace(_REGION_FIELD, region)), Authentication.SIGNATURE_V4
        )
        keys, headers = self._aws_keys(region), self._headers("bedrock_headers")
        return Provider("bedrock", "max_tokens", {"converse": base}, keys, headers, self._models("bedrock_models"))

    def _provider(self, name: str, cap_field: str, bases: Mapping[str, Base]) -> Provider:
        keys = self._keys(f"{name}_api_key")
        headers, models = self._headers(f"{name}_headers"), self._models(f"{name}_models")
        return Provider(name, cap_field, bases, keys, headers, models)

    def _aws_keys(self, region: str) -> tuple[AwsKey, ...]:
        ids, secrets = self._keys("bedrock_access_key_id"), self._keys("bedrock_secret_access_key")
        tokens = self._keys("bedrock_session_token")
        if len(secrets) != len(ids):
            self._refuse("bedrock_secret_access_key", f"must be as many as bedrock_access_key_id has, {len(ids)}")
        if tokens and len(tokens) != len(ids):
            self._refuse("bedrock_session_token", f"must be none, or as many as bedrock_access_key_id has, {len(ids)}")
        tokens = tokens or ("",) * len(ids)
        return tuple(
            AwsKey(access, secret, token, region)
            for access, secret, token in zip(ids, secrets, tokens, strict=False)  # uneven ones are refused above
        )

    def listed(self, path: Path, taken: set[str]) -> dict[str, Provider]:
        """The providers of the file."""
        try:
            raw = path.read_bytes()
            if len(raw) > _MAX_FILE_BYTES:
                self.wrong.append(f"{path}: larger than {_MAX_FILE_BYTES} bytes")
                return {}
            told = _ProvidersFile.model_validate(tomllib.loads(raw.decode()))
        except OSError as error:
            self.wrong.append(f"{path}: {error.strerror}")
        except UnicodeDecodeError:
            self.wrong.append(f"{path}: not UTF-8")
        except tomllib.TOMLDecodeError as error:
            self.wrong.append(f"{path}: {error}")
        except ValidationError as error:
            self.wrong += [f"{path}: {_place(e['loc'])}: {_message(e)}" for e in error.errors()]
        else:
            return self._of_file(path, told, taken)
        return {}

    def _of_file(self, path: Path, told: _ProvidersFile, taken: set[str]) -> dict[str, Provider]:
        providers: dict[str, Provider] = {}
        for place, entry in enumerate(told.providers):
            where = f"{path}: providers[{place}]"
            if entry.name in taken or entry.name in providers:
                self.wrong.append(f"{where}.name: there is a provider {entry.name!r} already")
            keys = self._keys_of(where, path, entry)
            bases: dict[str, Base] = dict.fromkeys(entry.forms, Base(entry.base_url))
            headers = tuple(entry.headers.items())
            providers[entry.name] = Provider(entry.name, entry.cap_field, bases, keys, headers, entry.models)
        return providers

    def _keys_of(self, where: str, path: Path, entry: _Listed) -> tuple[str, ...]:
        if bool(entry.api_keys) == bool(entry.api_key_file):
            self.wrong.append(f"{where}: must have either api_keys or api_key_file")
            return ()
        if entry.api_keys:
            return tuple(entry.api_keys)
        source = path.parent / entry.api_key_file
        try:
            with source.open("rb") as file:
                lines = file.read(_MAX_FILE_BYTES).decode().split()
        except (OSError, UnicodeDecodeError) as error:
            said = error.strerror if isinstance(error, OSError) else "not UTF-8"
            self.wrong.append(f"{where}.api_key_file: {source}: {said}")
            return ()
        keys: tuple[str, ...] = tuple(self._valid(f"{where}.api_key_file", Keys, lines) or ())
        if not lines:
            self.wrong.append(f"{where}.api_key_file: {source} is empty")
        return keys

    # ------------------------------------------------------------------------------------------------------- settings

    def _url(self, setting: str, made_of: Callable[[str], str] = str) -> str:
        url: str | None = self._valid(_variable(setting), BaseUrl, made_of(getattr(self._settings, setting)))
        return url or ""

    def _keys(self, setting: str) -> tuple[str, ...]:
        told = [key.strip() for key in getattr(self._settings, setting).split(",")]
        return tuple(self._valid(_variable(setting), Keys, [key for key in told if key]) or ())

    def _headers(self, setting: str) -> Headers:
        headers: dict[str, str] | None = self._valid(_variable(setting), ExtraHeaders, getattr(self._settings, setting))
        return tuple((headers or {}).items())

    def _models(self, setting: str) -> dict[str, str]:
        models: dict[str, str] | None = self._valid(_variable(setting), ModelIds, getattr(self._settings, setting))
        return models or {}

    def _refuse(self, setting: str, message: str) -> None:
        self.wrong.append(f"{_variable(setting)}: {message}")

    def _valid(self, where: str, kind: Any, value: Any) -> Any:
        """`value` where it is of the kind, else None and noted. What was given is never told: it may be a secret."""
        try:
            return TypeAdapter(kind).validate_python(value, strict=True)
        except ValidationError as error:
            self.wrong += [f"{where}{_place(e['loc'])}: {_message(e)}" for e in error.errors()]
            return None


def _variable(setting: str) -> str:
    return f"TOLLKEEPER_PROXY_{setting.upper()}"


def _place(loc: tuple[str | int, ...]) -> str:
    """A field's path: `providers[1].base_url`."""
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in loc).removeprefix(".")


def _message(error: Any) -> str:
    return str(error["msg"]).removeprefix("Value error, ")
