"""TLS for servers: which versions and ciphers, and which clients' certificates are good.

What is offered serves every client of a BuildStream cache since 2017: TLS 1.2 and 1.3, ECDHE with AES-GCM or ChaCha20,
P-256 and X25519 among the curves.  Nothing is resumed, compressed or renegotiated.

Clients are known by a bundle of certificates, written one after another into a file.  BuildStream's manual makes them
self-signed, all with the name ``/CN=client``, and able to sign others, so a chain of names says little: a certificate
that is itself in the bundle is good as it is, and only one that is not needs a chain to an authority that is there.
Either way it must not have expired.  A port may also ask for a certificate without demanding one: there, whoever shows
none gets in as nobody, and a certificate that is shown still has to be good.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes
from OpenSSL import SSL, crypto
from twisted.internet.interfaces import IOpenSSLServerConnectionCreator, ITransport
from twisted.logger import Logger
from twisted.protocols.tls import TLSMemoryBIOProtocol
from zope.interface import implementer

#: For ALPN, best first: clients of pages and files offer both and get HTTP/1.1; gRPC clients offer ``h2`` and, the
#: older ones, ``grpc-exp``.
PROTOCOLS = (b"http/1.1", b"h2")

#: For TLS 1.2, and 1.3, which has no bad ones.  AES-128 comes first: it is as safe for all that is known, and a tenth
#: less work.
_CIPHERS = b"ECDHE+AESGCM+AES128:ECDHE+AESGCM:ECDHE+CHACHA20"
_CIPHERS_13 = b"TLS_AES_128_GCM_SHA256:TLS_AES_256_GCM_SHA384:TLS_CHACHA20_POLY1305_SHA256"

_OPTIONS = SSL.OP_NO_COMPRESSION | SSL.OP_NO_TICKET | SSL.OP_NO_RENEGOTIATION | SSL.OP_CIPHER_SERVER_PREFERENCE

#: X509_V_ERR_CERT_NOT_YET_VALID, _CERT_HAS_EXPIRED and the two for times that cannot be read.
_TIME_ERRORS = frozenset({9, 10, 13, 14})

_PEM = re.compile(rb"-----BEGIN ([A-Z0-9 ]+)-----.*?-----END \1-----", re.DOTALL)


class TlsProblem(Exception):
    """A key or certificate file cannot be used; ``str()`` is one sentence that says which, and what to do."""


@dataclass(slots=True)
class _Examination:
    """What is known about the client's certificate during one handshake.

    :ivar errors: what OpenSSL does not like about it, by distance from the client's own certificate.
    :ivar vouched: the SHA-256 fingerprint of the entry of the bundle that vouches for the client.
    """

    transport: TLSMemoryBIOProtocol
    errors: list[tuple[int, int]] = field(default_factory=list)
    vouched: str | None = None
    top: str | None = None


# Twisted puts the protocol into the application data of the connection, where this would otherwise belong.
_examinations: WeakKeyDictionary[SSL.Connection, _Examination] = WeakKeyDictionary()


class Bundle:
    """The certificates that clients may show, or that may have signed what they show.

    :ivar fingerprints: SHA-256 in lower-case hexadecimal, of every certificate.
    """

    def __init__(self, certificates: list[x509.Certificate]) -> None:
        self.fingerprints = frozenset(map(fingerprint, certificates))
        # One that does not say that it is an authority is none, whatever an old version of X.509 would make of it.
        self.authorities = [certificate for certificate in certificates if _may_sign(certificate)]


#: OpenSSL's ``SSL_MODE_ENABLE_PARTIAL_WRITE``, which pyOpenSSL sets and has no name for.
_PARTIAL_WRITE = 1


@implementer(IOpenSSLServerConnectionCreator)
class ServerTls:
    """Makes the server's end of TLS connections, for `artifactserver.tls_transport.TlsFactory`.

    :param chain: the server's certificate, then those of the authorities between it and the root.
    :param bundle: whose certificates are good; `None` to ask nobody for one.
    :param required: whether everybody has to show one, where there is a bundle.
    :ivar complain: logs whom it turned away; whoever serves many clients puts something there that leaves some out.
    """

    _log = Logger()

    def __init__(
        self, key: PrivateKeyTypes, chain: list[x509.Certificate], bundle: Bundle | None, required: bool = True
    ) -> None:
        self._bundle = bundle
        self.complain: Callable[..., None] = self._log.info
        context = SSL.Context(SSL.TLS_SERVER_METHOD)
        context.set_min_proto_version(SSL.TLS1_2_VERSION)
        context.set_options(_OPTIONS)
        context.set_session_cache_mode(SSL.SESS_CACHE_OFF)
        # A write is encrypted whole, and a connection that is quiet needs no buffers (see ``tls_transport.py``).
        context.clear_mode(_PARTIAL_WRITE)
        context.set_mode(SSL.MODE_RELEASE_BUFFERS)
        context.set_cipher_list(_CIPHERS)
        context.set_tls13_ciphersuites(_CIPHERS_13)
        context.set_alpn_select_callback(_choose_protocol)
        context.use_certificate(chain[0])
        for certificate in chain[1:]:
            context.add_extra_chain_cert(certificate)
        context.use_privatekey(key)  # type: ignore[arg-type]
        context.check_privatekey()
        if bundle is not None:
            store = context.get_cert_store()
            assert store is not None
            # An authority in the bundle is trusted as it is, whoever signed it.
            store.set_flags(crypto.X509StoreFlags.PARTIAL_CHAIN)
            for authority in bundle.authorities:
                store.add_cert(crypto.X509.from_cryptography(authority))
            demand = SSL.VERIFY_FAIL_IF_NO_PEER_CERT if required else 0
            context.set_verify(SSL.VERIFY_PEER | demand, self._examine)
        self._context = context

    def serverConnectionForTLS(self, tlsProtocol: TLSMemoryBIOProtocol) -> SSL.Connection:
        connection = SSL.Connection(self._context, None)
        _examinations[connection] = _Examination(tlsProtocol)
        return connection

    def _examine(self, connection: SSL.Connection, shown: crypto.X509, error: int, depth: int, ok: int) -> bool:
        """Called for each fault that OpenSSL finds, then once for each certificate, the client's own last."""
        examination = _examinations[connection]
        if not ok:
            examination.errors.append((error, depth))
            return True
        name = fingerprint(shown.to_cryptography())
        if examination.top is None:
            examination.top = name
        if depth:
            return True
        assert self._bundle is not None
        expired = any(error in _TIME_ERRORS for error, depth in examination.errors if depth == 0)
        if name in self._bundle.fingerprints and not expired:
            examination.vouched = name
        elif not examination.errors and examination.top in self._bundle.fingerprints:
            examination.vouched = examination.top
        else:
            peer = examination.transport.getPeer()
            self.complain(
                "{peer} was turned away: its certificate with SHA-256 fingerprint {fingerprint} {reason}",
                peer=getattr(peer, "host", "").removeprefix("::ffff:"),
                fingerprint=name,
                reason="has expired or is not valid yet" if expired else "is not in the bundle of client certificates",
            )
            return False
        return True


def server_tls(key: Path, cert: Path, client_certs: Path | None, required: bool = True) -> ServerTls:
    """Read the files that a server was given.

    :param key: PEM file with the private key, without a passphrase.
    :param cert: PEM file with the certificate, and any number of certificates of authorities behind it.
    :param client_certs: PEM file with the certificates of clients, or `None` to ask nobody for one.
    :param required: whether a client without a certificate is turned away, where there is that file.
    :raises TlsProblem: if something is wrong with one of them.
    """
    private = _read_key(key)
    chain = _read_certificates(cert, "--server-cert")
    if not chain:
        raise TlsProblem(f"{cert} holds no certificate in PEM form: give --server-cert the server's certificate")
    if _public_bytes(private.public_key()) != _public_bytes(chain[0].public_key()):
        raise TlsProblem(
            f"the key {key} does not belong to the first certificate in {cert}: give --server-key the key that it was "
            "made for, and put the server's own certificate before those of its authorities"
        )
    bundle = None
    if client_certs is not None:
        bundle = Bundle(_read_certificates(client_certs, "--client-certs"))
        if not bundle.fingerprints:
            what = "no client can connect" if required else "no client can show a certificate"
            ServerTls._log.warn("{path} is empty: {what}", path=str(client_certs), what=what)
    try:
        return ServerTls(private, chain, bundle, required)
    except SSL.Error as error:
        reasons = ", ".join(entry[2] for entry in error.args[0]) if error.args else "no reason given"
        raise TlsProblem(
            f"OpenSSL does not accept the key {key} with the certificate {cert} ({reasons}): make new ones"
        ) from error


def identity_of(transport: ITransport) -> str | None:
    """Who the client of a connection has proven to be, once its handshake is done.

    :return: the SHA-256 fingerprint of the certificate in the bundle that vouches for it; `None` if it has shown none.
    """
    if not isinstance(transport, TLSMemoryBIOProtocol):
        return None
    connection = transport.getHandle()
    examination = _examinations.get(connection) if connection is not None else None
    return examination.vouched if examination is not None else None


def fingerprint(certificate: x509.Certificate) -> str:
    """The SHA-256 of the certificate's DER form, in lower-case hexadecimal."""
    return certificate.fingerprint(hashes.SHA256()).hex()


def _choose_protocol(connection: SSL.Connection, offered: list[bytes]) -> Any:
    for protocol in PROTOCOLS:
        if protocol in offered:
            return protocol
    return SSL.NO_OVERLAPPING_PROTOCOLS


def _read(path: Path, option: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise TlsProblem(
            f"{path} cannot be read ({error.strerror}): give {option} a file that is there and that this user may read"
        ) from error


def _read_key(path: Path) -> PrivateKeyTypes:
    pem = _read(path, "--server-key")
    try:
        return serialization.load_pem_private_key(pem, password=None)
    except TypeError:
        raise TlsProblem(
            f"the key in {path} has a passphrase, which a server cannot type: "
            "write one without with 'openssl pkey -in KEY -out NEW'"
        ) from None
    except (ValueError, UnsupportedAlgorithm):
        raise TlsProblem(f"{path} holds no private key in PEM form: give --server-key the server's key") from None


def _read_certificates(path: Path, option: str) -> list[x509.Certificate]:
    """The certificates in a file, in order; text around them is ignored."""
    content = _read(path, option)
    certificates = []
    end = 0
    for block in _PEM.finditer(content):
        end = block.end()
        line = content.count(b"\n", 0, block.start()) + 1
        if block[1] != b"CERTIFICATE":
            if option == "--server-cert":
                continue  # Key and certificate are often kept in one file.
            raise TlsProblem(
                f"{path} holds a {block[1].decode('ascii').lower()} at line {line}: put certificates alone into the "
                f"file of {option}"
            )
        try:
            certificates.append(x509.load_pem_x509_certificate(block[0]))
        except ValueError:
            raise TlsProblem(
                f"the certificate at line {line} of {path} cannot be read: take it out, or copy it again"
            ) from None
    if b"-----BEGIN" in content[end:]:
        line = content.count(b"\n", 0, content.index(b"-----BEGIN", end)) + 1
        raise TlsProblem(f"the certificate at line {line} of {path} has no end: take it out, or copy it again")
    if content.strip() and not certificates:
        raise TlsProblem(f"{path} holds no certificate in PEM form: give {option} a file that does")
    return certificates


def _may_sign(certificate: x509.Certificate) -> bool:
    try:
        return bool(certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca)
    except (x509.ExtensionNotFound, x509.DuplicateExtension, ValueError):
        return False


def _public_bytes(key: object) -> bytes:
    encoded: bytes = key.public_bytes(  # type: ignore[attr-defined]
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return encoded
