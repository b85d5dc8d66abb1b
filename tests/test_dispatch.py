"""gRPC over real sockets, with grpcio as a client that knows nothing of ours."""

from __future__ import annotations

import itertools
import socket
import ssl as stdlib_ssl
import threading
from collections.abc import Callable, Iterator
from typing import Any

import grpc
from google.protobuf.wrappers_pb2 import BytesValue
from twisted.internet import reactor, ssl
from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater
from twisted.internet.threads import deferToThread
from twisted.logger import capturedLogs
from twisted.trial.unittest import SynchronousTestCase, TestCase

from artifactserver.ports.listen import PortFactory
from artifactserver.rpc.dispatch import Call
from artifactserver.rpc.http2 import ErrorCode, Limits
from artifactserver.rpc.status import Code, RpcError
from artifactserver.rpc.transport import GrpcFactory
from artifactserver.store.digest import Digest
from artifactserver.store.interface import BlobMissing
from artifactserver.web.site import not_found_site
from tests import http2_peer as wire
from tests.callers import PULLER
from tests.certificates import server_certificate
from tests.echo_service import ECHO, Anybody, Echo

TIMEOUT = 20.0


class Service(Echo):
    """What the tests below need besides echoes.

    :ivar ended: what handlers have come to their end, and how.
    """

    def __init__(self) -> None:
        super().__init__()
        self.ended: list[str] = []

    async def Unary(self, request: BytesValue, call: Call) -> BytesValue:
        self.calls.append(call)
        wish = request.value
        if wish == b"sleep":
            try:
                await deferLater(reactor, 60)
            finally:
                self.ended.append("woken")
        if wish == b"nap":
            await deferLater(reactor, 0.2)
        if wish == b"fail":
            raise RpcError(Code.NOT_FOUND, "nothing là\n%", [BytesValue(value=b"detail")])
        if wish == b"long":
            raise RpcError(Code.ABORTED, "ü" * 100_000)
        if wish == b"missing":
            raise BlobMissing(Digest.of(b"x"))
        if wish == b"break":
            raise ZeroDivisionError("secret")
        return request


class GrpcioTestCase(TestCase):
    """A server on a socket, and grpcio in threads."""

    timeout = 60
    limits = Limits()

    def setUp(self) -> None:
        self.service = Service()
        dispatcher = Anybody()
        dispatcher.register(ECHO, self.service)
        self.clock: Any = reactor
        clock = self.clock
        self.factory = GrpcFactory(dispatcher, lambda transport: PULLER, clock, self.limits)
        self.site = not_found_site(lambda transport: PULLER, clock)
        self.port = self.listen(PortFactory(self.factory, self.site, clock))
        self.addCleanup(self.port.stopListening)
        self.channel = self.connect([("grpc.enable_http_proxy", 0), ("grpc.use_local_subchannel_pool", 1)])
        self.addCleanup(self.hang_up)

    def listen(self, factory: PortFactory) -> Any:
        return self.clock.listenTCP(0, factory, interface="127.0.0.1")

    def connect(self, options: list[tuple[str, Any]]) -> Any:
        return grpc.insecure_channel(f"127.0.0.1:{self.port.getHost().port}", options=options)

    async def hang_up(self) -> None:
        await deferToThread(self.channel.close)
        while self.factory.connections:
            await deferLater(reactor, 0.01)

    def method(self, name: str) -> Any:
        """A method of the service, to be called in a thread."""
        method = ECHO.methods_by_name.get(name)
        streams_in = method is not None and method.client_streaming
        streams_out = method is not None and method.server_streaming
        shape = ("stream" if streams_in else "unary") + ("_stream" if streams_out else "_unary")
        return getattr(self.channel, shape)(
            f"/test.Echo/{name}",
            request_serializer=lambda content: BytesValue(value=content).SerializeToString(),
            response_deserializer=lambda content: BytesValue.FromString(content).value,
        )

    def run_in_thread(self, work: Callable[[], Any]) -> Deferred[Any]:
        return deferToThread(work)

    async def failure(self, name: str, request: Any, **options: Any) -> Any:
        """The error with which a call ends."""
        options.setdefault("timeout", TIMEOUT)
        method = self.method(name)

        def call() -> Any:
            try:
                answer = method(request, **options)
                return list(answer) if hasattr(answer, "__next__") else answer
            except grpc.RpcError as error:
                return error

        error = await deferToThread(call)
        self.assertIsInstance(error, grpc.RpcError)
        return error


class ClearTests(GrpcioTestCase):
    """Clear text, with prior knowledge."""

    async def test_shapes(self) -> None:
        """All four shapes of calls work."""
        calls: list[tuple[Callable[[], Any], Any]] = [
            (lambda: self.method("Unary")(b"hello", timeout=TIMEOUT), b"hello"),
            (lambda: list(self.method("Down")(b"3x2", timeout=TIMEOUT)), [b"\0\0", b"\1\1", b"\2\2"]),
            (lambda: self.method("Up")(iter([b"ab", b"", b"c"]), timeout=TIMEOUT), b"3"),
            (lambda: list(self.method("Both")(iter([b"x", b"y"]), timeout=TIMEOUT)), [b"x", b"y"]),
        ]
        for call, answer in calls * 3:
            self.assertEqual(await deferToThread(call), answer)

    async def test_conversation(self) -> None:
        """With streams in both directions, each answer comes before the next request is made."""

        def talk() -> list[bytes]:
            turn = threading.Semaphore(1)

            def requests() -> Iterator[bytes]:
                for number in range(20):
                    turn.acquire()
                    yield b"%d" % number

            heard = []
            for answer in self.method("Both")(requests(), timeout=TIMEOUT):
                heard.append(answer)
                turn.release()
            return heard

        self.assertEqual(await deferToThread(talk), [b"%d" % number for number in range(20)])

    async def test_large_messages(self) -> None:
        """Messages of 4 MiB pass in both directions."""
        content = bytes(range(256)) * (4 * 4096 - 1)
        self.assertEqual(await deferToThread(lambda: self.method("Unary")(content, timeout=TIMEOUT)), content)

    async def test_too_large(self) -> None:
        """Larger ones are refused with RESOURCE_EXHAUSTED, and the connection goes on."""
        error = await self.failure("Unary", bytes(6 * 2**20))
        self.assertEqual(error.code(), grpc.StatusCode.RESOURCE_EXHAUSTED)
        self.assertEqual(await deferToThread(lambda: self.method("Unary")(b"x", timeout=TIMEOUT)), b"x")

    async def test_bulk(self) -> None:
        """Many megabytes go up and come down."""
        size = 1_000_000
        up = await deferToThread(lambda: self.method("Up")(itertools.repeat(bytes(size), 40), timeout=TIMEOUT))
        self.assertEqual(up, b"%d" % (40 * size))
        down = await deferToThread(
            lambda: sum(len(each) for each in self.method("Down")(b"40x%d" % size, timeout=TIMEOUT))
        )
        self.assertEqual(down, 40 * size)

    async def test_gzip(self) -> None:
        """A client may compress what it sends."""
        content = b"compressible " * 100_000
        method = self.method("Unary")
        answer = await deferToThread(lambda: method(content, timeout=TIMEOUT, compression=grpc.Compression.Gzip))
        self.assertEqual(answer, content)
        error = await self.failure("Unary", b"x" * 1000, compression=grpc.Compression.Deflate)
        self.assertEqual(error.code(), grpc.StatusCode.UNIMPLEMENTED)

    async def test_metadata(self) -> None:
        """Handlers see a client's metadata, binary values included, and its deadline."""
        sent = (("plain", "value"), ("raw-bin", bytes(range(256))))
        await deferToThread(lambda: self.method("Unary")(b"", timeout=TIMEOUT, metadata=sent))
        await deferToThread(lambda: self.method("Unary")(b""))
        first, second = self.service.calls
        self.assertEqual(first.metadata["plain"], "value")
        self.assertEqual(first.metadata["raw-bin"], bytes(range(256)))
        assert first.deadline is not None
        self.assertLess(abs(first.deadline - self.clock.seconds() - TIMEOUT), 5)
        self.assertIsNone(second.deadline)

    async def test_statuses(self) -> None:
        """Errors arrive with their code, message and details."""
        error = await self.failure("Unary", b"fail")
        self.assertEqual((error.code(), error.details()), (grpc.StatusCode.NOT_FOUND, "nothing là\n%"))
        (details,) = [value for name, value in error.trailing_metadata() if name == "grpc-status-details-bin"]
        self.assertIn(b"type.googleapis.com/google.protobuf.BytesValue", details)
        error = await self.failure("Unary", b"missing")
        self.assertEqual(error.code(), grpc.StatusCode.NOT_FOUND)
        self.assertIn("not in this store", error.details())
        error = await self.failure("Unary", b"long")
        self.assertEqual(error.code(), grpc.StatusCode.ABORTED)
        self.assertTrue(set(error.details()) == {"ü"})
        error = await self.failure("Forbidden", b"")
        self.assertEqual((error.code(), error.details()), (grpc.StatusCode.PERMISSION_DENIED, "not for you"))
        for name in ("Missing", "Unheard"):
            error = await self.failure(name, b"")
            self.assertEqual(error.code(), grpc.StatusCode.UNIMPLEMENTED)

    async def test_our_fault(self) -> None:
        """When a handler breaks, the client learns nothing of the inside, and the log everything, once."""
        with capturedLogs() as events:
            error = await self.failure("Unary", b"break")
        self.assertEqual(error.code(), grpc.StatusCode.INTERNAL)
        self.assertNotIn("secret", error.details())
        failures = [event for event in events if "log_failure" in event]
        self.assertEqual(len(failures), 1)
        self.assertEqual(failures[0]["path"], "/test.Echo/Unary")
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)

    async def test_deadline(self) -> None:
        """A deadline ends the call at both ends."""
        error = await self.failure("Unary", b"sleep", timeout=0.2)
        self.assertEqual(error.code(), grpc.StatusCode.DEADLINE_EXCEEDED)
        await self.until(lambda: self.service.ended == ["woken"])

    async def test_cancel(self) -> None:
        """A client that gives up ends the handler's wait."""
        call = await deferToThread(lambda: self.method("Unary").future(b"sleep"))
        await self.until(lambda: bool(self.service.calls))
        await deferToThread(call.cancel)
        await self.until(lambda: self.service.ended == ["woken"])

    async def test_early_answer(self) -> None:
        """A client that is answered before it has sent everything is content with that."""

        def endless() -> Iterator[bytes]:
            yield b"enough"
            while True:
                yield bytes(100_000)

        answer = await deferToThread(lambda: self.method("Up")(endless(), timeout=TIMEOUT))
        self.assertEqual(answer, b"6")

    async def test_early_error(self) -> None:
        """The same with an error."""

        def endless() -> Iterator[bytes]:
            yield b"fail"
            while True:
                yield bytes(100_000)

        error = await self.failure("Up", endless())
        self.assertEqual((error.code(), error.details()), (grpc.StatusCode.DATA_LOSS, "as you asked"))

    async def test_a_thousand_at_once(self) -> None:
        """A thousand calls at once are all answered."""

        def many() -> list[bytes]:
            method = self.method("Unary")
            futures = [method.future(b"nap", timeout=TIMEOUT) for _ in range(1000)]
            return [future.result() for future in futures]

        self.assertEqual(await deferToThread(many), [b"nap"] * 1000)

    async def test_drain(self) -> None:
        """A server that is shut down lets running calls finish."""
        call = await deferToThread(lambda: self.method("Unary").future(b"nap", timeout=TIMEOUT))
        await self.until(lambda: bool(self.service.calls))
        await self.factory.drain(10)
        self.assertEqual(await deferToThread(call.result), b"nap")

    async def test_drain_with_a_long_call(self) -> None:
        """Calls that do not end within the grace are ended."""
        call = await deferToThread(lambda: self.method("Unary").future(b"sleep", timeout=TIMEOUT))
        await self.until(lambda: bool(self.service.calls))
        await self.factory.drain(0.3)
        self.assertEqual(self.service.ended, ["woken"])
        error = await deferToThread(call.exception)
        self.assertEqual(error.code(), grpc.StatusCode.UNAVAILABLE)

    async def test_fault_really_closes(self) -> None:
        """A client that breaks HTTP/2 is told why, and its connection is closed, though it does not close its end."""

        def talk() -> bytes:
            heard = b""
            with self.raw() as connection:
                connection.settimeout(TIMEOUT)
                connection.sendall(wire.PREFACE + wire.settings() + wire.frame(wire.DATA, 0, 1, b"x") * 1000)
                while piece := connection.recv(65536):
                    heard += piece
            return heard

        last = wire.parse(await deferToThread(talk))[-1]
        self.assertEqual((last.kind, last.code), (wire.GOAWAY, ErrorCode.PROTOCOL_ERROR))
        await self.until(lambda: not self.factory.connections)

    async def test_http1(self) -> None:
        """HTTP/1.1 is answered on the same port."""

        def talk() -> bytes:
            heard = b""
            with self.raw() as connection:
                connection.settimeout(TIMEOUT)
                connection.sendall(b"GET / HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n")
                while piece := connection.recv(65536):
                    heard += piece
            return heard

        self.assertIn(b"HTTP/1.1 404", await deferToThread(talk))

    def raw(self) -> socket.socket:
        """A connection without any protocol, from a thread."""
        return socket.create_connection(("127.0.0.1", self.port.getHost().port))

    async def until(self, true: Callable[[], bool]) -> None:
        for _ in range(500):
            if true():
                return
            await deferLater(reactor, 0.01)
        self.fail("it never came true")


class TlsTests(ClearTests):
    """The same over TLS."""

    def listen(self, factory: PortFactory) -> Any:
        self.certificate = server_certificate()
        pair = ssl.PrivateCertificate.loadPEM(self.certificate.pem + self.certificate.key_pem)
        return self.clock.listenSSL(0, factory, pair.options(), interface="127.0.0.1")

    def connect(self, options: list[tuple[str, Any]]) -> Any:
        credentials = grpc.ssl_channel_credentials(self.certificate.pem)
        return grpc.secure_channel(f"localhost:{self.port.getHost().port}", credentials, options=options)

    def raw(self) -> socket.socket:
        context = stdlib_ssl.create_default_context(cadata=self.certificate.pem.decode())
        return context.wrap_socket(super().raw(), server_hostname="localhost")


class DispatcherTests(SynchronousTestCase):
    """The table of methods."""

    def test_paths(self) -> None:
        """It says what it has, built or not."""
        dispatcher = Anybody()
        dispatcher.register(ECHO, Echo())
        names = {"Unary", "Down", "Up", "Both", "Missing", "Forbidden"}
        self.assertEqual(set(dispatcher.paths()), {f"/test.Echo/{name}" for name in names})
        method = dispatcher.find("/test.Echo/Both")
        assert method is not None
        self.assertEqual((method.streams_in, method.streams_out, method.request), (True, True, BytesValue))

    def test_twice(self) -> None:
        """Two implementations of one service are a mistake."""
        dispatcher = Anybody()
        dispatcher.register(ECHO, Echo())
        self.assertRaises(ValueError, dispatcher.register, ECHO, Echo())
