"""Certificates for tests: the kinds that real users of a BuildStream cache have, made in memory.

BuildStream's manual tells its users to make *self-signed* certificates with ``openssl req -new -x509 -batch -subj
"/CN=client"``: so all of them have one name, carry ``CA:TRUE``, and differ in nothing but the key.  Others run an
authority of their own.  Keys are RSA, since the oldest clients (grpcio 1.10) can do nothing else.
"""

from __future__ import annotations

import datetime
import ipaddress
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.x509.oid import NameOID

_DAY = datetime.timedelta(days=1)
_files = itertools.count(1)


@dataclass(frozen=True, slots=True)
class Certificate:
    """A certificate with its private key."""

    certificate: x509.Certificate
    private_key: rsa.RSAPrivateKey

    @property
    def pem(self) -> bytes:
        """The certificate, as it stands in a ``.crt`` file or a bundle."""
        return self.certificate.public_bytes(serialization.Encoding.PEM)

    @property
    def key_pem(self) -> bytes:
        """The private key without a passphrase, as it stands in a ``.key`` file."""
        return self.private_key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )

    @property
    def fingerprint(self) -> str:
        """The SHA-256 of the certificate's DER form, in lower-case hexadecimal."""
        return self.certificate.fingerprint(hashes.SHA256()).hex()

    def write(self, directory: Path) -> CertificateFiles:
        """Write both to new files in ``directory``."""
        stem = directory / f"certificate-{next(_files)}"
        files = CertificateFiles(certificate=stem.with_suffix(".crt"), key=stem.with_suffix(".key"))
        files.certificate.write_bytes(self.pem)
        files.key.touch(mode=0o600)
        files.key.write_bytes(self.key_pem)
        return files


@dataclass(frozen=True, slots=True)
class CertificateFiles:
    """Where a certificate and its key were written to."""

    certificate: Path
    key: Path


def certificate(
    common_name: str = "client",
    *,
    issuer: Certificate | None = None,
    authority: bool | None = None,
    names: Sequence[str] = (),
    expired: bool = False,
) -> Certificate:
    """Make a certificate with a new key.

    :param issuer: who signs it; by default it signs itself.
    :param authority: whether it may sign others; by default a self-signed one may, as ``openssl req -x509`` has it.
    :param names: DNS names and IP addresses for its ``subjectAltName``.
    :param expired: whether it ran out yesterday.
    """
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])
    if authority is None:
        authority = issuer is None
    now = datetime.datetime.now(datetime.timezone.utc)
    end = now - _DAY if expired else now + 30 * _DAY
    signer = key if issuer is None else issuer.private_key
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject if issuer is None else issuer.certificate.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - 10 * _DAY)
        .not_valid_after(end)
        .add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False)
    )
    if names:
        builder = builder.add_extension(x509.SubjectAlternativeName([_general_name(name) for name in names]), False)
    return Certificate(builder.sign(signer, hashes.SHA256()), key)


def server_certificate(*, issuer: Certificate | None = None, expired: bool = False) -> Certificate:
    """A server's certificate for ``localhost``, ``127.0.0.1`` and ``::1``; self-signed unless there is an issuer."""
    return certificate("localhost", issuer=issuer, names=["localhost", "127.0.0.1", "::1"], expired=expired)


def _general_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)
