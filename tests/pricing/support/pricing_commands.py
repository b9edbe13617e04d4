"""Owns what the tests of pricing's commands share: how a command is run, and a small price map."""

import json
import os
import subprocess
import sys

from services.kit.command import main
from services.pricing.__main__ import MIGRATIONS
from services.pricing.assembly import make_server
from services.pricing.commands import COMMANDS
from services.pricing.settings import PricingSettings

INPUT, OUTPUT = "input_cost_per_token", "output_cost_per_token"
MAP = {
    "gpt-4o": {
        "litellm_provider": "openai",
        "mode": "chat",
        INPUT: 2.5e-06,
        OUTPUT: 1e-05,
        "cache_read_input_token_cost": 1.25e-06,
        f"{INPUT}_batches": 1.25e-06,
        f"{OUTPUT}_batches": 5e-06,
    },
    "whisper": {"litellm_provider": "openai", "mode": "audio_transcription", "input_cost_per_second": 0.0001},
    "odd": {"litellm_provider": "openai", "mode": "chat", "cost_per_moon": 1},
}


def run(*arguments, environment=None, **options):
    """A command as its own process; without settings unless they are given."""
    bare = {name: value for name, value in os.environ.items() if not name.startswith("TOLLKEEPER_")}
    return subprocess.run(
        [sys.executable, "-m", "services.pricing", *map(str, arguments)],
        env=bare | (environment or {}),
        capture_output=True,
        timeout=60,
        check=False,
        **options,
    )


def run_here(capsys, *arguments):
    """A command in this process; its exit status, output and errors. Its settings are in the environment, if any."""
    capsys.readouterr()  # what was printed before
    try:
        status = main(
            PricingSettings,
            serve=make_server,
            script_location=MIGRATIONS,
            own=COMMANDS,
            arguments=list(map(str, arguments)),
        )
    except SystemExit as stopped:
        status = stopped.code
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def map_file_in(folder):
    """The small map as a file."""
    file = folder / "map.json"
    file.write_text(json.dumps(MAP))
    return file
