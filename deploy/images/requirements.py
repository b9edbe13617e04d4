"""Owns each image's requirements: the part of requirements.lock that one extra needs, versions and hashes as there.

The lock says of each package who needs it (`# via`); what an image needs is found by following that backwards from the
extra's own requirements. Nothing is resolved anew and nothing is asked of an index, so the result is the same anywhere.
"""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
FOLDER = Path(__file__).resolve().parent

SERVICES = ("ledger", "pricing", "subscriptions", "proxy")
IMAGES = (*SERVICES, "gateway")
# The gateway only renders a configuration: of what every service needs it takes the contracts' own packages.
_GATEWAY = ("googleapis-common-protos", "protobuf")

_HEADER = """\
# Made by `make images` from requirements.lock: what the extra `{image}` needs, and nothing else.
"""
_PIN = re.compile(r"(?m)^(?=[A-Za-z0-9])")
_NAME = re.compile(r"[A-Za-z0-9._-]+")
_NEEDED_BY = re.compile(r"^ +#(?: via|  ) +(\S+)", re.MULTILINE)


class LockError(Exception):
    """requirements.lock does not hold what pyproject.toml asks for."""


def render(image: str) -> str:
    """The requirements file of an image, for `pip install --require-hashes`.

    Raises:
        LockError: a package of its extra is not in the lock.
    """
    pins = _pins((ROOT / "requirements.lock").read_text())
    wanted = _roots(image)
    if missing := sorted(wanted - set(pins)):
        raise LockError(f"not in requirements.lock: {', '.join(missing)}; run `make lock`")
    grown = True
    while grown:
        further = {name for name, pin in pins.items() if name not in wanted and _needed_by(pin) & wanted}
        wanted |= further
        grown = bool(further)
    return _HEADER.format(image=image) + "".join(_without_comments(pins[name]) for name in sorted(wanted))


def _roots(image: str) -> set[str]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    every: list[str] = [*_GATEWAY] if image == "gateway" else project["dependencies"]
    return {_name(requirement) for requirement in [*every, *project["optional-dependencies"][image]]}


def _pins(lock: str) -> dict[str, str]:
    """Each package's lines of the lock, by name."""
    blocks = [block for block in _PIN.split(lock) if not block.startswith("#")]
    return {_name(block): block for block in blocks if block.strip()}


def _needed_by(pin: str) -> set[str]:
    return {_name(parent) for parent in _NEEDED_BY.findall(pin)}


def _without_comments(pin: str) -> str:
    return "".join(line for line in pin.splitlines(keepends=True) if not line.lstrip().startswith("#"))


def _name(requirement: str) -> str:
    """A requirement's package, as indexes spell it."""
    found = _NAME.match(requirement)
    assert found is not None
    return re.sub(r"[-_.]+", "-", found[0]).lower()
