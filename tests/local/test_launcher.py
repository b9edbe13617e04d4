"""Bringing parts up and down: what a person relies on when something is busy, crashes or is killed."""

from __future__ import annotations

import dataclasses
import os
import shlex
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import psutil
import pytest

from deploy.local import envoy, ports
from deploy.local.home import Home
from deploy.local.launcher import Job, Launcher, Part
from deploy.local.process import Program, Record, StartFailedError

SERVER = """
import socket, sys, time
server = socket.create_server(("127.0.0.1", int(sys.argv[1])))
print("listening", flush=True)
time.sleep(600)
"""
ANSWERS = """
import http.server, sys
address = ("127.0.0.1", int(sys.argv[1]))
http.server.HTTPServer(address, http.server.SimpleHTTPRequestHandler).serve_forever()
"""
ENDS_WITH_ITS_FELLOW = """
import pathlib, signal, socket, sys, time
server = socket.create_server(("127.0.0.1", int(sys.argv[1])))
mine, fellows = map(pathlib.Path, sys.argv[2:])
def end(*_):
    mine.with_suffix(".asked").touch()
    while not fellows.with_suffix(".asked").exists():
        time.sleep(0.01)
    mine.with_suffix(".ended").touch()
    sys.exit()
signal.signal(signal.SIGTERM, end)
time.sleep(600)
"""
CRASHES = """
import sys
for number in range(30):
    print("line", number, flush=True)
sys.exit(3)
"""
FORKS = """
import os, signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN if "stubborn" in sys.argv else signal.SIG_DFL)
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
print(child.pid, flush=True)
""" + SERVER.replace('print("listening", flush=True)', "")


@pytest.fixture
def home(tmp_path):
    home = Home(tmp_path / "a home with spaces")
    home.make()
    yield home
    Launcher(home, print).take_down([])


def program(name, source, *arguments, grace_seconds=5.0, **settings):
    return Program(
        name=name,
        argv=(sys.executable, "-c", textwrap.dedent(source), *map(str, arguments)),
        env={**os.environ, **settings},
        cwd=Path.cwd(),
        grace_seconds=grace_seconds,
    )


def part(name, port, source=SERVER, start_seconds=20.0, **settings):
    return Part(
        name=name,
        port=port,
        program=program(name, source, port, **settings),
        ready=lambda: ports.answers(port),
        start_seconds=start_seconds,
    )


def up(home, *parts, jobs=()):
    said = []
    launcher = Launcher(home, said.append)
    with home.lock(), launcher.taking_back():
        launcher.bring_up(parts[:-1])
        launcher.run_to_end(jobs)
        launcher.bring_up(parts[-1:])
    return said


def kill_9(home, name):
    record = home.record(name)
    os.kill(record.pid, signal.SIGKILL)
    while record.alive():
        time.sleep(0.01)


def pids(home):
    return {record.name: record.pid for record in home.records() if record.alive()}


def test_second_up_leaves_alone_what_runs(home):
    parts = [part("one", ports.free_port()), part("two", ports.free_port())]
    assert len(up(home, *parts)) == 2
    before = pids(home)
    assert up(home, *parts) == []
    assert pids(home) == before
    assert set(before) == {"one", "two"}


def test_killed_process_and_only_that_is_started_again(home):
    parts = [part("one", ports.free_port()), part("two", ports.free_port())]
    up(home, *parts)
    before = pids(home)
    kill_9(home, "one")
    [said] = up(home, *parts)
    assert said.startswith("one started")
    after = pids(home)
    assert after["two"] == before["two"]
    assert after["one"] != before["one"]
    assert ports.answers(parts[0].port)


def test_process_that_hangs_is_started_again(home, monkeypatch):
    monkeypatch.setattr("deploy.local.launcher._HEALTH_PATIENCE_SECONDS", 0.5)
    port = ports.free_port()
    server = part("one", port, ANSWERS)
    answering = dataclasses.replace(
        server,
        ready=lambda: envoy.get(port, "/") is not None,
        program=dataclasses.replace(server.program, grace_seconds=0.3, cwd=home.folder),
    )
    up(home, answering)
    before = pids(home)["one"]
    os.kill(before, signal.SIGSTOP)
    up(home, answering)
    assert pids(home)["one"] != before
    assert answering.ready()


def test_changed_setting_starts_only_its_process_again(home):
    one, two = part("one", ports.free_port()), part("two", ports.free_port())
    up(home, one, two)
    before = pids(home)
    up(home, one, part("two", two.port, TOLLKEEPER_TWO_KEY="another"))
    after = pids(home)
    assert after["one"] == before["one"]
    assert after["two"] != before["two"]


def test_crash_at_start_is_reported_by_name_with_its_logs_end_and_nothing_is_left(home):
    good = part("good", ports.free_port())
    with pytest.raises(StartFailedError) as raised:
        up(home, good, part("ledger", ports.free_port(), CRASHES))
    message = str(raised.value)
    assert "ledger ended at start with exit code 3" in message
    assert str(home.log("ledger")) in message
    assert [line.strip() for line in message.splitlines()[1:]] == [f"line {number}" for number in range(10, 30)]
    assert home.records() == []
    assert not ports.answers(good.port)


def test_failed_up_leaves_what_ran_before_it(home):
    good = part("good", ports.free_port())
    up(home, good)
    before = pids(home)
    with pytest.raises(StartFailedError):
        up(home, good, part("bad", ports.free_port(), CRASHES))
    assert pids(home) == before


def test_process_that_never_gets_ready_is_reported_and_ended(home):
    with pytest.raises(StartFailedError, match=r"slow was not ready within 0.5 s"):
        up(home, part("slow", ports.free_port(), "import time; print('thinking', flush=True); time.sleep(600)", 0.5))
    assert home.records() == []


def test_failed_job_is_reported_by_name_and_takes_back_what_was_started(home):
    good = part("good", ports.free_port())
    job = Job(name="ledger migrate", part="ledger", program=program("ledger", "raise SystemExit('no such table')"))
    with pytest.raises(StartFailedError, match=r"(?s)ledger migrate failed with exit code 1.*no such table"):
        up(home, good, part("ledger", ports.free_port()), jobs=[job])
    assert home.records() == []
    assert not ports.answers(good.port)


def test_program_that_does_not_exist_takes_back_what_was_started(home):
    good = part("good", ports.free_port())
    missing = Part(
        name="missing",
        port=1,
        program=Program(name="missing", argv=("/no/such/program",), env={}, cwd=home.folder),
        ready=lambda: True,
    )
    with pytest.raises(FileNotFoundError, match="/no/such/program"):
        up(home, good, missing)
    assert not ports.answers(good.port)


@pytest.mark.parametrize("manner", ["polite", "stubborn"])
def test_down_ends_a_process_and_what_it_forked(home, manner):
    forks = part("forks", ports.free_port())
    forks = dataclasses.replace(forks, program=program("forks", FORKS, forks.port, manner, grace_seconds=0.5))
    up(home, forks)
    grandchild = psutil.Process(int(home.log("forks").read_text().split()[0]))
    assert Launcher(home, print).take_down(["forks"]) == ["forks"]
    assert not grandchild.is_running() or grandchild.status() == psutil.STATUS_ZOMBIE
    assert not ports.answers(forks.port)
    assert home.records() == []


def test_orphans_of_a_killed_process_do_not_keep_its_successor_from_starting(home):
    holder = part("holder", ports.free_port())
    source = SERVER.replace("time.sleep(600)", "import os\nos.fork()\ntime.sleep(600)")
    holder = dataclasses.replace(holder, program=program("holder", source, holder.port))
    up(home, holder)
    kill_9(home, "holder")
    assert ports.answers(holder.port), "the orphan still holds the port"
    up(home, holder)
    assert ports.answers(holder.port)


def test_recycled_pid_is_never_signalled(home):
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True) as stranger:
        record = Record(
            name="ledger",
            pid=stranger.pid,
            started_at=psutil.Process(stranger.pid).create_time() - 60,
            stop_signal=signal.SIGTERM,
            grace_seconds=1,
        )
        record.save(home.record_file("ledger"))
        assert Launcher(home, print).take_down(["ledger"]) == []
        assert stranger.poll() is None
        stranger.kill()


def test_parts_end_in_the_reverse_of_their_order(home):
    names = ["storage", "service", "gateway"]
    up(home, *(part(name, ports.free_port()) for name in names))
    assert Launcher(home, print).take_down(names) == ["gateway", "service", "storage"]


def test_parts_that_stand_together_end_at_the_same_time(home):
    one, two = home.folder / "one", home.folder / "two"
    parts = [part(mine.name, ports.free_port()) for mine in (one, two)]
    parts = [
        dataclasses.replace(each, program=program(mine.name, ENDS_WITH_ITS_FELLOW, each.port, mine, fellow))
        for each, mine, fellow in zip(parts, (one, two), (two, one), strict=True)
    ]
    up(home, *parts)
    assert sorted(Launcher(home, print).take_down([("one", "two")])) == ["one", "two"]
    # Who is asked to end alone waits for the other until it is killed.
    assert [mine.with_suffix(".ended").exists() for mine in (one, two)] == [True, True]


def test_two_homes_side_by_side_do_not_touch_each_other(home, tmp_path):
    other = Home(tmp_path / "other")
    mine, theirs = part("one", ports.free_port()), part("one", ports.free_port())
    up(home, mine)
    up(other, theirs)
    try:
        Launcher(home, print).take_down(["one"])
        assert ports.answers(theirs.port)
        assert not ports.answers(mine.port)
    finally:
        Launcher(other, print).take_down(["one"])


def test_ups_on_one_home_go_one_after_the_other(home):
    one = part("one", ports.free_port())
    failures = []

    def bring_up():
        try:
            up(home, one)
        except Exception as error:  # noqa: BLE001
            failures.append(error)

    threads = [threading.Thread(target=bring_up) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert home.log("one").read_text() == "listening\n", "started once"


def test_busy_gateway_port_is_reported_with_its_occupant_and_nothing_is_started(tmp_path):
    port = ports.free_port()
    occupant = [sys.executable, "-c", SERVER, str(port)]
    with subprocess.Popen(occupant, stdout=subprocess.PIPE) as busy, busy.stdout:
        busy.stdout.readline()
        settings = {"TOLLKEEPER_HOME": str(tmp_path / "a home"), "TOLLKEEPER_GATEWAY_PORT": str(port)}
        result = subprocess.run(
            [sys.executable, "-m", "deploy.local", "up"],
            env={**os.environ, **settings},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        busy.kill()
    assert result.returncode == 1
    assert f"port {port}" in result.stderr
    assert f"(pid {busy.pid})" in result.stderr
    assert "TOLLKEEPER_GATEWAY_PORT" in result.stderr
    assert "Traceback" not in result.stderr
    assert Home(tmp_path / "a home").records() == []


def test_a_port_is_kept_for_as_long_as_it_can_be_had(tmp_path):
    book = ports.PortBook(tmp_path / "ports.json")
    port = book.assign("ledger", in_use=False)
    assert ports.PortBook(tmp_path / "ports.json").assign("ledger", in_use=False) == port
    with subprocess.Popen([sys.executable, "-c", SERVER, str(port)], stdout=subprocess.PIPE) as busy, busy.stdout:
        busy.stdout.readline()
        assert book.assign("ledger", in_use=True) == port
        assert book.assign("ledger", in_use=False) != port
        busy.kill()


def test_no_part_is_given_the_port_that_the_gateway_will_have(tmp_path, monkeypatch):
    book = ports.PortBook(tmp_path / "ports.json")
    port = book.assign("ledger", in_use=False)
    assert book.assign("ledger", in_use=False, spared=port) != port
    monkeypatch.setattr(ports, "free_port", iter([20_508, 20_509]).__next__)
    assert book.assign("redis", in_use=False, spared=20_508) == 20_509


def test_secrets_are_made_once_and_for_their_owner_only(tmp_path):
    code = "from deploy.local import suite; s = suite.of(); s.write_dev_env(); print(s.credentials.own('postgres'))"
    settings = {"TOLLKEEPER_HOME": str(tmp_path / "a home"), "TOLLKEEPER_GATEWAY_PORT": "1"}

    def made():
        command = [sys.executable, "-c", code]
        return subprocess.run(command, env={**os.environ, **settings}, capture_output=True, text=True, check=True)

    assert made().stdout == made().stdout
    home = Home(tmp_path / "a home")
    for name in ("secrets.json", "identity.pem", "dev.env", "tokens/ledger.jwt"):
        if name != "tokens/ledger.jwt" or home.path(name).exists():
            assert home.path(name).stat().st_mode & 0o077 == 0
    variables = [line.split("=")[0] for line in home.path("dev.env").read_text().splitlines() if line[0] != "#"]
    assert variables == [
        "TOLLKEEPER_URL",
        "TOLLKEEPER_ADMIN_KEY",
        "TOLLKEEPER_DEMO_KEY",
        "TOLLKEEPER_LEDGER_ADDR",
        "TOLLKEEPER_PRICING_ADDR",
        "TOLLKEEPER_SUBSCRIPTIONS_ADDR",
        "TOLLKEEPER_PROXY_ADDR",
        "TOLLKEEPER_SERVICE_TOKEN",
        "TOLLKEEPER_DATABASE_URL",
        "TOLLKEEPER_REDIS_URL",
        "STRIPE_WEBHOOK_SECRET",
        "TOLLKEEPER_SANDBOX_STRIPE_URL",
        "TOLLKEEPER_SANDBOX_PROVIDER_URL",
    ]


def test_reader_that_goes_away_is_no_failure(home):
    home.log("long").write_text("a line\n" * 10_000)
    command = f"{shlex.quote(sys.executable)} -m deploy.local logs -n 10000 | head -1; exit ${{PIPESTATUS[0]}}"
    environ = {**os.environ, "TOLLKEEPER_HOME": str(home.folder)}
    result = subprocess.run(["bash", "-c", command], env=environ, capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout.strip(), result.stderr) == (0, "a line", "")


def test_command_shows_failures_in_words(tmp_path):
    settings = {"TOLLKEEPER_HOME": str(tmp_path / "empty")}
    for command, words in (("status", "nothing has been started"), ("down", "nothing is running"), ("logs", "no such")):
        result = subprocess.run(
            [sys.executable, "-m", "deploy.local", command],
            env={**os.environ, **settings},
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
        assert words in result.stdout + result.stderr
        assert "Traceback" not in result.stderr
    assert not (tmp_path / "empty").exists()


def test_demo_of_a_suite_that_is_not_up_says_so(home):
    home.write_private("secrets.json", '{"demo_key": "tk_demo_x"}')
    result = subprocess.run(
        [sys.executable, "-m", "deploy.local", "demo"],
        env={**os.environ, "TOLLKEEPER_HOME": str(home.folder)},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert (result.returncode, result.stderr) == (1, "the suite is not up; run `make up` first\n")
