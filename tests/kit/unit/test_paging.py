"""Owns the tests of page tokens: bound to their request, and never trusted more than any other input."""

import base64
import json
from datetime import UTC, datetime

import pytest
from google.longrunning.operations_pb2 import ListOperationsRequest

from services.kit.paging import page_position, page_token
from services.kit.validation import Violations

REQUEST = ListOperationsRequest(name="acme", filter="open", page_size=10)
MOMENT = datetime(2026, 11, 21, 9, 30, 0, 1, tzinfo=UTC)


def position(token, *kinds, **changes):
    """The position a request with this token asks for, and the fields that are wrong with it."""
    request = ListOperationsRequest(name="acme", filter="open", page_size=10)
    request.MergeFrom(ListOperationsRequest(page_token=token, **changes))
    v = Violations()
    return page_position(v, request, *kinds), [violation.field for violation in v.found]


def forged(*content):
    """A token with the right digest and a position of the caller's own making."""
    token = page_token(REQUEST)
    (digest,) = json.loads(base64.urlsafe_b64decode(token + "=" * (-len(token) % 4)))
    return base64.urlsafe_b64encode(json.dumps([digest, *content]).encode()).decode().rstrip("=")


@pytest.mark.parametrize(
    "parts", [(7,), ("b",), ("b", 7), (-(2**63) + 1, 2**63 - 1), ("käse 7",), (MOMENT, "b")], ids=str
)
def test_token_gives_back_the_position_it_was_made_from(parts):
    assert position(page_token(REQUEST, *parts), *map(type, parts)) == (parts, [])


def test_first_page_has_no_token():
    assert position("", int) == (None, [])


def test_page_size_may_change_from_page_to_page():
    assert position(page_token(REQUEST, 7), int, page_size=99) == ((7,), [])


@pytest.mark.parametrize("changes", [{"name": "other"}, {"filter": "closed"}], ids=str)
def test_token_of_another_request_is_refused(changes):
    assert position(page_token(REQUEST, 7), int, **changes) == (None, ["page_token"])


@pytest.mark.parametrize(
    "token",
    [
        "x",
        "=",
        "ä",
        "\0",
        "a" * 10_000,
        page_token(REQUEST, 7)[:-3],
        page_token(REQUEST, "7"),
        page_token(REQUEST, 7, 8),
        page_token(REQUEST),
        forged(True),
        forged(7.5),
        forged(None),
        forged([7]),
        forged(2**63),
        forged(-(2**64)),
        base64.urlsafe_b64encode(b"[" * 1_400).decode(),
        base64.urlsafe_b64encode(b'{"a": 1}').decode(),
        base64.urlsafe_b64encode(b"\xff\xfe").decode(),
        base64.urlsafe_b64encode(b"7").decode(),
    ],
    ids=lambda token: token[:12],
)
def test_what_is_no_token_of_a_number_is_refused(token):
    assert position(token, int) == (None, ["page_token"])


@pytest.mark.parametrize("text", ["a\0b", "\ud800", "a\nb"], ids=ascii)
def test_forged_text_that_no_database_takes_is_refused(text):
    assert position(forged(text), str) == (None, ["page_token"])


@pytest.mark.parametrize("part", ["2026-11-21T09:30:00", "2026-11-21 and so on", 7, None], ids=str)
def test_moment_that_is_none_or_of_no_zone_is_refused(part):
    assert position(forged(part), datetime) == (None, ["page_token"])
