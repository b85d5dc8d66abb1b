"""Every way for a call to be cut short: what it was doing stops, and what it held is free again."""

from __future__ import annotations

import gc
import os
import socket
import struct
from collections.abc import AsyncIterator, Callable
from typing import Any

from twisted.internet import reactor as _reactor
from twisted.internet.protocol import Factory
from twisted.internet.task import Clock, deferLater
from twisted.logger import capturedLogs
from twisted.trial.unittest import TestCase

from artifactserver.ports.admission import Admission, AdmittingFactory
from artifactserver.ports.listen import PortFactory
from artifactserver.proto import bytestream_pb2 as bytestream
from artifactserver.rpc.dispatch import Dispatcher
from artifactserver.rpc.http2 import Limits
from artifactserver.rpc.transport import GrpcFactory
from artifactserver.services import register_all
from artifactserver.store.digest import Digest, Digests
from artifactserver.store.interface import Blob
from tests import http2_peer as wire
from tests.callers import PULLER, PUSHER
from tests.echo_service import ECHO, Anybody, BytesValue, Wire, value
from tests.grpc_cases import OverLocal
from tests.http2_peer import frame, message, settings, window_update

reactor: Any = _reactor

PATH = "/google.bytestream.ByteStream/"
CONTENT = os.urandom(300_000)
LIMITS = Limits(stalled_upload_seconds=20, stalled_download_seconds=40, held_bytes=2_000_000)


class EndingTests(OverLocal):
    """Calls that use the store, on a connection in memory."""

    async def serve(self) -> None:
        self.store = await self.make_store()
        dispatcher = Dispatcher()
        register_all(dispatcher, self.store, reactor)
        self.clock = Clock()
        self.factory = GrpcFactory(dispatcher, lambda transport: PUSHER, self.clock, LIMITS)
        self.line = Wire(factory=self.factory)
        self.line.transport.abortConnection = self.line.lost  # type: ignore[method-assign]

    def incoming(self) -> list[str]:
        """What the store has of uploads that are not done."""
        return os.listdir(self.store._path / "incoming")

    async def until(self, true: Callable[[], bool], what: str) -> None:
        for _ in range(1000):
            if true():
                return
            await deferLater(reactor, 0.005)
        self.fail(what)

    def call(self, method: str, *messages: Any, end: bool = True, **more: Any) -> None:
        """Begin a call on stream 1."""
        fields = [*wire.REQUEST[:2], (":path", PATH + method), *wire.REQUEST[3:]]
        fields += [(name.replace("_", "-"), text) for name, text in more.items()]
        body = b"".join(message(each.SerializeToString()) for each in messages)
        self.line.send(wire.request(1, fields=tuple(fields)), frame(wire.DATA, int(end), 1, body))

    async def begin_upload(self, **more: Any) -> None:
        """Half of a large upload: its space is reserved, and its handler waits for the rest."""
        name = f"uploads/u/blobs/{Digest.of(CONTENT).hex}/{len(CONTENT)}"
        half = bytestream.WriteRequest(resource_name=name, data=CONTENT[:200_000])
        self.call("Write", half, end=False, **more)
        await self.until(lambda: bool(self.incoming()), "the upload has not begun")
        await self.until(lambda: self.line.protocol.engine.streams[1].owner.waits_for_data, "the handler does not wait")
        self.assertTrue(self.store._room._callers)
        self.assertGreater(self.factory.ledger.held, 0)

    async def begin_download(self, **more: Any) -> None:
        """A download whose client has no window for it: the file is open, and its handler waits."""
        await self.store.add_many([self.blob()])
        self.line.send(settings((4, 10)))
        self.line.frames()
        name = f"blobs/{Digest.of(self.content).hex}/{len(self.content)}"
        self.call("Read", bytestream.ReadRequest(resource_name=name), **more)
        await self.until(lambda: self.factory.ledger.held > 500_000, "nothing waits to be sent")
        self.assertTrue(self.open_files())

    def blob(self) -> Blob:
        self.content = CONTENT * 10
        return Blob(Digest.of(self.content), self.content)

    def open_files(self) -> list[str]:
        """The large blobs that this process has open."""
        blobs = str(self.store._path.absolute() / "blobs")
        found = []
        for number in os.listdir("/proc/self/fd"):
            try:
                target = os.readlink(f"/proc/self/fd/{number}")
            except OSError:
                continue
            if target.startswith(blobs):
                found.append(target)
        return found

    async def assert_free(self) -> None:
        """Nothing is left of the call, anywhere."""
        await self.until(lambda: not self.incoming(), "something is left in incoming/")
        await self.until(lambda: not self.store._room._callers, "the room is still reserved")
        await self.until(lambda: not self.open_files(), "a file is still open")
        self.assertEqual(self.factory.ledger.held, 0)
        self.assertEqual(self.line.protocol.held, 0)
        self.assertEqual(self.line.protocol.engine.sender.owed, 0)
        self.assertEqual(self.line.protocol.engine.streams, {})
        self.assertEqual(await self.store.find_missing(Digests.of([Digest.of(CONTENT)])), [0])

    def reset(self) -> None:
        self.line.send(frame(wire.RST_STREAM, 0, 1, b"\0\0\0\x08"))

    def lose(self) -> None:
        self.line.lost()

    def break_rules(self) -> None:
        self.line.send(frame(wire.DATA, 0, 99, b"x"))

    def pass_time(self, seconds: float = 60) -> None:
        self.clock.pump([1] * int(seconds))

    def shut_down(self) -> None:
        self.drained = self.factory.drain(5)
        self.clock.pump([1] * 10)

    async def test_uploads(self) -> None:
        """However an upload is cut off, nothing of it is left on disk or in memory, and its space is free again."""
        endings: list[tuple[Callable[[], None], dict[str, str]]] = [
            (self.reset, {}),
            (self.lose, {}),
            (self.break_rules, {}),
            (self.pass_time, {"grpc_timeout": "5S"}),
            (self.pass_time, {}),
            (self.shut_down, {}),
            # It ends too early, is no gRPC, or no upload.
            (lambda: self.line.send(frame(wire.DATA, 1, 1)), {}),
            (lambda: self.line.send(frame(wire.DATA, 0, 1, b"\2\0\0\0\0")), {}),
            (lambda: self.line.send(frame(wire.DATA, 0, 1, message(b"\xff\xff\xff"))), {}),
        ]
        for ending, more in endings:
            await self.serve()
            await self.begin_upload(**more)
            with capturedLogs() as events:
                ending()
                await self.assert_free()
            self.assertLessEqual(len(events), 1)
            self.assertNotIn("log_failure", events[0] if events else {})

    async def test_too_much_held(self) -> None:
        """An upload that is given up because too much is held leaves nothing either."""
        await self.serve()
        await self.begin_upload()
        part = frame(wire.DATA, 0, 1, bytes(900_000))
        with capturedLogs() as events:
            self.line.send(frame(wire.DATA, 0, 1, b"\0\x00\x40\x00\x00"), part, part, part)
            await self.assert_free()
        self.assertEqual([event["most"] > LIMITS.held_bytes for event in events], [True])

    async def test_downloads(self) -> None:
        """However a download is cut off, its file is closed and what waited to be sent is gone."""
        endings: list[tuple[Callable[[], None], dict[str, str]]] = [
            (self.reset, {}),
            (self.lose, {}),
            (self.break_rules, {}),
            (self.pass_time, {}),
            (self.shut_down, {}),
        ]
        for ending, more in endings:
            await self.serve()
            await self.begin_download(**more)
            with capturedLogs() as events:
                ending()
                await self.assert_free()
            self.assertLessEqual(len(events), 1)

    async def test_download_past_its_deadline(self) -> None:
        """A download whose deadline passes closes its file at once; what was ready goes when the client goes."""
        await self.serve()
        await self.begin_download(grpc_timeout="5S")
        self.pass_time(6)
        await self.until(lambda: not self.open_files(), "a file is still open")
        self.line.send(window_update(0, 2**24), window_update(1, 2**24))
        self.assertEqual(self.line.statuses()[1][0], "4")
        await self.assert_free()


class ConnectionTests(TestCase):
    """Connections on real sockets."""

    async def test_nothing_is_left(self) -> None:
        """A connection that is lost is gone at once, with all that was not sent: nothing has to look for it."""

        class Endless:
            async def Down(self, request: BytesValue, call: Any) -> AsyncIterator[bytes]:
                while True:
                    yield bytes(600_000)

        dispatcher = Anybody()
        dispatcher.register(ECHO, Endless())
        factory = GrpcFactory(dispatcher, lambda transport: PULLER, reactor)
        admission = Admission(100, 100)
        door = AdmittingFactory(PortFactory(factory, Factory(), reactor), admission, reactor)
        port = reactor.listenTCP(0, door, interface="127.0.0.1")
        self.addCleanup(port.stopListening)
        names = {"GrpcProtocol", "_Chooser", "Connection", "Sender", "Stream", "UnaryExchange", "Server"}

        def there() -> set[int]:
            return {id(each) for each in gc.get_objects() if type(each).__name__ in names}

        gc.collect()
        before = there()
        gc.disable()
        self.addCleanup(gc.enable)
        fields = (*wire.REQUEST[:2], (":path", "/test.Echo/Down"), *wire.REQUEST[3:])
        clients = []
        for number in range(5):
            clients.append(socket.create_connection(("127.0.0.1", port.getHost().port)))
            clients[-1].sendall(wire.PREFACE + settings((4, 2**31 - 1)) + window_update(0, 2**31 - 1 - 65_535))
            clients[-1].sendall(wire.request(1, fields=fields) + frame(wire.DATA, 1, 1, value(b"")))
            if number == 4:
                clients[-1].sendall(frame(wire.DATA, 0, 99))
        while admission.connections < 5 or len(factory.connections) < 4:
            await deferLater(reactor, 0.01)
        for client in clients:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            client.close()
        while admission.connections:
            await deferLater(reactor, 0.01)
        await deferLater(reactor, 0)
        self.assertEqual(there() - before, set())
