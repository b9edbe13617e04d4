"""Owns the suite's secrets: made at the first start, kept readable by their owner only, used again ever after."""

from __future__ import annotations

import json
import secrets
import time
from pathlib import Path

from deploy.local.home import Home
from services.kit.identity import Identity, Role, TokenSigner, make_keypair

SERVICE_TOKEN_SECONDS = 365 * 24 * 3600
# A token that has been in use for this long is made anew at the next start.
_TOKEN_RENEWAL_SECONDS = SERVICE_TOKEN_SECONDS / 4
DEVELOPER = "developer"  # the subject of the service token that is for people


class Credentials:
    """Everything secret of one home. Making it makes what is missing."""

    def __init__(self, home: Home) -> None:
        self._home = home
        try:
            self._kept: dict[str, str] = json.loads(home.path("secrets.json").read_text())
        except FileNotFoundError:
            self._kept = {}
        self.signing_key_file = home.path("identity.pem")
        self.jwks_file = home.path("identity.jwks.json")
        if not (self.signing_key_file.exists() and self.jwks_file.exists()):
            pem, jwks = make_keypair()
            home.write_private(self.signing_key_file.name, pem)
            home.write_private(self.jwks_file.name, json.dumps(jwks))

    def get(self, name: str) -> str | None:
        """A secret that somebody else made, for example an API key; None where it is not known."""
        return self._kept.get(name)

    def keep(self, name: str, value: str) -> None:
        """Keep such a secret."""
        self._kept[name] = value
        self._home.write_private("secrets.json", json.dumps(self._kept, indent=2, sort_keys=True))

    def own(self, name: str, prefix: str = "") -> str:
        """A secret of our own making: `prefix` and 32 random hexadecimal digits."""
        if name not in self._kept:
            self.keep(name, prefix + secrets.token_hex(16))
        return self._kept[name]

    def service_token_file(self, subject: str) -> Path:
        """A file with a token of role SERVICE for `subject`."""
        file = self._home.path("tokens") / f"{subject}.jwt"
        fresh_enough = file.exists() and time.time() - file.stat().st_mtime < _TOKEN_RENEWAL_SECONDS
        # A token that another key signed is worth nothing.
        if not fresh_enough or file.stat().st_mtime < self.signing_key_file.stat().st_mtime:
            signer = TokenSigner(self.signing_key_file.read_bytes())
            token = signer.sign(Identity(Role.SERVICE, subject=subject), SERVICE_TOKEN_SECONDS)
            self._home.write_private(f"tokens/{subject}.jwt", token)
        return file

    def service_token(self, subject: str) -> str:
        """The token in that file."""
        return self.service_token_file(subject).read_text()
