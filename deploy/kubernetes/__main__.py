"""Owns `python -m deploy.kubernetes deploy | rollback | scale | run NAME`, and `credentials FOLDER`."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path

from deploy.kubernetes import credentials, release
from deploy.kubernetes.cluster import Kubectl, kubectl_program

_CHOICES = {"deploy": release.PARTS, "rollback": release.ROLLED, "scale": release.ROLLED, "run": release.SERVICES}


def main() -> int:
    """Run the command; 1 where it did not get there."""
    parser = argparse.ArgumentParser(prog="python -m deploy.kubernetes", description="Bring one part to a cluster.")
    commands = parser.add_subparsers(dest="command", required=True)
    for name, words in (
        ("deploy", "migrate its database, then roll it out, and wait for both"),
        ("rollback", "go back to the release before, and wait for it"),
        ("scale", "change how many there are at least, until it is deployed again"),
        ("run", "run a command of a service in a pod of its own: `run ledger --overlay production -- verify`"),
    ):
        command = commands.add_parser(name, help=words, description=words)
        command.add_argument("part", choices=_CHOICES[name])
        command.add_argument("--overlay", choices=release.OVERLAYS, required=True)
        if name in {"deploy", "run"}:
            command.add_argument("--tag", help="the image's, if not the overlay's own")
        if name == "scale":
            command.add_argument("--least", type=int, required=True, metavar="N")
        if name == "run":
            command.add_argument("--claim", help="a PersistentVolumeClaim, found at /archive")
            command.add_argument(
                "arguments", nargs="+", metavar="-- COMMAND", help="what follows `python -m services.NAME`"
            )
    _add_credentials(commands)
    chosen = parser.parse_args()
    kubectl = Kubectl(kubectl_program(os.environ))
    try:
        if chosen.command == "credentials":
            sys.stdout.writelines(f"{file}\n" for file in chosen.step(chosen.folder))
        elif chosen.command == "deploy":
            release.deploy(kubectl, chosen.part, chosen.overlay, chosen.tag)
        elif chosen.command == "rollback":
            release.roll_back(kubectl, chosen.part, chosen.overlay)
        elif chosen.command == "run":
            release.run(kubectl, chosen.part, chosen.overlay, chosen.arguments, tag=chosen.tag, claim=chosen.claim)
        else:
            release.scale(kubectl, chosen.part, chosen.overlay, chosen.least)
    except (release.ReleaseError, credentials.CredentialsError, subprocess.CalledProcessError) as error:
        sys.stderr.write(f"deploy: {error}\n")
        return 1
    return 0


def _add_credentials(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    words = "make the identity credentials that go into Secrets, in a folder of this machine"
    command = commands.add_parser("credentials", help=words, description=words)
    command.add_argument("folder", type=Path)
    steps = command.add_mutually_exclusive_group()
    for option, step, what in (
        ("--rotate", credentials.rotate, "a new key; the old one's tokens stay good"),
        ("--forget", credentials.forget, "the present key alone is good"),
        ("--renew-tokens", credentials.renew_tokens, "new tokens by the present key"),
    ):
        steps.add_argument(option, dest="step", action="store_const", const=step, help=what)
    command.set_defaults(step=credentials.make)


if __name__ == "__main__":
    sys.exit(main())
