"""A server over TLS with real clients, when its files change while it runs: who comes, who goes, and who stays."""

from __future__ import annotations

import functools
import os
import socket
import ssl
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import grpc
from twisted.trial.unittest import SynchronousTestCase

from tests import http2_peer as wire
from tests.attacks import HELLO, call
from tests.certificates import Certificate, CertificateFiles, certificate, server_certificate
from tests.hearing import hear, heard_to_the_end
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
ALICE, BOB, CAROL = certificate(), certificate(), certificate()


class _Running(SynchronousTestCase):
    def setUp(self) -> None:
        self.place = Path(self.mktemp()).absolute()
        self.place.mkdir()
        self.files = SERVER.write(self.place)
        self.bundle = self.place / "authorized.crt"
        self.shown: dict[str, CertificateFiles] = {}

    def serve(self, *bundle: Certificate, options: Sequence[str] = ()) -> None:
        self.bundle.write_bytes(b"".join(each.pem for each in bundle))
        self.server = Server(
            self.place / "repo",
            *("--server-key", str(self.files.key), "--server-cert", str(self.files.certificate)),
            *("--client-certs", str(self.bundle), "--enable-push"),
            *options,
        )
        self.addCleanup(self.server.kill)
        self.server.start()

    def write(self, shows: Certificate | None) -> CertificateFiles | None:
        if shows is None:
            return None
        if shows.fingerprint not in self.shown:
            self.shown[shows.fingerprint] = shows.write(self.place)
        return self.shown[shows.fingerprint]

    def door(self, shows: Certificate | None) -> Door:
        """A client with grpcio, for whoever shows this."""
        door = Door(self.server.port, self.files, self.write(shows))
        self.addCleanup(door.close)
        return door

    def grpcio(self, shows: Certificate | None) -> bool:
        """Whether a new client with grpcio gets an answer."""
        door = self.door(shows)
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


@contextmanager
def calling(door: Door) -> Iterator[list[grpc.StatusCode]]:
    """Somebody who calls again and again meanwhile; how these calls end, of which there is one at least."""
    ended: list[grpc.StatusCode] = []
    done = threading.Event()

    def call_again() -> None:
        while not done.is_set() or not ended:
            ended.append(door.call(CAPABILITIES)[0])
            time.sleep(0.01)

    thread = threading.Thread(target=call_again)
    thread.start()
    try:
        yield ended
    finally:
        done.set()
        thread.join()


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
        self.come_and_go()

    def test_private(self) -> None:
        """So it is on a private port, where who has no certificate gets a connection and no more."""
        self.come_and_go("--client-certs-optional", "--private")
        self.assertIs(self.door(None).call(CAPABILITIES)[0], grpc.StatusCode.PERMISSION_DENIED)

    def come_and_go(self, *options: str) -> None:
        self.serve(ALICE, options=options)
        self.assertFalse(self.grpcio(BOB))
        self.append(BOB)
        self.assertTrue(self.grpcio(BOB))
        doors = {who: self.door(who) for who in (ALICE, BOB)}
        for who in (ALICE, BOB):
            self.assertIs(doors[who].call(CAPABILITIES)[0], grpc.StatusCode.OK)
        watching = {who: self.connect(who, "h2") for who in (ALICE, BOB)}
        pages = {who: self.connect(who, "http/1.1") for who in (ALICE, BOB)}
        for who in (ALICE, BOB):
            watching[who].sendall(HELLO + call(1, "Watch", message(b"")))
            self.page(pages[who])
        self.bundle.write_bytes(ALICE.pem)
        heard = heard_to_the_end(watching[BOB])
        self.assertEqual([each.code for each in wire.parse(heard) if each.kind == wire.GOAWAY], [0])
        self.assertEqual(heard_to_the_end(pages[BOB]), b"")
        self.assertIs(doors[BOB].call(CAPABILITIES)[0], grpc.StatusCode.UNAVAILABLE)
        self.assertIs(doors[ALICE].call(CAPABILITIES)[0], grpc.StatusCode.OK)
        self.assertFalse(self.grpcio(BOB))
        self.assertIn("taken out: 3", self.server.said())
        self.page(pages[ALICE])
        self.ping(watching[ALICE])
        self.assertNotIn("Traceback", self.server.said())

    def page(self, connection: ssl.SSLSocket) -> None:
        """Ask for something on a connection that stays open."""
        connection.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
        hear(connection, b"no pages here.\n")

    def ping(self, connection: ssl.SSLSocket) -> None:
        """See that a connection of HTTP/2 is alive."""
        connection.sendall(frame(wire.PING, payload=b"8 bytes."))
        hear(connection, b"8 bytes.")

    def test_many(self) -> None:
        """So it is with very many connections: who comes gets in beside them, and of who goes all of them end."""
        self.serve(ALICE, BOB)
        connections = [(who, self.connect(who, "h2")) for who in (ALICE, BOB) * (MANY // 2)]
        for _, connection in connections:
            connection.sendall(HELLO)
            self.ping(connection)
        self.append(CAROL)
        self.assertTrue(self.grpcio(CAROL))
        for _, connection in connections:
            self.ping(connection)
        self.bundle.write_bytes(BOB.pem + CAROL.pem)
        began = time.monotonic()
        for who, connection in connections:
            if who is ALICE:
                heard_to_the_end(connection)
        self.assertLess(time.monotonic() - began, WITHIN)
        for who, connection in connections:
            if who is BOB:
                self.ping(connection)
        self.assertFalse(self.grpcio(ALICE))
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

    def test_certbot(self) -> None:
        """A renewal as certbot makes it: links are taken away, and made anew; calls of who is connected go on."""
        renewed = server_certificate()
        both = self.place / "roots.pem"
        both.write_bytes(SERVER.pem + renewed.pem)
        live = self.certbot_directories(SERVER, renewed)
        old = self.files
        self.files = CertificateFiles(certificate=live / "fullchain.pem", key=live / "privkey.pem")
        self.serve(ALICE)
        # It trusts the old certificate alone, so that it cannot connect again unnoticed.
        self.files = old
        door = self.door(ALICE)
        self.assertIs(door.call(CAPABILITIES)[0], grpc.StatusCode.OK)
        with calling(door) as ended:
            for name in ("cert", "privkey", "chain", "fullchain"):
                link = live / f"{name}.pem"
                target = os.readlink(link)
                link.unlink()
                self.assertEqual(self.certificate_at(both), ssl.PEM_cert_to_DER_cert(SERVER.pem.decode()), name)
                link.symlink_to(target.replace("1.pem", "2.pem"))
            self.assertEqual(self.certificate_at(both), ssl.PEM_cert_to_DER_cert(renewed.pem.decode()))
            # Longer than it takes to end connections that have lost their right.
            time.sleep(3)
        self.assertEqual(set(ended), {grpc.StatusCode.OK})
        self.assertEqual(self.certificate_at(both), ssl.PEM_cert_to_DER_cert(renewed.pem.decode()))
        self.assertFalse(self.grpcio(ALICE))
        self.files = CertificateFiles(certificate=both, key=old.key)
        self.assertTrue(self.grpcio(ALICE))
        for word in ("does not belong", "No such file", "Traceback"):
            self.assertNotIn(word, self.server.said())

    def certbot_directories(self, *versions: Certificate) -> Path:
        """Certbot's folders with these certificates, and links to the first of them; the folder of the links."""
        live, archive = self.place / "live/localhost", self.place / "archive/localhost"
        for directory in (live, archive):
            directory.mkdir(parents=True)
        for number, version in enumerate(versions, start=1):
            contents = {"cert": version.pem, "chain": b"", "fullchain": version.pem, "privkey": version.key_pem}
            for name, content in contents.items():
                path = archive / f"{name}{number}.pem"
                path.touch(mode=0o600)
                path.write_bytes(content)
        for name in ("cert", "chain", "fullchain", "privkey"):
            (live / f"{name}.pem").symlink_to(f"../../archive/localhost/{name}1.pem")
        return live

    def certificate_at(self, roots: Path) -> bytes | None:
        """What the server shows to a new connection, in DER form."""
        return self.connect(ALICE, "http/1.1", roots=roots).getpeercert(binary_form=True)
