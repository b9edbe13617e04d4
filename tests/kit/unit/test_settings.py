"""Owns the tests of configuration: which variable counts, and that secrets are not repeated."""

import os
from pathlib import Path

import pytest
from pydantic import ValidationError

from services.kit.settings import ServiceSettings, misspelt


class LedgerSettings(ServiceSettings):
    service = "ledger"
    batch: int = 256


@pytest.fixture(autouse=True)
def no_variables_of_the_machine(monkeypatch):
    for name in list(os.environ):
        if name.startswith("TOLLKEEPER_"):
            monkeypatch.delenv(name)


def test_the_services_own_variable_counts_before_the_suites(monkeypatch):
    monkeypatch.setenv("TOLLKEEPER_DATABASE_URL", "postgresql://suite/x")
    assert LedgerSettings().database_url == "postgresql://suite/x"
    monkeypatch.setenv("TOLLKEEPER_LEDGER_DATABASE_URL", "postgresql://own/x")
    assert LedgerSettings().database_url == "postgresql://own/x"
    assert ServiceSettings().database_url == "postgresql://suite/x"
    assert LedgerSettings(database_url="postgresql://given/x").database_url == "postgresql://given/x"


def test_fields_of_the_service_follow_the_same_rule(monkeypatch):
    monkeypatch.setenv("TOLLKEEPER_BATCH", "1")
    assert LedgerSettings().batch == 1
    monkeypatch.setenv("TOLLKEEPER_LEDGER_BATCH", "2")
    assert LedgerSettings().batch == 2


def test_an_empty_variable_is_an_unset_one(monkeypatch):
    monkeypatch.setenv("TOLLKEEPER_LEDGER_BATCH", "")
    monkeypatch.setenv("TOLLKEEPER_BATCH", "3")
    monkeypatch.setenv("TOLLKEEPER_IDENTITY_JWKS_FILE", "")
    assert LedgerSettings().batch == 3
    assert LedgerSettings().identity_jwks_file is None


def test_misspelt_variable_is_told_with_the_one_that_is_meant():
    known = {"writers", "max_batch", "service_token"}
    given = ["TOLLKEEPER_LEDGER_WRITER", "TOLLKEEPER_LEDGER_MAX_BATCH", "TOLLKEEPER_LEDGER_ADDR", "LEDGER_WRITER"]
    given += ["TOLLKEEPER_LEDGER_SERVICE_PORT", "tollkeeper_ledger_max_bach"]
    assert misspelt(given, "TOLLKEEPER_LEDGER_", known) == [
        ("TOLLKEEPER_LEDGER_MAX_BACH", "TOLLKEEPER_LEDGER_MAX_BATCH"),
        ("TOLLKEEPER_LEDGER_WRITER", "TOLLKEEPER_LEDGER_WRITERS"),
    ]


def test_variables_of_other_services_do_not_matter(monkeypatch):
    monkeypatch.setenv("TOLLKEEPER_PRICING_BATCH", "7")
    monkeypatch.setenv("TOLLKEEPER_LEDGER_UNKNOWN", "7")
    monkeypatch.setenv("DATABASE_URL", "postgresql://elsewhere/x")
    assert LedgerSettings() == LedgerSettings(batch=256)
    assert LedgerSettings().database_url == ""


def test_names_are_separated_by_commas(monkeypatch):
    monkeypatch.setenv("TOLLKEEPER_TLS_SERVICE_NAMES", "ledger.internal, proxy.internal,")
    assert LedgerSettings().tls_service_names == ("ledger.internal", "proxy.internal")


def test_secrets_are_not_shown():
    shown = repr(
        LedgerSettings(database_url="postgresql://u:hunter2@h/d", service_token="hunter2", redis_url="hunter2")
    )
    assert "hunter2" not in shown


@pytest.mark.parametrize(
    "wrong", [{"max_concurrent": 0}, {"grace_seconds": -1}, {"log_level": "loud"}, {"deadline_seconds": 0}]
)
def test_values_without_sense_are_refused(wrong):
    with pytest.raises(ValidationError):
        LedgerSettings(**wrong)


def test_settings_do_not_change():
    with pytest.raises(ValidationError):
        LedgerSettings().batch = 1


def test_files_are_paths(monkeypatch):
    monkeypatch.setenv("TOLLKEEPER_SERVICE_TOKEN_FILE", "/run/secrets/a token")
    assert LedgerSettings().service_token_file == Path("/run/secrets/a token")
