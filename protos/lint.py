"""Lints the contracts with buf, and holds them against those of the last release. Run as `python -m protos.lint`.

buf reads descriptor sets that protoc makes, so that google/api comes from its Python package.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

from protos.build import ROOT, write_descriptor_set
from protos.release import RELEASED


def main() -> int:
    """Print what buf finds; its exit status."""
    with tempfile.TemporaryDirectory() as folder:
        image = Path(folder) / "contracts.binpb"
        write_descriptor_set(image, with_comments=True)
        return max(_buf("lint", image), _buf("breaking", image, "--against", RELEASED))


def _buf(*words: str | Path) -> int:
    buf = Path(sys.executable).parent / "buf"
    return subprocess.run([buf, *words, "--config", ROOT / "buf.yaml"], check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
