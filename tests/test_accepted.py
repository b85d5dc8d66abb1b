"""`artifactserver.ports.accepted`: what is written to an accepted connection, and when."""

from __future__ import annotations

import socket
from typing import Any

from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.internet.task import deferLater
from twisted.python.failure import Failure
from twisted.trial.unittest import TestCase

from artifactserver.ports.accepted import PROMPT_BYTES, READ_BYTES, AcceptedConnection
from artifactserver.ports.sockets import adopt, open_sockets


class _Kept(Protocol):
    """Remembers what it received, and when it ended."""

    def __init__(self) -> None:
        self.received = b""
        self.lost: Deferred[Any] = Deferred()

    def dataReceived(self, data: bytes) -> None:
        self.received += data

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.lost.callback(reason.type)


class AcceptedConnectionTests(TestCase):
    """Over real sockets."""

    def setUp(self) -> Deferred[None]:  # type: ignore[override]
        self.protocol = _Kept()
        made: Deferred[None] = Deferred()
        self.protocol.makeConnection = self._connected(made)  # type: ignore[method-assign]
        (listening,) = open_sockets("127.0.0.1", 0)
        address = listening.getsockname()
        port = adopt(reactor, listening, Factory.forProtocol(lambda: self.protocol))  # type: ignore[arg-type]
        self.addCleanup(port.stopListening)
        self.client = socket.create_connection(address)
        self.addCleanup(self.client.close)
        self.client.setblocking(False)
        return made

    def _connected(self, made: Deferred[None]) -> Any:
        def connect(transport: Any) -> None:
            Protocol.makeConnection(self.protocol, transport)
            made.callback(None)

        return connect

    @property
    def transport(self) -> Any:
        return self.protocol.transport

    async def read(self, size: int) -> bytes:
        """So many bytes, as they come."""
        received = b""
        while len(received) < size:
            try:
                received += self.client.recv(size - len(received))
            except BlockingIOError:
                await deferLater(reactor, 0.001)
        return received

    def tearDown(self) -> Deferred[None]:  # type: ignore[override]
        self.client.close()
        self.transport.abortConnection()
        return self.protocol.lost

    async def test_kind(self) -> None:
        """Accepted connections are of this kind, read much at once, and send small answers without delay."""
        self.assertIsInstance(self.transport, AcceptedConnection)
        self.assertEqual(self.transport.bufferSize, READ_BYTES)
        self.assertTrue(self.transport.getTcpNoDelay())

    async def test_at_once(self) -> None:
        """A small write is with the peer before the reactor has had a turn."""
        self.transport.write(b"at once")
        self.assertEqual(self.client.recv(100), b"at once")

    async def test_large_ones_wait(self) -> None:
        """A large write waits for the reactor, so that nobody has it for himself."""
        self.transport.write(bytes(PROMPT_BYTES + 1))
        with self.assertRaises(BlockingIOError):
            self.client.recv(100)
        self.assertEqual(await self.read(PROMPT_BYTES + 1), bytes(PROMPT_BYTES + 1))

    async def test_order(self) -> None:
        """Small and large writes arrive in their order, though the peer does not read for a while."""
        pieces = [bytes([number]) * (1000, PROMPT_BYTES, 300_000)[number % 3] for number in range(60)]
        for piece in pieces:
            self.transport.write(piece)
        whole = b"".join(pieces)
        self.assertEqual(await self.read(len(whole)), whole)

    async def test_end(self) -> None:
        """What was written arrives before the end of the connection."""
        self.transport.write(b"some")
        self.transport.loseConnection()
        self.assertEqual(await self.read(4), b"some")
        await self.protocol.lost
        self.protocol.lost = Deferred()
        self.assertEqual(self.client.recv(100), b"")
        self.protocol.lost.callback(None)

    async def test_peer_gone(self) -> None:
        """Writes to a peer that is gone end the connection, once, and raise nothing."""
        self.client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        self.client.close()
        for _ in range(3):
            self.transport.write(b"lost")
        await self.protocol.lost
        self.protocol.lost = Deferred()
        self.transport.write(b"lost")
        self.protocol.lost.callback(None)
