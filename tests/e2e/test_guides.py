"""What the guides tell a reader to type works as it stands, from first line to last, and every example runs."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.test_readme import lines

FOLDER = Path(__file__).parents[2] / "docs/guides"
# Blocks of other languages are for files, or for a cluster and a Stripe account that no test has.
BLOCK = re.compile(r"^( *)```(bash|python)\n(.*?)^ *```$", re.DOTALL | re.MULTILINE)
EXAMPLES = sorted((FOLDER.parents[1] / "examples").glob("*.py"))
GUIDES = sorted(path for path in FOLDER.glob("*.md") if BLOCK.search(path.read_text()))


def script(guide):
    """All of a guide as one script: its shell as it is, its Python handed to an interpreter."""
    parts = ["set -euo pipefail"]
    for indent, language, block in BLOCK.findall(guide.read_text()):
        text = re.sub(rf"^{indent}", "", block, flags=re.MULTILINE)
        parts.append(lines(text) if language == "bash" else f"python - <<'PYTHON'\nimport os\n{text}PYTHON")
    return "\n".join(parts)


@pytest.mark.parametrize("guide", GUIDES, ids=[path.stem for path in GUIDES])
def test_guide_runs_from_beginning_to_end(suite, guide):
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = os.environ | suite.env | {"TOLLKEEPER_HOME": str(suite.home), "PATH": path}
    done = subprocess.run(
        ["bash", "-c", script(guide)], env=environment, capture_output=True, text=True, timeout=90, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    answers = [line for line in done.stdout.splitlines() if line.startswith("{")]
    unexpected = [line for line in answers if '"code":' in line and "insufficient_credit" not in line]
    assert unexpected == []


@pytest.mark.parametrize("example", EXAMPLES, ids=[path.stem for path in EXAMPLES])
def test_example_runs(suite, example):
    words = [sys.executable, str(example)]
    done = subprocess.run(words, env=os.environ | suite.env, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
