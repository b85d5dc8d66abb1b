"""`artifactserver.tls.transport`: the same bytes as Twisted's, in fewer steps."""

from __future__ import annotations

import itertools
import socket
import ssl
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.internet.task import Clock, deferLater
from twisted.internet.testing import StringTransport
from twisted.internet.threads import deferToThread
from twisted.logger import capturedLogs, formatEvent
from twisted.protocols.tls import TLSMemoryBIOProtocol
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase, TestCase

from artifactserver.ports.sockets import adopt, open_sockets
from artifactserver.tls import transport as tls_transport
from artifactserver.tls.server import server_tls
from artifactserver.tls.transport import BUFFER_BYTES, SLICE_BYTES, TlsFactory, TlsTransport
from tests.certificates import server_certificate
from tests.chance import examples


class _Kept(Protocol):
    """Remembers what it received, piece by piece, and why it ended."""

    def __init__(self) -> None:
        self.pieces: list[bytes] = []
        self.reason: Failure | None = None

    def dataReceived(self, data: bytes) -> None:
        self.pieces.append(data)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.reason = reason


class _Line:
    """A client made of Python's ``ssl`` and the server's end, in memory.

    :param early: what the server writes before anything has happened.
    :ivar writes: what the server wrote to its transport, each time.
    """

    def __init__(
        self, files: Any, version: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3, early: Sequence[bytes] = ()
    ) -> None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        context.minimum_version = context.maximum_version = version
        self._keylog = files.key.with_suffix(".log")
        context.keylog_filename = str(self._keylog)
        self.incoming, self.outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.client = context.wrap_bio(self.incoming, self.outgoing)
        self.protocol = _Kept()
        factory = TlsFactory(
            server_tls(files.key, files.certificate, None),
            Factory.forProtocol(lambda: self.protocol),
            Clock(),
        )
        self.server: Any = factory.buildProtocol(None)
        self.transport = StringTransport()
        self.writes: list[bytes] = []
        self.transport.write = self.writes.append  # type: ignore[method-assign]
        self.server.makeConnection(self.transport)
        if early:
            self.server.writeSequence(early)
        while True:
            try:
                self.client.do_handshake()
            except ssl.SSLWantReadError:
                self.to_server(self.outgoing.read())
                self.to_client()
            else:
                self.to_server(self.outgoing.read())
                return

    def keys(self) -> bytes:
        """The secret from which the keys of what the client sends come."""
        lines = (line.split() for line in self._keylog.read_text().splitlines())
        return next(bytes.fromhex(words[2]) for words in lines if words[0] == "CLIENT_TRAFFIC_SECRET_0")

    def to_server(self, data: bytes) -> None:
        if data:
            self.server.dataReceived(data)

    def to_client(self) -> None:
        writes, self.writes[:] = list(self.writes), []
        self.incoming.write(b"".join(writes))

    def received(self) -> bytes:
        """What the client can decrypt of what the server has written."""
        self.to_client()
        out = b""
        try:
            while piece := self.client.read(65536):
                out += piece
        except (ssl.SSLWantReadError, ssl.SSLZeroReturnError):
            pass
        return out

    def encrypted(self, *messages: bytes) -> bytes:
        for message in messages:
            self.client.write(message)
        return self.outgoing.read()


class _Rekeying:
    """What a client sends that changes its keys, made by hand, since Python's ``ssl`` cannot (RFC 8446, section 7.2).

    :param secret: the one of the keys that it begins with; nothing has been sent with them.
    """

    def __init__(self, secret: bytes) -> None:
        self._secret = secret
        self._sent = 0

    def _expand(self, label: bytes, size: int) -> bytes:
        info = size.to_bytes(2, "big") + bytes([6 + len(label)]) + b"tls13 " + label + b"\0"
        return HKDFExpand(hashes.SHA256(), size, info).derive(self._secret)

    def record(self, kind: bytes, content: bytes) -> bytes:
        """One record of TLS_AES_128_GCM_SHA256."""
        head = b"\x17\x03\x03" + (len(content) + 1 + 16).to_bytes(2, "big")
        nonce = int.from_bytes(self._expand(b"iv", 12), "big") ^ self._sent
        self._sent += 1
        sealing = AESGCM(self._expand(b"key", 16))
        return head + sealing.encrypt(nonce.to_bytes(12, "big"), content + kind, head)

    def ask(self) -> bytes:
        """A ``KeyUpdate`` that asks for one in return; what follows has the next keys."""
        record = self.record(b"\x16", b"\x18\0\0\1\1")
        self._secret = self._expand(b"traffic upd", 32)
        self._sent = 0
        return record


def _cut(data: bytes, sizes: Sequence[int]) -> list[bytes]:
    pieces, start = [], 0
    for size in sizes:
        pieces.append(data[start : start + size])
        start += size
    return [*pieces, data[start:]]


class TlsTransportTests(SynchronousTestCase):
    """Over memory."""

    def setUp(self) -> None:
        directory = Path(self.mktemp())
        directory.mkdir()
        self.files = server_certificate().write(directory)

    def test_internals(self) -> None:
        """Twisted's class has what this one builds on.  If this fails, read ``twisted/protocols/tls.py`` anew."""
        line = _Line(self.files)
        for name, value in (
            ("_handshakeDone", True),
            ("_appSendBuffer", []),
            ("_lostTLSConnection", False),
            ("_aborted", False),
            ("_producer", None),
        ):
            self.assertEqual(getattr(line.server, name), value, name)
        self.assertIsNotNone(tls_transport._bio_read)
        self.assertIsNotNone(line.server._tlsConnection._from_ssl)
        for name in ("bio_read", "bio_write", "send", "recv"):
            self.assertTrue(callable(getattr(line.server._tlsConnection, name)))
        for name in ("_bufferedWrite", "_tlsShutdownFinished", "_shutdownTLS"):
            self.assertIn(name, vars(TLSMemoryBIOProtocol))
        for name in ("_write", "writeSequence", "_flushSendBIO", "_flushReceiveBIO", "dataReceived"):
            self.assertIn(name, vars(TLSMemoryBIOProtocol))
            self.assertIn(name, vars(TlsTransport))
        called: list[str] = []
        for name in ("_write", "_flushSendBIO", "_flushReceiveBIO"):
            self.patch(line.server, name, lambda *_, name=name: called.append(name))
        line.server.write(b"x")
        line.to_server(line.encrypted(b"y"))
        line.server.abortConnection()
        self.assertEqual(called[:2], ["_write", "_flushReceiveBIO"])
        self.assertIn("_flushSendBIO", called)

        factory = line.server.factory
        self.assertEqual(list(factory.protocols), [line.server])
        line.server.connectionLost(Failure(connectionDone.value))
        self.assertEqual(list(factory.protocols), [])

    def test_one_write(self) -> None:
        """What is written at once, small or large, is sent at once, and arrives as it was."""
        for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
            line = _Line(self.files, version)
            line.received()
            for size in (1, 100, 16_384, SLICE_BYTES, SLICE_BYTES + 1, 1_000_000):
                content = bytes(range(256)) * (size // 256 + 1)
                line.server.write(content[:size])
                self.assertEqual(len(line.writes), 1 + size // BUFFER_BYTES)
                self.assertEqual(line.received(), content[:size])

    def test_sequence(self) -> None:
        """What is written in pieces arrives in order, and is sent at once, large pieces and views among them."""
        for bio_read in (tls_transport._bio_read, None):
            self.patch(tls_transport, "_bio_read", bio_read)
            line = _Line(self.files)
            line.received()
            content = bytes(range(256)) * 2000
            view = memoryview(content)
            for cuts in ((9, 20, 200_009, 200_018), (), (9,), (70_000, 140_000), (100, 500_000)):
                pieces = [view[start:stop] for start, stop in itertools.pairwise((0, *cuts, len(content)))]
                line.server.writeSequence(pieces)
                self.assertEqual(len(line.writes), 1 + len(content) // BUFFER_BYTES)
                self.assertEqual(line.received(), content)
            line.server.writeSequence([b"small", b"", b" and ", b"few"])
            self.assertEqual((len(line.writes), line.received()), (1, b"small and few"))
            line.server.writeSequence([])
            self.assertEqual(line.writes, [])

    def test_too_early(self) -> None:
        """What is written while the handshake is not over follows it, in order."""
        line = _Line(self.files, early=[b"one", bytes(100_000), b"two", bytes(70_000)])
        self.assertEqual(line.received(), b"one" + bytes(100_000) + b"two" + bytes(70_000))

    def test_too_late(self) -> None:
        """Nothing is written any more after the connection was closed, or has failed."""
        line = _Line(self.files)
        line.received()
        line.server.loseConnection()
        line.server.writeSequence([b"too late", bytes(100_000)])
        self.assertEqual(line.received(), b"")
        line = _Line(self.files)
        line.to_server(b"\x17\x03\x03\x00\x20" + bytes(32))
        line.writes.clear()
        line.server.writeSequence([b"too late", bytes(100_000)])
        self.assertEqual(line.writes, [])

    def test_together(self) -> None:
        """What arrives together is handed on together, however many records it is."""
        for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
            line = _Line(self.files, version)
            content = bytes(range(256)) * 1024
            line.to_server(line.encrypted(b"first", content, b"last"))
            self.assertEqual(line.protocol.pieces, [b"first" + content + b"last"])

    @examples(15)
    @given(st.lists(st.integers(0, 100_000), max_size=8), st.lists(st.binary(max_size=40_000), max_size=5))
    def test_cut_anywhere(self, sizes: list[int], messages: list[bytes]) -> None:
        """However the ciphertext was cut, the plaintext is the same."""
        line = _Line(self.files)
        sent = [message * 3 for message in messages if message]
        for piece in _cut(line.encrypted(*sent), sizes):
            line.to_server(piece)
        self.assertEqual(b"".join(line.protocol.pieces), b"".join(sent))

    def test_close(self) -> None:
        """When the client closes, what it sent before is handed on, and it is told that the server closes as well."""
        line = _Line(self.files)
        line.received()
        data = line.encrypted(b"last words")
        try:
            line.client.unwrap()
        except ssl.SSLWantReadError:
            pass
        line.to_server(data + line.outgoing.read())
        self.assertEqual(line.protocol.pieces, [b"last words"])
        self.assertTrue(line.transport.disconnecting)
        line.to_client()
        self.assertRaises(ssl.SSLZeroReturnError, line.client.read, 1)
        line.server.connectionLost(Failure(connectionDone.value))
        self.assertIsNotNone(line.protocol.reason)

    def test_garbage(self) -> None:
        """A record that is none ends the connection, with what came before it handed on and nothing in the log."""
        for large in (False, True):
            line = _Line(self.files)
            sound = line.encrypted(bytes(200_000) if large else b"sound")
            line.to_server(sound + b"\x17\x03\x03\x00\x20" + bytes(32))
            self.assertEqual(b"".join(line.protocol.pieces), bytes(200_000) if large else b"sound")
            self.assertTrue(line.transport.disconnecting)
            line.to_server(b"more")
            line.server.write(b"nothing comes of it")
            line.server.connectionLost(Failure(connectionDone.value))
            assert line.protocol.reason is not None
            self.assertEqual(self.flushLoggedErrors(), [])

    def test_reason_of_garbage(self) -> None:
        """The reason of such an end is the record, though something sound came with it that was answered."""
        garbage = b"\x17\x03\x03\x00\x20" + bytes(32)
        reasons = []
        for sound, large in ((b"", 0), (b"sound", 0), (b"sound", 200_000)):
            line = _Line(self.files)
            answer = partial(line.server.write, b"answer")
            line.protocol.dataReceived = lambda data, answer=answer: answer()  # type: ignore[method-assign,misc]
            line.to_server((line.encrypted(sound + bytes(large)) if sound else b"") + garbage)
            line.server.connectionLost(Failure(connectionDone.value))
            assert line.protocol.reason is not None
            reasons.append(repr(line.protocol.reason.value))
        self.assertIn("record", reasons[0])
        self.assertEqual(reasons, reasons[:1] * 3)

    def test_aborted(self) -> None:
        """Nothing is written or kept any more after the connection was aborted, and a producer is left in peace."""
        done = _Line(self.files)
        factory = TlsFactory(server_tls(self.files.key, self.files.certificate, None), Factory(), Clock())
        begun = TlsTransport(factory, _Kept())
        begun.makeConnection(StringTransport())
        told: list[str] = []

        class Producer:
            def __getattr__(self, name: str) -> Callable[[], None]:
                return lambda: told.append(name)

        for server in (done.server, begun):
            server.registerProducer(Producer(), True)
            server.abortConnection()
            done.writes.clear()
            server.write(b"too late")
            server.writeSequence([b"too late", bytes(100_000)])
            self.assertEqual((done.writes, told, server._appSendBuffer), ([], [], []))

    def test_new_keys(self) -> None:
        """A client may ask for new keys, and one that does it all the time is cut off."""
        line = _Line(self.files)
        self.patch(tls_transport, "ANSWERED_BYTES", 40)
        rekeying = _Rekeying(line.keys())
        with capturedLogs() as events:
            line.to_server(rekeying.ask())
            line.to_server(rekeying.record(b"\x17", b"with new ones"))
            self.assertEqual(line.protocol.pieces, [b"with new ones"])
            self.assertEqual(events, [])
            line.to_server(rekeying.ask() + rekeying.record(b"\x17", b"nobody hears this"))
        self.assertTrue(line.transport.disconnected)
        self.assertEqual(line.protocol.pieces, [b"with new ones"])
        (event,) = events
        self.assertIn("new keys or a new handshake all the time", formatEvent(event))

    def test_paused(self) -> None:
        """A producer is paused and resumed by the transport below, through TLS."""
        line = _Line(self.files)
        told: list[str] = []

        class Producer:
            def pauseProducing(self) -> None:
                told.append("pause")

            def resumeProducing(self) -> None:
                told.append("resume")

            def stopProducing(self) -> None:
                told.append("stop")

        line.server.registerProducer(Producer(), True)
        assert line.transport.producer is not None
        line.transport.producer.pauseProducing()
        line.transport.producer.resumeProducing()
        self.assertEqual(told, ["pause", "resume"])
        line.server.loseConnection()
        self.assertFalse(line.transport.disconnecting)
        line.server.unregisterProducer()
        line.to_client()
        self.assertEqual(line.client.read(1), b"")


class ClearTextTests(SynchronousTestCase):
    """A client that does without TLS."""

    def setUp(self) -> None:
        place = Path(self.mktemp()).absolute()
        place.mkdir()
        files = server_certificate().write(place)
        self.clock = Clock()
        self.kept = _Kept()
        self.factory = TlsFactory(
            server_tls(files.key, files.certificate, None), Factory.forProtocol(lambda: self.kept), self.clock
        )

    def connect(self, *pieces: bytes) -> StringTransport:
        server: Any = self.factory.buildProtocol(None)
        transport = StringTransport()
        server.makeConnection(transport)
        for piece in pieces:
            server.dataReceived(piece)
        self.server = server
        return transport

    def test_http1(self) -> None:
        """HTTP/1.1 is answered with 400 and a word about TLS, however it is cut and whatever its method is."""
        for request in (
            b"GET / HTTP/1.1\r\nHost: h\r\n\r\n",
            b"PUT /x HTTP/1.1\r\n\r\n" + bytes(100_000),
            b"PROPFIND ",
        ):
            for step in (1, 3, len(request)):
                transport = self.connect(*[request[at : at + step] for at in range(0, min(len(request), 200), step)])
                head, _, body = transport.value().partition(b"\r\n\r\n")
                self.assertTrue(head.startswith(b"HTTP/1.1 400 Bad Request\r\n"), head)
                self.assertIn(b"\r\nContent-Length: %d" % len(body), head)
                self.assertIn(b"https://", body)
                self.assertTrue(transport.disconnecting)
                self.server.connectionLost(Failure(connectionDone.value))
        self.assertEqual(self.kept.pieces, [])
        self.assertEqual(self.flushLoggedErrors(), [])

    def test_http2(self) -> None:
        """HTTP/2 is closed without an answer, which its clients would take for a good one."""
        preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
        for step in (1, len(preface)):
            transport = self.connect(*[preface[at : at + step] for at in range(0, len(preface), step)])
            self.assertEqual(transport.value(), b"")
            self.assertTrue(transport.disconnecting)

    def test_something_else(self) -> None:
        """What is neither is refused by TLS, without an answer that its client could take for one."""
        for said in (b"SSH-2.0-OpenSSH_9\r\n", b"\0\0\0\0\0\0", b"get / http/1.1\r\n", b"A" * 30):
            transport = self.connect(said)
            self.assertIn(transport.value()[:1], (b"", b"\x15"), said)
            self.assertTrue(transport.disconnecting)

    def test_undecided(self) -> None:
        """What may yet become one of them is waited for."""
        for said in (b"P", b"PRI * HT", b"GET"):
            transport = self.connect(said)
            self.assertEqual((transport.value(), transport.disconnecting), (b"", False))

    def test_log(self) -> None:
        """The log says who did so, and what to do; a thousand of them within a minute are one line."""
        with capturedLogs() as events:
            for number in range(1000):
                self.connect((b"GET / HTTP/1.1\r\n", b"PRI * HTTP/2.0\r\n")[number % 2])
            self.clock.advance(61)
            self.connect(b"GET / HTTP/1.1\r\n")
        self.assertEqual([event.get("unsaid") for event in events], [None, 999])
        self.assertEqual(events[0]["peer"], "192.168.1.1")
        self.assertIn("a port that speaks TLS: it should use https://", events[0]["log_format"])


class SendAwayTests(SynchronousTestCase):
    """Connections that are ended because of who they are."""

    def test_some(self) -> None:
        """Those that are meant are told, and no others."""
        place = Path(self.mktemp()).absolute()
        place.mkdir()
        files = server_certificate().write(place)
        told: list[int] = []

        class Leaving(Protocol):
            def __init__(self, number: int) -> None:
                self.number = number

            def send_away(self) -> None:
                told.append(self.number)

        numbers = iter(range(9))
        factory = TlsFactory(
            server_tls(files.key, files.certificate, None), Factory.forProtocol(lambda: Leaving(next(numbers))), Clock()
        )
        servers: list[Any] = [factory.buildProtocol(None) for _ in range(5)]
        for server in servers:
            server.makeConnection(StringTransport())
        servers[3].connectionLost(Failure(connectionDone.value))
        self.assertEqual(factory.send_away(lambda transport: transport in servers[1:4]), 2)
        self.assertEqual(sorted(told), [1, 2])


class _Talker(Protocol):
    """Writes for as long as it may."""

    def __init__(self) -> None:
        self.lost: Deferred[None] = Deferred()
        self.written = 0
        self._may = False

    def dataReceived(self, data: bytes) -> None:
        assert self.transport is not None
        self.transport.registerProducer(self, True)  # type: ignore[attr-defined]
        self.resumeProducing()

    def resumeProducing(self) -> None:
        assert self.transport is not None
        self._may = True
        while self._may and self.written < 2**25:
            self.written += 100_000
            self.transport.write(bytes(100_000))

    def pauseProducing(self) -> None:
        self._may = False

    def stopProducing(self) -> None:
        self._may = False

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.lost.callback(None)


class PausedTests(TestCase):
    """Over real sockets: a peer that ends while a producer is paused, since it has not read."""

    def setUp(self) -> None:
        directory = Path(self.mktemp())
        directory.mkdir()
        files = server_certificate().write(directory)
        self.talker = _Talker()
        (listening,) = open_sockets("127.0.0.1", 0)
        self.address = listening.getsockname()
        factory = TlsFactory(server_tls(files.key, files.certificate, None), Factory.forProtocol(self._talk), reactor)
        port = adopt(reactor, listening, factory)  # type: ignore[arg-type]
        self.addCleanup(port.stopListening)

    def _talk(self) -> Protocol:
        return self.talker

    def _begin(self) -> tuple[socket.socket, ssl.SSLObject, ssl.MemoryBIO]:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        client = context.wrap_bio(incoming, outgoing)
        connection = socket.create_connection(self.address, timeout=20)
        while True:
            try:
                client.do_handshake()
                break
            except ssl.SSLWantReadError:
                connection.sendall(outgoing.read())
                incoming.write(connection.recv(65536))
        client.write(b"go")
        connection.sendall(outgoing.read())
        return connection, client, outgoing

    async def _end_with(self, last_words: Callable[[ssl.SSLObject, ssl.MemoryBIO], bytes]) -> None:
        connection, client, outgoing = await deferToThread(self._begin)
        self.addCleanup(connection.close)
        before = -1
        while before != self.talker.written:
            before = self.talker.written
            await deferLater(reactor, 0.2)
        self.assertGreater(before, 0)
        connection.sendall(last_words(client, outgoing))

        def read_on() -> None:
            try:
                while connection.recv(2**20):
                    pass
            except ConnectionResetError:
                pass

        await deferToThread(read_on)
        await self.talker.lost

    async def test_close(self) -> None:
        """One that says that it closes gets what was written before, and the connection is over."""

        def close(client: ssl.SSLObject, outgoing: ssl.MemoryBIO) -> bytes:
            try:
                client.unwrap()
            except ssl.SSLWantReadError:
                pass
            return outgoing.read()

        await self._end_with(close)

    async def test_garbage(self) -> None:
        """So it is with one that sends what is no TLS."""
        await self._end_with(lambda client, outgoing: b"\x17\x03\x03\x00\x20" + bytes(32))
