"""Owns how headers are put on an answer, which of the inside it may show, and the taking off of all others."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable
from typing import Any

Json = dict[str, Any]

_OURS = "x-tollkeeper-"
# What of ours a caller may see.
PUBLIC = tuple(_OURS + name for name in ("cost-credits", "credits-remaining", "request-id", "fallback"))


def put(name: str, value: str) -> Json:
    """A header that an answer gets, whatever it was."""
    return {"header": {"key": name, "value": value}, "append_action": "OVERWRITE_IF_EXISTS_OR_ADD"}


def removals() -> list[Json]:
    """Header mutations that take off what gRPC, Envoy and the services say among themselves."""
    names = ("grpc-.*", "x-envoy-.*", _OURS + _other_than(name.removeprefix(_OURS) for name in PUBLIC))
    # One expression, so that an answer's headers are walked once. Envoy has their names in small letters.
    return [{"remove_on_match": {"key_matcher": {"safe_regex": {"regex": "|".join(names)}}}}]


def _other_than(texts: Iterable[str]) -> str:
    """A regular expression of every text but these, for RE2, which has no look-ahead.

    Such a text goes on as none of them does, or as some do and is another one after that, or it ends where none ends.
    """
    ends, rests = False, defaultdict(list)
    for text in texts:
        if text:
            rests[text[0]].append(text[1:])
        else:
            ends = True
    known = "".join(map(re.escape, sorted(rests)))
    choices = [f"[^{known}].*" if known else ".+"]
    choices += [re.escape(first) + _other_than(rest) for first, rest in sorted(rests.items())]
    return f"(?:{'|'.join(choices)}{'' if ends else '|'})"
