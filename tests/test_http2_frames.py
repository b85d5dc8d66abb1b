"""Each type of frame but those of headers: what RFC 9113, section 6, asks of a server when a client is unusual."""

from __future__ import annotations

import struct

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
        """A frame may be all padding, the last one too."""
        self.peer.send(request(1), frame(DATA, PADDED, 1, b"\x03" + bytes(3)))
        self.assertEqual(len(self.peer.events), 1)
        self.peer.send(frame(DATA, PADDED | END_STREAM, 1, b"\xff" + bytes(255)))
        event = self.peer.events[-1]
        assert isinstance(event, DataReceived)
        self.assertEqual((event.payload, event.ended), (b"", True))

    def test_padding_of_anything(self) -> None:
        """What padding consists of is not looked at."""
        self.peer.send(request(1), frame(DATA, PADDED, 1, b"\x03hello\x01\xffx"))
        event = self.peer.events[-1]
        assert isinstance(event, DataReceived)
        self.assertEqual(event.payload, b"hello")

    def test_padding_too_long(self) -> None:
        """Padding as long as the frame is no padding, also on a stream that was reset, and however it was cut."""
        for wrong in (b"\x06hello", b"\x01", b"\xff" + bytes(254)):
            self.assert_connection_error(
                ErrorCode.PROTOCOL_ERROR, request(1), frame(DATA, PADDED, 1, wrong), peer=Peer()
            )
            peer = Peer()
            peer.send(request(1), frame(DATA, PADDED, 1, wrong)[:9])
            peer.engine.reset(peer.stream(1), ErrorCode.CANCEL)
            peer.frames()
            self.assert_connection_error(ErrorCode.PROTOCOL_ERROR, wrong[:1], wrong[1:], peer=peer)
            peer = Peer()
            peer.send(request(1, end=True), frame(DATA, 0, 1))
            peer.frames()
            self.assert_connection_error(ErrorCode.PROTOCOL_ERROR, frame(DATA, PADDED, 1, wrong), peer=peer)

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


class PriorityTests(Cases):
    """Section 6.3: deprecated, and still to be parsed."""

    def test_ignored(self) -> None:
        """Priorities change nothing, on streams of any state."""
        self.peer.send(frame(PRIORITY, 0, 1, bytes(5)), request(1), frame(PRIORITY, 0, 1, bytes(5)))
        self.assertEqual(len(self.peer.events), 1)
        self.assertEqual(self.peer.frames(), [])

    def test_opens_nothing(self) -> None:
        """A priority for a stream that is not open yet does not open it, nor close those below."""
        self.peer.send(frame(PRIORITY, 0, 9, bytes(5)), request(1), request(9))
        self.assertEqual([type(event) for event in self.peer.events], [RequestReceived] * 2)
        self.assertEqual(self.peer.frames(), [])

    def test_of_itself(self) -> None:
        """A stream that depends on itself was a mistake in RFC 7540; what priorities say is not looked at any more."""
        itself = struct.pack(">LB", 1 << 31 | 1, 255)
        self.peer.send(frame(PRIORITY, 0, 1, itself))
        self.peer.send(frame(HEADERS, END_HEADERS | PRIORITY_FLAG, 1, itself + block(*REQUEST)))
        self.assertEqual([type(event) for event in self.peer.events], [RequestReceived])
        self.assertEqual(self.peer.frames(), [])

    def test_on_stream_zero(self) -> None:
        """A priority belongs to a stream."""
        self.assert_connection_error(ErrorCode.PROTOCOL_ERROR, frame(PRIORITY, 0, 0, bytes(5)))

    def test_wrong_size(self) -> None:
        """PRIORITY of another size than five bytes costs its stream, or the connection if there is no stream yet."""
        for number, size in ((1, 0), (3, 4), (5, 6), (7, 1000)):
            wrong = frame(PRIORITY, 0, number, bytes(size))
            self.assert_stream_error(ErrorCode.FRAME_SIZE_ERROR, number, request(number), wrong)
            self.peer = Peer()
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

    def test_unknown(self) -> None:
        """Settings that nobody has defined, and those that ask nothing of a server, change nothing."""
        values = [(name, value) for name in (0, 7, 8, 9, 0xFFFF) for value in (0, 1, 2**32 - 1)]
        self.peer.send(settings(*values, (2, 1), (3, 0), (3, 2**32 - 1), (6, 0), (6, 2**32 - 1)), request(1))
        self.assertEqual([type(event) for event in self.peer.events], [RequestReceived])
        self.assertEqual([(each.kind, each.flags) for each in self.peer.frames()], [(SETTINGS, ACK)])

    def test_values(self) -> None:
        """Values that are not allowed are refused with the code that the RFC names, and not acknowledged."""
        for name, value, code in (
            (2, 2, ErrorCode.PROTOCOL_ERROR),
            (2, 2**32 - 1, ErrorCode.PROTOCOL_ERROR),
            (4, 2**31, ErrorCode.FLOW_CONTROL_ERROR),
            (4, 2**32 - 1, ErrorCode.FLOW_CONTROL_ERROR),
            (5, 0, ErrorCode.PROTOCOL_ERROR),
            (5, 16383, ErrorCode.PROTOCOL_ERROR),
            (5, 2**24, ErrorCode.PROTOCOL_ERROR),
        ):
            for values in ([(name, value)], [(4, 100), (name, value), (name, 16384 if name == 5 else 0)]):
                peer = Peer()
                peer.send(settings(*values))
                self.assertEqual([(each.kind, each.code) for each in peer.frames()], [(GOAWAY, code)])

    def test_in_order(self) -> None:
        """Of a setting that comes twice, the last value counts, and those before it have to be possible too."""
        self.peer.send(request(1), settings((4, 5), (4, 10), (5, 2**20), (5, 20_000)))
        self.peer.frames()
        self.peer.send(settings((4, 20), (4, 15)))
        self.peer.engine.sender.data(self.peer.stream(1), bytes(100))
        self.assertEqual([len(each.payload) for each in self.peer.said(DATA)], [15])
        self.assertEqual(self.peer.engine.sender.frame_bytes, 20_000)
        self.peer.send(window_update(1, 16))
        self.assert_connection_error(ErrorCode.FLOW_CONTROL_ERROR, settings((4, 2**31 - 1), (4, 0)))

    def test_edges(self) -> None:
        """Values at the edge of what is allowed are accepted."""
        self.peer.send(settings((2, 0), (2, 1), (4, 2**31 - 1), (4, 0), (5, 16384), (5, 2**24 - 1)))
        self.assertEqual([each.flags for each in self.peer.frames()], [ACK])

    def test_faults(self) -> None:
        """SETTINGS on a stream, of a strange size, or an acknowledgement with a payload is refused."""
        for flags, stream, payload, code in (
            (0, 1, b"", ErrorCode.PROTOCOL_ERROR),
            (ACK, 1, b"", ErrorCode.PROTOCOL_ERROR),
            (0, 0, bytes(5), ErrorCode.FRAME_SIZE_ERROR),
            (ACK, 0, bytes(6), ErrorCode.FRAME_SIZE_ERROR),
        ):
            self.assert_connection_error(code, frame(SETTINGS, flags, stream, payload), peer=Peer())


class PushPromiseTests(Cases):
    """Section 6.6."""

    def test_push_promise(self) -> None:
        """A client cannot push, on no stream and with no payload."""
        for stream in (0, 1, 2, 3, 5):
            for payload in (b"", bytes(4), struct.pack(">L", 2) + block(*REQUEST)):
                peer = Peer()
                peer.send(request(1), request(3, end=True))
                wrong = frame(PUSH_PROMISE, END_HEADERS, stream, payload)
                self.assert_connection_error(ErrorCode.PROTOCOL_ERROR, wrong, peer=peer)


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
        for flags in (0, ACK):
            self.assert_connection_error(ErrorCode.PROTOCOL_ERROR, frame(PING, flags, 1, bytes(8)), peer=Peer())
            self.assert_connection_error(ErrorCode.FRAME_SIZE_ERROR, frame(PING, flags, 0, bytes(7)), peer=Peer())


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

    def test_reserved_bit(self) -> None:
        """The highest bit of an increment means nothing, and makes no 0 into more."""
        self.peer.send(request(1), window_update(1, 1 << 31 | 5), window_update(0, 1 << 31 | 7))
        self.assertEqual(self.peer.stream(1).send_window, 65_535 + 5)
        self.assertEqual(self.peer.engine.sender.window, 65_535 + 7)
        self.assert_stream_error(ErrorCode.PROTOCOL_ERROR, 1, window_update(1, 1 << 31))
        self.assert_connection_error(ErrorCode.PROTOCOL_ERROR, window_update(0, 1 << 31))

    def test_on_a_closed_stream(self) -> None:
        """WINDOW_UPDATE may arrive late."""
        self.peer.send(request(1), frame(RST_STREAM, 0, 1, bytes(4)), window_update(1, 5))
        self.assertEqual(self.peer.frames(), [])

    def test_as_large_as_can_be(self) -> None:
        """Windows of exactly 2**31 - 1 are in order, and so is as much on top of a window below zero."""
        self.peer.send(request(1), window_update(1, 2**31 - 65_536), window_update(0, 2**31 - 65_536))
        self.peer.send(request(3))
        self.peer.engine.sender.data(self.peer.stream(3), bytes(65_535))
        self.peer.frames()
        self.peer.send(settings((4, 0)), window_update(3, 2**31 - 1))
        self.assertEqual(self.peer.stream(1).send_window, 2**31 - 1 - 65_535)
        self.assertEqual(self.peer.stream(3).send_window, 2**31 - 1 - 65_535)
        self.assertEqual(self.peer.resets(), [])
        self.assertEqual(len(self.peer.events), 2)

    def test_overflow(self) -> None:
        """A window beyond 2**31 - 1 costs the stream, or the connection, in one step or in many."""
        self.assert_stream_error(ErrorCode.FLOW_CONTROL_ERROR, 1, request(1), window_update(1, 2**31 - 65_535))
        steps = [window_update(203, 2**30 - 1)] * 3
        self.assert_stream_error(ErrorCode.FLOW_CONTROL_ERROR, 203, request(203), *steps)
        self.assert_connection_error(ErrorCode.FLOW_CONTROL_ERROR, window_update(0, 2**31 - 65_535))
        steps = [window_update(0, 2**30 - 1)] * 3
        self.assert_connection_error(ErrorCode.FLOW_CONTROL_ERROR, *steps, peer=Peer())

    def test_overflow_by_settings(self) -> None:
        """An initial window that makes an open stream's overflow costs the connection."""
        self.peer.send(request(1), window_update(1, 1))
        self.assert_connection_error(ErrorCode.FLOW_CONTROL_ERROR, settings((4, 2**31 - 1)))
