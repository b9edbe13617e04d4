"""Owns the proof that commands work on the service's own database, show what an import changes, and tell tiers."""

import json
import os
import re
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from pricing_commands import INPUT, run

from services.pricing.assembly import Parts
from services.pricing.shipped import FOLDER, load_shipped

SHIPPED = FOLDER / "prices.toml"


@pytest.fixture
def environment(settings):
    """The settings of a service whose database has the shipped catalogue."""
    parts = Parts(settings)
    parts.prices.ship(load_shipped())
    parts.close()
    return {
        "TOLLKEEPER_PRICING_DATABASE_URL": settings.database_url,
        "TOLLKEEPER_IDENTITY_JWKS_FILE": str(settings.identity_jwks_file),
    }


@pytest.fixture
def service(command, environment, monkeypatch):
    """`service("import", …)`: a command on that database, in this process; exit status, output and errors."""
    for name in [name for name in os.environ if name.startswith("TOLLKEEPER_")]:
        monkeypatch.delenv(name)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    return command


def test_without_a_file_the_services_database_prices(service, map_file):
    price = ("price", "openai", "gpt-4o", "--input-tokens", 1_000_000, "--json")
    assert json.loads(service(*price)[1])["costNanos"] == "5000000000"
    assert service("import", map_file, "--apply", "--max-move-percent", 75)[0] == 0
    now, before = json.loads(service(*price)[1]), json.loads(service(*price, "--version", 1)[1])
    assert (now["costNanos"], now["priceVersion"]) == ("2500000000", 2)
    assert (before["costNanos"], before["priceVersion"]) == ("5000000000", 1)


def test_without_a_file_settings_are_needed():
    found = run("price", "openai", "gpt-4o")
    assert found.returncode == 1
    assert "no database is configured" in found.stderr.decode()


# -------------------------------------------------------------------------------------------------------------- import


def test_import_shows_the_difference_and_publishes_nothing(service, map_file):
    status, out, _ = service("import", map_file)
    assert status == 0
    shown = re.sub(r"[\s│┃]+", " ", out)
    for told in (
        "Changed, largest moves first (5)",
        "openai gpt-4o cache_read $5.00 $1.25 -75.00 %",
        "openai gpt-4o input $5.00 $2.50 -50.00 %",
        "openai gpt-4o input, batch none $1.25 new",
        "New (1)",
        "openai whisper none none 1",
        "In the catalogue, not in the map; their prices stay (2)",
        "odd is priced by cost_per_moon",
        "cost_per_moon odd 1",
        "1 changed, 1 new, 2 not in the map.",
        "Models that move by more than 20 %: 1.",
        "Nothing published: this was a dry run.",
    ):
        assert told in shown
    assert json.loads(service("price", "openai", "gpt-4o", "--json")[1])["priceVersion"] == 1


def test_import_above_the_limit_is_refused_with_the_models(service, map_file):
    status, out, err = service("import", map_file, "--apply")
    assert (status, out) == (1, "")
    assert "PRICE_MOVE_TOO_LARGE" in err
    assert "openai/gpt-4o: 75.00 %" in err


def test_import_as_json_is_the_contracts_answer(service, map_file):
    status, out, _ = service("import", map_file, "--apply", "--max-move-percent", 75, "--json")
    assert status == 0
    found = json.loads(out)
    assert [(one["kind"], one["model"]) for one in found["changes"]] == [
        ("changed", "gpt-4o"),
        ("new", "whisper"),
        ("gone", "gpt-3.5-turbo"),
        ("gone", "gpt-4-turbo"),
    ]
    assert found["changes"][0]["largestMoveBasisPoints"] == "7500"
    assert found["skipped"] == [{"key": "odd", "reason": "is priced by cost_per_moon"}]
    assert found["unknownFields"] == ["cost_per_moon"]
    assert (found["version"]["version"], found["version"]["reason"]) == ("2", "import of map.json")
    assert found["version"]["author"].startswith("terminal:")
    assert "Nothing to publish." in service("import", map_file, "--apply")[1]


def test_import_by_address(environment, map_file):
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.end_headers()
            self.wfile.write(map_file.read_bytes())

        def log_message(self, *_):
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.handle_request)
        thread.start()
        address = f"http://127.0.0.1:{server.server_address[1]}/map.json?signature=secret"
        done = run("import", address, "--apply", "--max-move-percent", 75, "--json", environment=environment)
        thread.join()
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert [one["kind"] for one in found["changes"]][:2] == ["changed", "new"]
    assert found["version"]["reason"] == "import of map.json"  # which stays for ever: nothing secret


NO_MAPS = (
    (("none.json",), "none.json: No such file"),
    (("ftp://127.0.0.1/map",), "No such file"),
    (("http://169.254.169.254/",), "must not be a link-local address"),
    ((SHIPPED,), "is not JSON"),
    ((SHIPPED, "--max-move-percent", "-1"), "must be from 0"),
)


def test_import_of_what_is_no_map_is_refused(service):
    for arguments, told in NO_MAPS:
        status, out, err = service("import", *arguments)
        assert (status, out) == (1, ""), arguments
        assert told in err


def test_long_differences_are_cut_unless_all_is_asked_for(service, tmp_path):
    file = tmp_path / "many.json"
    file.write_text(
        json.dumps({f"m{n:03d}": {"litellm_provider": "acme", "mode": "chat", INPUT: 1e-06} for n in range(60)})
    )
    assert "and 20 more: --all shows them" in service("import", file)[1]
    everything = service("import", file, "--all")[1]
    assert all(f"m{n:03d}" in everything for n in range(60))


# --------------------------------------------------------------------------------------------------------------- tiers


def test_tiers_show_the_worked_example_of_the_product(command):
    status, out, _ = command("tiers")
    assert status == 0
    shown = re.sub(r"[\s│┃]+", " ", out)
    assert "professional $99.00 $19.80 1,980 $79.20 80.00 % $3.171 $76.029 76.80 % $1009.80" in shown
    assert "enterprise $499.00" in shown


@pytest.mark.parametrize("margin", ["75", "0.75", "75.00", "0.7500"])
def test_tiers_at_another_margin_and_price(command, margin):
    status, out, _ = command("tiers", "--margin", margin, "--price", "pro=99", "--price", "zero=0", "--json")
    assert status == 0
    pro, zero = json.loads(out)["tiers"]
    assert (pro["planId"], pro["apiBudgetNanos"], pro["credits"]) == ("pro", "24750000000", "2475")
    assert (pro["marginBasisPoints"], pro["stripeFeeNanos"]) == (7500, "3171000000")
    assert (zero["profitNanos"], zero["netMarginBasisPoints"]) == ("0", 0)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--margin", "100"), "must be below 100 %"),
        (("--margin", "-5"), "must be a percentage"),
        (("--margin", "80.001"), "a basis point is the least"),
        (("--margin", "a lot"), "must be a percentage"),
        (("--price", "99"), "--price 99: the amount must be a decimal"),
        (("--price", "=99"), "must be PLAN=USD"),
        (("--price", "pro=1e3"), "must be a decimal number"),
        (("--price", "pro=200000000"), "at most $100 million"),
        (("--plans", "none.toml"), "none.toml: No such file"),
    ],
)
def test_tiers_that_make_no_sense_are_refused_in_a_line(command, arguments, told):
    status, out, err = command("tiers", *arguments)
    assert (status, out) in ((1, ""), (2, ""))
    assert told in err or "expected one argument" in err
