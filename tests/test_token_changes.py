"""Tokens that are added and revoked while a server runs, with real clients."""

from __future__ import annotations

import socket
import sys
import time
from pathlib import Path

import grpc
from twisted.trial.unittest import SynchronousTestCase

from artifactserver.tokens import token_file
from tests import http2_peer as wire
from tests.attacks import HELLO, head
from tests.hearing import hear, heard_to_the_end
from tests.http2_peer import frame, message
from tests.processes import Server, environment, run
from tests.test_ports import Door
from tests.test_tap import IMPORT_PATH

STATUS = "/buildstream.v2.ReferenceStorage/Status"

#: Seconds within which a connection has to be ended that relies on a token which was revoked.
WITHIN = 8.0

#: How many connections are open at once.
MANY = 200


class TokenChangeTests(SynchronousTestCase):
    """A server with two tokens."""

    def setUp(self) -> None:
        self.place = Path(self.mktemp()).absolute()
        self.place.mkdir()
        self.tokens = self.place / "tokens"
        self.alice = token_file.add(self.tokens, "alice", push=False)
        self.ci = token_file.add(self.tokens, "ci", push=True)
        self.server = Server(self.place / "repo", "--private", "--tokens", str(self.tokens))
        self.addCleanup(self.server.kill)
        self.server.start()
        self.door = Door(self.server.port)
        self.addCleanup(self.door.close)

    def command(self, *arguments: str) -> list[str]:
        """The words that ``artifactserver token`` prints."""
        program = (sys.executable, "-c", "import sys; from artifactserver import cli; sys.exit(cli.administer())")
        env = environment(self.place / "home") | {"PYTHONPATH": IMPORT_PATH}
        done = run([*program, "token", *arguments, "--tokens", str(self.tokens)], cwd=self.place, env=env, timeout=30)
        self.assertEqual(done.status, 0, done)
        return done.output.split()

    def may(self, secret: str) -> bool:
        """Whether a call with this token is answered, on a connection that is used for all of them."""
        call = self.door.channel.unary_unary(STATUS)
        try:
            call(b"", timeout=20, metadata=[("authorization", f"Bearer {secret}")])
        except grpc.RpcError as error:
            self.assertIs(error.code(), grpc.StatusCode.UNAUTHENTICATED)
            return False
        return True

    def watching(self, secret: str) -> socket.socket:
        """A connection of HTTP/2 on which a call is under way."""
        connection = socket.create_connection(("127.0.0.1", self.server.port), timeout=WITHIN)
        self.addCleanup(connection.close)
        shown = ("authorization", f"Bearer {secret}")
        connection.sendall(HELLO + head(1, "Watch", shown) + frame(wire.DATA, wire.END_STREAM, 1, message(b"")))
        hear(connection, b"\x08\x01")
        return connection

    def page(self, connection: socket.socket, secret: str) -> None:
        """Ask for something by HTTP/1.1."""
        connection.sendall(f"GET / HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer {secret}\r\n\r\n".encode())
        hear(connection, b"no pages here.\n")

    def test_add(self) -> None:
        """A token is good as soon as it has been added."""
        self.assertTrue(self.may(self.alice))
        (secret,) = [word for word in self.command("add", "bob") if word.startswith("ast_")]
        self.assertTrue(self.may(secret))

    def test_revoke(self) -> None:
        """Who had a token that was revoked is out, in the middle of a call too; nobody else is."""
        calls = {who: self.watching(secret) for who, secret in (("alice", self.alice), ("ci", self.ci))}
        pages = {}
        for who, secret in (("alice", self.alice), ("ci", self.ci)):
            pages[who] = socket.create_connection(("127.0.0.1", self.server.port), timeout=WITHIN)
            self.addCleanup(pages[who].close)
            self.page(pages[who], secret)
        self.command("revoke", "alice")
        began = time.monotonic()
        heard = heard_to_the_end(calls["alice"])
        (goaway,) = [each for each in wire.parse(heard) if each.kind == wire.GOAWAY]
        self.assertIn(b"withdrawn", goaway.payload)
        self.assertEqual(heard_to_the_end(pages["alice"]), b"")
        self.assertLess(time.monotonic() - began, WITHIN)
        self.assertFalse(self.may(self.alice))
        self.page(pages["ci"], self.ci)
        calls["ci"].sendall(frame(wire.PING, payload=b"8 bytes."))
        hear(calls["ci"], b"8 bytes.")
        self.assertIn("taken out: 2", self.server.said())

    def test_many(self) -> None:
        """So it is with very many connections: who comes is let in beside them, and of who goes all of them end."""
        secrets = {"alice": self.alice, "ci": self.ci}
        connections = [(who, self.watching(secrets[who])) for who in list(secrets) * (MANY // 2)]
        (secret,) = [word for word in self.command("add", "bob") if word.startswith("ast_")]
        self.assertTrue(self.may(secret))
        self.command("revoke", "alice")
        began = time.monotonic()
        for who, connection in connections:
            if who == "alice":
                heard_to_the_end(connection)
        self.assertLess(time.monotonic() - began, WITHIN)
        for who, connection in connections:
            if who == "ci":
                connection.sendall(frame(wire.PING, payload=b"8 bytes."))
                hear(connection, b"8 bytes.")
        self.assertFalse(self.may(self.alice))
        self.assertTrue(self.may(secret))
        self.assertIn(f"taken out: {MANY // 2}", self.server.said())

    def test_broken(self) -> None:
        """A file that is broken is told of with its line, and the tokens that were good before still are."""
        content = self.tokens.read_bytes()
        self.tokens.write_bytes(content + b"what is this\n")
        end = time.monotonic() + WITHIN
        while "stays in force" not in self.server.said() and time.monotonic() < end:
            time.sleep(0.1)
        self.assertRegex(self.server.said(), f"line 4 of {self.tokens} .*; what was read before stays in force")
        self.assertTrue(self.may(self.alice))
