"""Calls to every service over a store in memory: whatever messages a client sends, each call is answered.

Input: one call after another, each as a byte that names the method, a byte of flags, a byte that says how many
messages there are, and the messages, each with two bytes of length.  A digest in a message may be that of `CONTENT`,
which is there, and which the seeds name.
"""

from __future__ import annotations

import gzip
import struct
from typing import Any

from hpack import Decoder, Encoder
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.logger import capturedLogs
from twisted.python.failure import Failure

from artifactserver.access import METHODS, Caller, main_port
from artifactserver.rpc.dispatch import Dispatcher
from artifactserver.rpc.exchange import _OUR_FAULT
from artifactserver.rpc.http2 import PREFACE, ErrorCode, Limits
from artifactserver.rpc.http2 import frames as wire
from artifactserver.rpc.transport import GrpcFactory, GrpcProtocol
from artifactserver.services import register_all
from artifactserver.store.digest import Digest
from fuzz.reading import Input
from tests.memory_store import MemoryStore

#: The methods, by number.
PATHS = sorted(METHODS)
CONTENT = b"what is there"

#: Flags: the messages are compressed; the client goes away before the end; the messages come one by one.
GZIP, GONE, ONE_BY_ONE = 1, 2, 4

#: So that a few bytes are a large blob, and a few digests a long list.
_BOUNDS = {
    "/google.bytestream.ByteStream/Write": {"gathered_bytes": 8, "piece_bytes": 5},
    "/build.bazel.remote.execution.v2.ContentAddressableStorage/FindMissingBlobs": {"slice": 2},
}

_GREETING = PREFACE + wire.settings_frame({wire.SETTINGS_INITIAL_WINDOW_SIZE: 2**20}) + wire.SETTINGS_ACK
_CALLER = Caller("peer", main_port(enable_push=True))


def run(data: bytes) -> None:
    """Make the calls."""
    given = Input(data)
    with capturedLogs() as logged:
        server = Server()
        while given and server.number < 20:
            server.call(given)
        server.close()
    for event in logged:
        failure = event.get("log_failure")
        if isinstance(failure, Failure):
            failure.raiseException()


class Server:
    """A server with one client, in memory.

    :ivar number: the stream of the next call.
    """

    def __init__(self) -> None:
        self.clock = Clock()
        self.store = MemoryStore(self.clock.seconds, max_blob_size=2**30)
        self.store.add(Digest.of(CONTENT), CONTENT)
        dispatcher = Dispatcher()
        register_all(dispatcher, self.store, self.clock)
        for path, bounds in _BOUNDS.items():
            method = dispatcher.find(path)
            assert method is not None and method.handler is not None
            vars(method.handler.__self__).update(bounds)  # type: ignore[attr-defined]
        self.factory = GrpcFactory(dispatcher, lambda transport: _CALLER, self.clock, Limits())
        protocol = self.factory.buildProtocol(None)
        assert protocol is not None
        self.protocol: GrpcProtocol = protocol
        self.transport: Any = StringTransport()
        self.protocol.makeConnection(self.transport)
        self.protocol.dataReceived(_GREETING)
        self.number = 1

    def call(self, given: Input) -> None:
        """Make one call, and see that it comes to an end."""
        path = PATHS[given.number() % len(PATHS)]
        flags = given.number()
        messages = [given.piece() for _ in range(given.number() % 8)]
        stream, self.number = self.number, self.number + 2
        self.transport.clear()
        parts = [wire.headers_frame(stream, _block(path, "gzip" if flags & GZIP else "identity"), False)]
        parts += [_data(stream, message, bool(flags & GZIP)) for message in messages]
        if flags & GONE:
            parts.append(wire.reset_frame(stream, ErrorCode.CANCEL))
        else:
            parts.append(wire.frame_header(0, wire.END_STREAM, stream))
        for part in parts if flags & ONE_BY_ONE else [b"".join(parts)]:
            self.protocol.dataReceived(part)
        for _ in range(10):
            self.clock.advance(0)
        engine = self.protocol.engine
        assert not engine.failed
        if not flags & GONE and path.endswith("/Watch") and stream in engine.streams:
            self.protocol.dataReceived(wire.reset_frame(stream, ErrorCode.CANCEL))
        elif not flags & GONE:
            assert _ends(self.transport.value(), stream), path
        assert stream not in engine.streams, path
        assert not self.store.readers and not any(self.store.uploads.values())
        assert engine.sender.owed == 0 and self.protocol.held == 0
        self.protocol.dataReceived(wire.window_update_frame(0, 2**20) if engine.sender.window < 2**24 else b"")

    def close(self) -> None:
        """Nothing is left when the client has gone."""
        self.protocol.connectionLost()
        assert not self.clock.getDelayedCalls()
        assert self.factory.ledger.held == 0


def _block(path: str, encoding: str) -> bytes:
    fields = [
        (":method", "POST"),
        (":scheme", "http"),
        (":path", path),
        ("content-type", "application/grpc"),
        ("grpc-encoding", encoding),
        ("grpc-timeout", "1S"),
    ]
    block: bytes = Encoder().encode([(*field, True) for field in fields], huffman=False)
    return block


def _data(stream: int, message: bytes, compressed: bool) -> bytes:
    if compressed:
        message = gzip.compress(message, 1)
    payload = struct.pack(">BL", compressed, len(message)) + message
    return wire.frame_header(len(payload) << 8, 0, stream) + payload


def _ends(out: bytes, stream: int) -> bool:
    """Whether the response is whole, and does not say that the server failed."""
    decoder = Decoder()
    ended = False
    position = 0
    while position < len(out):
        word, flags, number = wire.read_frame_header(out, position)
        start = position + wire.FRAME_HEADER
        position = start + (word >> 8)
        if word & 0xFF == wire.HEADERS and number == stream:
            fields = dict(decoder.decode(out[start:position], raw=True))
            assert fields.get(b"grpc-message", b"") != _OUR_FAULT.encode()
            ended = ended or bool(flags & wire.END_STREAM)
    return ended
