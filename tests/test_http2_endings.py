"""How streams and connections end before their time: RFC 9113, sections 5.4, 6.8, 7 and 8.7."""

from __future__ import annotations

import struct

from hpack import Encoder

from artifactserver.rpc.http2 import (
    ConnectionFailed,
    DataReceived,
    ErrorCode,
    GoAwayReceived,
    RequestReceived,
    StreamReset,
)
from tests.http2_cases import HEAD, TAIL, Cases
from tests.http2_peer import (
    CONTINUATION,
    DATA,
    END_HEADERS,
    END_STREAM,
    GOAWAY,
    HEADERS,
    PING,
    REQUEST,
    RST_STREAM,
    WINDOW_UPDATE,
    Peer,
    block,
    frame,
    request,
    settings,
    window_update,
)

#: Any frame that ends the connection, with PROTOCOL_ERROR.
FATAL = settings((2, 9))


def last_streams(peer: Peer) -> list[int]:
    """The last stream that each GOAWAY of the server names."""
    return [int.from_bytes(each.payload[:4], "big") for each in peer.said(GOAWAY)]


class ConnectionErrorTests(Cases):
    """Section 5.4.1."""

    def test_everything_ends(self) -> None:
        """Every call in flight is told, what waits for them is not sent, and GOAWAY is the last word."""
        self.peer.send(request(1), request(3, end=True), request(5))
        self.peer.engine.sender.data(self.peer.stream(3), bytes(100_000))
        self.peer.frames()
        events = self.peer.send(FATAL)
        self.assertEqual([event.stream.id for event in events if isinstance(event, StreamReset)], [1, 3, 5])
        self.assertEqual(events[-1], ConnectionFailed(ErrorCode.PROTOCOL_ERROR, "ENABLE_PUSH of 9"))
        self.assertEqual([each.kind for each in self.peer.frames()], [GOAWAY])
        self.assertEqual(self.peer.send(window_update(0, 2**20), frame(PING, payload=bytes(8)), FATAL), [])
        self.assertEqual(self.peer.frames(), [])

    def test_what_came_before(self) -> None:
        """What came before the mistake counts, what came behind it does not, though all came in one piece."""
        self.peer.send(frame(PING, payload=b"answered"), request(1), FATAL, request(3), frame(PING, payload=bytes(8)))
        told = [type(event) for event in self.peer.events]
        self.assertEqual(told, [RequestReceived, StreamReset, ConnectionFailed])
        ping, goaway = self.peer.frames()
        self.assertEqual((ping.kind, ping.payload), (PING, b"answered"))
        self.assertEqual(int.from_bytes(goaway.payload[:4], "big"), 1)

    def test_reason(self) -> None:
        """GOAWAY says what was wrong, for whoever has to find the mistake."""
        self.peer.send(FATAL)
        (goaway,) = self.peer.said(GOAWAY)
        self.assertEqual(goaway.payload[8:], b"ENABLE_PUSH of 9")

    def test_last_stream(self) -> None:
        """GOAWAY names the last stream that may have been acted on: 0 if there was none."""
        self.peer.send(FATAL)
        self.assertEqual(last_streams(self.peer), [0])
        peer = Peer()
        peer.send(request(1), request(7), frame(RST_STREAM, 0, 7, bytes(4)), FATAL)
        self.assertEqual(last_streams(peer), [7])


class StreamErrorTests(Cases):
    """Section 5.4.2."""

    def test_others_go_on(self) -> None:
        """Whatever costs a stream, a call beside it goes on up and down, and later ones are taken."""
        cases = {
            "malformed request": frame(HEADERS, END_HEADERS, 3, block(*REQUEST, ("Bad", "name"))),
            "malformed trailers": request(3) + frame(HEADERS, END_HEADERS | END_STREAM, 3, block(("Bad", "name"))),
            "too short": request(3, fields=(*REQUEST, ("content-length", "5"))) + frame(DATA, END_STREAM, 3, b"four"),
            "after the end": request(3, end=True) + frame(DATA, 0, 3, b"x"),
            "no increment": request(3) + window_update(3, 0),
            "too much window": request(3) + window_update(3, 2**31 - 1),
            "too much data": request(3) + frame(DATA, 0, 3, bytes(2**20)) * 8 + frame(DATA, 0, 3, b"x"),
        }
        for name, mistake in cases.items():
            peer = Peer()
            peer.send(request(1), frame(DATA, 0, 1, b"before"))
            peer.engine.sender.data(peer.stream(1), bytes(60_000), bytes(60_000))
            peer.frames()
            peer.send(mistake, window_update(0, 2**20), window_update(1, 2**20))
            peer.send(frame(DATA, END_STREAM, 1, b"after"), request(5))
            said = peer.frames()
            resets = [each.stream for each in said if each.kind == RST_STREAM]
            self.assertEqual(resets, [3], name)
            sent = sum(len(each.payload) for each in said if each.kind == DATA and each.stream == 1)
            self.assertEqual(sent, 120_000 - 65_535, name)
            data, later = peer.events[-2:]
            assert isinstance(data, DataReceived) and isinstance(later, RequestReceived), name
            self.assertEqual((bytes(data.payload), later.stream.id), (b"after", 5), name)

    def test_told_once(self) -> None:
        """Whoever handles the call is told once, and of a request that was malformed from the start not at all."""
        self.peer.send(request(1), window_update(1, 0), window_update(1, 0), frame(DATA, 0, 1, b"x"))
        self.peer.send(request(3, fields=(*REQUEST, ("Bad", "name"))))
        told = [type(event) for event in self.peer.events]
        self.assertEqual(told, [RequestReceived, StreamReset])


class CodeTests(Cases):
    """Section 7."""

    def test_unknown_codes(self) -> None:
        """Codes that nobody has defined are handed on as numbers, and nothing special comes of them."""
        for code in (0xE, 0xABCDEF01, 0xFFFFFFFF):
            peer = Peer()
            peer.send(
                request(1),
                frame(RST_STREAM, 0, 1, struct.pack(">L", code)),
                frame(GOAWAY, payload=struct.pack(">LL", 0, code)),
                request(3),
            )
            _, reset, goaway, later = peer.events
            assert isinstance(reset, StreamReset)
            self.assertEqual((reset.code, goaway), (code, GoAwayReceived(code)))
            self.assertIsInstance(later, RequestReceived)
            self.assertEqual(peer.frames(), [])


class GoodbyeTests(Cases):
    """Sections 6.8 and 8.7: what GOAWAY promises about the streams behind its last one."""

    def setUp(self) -> None:
        super().setUp()
        self.peer.send(request(1))
        self.peer.engine.goaway()

    def test_never_raised(self) -> None:
        """A last stream that was named is not raised by a later GOAWAY, whatever has come meanwhile."""
        self.peer.send(request(3), request(5), FATAL)
        self.assertEqual(last_streams(self.peer), [1, 1])

    def test_lowered(self) -> None:
        """The first GOAWAY of a graceful end names the highest number there is, a later one what was taken."""
        peer = Peer()
        peer.send(request(1))
        peer.engine.announce_goaway()
        peer.send(request(3), FATAL)
        self.assertEqual(last_streams(peer), [2**31 - 1, 3])

    def test_nobody_hears(self) -> None:
        """Of streams behind the last one nobody hears, and nothing is said on them, so they may be tried elsewhere."""
        self.peer.frames()
        events = self.peer.send(request(3), frame(DATA, END_STREAM, 3, b"x"), request(5, fields=(("Bad", "x"),)))
        self.assertEqual((events, self.peer.frames()), ([], []))
        self.assertEqual(set(self.peer.engine.streams), {1})

    def test_headers_still_count(self) -> None:
        """Their headers, CONTINUATION and all, leave their entries in the header table; broken ones break it."""
        encoder = Encoder()
        first = encoder.encode([*REQUEST, ("x-later", "value")])
        trailers = encoder.encode([("x-later", "value")])
        self.peer.send(
            frame(HEADERS, END_STREAM, 3, first[:9]),
            frame(CONTINUATION, END_HEADERS, 3, first[9:]),
            frame(HEADERS, END_HEADERS | END_STREAM, 1, trailers),
        )
        event = self.peer.events[-1]
        assert isinstance(event, DataReceived)
        self.assertTrue(event.ended)
        self.assert_connection_error(ErrorCode.COMPRESSION_ERROR, frame(HEADERS, END_HEADERS, 5, b"\x80"))

    def test_data_still_counts(self) -> None:
        """Their data counts against the connection's window, which is given back."""
        self.peer.send(request(3))
        self.peer.frames()
        for _ in range(8):
            self.peer.send(frame(DATA, 0, 3, bytes(2**20)))
        updates = [(each.stream, each.number) for each in self.peer.said(WINDOW_UPDATE)]
        self.assertEqual(updates, [(0, 8 * 2**20)])

    def test_calls_finish(self) -> None:
        """Calls up to the last one are finished."""
        self.peer.frames()
        self.peer.send(frame(DATA, END_STREAM, 1, b"x"))
        self.assertIsInstance(self.peer.events[-1], DataReceived)
        self.peer.engine.sender.answer(self.peer.stream(1), HEAD, (b"answer",), TAIL)
        self.assertEqual([each.kind for each in self.peer.frames()], [HEADERS, DATA, HEADERS])

    def test_from_the_client(self) -> None:
        """A client that goes away may still start calls: it has only said that it takes none of ours."""
        peer = Peer()
        peer.send(frame(GOAWAY, payload=bytes(8)), request(1), frame(GOAWAY, 0xFF, payload=bytes(8)))
        told = [type(event) for event in peer.events]
        self.assertEqual(told, [GoAwayReceived, RequestReceived, GoAwayReceived])
        self.assertEqual(peer.frames(), [])
