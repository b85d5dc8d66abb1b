"""Accepting at unix sockets, over real ones."""

from __future__ import annotations

import array
import os
import shutil
import socket
import tempfile
from pathlib import Path
from typing import Any

from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IAddress
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.internet.task import deferLater
from twisted.logger import capturedLogs
from twisted.python.failure import Failure
from twisted.trial.unittest import TestCase

from artifactserver.ports.accepted import READ_BYTES, AcceptedUnixConnection, UnixPeer
from artifactserver.ports.sockets import adopt
from artifactserver.ports.unix_ports import UnixSocket
from artifactserver.ports.unix_sockets import open_unix


class _Echo(Protocol):
    """Answers with what it hears."""

    def __init__(self) -> None:
        self.lost: Deferred[None] = Deferred()

    def dataReceived(self, data: bytes) -> None:
        assert self.transport is not None
        self.transport.write(data)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.lost.callback(None)


class _Echoes(Factory):
    noisy = False

    def __init__(self) -> None:
        self.built: list[_Echo] = []
        self.addresses: list[IAddress | None] = []
        self.running = 0

    def startFactory(self) -> None:
        self.running += 1

    def stopFactory(self) -> None:
        self.running -= 1

    def buildProtocol(self, addr: IAddress | None) -> _Echo:
        self.addresses.append(addr)
        self.built.append(_Echo())
        return self.built[-1]


class UnixPortTests(TestCase):
    """A port at a unix socket."""

    def setUp(self) -> None:
        place = Path(tempfile.mkdtemp())
        self.addCleanup(shutil.rmtree, place)
        self.path = place / "socket"
        self.echoes = _Echoes()

    def listen(self, listening: UnixSocket) -> Any:
        port = adopt(reactor, listening, self.echoes)  # type: ignore[arg-type]
        self.addCleanup(self.end, port)
        return port

    async def end(self, port: Any) -> None:
        if port.connected:
            await port.stopListening()
        for protocol in self.echoes.built:
            if not protocol.lost.called:
                protocol.transport.abortConnection()  # type: ignore[union-attr]
                await protocol.lost

    async def connect(self, name: str | None = None) -> socket.socket:
        """A client, once it was accepted."""
        client = socket.socket(socket.AF_UNIX)
        self.addCleanup(client.close)
        client.setblocking(False)
        if name is not None:
            client.bind(name)
        client.connect(str(self.path))
        before = len(self.echoes.built)
        while len(self.echoes.built) == before:
            await deferLater(reactor, 0.001)
        return client

    async def read(self, client: socket.socket, size: int) -> bytes:
        received = b""
        while len(received) < size:
            try:
                received += client.recv(size - len(received))
            except BlockingIOError:
                await deferLater(reactor, 0.001)
        return received

    async def test_bytes(self) -> None:
        """What comes is read in large pieces, and what is answered arrives, however much it is."""
        self.listen(open_unix(self.path, 0o660, 5))
        client = await self.connect()
        transport: Any = self.echoes.built[0].transport
        self.assertIsInstance(transport, AcceptedUnixConnection)
        self.assertEqual(transport.bufferSize, READ_BYTES)
        data = os.urandom(1024 * 1024)
        sent = received = b""
        while len(received) < len(data):
            try:
                sent += data[len(sent) : len(sent) + client.send(data[len(sent) :])]
            except BlockingIOError:
                pass
            try:
                received += client.recv(1024 * 1024)
            except BlockingIOError:
                await deferLater(reactor, 0.001)
        self.assertEqual(received, data)
        client.close()
        await self.echoes.built[0].lost

    async def test_peer(self) -> None:
        """A client is known by the socket at which it called, whatever it calls itself."""
        self.listen(open_unix(self.path, 0o660, 5))
        here = os.getcwd()
        os.chdir(self.path.parent)
        self.addCleanup(os.chdir, here)
        # Four characters: Twisted takes a pair of four for an IPv6 address.
        await self.connect("four")
        await self.connect()
        peer = UnixPeer(str(self.path))
        self.assertEqual(self.echoes.addresses, [peer, peer])
        self.assertEqual(peer.host, f"unix:{self.path}")
        for protocol in self.echoes.built:
            assert protocol.transport is not None
            self.assertEqual((protocol.transport.getPeer(), protocol.transport.getHost()), (peer, peer))

    async def test_no_descriptors(self) -> None:
        """A descriptor that a client sends along is not kept, and nothing is said about it."""
        self.listen(open_unix(self.path, 0o660, 5))
        client = await self.connect()
        before = len(os.listdir("/proc/self/fd"))
        with capturedLogs() as events:
            for _ in range(20):
                numbers = array.array("i", [client.fileno()])
                client.sendmsg([b"x"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, numbers)])
                self.assertEqual(await self.read(client, 1), b"x")
        self.assertEqual((len(os.listdir("/proc/self/fd")), events), (before, []))

    async def test_end(self) -> None:
        """A port that ends takes its file with it, and tells what it served."""
        port = self.listen(open_unix(self.path, 0o600, 5))
        self.assertEqual(self.path.stat().st_mode & 0o777, 0o600)
        self.assertEqual(self.echoes.running, 1)
        await port.stopListening()
        self.assertEqual(self.echoes.running, 0)
        self.assertFalse(self.path.exists())

    async def test_of_systemd(self) -> None:
        """A socket of systemd's keeps its mode, its file, and its place in the kernel."""
        theirs = socket.socket(socket.AF_UNIX)
        self.addCleanup(theirs.close)
        theirs.bind(str(self.path))
        theirs.listen(5)
        self.path.chmod(0o640)
        inherited = UnixSocket(fileno=os.dup(theirs.fileno()))
        inherited.setblocking(False)
        port = self.listen(inherited)
        client = await self.connect()
        client.send(b"hello")
        self.assertEqual(await self.read(client, 5), b"hello")
        self.assertEqual(self.path.stat().st_mode & 0o777, 0o640)
        await port.stopListening()
        with socket.socket(socket.AF_UNIX) as next_one:
            next_one.connect(str(self.path))
            theirs.accept()[0].close()
