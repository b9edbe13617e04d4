"""Owns memories of bounded size: what was kept longest ago makes room."""

from __future__ import annotations

from typing import TypeVar

_K = TypeVar("_K")
_V = TypeVar("_V")


def keep(kept: dict[_K, _V], key: _K, value: _V, *, at_most: int) -> None:
    """Keep a value as the newest of at most so many; the oldest go."""
    kept.pop(key, None)
    while len(kept) >= at_most:
        del kept[next(iter(kept))]
    kept[key] = value
