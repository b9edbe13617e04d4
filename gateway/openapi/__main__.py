"""Owns the command `python -m gateway.openapi`: writes openapi.json; with `--check`, fails where that is stale."""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

from gateway.openapi import DOCUMENT, contracts, document
from protos.build import write_descriptor_set


def text() -> str:
    """The document that the contracts give, as it is committed."""
    with tempfile.TemporaryDirectory() as folder:
        descriptor_set = Path(folder) / "with_comments.binpb"
        write_descriptor_set(descriptor_set, with_comments=True)
        found = contracts.read(descriptor_set.read_bytes())
    return json.dumps(document.build(found), indent=1, ensure_ascii=False) + "\n"


def main() -> None:
    """Write the document, or check it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; fail where openapi.json is not current")
    if not parser.parse_args().check:
        DOCUMENT.write_text(text(), encoding="utf-8")
    elif not DOCUMENT.exists() or DOCUMENT.read_text(encoding="utf-8") != text():
        raise SystemExit(f"gateway/openapi/{DOCUMENT.name} is not what the contracts give; run `make protos`")


if __name__ == "__main__":
    main()
