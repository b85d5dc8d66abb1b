"""A connection error really closes the connection, whatever was under way: RFC 9113, section 5.4.1, on real sockets.

The port is wired as in the server, TLS and all; behind it stands a service that sends as much as one asks for.
"""

from __future__ import annotations

import functools
import socket
import ssl
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from twisted.internet import reactor as _reactor
from twisted.internet.task import deferLater
from twisted.internet.threads import deferToThread
from twisted.trial.unittest import TestCase

from artifactserver import tap
from artifactserver.options import Options
from artifactserver.rpc import answers
from artifactserver.rpc.http2 import ErrorCode, Limits
from tests import http2_peer as wire
from tests.certificates import Certificate, server_certificate
from tests.echo_service import ECHO, Anybody, Echo, value
from tests.http2_peer import PREFACE, REQUEST, Frame, frame, parse, request, settings, window_update

reactor: Any = _reactor

#: Seconds after which a socket that says nothing has failed its test.
TIMEOUT = 20.0

#: Seconds that a client may take to close its end.
CLOSE_SECONDS = 0.5

GREETING = PREFACE + settings() + frame(wire.SETTINGS, wire.ACK)

#: A way to each of the errors that cost the connection, and to the end of it.
FATAL = {
    ErrorCode.PROTOCOL_ERROR: frame(wire.DATA, 0, 1, b"x"),
    ErrorCode.FLOW_CONTROL_ERROR: window_update(0, 2**31 - 1),
    ErrorCode.STREAM_CLOSED: request(1) + frame(wire.RST_STREAM, 0, 1, bytes(4)) + frame(wire.DATA, 0, 1, b"x"),
    ErrorCode.FRAME_SIZE_ERROR: frame(wire.PING, payload=bytes(7)),
    ErrorCode.COMPRESSION_ERROR: frame(wire.HEADERS, wire.END_HEADERS, 1, b"\x80"),
    ErrorCode.ENHANCE_YOUR_CALM: frame(wire.PING, payload=bytes(8)) * 200,
}


@functools.cache
def certificate() -> Certificate:
    """The server's certificate, made once."""
    return server_certificate()


def named(method: str) -> tuple[tuple[str, str], ...]:
    """Headers of a call of the service."""
    return tuple((name, f"/test.Echo/{method}" if name == ":path" else text) for name, text in REQUEST)


def call(stream: int, method: str, content: bytes) -> bytes:
    """A call of the service, from its first byte to its last."""
    return request(stream, fields=named(method)) + frame(wire.DATA, wire.END_STREAM, stream, value(content))


class ClearTests(TestCase):
    """In clear text."""

    timeout = 60
    tls: tuple[str, ...] = ()

    def setUp(self) -> None:
        self.place = Path(self.mktemp()).absolute()
        self.place.mkdir()
        self.prepare()
        options = Options()
        options.parseOptions(["--port", "0", *self.tls, str(self.place / "repo")])
        server = tap.build(options, reactor, time.time)
        self.addCleanup(server.stopService)
        dispatcher = Anybody()
        dispatcher.register(ECHO, Echo())
        self.grpc = server._grpc
        self.grpc.routes = dispatcher
        self.grpc.limits = Limits(close_seconds=CLOSE_SECONDS, chores_burst=100)
        self.port = reactor.listenTCP(0, server.entrances[0].factory, interface="127.0.0.1")
        self.addCleanup(self.port.stopListening)

    def prepare(self) -> None:
        """Make what the server needs besides."""

    def connect(self) -> Any:
        """A client's socket, in a thread."""
        connection = socket.create_connection(("127.0.0.1", self.port.getHost().port))
        connection.settimeout(TIMEOUT)
        return connection

    async def heard(self, *data: bytes, pause: float = 0) -> list[Frame]:
        """What a client hears to the end that sends this, with a pause between, and never closes its end."""

        def talk() -> bytes:
            said = b""
            with self.connect() as connection:
                for each in data:
                    connection.sendall(each)
                    time.sleep(pause)
                while piece := connection.recv(2**20):
                    said += piece
            return said

        frames = parse(await deferToThread(talk))
        await self.until(lambda: not self.grpc.connections)
        return frames

    async def until(self, true: Callable[[], bool]) -> None:
        for _ in range(1000):
            if true():
                return
            await deferLater(reactor, 0.01)
        self.fail("it never came true")

    async def test_codes(self) -> None:
        """Whatever the mistake, the client is told its code, and then there is no connection any more."""
        for code, data in FATAL.items():
            last = (await self.heard(GREETING, data))[-1]
            self.assertEqual((last.kind, last.code), (wire.GOAWAY, code))

    async def test_bad_preface(self) -> None:
        """So it is with a client whose preface goes wrong."""
        last = (await self.heard(PREFACE[:-1] + b"?" + settings()))[-1]
        self.assertEqual((last.kind, last.code), (wire.GOAWAY, ErrorCode.PROTOCOL_ERROR))

    async def test_more_behind(self) -> None:
        """What comes behind the mistake does not keep the client from hearing of it."""
        last = (await self.heard(GREETING, *[frame(wire.DATA, 0, 1, bytes(1000)) * 100] * 20))[-1]
        self.assertEqual((last.kind, last.code), (wire.GOAWAY, ErrorCode.PROTOCOL_ERROR))

    async def test_in_mid_download(self) -> None:
        """A download that waits for its client to read ends there, and GOAWAY is behind what was on its way."""
        window = settings((4, 2**31 - 1)) + window_update(0, 2**30)
        calls = b"".join(call(stream, "Down", b"100x1000000") for stream in (1, 3, 5))
        frames = await self.heard(GREETING + window + calls, frame(wire.PING, payload=bytes(7)), pause=0.2)
        self.assertEqual((frames[-1].kind, frames[-1].code), (wire.GOAWAY, ErrorCode.FRAME_SIZE_ERROR))
        self.assertEqual(int.from_bytes(frames[-1].payload[:4], "big"), 5)
        sent = sum(len(each.payload) for each in frames if each.kind == wire.DATA)
        self.assertTrue(0 < sent < 300_000_000, sent)

    async def test_in_mid_upload(self) -> None:
        """An upload that is under way ends too."""
        upload = request(1, fields=named("Up")) + frame(wire.DATA, 0, 1, value(bytes(100_000))[:-1])
        last = (await self.heard(GREETING, upload, frame(wire.DATA, wire.PADDED, 1, b"\x09too long")))[-1]
        self.assertEqual((last.kind, last.code), (wire.GOAWAY, ErrorCode.PROTOCOL_ERROR))

    async def test_never_reads(self) -> None:
        """A client that does not read what it asked for, nor closes its end, is cut off all the same."""

        def talk(connection: Any) -> None:
            connection.sendall(GREETING + settings((4, 2**31 - 1)) + window_update(0, 2**30))
            connection.sendall(call(1, "Down", b"100x1000000") + frame(wire.PING, payload=bytes(7)))

        connection = await deferToThread(self.connect)
        self.addCleanup(connection.close)
        await deferToThread(talk, connection)
        await self.until(lambda: bool(self.grpc.connections))
        await self.until(lambda: not self.grpc.connections)

    async def test_malformed_requests_do_not_close(self) -> None:
        """A malformed request ends its stream; the connection stays for the others."""

        def talk() -> list[Frame]:
            with self.connect() as connection:
                connection.sendall(GREETING + request(1, fields=(*REQUEST, ("Bad", "name"))))
                connection.sendall(call(3, "Unary", b"good"))
                said = b""
                while not said.endswith(answers.TAIL):
                    said += connection.recv(65_536)
            return parse(said)

        frames = await deferToThread(talk)
        resets = [(each.stream, each.number) for each in frames if each.kind == wire.RST_STREAM]
        self.assertEqual(resets, [(1, ErrorCode.PROTOCOL_ERROR)])
        self.assertEqual((frames[-1].stream, frames[-1].payload), (3, answers.TAIL))
        await self.until(lambda: not self.grpc.connections)


class TlsTests(ClearTests):
    """Over TLS, where an end that was not announced would be an error."""

    def prepare(self) -> None:
        files = certificate().write(self.place)
        self.tls = ("--server-key", str(files.key), "--server-cert", str(files.certificate))
        self.context = ssl.create_default_context(cadata=certificate().pem.decode())
        self.context.set_alpn_protocols(["h2"])

    def connect(self) -> Any:
        return self.context.wrap_socket(super().connect(), server_hostname="localhost", suppress_ragged_eofs=False)
