"""The life of a stream: which frame may come when, numbers, and how many at once (RFC 9113, section 5.1)."""

from __future__ import annotations

from collections.abc import Callable

from hpack import Encoder
from twisted.trial.unittest import SynchronousTestCase

from artifactserver.rpc.http2 import ConnectionFailed, ErrorCode, Limits, RequestReceived, StreamReset
from tests.http2_cases import HEAD, TAIL, Cases
from tests.http2_peer import (
    CONTINUATION,
    DATA,
    END_HEADERS,
    END_STREAM,
    GOAWAY,
    HEADERS,
    PRIORITY,
    PUSH_PROMISE,
    REQUEST,
    RST_STREAM,
    Peer,
    block,
    frame,
    request,
    settings,
    window_update,
)

#: The stream on which everything happens; those around it are there to be lower, higher, or our own.
STREAM, HIGHER, OURS = 7, 9, 6

#: A frame of each kind, to be sent on a stream.
EACH: dict[str, Callable[[int], bytes]] = {
    "DATA": lambda stream: frame(DATA, 0, stream, b"x"),
    "DATA, the last": lambda stream: frame(DATA, END_STREAM, stream),
    "HEADERS": lambda stream: request(stream),
    "HEADERS, the last": lambda stream: frame(HEADERS, END_HEADERS | END_STREAM, stream, block(("trailer", "x"))),
    "HEADERS, undecodable": lambda stream: frame(HEADERS, END_HEADERS | END_STREAM, stream, b"\x80"),
    "PRIORITY": lambda stream: frame(PRIORITY, 0, stream, bytes(5)),
    "PRIORITY, too short": lambda stream: frame(PRIORITY, 0, stream, bytes(4)),
    "RST_STREAM": lambda stream: frame(RST_STREAM, 0, stream, bytes(4)),
    "PUSH_PROMISE": lambda stream: frame(PUSH_PROMISE, END_HEADERS, stream, bytes(4) + block(*REQUEST)),
    "WINDOW_UPDATE": lambda stream: window_update(stream, 1),
    "WINDOW_UPDATE of 0": lambda stream: window_update(stream, 0),
    "CONTINUATION": lambda stream: frame(CONTINUATION, END_HEADERS, stream, block(*REQUEST)),
    "unknown": lambda stream: frame(0xBE, 0xFF, stream, b"x"),
}

#: What is the same on every stream.
ALWAYS = {
    "HEADERS, undecodable": "connection COMPRESSION_ERROR",
    "PRIORITY": "ignored",
    "PUSH_PROMISE": "connection PROTOCOL_ERROR",
    "CONTINUATION": "connection PROTOCOL_ERROR",
    "unknown": "ignored",
}

#: What is the same on every stream that is over.
OVER = ALWAYS | {
    "PRIORITY, too short": "connection FRAME_SIZE_ERROR",
    "RST_STREAM": "ignored",
    "WINDOW_UPDATE": "ignored",
    "WINDOW_UPDATE of 0": "ignored",
}


def outcome(peer: Peer, data: bytes) -> str:
    """What comes of ``data``: who pays with which code, the event that it makes, or nothing."""
    events = peer.send(data)
    said = peer.frames()
    if events and isinstance(events[-1], ConnectionFailed):
        assert said[-1].kind == GOAWAY and said[-1].code == events[-1].code
        return f"connection {events[-1].code.name}"
    if said:
        (reset,) = said
        assert (reset.kind, reset.stream) == (RST_STREAM, STREAM), reset
        return f"stream {ErrorCode(reset.number).name}"
    return " ".join(type(event).__name__ for event in events) or "ignored"


class StateTests(SynchronousTestCase):
    """Section 5.1, a test for each state: each kind of frame, and what comes of it."""

    def assert_outcomes(self, begin: Callable[[], Peer], expected: dict[str, str], stream: int = STREAM) -> None:
        self.assertEqual(set(expected), set(EACH))
        outcomes = {kind: outcome(begin(), make(stream)) for kind, make in EACH.items()}
        self.assertEqual(outcomes, expected)

    def open(self) -> Peer:
        peer = Peer()
        peer.send(request(STREAM))
        return peer

    def half_closed(self) -> Peer:
        peer = Peer()
        peer.send(request(STREAM, end=True))
        return peer

    def complete(self) -> Peer:
        peer = self.half_closed()
        peer.engine.sender.answer(peer.stream(STREAM), HEAD, (b"",), TAIL)
        peer.frames()
        return peer

    def test_idle(self) -> None:
        """Only HEADERS open a stream; anything else but what is ignored is the end of the connection."""
        idle = dict.fromkeys(EACH, "connection PROTOCOL_ERROR") | ALWAYS
        idle["HEADERS"] = "RequestReceived"
        idle["HEADERS, the last"] = "stream PROTOCOL_ERROR"  # Trailers make no request.
        idle["PRIORITY, too short"] = "connection FRAME_SIZE_ERROR"
        self.assert_outcomes(Peer, idle)

    def test_ours(self) -> None:
        """Streams with even numbers would be ours to open, and stay idle."""

        def later() -> Peer:
            peer = Peer()
            peer.send(request(HIGHER))
            return peer

        idle = dict.fromkeys(EACH, "connection PROTOCOL_ERROR") | ALWAYS
        idle["HEADERS, undecodable"] = "connection PROTOCOL_ERROR"
        idle["PRIORITY, too short"] = "connection FRAME_SIZE_ERROR"
        self.assert_outcomes(Peer, idle, OURS)
        self.assert_outcomes(later, idle, OURS)

    def test_open(self) -> None:
        """While a request goes on, its body and its trailers may come, and all that concerns the stream itself."""
        self.assert_outcomes(
            self.open,
            ALWAYS
            | {
                "DATA": "DataReceived",
                "DATA, the last": "DataReceived",
                "HEADERS": "stream PROTOCOL_ERROR",
                "HEADERS, the last": "DataReceived",
                "PRIORITY, too short": "stream FRAME_SIZE_ERROR",
                "RST_STREAM": "StreamReset",
                "WINDOW_UPDATE": "ignored",
                "WINDOW_UPDATE of 0": "stream PROTOCOL_ERROR",
            },
        )

    def test_half_closed(self) -> None:
        """After the end of a request its client may open the window, reset the stream, or set its priority."""
        self.assert_outcomes(
            self.half_closed,
            ALWAYS
            | {
                "DATA": "stream STREAM_CLOSED",
                "DATA, the last": "stream STREAM_CLOSED",
                "HEADERS": "stream STREAM_CLOSED",
                "HEADERS, the last": "stream STREAM_CLOSED",
                "PRIORITY, too short": "stream FRAME_SIZE_ERROR",
                "RST_STREAM": "StreamReset",
                "WINDOW_UPDATE": "ignored",
                "WINDOW_UPDATE of 0": "stream PROTOCOL_ERROR",
            },
        )

    def test_complete(self) -> None:
        """When request and response have ended, only what may have crossed with the end is ignored."""
        closed = OVER | {kind: "connection STREAM_CLOSED" for kind in EACH if kind not in OVER}
        closed["HEADERS, undecodable"] = "connection STREAM_CLOSED"
        self.assert_outcomes(self.complete, closed)

    def test_reset_by_the_client(self) -> None:
        """A client that has reset a stream has nothing more to send on it."""

        def begin() -> Peer:
            peer = self.open()
            peer.send(EACH["RST_STREAM"](STREAM))
            return peer

        closed = OVER | {kind: "connection STREAM_CLOSED" for kind in EACH if kind not in OVER}
        closed["HEADERS, undecodable"] = "connection STREAM_CLOSED"
        self.assert_outcomes(begin, closed)

    def test_reset_here(self) -> None:
        """What comes on a stream that we have reset was on its way, and is ignored; what must be read is read."""

        def cancelled() -> Peer:
            peer = self.open()
            peer.engine.reset(peer.stream(STREAM), ErrorCode.CANCEL)
            peer.frames()
            return peer

        def malformed() -> Peer:
            peer = Peer()
            peer.send(request(STREAM, fields=(*REQUEST, ("Bad", "name"))))
            peer.frames()
            return peer

        def refused() -> Peer:
            peer = Peer(Limits(streams_open=1))
            peer.send(request(1), request(STREAM))
            peer.frames()
            return peer

        ignored = OVER | {kind: "ignored" for kind in EACH if kind not in OVER}
        for begin in (cancelled, malformed, refused):
            self.assert_outcomes(begin, ignored)

    def test_answered_early(self) -> None:
        """The same holds when a request was answered before its end, which tells the client to send no more of it."""

        def begin() -> Peer:
            peer = self.open()
            peer.engine.sender.answer(peer.stream(STREAM), HEAD, (b"",), TAIL)
            reset = peer.frames()[-1]
            self.assertEqual((reset.kind, reset.number), (RST_STREAM, ErrorCode.NO_ERROR))
            return peer

        self.assert_outcomes(begin, OVER | {kind: "ignored" for kind in EACH if kind not in OVER})

    def test_came_after_goodbye(self) -> None:
        """Streams that a client opened after the last that we said we would take are ignored in the same way."""

        def begin() -> Peer:
            peer = Peer()
            peer.send(request(1))
            peer.engine.goaway()
            peer.send(request(STREAM))
            peer.frames()
            return peer

        self.assert_outcomes(begin, OVER | {kind: "ignored" for kind in EACH if kind not in OVER})

    def test_passed_over(self) -> None:
        """A stream that was passed over for a higher one is closed, and was never open."""

        def begin() -> Peer:
            peer = Peer()
            peer.send(request(HIGHER))
            return peer

        closed = OVER | {kind: "connection PROTOCOL_ERROR" for kind in EACH if kind.startswith("HEADERS")}
        closed |= {"DATA": "connection STREAM_CLOSED", "DATA, the last": "connection STREAM_CLOSED"}
        self.assert_outcomes(begin, closed)


class ClosedTests(Cases):
    """Section 5.1: what a server still does, and does no more, on a stream that is over."""

    def test_nothing_is_sent(self) -> None:
        """Nothing is sent on a stream after its client has reset it: no data, no trailers, no window."""
        self.peer.send(request(1), request(3))
        stream = self.peer.stream(1)
        self.peer.engine.sender.headers(stream, HEAD)
        self.peer.engine.sender.data(stream, bytes(100_000))
        self.peer.engine.sender.finish(stream, TAIL)
        self.peer.send(frame(DATA, 0, 1, bytes(2**20)) * 8)
        self.peer.frames()
        self.peer.send(frame(RST_STREAM, 0, 1, bytes(4)), window_update(0, 2**20), settings((4, 2**20)))
        self.peer.engine.release_stream(stream, 8 * 2**20)
        self.peer.engine.reset(stream, ErrorCode.CANCEL)
        self.assertEqual([each.stream for each in self.peer.frames()], [0])

    def test_nothing_is_sent_after_our_reset(self) -> None:
        """RST_STREAM is the last frame on a stream."""
        self.peer.send(request(1), frame(DATA, 0, 1, bytes(100)))
        stream = self.peer.stream(1)
        self.peer.engine.sender.data(stream, bytes(100_000))
        self.peer.frames()
        self.peer.send(frame(DATA, END_STREAM, 1) * 2, window_update(1, 2**20), window_update(0, 2**20))
        self.peer.engine.release_stream(stream, 100)
        self.assertEqual([(each.kind, each.stream) for each in self.peer.frames()], [(RST_STREAM, 1)])

    def test_reset_once(self) -> None:
        """However much comes on a stream that was reset here, it is reset once; RST_STREAM is not answered in kind."""
        self.peer.send(request(1, end=True))
        ends = [EACH[kind](1) for kind in ("DATA", "HEADERS", "HEADERS, the last", "WINDOW_UPDATE of 0", "RST_STREAM")]
        self.peer.send(*ends, *ends)
        self.assertEqual(self.peer.resets(), [(1, ErrorCode.STREAM_CLOSED)])
        self.assertEqual([type(event) for event in self.peer.events], [RequestReceived, StreamReset])

    def test_headers_still_count(self) -> None:
        """Headers on a stream that was reset here, CONTINUATION and all, leave their entries in the header table."""
        encoder = Encoder()
        self.peer.send(request(1))
        self.peer.engine.reset(self.peer.stream(1), ErrorCode.CANCEL)
        trailers = encoder.encode([("x-later", "value")])
        self.peer.send(
            frame(HEADERS, END_STREAM, 1, trailers[:3]),
            frame(CONTINUATION, END_HEADERS, 1, trailers[3:]),
            frame(HEADERS, END_HEADERS, 3, encoder.encode([*REQUEST, ("x-later", "value")])),
        )
        event = self.peer.events[-1]
        assert isinstance(event, RequestReceived)
        self.assertIn((b"x-later", b"value"), event.head.fields)


class NumberTests(Cases):
    """Section 5.1.1."""

    def test_even(self) -> None:
        """Clients' streams have odd numbers."""
        self.assert_connection_error(ErrorCode.PROTOCOL_ERROR, request(2))

    def test_zero(self) -> None:
        """Number 0 is the connection itself, and no stream."""
        self.assert_connection_error(ErrorCode.PROTOCOL_ERROR, request(0))

    def test_only_grow(self) -> None:
        """Each new stream has a higher number than those before, whatever has become of them."""
        self.assert_connection_error(ErrorCode.PROTOCOL_ERROR, request(5), request(3))
        peer = Peer()
        peer.send(request(5, fields=(*REQUEST, ("Bad", "name"))))
        self.assert_connection_error(ErrorCode.PROTOCOL_ERROR, request(3), peer=peer)

    def test_may_leave_out(self) -> None:
        """The first need not be 1, nor the next the next; the last there is can be used."""
        self.peer.send(request(3), request(11), request(2**31 - 1, end=True))
        self.assertEqual([type(event) for event in self.peer.events], [RequestReceived] * 3)
        self.answer(2**31 - 1)
        self.assertEqual(set(self.peer.engine.streams), {3, 11})


class ConcurrencyTests(SynchronousTestCase):
    """Section 5.1.2, and section 8.7 on what REFUSED_STREAM promises."""

    def setUp(self) -> None:
        self.peer = Peer(Limits(streams_open=2))

    def test_refused(self) -> None:
        """A stream too many is refused before anybody hears of it, so that its client may try again."""
        self.peer.send(request(1), request(3), request(5), frame(DATA, END_STREAM, 5, b"x"), request(7, end=True))
        self.assertEqual(self.peer.resets(), [(number, ErrorCode.REFUSED_STREAM) for number in (5, 7)])
        self.assertEqual([event.stream.id for event in self.peer.events], [1, 3])  # type: ignore[union-attr]

    def test_half_closed_count(self) -> None:
        """A stream counts until its response is out, also when its request has ended; then there is room again."""
        self.peer.send(settings((4, 1)), request(1, end=True), request(3))
        stream = self.peer.stream(1)
        self.peer.engine.sender.answer(stream, HEAD, (b"answer",), TAIL)
        self.peer.send(request(5))
        self.assertEqual(self.peer.resets(), [(5, ErrorCode.REFUSED_STREAM)])
        self.peer.send(window_update(1, 100))
        self.peer.frames()
        self.peer.send(request(7))
        self.assertEqual(self.peer.resets(), [])

    def test_closed_do_not_count(self) -> None:
        """Streams that either side has reset make room."""
        self.peer.send(request(1), request(3), frame(RST_STREAM, 0, 1, bytes(4)))
        self.peer.engine.reset(self.peer.stream(3), ErrorCode.CANCEL)
        self.peer.frames()
        self.peer.send(request(5), request(7))
        self.assertEqual(self.peer.resets(), [])

    def test_headers_still_count(self) -> None:
        """A request that is refused leaves its entries in the header table."""
        encoder = Encoder()
        fields = [*REQUEST, ("x-later", "value")]
        self.peer.send(request(1), request(3), frame(HEADERS, END_HEADERS, 5, encoder.encode(fields)))
        self.peer.send(frame(RST_STREAM, 0, 1, bytes(4)), frame(HEADERS, END_HEADERS, 7, encoder.encode(fields)))
        event = self.peer.events[-1]
        assert isinstance(event, RequestReceived)
        self.assertIn((b"x-later", b"value"), event.head.fields)
