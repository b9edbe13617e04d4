"""Owns certificates for tests: an authority, and what it signs."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime as dt
import ipaddress
import itertools
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

_versions = itertools.count(1)


@dataclasses.dataclass(frozen=True)
class Pair:
    """A certificate and its key, in PEM."""

    certificate: bytes
    key: bytes


class Authority:
    """Signs certificates that are valid for a day either way."""

    def __init__(self) -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "tests")])
        self.certificate = self._signed(self._name, self._key, 1, x509.BasicConstraints(ca=True, path_length=0))

    def pair(self, *names: str, serial: int | None = None) -> Pair:
        """A certificate for these DNS names and addresses."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, names[0])])
        alternatives = x509.SubjectAlternativeName([_general(name) for name in names])
        certificate = self._signed(subject, key, serial or x509.random_serial_number(), alternatives)
        plain = serialization.NoEncryption()
        pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, plain)
        return Pair(certificate, pem)

    def _signed(
        self, subject: x509.Name, key: ec.EllipticCurvePrivateKey, serial: int, extension: x509.ExtensionType
    ) -> bytes:
        now = dt.datetime.now(dt.UTC)
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key.public_key())
            .serial_number(serial)
            .not_valid_before(now - dt.timedelta(days=1))
            .not_valid_after(now + dt.timedelta(days=1))
            .add_extension(extension, critical=isinstance(extension, x509.BasicConstraints))
            .sign(self._key, hashes.SHA256())
            .public_bytes(serialization.Encoding.PEM)
        )


def _general(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def put(folder: Path, files: dict[str, bytes]) -> None:
    """Put these files into the folder as Kubernetes does a Secret's: all of them by one rename of a link."""
    fresh = folder / f"..{next(_versions)}"
    fresh.mkdir()
    for name, content in files.items():
        (fresh / name).write_bytes(content)
    (folder / "..data_tmp").symlink_to(fresh.name)
    (folder / "..data_tmp").rename(folder / "..data")
    for name in files:
        with contextlib.suppress(FileExistsError):
            (folder / name).symlink_to(f"..data/{name}")
