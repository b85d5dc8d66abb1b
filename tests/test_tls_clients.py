"""A server over TLS with real clients, when its files change while it runs: who comes, who goes, and who stays."""

from __future__ import annotations

import functools
import os
import socket
import ssl
import time
from collections.abc import Sequence
from pathlib import Path

import grpc
from twisted.trial.unittest import SynchronousTestCase

from tests import http2_peer as wire
from tests.attacks import HELLO, call
from tests.certificates import Certificate, CertificateFiles, certificate, server_certificate
from tests.http2_peer import frame, message
from tests.processes import Server, environment, run
from tests.test_ports import Door
from tests.test_tap import wait_until

CAPABILITIES = "/build.bazel.remote.execution.v2.Capabilities/GetCapabilities"

#: Seconds within which an open connection has to be ended whose client was taken out.
WITHIN = 8.0

#: How many connections are open at once.
MANY = 200

SERVER = server_certificate()
ALICE, BOB = certificate(), certificate()


class _Running(SynchronousTestCase):
    def setUp(self) -> None:
        self.place = Path(self.mktemp()).absolute()
        self.place.mkdir()
        self.files = SERVER.write(self.place)
        self.bundle = self.place / "authorized.crt"
        self.shown: dict[str, CertificateFiles] = {}

    def serve(self, *bundle: Certificate) -> None:
        self.bundle.write_bytes(b"".join(each.pem for each in bundle))
        self.server = Server(
            self.place / "repo",
            *("--server-key", str(self.files.key), "--server-cert", str(self.files.certificate)),
            *("--client-certs", str(self.bundle), "--enable-push"),
        )
        self.addCleanup(self.server.kill)
        self.server.start()

    def write(self, shows: Certificate | None) -> CertificateFiles | None:
        if shows is None:
            return None
        if shows.fingerprint not in self.shown:
            self.shown[shows.fingerprint] = shows.write(self.place)
        return self.shown[shows.fingerprint]

    def grpcio(self, shows: Certificate | None) -> bool:
        """Whether grpcio gets an answer."""
        door = Door(self.server.port, self.files, self.write(shows))
        try:
            return door.call(CAPABILITIES)[0] is grpc.StatusCode.OK
        finally:
            door.close()

    def connect(self, shows: Certificate, *protocols: str, roots: Path | None = None) -> ssl.SSLSocket:
        """A connection of Python's ``ssl``."""
        context = self.context(shows, protocols, roots or self.files.certificate)
        plain = socket.create_connection(("127.0.0.1", self.server.port), timeout=WITHIN)
        connection = context.wrap_socket(plain, server_hostname="localhost")
        self.addCleanup(connection.close)
        return connection

    @functools.cache  # noqa: B019 - a test is soon over
    def context(self, shows: Certificate, protocols: Sequence[str], roots: Path) -> ssl.SSLContext:
        files = self.write(shows)
        assert files is not None
        context = ssl.create_default_context(cafile=roots)
        context.load_cert_chain(files.certificate, files.key)
        context.set_alpn_protocols(protocols)
        return context


class ChangeTests(_Running):
    """What changes while the server runs."""

    def append(self, who: Certificate) -> None:
        """What the manual tells people to do."""
        files = self.write(who)
        assert files is not None
        command = ["sh", "-c", 'cat "$1" >> "$2"', "sh", str(files.certificate), str(self.bundle)]
        self.assertEqual(run(command, cwd=self.place, env=environment(self.place / "home"), timeout=10).status, 0)

    def test_come_and_go(self) -> None:
        """Who is appended gets in at once; who is taken out is out, on open connections too, and nobody else is."""
        self.serve(ALICE)
        self.assertFalse(self.grpcio(BOB))
        self.append(BOB)
        self.assertTrue(self.grpcio(BOB))
        watching = {who: self.connect(who, "h2") for who in (ALICE, BOB)}
        pages = {who: self.connect(who, "http/1.1") for who in (ALICE, BOB)}
        for who in (ALICE, BOB):
            watching[who].sendall(HELLO + call(1, "Watch", message(b"")))
            self.page(pages[who])
        self.bundle.write_bytes(ALICE.pem)
        heard = self.heard_to_the_end(watching[BOB])
        self.assertEqual([each.code for each in wire.parse(heard) if each.kind == wire.GOAWAY], [0])
        self.assertEqual(self.heard_to_the_end(pages[BOB]), b"")
        self.assertFalse(self.grpcio(BOB))
        self.assertIn("taken out: 2", self.server.said())
        self.page(pages[ALICE])
        self.ping(watching[ALICE])
        self.assertNotIn("Traceback", self.server.said())

    def page(self, connection: ssl.SSLSocket) -> None:
        """Ask for something on a connection that stays open."""
        connection.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
        self.hear(connection, b"no pages here.\n")

    def ping(self, connection: ssl.SSLSocket) -> None:
        """See that a connection of HTTP/2 is alive."""
        connection.sendall(frame(wire.PING, payload=b"8 bytes."))
        self.hear(connection, b"8 bytes.")

    def hear(self, connection: ssl.SSLSocket, wanted: bytes) -> None:
        heard = b""
        while wanted not in heard:
            piece = connection.recv(65536)
            self.assertTrue(piece, heard)
            heard += piece

    def heard_to_the_end(self, connection: ssl.SSLSocket) -> bytes:
        """What comes until the connection is closed, which it has to be in time."""
        heard = b""
        try:
            while piece := connection.recv(65536):
                heard += piece
        except (ConnectionResetError, ssl.SSLEOFError):
            pass
        return heard

    def test_many(self) -> None:
        """So it is with very many connections: those of the one end at once, those of the other go on."""
        self.serve(ALICE, BOB)
        connections = [(who, self.connect(who, "h2")) for who in (ALICE, BOB) * (MANY // 2)]
        for _, connection in connections:
            connection.sendall(HELLO)
            self.ping(connection)
        self.bundle.write_bytes(BOB.pem)
        began = time.monotonic()
        for who, connection in connections:
            if who is ALICE:
                self.heard_to_the_end(connection)
        self.assertLess(time.monotonic() - began, WITHIN)
        for who, connection in connections:
            if who is BOB:
                self.ping(connection)
        self.assertIn(f"taken out: {MANY // 2}", self.server.said())

    def test_renewed(self) -> None:
        """The server's certificate is renewed without a restart, one file after the other, and nobody is alarmed."""
        self.files.key.chmod(0o604)
        self.serve(ALICE)
        self.assertTrue(wait_until(lambda: "listening on" in self.server.said()))
        self.assertIn("others can read the private key", self.server.said())
        self.files.key.chmod(0o600)
        renewed = server_certificate()
        both = self.place / "roots.pem"
        both.write_bytes(SERVER.pem + renewed.pem)
        before = self.connect(ALICE, "http/1.1", roots=both)
        for path, content in ((self.files.key, renewed.key_pem), (self.files.certificate, renewed.pem)):
            self.assertEqual(self.certificate_at(both), ssl.PEM_cert_to_DER_cert(SERVER.pem.decode()))
            new = path.with_suffix(".new")
            new.touch(mode=0o600)
            new.write_bytes(content)
            os.rename(new, path)
        self.assertEqual(self.certificate_at(both), ssl.PEM_cert_to_DER_cert(renewed.pem.decode()))
        self.page(before)
        self.assertNotIn("does not belong", self.server.said())

    def certificate_at(self, roots: Path) -> bytes | None:
        """What the server shows to a new connection, in DER form."""
        return self.connect(ALICE, "http/1.1", roots=roots).getpeercert(binary_form=True)
