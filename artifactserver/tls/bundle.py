"""The bundle: the certificates by which clients are known.

BuildStream's manual makes them self-signed, all with the name ``/CN=client``, and able to sign others, so a chain of
names says little: a certificate that is itself in the bundle is good as it is, and only one that is not needs a chain
to an authority that is there.  Either way it must not have expired.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from OpenSSL import crypto
from twisted.internet.interfaces import ITransport

from artifactserver.tls.pem import read_bundle

#: What OpenSSL calls X509_V_ERR_CERT_NOT_YET_VALID, _CERT_HAS_EXPIRED and the two for times that cannot be read.
_TIME_ERRORS = frozenset({9, 10, 13, 14})

#: And X509_V_ERR_CERT_UNTRUSTED.
_UNTRUSTED = 27


@dataclass(slots=True)
class Examination:
    """What is known about a client's certificate during its handshake, and who it is from then on.

    :ivar errors: what OpenSSL does not like about it, by distance from the client's own certificate.
    :ivar top: the fingerprint of the last certificate of the chain.
    :ivar vouched: the fingerprint of the entry of the bundle that vouches for the client.
    """

    transport: ITransport
    errors: list[tuple[int, int]] = field(default_factory=list)
    top: str | None = None
    vouched: str | None = None


@dataclass(frozen=True, slots=True)
class Rejection:
    """Why a client is turned away.

    :ivar error: the number that OpenSSL has for it, which decides what the client is told.
    :ivar reason: the end of a sentence that begins with its certificate.
    """

    error: int
    reason: str


class Bundle:
    """The certificates that clients may show, or that may have signed what they show.

    Two are equal if the same certificates are in the same file, in whatever order.

    :ivar fingerprints: of every certificate.
    """

    def __init__(self, path: Path, certificates: Sequence[x509.Certificate]) -> None:
        self.path = path
        self.fingerprints = frozenset(map(fingerprint, certificates))
        # One that does not say that it is an authority is none, whatever an old version of X.509 would make of it.
        self._authorities = [each for each in certificates if _may_sign(each)]

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Bundle):
            return NotImplemented
        return (self.path, self.fingerprints) == (other.path, other.fingerprints)

    def install(self, store: crypto.X509Store) -> None:
        """Let OpenSSL look for chains to what is in here."""
        # An authority in the bundle is trusted as it is, whoever signed it.
        store.set_flags(crypto.X509StoreFlags.PARTIAL_CHAIN)
        for authority in self._authorities:
            store.add_cert(crypto.X509.from_cryptography(authority))

    def judge(self, own: str, examination: Examination) -> Rejection | None:
        """Decide on a client, of whose certificate and chain OpenSSL has told all.

        :param own: the fingerprint of its own certificate.
        """
        errors = examination.errors
        late = [error for error, depth in errors if depth == 0 and error in _TIME_ERRORS]
        if late:
            return Rejection(late[0], "has expired or is not valid yet")
        if own in self.fingerprints:
            examination.vouched = own
        elif not errors and examination.top in self.fingerprints:
            examination.vouched = examination.top
        else:
            return Rejection(errors[0][0] if errors else _UNTRUSTED, "is not in the bundle of client certificates")
        return None


def bundle_in(path: Path) -> Bundle:
    """Read the file of ``--client-certs``.

    :raises TlsProblem: if something is wrong with it.
    """
    return Bundle(path, read_bundle(path, "--client-certs"))


def fingerprint(certificate: x509.Certificate) -> str:
    """The SHA-256 of the certificate's DER form, in lower-case hexadecimal."""
    return certificate.fingerprint(hashes.SHA256()).hex()


def _may_sign(certificate: x509.Certificate) -> bool:
    try:
        return bool(certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca)
    except (x509.ExtensionNotFound, x509.DuplicateExtension, ValueError):
        return False
