"""Owns the tests of the command line: what an operator is told, and the exit status."""

import os
import socket

import kit_service
import pytest

from services.kit.channels import sync_channel
from services.kit.command import Command, CommandError, main


@pytest.fixture(autouse=True)
def environment(monkeypatch, jwks_file):
    for name in list(os.environ):
        if name.startswith("TOLLKEEPER_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("TOLLKEEPER_IDENTITY_JWKS_FILE", str(jwks_file))
    monkeypatch.setenv("TOLLKEEPER_KITTEST_LISTEN", "127.0.0.1:0")


@pytest.fixture
def run(capfd):
    """`run("serve")`: exit status, and what was written. `kind` and `script_location` as a service gives them."""

    def run(*arguments, kind="aio", script_location=None):
        kit_service.KIND = kind
        serve = kit_service.served_async if kind == "async-factory" else kit_service.served
        status = main(
            kit_service.Settings,
            serve=serve,
            work=kit_service.work,
            script_location=script_location,
            arguments=arguments,
        )
        captured = capfd.readouterr()
        return status, captured.out + captured.err

    return run


@pytest.fixture
def taken():
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        yield f"127.0.0.1:{listening.getsockname()[1]}"


@pytest.mark.parametrize("kind", ["aio", "async-factory", "sync"])
def test_a_taken_port_is_told_in_a_line(run, monkeypatch, taken, kind):
    monkeypatch.setenv("TOLLKEEPER_KITTEST_LISTEN", taken)
    status, output = run("serve", kind=kind)
    assert status == 1
    assert f"kittest: cannot listen on {taken}" in output
    assert "Traceback" not in output


@pytest.mark.parametrize("kind", ["aio", "sync"])
def test_a_taken_metrics_port_is_told_in_a_line(run, monkeypatch, taken, kind):
    monkeypatch.setenv("TOLLKEEPER_METRICS_LISTEN", taken)
    status, output = run("serve", kind=kind)
    assert status == 1
    assert f"kittest: metrics: cannot listen on {taken}" in output
    assert "stop hook" in output  # what had begun is ended


def test_wrong_settings_are_named_and_not_repeated(run, monkeypatch):
    monkeypatch.setenv("TOLLKEEPER_MAX_CONCURRENT", "hunter2")
    monkeypatch.setenv("TOLLKEEPER_KITTEST_GRACE_SECONDS", "-1")
    status, output = run("serve")
    assert status == 2
    assert "TOLLKEEPER_KITTEST_MAX_CONCURRENT (or TOLLKEEPER_MAX_CONCURRENT)" in output
    assert "TOLLKEEPER_KITTEST_GRACE_SECONDS" in output
    assert "hunter2" not in output


def test_a_misspelt_setting_is_told_and_its_value_is_not(run, monkeypatch, taken):
    monkeypatch.setenv("TOLLKEEPER_KITTEST_MAX_CONCURENT", "hunter2")
    monkeypatch.setenv("TOLLKEEPER_KITTEST_LISTEN", taken)  # so that it ends
    _, output = run("serve")
    assert '"meant": "TOLLKEEPER_KITTEST_MAX_CONCURRENT"' in output
    assert "hunter2" not in output


def test_a_setting_that_is_no_json_is_named(run, monkeypatch):
    monkeypatch.setenv("TOLLKEEPER_KITTEST_NUMBERS", "hunter2")
    status, output = run("serve")
    assert status == 2
    assert "numbers" in output
    assert "hunter2" not in output


def test_an_unusable_key_file_is_told_in_a_line(run, monkeypatch, tmp_path):
    monkeypatch.setenv("TOLLKEEPER_IDENTITY_JWKS_FILE", str(tmp_path / "no such.jwks"))
    status, output = run("serve")
    assert status == 1
    assert "no such.jwks" in output
    assert "Traceback" not in output


def test_a_missing_certificate_is_told_in_a_line(run, monkeypatch, tmp_path):
    for name in ("CERT", "KEY", "CA"):
        monkeypatch.setenv(f"TOLLKEEPER_TLS_{name}_FILE", str(tmp_path / "no such.pem"))
    monkeypatch.setattr(kit_service, "served", lambda settings: sync_channel("127.0.0.1:1", settings))
    status, output = run("serve")
    assert status == 1
    assert "no such.pem" in output
    assert "Traceback" not in output


def test_what_a_migration_wants_of_an_operator_is_told_in_a_line(
    run, monkeypatch, database_url, tmp_path, write_history
):
    monkeypatch.setenv("TOLLKEEPER_KITTEST_DATABASE_URL", database_url("kittest"))
    words = "the role reader is missing; let an administrator make it"
    body = f"""op.execute("DO $$ BEGIN RAISE EXCEPTION '{words}'; END $$")"""
    status, output = run("migrate", script_location=write_history(tmp_path / "m", body))
    assert status == 1
    assert f"kittest: {words}\n" in output
    assert "Traceback" not in output


def test_a_fault_of_ours_is_logged_with_its_traceback(run, monkeypatch):
    monkeypatch.setattr(kit_service, "served", lambda _settings: 1 / 0)
    status, output = run("serve")
    assert status == 1
    assert "ZeroDivisionError" in output


@pytest.mark.parametrize("arguments", [(), ("dance",), ("migrate",)])
def test_an_unknown_command_is_misuse(run, arguments):
    # `migrate` too, for a service without migrations
    with pytest.raises(SystemExit) as caught:
        run(*arguments)
    assert caught.value.code == 2


class TestMigrations:
    @pytest.fixture
    def history(self, tmp_path, write_history):
        return write_history(tmp_path / "my migrations", 'op.execute("CREATE TABLE t (a int)")')

    def test_a_service_does_not_start_on_a_schema_that_is_behind(self, run, monkeypatch, history, database_url):
        monkeypatch.setenv("TOLLKEEPER_KITTEST_DATABASE_URL", database_url("kittest"))
        for command in (["serve"], ["work"], ["migrate", "--check"]):
            status, output = run(*command, script_location=history)
            assert status == 1
            assert "at revision none, this release needs 0001: run `python -m services.kittest migrate`" in output
        for command in (["migrate"], ["migrate", "--check"]):
            status, output = run(*command, script_location=history)
            assert (status, "kittest: at revision 0001" in output) == (0, True)

    def test_a_migrated_service_starts(self, start, run, monkeypatch, history, database_url):
        url = database_url("kittest")
        monkeypatch.setenv("TOLLKEEPER_KITTEST_DATABASE_URL", url)
        status, output = run("migrate", script_location=history)
        assert (status, "kittest: at revision 0001" in output) == (0, True)
        process = start("serve", KIT_MIGRATIONS=str(history), TOLLKEEPER_KITTEST_DATABASE_URL=url)
        assert process.event("serving")

    def test_a_database_that_does_not_answer_is_told_in_a_line(self, run, monkeypatch, history):
        monkeypatch.setenv("TOLLKEEPER_KITTEST_DATABASE_URL", "postgresql://user:hunter2@127.0.0.1:1/none")
        for command in ("migrate", "serve", "work"):
            status, output = run(command, script_location=history)
            assert status == 1
            assert "kittest: the database did not answer" in output
            assert "hunter2" not in output

    def test_no_database_is_told_in_a_line(self, run, history):
        status, output = run("serve", script_location=history)
        assert status == 1
        assert "kittest: no database is configured" in output


def own(run):
    return Command("count", "count things", lambda parser: parser.add_argument("--to", type=int), run)


def test_a_service_has_commands_of_its_own(capsys):
    def count(chosen, settings):
        print(settings().service, chosen.to)
        return 1

    status = main(kit_service.Settings, serve=kit_service.served, own=[own(count)], arguments=["count", "--to", "3"])
    assert (status, capsys.readouterr().out) == (1, "kittest 3\n")


def test_an_own_command_says_in_a_line_what_it_cannot_do(capsys, monkeypatch):
    monkeypatch.delenv("TOLLKEEPER_IDENTITY_JWKS_FILE")  # a command that asks for no settings needs none

    def refuse(chosen, settings):
        raise CommandError("there is nothing to count")

    status = main(kit_service.Settings, serve=kit_service.served, own=[own(refuse)], arguments=["count"])
    assert (status, capsys.readouterr().err) == (1, "kittest: there is nothing to count\n")
