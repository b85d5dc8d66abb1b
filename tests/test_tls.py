"""TLS: which clients get in, and what is agreed with them."""

from __future__ import annotations

import datetime
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509.oid import NameOID
from OpenSSL import SSL
from twisted.internet.interfaces import IOpenSSLClientConnectionCreator
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.internet.task import Clock
from twisted.logger import Logger, LogLevel, globalLogPublisher
from twisted.protocols.tls import TLSMemoryBIOFactory
from twisted.python.failure import Failure
from twisted.test.iosim import FakeTransport, IOPump
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import implementer

from artifactserver.complaints import Complaints
from artifactserver.tls import alerts, pem
from artifactserver.tls import server as tls_server
from artifactserver.tls.server import ServerTls, TlsProblem, identity_of, server_tls
from tests.certificates import Certificate, certificate, server_certificate


class Talker(Protocol):
    """One end of a connection: what it has heard, and how the connection ended."""

    def __init__(self) -> None:
        self.heard = b""
        self.lost: Failure | None = None
        self.identity: str | None = "?"

    def dataReceived(self, data: bytes) -> None:
        if not self.heard:
            assert self.transport is not None
            self.identity = identity_of(self.transport)
        self.heard += data

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.lost = reason


@implementer(IOpenSSLClientConnectionCreator)
class Client:
    """The client's end of TLS, as some client has it."""

    def __init__(
        self,
        shows: Certificate | None = None,
        chain: Sequence[Certificate] = (),
        protocols: Sequence[bytes] = (),
        versions: tuple[int, int] = (SSL.TLS1_2_VERSION, SSL.TLS1_3_VERSION),
        ciphers: bytes = b"ALL",
        curve: ec.EllipticCurve | None = None,
    ) -> None:
        self.session: Any = None
        self.context = SSL.Context(SSL.TLS_CLIENT_METHOD)
        self.context.set_min_proto_version(versions[0])
        self.context.set_max_proto_version(versions[1])
        self.context.set_cipher_list(ciphers)
        self.context.set_verify(SSL.VERIFY_NONE, lambda *_: True)
        if curve is not None:
            self.context.set_tmp_ecdh(curve)
        if protocols:
            self.context.set_alpn_protos(list(protocols))
        if shows is not None:
            self.context.use_certificate(shows.certificate)
            self.context.use_privatekey(shows.private_key)
            for authority in chain:
                self.context.add_extra_chain_cert(authority.certificate)

    def clientConnectionForTLS(self, tlsProtocol: object) -> SSL.Connection:
        self.connection = SSL.Connection(self.context, None)
        if self.session is not None:
            self.connection.set_session(self.session)
        return self.connection


class _FactoryOf(Factory):
    def __init__(self, talker: Talker) -> None:
        self.talker = talker

    def buildProtocol(self, addr: object) -> Talker:
        return self.talker


class Meeting:
    """A client and a server, connected in memory, after all has been said.

    :ivar client: what the client's application got; ``server`` likewise.
    """

    def __init__(self, server: ServerTls, client: Client) -> None:
        self.client, self.server = Talker(), Talker()
        clock = Clock()
        ends = []
        for talker, tls, is_client in ((self.client, client, True), (self.server, server, False)):
            factory = _FactoryOf(talker)
            protocol = TLSMemoryBIOFactory(tls, is_client, factory, clock).buildProtocol(None)
            assert protocol is not None
            ends.append((protocol, FakeTransport(protocol, isServer=not is_client)))
        (client_end, client_transport), (server_end, server_transport) = ends
        server_end.makeConnection(server_transport)
        client_end.makeConnection(client_transport)
        self.connection = client.connection
        pump = IOPump(client_end, server_end, client_transport, server_transport, False, clock)
        for talker, words in ((self.client, b"from the client"), (self.server, b"from the server")):
            assert talker.transport is not None
            talker.transport.write(words)
        for _ in range(20):
            pump.pump()
            clock.advance(0)

    @property
    def works(self) -> bool:
        """Whether both could talk."""
        return (self.client.heard, self.server.heard) == (b"from the server", b"from the client")

    @property
    def refused(self) -> bool:
        """Whether the handshake failed for both, and neither heard a word."""
        return bool(self.client.lost and self.server.lost) and not self.server.heard and not self.client.heard


def without_extensions(name: str = "client") -> Certificate:
    """A self-signed certificate that says nothing about itself."""
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.timezone.utc)
    builder = x509.CertificateBuilder().subject_name(subject).issuer_name(subject).public_key(key.public_key())
    builder = builder.serial_number(x509.random_serial_number())
    builder = builder.not_valid_before(now - datetime.timedelta(1)).not_valid_after(now + datetime.timedelta(9))
    return Certificate(builder.sign(key, hashes.SHA256()), key)


class _Files(SynchronousTestCase):
    def setUp(self) -> None:
        self.place = Path(self.mktemp()).absolute()
        self.place.mkdir()
        self.events: list[Any] = []
        observer: Any = self.events.append
        globalLogPublisher.addObserver(observer)
        self.addCleanup(globalLogPublisher.removeObserver, observer)

    def file(self, name: str, *contents: bytes) -> Path:
        path = self.place / name
        path.write_bytes(b"".join(contents))
        return path

    def serve(
        self,
        *bundle: Certificate,
        server: Certificate | None = None,
        open_to_all: bool = False,
        required: bool = True,
    ) -> ServerTls:
        """A server with these certificates in its bundle."""
        files = (server or SERVER).write(self.place)
        certs = None if open_to_all else self.file("authorized.crt", *(entry.pem for entry in bundle))
        return server_tls(files.key, files.certificate, certs, required)


SERVER = server_certificate()
ALICE, BOB, MALLORY = certificate(), certificate(), certificate()


class ClientCertificateTests(_Files):
    """Who gets in where there is a bundle."""

    def gets_in(self, server: ServerTls, client: Client, identity: Certificate) -> None:
        meeting = Meeting(server, client)
        self.assertTrue(meeting.works, meeting.server.lost)
        self.assertEqual(meeting.server.identity, identity.fingerprint)

    def kept_out(self, server: ServerTls, client: Client) -> None:
        self.assertTrue(Meeting(server, client).refused)

    def test_no_bundle(self) -> None:
        """Without a bundle everybody gets in, and nobody is anybody."""
        server = self.serve(open_to_all=True)
        for client in (Client(), Client(ALICE)):
            meeting = Meeting(server, client)
            self.assertTrue(meeting.works)
            self.assertEqual(meeting.server.identity, None)

    def test_manual(self) -> None:
        """Of self-signed certificates that all have one name, those in the bundle get in, and are told apart."""
        server = self.serve(ALICE, BOB)
        for version in (SSL.TLS1_2_VERSION, SSL.TLS1_3_VERSION):
            self.gets_in(server, Client(ALICE, versions=(version, version)), ALICE)
            self.gets_in(server, Client(BOB, versions=(version, version)), BOB)
            self.kept_out(server, Client(MALLORY, versions=(version, version)))

    def test_none(self) -> None:
        """A client without a certificate is kept out."""
        for version in (SSL.TLS1_2_VERSION, SSL.TLS1_3_VERSION):
            self.kept_out(self.serve(ALICE), Client(versions=(version, version)))

    def test_optional(self) -> None:
        """Where no certificate is required, who has none gets in as nobody, and a bad one is still turned away."""
        old = certificate(expired=True)
        server = self.serve(ALICE, old, required=False)
        for version in (SSL.TLS1_2_VERSION, SSL.TLS1_3_VERSION):
            meeting = Meeting(server, Client(versions=(version, version)))
            self.assertTrue(meeting.works)
            self.assertEqual(meeting.server.identity, None)
            self.gets_in(server, Client(ALICE, versions=(version, version)), ALICE)
            for stranger in (MALLORY, old, certificate("x", issuer=MALLORY)):
                self.kept_out(server, Client(stranger, versions=(version, version)))

    def test_optional_and_empty(self) -> None:
        """With an empty bundle and no need for a certificate, people get in without one, and the log says so."""
        server = self.serve(required=False)
        self.assertTrue(Meeting(server, Client()).works)
        self.kept_out(server, Client(ALICE))
        server.say_doubts(time.time())
        self.assertTrue(any("no client can show a certificate" in str(event.get("what")) for event in self.events))

    def test_empty_bundle(self) -> None:
        """With an empty bundle nobody gets in, and the log says why."""
        server = self.serve()
        self.kept_out(server, Client(ALICE))
        server.say_doubts(time.time())
        self.assertTrue(any("no client can connect" in str(event.get("what")) for event in self.events))

    def test_without_extensions(self) -> None:
        """A certificate that says nothing about itself gets in if it is in the bundle, and vouches for nobody."""
        plain = without_extensions()
        self.gets_in(self.serve(plain), Client(plain), plain)
        self.kept_out(self.serve(plain), Client(without_extensions()))
        signed = certificate("client 2", issuer=plain)
        self.kept_out(self.serve(plain), Client(signed, [plain]))

    def test_authority(self) -> None:
        """Whoever an authority in the bundle has signed gets in, by way of others if need be, and in its name."""
        root = certificate("root")
        middle = certificate("middle", issuer=root, authority=True)
        direct, indirect = certificate("direct", issuer=root), certificate("indirect", issuer=middle)
        server = self.serve(ALICE, root)
        self.gets_in(server, Client(direct), root)
        self.gets_in(server, Client(indirect, [middle]), root)
        self.kept_out(server, Client(indirect))
        self.gets_in(self.serve(middle), Client(indirect), middle)
        self.gets_in(self.serve(middle), Client(indirect, [middle, root]), middle)
        self.kept_out(self.serve(middle), Client(direct))

    def test_signed_by_a_client(self) -> None:
        """Who gets in by a certificate that is no authority cannot let in others."""
        client = certificate("client", authority=False)
        self.kept_out(self.serve(client), Client(certificate("other", issuer=client), [client]))

    def test_exact_before_chain(self) -> None:
        """A certificate in the bundle is who it is, though an authority in the bundle signed it."""
        root = certificate("root")
        known = certificate("known", issuer=root)
        self.gets_in(self.serve(root, known), Client(known), known)
        self.gets_in(self.serve(known), Client(known), known)

    def test_expired(self) -> None:
        """What has expired is refused: in the bundle, signed by an authority, or by one that has expired."""
        old = certificate(expired=True)
        self.kept_out(self.serve(old), Client(old))
        root, old_root = certificate("root"), certificate("old root", expired=True)
        self.kept_out(self.serve(root), Client(certificate("x", issuer=root, expired=True)))
        self.kept_out(self.serve(old_root), Client(certificate("x", issuer=old_root)))

    def test_forged(self) -> None:
        """An authority of the same name as one in the bundle is another one."""
        root, forged = certificate("root"), certificate("root")
        self.kept_out(self.serve(root), Client(certificate("x", issuer=forged), [forged]))
        self.kept_out(self.serve(root), Client(certificate("x", issuer=forged)))

    def test_alerts(self) -> None:
        """Who is turned away is told why, as far as TLS has a word for it, whatever chain they show."""
        root, old = certificate("root"), certificate(expired=True)
        signed = certificate("x", issuer=root)
        server = self.serve(ALICE, old)
        for shows, chain, alert in (
            (old, (), "certificate expired"),
            (MALLORY, (), "unknown ca"),
            (signed, (), "unknown ca"),
            (signed, (root,), "unknown ca"),
            (certificate("x", issuer=ALICE, expired=True), (), "certificate expired"),
        ):
            for version in (SSL.TLS1_2_VERSION, SSL.TLS1_3_VERSION):
                meeting = Meeting(server, Client(shows, chain, versions=(version, version)))
                assert meeting.client.lost is not None
                self.assertIn(alert, str(meeting.client.lost.value))

    def test_without_alerts(self) -> None:
        """With a pyOpenSSL that is made otherwise inside, those who are to be kept out still are, and others get in."""

        class Nothing:
            pass

        self.patch(alerts, "SSL", Nothing)
        server = self.serve(ALICE)
        self.kept_out(server, Client(MALLORY))
        self.gets_in(server, Client(ALICE), ALICE)

    def test_stranger_with_a_chain(self) -> None:
        """A stranger is turned away at the first fault, before any signature in the chain that they send is checked."""
        asked: list[int] = []
        examine = ServerTls._examine

        def counting(tls: ServerTls, connection: Any, shown: Any, error: int, depth: int, ok: int) -> bool:
            asked.append(error)
            return examine(tls, connection, shown, error, depth, ok)

        self.patch(ServerTls, "_examine", counting)
        root = certificate("root")
        middle = certificate("middle", issuer=root, authority=True)
        stranger = certificate("x", issuer=middle)
        self.kept_out(self.serve(ALICE), Client(stranger, [middle, root]))
        self.assertEqual(len(asked), 1)
        self.gets_in(self.serve(ALICE, stranger), Client(stranger, [middle, root]), stranger)

    def test_longest_chain(self) -> None:
        """Between a client and an authority in the bundle there may be so many others, and no more."""
        self.patch(tls_server, "MOST_INTERMEDIATES", 1)
        root = certificate("root")
        first = certificate("first", issuer=root, authority=True)
        second = certificate("second", issuer=first, authority=True)
        one, two = certificate("x", issuer=first), certificate("x", issuer=second)
        for known in ((root,), (root, ALICE)):
            self.gets_in(self.serve(*known), Client(one, [first]), root)
            self.kept_out(self.serve(*known), Client(two, [second, first]))
        self.gets_in(self.serve(first), Client(two, [second]), first)

    def test_log(self) -> None:
        """Who is turned away is in the log, with what to compare."""
        self.kept_out(self.serve(ALICE), Client(MALLORY))
        told = [event for event in self.events if event.get("fingerprint") == MALLORY.fingerprint]
        self.assertEqual(len(told), 1)
        self.assertEqual(told[0]["reason"], "is not in the bundle of client certificates")

    def test_many(self) -> None:
        """Where somebody looks after that, many who are turned away are a few lines and a number."""
        server = self.serve(ALICE)
        server.complain = Complaints(Logger(), Clock(), 1.0, 3).say
        for _ in range(10):
            self.kept_out(server, Client(MALLORY))
        self.assertEqual(len([event for event in self.events if "fingerprint" in event]), 3)


class AgreementTests(_Files):
    """What server and client agree on."""

    def setUp(self) -> None:
        super().setUp()
        self.server = self.serve(open_to_all=True)

    def agreed(self, **client: Any) -> SSL.Connection:
        meeting = Meeting(self.server, Client(**client))
        self.assertTrue(meeting.works, meeting.server.lost)
        return meeting.connection

    def test_protocols(self) -> None:
        """gRPC clients get HTTP/2, whatever else they offer first; those that know HTTP/1.1 get that."""
        for offered, chosen in {
            (b"h2",): b"h2",
            (b"grpc-exp", b"h2"): b"h2",
            (b"h2", b"http/1.1"): b"http/1.1",
            (b"http/1.1",): b"http/1.1",
            (): b"",
            (b"h2c", b"something"): b"",
        }.items():
            self.assertEqual(self.agreed(protocols=offered).get_alpn_proto_negotiated(), chosen)

    def test_versions(self) -> None:
        """TLS 1.2 and 1.3 are spoken, and nothing older."""
        self.assertEqual(self.agreed().get_protocol_version_name(), "TLSv1.3")
        old = self.agreed(versions=(SSL.TLS1_2_VERSION, SSL.TLS1_2_VERSION))
        self.assertEqual(old.get_protocol_version_name(), "TLSv1.2")
        versions = (SSL.TLS1_1_VERSION, SSL.TLS1_1_VERSION)
        client = Client(versions=versions, ciphers=b"ALL:@SECLEVEL=0")
        self.assertFalse(Meeting(self.server, client).works)

    def test_oldest_client(self) -> None:
        """What gRPC of 2018 has is enough: TLS 1.2, ECDHE-RSA with AES-GCM, P-256."""
        for cipher in (b"ECDHE-RSA-AES128-GCM-SHA256", b"ECDHE-RSA-AES256-GCM-SHA384"):
            versions = (SSL.TLS1_2_VERSION, SSL.TLS1_2_VERSION)
            old = self.agreed(versions=versions, ciphers=cipher, curve=ec.SECP256R1())
            self.assertEqual(old.get_cipher_name(), cipher.decode())

    def test_preferred_cipher(self) -> None:
        """Who can do everything gets AES-128, whatever it prefers itself."""
        for version, name in (
            (SSL.TLS1_2_VERSION, "ECDHE-RSA-AES128-GCM-SHA256"),
            (SSL.TLS1_3_VERSION, "TLS_AES_128_GCM_SHA256"),
        ):
            self.assertEqual(self.agreed(versions=(version, version)).get_cipher_name(), name)

    def test_weak_ciphers(self) -> None:
        """What keeps no secrets when the key is lost, or is no authenticated encryption, is not spoken."""
        for cipher in (b"AES128-GCM-SHA256", b"ECDHE-RSA-AES128-SHA256"):
            client = Client(versions=(SSL.TLS1_2_VERSION, SSL.TLS1_2_VERSION), ciphers=cipher)
            self.assertFalse(Meeting(self.server, client).works)

    def test_no_resumption(self) -> None:
        """A session is not resumed: each connection shows its certificate again."""
        for version in (SSL.TLS1_2_VERSION, SSL.TLS1_3_VERSION):
            client = Client(versions=(version, version))
            first = Meeting(self.server, client).connection
            client.session = first.get_session()
            self.assertTrue(client.session)
            again = Meeting(self.server, client).connection
            self.assertTrue(again.get_protocol_version())
            self.assertNotEqual(first.master_key(), again.master_key())
            self.assertFalse(SSL._lib.SSL_session_reused(again._ssl))  # type: ignore[attr-defined]

    def test_chain(self) -> None:
        """A certificate file may hold the authorities as well, and the client is shown them."""
        root = certificate("root")
        middle = certificate("middle", issuer=root, authority=True)
        own = server_certificate(issuer=middle)
        key = own.write(self.place).key
        self.server = server_tls(key, self.file("chain.crt", own.pem, b"# the authority\n", middle.pem), None)
        shown = self.agreed().get_peer_cert_chain(as_cryptography=True)
        self.assertEqual(shown, [own.certificate, middle.certificate])

    def test_elliptic_key(self) -> None:
        """A key on an elliptic curve works too."""
        key = ec.generate_private_key(ec.SECP256R1())
        own = server_certificate()
        builder = x509.CertificateBuilder().subject_name(own.certificate.subject).issuer_name(own.certificate.subject)
        builder = builder.public_key(key.public_key()).serial_number(1)
        builder = builder.not_valid_before(own.certificate.not_valid_before_utc)
        made = builder.not_valid_after(own.certificate.not_valid_after_utc).sign(key, hashes.SHA256())
        self.server = server_tls(
            self.file("ec.key", _pem(key)), self.file("ec.crt", made.public_bytes(serialization.Encoding.PEM)), None
        )
        self.agreed()


class FileTests(_Files):
    """What is wrong with a file is told in one sentence, with its name."""

    def refused(self, pattern: str, key: Path, cert: Path, bundle: Path | None = None) -> None:
        error = self.assertRaises(TlsProblem, server_tls, key, cert, bundle)
        self.assertRegex(str(error), pattern)
        self.assertNotIn("\n", str(error))

    def setUp(self) -> None:
        super().setUp()
        files = SERVER.write(self.place)
        self.key, self.cert = files.key, files.certificate

    def test_missing(self) -> None:
        """Each file that is not there, or is none."""
        gone = self.place / "gone"
        self.refused("gone cannot be read .*: give --server-key", gone, self.cert)
        self.refused("gone cannot be read .*: give --server-cert", self.key, gone)
        self.refused("gone cannot be read .*: give --client-certs", self.key, self.cert, gone)
        self.refused(f"{self.place} is no file: give --server-key a PEM file", self.place, self.cert)

    def test_without_end(self) -> None:
        """What has no end, or none yet, is not waited for, and neither is a file that is far too large."""
        pipe = self.place / "pipe"
        os.mkfifo(pipe)
        self.refused("pipe is no file: give --client-certs", self.key, self.cert, pipe)
        self.refused("/dev/zero is no file: give --server-key", Path("/dev/zero"), self.cert)
        self.patch(pem, "MAX_FILE_BYTES", len(ALICE.pem))
        bundle = self.file("bundle", ALICE.pem)
        self.assertEqual(len(pem.read_bundle(bundle, "--client-certs")), 1)
        bundle = self.file("bundle", ALICE.pem, b"#")
        problem = self.assertRaises(TlsProblem, pem.read_bundle, bundle, "--client-certs")
        self.assertRegex(str(problem), "bundle has more than [0-9]+ bytes: give --client-certs")

    def test_mixed_up(self) -> None:
        """Key and certificate given the wrong way round, or of two servers."""
        self.refused(f"{self.cert} holds no private key in PEM form", self.cert, self.key)
        other = server_certificate().write(self.place)
        self.refused(
            f"{self.key} does not belong to the first certificate in {other.certificate}", self.key, other.certificate
        )

    def test_one_file(self) -> None:
        """Key and certificate may be in one file."""
        both = self.file("both.pem", SERVER.key_pem, SERVER.pem)
        server_tls(both, both, None)

    def test_nonsense(self) -> None:
        """Files with something else in them."""
        nonsense = self.file("nonsense", b"\x30\x82nonsense")
        empty = self.file("empty")
        self.refused("nonsense holds no private key", nonsense, self.cert)
        self.refused("nonsense holds no certificate", self.key, nonsense)
        self.refused("empty holds no certificate", self.key, empty)
        self.refused("nonsense holds no certificate", self.key, self.cert, nonsense)

    def test_passphrase(self) -> None:
        """A key with a passphrase, which nobody is there to type."""
        locked = SERVER.private_key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(b"secret"),
        )
        self.refused("locked.key has a passphrase", self.file("locked.key", locked), self.cert)

    def test_bundle(self) -> None:
        """A bundle with something broken or secret in it: the line is named."""
        broken = ALICE.pem.replace(b"M", b"N", 5)
        lines = ALICE.pem.count(b"\n") + 1
        self.refused(
            f"certificate at line {lines} of .*bundle cannot be read",
            *(self.key, self.cert, self.file("bundle", ALICE.pem, broken, BOB.pem)),
        )
        self.refused(
            f"holds a private key at line {lines}", self.key, self.cert, self.file("bundle", ALICE.pem, ALICE.key_pem)
        )
        self.refused(
            f"certificate at line {lines} of .*bundle has no end",
            *(self.key, self.cert, self.file("bundle", ALICE.pem, BOB.pem[:-30])),
        )

    def test_something_else_in_a_bundle(self) -> None:
        """A bundle with garbage in it, or half of something: the line is named, and what to do."""
        lines = ALICE.pem.count(b"\n") + 1
        headless = BOB.pem.split(b"\n", 1)[1]
        for pattern, garbage in (
            (f"what stands at line {lines} of .*bundle is neither a certificate nor text", b"\x30\x82\x03\x04\0\1"),
            (f"what stands at line {lines} of .*bundle is neither", headless),
            (f"what stands at line {lines} of .*bundle is neither", BOB.pem[1:]),
            (f"what stands at line {lines + 1} of .*bundle is neither", b"\n" + headless[:70]),
            (f"the certificate that ends at line {lines} of .*bundle has no beginning", b"-----END CERTIFICATE-----\n"),
            (f"the certificate at line {lines} of .*bundle has no end", BOB.pem[:-30] + BOB.pem),
            (f"holds a certificate request at line {lines}", BOB.pem.replace(b"CERTIFICATE", b"CERTIFICATE REQUEST")),
            (
                f"at line {lines} of .*bundle is in a form of OpenSSL's own: .*openssl x509",
                BOB.pem.replace(b"CERTIFICATE", b"TRUSTED CERTIFICATE"),
            ),
        ):
            self.refused(pattern, self.key, self.cert, self.file("bundle", ALICE.pem, garbage))
            self.refused(pattern, self.key, self.cert, self.file("bundle", ALICE.pem, garbage, BOB.pem))

    def test_without_a_line_end(self) -> None:
        """A certificate that was appended to one without an end of line at its end is as good as any."""
        server = server_tls(self.key, self.cert, self.file("bundle", ALICE.pem.strip(), BOB.pem.strip()))
        self.assertTrue(Meeting(server, Client(BOB)).works)

    def test_large_bundle(self) -> None:
        """A bundle with very many certificates is read in one go through it."""
        bundle = self.file("bundle", *[b"# somebody\n" + ALICE.pem] * 3000, b"-----BEGIN CERTIFICATE-----\n")
        began = time.monotonic()
        self.refused(f"line {3000 * (ALICE.pem.count(b'%c' % 10) + 1) + 1} of", self.key, self.cert, bundle)
        self.assertLess(time.monotonic() - began, 3)

    def test_tedious_text(self) -> None:
        """Text that looks like the beginning of a mark, over and over, is read as fast as any."""
        bundle = self.file("bundle", ALICE.pem, b"BEGIN " * 20_000, b"\n")
        began = time.monotonic()
        server_tls(self.key, self.cert, bundle)
        self.assertLess(time.monotonic() - began, 3)

    def test_text_in_a_bundle(self) -> None:
        """What ``openssl x509 -text`` writes between certificates is no harm."""
        text = b"\r\nCertificate:\n  Data: ...\n# ----- Bj\xf6rn's -----\n"
        bundle = self.file("bundle", b"alice's\n", ALICE.pem, text, BOB.pem)
        server = server_tls(self.key, self.cert, bundle)
        self.assertTrue(Meeting(server, Client(BOB)).works)

    def test_unusable_key(self) -> None:
        """A key that is too weak for OpenSSL, or of a kind that no TLS has."""
        from cryptography.hazmat.primitives.asymmetric import x25519

        self.refused("does not belong to", self.file("x.key", _pem(x25519.X25519PrivateKey.generate())), self.cert)
        self.refused("does not belong to", self.file("e.key", _pem(ed25519.Ed25519PrivateKey.generate())), self.cert)


class DoubtTests(_Files):
    """What does not stop a server is said when it starts."""

    def said(self, server: ServerTls, now: float | None = None) -> list[str]:
        self.events.clear()
        server.say_doubts(time.time() if now is None else now)
        self.assertEqual({event["log_level"] for event in self.events} - {LogLevel.warn}, set())
        return [str(event["doubt"]) for event in self.events]

    def test_none(self) -> None:
        """Files as they should be give no reason to."""
        self.assertEqual(self.said(self.serve(ALICE)), [])

    def test_time(self) -> None:
        """A certificate of the server that has expired or is not valid yet, by name and day."""
        server = self.serve(ALICE)
        end = SERVER.certificate.not_valid_after_utc
        (doubt,) = self.said(server, end.timestamp() + 1)
        self.assertRegex(doubt, rf"^the certificate in \S+\.crt has expired on {end:%Y-%m-%d}: put")
        (doubt,) = self.said(server, SERVER.certificate.not_valid_before_utc.timestamp() - 1)
        self.assertRegex(doubt, r"^the certificate in \S+\.crt is not valid before")
        self.assertTrue(Meeting(self.serve(server=server_certificate(expired=True), open_to_all=True), Client()).works)

    def test_chain(self) -> None:
        """The same of the authorities that are sent along."""
        root = certificate("root", expired=True)
        own = server_certificate(issuer=root)
        server = server_tls(own.write(self.place).key, self.file("chain.crt", own.pem, root.pem), None)
        (doubt,) = self.said(server)
        self.assertRegex(doubt, r"^certificate number 2 in \S+chain\.crt has expired")

    def test_readable_key(self) -> None:
        """A key that others can read; but a group may, by which a server reads a key that is not its own."""
        files = SERVER.write(self.place)
        server = server_tls(files.key, files.certificate, None)
        us = os.geteuid()
        for mode, user, doubtful in (
            (0o600, us, False),
            (0o400, us, False),
            (0o644, us, True),
            (0o604, us + 1, True),
            (0o640, us, us != 0),
            (0o640, us + 1, False),
        ):
            files.key.chmod(mode)
            self.patch(os, "geteuid", lambda user=user: user)
            told = self.said(server)
            self.assertEqual(bool(told), doubtful, (oct(mode), user))
            for doubt in told:
                self.assertIn(f"others can read the private key in {files.key}: ", doubt)

    def test_shared_key(self) -> None:
        """A group that may read a key which is the server's own is others as well."""
        files = SERVER.write(self.place)
        os.chown(files.key, 12345, -1) if os.geteuid() == 0 else None
        files.key.chmod(0o640)
        server = server_tls(files.key, files.certificate, None)
        self.patch(os, "geteuid", lambda: files.key.stat().st_uid)
        self.assertEqual(len(self.said(server)), 1)


def _pem(key: Any) -> bytes:
    encoded: bytes = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return encoded
