"""The connection's start, and what all frames have in common: RFC 9113, sections 3.4, 4.1, 4.2 and 5.5."""

from __future__ import annotations

import struct

from artifactserver.rpc.http2 import (
    DataReceived,
    ErrorCode,
    GoAwayReceived,
    PingAcknowledged,
    RequestReceived,
    RequestRefused,
    StreamReset,
)
from tests.http2_cases import Cases
from tests.http2_peer import (
    ACK,
    CONTINUATION,
    DATA,
    END_HEADERS,
    END_STREAM,
    GOAWAY,
    HEADERS,
    PADDED,
    PING,
    PREFACE,
    PRIORITY,
    PRIORITY_FLAG,
    PUSH_PROMISE,
    REQUEST,
    RST_STREAM,
    SETTINGS,
    WINDOW_UPDATE,
    Peer,
    block,
    frame,
    request,
    settings,
    window_update,
)

#: A stream number with the bit that means nothing.
RESERVED = 1 << 31


class PrefaceTests(Cases):
    """RFC 9113, section 3.4."""

    def test_settings_come_first(self) -> None:
        """The first thing a client hears is our SETTINGS, and that its window for the connection is larger."""
        peer = Peer(greet=False)
        first, second = peer.frames()
        self.assertEqual((first.kind, first.flags, first.stream), (SETTINGS, 0, 0))
        values = dict(struct.iter_unpack(">HL", first.payload))
        self.assertEqual(values, {3: 1000, 4: 8 * 2**20, 5: 2**20, 6: 16 * 1024})
        self.assertEqual((second.kind, second.stream, second.number), (WINDOW_UPDATE, 0, 32 * 2**20 - 65535))

    def test_without_waiting(self) -> None:
        """A client need not wait for us: a request may come in one piece with all before it, SETTINGS may be empty."""
        peer = Peer(greet=False)
        self.assertIsInstance(peer.send(PREFACE + settings() + request(1))[-1], RequestReceived)

    def test_ours_before_the_acknowledgement(self) -> None:
        """The client's SETTINGS are acknowledged, behind our own."""
        peer = Peer(greet=False)
        peer.send(PREFACE + settings((4, 100)))
        said = [(each.kind, each.flags) for each in peer.frames()]
        self.assertEqual(said, [(SETTINGS, 0), (WINDOW_UPDATE, 0), (SETTINGS, ACK)])

    def test_another_protocol(self) -> None:
        """Somebody who does not speak HTTP/2 is told so in HTTP/2, at the first byte that shows it."""
        wrong = [PREFACE[:length] + b"?" for length in range(len(PREFACE))]
        for start in (b"PRI * HTTP/3", b"GET / HTTP/1.1\r\n\r\n", settings(), *wrong):
            self.assert_connection_error(ErrorCode.PROTOCOL_ERROR, start, peer=Peer(greet=False))
        peer = Peer(greet=False)
        for byte in PREFACE[:-1]:
            self.assertEqual(peer.send(bytes([byte])), [])
        self.assert_connection_error(ErrorCode.PROTOCOL_ERROR, b"?", peer=peer)

    def test_settings_must_follow(self) -> None:
        """A client that starts with anything but SETTINGS is refused."""
        for first in (
            frame(SETTINGS, ACK),
            frame(DATA, 0, 1),
            request(1),
            frame(PRIORITY, 0, 1, bytes(5)),
            frame(RST_STREAM, 0, 1, bytes(4)),
            frame(PUSH_PROMISE, END_HEADERS, 1, bytes(8)),
            frame(PING, payload=bytes(8)),
            frame(GOAWAY, payload=bytes(8)),
            window_update(0, 1),
            frame(CONTINUATION, END_HEADERS, 1),
            frame(99),
            PREFACE,
        ):
            peer = Peer(greet=False)
            events = peer.send(PREFACE, first, settings(), request(1))
            self.assertEqual(len(events), 1, first)
            self.assertIsNotNone(peer.goaway_code(), first)
        self.assert_connection_error(ErrorCode.PROTOCOL_ERROR, PREFACE, frame(99), peer=Peer(greet=False))


class FormatTests(Cases):
    """Section 4.1, and section 5.5 on what has no meaning here."""

    def test_unknown_types(self) -> None:
        """Frames of types that nobody has defined change nothing, on any stream, whatever is in them."""
        for kind in range(10, 256):
            self.peer.send(frame(kind, 0xFF, kind % 8, bytes(kind)))
        self.peer.send(request(1))
        for stream in (0, 1, 2, 3, 2**31 - 1):
            self.peer.send(frame(0xBE, 0xFF, stream, b"x" * 1000), frame(0xBE, 0, stream))
        self.assertEqual([type(event) for event in self.peer.events], [RequestReceived])
        self.assertEqual(self.peer.frames(), [])

    def test_unknown_flags(self) -> None:
        """Flags that a type of frame does not have mean nothing on it."""
        whole = block(*REQUEST)
        self.peer.send(
            frame(HEADERS, 0xFF & ~(END_STREAM | END_HEADERS | PADDED | PRIORITY_FLAG), 1, whole[:9]),
            frame(CONTINUATION, 0xFF & ~END_HEADERS, 1, whole[9:18]),
            frame(CONTINUATION, 0xFF, 1, whole[18:]),
            frame(DATA, 0xFF & ~(END_STREAM | PADDED), 1, b"x"),
            frame(PRIORITY, 0xFF, 1, bytes(5)),
            frame(WINDOW_UPDATE, 0xFF, 1, struct.pack(">L", 5)),
            frame(SETTINGS, 0xFF & ~ACK, 0, struct.pack(">HL", 4, 100)),
            frame(SETTINGS, 0xFF),
            frame(PING, 0xFF & ~ACK, 0, b"a ping.."),
            frame(PING, 0xFF, 0, b"an ack.."),
            frame(GOAWAY, 0xFF, 0, bytes(8)),
            frame(RST_STREAM, 0xFF, 1, bytes(4)),
        )
        told = [type(event) for event in self.peer.events]
        self.assertEqual(told, [RequestReceived, DataReceived, PingAcknowledged, GoAwayReceived, StreamReset])
        said = [(each.kind, each.flags) for each in self.peer.frames()]
        self.assertEqual(said, [(SETTINGS, ACK), (PING, ACK)])

    def test_reserved_bit(self) -> None:
        """The highest bit of a stream number means nothing, however the frame was cut."""
        whole = b"".join(
            [
                frame(HEADERS, 0, 1 | RESERVED, block(*REQUEST)[:9]),
                frame(CONTINUATION, END_HEADERS, 1 | RESERVED, block(*REQUEST)[9:]),
                frame(DATA, 0, 1 | RESERVED, b"x"),
                frame(PRIORITY, 0, 1 | RESERVED, bytes(5)),
                frame(WINDOW_UPDATE, 0, 1 | RESERVED, struct.pack(">L", 5)),
                frame(WINDOW_UPDATE, 0, RESERVED, struct.pack(">L", 5)),
                frame(SETTINGS, 0, RESERVED),
                frame(PING, 0, RESERVED, bytes(8)),
                frame(GOAWAY, 0, RESERVED, bytes(8)),
                frame(0xBE, 0, 1 | RESERVED, b"x"),
                frame(RST_STREAM, 0, 1 | RESERVED, bytes(4)),
            ]
        )
        for step in (1, 8, 9, 10, len(whole)):
            peer = Peer()
            for start in range(0, len(whole), step):
                peer.send(whole[start : start + step])
            told = [type(event) for event in peer.events]
            self.assertEqual(told, [RequestReceived, DataReceived, GoAwayReceived, StreamReset])
            said = [(each.kind, each.flags) for each in peer.frames()]
            self.assertEqual(said, [(SETTINGS, ACK), (PING, ACK)])


class SizeTests(Cases):
    """Section 4.2."""

    def test_too_large(self) -> None:
        """A frame beyond the size that we announced is refused before its payload has come."""
        for kind in (*range(10), 0xBE):
            peer = Peer()
            peer.send(request(1))
            header = struct.pack(">L", 2**20 + 1)[1:] + bytes([kind, 0]) + struct.pack(">L", kind < 4)
            self.assert_connection_error(ErrorCode.FRAME_SIZE_ERROR, header, peer=peer)

    def test_as_large_as_announced(self) -> None:
        """A frame of exactly the announced size is welcome."""
        self.peer.send(request(1), frame(DATA, END_STREAM, 1, bytes(2**20)))
        event = self.peer.events[-1]
        assert isinstance(event, DataReceived)
        self.assertEqual(len(event.payload), 2**20)

    def test_as_large_as_always(self) -> None:
        """A frame of any type may have the 16 KiB that every implementation takes."""
        size = 2**14
        filling = size - len(block(*REQUEST, ("name", "v" * 9000))) + 9000
        whole = block(*REQUEST, ("name", "v" * filling))
        for kind, *data in (
            (RequestRefused, frame(HEADERS, END_HEADERS, 3, whole)),
            (RequestRefused, frame(HEADERS, 0, 3), frame(CONTINUATION, END_HEADERS, 3, whole)),
            (DataReceived, frame(DATA, 0, 1, bytes(size))),
            (GoAwayReceived, frame(GOAWAY, payload=bytes(size))),
            (None, frame(SETTINGS, payload=struct.pack(">HL", 0xFFFF, 0) * (size // 6))),
            (None, frame(0xBE, payload=bytes(size))),
        ):
            peer = Peer()
            peer.send(request(1))
            told = [type(event) for event in peer.send(*data)]
            self.assertEqual(told, [kind] if kind else [])
            self.assertIsNone(peer.goaway_code())

    def test_too_small_or_too_large_for_its_type(self) -> None:
        """A frame with a form of its own that is shorter or longer is refused, with the same code for all."""
        for kind, stream, good in (
            (RST_STREAM, 1, 4),
            (PING, 0, 8),
            (WINDOW_UPDATE, 0, 4),
            (WINDOW_UPDATE, 1, 4),
        ):
            for size in (0, good - 1, good + 1, 100):
                wrong = frame(kind, 0, stream, b"\1" * size)
                for step in (9, len(wrong)):
                    peer = Peer()
                    peer.send(request(1), wrong[:step])
                    peer.send(wrong[step:])
                    self.assertEqual(peer.goaway_code(), ErrorCode.FRAME_SIZE_ERROR, (kind, size))
        for wrong in (
            frame(GOAWAY),
            frame(GOAWAY, payload=bytes(7)),
            frame(SETTINGS, payload=bytes(1)),
            frame(SETTINGS, payload=bytes(13)),
            frame(DATA, PADDED, 1),
            frame(HEADERS, END_HEADERS | PADDED, 3),
            frame(HEADERS, END_HEADERS | PRIORITY_FLAG, 3, bytes(4)),
            frame(HEADERS, END_HEADERS | PADDED | PRIORITY_FLAG, 3, bytes(5)),
        ):
            peer = Peer()
            peer.send(request(1))
            self.assert_connection_error(ErrorCode.FRAME_SIZE_ERROR, wrong, peer=peer)
