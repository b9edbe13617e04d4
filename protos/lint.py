"""Lints the contracts with buf, on the descriptor set that protoc makes of them. Run as `python -m protos.lint`."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

from protos.build import ROOT, write_descriptor_set


def main() -> int:
    """Print what buf finds; its exit status."""
    buf = Path(sys.executable).parent / "buf"
    with tempfile.TemporaryDirectory() as folder:
        image = Path(folder) / "contracts.binpb"
        write_descriptor_set(image, with_comments=True)
        return subprocess.run([buf, "lint", image, "--config", ROOT / "buf.yaml"], check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
