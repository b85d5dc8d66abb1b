"""A service with a method of every shape, made of well-known types, and connections to it in memory."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool
from google.protobuf.wrappers_pb2 import DESCRIPTOR as WRAPPERS
from google.protobuf.wrappers_pb2 import BytesValue, Int64Value
from hpack import Decoder
from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionLost
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.python.failure import Failure

from artifactserver.access import Caller, Refusal
from artifactserver.rpc.dispatch import Call, Dispatcher
from artifactserver.rpc.http2 import Limits
from artifactserver.rpc.status import Code, RpcError
from artifactserver.rpc.transport import GrpcFactory, GrpcProtocol
from tests import http2_peer as wire
from tests.callers import PULLER
from tests.http2_peer import Frame, frame, message, parse, settings

_SHAPES = {
    # name: (streams in, streams out)
    "Unary": (False, False),
    "Down": (False, True),
    "Up": (True, False),
    "Both": (True, True),
    "Missing": (False, False),
    "Forbidden": (False, False),
}


def _describe() -> Any:
    file = descriptor_pb2.FileDescriptorProto(name="tests/echo.proto", package="test", syntax="proto3")
    file.dependency.append(WRAPPERS.name)
    service = file.service.add(name="Echo")
    for name, (streams_in, streams_out) in _SHAPES.items():
        service.method.add(
            name=name,
            input_type=".google.protobuf.BytesValue",
            output_type=".google.protobuf.BytesValue",
            client_streaming=streams_in,
            server_streaming=streams_out,
        )
    pool = descriptor_pool.Default()
    pool.Add(file)
    return pool.FindServiceByName("test.Echo")


ECHO = _describe()


class Anybody(Dispatcher):
    """Everything is allowed but one method.

    :ivar unauthenticated: who calls that one has shown something that is not valid.
    """

    unauthenticated = False

    def refusal(self, caller: Caller, path: str) -> Refusal | None:
        return Refusal(self.unauthenticated, "not for you") if path.endswith("/Forbidden") else None


class Echo:
    """What each method does is up to the test.

    :ivar calls: the calls that were made.
    """

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self.unary: Callable[[bytes], Any] = lambda value: value

    async def Unary(self, request: BytesValue, call: Call) -> BytesValue:
        self.calls.append(call)
        answer = self.unary(request.value)
        if isinstance(answer, Deferred):
            answer = await answer
        return BytesValue(value=answer)

    async def Forbidden(self, request: BytesValue, call: Call) -> BytesValue:
        raise AssertionError("called by somebody who may not")

    async def Down(self, request: BytesValue, call: Call) -> AsyncIterator[BytesValue]:
        """As many messages of as many bytes as the request says."""
        count, size = map(int, request.value.split(b"x"))
        for number in range(count):
            yield BytesValue(value=bytes([number % 256]) * size)

    async def Up(self, requests: AsyncIterator[BytesValue], call: Call) -> BytesValue:
        """How much was received."""
        size = 0
        async for request in requests:
            size += len(request.value)
            if request.value == b"enough":
                break
            if request.value == b"fail":
                raise RpcError(Code.DATA_LOSS, "as you asked")
        return BytesValue(value=b"%d" % size)

    async def Both(self, requests: AsyncIterator[BytesValue], call: Call) -> AsyncIterator[BytesValue]:
        async for request in requests:
            yield request


def value(content: bytes) -> bytes:
    """A message for the service, on the wire."""
    return message(BytesValue(value=content).SerializeToString())


class Wire:
    """A connection to the service in memory, with frames at one end.

    :param implementation: what answers; an `Echo` if it is `None`.
    :param caller: who comes by another port of ``factory``.
    :ivar transport: what the server writes to.
    """

    def __init__(
        self,
        limits: Limits | None = None,
        implementation: Any = None,
        factory: GrpcFactory | None = None,
        caller: Caller | None = None,
    ):
        self.echo = implementation or Echo()
        if factory is None:
            dispatcher = Anybody()
            dispatcher.register(ECHO, self.echo)
            self.clock = Clock()
            factory = GrpcFactory(dispatcher, lambda transport: PULLER, self.clock, limits or Limits())
        assert isinstance(factory.clock, Clock)
        self.clock = factory.clock
        self.factory = factory
        port = factory if caller is None else factory.at(lambda transport: caller)
        protocol: Any = port.buildProtocol(None)
        assert protocol is not None
        self.protocol: GrpcProtocol = protocol
        self.transport = StringTransport()
        self.writes: list[bytes] = []
        write = self.transport.write

        def remember(data: bytes) -> None:
            self.writes.append(data)
            write(data)

        self.transport.write = remember  # type: ignore[method-assign]
        self.protocol.makeConnection(self.transport)
        self.send(wire.PREFACE, settings(), frame(wire.SETTINGS, wire.ACK))
        self.frames()

    def send(self, *data: bytes) -> None:
        self.protocol.dataReceived(b"".join(data))

    def call(self, stream: int, method: str, *bodies: bytes, end: bool = True, **more: str) -> None:
        """Send a request, all in one piece, with messages that hold ``bodies``."""
        self.send(self.request(stream, method, *bodies, end=end, **more))

    def request(self, stream: int, method: str, *bodies: bytes, end: bool = True, **more: str) -> bytes:
        fields = [*wire.REQUEST[:2], (":path", f"/test.Echo/{method}"), *wire.REQUEST[3:]]
        fields += [(name.replace("_", "-"), text) for name, text in more.items()]
        content = b"".join(value(body) for body in bodies)
        size = 2**20
        parts = [content[start : start + size] for start in range(0, len(content), size)] or [b""]
        data = [frame(wire.DATA, int(end and part is parts[-1]), stream, part) for part in parts]
        return wire.request(stream, fields=tuple(fields)) + b"".join(data)

    def frames(self) -> list[Frame]:
        """What the server has sent since the last time."""
        sent = self.transport.value()
        self.transport.clear()
        return parse(sent)

    def statuses(self) -> dict[int, tuple[str, str]]:
        """The status and message of calls that have ended since the last time, by stream."""
        decoder = Decoder()
        found = {}
        for each in self.frames():
            if each.kind == wire.HEADERS and each.flags & wire.END_STREAM:
                fields = {str(name): str(text) for name, text in decoder.decode(each.payload)}
                found[each.stream] = (
                    fields.get("grpc-status", fields.get(":status", "")),
                    fields.get("grpc-message", ""),
                )
        return found

    def lost(self) -> None:
        """The peer is gone."""
        self.protocol.connectionLost(Failure(ConnectionLost()))


__all__ = ["ECHO", "Anybody", "BytesValue", "Echo", "Int64Value", "Wire", "value"]
