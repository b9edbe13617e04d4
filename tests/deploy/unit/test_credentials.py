"""The identity credentials of a cluster, against the kit that has to believe them."""

import json

import pytest

from deploy.kubernetes import credentials
from services.kit.identity import Role, TokenVerifier
from services.kit.refusals import TokenInvalid


def verified(folder, token):
    return TokenVerifier(json.loads((folder / "jwks.json").read_text())).verify(token)


def test_each_service_has_a_token_that_the_others_believe(tmp_path):
    credentials.make(tmp_path / "new")
    for service in credentials.CALLERS:
        identity = verified(tmp_path / "new", (tmp_path / "new" / f"{service}.token").read_text())
        assert (identity.role, identity.subject) == (Role.SERVICE, service)


def test_files_are_for_their_owner_alone_and_never_overwritten_by_a_first_key(tmp_path):
    for file in credentials.make(tmp_path):
        assert file.stat().st_mode & 0o077 == 0
    with pytest.raises(credentials.CredentialsError, match="is there already"):
        credentials.make(tmp_path)


def test_during_a_rotation_tokens_of_both_keys_are_believed_and_after_it_of_one(tmp_path):
    credentials.make(tmp_path)
    old = (tmp_path / "ledger.token").read_text()
    credentials.rotate(tmp_path)
    new = (tmp_path / "ledger.token").read_text()
    assert verified(tmp_path, old) == verified(tmp_path, new)
    with pytest.raises(credentials.CredentialsError, match="forget"):
        credentials.rotate(tmp_path)
    credentials.forget(tmp_path)
    assert verified(tmp_path, new).subject == "ledger"
    with pytest.raises(TokenInvalid):
        verified(tmp_path, old)


def test_without_a_key_nothing_is_made_of_nothing(tmp_path):
    for step in (credentials.rotate, credentials.forget, credentials.renew_tokens):
        with pytest.raises(credentials.CredentialsError):
            step(tmp_path)
    assert list(tmp_path.iterdir()) == []
