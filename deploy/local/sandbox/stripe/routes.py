"""Owns the table of requests: which method and path is which operation, and what parameters it takes."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from typing import Any, Final

from deploy.local.sandbox.stripe.refusal import Obj
from deploy.local.sandbox.stripe.rendering import Listing
from deploy.local.sandbox.stripe.world import World

Result = Obj | Listing


@dataclasses.dataclass(frozen=True)
class Call:
    """One request on its way to its operation."""

    world: World
    ids: tuple[str, ...]
    params: Obj
    url: str = ""

    @property
    def id(self) -> str:
        """The id in the path."""
        return self.ids[0]

    def get(self, name: str, default: Any = None) -> Any:
        """A parameter's value."""
        return self.params.get(name, default)


Operation = Callable[[Call], Result]


@dataclasses.dataclass(frozen=True)
class Route:
    """One operation and where it is reached."""

    method: str
    path: str
    params: Any  # the library's typed dictionary
    built: frozenset[str]  # dotted names of the parameters that the sandbox acts on
    operation: Operation
    pattern: re.Pattern[str]


ROUTES: Final[list[Route]] = []
_LISTED: Final = "limit starting_after ending_before created"


def route(method: str, path: str, params: Any, built: str = "") -> Callable[[Operation], Operation]:
    """Register an operation. `built` names its parameters, `+list` those of lists; `expand` is always there."""
    names = built.replace("+list", _LISTED).split()
    pattern = re.compile(re.sub(r"\{\w+\}", "([^/]+)", path.replace(".", r"\.")) + r"\Z")

    def register(operation: Operation) -> Operation:
        ROUTES.append(Route(method, path, params, frozenset([*names, "expand"]), operation, pattern))
        return operation

    return register


def find(method: str, path: str) -> tuple[Route, tuple[str, ...]] | None:
    """The route of a request and the ids in its path; fixed paths win over those with an id."""
    best: tuple[Route, tuple[str, ...]] | None = None
    for candidate in ROUTES:
        if candidate.method == method and (match := candidate.pattern.match(path)) is not None:
            if not match.groups():
                return candidate, ()
            best = best or (candidate, match.groups())
    return best
