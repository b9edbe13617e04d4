"""How rows are written for Postgres: many as arrays, a single one as its values."""

from types import SimpleNamespace

import pytest

from services.ledger.store.columns import REQUEST, SUBJECT, Columns
from services.ledger.store.pipeline import Statement

NAMED = Columns((("name", "text", "name"), ("amount", "bigint", "amount"), ("ended_at", "timestamptz", "ended_at")))


def test_single_row_is_its_values_unquoted():
    row = SimpleNamespace(name='a "b" \\ {c}, ä', amount=-(2**63), ended_at=None)
    assert NAMED.values(row) == ['a "b" \\ {c}, ä'.encode(), b"-9223372036854775808", None]


@pytest.mark.parametrize("written", [NAMED.values, lambda row: NAMED.arrays([row])], ids=["single", "many"])
def test_text_with_a_nul_is_refused_and_not_cut_short(written):
    with pytest.raises(ValueError, match="NUL"):
        written(SimpleNamespace(name="a\0b", amount=1, ended_at=None))


def test_placeholders_are_as_many_as_values():
    for columns in (NAMED, SUBJECT, REQUEST):
        assert len(Statement(columns.single).formats) == len(Statement(columns.unnest).formats) == len(columns.each)
