"""Owns `python -m deploy.images [--check]`: writes each image's requirements, or fails where one is out of date."""

from __future__ import annotations

import argparse
import sys

from deploy.images.requirements import FOLDER, IMAGES, render


def main() -> int:
    """Write the files, or compare them; 1 where one differs."""
    parser = argparse.ArgumentParser(prog="python -m deploy.images", description="Each image's locked requirements.")
    parser.add_argument("--check", action="store_true", help="change nothing; fail where a file is out of date")
    check = parser.parse_args().check
    stale = []
    for image in IMAGES:
        file, text = FOLDER / f"{image}.txt", render(image)
        if file.exists() and file.read_text() == text:
            continue
        stale.append(file.name)
        if not check:
            file.write_text(text)
    if check and stale:
        sys.stderr.write(f"deploy/images: {', '.join(stale)} not as requirements.lock has it: run `make images`\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
