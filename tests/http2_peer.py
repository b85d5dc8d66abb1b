"""A peer for tests: frames written by hand, and what comes back taken apart, with no code of ours in between."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Any

from hpack import Decoder, Encoder

from artifactserver.rpc.http2 import Connection, ErrorCode, Event, Limits

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"

DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = range(10)
END_STREAM = ACK = 0x1
END_HEADERS = 0x4
PADDED = 0x8
PRIORITY_FLAG = 0x20

#: A name and a value: text, or bytes that need not be any.
Field = tuple[str | bytes, str | bytes]

REQUEST = (
    (":method", "POST"),
    (":scheme", "http"),
    (":path", "/test.Service/Method"),
    (":authority", "localhost"),
    ("te", "trailers"),
    ("content-type", "application/grpc"),
)


def frame(kind: int, flags: int = 0, stream: int = 0, payload: bytes = b"") -> bytes:
    """A frame, whether it is allowed or not."""
    return struct.pack(">L", len(payload))[1:] + bytes([kind, flags]) + struct.pack(">L", stream) + payload


def settings(*values: tuple[int, int]) -> bytes:
    return frame(SETTINGS, payload=b"".join(struct.pack(">HL", *value) for value in values))


def window_update(stream: int, increment: int) -> bytes:
    return frame(WINDOW_UPDATE, stream=stream, payload=struct.pack(">L", increment))


def block(*fields: Field) -> bytes:
    """A header block that leaves the dynamic table alone."""
    encoder = Encoder()
    return encoder.encode([(name, value, True) for name, value in fields], huffman=False)


def request(stream: int, *, end: bool = False, fields: tuple[Field, ...] = REQUEST) -> bytes:
    """HEADERS of a request."""
    return frame(HEADERS, END_HEADERS | end, stream, block(*fields))


def message(content: bytes, flag: int = 0) -> bytes:
    """A gRPC message on the wire."""
    return struct.pack(">BL", flag, len(content)) + content


@dataclass(frozen=True)
class Frame:
    kind: int
    flags: int
    stream: int
    payload: bytes

    @property
    def number(self) -> int:
        """The payload of WINDOW_UPDATE or RST_STREAM."""
        return int.from_bytes(self.payload, "big")

    @property
    def code(self) -> int:
        """The error code of GOAWAY."""
        return int.from_bytes(self.payload[4:8], "big")


def parse(data: bytes) -> list[Frame]:
    """All the frames in ``data``, which has to consist of nothing else."""
    frames = []
    while data:
        length = int.from_bytes(data[:3], "big")
        assert len(data) >= 9 + length, "half a frame"
        stream = int.from_bytes(data[5:9], "big")
        frames.append(Frame(data[3], data[4], stream, data[9 : 9 + length]))
        data = data[9 + length :]
    return frames


class Peer:
    """A client of one engine.

    :ivar engine: the server's side.
    :ivar events: all that it has told so far.
    :ivar now: the time it is told.
    """

    def __init__(self, limits: Limits | None = None, *, greet: bool = True) -> None:
        self.engine = Connection(limits or Limits())
        self.events: list[Event] = []
        self.now = 0.0
        self.engine.start()
        self.decoder = Decoder()
        if greet:
            self.send(PREFACE, settings(), frame(SETTINGS, ACK))
            self.frames()

    def send(self, *data: bytes) -> list[Event]:
        events = self.engine.receive(b"".join(data), self.now)
        self.events += events
        return events

    def frames(self) -> list[Frame]:
        """What the server has to say now."""
        out = []
        while piece := self.engine.sender.take():
            out.append(piece)
        return parse(b"".join(out))

    def said(self, kind: int) -> list[Frame]:
        return [each for each in self.frames() if each.kind == kind]

    def stream(self, number: int) -> Any:
        return self.engine.streams[number]

    def goaway_code(self) -> ErrorCode | None:
        """The code with which the server gave up the connection, if it did."""
        said = self.said(GOAWAY)
        return ErrorCode(said[-1].code) if said else None

    def resets(self) -> list[tuple[int, ErrorCode]]:
        return [(each.stream, ErrorCode(each.number)) for each in self.said(RST_STREAM)]

    def headers(self, frame: Frame) -> dict[str, str]:
        return {str(name): str(value) for name, value in self.decoder.decode(frame.payload)}
