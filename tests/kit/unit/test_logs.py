"""Owns the tests of logs: one JSON object a line, whoever logs, with the call it belongs to."""

import io
import json
import logging

import pytest

from services.kit.call import CURRENT, Call
from services.kit.identity import Identity, Role
from services.kit.logs import configure_logs, get_logger


@pytest.fixture
def log():
    stream = io.StringIO()
    configure_logs("ledger", "info", stream)
    return lambda: [json.loads(line) for line in stream.getvalue().splitlines()]


def test_each_line_is_one_object(log):
    get_logger("a.module").info("hold expired", hold_id="h1", amount_nanos=5)
    (entry,) = log()
    assert entry.pop("timestamp").endswith("Z")
    assert entry == {
        "event": "hold expired",
        "hold_id": "h1",
        "amount_nanos": 5,
        "service": "ledger",
        "logger": "a.module",
        "level": "info",
    }


def test_the_standard_librarys_logs_look_the_same(log):
    logging.getLogger("some.library").warning("disk at %d%%", 93, extra={"disk": "a"})
    (entry,) = log()
    assert (entry["event"], entry["level"], entry["service"], entry["disk"]) == (
        "disk at 93%",
        "warning",
        "ledger",
        "a",
    )


def test_lines_below_the_level_and_chatter_of_libraries_are_not_written(log):
    get_logger("a").debug("no")
    logging.getLogger("a").debug("no")
    logging.getLogger("alembic.runtime").info("no")
    assert log() == []


def test_a_line_within_a_call_names_it(log):
    call = Call("/tollkeeper.ledger.v1.LedgerService/Apply", "req-1", Identity(Role.ACCOUNT, account_id="acme"))
    token = CURRENT.set(call)
    get_logger("a").info("one")
    logging.getLogger("b").info("two")
    get_logger("a").info("three", account_id="other")
    CURRENT.reset(token)
    get_logger("a").info("four")
    entries = log()
    for entry in entries[:2]:
        assert (entry["request_id"], entry["rpc"], entry["account_id"]) == ("req-1", call.method, "acme")
    assert entries[2]["account_id"] == "other"
    assert "request_id" not in entries[3]


def test_a_traceback_is_one_line(log):
    try:
        int("broken\nbadly")
    except ValueError as error:
        get_logger("a").exception("failed")
        get_logger("a").error("failed", exc_info=error)
        logging.getLogger("b").exception("failed")
    entries = log()
    assert len(entries) == 3
    assert all("ValueError: invalid literal" in entry["exception"] for entry in entries)


def test_nothing_that_is_logged_fails(log):
    get_logger("a").info("odd", thing=object(), number=float("nan"), raw=b"\xff", keys={1: {2}})
    assert log()[0]["event"] == "odd"
