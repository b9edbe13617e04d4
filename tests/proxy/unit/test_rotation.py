"""The rule of rotation: keys of one line are counted as one, and nothing else of a key changes."""

import dataclasses
from datetime import UTC, datetime, timedelta

import pytest

from services.proxy.errors import KeyNotActive, KeyReplaced
from services.proxy.keys.model import Key

NOW = datetime(2026, 11, 21, 12, tzinfo=UTC)


def key(**fields):
    plain = {
        "key_id": "key-1",
        "account_id": "acme",
        "name": "CI",
        "key_type": "standard",
        "prefix": "tk_live_",
        "last_four": "abcd",
        "workspace": "web",
        "allowed_models": frozenset({"gpt-4o"}),
        "daily_limit_nanos": 5,
        "monthly_limit_nanos": 50,
        "requests_per_minute": 6,
        "tokens_per_minute": 60,
        "created_at": NOW - timedelta(days=1),
    }
    return Key(**plain | fields)


def test_limits_count_all_keys_of_a_line_as_its_first():
    line = [key()]
    for number in range(5):
        line.append(line[-1].rotated(f"secret-{number:04d}", NOW))
    assert {member.limit_subject for member in line} == {"key-1"}
    assert len({member.key_id for member in line}) == len(line)


def test_rotation_changes_nothing_but_what_names_the_key():
    old = key(expires_at=NOW + timedelta(days=3))
    new = old.rotated("tk_live_wxyz", NOW)
    changed = {name for name in Key.__dataclass_fields__ if getattr(old, name) != getattr(new, name)}
    assert changed == {"key_id", "last_four", "created_at", "first_key_id"}
    assert new.last_four == "wxyz"


@pytest.mark.parametrize(
    ("fields", "refusal"),
    [
        ({"revoked_at": NOW}, KeyNotActive),
        ({"expires_at": NOW}, KeyNotActive),
        ({"expires_at": NOW + timedelta(days=1), "replaced_by_key_id": "key-2"}, KeyReplaced),
    ],
    ids=["revoked", "expired", "replaced"],
)
def test_key_that_has_ended_or_was_replaced_is_not_rotated(fields, refusal):
    with pytest.raises(refusal):
        dataclasses.replace(key(), **fields).require_rotatable(NOW)
