"""Owns the tests of field checks: what they let through, and that all faults are named at once."""

import pytest

from services.kit.refusals import InvalidArgument
from services.kit.validation import Violations, is_identifier


@pytest.mark.parametrize("text", ["a", "acme", "Acme-2.eu:web_1", "0", "a" * 64])
def test_identifiers(text):
    assert is_identifier(text)


@pytest.mark.parametrize("text", ["", "-a", ".a", "_a", "a b", "a/b", "a\n", "ä", "a" * 65, "a" * 10_000, "a\x00"])
def test_not_identifiers(text):
    assert not is_identifier(text)


def test_all_faults_are_named_at_once():
    v = Violations()
    v.identifier("account_id", "no spaces please")
    v.text("display_name", "x" * 201, max_length=200)
    v.positive("amount_nanos", 0)
    with pytest.raises(InvalidArgument) as caught:
        v.raise_if_any()
    assert [x.field for x in caught.value.violations] == ["account_id", "display_name", "amount_nanos"]
    for name in ("account_id", "display_name", "amount_nanos"):
        assert name in caught.value.message


def test_message_says_of_each_field_what_is_wrong_with_it():
    v = Violations()
    v.text("events[0].id", "", max_length=100, required=True)
    v.between("warn_percent", 0, 1, 100)
    v.text("events[1].id", "", max_length=100, required=True)
    with pytest.raises(InvalidArgument) as caught:
        v.raise_if_any()
    said = "invalid events[0].id, events[1].id: is required; warn_percent: must be from 1 to 100"
    assert caught.value.message == said


def test_long_values_are_not_repeated_to_the_caller():
    v = Violations()
    v.identifier("account_id", "x" * 10_000)
    v.text("name", "y" * 10_000, max_length=10)
    with pytest.raises(InvalidArgument) as caught:
        v.raise_if_any()
    assert len(str(caught.value)) < 500


def test_checks_return_the_value():
    v = Violations()
    assert v.identifier("a", "acme") == "acme"
    assert v.identifier("a", "", required=False) == ""
    assert v.text("t", "line\nline\ttab", max_length=20) == "line\nline\ttab"
    assert v.positive("p", 1) == 1
    assert v.non_negative("n", 0) == 0
    assert v.between("b", 5, 5, 5) == 5
    assert v.one_of("o", "x", {"x", "y"}) == "x"
    assert v.chosen("c", 2, [0, 1, 2]) == 2
    assert v.labels("l", {"a": "b"}) == {"a": "b"}
    v.present("h", given=True)
    v.count("r", [1], at_most=1)
    v.raise_if_any()


@pytest.mark.parametrize(
    "check",
    [
        lambda v: v.identifier("f", ""),
        lambda v: v.text("f", "", max_length=5, required=True),
        lambda v: v.text("f", "  \n", max_length=5, required=True),
        lambda v: v.text("f", "a\x00b", max_length=5),
        lambda v: v.text("f", "a\x1bb", max_length=5),
        lambda v: v.positive("f", -1),
        lambda v: v.non_negative("f", -1),
        lambda v: v.between("f", 6, 1, 5),
        lambda v: v.one_of("f", "z", {"x", "y"}),
        lambda v: v.chosen("f", 0, [0, 1]),
        lambda v: v.chosen("f", 9, [0, 1]),
        lambda v: v.present("f", given=False),
        lambda v: v.count("f", [1, 2], at_most=1),
        lambda v: v.count("f", [], at_most=1, at_least=1),
        lambda v: v.labels("f", {"a b": "c"}),
        lambda v: v.labels("f", {f"k{n}": "" for n in range(40)}),
        lambda v: v.page_size("f", -1),
    ],
)
def test_faults_are_found(check):
    v = Violations()
    check(v)
    assert [x.field for x in v.found] == ["f"]


def test_a_label_that_is_too_long_is_named_by_its_key():
    v = Violations()
    v.labels("metadata", {"team": "x" * 201})
    assert [x.field for x in v.found] == ["metadata[team]"]


def test_page_size_defaults_and_is_capped():
    v = Violations()
    assert v.page_size("page_size", 0) == 50
    assert v.page_size("page_size", 7) == 7
    assert v.page_size("page_size", 10**9) == 1000
    v.raise_if_any()


def test_violations_have_an_end():
    v = Violations()
    for n in range(1000):
        v.add(f"operations[{n}].account_id", "is required")
    assert len(v.found) == 20
