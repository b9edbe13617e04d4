"""Owns the proof that `price` does at a terminal what the service does, a call or a line at a time, also by a file."""

import json
import subprocess
import sys

import pytest
from pricing_commands import INPUT, run

from services.pricing.shipped import FOLDER, MAX_FILE_BYTES
from services.rating import COMPONENTS

SHIPPED = FOLDER / "prices.toml"


def lines(*calls):
    return b"".join((call if isinstance(call, bytes) else json.dumps(call).encode()) + b"\n" for call in calls)


def test_call_is_priced_by_a_file_without_server_settings_or_database():
    found = run("price", "openai", "gpt-4o", "--input-tokens", 1000, "--output-tokens", 500, "--catalogue", SHIPPED)
    assert (found.returncode, found.stderr) == (0, b"")
    assert "$0.0125" in found.stdout.decode()


def test_price_as_json_names_its_version_and_itemises_its_parts(command, map_file):
    counts = ("--input-tokens", 1000, "--cache-read-tokens", 400, "--output-tokens", 500)
    status, out, _ = command("price", "openai", "gpt-4o", *counts, "--catalogue", map_file, "--json")
    assert status == 0
    assert json.loads(out) == {
        "costNanos": "7000000",
        "priceVersion": 1,
        "parts": [
            {"component": "input", "quantity": "600", "nanosPerMillion": "2500000000", "costNanos": "1500000"},
            {"component": "cache_read", "quantity": "400", "nanosPerMillion": "1250000000", "costNanos": "500000"},
            {"component": "output", "quantity": "500", "nanosPerMillion": "10000000000", "costNanos": "5000000"},
        ],
    }


def test_every_count_can_be_given(command, tmp_path):
    components = [
        "input",
        "output",
        "cache_read",
        "cache_write_5m",
        "cache_write_1h",
        "reasoning",
        "audio_input",
        "audio_output",
        "image_input",
        "image_output",
        "image",
        "character",
        "second",
        "request",
    ]
    rates = ", ".join(f'{{ component = "{name}", usd = "1" }}' for name in components)
    file = tmp_path / "all.toml"
    head = 'currency = "USD"\neffective_from = 2026-01-01T00:00:00Z\nreason = "all"\n'
    file.write_text(f'{head}[[models]]\nprovider = "a"\nmodel = "m"\nmode = "chat"\nrates = [{rates}]\n')
    counts = {
        "input-tokens": 150,
        "cache-read-tokens": 10,
        "cache-write-5m-tokens": 20,
        "cache-write-1h-tokens": 30,
        "audio-input-tokens": 40,
        "image-input-tokens": 45,
        "output-tokens": 100,
        "reasoning-tokens": 20,
        "audio-output-tokens": 30,
        "image-output-tokens": 40,
        "images": 3,
        "characters": 7,
        "milliseconds": 5000,
        "requests": 2,
    }
    options = [item for name, count in counts.items() for item in (f"--{name}", count)]
    status, out, _ = command("price", "a", "m", *options, "--catalogue", file, "--json")
    assert status == 0
    found = json.loads(out)
    assert found["costNanos"] == str((150 + 100 + 3 + 7 + 5 + 2) * 1000)
    assert len(found["parts"]) == len(COMPONENTS)
    _, out, _ = command("price", "a", "m", *options, "--catalogue", file)
    assert "5.000" in out


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("openai", "gpt-9"), "PRICE_NOT_FOUND: openai/gpt-9 has no price"),
        (("openai", "gpt-4o", "--images", "1"), "COMPONENT_NOT_PRICED: openai/gpt-4o has no standard rate for image"),
        (("openai", "gpt-4o", "--service-tier", "flex", "--input-tokens", "1"), "COMPONENT_NOT_PRICED"),
        (("openai", "gpt-4o", "--input-tokens", "-1"), "INVALID_ARGUMENT: invalid usage.input_tokens"),
        (("openai", "gpt-4o", "--cache-read-tokens", "1"), "INVALID_ARGUMENT: invalid usage.input_tokens: must incl"),
        (("openai", "gpt-4o", "--at", "yesterday"), "INVALID_ARGUMENT: invalid at"),
        (("openai", "gpt-4o", "--at", "2026-01-01T00:00:00"), "INVALID_ARGUMENT: invalid at"),
        (("openai", "gpt-4o", "--version", "2"), "PRICE_NOT_FOUND"),
        (("openai", "gpt-4o", "--at", "2025-01-01T00:00:00Z"), "PRICE_NOT_FOUND"),
        (("openai",), "give PROVIDER and MODEL"),
        (("openai", "gpt-4o", "--batch", "-"), "with --batch, all is said in its lines"),
        (("--batch", "/no/such/file"), "/no/such/file: No such file"),
    ],
)
def test_call_that_cannot_be_priced_is_refused_in_a_line(command, arguments, told):
    status, out, err = command("price", *arguments, "--catalogue", SHIPPED)
    assert (status, out) == (1, "")
    assert told in err
    assert err.count("\n") == 1


def test_refusal_as_json_has_its_reason(command):
    status, out, err = command("price", "openai", "gpt-9", "--catalogue", SHIPPED, "--json")
    assert (status, err) == (1, "")
    assert json.loads(out)["error"]["reason"] == "PRICE_NOT_FOUND"


def test_batch_answers_each_line_in_order_and_stops_at_none(map_file):
    good = {"provider": "openai", "model": "gpt-4o", "inputTokens": 1000, "outputTokens": 500}
    batch = (
        lines(
            good | {"cacheReadTokens": 0, "serviceTier": "batch"},
            good | {"model": "gpt-9"},
            b"junk",
            b"",
            b"[]",
            b"\xff\xfe",
            b'{"model": "\\ud800", "provider": "openai"}',
            good | {"inputTokens": "1000", "output_tokens": 500, "outputTokens": None} | {"serviceTier": None},
            good | {"cachedTokens": 5},
            good | {"inputTokens": 1.5},
            good | {"inputTokens": True},
            good | {"inputTokens": 2**63},
            b'{"provider": "openai", "model": "gpt-4o", "inputTokens": ' + b"9" * 5000 + b"}",
            good | {"inputTokens": -1},
            good | {"images": 1},
            {"provider": "openai", "model": "whisper", "milliseconds": 1500},
            good | {"multiplierMillionths": 1_500_000},
            good | {"at": "2026-01-01T00:00:00Z", "priceVersion": 1},
            b'{"provider": "' + b"x" * 100_000 + b'"}',
            b"[" * 60_000,
            good | {"model": "odd"},
        )
        + json.dumps(good).encode()
    )
    found = run("price", "--batch", "-", "--catalogue", map_file, input=batch)
    assert (found.returncode, found.stderr) == (0, b"")
    answers = [json.loads(line) for line in found.stdout.splitlines()]
    wrong = "INVALID_ARGUMENT"
    assert [answer.get("costNanos") or answer["error"]["reason"] for answer in answers] == [
        "3750000",
        "PRICE_NOT_FOUND",
        wrong,
        wrong,
        wrong,
        wrong,
        "PRICE_NOT_FOUND",
        "7500000",
        wrong,
        wrong,
        wrong,
        wrong,
        wrong,
        wrong,
        "COMPONENT_NOT_PRICED",
        "150000",
        "7500000",
        "7500000",
        wrong,
        wrong,
        "PRICE_NOT_FOUND",
        "7500000",
    ]
    assert answers[0]["priceVersion"] == 1
    assert [part["component"] for part in answers[0]["parts"]] == ["input", "output"]
    assert answers[16]["billedNanos"] == "11250000"
    assert "cachedTokens" in answers[8]["error"]["message"]


def test_batch_answers_a_line_before_the_next_one_comes(map_file):
    arguments = ["price", "--batch", "-", "--catalogue", str(map_file)]
    with subprocess.Popen(
        [sys.executable, "-m", "services.pricing", *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        for tokens in (1000, 2000):
            process.stdin.write(lines({"provider": "openai", "model": "gpt-4o", "inputTokens": tokens}))
            process.stdin.flush()
            assert json.loads(process.stdout.readline())["costNanos"] == str(tokens * 2500)
        process.stdin.close()
        assert process.stdout.read() == b""
    assert process.returncode == 0


def test_batch_ends_quietly_when_its_reader_goes(map_file):
    call = lines({"provider": "openai", "model": "gpt-4o", "inputTokens": 1})
    with subprocess.Popen(
        [sys.executable, "-m", "services.pricing", "price", "--batch", "-", "--catalogue", str(map_file)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        process.stdin.write(call)
        process.stdin.flush()
        process.stdout.readline()
        process.stdout.close()
        process.stdin.write(call * 2)
        process.stdin.close()
        assert process.stderr.read() == b""
    assert process.returncode == 1


def test_batch_is_read_from_a_file(command, tmp_path, map_file):
    batch = tmp_path / "calls.jsonl"
    batch.write_bytes(lines({"provider": "openai", "model": "gpt-4o", "inputTokens": 4}) * 3)
    _, out, _ = command("price", "--batch", batch, "--catalogue", map_file)
    assert [json.loads(line)["costNanos"] for line in out.splitlines()] == ["10000"] * 3


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("a.toml", SHIPPED.read_bytes().replace(b'currency = "USD"\n', b"", 1), ": currency: is required"),
        (
            "a.toml",
            SHIPPED.read_bytes().replace(b'"output"', b'"outptu"', 1),
            ":21: models[0].rates[1].component: must",
        ),
        (
            "a.toml",
            SHIPPED.read_bytes().replace(b'"output"', b'"input"', 1),
            ":21: models[0].rates[1]: prices the same",
        ),
        ("a.toml", SHIPPED.read_bytes().replace(b'usd = "15"', b'usd = "-15"', 1), ":21: models[0].rates[1].usd: must"),
        ("a.toml", b"x" * (MAX_FILE_BYTES + 1), f"is larger than {MAX_FILE_BYTES} bytes"),
        ("a.toml", b"x" * MAX_FILE_BYTES, "a.toml: "),
        ("a.toml", b"n = " + b"9" * 5000, "a number that is too long"),
        ("a.json", b"{" + b"x" * MAX_FILE_BYTES, f"is larger than {MAX_FILE_BYTES} bytes"),
        ("a.json", b"{" + b"x" * (MAX_FILE_BYTES - 1), "is not JSON"),
        ("a.json", json.dumps({"m": {INPUT: -1}}).encode(), f"a.json: m: {INPUT}: must not be negative"),
        ("a.json", b"[1]", "must be a JSON object"),
    ],
)
def test_bad_catalogue_file_is_refused_whole_with_line_and_field(command, tmp_path, name, content, told):
    file = tmp_path / name
    file.write_bytes(content)
    status, out, err = command("price", "openai", "gpt-4o", "--catalogue", file)
    assert (status, out) == (1, "")
    assert name in err
    assert told in err


def test_missing_catalogue_file_is_named(command, tmp_path):
    status, _, err = command("price", "openai", "gpt-4o", "--catalogue", tmp_path / "none.toml")
    assert status == 1
    assert "none.toml: No such file" in err
