"""Owns what the tests of kit share: their own contract, generated when they run, and credentials of every role."""

import atexit
import importlib.resources
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from services.kit.identity import Identity, Role, TokenSigner, make_keypair
from services.kit.settings import ServiceSettings

_HERE = Path(__file__).parent


def _generated() -> str:
    """A folder with the modules of protos/kit_echo.proto, for this process and those it starts."""
    folder = tempfile.TemporaryDirectory(prefix="tollkeeper-kit-")
    atexit.register(folder.cleanup)
    well_known = importlib.resources.files("grpc_tools") / "_proto"
    command = [
        *(sys.executable, "-m", "grpc_tools.protoc"),
        *(f"-I{_HERE / 'protos'}", f"-I{_HERE.parent.parent / 'protos'}", f"-I{well_known}"),
        *(f"--python_out={folder.name}", f"--grpc_python_out={folder.name}", "kit_echo.proto"),
    ]
    subprocess.run(command, check=True, timeout=60)
    return folder.name


# Here, not in a fixture: the test modules import what is generated.
IMPORT_ROOTS = [_generated(), str(_HERE / "support")]
sys.path[:0] = IMPORT_ROOTS


@pytest.fixture(scope="session")
def import_roots():
    """Import roots a process started by a test needs to serve the test contract."""
    return IMPORT_ROOTS


@pytest.fixture(scope="session")
def keypair():
    return make_keypair()


@pytest.fixture(scope="session")
def signer(keypair):
    return TokenSigner(keypair[0])


@pytest.fixture
def jwks_file(tmp_path, keypair):
    file = tmp_path / "identity.jwks"
    file.write_text(json.dumps(keypair[1]))
    return file


@pytest.fixture
def settings(jwks_file):
    return ServiceSettings(listen="127.0.0.1:0", identity_jwks_file=jwks_file, grace_seconds=5)


@pytest.fixture(scope="session")
def bearer(signer):
    """Metadata with a token of a role: `bearer("ADMIN")`, `bearer("ACCOUNT", account_id="acme")`."""

    def make(role, ttl_seconds=60, **fields):
        if role == "ACCOUNT":
            fields.setdefault("account_id", "acme")
        token = signer.sign(Identity(Role[role], subject=role.lower(), **fields), ttl_seconds)
        return (("authorization", f"Bearer {token}"),)

    return make
