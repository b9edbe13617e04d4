"""Owns what faults of the sandbox provider are: which requests they match, and how those then behave."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from deploy.local.sandbox.armed import Armed, ArmedFault, ArmingError, times, wished
from deploy.local.sandbox.provider.behaviour import DirectiveError, Settings, parse
from deploy.local.sandbox.provider.refusal import Provider

_MATCHED: Final = ("provider", "model", "api_key", "stream")


@dataclass(slots=True, kw_only=True)
class ProviderFault(ArmedFault):
    """One fault in wait: `match` names what a request must have, `settings` are a directive's."""

    match: dict[str, Any]
    settings: Settings

    def public(self) -> dict[str, Any]:
        """What the administration address shows of it; of a key only the end."""
        match = dict(self.match)
        if "api_key" in match:
            match["api_key"] = f"…{match['api_key'][-4:]}"
        fault = " ".join(f"{name}={value}" for name, value in self.settings.items())
        return {"match": match, "fault": fault} | ArmedFault.public(self)


class Faults(Armed[ProviderFault]):
    """The provider's armed faults."""

    def arm(self, wish: Any) -> ProviderFault:
        """Arm what an administrator's JSON asks for. Raises ArmingError."""
        wish = wished(wish, {"match", "fault"})
        return self.add(
            ProviderFault(match=_match(wish.get("match") or {}), settings=_settings(wish.get("fault")), **times(wish))
        )

    def settings_for(self, *, provider: Provider, model: str, api_key: str, stream: bool) -> Settings:
        """The settings of the fault that strikes this request, which is counted; empty where none does."""
        request = {"provider": provider.value, "model": model, "api_key": api_key, "stream": stream}
        fault = self.take(lambda fault: all(request[name] == value for name, value in fault.match.items()))
        return fault.settings if fault is not None else {}


def _match(wish: Any) -> dict[str, Any]:
    if not isinstance(wish, Mapping) or set(wish) - set(_MATCHED):
        raise ArmingError(f"match may hold only {', '.join(_MATCHED)}")
    for name, value in wish.items():
        expected = bool if name == "stream" else str
        if not isinstance(value, expected):
            raise ArmingError(f"match.{name} must be a {'boolean' if expected is bool else 'string'}")
    if wish.get("provider") not in (None, *(provider.value for provider in Provider)):
        raise ArmingError(f"match.provider must be one of {', '.join(Provider)}")
    return dict(wish)


def _settings(wish: Any) -> Settings:
    if isinstance(wish, Mapping):
        wish = " ".join(f"{name}={value}" for name, value in wish.items())
    if not isinstance(wish, str) or not wish.strip():
        raise ArmingError("fault is required: words as in a directive, or an object of them")
    try:
        return parse(wish)
    except DirectiveError as error:
        raise ArmingError(str(error)) from error
