"""TLS for servers: which versions and ciphers, with which key, and for which clients.

What is offered serves every client of a BuildStream cache since 2017: TLS 1.2 and 1.3, ECDHE with AES-GCM or ChaCha20,
P-256 and X25519 among the curves.  Nothing is resumed, compressed or renegotiated.

A port may demand a certificate of its clients, or ask for one without demanding it: there, whoever shows none gets in
as nobody, and a certificate that is shown still has to be good.

The key and the certificates are those that are in the files when a connection begins.  A client is *forgotten* when
what vouched for it has been taken out of its file since.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

from OpenSSL import SSL, crypto
from twisted.internet.interfaces import IOpenSSLServerConnectionCreator, ITransport
from twisted.logger import Logger
from twisted.protocols.tls import TLSMemoryBIOProtocol
from zope.interface import implementer

from artifactserver.addresses import host_of
from artifactserver.tls.alerts import give_reasons
from artifactserver.tls.bundle import Bundle, Examination, bundle_in, fingerprint
from artifactserver.tls.key_pair import KeyPair, read_key_pair
from artifactserver.tls.pem import TlsProblem
from artifactserver.watched import Watched

__all__ = ["ServerTls", "TlsProblem", "identity_of", "server_tls"]

#: For ALPN, best first: clients of pages and files offer both and get HTTP/1.1; gRPC clients offer ``h2`` and, the
#: older ones, ``grpc-exp``.
PROTOCOLS = (b"http/1.1", b"h2")

#: Looks until it is said that key and certificate do not belong together: whoever renews them replaces one and then the
#: other.
_PAIR_PATIENCE = 10

#: For TLS 1.2, and 1.3, which has no bad ones.  AES-128 comes first: it is as safe for all that is known, and a tenth
#: less work.
_CIPHERS = b"ECDHE+AESGCM+AES128:ECDHE+AESGCM:ECDHE+CHACHA20"
_CIPHERS_13 = b"TLS_AES_128_GCM_SHA256:TLS_AES_256_GCM_SHA384:TLS_CHACHA20_POLY1305_SHA256"

#: Authorities in a client's chain, between its own certificate and what is in the bundle.
MOST_INTERMEDIATES = 4

_OPTIONS = SSL.OP_NO_COMPRESSION | SSL.OP_NO_TICKET | SSL.OP_NO_RENEGOTIATION | SSL.OP_CIPHER_SERVER_PREFERENCE

#: OpenSSL's ``SSL_MODE_ENABLE_PARTIAL_WRITE``, which pyOpenSSL sets and has no name for.
_PARTIAL_WRITE = 1

# Twisted puts the protocol into the application data of the connection, where this would otherwise belong.
_examinations: WeakKeyDictionary[SSL.Connection, Examination] = WeakKeyDictionary()


@implementer(IOpenSSLServerConnectionCreator)
class ServerTls:
    """Makes the server's end of TLS connections, for `artifactserver.tls.transport.TlsFactory`.

    :param bundle: whose certificates are good; `None` to ask nobody for one.
    :param required: whether everybody has to show one, where there is a bundle.
    :ivar complain: logs whom it turned away; whoever serves many clients puts something there that leaves some out.
    :ivar settled: called when there is something new in the files, and has been there for a while.
    """

    _log = Logger()

    def __init__(self, pair: Watched[KeyPair], bundle: Watched[Bundle] | None, required: bool = True) -> None:
        self._pair = pair
        self._bundle = bundle
        self._required = required
        self._rejection = 0
        self._own: str | None = None
        self.complain: Callable[..., None] = self._log.info
        self.settled: Callable[[], None] = lambda: None
        self._made_of = self._material()
        self._context = self._make_context(*self._made_of)

    def for_everybody(self) -> ServerTls:
        """The same key and certificate for another port, on which nobody is asked for a certificate."""
        return ServerTls(self._pair, None)

    def serverConnectionForTLS(self, tlsProtocol: TLSMemoryBIOProtocol) -> SSL.Connection:
        # Whoever has just been added gets in, without waiting for a look.
        for watched in self.watched:
            watched.catch_up()
        material = self._material()
        if material != self._made_of:
            self._context = self._make_context(*material)
        # Also if it says the same as before: to find that out is quick for what is the same object.
        self._made_of = material
        connection = SSL.Connection(self._context, None)
        _examinations[connection] = Examination(tlsProtocol)
        return connection

    @property
    def watched(self) -> tuple[Watched[Any], ...]:
        """The files that have to be looked at."""
        return (self._pair,) if self._bundle is None else (self._pair, self._bundle)

    def forgets(self, transport: ITransport) -> bool:
        """Whether what vouched for the client of a connection has been taken out of the bundle since."""
        identity = identity_of(transport)
        return identity is not None and self._bundle is not None and identity not in self._bundle.value.fingerprints

    def say_doubts(self, now: float) -> None:
        """Log what is wrong with the files though they can be used.

        :param now: seconds since the epoch.
        """
        for doubt in self._pair.value.doubts(now):
            self._log.warn("{doubt}", doubt=doubt)
        if self._bundle is not None and not self._bundle.value.fingerprints:
            what = "no client can connect" if self._required else "no client can show a certificate"
            self._log.warn("{path} is empty: {what}", path=str(self._bundle.value.path), what=what)

    def _material(self) -> tuple[KeyPair, Bundle | None]:
        return self._pair.value, self._bundle.value if self._bundle is not None else None

    def _make_context(self, pair: KeyPair, bundle: Bundle | None) -> SSL.Context:
        """Takes long for many authorities of one name, since OpenSSL compares each with each: 0.1 s for a thousand."""
        context = SSL.Context(SSL.TLS_SERVER_METHOD)
        context.set_min_proto_version(SSL.TLS1_2_VERSION)
        context.set_options(_OPTIONS)
        context.set_session_cache_mode(SSL.SESS_CACHE_OFF)
        # A write is encrypted whole, and a connection that is quiet needs no buffers (see ``transport.py``).
        context.clear_mode(_PARTIAL_WRITE)
        context.set_mode(SSL.MODE_RELEASE_BUFFERS)
        context.set_cipher_list(_CIPHERS)
        context.set_tls13_ciphersuites(_CIPHERS_13)
        context.set_alpn_select_callback(_choose_protocol)
        pair.install(context)
        if bundle is not None:
            store = context.get_cert_store()
            assert store is not None
            bundle.install(store)
            demand = SSL.VERIFY_FAIL_IF_NO_PEER_CERT if self._required else 0
            context.set_verify(SSL.VERIFY_PEER | demand, self._examine)
            # What the client sends beside its own certificate is its choice, and each signature costs up to 10 ms.
            context.set_verify_depth(MOST_INTERMEDIATES)
            give_reasons(context, lambda: self._rejection, self._is_about)
        return context

    def _is_about(self, own: crypto.X509) -> None:
        self._own = fingerprint(own.to_cryptography())

    def _examine(self, connection: SSL.Connection, shown: crypto.X509, error: int, depth: int, ok: int) -> bool:
        """Called for each fault that OpenSSL finds, then once for each certificate, the client's own last."""
        examination = _examinations[connection]
        assert self._bundle is not None
        if not ok:
            examination.errors.append((error, depth))
            own = self._own
            if own is None or own in self._bundle.value.fingerprints:
                return True
            # With a fault in its chain, nothing can help it any more.  To go on would be to check signatures that
            # somebody unknown has made, as many as fit into 100 KB, and as costly as they like.
            return self._decide(examination, own)
        name = fingerprint(shown.to_cryptography())
        if examination.top is None:
            examination.top = name
        return True if depth else self._decide(examination, name)

    def _decide(self, examination: Examination, name: str) -> bool:
        """Let a client in, or not.

        :param name: the fingerprint of its own certificate.
        """
        assert self._bundle is not None
        rejection = self._bundle.value.judge(name, examination)
        if rejection is None:
            return True
        self._rejection = rejection.error
        self.complain(
            "{peer} was turned away: its certificate with SHA-256 fingerprint {fingerprint} {reason}",
            peer=host_of(examination.transport.getPeer()),
            fingerprint=name,
            reason=rejection.reason,
        )
        return False


def server_tls(key: Path, cert: Path, client_certs: Path | None, required: bool = True) -> ServerTls:
    """Read the files that a server was given, and watch them.

    :param key: PEM file with the private key, without a passphrase.
    :param cert: PEM file with the certificate, and any number of certificates of authorities behind it.
    :param client_certs: PEM file with the certificates of clients, or `None` to ask nobody for one.
    :param required: whether a client without a certificate is turned away, where there is that file.
    :raises TlsProblem: if something is wrong with one of them.
    """
    pair = Watched((key, cert), lambda: read_key_pair(key, cert), TlsProblem, _PAIR_PATIENCE)
    bundle = None
    if client_certs is not None:
        bundle = Watched((client_certs,), lambda: bundle_in(client_certs), TlsProblem)
    tls = ServerTls(pair, bundle, required)
    pair.settled = lambda _: tls.settled()
    if bundle is not None:
        bundle.settled = lambda _: tls.settled()
    return tls


def identity_of(transport: ITransport) -> str | None:
    """Who the client of a connection has proven to be, once its handshake is done.

    :return: the SHA-256 fingerprint of the certificate in the bundle that vouches for it; `None` if it has shown none.
    """
    if not isinstance(transport, TLSMemoryBIOProtocol):
        return None
    connection = transport.getHandle()
    examination = _examinations.get(connection) if connection is not None else None
    return examination.vouched if examination is not None else None


def _choose_protocol(connection: SSL.Connection, offered: list[bytes]) -> Any:
    for protocol in PROTOCOLS:
        if protocol in offered:
            return protocol
    return SSL.NO_OVERLAPPING_PROTOCOLS
