"""The client's side of gRPC in as little code as loads a server cheaply, and disturbs a measurement little.

It speaks HTTP/2 as gRPC's own library does: the same windows, header blocks that shrink to a few indexed bytes, pings
answered.  It has one call at a time on a connection, and takes nothing but what gRPC servers send.
"""

from __future__ import annotations

import select
import socket
import ssl
import struct
from collections.abc import Sequence
from pathlib import Path

import hpack

from benchmarks.client import Wrong

#: What gRPC's own clients announce.
WINDOW = 4 * 2**20
FRAME = 4 * 2**20

_DATA, _HEADERS, _RST_STREAM, _SETTINGS, _PING, _GOAWAY, _WINDOW_UPDATE = 0, 1, 3, 4, 6, 7, 8
_END_STREAM, _ACK, _END_HEADERS, _PADDED, _PRIORITY = 1, 1, 4, 8, 32
_HEADER_TABLE_SIZE, _INITIAL_WINDOW_SIZE, _MAX_FRAME_SIZE = 1, 4, 5
_DEFAULT_WINDOW = 65535
_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_SETTING = struct.Struct("!HL")

#: How long a server may say nothing.
PATIENCE = 60.0


class Call:
    """One call on its way.

    :ivar window: how much of the request the server is ready for.
    :ivar received: bytes of the response so far, with the five in front of each message.
    :ivar answer: the response itself, for a call that keeps it.
    :ivar status: gRPC's code, once the response has ended.
    """

    __slots__ = ("answer", "id", "received", "status", "window")

    def __init__(self, id: int, window: int, keep: bool) -> None:
        self.id = id
        self.window = window
        self.received = 0
        self.answer = bytearray() if keep else None
        self.status: int | None = None


class Wire:
    """Bytes in, bytes out.

    :ivar out: what is to be sent next; whoever sends it empties it.
    :ivar window: how much request data the server is ready for, on all streams together.
    :ivar frame: how long a frame it takes.
    """

    def __init__(self, authority: str, tls: bool) -> None:
        settings = _SETTING.pack(_INITIAL_WINDOW_SIZE, WINDOW) + _SETTING.pack(_MAX_FRAME_SIZE, FRAME)
        self.out = bytearray(_PREFACE + _frame(_SETTINGS, 0, 0, settings) + _update(0, WINDOW - _DEFAULT_WINDOW))
        self.window = _DEFAULT_WINDOW
        self.frame = 16384
        self._call: Call | None = None
        self._next_id = 1
        self._initial_window = _DEFAULT_WINDOW
        self._taken = 0
        self._buffer = bytearray()
        self._scheme = "https" if tls else "http"
        self._authority = authority
        self._encoder = hpack.Encoder()
        self._decoder = hpack.Decoder()
        # Header blocks there and back, while they mean the same each time: until a dynamic table changes.
        self._requests: dict[str, bytes] = {}
        self._responses: dict[bytes, int | None] = {}

    def begin(self, path: str, keep: bool = False) -> Call:
        """Begin a call; nothing of its request has been sent."""
        call = self._call = Call(self._next_id, self._initial_window, keep)
        self._next_id += 2
        self.out += _frame(_HEADERS, _END_HEADERS, call.id, self._request_block(path))
        return call

    def ask(self, path: str, message: bytes) -> Call:
        """A call whose request is one small message; it waits for no window."""
        call = self.begin(path, keep=True)
        self.out += _frame(_DATA, _END_STREAM, call.id, prefix(len(message)) + message)
        return call

    def data_header(self, call: Call, length: int, end: bool) -> bytes:
        """The head of a DATA frame of so many bytes, which the caller sends behind it; the windows have to allow it."""
        self.window -= length
        call.window -= length
        return _frame_header(_DATA, _END_STREAM if end else 0, call.id, length)

    def receive(self, data: bytes) -> None:
        """Take what the server sent.

        :raises Wrong: if it gives up the call or the connection.
        """
        buffer = self._buffer
        buffer += data
        start = 0
        while len(buffer) - start >= 9:
            end = start + 9 + int.from_bytes(buffer[start : start + 3], "big")
            if len(buffer) < end:
                break
            stream = int.from_bytes(buffer[start + 5 : start + 9], "big")
            self._frame_received(buffer[start + 3], buffer[start + 4], stream, bytes(buffer[start + 9 : end]))
            start = end
        del buffer[:start]

    def _frame_received(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        call = self._call
        if kind == _DATA and call is not None:
            call.received += len(payload)
            if call.answer is not None:
                call.answer += payload
            self._give_back(call, len(payload))
        elif kind == _HEADERS and call is not None:
            if not flags & _END_HEADERS or flags & (_PADDED | _PRIORITY):
                raise Wrong("a server sent headers in a form that this client does not know")
            status = self._status(payload)
            if flags & _END_STREAM:
                call.status = -1 if status is None else status
        elif kind == _SETTINGS and not flags & _ACK:
            self._settings(payload)
        elif kind == _PING and not flags & _ACK:
            self.out += _frame(_PING, _ACK, 0, payload)
        elif kind == _WINDOW_UPDATE:
            increment = int.from_bytes(payload, "big")
            if not stream:
                self.window += increment
            elif call is not None and stream == call.id:
                call.window += increment
        elif kind == _GOAWAY or kind == _RST_STREAM and call is not None and stream == call.id and call.status is None:
            raise Wrong("a server gave up a call or a connection")

    def _give_back(self, call: Call, size: int) -> None:
        self._taken += size
        if self._taken >= WINDOW // 4:
            self.out += _update(0, self._taken) + _update(call.id, self._taken)
            self._taken = 0

    def _settings(self, payload: bytes) -> None:
        for name, value in _SETTING.iter_unpack(payload):
            if name == _HEADER_TABLE_SIZE:
                self._encoder.header_table_size = min(value, 4096)
                self._requests.clear()
            elif name == _MAX_FRAME_SIZE:
                self.frame = value
            elif name == _INITIAL_WINDOW_SIZE:
                if self._call is not None:
                    self._call.window += value - self._initial_window
                self._initial_window = value
        self.out += _frame(_SETTINGS, _ACK, 0, b"")

    def _request_block(self, path: str) -> bytes:
        block = self._requests.get(path)
        if block is None:
            known = list(self._encoder.header_table.dynamic_entries)
            block = self._encoder.encode(
                [
                    (":method", "POST"),
                    (":scheme", self._scheme),
                    (":path", path),
                    (":authority", self._authority),
                    ("te", "trailers"),
                    ("content-type", "application/grpc"),
                    ("user-agent", "benchmark/1"),
                    ("grpc-accept-encoding", "identity"),
                ]
            )
            if known == list(self._encoder.header_table.dynamic_entries):
                self._requests[path] = block
            else:
                self._requests.clear()
        return block

    def _status(self, block: bytes) -> int | None:
        if block in self._responses:
            return self._responses[block]
        known = list(self._decoder.header_table.dynamic_entries)
        fields = dict(self._decoder.decode(block, raw=True))
        status = int(fields[b"grpc-status"]) if b"grpc-status" in fields else None
        if known == list(self._decoder.header_table.dynamic_entries):
            self._responses[block] = status
        else:
            self._responses.clear()
        return status


class Connection:
    """A `Wire` on a socket that blocks.

    :param certificate: of the server, for TLS.
    :param receive_buffer: bytes that the kernel may keep of what was not read yet, if not its default.
    """

    def __init__(self, port: int, certificate: Path | None = None, receive_buffer: int = 0) -> None:
        self.wire = Wire(f"127.0.0.1:{port}", certificate is not None)
        self.socket = socket.socket()
        self.socket.settimeout(PATIENCE)
        if receive_buffer:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self.socket.connect(("127.0.0.1", port))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if certificate is not None:
            self.socket = _context(certificate).wrap_socket(self.socket, server_hostname="127.0.0.1")

    def __enter__(self) -> Connection:
        return self

    def __exit__(self, *error: object) -> None:
        self.socket.close()

    def ask(self, path: str, message: bytes) -> Call:
        """One call, from its beginning to its end."""
        call = self.wire.begin(path, keep=True)
        self.send_message(call, [prefix(len(message)), message], True)
        self.finish(call)
        return call

    def finish(self, call: Call) -> None:
        """Wait for the end of a response.

        :raises Wrong: if the server does not give it.
        """
        while call.status is None:
            self.read()

    def send_message(self, call: Call, pieces: Sequence[bytes | memoryview], end: bool) -> None:
        """Send pieces of a request as the windows allow, and answer the server's pings in between.

        :raises Wrong: if the server does not want all of it.
        """
        if select.select([self.socket], [], [], 0)[0]:
            self.read()
        left = sum(map(len, pieces))
        queue = [memoryview(piece) for piece in pieces]
        while left:
            while (room := min(left, self.wire.window, call.window, self.wire.frame)) <= 0:
                self.read()
            if call.status is not None:
                raise Wrong("a server answered before it had all of the request")
            left -= room
            frame: list[bytes | memoryview] = [self.wire.data_header(call, room, end and not left)]
            while room:
                piece = queue[0]
                frame.append(piece[:room])
                queue[0] = piece[room:]
                room -= len(frame[-1])
                if not queue[0]:
                    del queue[0]
            self._send(frame)

    def read(self, most: int = 256 * 1024) -> int:
        """Wait for bytes of the server; how many came."""
        self.flush()
        data = self.socket.recv(most)
        if not data:
            raise Wrong("a server closed a connection")
        self.wire.receive(data)
        if self.wire.out:
            self.flush()
        return len(data)

    def flush(self) -> None:
        """Send what is in line."""
        if self.wire.out:
            out, self.wire.out = self.wire.out, bytearray()
            self.socket.sendall(out)

    def _send(self, pieces: Sequence[bytes | memoryview]) -> None:
        self.flush()
        if isinstance(self.socket, ssl.SSLSocket):
            self.socket.sendall(b"".join(pieces))
            return
        sent = self.socket.sendmsg(pieces)
        if sent < sum(map(len, pieces)):
            self.socket.sendall(memoryview(b"".join(pieces))[sent:])


_contexts: dict[Path, ssl.SSLContext] = {}


def _context(certificate: Path) -> ssl.SSLContext:
    if certificate not in _contexts:
        context = _contexts[certificate] = ssl.create_default_context(cafile=str(certificate))
        context.set_alpn_protocols(["h2"])
    return _contexts[certificate]


def prefix(length: int) -> bytes:
    """What stands in front of a message of so many bytes."""
    return b"\0" + length.to_bytes(4, "big")


def _frame_header(kind: int, flags: int, stream: int, length: int) -> bytes:
    return length.to_bytes(3, "big") + bytes((kind, flags)) + stream.to_bytes(4, "big")


def _frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return _frame_header(kind, flags, stream, len(payload)) + payload


def _update(stream: int, increment: int) -> bytes:
    return _frame(_WINDOW_UPDATE, 0, stream, increment.to_bytes(4, "big"))
