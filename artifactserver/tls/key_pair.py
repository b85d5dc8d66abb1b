"""The server's own key, its certificate, and those of the authorities that vouch for it."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes
from OpenSSL import SSL

from artifactserver.tls.pem import TlsProblem, read_chain, read_key


@dataclass(frozen=True, slots=True)
class KeyPair:
    """What a server shows, and proves that it is its own.

    :ivar chain: the server's certificate, then those of the authorities between it and the root.
    """

    key_file: Path
    certificate_file: Path
    key: PrivateKeyTypes
    chain: tuple[x509.Certificate, ...]

    def install(self, context: SSL.Context) -> None:
        """Let connections of ``context`` show this.

        :raises SSL.Error: if OpenSSL does not like it.
        """
        context.use_certificate(self.chain[0])
        for certificate in self.chain[1:]:
            context.add_extra_chain_cert(certificate)
        context.use_privatekey(self.key)  # type: ignore[arg-type]
        context.check_privatekey()

    def doubts(self, now: float) -> Iterator[str]:
        """Sentences about what does not keep a server from serving, but may keep its clients away, or let others in.

        :param now: seconds since the epoch.
        """
        if _too_many_may_read(self.key_file):
            yield f"others can read the private key in {self.key_file}: take that from them with 'chmod go=', or 'o='"
        for number, certificate in enumerate(self.chain, 1):
            which = f"certificate number {number} in" if len(self.chain) > 1 else "the certificate in"
            if now > certificate.not_valid_after_utc.timestamp():
                end = certificate.not_valid_after_utc
                yield f"{which} {self.certificate_file} has expired on {end:%Y-%m-%d}: put a new one into the file"
            elif now < certificate.not_valid_before_utc.timestamp():
                start = certificate.not_valid_before_utc
                yield f"{which} {self.certificate_file} is not valid before {start:%Y-%m-%d}, by this machine's clock"


def read_key_pair(key_file: Path, certificate_file: Path) -> KeyPair:
    """Read the files of ``--server-key`` and ``--server-cert``.

    :raises TlsProblem: if something is wrong with one of them, or they do not belong together.
    """
    pair = KeyPair(
        key_file,
        certificate_file,
        read_key(key_file, "--server-key"),
        tuple(read_chain(certificate_file, "--server-cert")),
    )
    if _public_bytes(pair.key.public_key()) != _public_bytes(pair.chain[0].public_key()):
        raise TlsProblem(
            f"the key {key_file} does not belong to the first certificate in {certificate_file}: give --server-key the "
            "key that it was made for, and put the server's own certificate before those of its authorities"
        )
    try:
        pair.install(SSL.Context(SSL.TLS_SERVER_METHOD))
    except SSL.Error as error:
        reasons = ", ".join(entry[2] for entry in error.args[0]) if error.args else "no reason given"
        raise TlsProblem(
            f"OpenSSL does not accept the key {key_file} with the certificate {certificate_file} ({reasons}): make new "
            "ones"
        ) from error
    return pair


def _too_many_may_read(path: Path) -> bool:
    """Whether others may read a file than those who have to.

    A group may, where the server is in it because the file is not its own: that is how a key is shared.
    """
    try:
        status = os.stat(path)
    except OSError:
        return False
    if status.st_mode & stat.S_IROTH:
        return True
    return bool(status.st_mode & stat.S_IRGRP) and status.st_uid == os.geteuid() != 0


def _public_bytes(key: object) -> bytes:
    encoded: bytes = key.public_bytes(  # type: ignore[attr-defined]
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return encoded
