"""The connection's start, and what all frames have in common: RFC 9113, sections 3.4, 4.1, 4.2 and 5.5."""

from __future__ import annotations

import struct

from artifactserver.rpc.http2 import DataReceived, ErrorCode, RequestReceived
from tests.http2_cases import Cases
from tests.http2_peer import (
    ACK,
    CONTINUATION,
    DATA,
    END_HEADERS,
    END_STREAM,
    HEADERS,
    PING,
    PREFACE,
    REQUEST,
    SETTINGS,
    WINDOW_UPDATE,
    Peer,
    block,
    frame,
    request,
)


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

    def test_another_protocol(self) -> None:
        """Somebody who does not speak HTTP/2 is told so in HTTP/2, at the first byte that shows it."""
        self.assert_connection_error(ErrorCode.PROTOCOL_ERROR, b"PRI * HTTP/3", peer=Peer(greet=False))

    def test_settings_must_follow(self) -> None:
        """A client that starts with anything but SETTINGS is refused."""
        for first in (frame(PING, payload=bytes(8)), request(1), frame(SETTINGS, ACK), frame(DATA, 0, 1), frame(99)):
            self.assert_connection_error(ErrorCode.PROTOCOL_ERROR, PREFACE, first, peer=Peer(greet=False))


class FrameTests(Cases):
    """Sections 4.1, 4.2 and 5.5."""

    def test_unknown_frames_are_ignored(self) -> None:
        """Frames of types and with flags that nobody has defined change nothing."""
        self.peer.send(frame(0xBE, 0xFF, 7, b"x" * 1000), frame(0xBE), request(1))
        self.assertEqual(len(self.peer.events), 1)
        self.assertEqual(self.peer.frames(), [])

    def test_reserved_bit_is_ignored(self) -> None:
        """The highest bit of a stream number means nothing."""
        self.peer.send(frame(HEADERS, END_HEADERS | END_STREAM, 1 | 1 << 31, block(*REQUEST)))
        self.assertIsInstance(self.peer.events[-1], RequestReceived)
        self.peer.send(frame(HEADERS, END_HEADERS, 3, block(*REQUEST)), frame(DATA, END_STREAM, 3 | 1 << 31, b"x"))
        self.assertIsInstance(self.peer.events[-1], DataReceived)

    def test_too_large(self) -> None:
        """A frame beyond the size that we announced is refused before its payload has come."""
        for kind, stream in ((DATA, 1), (HEADERS, 1), (SETTINGS, 0), (0xBE, 0), (CONTINUATION, 1)):
            peer = Peer()
            peer.send(request(1))
            header = struct.pack(">L", 2**20 + 1)[1:] + bytes([kind, 0]) + struct.pack(">L", stream)
            self.assert_connection_error(ErrorCode.FRAME_SIZE_ERROR, header, peer=peer)

    def test_as_large_as_announced(self) -> None:
        """A frame of exactly the announced size is welcome."""
        self.peer.send(request(1), frame(DATA, END_STREAM, 1, bytes(2**20)))
        event = self.peer.events[-1]
        assert isinstance(event, DataReceived)
        self.assertEqual(len(event.payload), 2**20)
