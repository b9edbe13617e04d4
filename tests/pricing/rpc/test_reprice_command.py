"""Owns the proof that `reprice` tells a person, or a program, what a period would have cost."""

import json

import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from pricing_peers import Ledger, Subscriptions, served
from tollkeeper.ledger.v1.resources_pb2 import UsageRecord

from services.kit.command import main
from services.pricing.__main__ import MIGRATIONS
from services.pricing.assembly import make_server
from services.pricing.commands import COMMANDS
from services.pricing.settings import PricingSettings

USD = 1_000_000_000
PERIOD = ("--from", "2026-11-01", "--to", "2026-12-01")


@pytest.fixture
def reprice(pricing, settings, monkeypatch, capsys):
    """Runs the command against a ledger of three records; its status, and what it printed and complained of."""
    ledger, inside = Ledger(), Timestamp()
    inside.FromJsonString("2026-11-10T00:00:00Z")
    ledger.records = {
        "acme": [
            UsageRecord(provider="openai", model=model, cost_nanos=6 * USD, input_tokens=1_000_000, created_at=inside)
            for model in ("gpt-4o", "gpt-4o", "gpt-9")
        ]
    }

    def run(*arguments, ledger_addr=None):
        for name, value in {
            "DATABASE_URL": settings.database_url,
            "IDENTITY_JWKS_FILE": str(settings.identity_jwks_file),
            "LEDGER_ADDR": address if ledger_addr is None else ledger_addr,
        }.items():
            monkeypatch.setenv(f"TOLLKEEPER_PRICING_{name}", value)
        capsys.readouterr()
        status = main(
            PricingSettings,
            serve=make_server,
            script_location=MIGRATIONS,
            own=COMMANDS,
            arguments=["reprice", *arguments],
        )
        printed = capsys.readouterr()
        return status, printed.out, printed.err

    with served(ledger, Subscriptions()) as address:
        yield run


def test_person_gets_a_table(reprice):
    status, out, _ = reprice(*PERIOD, "--version", "1")
    assert status == 0
    (line,) = [line for line in out.splitlines() if "gpt-4o" in line]
    assert [cell.strip() for cell in line.split("│")][1:-1] == [
        *("openai", "gpt-4o", "2", "$12.00", "$10.00", "-$2.00", "-16.67 %", "")
    ]
    assert "Left out of the amounts: 1 without a price by version 1, booked at $6.00." in out


def test_program_gets_json(reprice):
    status, out, _ = reprice(*PERIOD, "--version", "1", "--account", "acme", "--json")
    found = json.loads(out)
    assert status == 0
    assert (found["costNanos"], found["repricedCostNanos"], found["unpricedRequests"]) == (
        str(12 * USD),
        str(10 * USD),
        "1",
    )
    assert [model["model"] for model in found["models"]] == ["gpt-4o", "gpt-9"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((*PERIOD, "--version", "9"), "there is no catalogue version 9"),
        (("--from", "2026-12-01", "--to", "2026-11-01", "--version", "1"), "--to must be after --from"),
        ((*PERIOD, "--version", "1", "--account", "!"), "is no account's id"),
        ((*PERIOD, "--version", "1", "--account", "nobody"), "the ledger has no account nobody"),
    ],
)
def test_mistake_is_told_in_a_line(reprice, arguments, said):
    status, _, err = reprice(*arguments)
    assert status == 1
    assert said in err
    assert len(err.splitlines()) == 1


def test_without_a_ledger_it_says_what_is_missing(reprice):
    status, _, err = reprice(*PERIOD, "--version", "1", ledger_addr="")
    assert (status, "no ledger is configured" in err) == (1, True)
    status, _, err = reprice(*PERIOD, "--version", "1", ledger_addr="127.0.0.1:1")
    assert (status, "the ledger did not answer: UNAVAILABLE" in err) == (1, True)


def test_time_that_is_none_is_misuse(reprice):
    with pytest.raises(SystemExit) as caught:
        reprice("--from", "yesterday", "--to", "2026-12-01", "--version", "1")
    assert caught.value.code == 2
