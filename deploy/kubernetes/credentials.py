"""Owns the identity credentials of a cluster: the signing key, the public keys that services believe, their tokens.

They are files of an operator's machine, made here, put into Secrets by hand (README.md), kept nowhere in the project.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from services.kit.identity import Identity, Role, TokenSigner, make_keypair

# Those that call others. The gateway calls with what the proxy gives it.
CALLERS = ("ledger", "pricing", "subscriptions", "proxy")
TOKEN_DAYS = 180

_KEY, _KEYS = "identity.pem", "jwks.json"


class CredentialsError(Exception):
    """What was asked does not fit what the folder holds; nothing was written."""


def make(folder: Path) -> list[Path]:
    """A first key, its public half, and a token of role SERVICE for each service; the files.

    Raises:
        CredentialsError: there is a key already.
    """
    if (folder / _KEY).exists():
        raise CredentialsError(f"{folder / _KEY} is there already: `--renew-tokens`, `--rotate` or another folder")
    pem, jwks = make_keypair()
    return [_put(folder / _KEY, pem), _put_keys(folder, jwks["keys"]), *renew_tokens(folder)]


def rotate(folder: Path) -> list[Path]:
    """A new key and tokens by it. The old key's public half stays believed until `forget`; the files.

    Raises:
        CredentialsError: there is no key, or a rotation before this one is not over.
    """
    believed = _believed(folder)
    if len(believed) > 1:
        raise CredentialsError(f"{folder / _KEYS} has two keys: end the rotation under way with `--forget` first")
    pem, jwks = make_keypair()
    return [_put_keys(folder, [*jwks["keys"], *believed]), _put(folder / _KEY, pem), *renew_tokens(folder)]


def forget(folder: Path) -> list[Path]:
    """Believe the present key alone; the file.

    Raises:
        CredentialsError: there is no key.
    """
    present = _signer(folder).key_id
    return [_put_keys(folder, [key for key in _believed(folder) if key["kid"] == present])]


def renew_tokens(folder: Path) -> list[Path]:
    """A token for each service, by the present key, good for half a year; the files.

    Raises:
        CredentialsError: there is no key.
    """
    signer = _signer(folder)
    return [
        _put(folder / f"{caller}.token", signer.sign(Identity(Role.SERVICE, subject=caller), TOKEN_DAYS * 24 * 3600))
        for caller in CALLERS
    ]


def _signer(folder: Path) -> TokenSigner:
    try:
        return TokenSigner((folder / _KEY).read_bytes())
    except FileNotFoundError as error:
        raise CredentialsError(f"no {folder / _KEY}: make one first") from error


def _believed(folder: Path) -> list[dict[str, Any]]:
    try:
        keys: list[dict[str, Any]] = json.loads((folder / _KEYS).read_text())["keys"]
    except FileNotFoundError as error:
        raise CredentialsError(f"no {folder / _KEYS}: make a key first") from error
    return keys


def _put_keys(folder: Path, keys: list[dict[str, Any]]) -> Path:
    return _put(folder / _KEYS, json.dumps({"keys": keys}, indent=1))


def _put(file: Path, text: str) -> Path:
    """Write a file that its owner alone can read, whole or not at all."""
    file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    part = file.with_name(f".{file.name}.part")
    with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as opened:
        opened.write(text)
    part.replace(file)
    return file
