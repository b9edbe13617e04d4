"""Keeps the contracts of the last release, which later ones have to be compatible with.

Run as `python -m protos.release` when a release is made: from then on `python -m protos.lint` refuses what would break
a client of it.
"""

from __future__ import annotations

import gzip
import tempfile
from pathlib import Path

from protos.build import ROOT, write_descriptor_set

RELEASED = ROOT / "released.binpb.gz"


def main() -> None:
    """Make the contracts as they are the released ones."""
    with tempfile.TemporaryDirectory() as folder:
        image = Path(folder) / "contracts.binpb"
        write_descriptor_set(image)
        # The same contracts always give the same bytes: no name and no time within.
        RELEASED.write_bytes(gzip.compress(image.read_bytes(), mtime=0))


if __name__ == "__main__":
    main()
