"""Each type of frame: what RFC 9113, section 6, asks of a server when a client is wrong, or unusual."""

from __future__ import annotations

import struct

from hpack import Encoder

from artifactserver.rpc.http2 import (
    DataReceived,
    ErrorCode,
    GoAwayReceived,
    PingAcknowledged,
    RequestReceived,
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


class DataTests(Cases):
    """Section 6.1."""

    def test_on_stream_zero(self) -> None:
        """DATA belongs to a stream."""
        self.assert_connection_error(ErrorCode.PROTOCOL_ERROR, frame(DATA, 0, 0, b"x"))

    def test_on_idle_stream(self) -> None:
        """DATA cannot open a stream."""
        self.assert_connection_error(ErrorCode.PROTOCOL_ERROR, frame(DATA, 0, 1, b"x"))

    def test_after_the_end(self) -> None:
        """DATA after END_STREAM costs that call, and no other."""
        self.assert_stream_error(ErrorCode.STREAM_CLOSED, 1, request(1, end=True), frame(DATA, 0, 1, b"x"))

    def test_after_everything(self) -> None:
        """DATA on a stream whose response has ended too is a mistake that cannot be a matter of timing."""
        self.peer.send(request(1, end=True))
        self.answer(1)
        self.assert_connection_error(ErrorCode.STREAM_CLOSED, frame(DATA, 0, 1, b"x"))

    def test_after_our_reset(self) -> None:
        """DATA that was on its way when we reset its stream is thrown away, and the window for it given back."""
        self.peer.send(request(1))
        self.peer.engine.reset(self.peer.stream(1), ErrorCode.CANCEL)
        for _ in range(8):
            self.peer.send(frame(DATA, 0, 1, bytes(2**20)))
        self.assertEqual(len(self.peer.events), 1)
        self.assertEqual([each.stream for each in self.peer.said(WINDOW_UPDATE)], [0])

    def test_padding(self) -> None:
        """Padding is taken off, however it was cut, and does not end a request early."""
        whole = request(1) + frame(DATA, PADDED | END_STREAM, 1, b"\x05hello" + bytes(5))
        for step in (1, 2, 7, 100):
            peer = Peer()
            for start in range(0, len(whole), step):
                peer.send(whole[start : start + step])
            parts = [each for each in peer.events if isinstance(each, DataReceived)]
            self.assertEqual(b"".join(parts_payload(parts)), b"hello")
            self.assertEqual([each.ended for each in parts].count(True), 1)
            self.assertTrue(parts[-1].ended)

    def test_padding_only(self) -> None:
        """A frame may be all padding."""
        self.peer.send(request(1), frame(DATA, PADDED, 1, b"\x03" + bytes(3)))
        self.assertEqual(len(self.peer.events), 1)

    def test_padding_too_long(self) -> None:
        """Padding as long as the frame is no padding."""
        self.assert_connection_error(ErrorCode.PROTOCOL_ERROR, request(1), frame(DATA, PADDED, 1, b"\x06hello"))

    def test_padded_and_empty(self) -> None:
        """A padded frame has at least the length of its padding."""
        self.assert_connection_error(ErrorCode.FRAME_SIZE_ERROR, request(1), frame(DATA, PADDED, 1))

    def test_payload_flows(self) -> None:
        """What has come of a frame is handed on before the rest has."""
        whole = frame(DATA, END_STREAM, 1, bytes(100_000))
        self.peer.send(request(1), whole[:50_000])
        event = self.peer.events[-1]
        assert isinstance(event, DataReceived)
        self.assertEqual((len(event.payload), event.ended), (50_000 - 9, False))

    def test_small_parts_do_not_keep_large_buffers(self) -> None:
        """A few bytes among many are a copy; most of a buffer is a view of it."""
        self.peer.send(request(1), frame(0xBE, payload=bytes(100_000)), frame(DATA, 0, 1, bytes(17_000)))
        self.assertIsInstance(self.peer.events[-1].payload, bytes)  # type: ignore[union-attr]
        self.peer.send(frame(DATA, 0, 1, bytes(17_000)))
        self.assertIsInstance(self.peer.events[-1].payload, memoryview)  # type: ignore[union-attr]


def parts_payload(parts: list[DataReceived]) -> list[bytes]:
    return [bytes(part.payload) for part in parts]


class HeadersTests(Cases):
    """Sections 4.3, 5.1, 5.1.1, 6.2 and 6.10."""

    def test_request(self) -> None:
        """A request is told with its head, and whether there is a body."""
        self.peer.send(request(1), request(3, end=True))
        first, second = self.peer.events
        assert isinstance(first, RequestReceived) and isinstance(second, RequestReceived)
        self.assertEqual((first.head.method, first.head.path, first.ended), (b"POST", b"/test.Service/Method", False))
        self.assertTrue(second.ended)

    def test_on_stream_zero(self) -> None:
        """HEADERS belong to a stream."""
        self.assert_connection_error(ErrorCode.PROTOCOL_ERROR, request(0))

    def test_priority_and_padding(self) -> None:
        """Priority fields and padding in HEADERS are taken off."""
        payload = b"\x04" + bytes(5) + block(*REQUEST) + bytes(4)
        self.peer.send(frame(HEADERS, END_HEADERS | PADDED | PRIORITY_FLAG, 1, payload))
        self.assertIsInstance(self.peer.events[-1], RequestReceived)

    def test_bad_padding(self) -> None:
        """Padding longer than the frame, and frames too short for their fields, are refused with the right code."""
        cases = [
            (PADDED, b"\x05abc", ErrorCode.PROTOCOL_ERROR),
            (PADDED, b"", ErrorCode.FRAME_SIZE_ERROR),
            (PRIORITY_FLAG, bytes(4), ErrorCode.FRAME_SIZE_ERROR),
            (PADDED | PRIORITY_FLAG, b"\x01" + bytes(5), ErrorCode.PROTOCOL_ERROR),
        ]
        for flags, payload, code in cases:
            self.assert_connection_error(code, frame(HEADERS, END_HEADERS | flags, 1, payload), peer=Peer())

    def test_continuation(self) -> None:
        """A header block may be spread over frames, END_STREAM being said in the first."""
        whole = block(*REQUEST)
        self.peer.send(
            frame(HEADERS, END_STREAM, 1, whole[:3]),
            frame(CONTINUATION, 0, 1, whole[3:7]),
            frame(CONTINUATION, 0, 1),
            frame(CONTINUATION, END_HEADERS, 1, whole[7:]),
        )
        event = self.peer.events[-1]
        assert isinstance(event, RequestReceived)
        self.assertTrue(event.ended)

    def test_nothing_comes_between(self) -> None:
        """Within a header block no other frame may come, known or not, nor one of another stream."""
        for other in (frame(PING, payload=bytes(8)), frame(0xBE), frame(DATA, 0, 1), request(3)):
            self.assert_connection_error(
                ErrorCode.PROTOCOL_ERROR, frame(HEADERS, 0, 1, block(*REQUEST)), other, peer=Peer()
            )
        self.assert_connection_error(
            ErrorCode.PROTOCOL_ERROR, frame(HEADERS, 0, 1), frame(CONTINUATION, END_HEADERS, 3), peer=Peer()
        )

    def test_continuation_of_nothing(self) -> None:
        """CONTINUATION has something to continue."""
        self.assert_connection_error(ErrorCode.PROTOCOL_ERROR, request(1), frame(CONTINUATION, END_HEADERS, 1))

    def test_trailers(self) -> None:
        """Trailers end a request."""
        self.peer.send(request(1), frame(HEADERS, END_HEADERS | END_STREAM, 1, block(("a", "b"))))
        event = self.peer.events[-1]
        assert isinstance(event, DataReceived)
        self.assertEqual((event.payload, event.ended), (b"", True))

    def test_bad_trailers(self) -> None:
        """Trailers that do not end the request, or have pseudo-headers, cost that call."""
        for flags, fields in ((END_HEADERS, (("a", "b"),)), (END_HEADERS | END_STREAM, ((":path", "/"),))):
            self.peer = Peer()
            self.assert_stream_error(ErrorCode.PROTOCOL_ERROR, 1, request(1), frame(HEADERS, flags, 1, block(*fields)))

    def test_undecodable(self) -> None:
        """A header block that HPACK cannot decode costs the connection: its state is lost."""
        for bad in (
            b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff",
            b"\x80",
            b"\xc0",
            b"\x00\x05a",
            b"\x3f\xff\xff\x03",
        ):
            self.assert_connection_error(ErrorCode.COMPRESSION_ERROR, frame(HEADERS, 5, 1, bad), peer=Peer())

    def test_refused_headers_still_count(self) -> None:
        """A request that is refused leaves its entries in the header table, which later ones rely on."""
        peer = self.peer
        encoder = Encoder()
        bad = encoder.encode([*REQUEST, ("Bad", "name"), ("x-later", "value")])
        good = encoder.encode([*REQUEST, ("x-later", "value")])
        peer.send(frame(HEADERS, 5, 1, bad), frame(HEADERS, 5, 3, good))
        event = peer.events[-1]
        assert isinstance(event, RequestReceived)
        self.assertIn((b"x-later", b"value"), event.head.fields)


class PriorityTests(Cases):
    """Section 6.3: deprecated, and still to be parsed."""

    def test_ignored(self) -> None:
        """Priorities change nothing, on streams of any state."""
        self.peer.send(frame(PRIORITY, 0, 1, bytes(5)), request(1), frame(PRIORITY, 0, 1, bytes(5)))
        self.assertEqual(len(self.peer.events), 1)
        self.assertEqual(self.peer.frames(), [])

    def test_on_stream_zero(self) -> None:
        """A priority belongs to a stream."""
        self.assert_connection_error(ErrorCode.PROTOCOL_ERROR, frame(PRIORITY, 0, 0, bytes(5)))

    def test_wrong_size(self) -> None:
        """PRIORITY of another size than five bytes costs its stream, or the connection if there is no stream yet."""
        self.assert_stream_error(ErrorCode.FRAME_SIZE_ERROR, 1, request(1), frame(PRIORITY, 0, 1, bytes(4)))
        self.assert_connection_error(ErrorCode.FRAME_SIZE_ERROR, frame(PRIORITY, 0, 901, bytes(4)))


class ResetTests(Cases):
    """Section 6.4."""

    def test_reset(self) -> None:
        """A client may give up a call, with any code."""
        self.peer.send(request(1), frame(RST_STREAM, 0, 1, struct.pack(">L", 8)))
        event = self.peer.events[-1]
        assert isinstance(event, StreamReset)
        self.assertEqual((event.stream.id, event.code), (1, ErrorCode.CANCEL))
        self.peer.send(request(3), frame(RST_STREAM, 0, 3, struct.pack(">L", 12345)))
        self.assertEqual(self.peer.events[-1].code, 12345)  # type: ignore[union-attr]
        self.assertEqual(self.peer.frames(), [])

    def test_on_closed_stream(self) -> None:
        """RST_STREAM for a call that is over already is nothing to speak of."""
        self.peer.send(request(1, end=True))
        self.answer(1)
        self.assertEqual(self.peer.send(frame(RST_STREAM, 0, 1, bytes(4))), [])
        self.assertEqual(self.peer.frames(), [])

    def test_faults(self) -> None:
        """RST_STREAM on stream 0, on a stream that was never opened, or of another size is refused."""
        for stream, payload, code in (
            (0, bytes(4), ErrorCode.PROTOCOL_ERROR),
            (1, bytes(4), ErrorCode.PROTOCOL_ERROR),
            (1, bytes(3), ErrorCode.FRAME_SIZE_ERROR),
        ):
            self.assert_connection_error(code, frame(RST_STREAM, 0, stream, payload), peer=Peer())


class SettingsTests(Cases):
    """Section 6.5."""

    def test_acknowledged(self) -> None:
        """Every SETTINGS frame is acknowledged once, those in mid-connection and unknown settings included."""
        self.peer.send(settings(), settings((4, 100), (0xFFFF, 7)), settings((1, 0), (3, 0), (6, 10)))
        self.assertEqual([(each.kind, each.flags) for each in self.peer.frames()], [(SETTINGS, ACK)] * 3)

    def test_values(self) -> None:
        """Values that are not allowed are refused with the code that the RFC names."""
        for name, value, code in (
            (2, 2, ErrorCode.PROTOCOL_ERROR),
            (4, 2**31, ErrorCode.FLOW_CONTROL_ERROR),
            (5, 16383, ErrorCode.PROTOCOL_ERROR),
            (5, 2**24, ErrorCode.PROTOCOL_ERROR),
        ):
            self.assert_connection_error(code, settings((name, value)), peer=Peer())

    def test_edges(self) -> None:
        """Values at the edge of what is allowed are accepted."""
        self.peer.send(settings((2, 0), (2, 1), (4, 2**31 - 1), (4, 0), (5, 16384), (5, 2**24 - 1)))
        self.assertEqual([each.flags for each in self.peer.frames()], [ACK])

    def test_faults(self) -> None:
        """SETTINGS on a stream, of a strange size, or an acknowledgement with a payload is refused."""
        for flags, stream, payload, code in (
            (0, 1, b"", ErrorCode.PROTOCOL_ERROR),
            (0, 0, bytes(5), ErrorCode.FRAME_SIZE_ERROR),
            (ACK, 0, bytes(6), ErrorCode.FRAME_SIZE_ERROR),
        ):
            self.assert_connection_error(code, frame(SETTINGS, flags, stream, payload), peer=Peer())


class PushPromiseTests(Cases):
    """Section 6.6."""

    def test_push_promise(self) -> None:
        """A client cannot push."""
        self.assert_connection_error(ErrorCode.PROTOCOL_ERROR, frame(PUSH_PROMISE, END_HEADERS, 1, bytes(8)))


class PingTests(Cases):
    """Section 6.7."""

    def test_answered(self) -> None:
        """A PING is answered with its own payload."""
        self.peer.send(frame(PING, payload=b"12345678"), frame(PING, 0xFE, payload=bytes(8)))
        answers = [(each.kind, each.flags, each.payload) for each in self.peer.frames()]
        self.assertEqual(answers, [(PING, ACK, b"12345678"), (PING, ACK, bytes(8))])

    def test_acknowledgement(self) -> None:
        """The answer to a PING of ours is told, and not answered."""
        self.peer.send(frame(PING, ACK, payload=b"12345678"))
        self.assertEqual(self.peer.events, [PingAcknowledged(b"12345678")])
        self.assertEqual(self.peer.frames(), [])

    def test_faults(self) -> None:
        """PING on a stream, or of another size than eight bytes, is refused."""
        self.assert_connection_error(ErrorCode.PROTOCOL_ERROR, frame(PING, 0, 1, bytes(8)))
        self.assert_connection_error(ErrorCode.FRAME_SIZE_ERROR, frame(PING, 0, 0, bytes(7)), peer=Peer())


class GoAwayTests(Cases):
    """Section 6.8."""

    def test_from_the_peer(self) -> None:
        """A client that goes away is let finish what it has begun."""
        self.peer.send(request(1), frame(GOAWAY, payload=bytes(8) + b"debug"), frame(DATA, END_STREAM, 1, b"x"))
        self.assertEqual(self.peer.events[1], GoAwayReceived(ErrorCode.NO_ERROR))
        self.assertIsInstance(self.peer.events[2], DataReceived)

    def test_faults(self) -> None:
        """GOAWAY on a stream, or without its fields, is refused."""
        self.assert_connection_error(ErrorCode.PROTOCOL_ERROR, frame(GOAWAY, 0, 1, bytes(8)))
        self.assert_connection_error(ErrorCode.FRAME_SIZE_ERROR, frame(GOAWAY, 0, 0, bytes(7)), peer=Peer())

    def test_ours_in_two_steps(self) -> None:
        """Going away, we first let all come that is on its way, then say what the last was; later calls are ignored."""
        self.peer.send(request(1))
        self.peer.engine.announce_goaway()
        self.peer.send(request(3))
        self.peer.engine.goaway()
        self.peer.engine.goaway()
        last = [int.from_bytes(each.payload[:4], "big") for each in self.peer.said(GOAWAY)]
        self.assertEqual(last, [2**31 - 1, 3])
        self.assertEqual(self.peer.send(request(5), frame(DATA, 0, 5, b"x"), frame(DATA, END_STREAM, 5)), [])
        self.peer.send(frame(DATA, END_STREAM, 3, b"x"))
        self.assertIsInstance(self.peer.events[-1], DataReceived)


class WindowUpdateTests(Cases):
    """Section 6.9."""

    def test_faults(self) -> None:
        """WINDOW_UPDATE of 0, of another size, or on a stream that was never opened is refused."""
        self.assert_connection_error(ErrorCode.PROTOCOL_ERROR, window_update(0, 0))
        self.assert_connection_error(ErrorCode.FRAME_SIZE_ERROR, frame(WINDOW_UPDATE, 0, 0, bytes(5)), peer=Peer())
        self.assert_connection_error(ErrorCode.PROTOCOL_ERROR, window_update(1, 1), peer=Peer())

    def test_zero_on_a_stream(self) -> None:
        """WINDOW_UPDATE of 0 on a stream costs that stream."""
        self.assert_stream_error(ErrorCode.PROTOCOL_ERROR, 1, request(1), window_update(1, 0))

    def test_on_a_closed_stream(self) -> None:
        """WINDOW_UPDATE may arrive late."""
        self.peer.send(request(1), frame(RST_STREAM, 0, 1, bytes(4)), window_update(1, 5))
        self.assertEqual(self.peer.frames(), [])

    def test_overflow(self) -> None:
        """A window beyond 2**31 - 1 costs the stream, or the connection."""
        self.assert_stream_error(ErrorCode.FLOW_CONTROL_ERROR, 1, request(1), window_update(1, 2**31 - 65535))
        self.assert_connection_error(ErrorCode.FLOW_CONTROL_ERROR, window_update(0, 2**31 - 65535))

    def test_overflow_by_settings(self) -> None:
        """An initial window that makes an open stream's overflow costs the connection."""
        self.peer.send(request(1), window_update(1, 1))
        self.assert_connection_error(ErrorCode.FLOW_CONTROL_ERROR, settings((4, 2**31 - 1)))
