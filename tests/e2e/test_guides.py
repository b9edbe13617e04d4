"""What README and guides tell a reader to type works as it stands, from first line to last, and every example runs."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
# Blocks of other languages are for files, or for a cluster and a Stripe account that no test has.
BLOCK = re.compile(r"^( *)```(bash|python)\n(.*?)^ *```$", re.DOTALL | re.MULTILINE)
GUIDES = [README, *sorted(path for path in (ROOT / "docs/guides").glob("*.md") if BLOCK.search(path.read_text()))]
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))


def script(guide):
    """All of a guide as one script: its shell as it is, but for what the fixture has done, its Python interpreted."""
    parts = ["set -euo pipefail"]
    for indent, language, block in BLOCK.findall(guide.read_text()):
        text = re.sub(rf"^{indent}", "", block, flags=re.MULTILINE)
        if language == "python":
            parts.append(f"python - <<'PYTHON'\n{text}PYTHON")
        elif text != "make up\n":
            parts.append(text.replace(". .local/dev.env", '. "$TOLLKEEPER_HOME/dev.env"'))
    return "\n".join(parts)


def run(suite, guide):
    """Run it as a reader would, who knows nothing but where the suite is; what it printed."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {"HOME": os.environ.get("HOME", "/"), "TOLLKEEPER_HOME": str(suite.home), "PATH": path}
    done = subprocess.run(
        ["bash", "-c", script(guide)],
        env=environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("guide", GUIDES, ids=[path.stem for path in GUIDES])
def test_guide_runs_from_beginning_to_end(suite, guide):
    printed = run(suite, guide)
    refusals = re.findall(r'"code":(?: ?\d+|"\w+")', printed)
    assert set(refusals) <= {'"code":"insufficient_credit"'}
    if guide == README:
        assert '"usage"' in printed
        assert '"availableNanos"' in printed


@pytest.mark.parametrize("example", EXAMPLES, ids=[path.stem for path in EXAMPLES])
def test_example_runs(suite, example):
    words = [sys.executable, str(example)]
    done = subprocess.run(words, env=os.environ | suite.env, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
