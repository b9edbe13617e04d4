"""What the README tells a newcomer to type works as it stands."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

README = (Path(__file__).parents[2] / "README.md").read_text()
BLOCKS = re.findall(r"```(bash|python)\n(.*?)```", README, re.DOTALL)


def lines(block):
    """A block without what the fixture has done already."""
    return block.replace(". .local/dev.env", '. "$TOLLKEEPER_HOME/dev.env"').replace("make up\n", "")


@pytest.mark.parametrize(("language", "block"), BLOCKS, ids=range(len(BLOCKS)))
def test_readme_block_runs(suite, language, block):
    program = {
        "bash": ["bash", "-euo", "pipefail", "-c", lines(block)],
        "python": [sys.executable, "-c", "import os\n" + block],
    }[language]
    environment = os.environ | suite.env | {"TOLLKEEPER_HOME": str(suite.home)}
    done = subprocess.run(program, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert '"error"' not in done.stdout
    assert '"code"' not in done.stdout, done.stdout


def test_readme_shows_a_metered_call_and_its_balance(suite):
    (block,) = [block for _, block in BLOCKS if "/v1/chat/completions" in block and "/api/credits/balance" in block]
    environment = os.environ | {"TOLLKEEPER_HOME": str(suite.home)}
    done = subprocess.run(
        ["bash", "-c", lines(block)], env=environment, capture_output=True, text=True, timeout=60, check=True
    )
    assert '"usage"' in done.stdout
    assert '"availableNanos"' in done.stdout
