"""Flow control: windows in both directions, and what leaves first (RFC 9113, sections 5.2, 6.5.3 and 6.9)."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from artifactserver.rpc.http2 import ConnectionFailed, DataReceived, ErrorCode, Limits, Misuse, Stream
from artifactserver.rpc.http2.sending import PIECE, TURN
from tests.http2_cases import HEAD, TAIL
from tests.http2_peer import (
    ACK,
    DATA,
    END_STREAM,
    HEADERS,
    PING,
    REQUEST,
    RST_STREAM,
    SETTINGS,
    WINDOW_UPDATE,
    Frame,
    Peer,
    block,
    frame,
    parse,
    request,
    settings,
    window_update,
)

SMALL = Limits(stream_window=4096, connection_window=16384, message_bytes=1024)


class ReceivingTests(SynchronousTestCase):
    """What a client may send."""

    def test_stream_window(self) -> None:
        """More data than a stream's window costs the call."""
        peer = Peer(SMALL)
        peer.send(request(1), frame(DATA, 0, 1, bytes(4096)))
        self.assertEqual(peer.resets(), [])
        peer.send(frame(DATA, 0, 1, bytes(1)))
        self.assertEqual(peer.resets(), [(1, ErrorCode.FLOW_CONTROL_ERROR)])

    def test_connection_window(self) -> None:
        """More data than the connection's window costs the connection."""
        peer = Peer(Limits(connection_window=100_000))
        for number in (1, 3):
            peer.send(request(number), frame(DATA, 0, number, bytes(50_000)))
        self.assertEqual(peer.frames(), [])
        event = peer.send(frame(DATA, 0, 3, b"x"))[-1]
        self.assertIsInstance(event, ConnectionFailed)
        self.assertEqual(peer.goaway_code(), ErrorCode.FLOW_CONTROL_ERROR)

    def test_padding_counts(self) -> None:
        """Padding takes window, and is given back at once."""
        peer = Peer(SMALL)
        peer.send(request(1))
        for _ in range(100):
            peer.send(frame(DATA, 8, 1, b"\xff" + bytes(255)))
            peer.frames()
        self.assertEqual(peer.stream(1).receive_window + peer.stream(1).unreturned, 4096)
        self.assertEqual(peer.engine._window._outstanding, 0)

    def test_everything_counts_against_the_connection(self) -> None:
        """Data that nobody wants takes the connection's window like any other, and gives it back at once."""
        limits = Limits(stream_window=4096, connection_window=80_000, message_bytes=1024)
        payload = bytes(4000)
        for name, begin in {
            "after our reset": lambda peer: peer.engine.reset(peer.stream(1), ErrorCode.CANCEL),
            "after an early answer": lambda peer: peer.engine.sender.answer(peer.stream(1), HEAD, (b"",), TAIL),
            "after the end": lambda peer: peer.send(frame(DATA, END_STREAM, 1)),
            "after goodbye": lambda peer: (peer.engine.goaway(), peer.send(request(3))),
            "beyond the stream's window": lambda peer: peer.send(frame(DATA, 0, 1, bytes(4097))),
            "beyond the content-length": lambda peer: peer.send(frame(DATA, 0, 1, bytes(4001))),
        }.items():
            peer = Peer(limits)
            peer.send(request(1, fields=(*REQUEST, ("content-length", "4000"))))
            begin(peer)
            peer.frames()
            sent = 0
            for _ in range(100):
                peer.send(frame(DATA, 0, 3 if name == "after goodbye" else 1, payload))
                sent += len(payload)
            back = sum(each.number for each in peer.said(WINDOW_UPDATE) if each.stream == 0)
            self.assertGreater(back, sent - 40_000, name)
            self.assertEqual(peer.engine._window._outstanding, 0, name)
            self.assertFalse(peer.engine.failed, name)

    def test_only_data_counts(self) -> None:
        """Headers, trailers and unknown frames need no window at all."""
        peer = Peer(SMALL)
        peer.send(request(1), frame(DATA, 0, 1, bytes(4096)))
        for number in range(3, 43, 2):
            peer.send(request(number), frame(DATA, 0, number, bytes(3000)))
        self.assertEqual(peer.engine._window._left, 65_535 - 4096 - 20 * 3000)
        peer.send(frame(DATA, 0, 41, bytes(1000)), frame(0xBE, 0, 1, bytes(10_000)), request(43))
        peer.send(frame(HEADERS, 5, 1, block(("trailer", "x" * 3000))))
        self.assertEqual(peer.engine._window._left, 439)
        self.assertEqual(peer.frames(), [])

    def test_given_back_when_consumed(self) -> None:
        """Window is given back as data is consumed, and not before, in few large steps."""
        peer = Peer(SMALL)
        peer.send(request(1), frame(DATA, 0, 1, bytes(4000)))
        self.assertEqual(peer.frames(), [])
        for _ in range(40):
            peer.engine.release_stream(peer.stream(1), 100)
        updates = peer.frames()
        self.assertTrue(1 <= len(updates) <= 4)
        self.assertEqual({each.stream for each in updates}, {1})
        self.assertGreater(sum(each.number for each in updates), 3000)

    def test_connection_window_given_back(self) -> None:
        """The same holds for the connection's window."""
        peer = Peer(Limits())
        peer.send(request(1))
        for _ in range(9):
            peer.send(frame(DATA, 0, 1, bytes(800_000)))
        self.assertEqual(peer.frames(), [])
        for _ in range(9):
            peer.engine.release(800_000)
            peer.engine.release_stream(peer.stream(1), 800_000)
        said = [(each.kind, each.stream) for each in peer.frames()]
        self.assertLessEqual(len(said), 4)
        self.assertEqual({stream for _, stream in said}, {1} | ({0} if (WINDOW_UPDATE, 0) in said else set()))

    def test_retaken(self) -> None:
        """What was given back and then has to be kept after all is made up for by giving back less."""
        peer = Peer(Limits(connection_window=100_000))
        peer.send(request(1), frame(DATA, 0, 1, bytes(60_000)))
        peer.engine.release(60_000)
        self.assertEqual([each.number for each in peer.said(WINDOW_UPDATE)], [60_000])
        peer.engine.retake(60_000)
        peer.send(frame(DATA, 0, 1, bytes(50_000)))
        peer.engine.release(50_000)
        self.assertEqual(peer.said(WINDOW_UPDATE), [])
        peer.engine.release(60_000)
        self.assertEqual([each.number for each in peer.said(WINDOW_UPDATE)], [50_000])

    def test_small_parts_are_copied(self) -> None:
        """Data that may have to wait keeps no buffer alive that is more than twice as large."""
        peer = Peer()
        peer.send(request(1))
        for size in (100, 20_000, 60_000):
            for more in (0, 15_000, 100_000):
                parts = [frame(DATA, 0, 1, bytes(size)), frame(DATA, 0, 1, bytes(more))]
                for event in peer.send(*parts)[:1]:
                    assert isinstance(event, DataReceived)
                    kept = memoryview(getattr(event.payload, "obj", event.payload)).nbytes
                    self.assertLessEqual(kept, 2 * size + 100)

    def test_nothing_for_a_request_that_has_ended(self) -> None:
        """A stream whose request has ended needs no window."""
        peer = Peer(SMALL)
        peer.send(request(1), frame(DATA, END_STREAM, 1, bytes(4000)))
        peer.engine.release_stream(peer.stream(1), 4000)
        self.assertEqual(peer.frames(), [])

    def test_before_our_settings_are_read(self) -> None:
        """Until a client has acknowledged our SETTINGS, it may use the window that HTTP/2 starts with."""
        peer = Peer(SMALL, greet=False)
        peer.send(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", settings(), request(1), frame(DATA, 0, 1, bytes(10_000)))
        self.assertEqual([each.kind for each in peer.frames()], [SETTINGS, SETTINGS])
        peer.send(frame(SETTINGS, ACK), request(3), frame(DATA, 0, 3, bytes(4097)))
        self.assertEqual(peer.resets(), [(3, ErrorCode.FLOW_CONTROL_ERROR)])

    def test_empty_data_needs_no_window(self) -> None:
        """A request can be ended with empty DATA when its window is used up, or below zero since we made it smaller."""
        peer = Peer(SMALL, greet=False)
        peer.send(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", settings(), request(1), frame(DATA, 0, 1, bytes(10_000)))
        peer.send(frame(SETTINGS, ACK), request(3), frame(DATA, 0, 3, bytes(4096)))
        self.assertEqual((peer.stream(1).receive_window, peer.stream(3).receive_window), (4096 - 10_000, 0))
        for number in (1, 3):
            (event,) = peer.send(frame(DATA, END_STREAM, number))
            assert isinstance(event, DataReceived)
            self.assertTrue(event.ended)
        self.assertEqual(peer.resets(), [])

    def test_releasing_too_much(self) -> None:
        """Giving back what was never received is a mistake of ours, and says so."""
        with self.assertRaises(Misuse):
            Peer().engine.release(1)


class SendingTests(SynchronousTestCase):
    """What a client is sent."""

    def setUp(self) -> None:
        self.peer = Peer()
        self.sender = self.peer.engine.sender

    def open(self, number: int, *, end: bool = True) -> Stream:
        self.peer.send(request(number, end=end))
        stream: Stream = self.peer.stream(number)
        return stream

    def sizes(self, frames: list[Frame]) -> list[tuple[int, int]]:
        return [(each.stream, len(each.payload)) for each in frames if each.kind == DATA]

    def test_answer_in_one_piece(self) -> None:
        """A small answer leaves as one piece: headers, data and trailers."""
        self.sender.answer(self.open(1), HEAD, (b"prefix", b"message"), TAIL)
        head, body, tail = parse(self.sender.take())
        self.assertEqual((head.kind, head.flags, head.payload), (HEADERS, 4, HEAD))
        self.assertEqual((body.kind, body.flags, body.payload), (DATA, 0, b"prefixmessage"))
        self.assertEqual((tail.kind, tail.flags, tail.payload), (HEADERS, 5, TAIL))
        self.assertEqual(self.peer.engine.streams, {})

    def test_early_answer(self) -> None:
        """An answer before the end of the request is followed by RST_STREAM with NO_ERROR."""
        self.sender.answer(self.open(1, end=False), HEAD, (b"x",), TAIL)
        last = self.peer.frames()[-1]
        self.assertEqual((last.kind, last.number), (RST_STREAM, ErrorCode.NO_ERROR))

    def test_stream_window(self) -> None:
        """No more is sent on a stream than the client is ready for, and trailers wait for the data."""
        stream = self.open(1)
        self.peer.send(settings((4, 10)))
        self.sender.answer(stream, HEAD, (b"0123456789abcdef",), TAIL)
        frames = self.peer.frames()
        self.assertEqual([(each.kind, each.payload) for each in frames[1:]], [(HEADERS, HEAD), (DATA, b"0123456789")])
        self.peer.send(window_update(1, 3))
        self.assertEqual(self.sizes(self.peer.frames()), [(1, 3)])
        self.peer.send(window_update(1, 100))
        self.assertEqual([each.payload for each in self.peer.frames()], [b"def", TAIL])

    def test_connection_window(self) -> None:
        """No more is sent in all than the client is ready for."""
        for number in (1, 3):
            stream = self.open(number)
            self.sender.data(stream, bytes(60_000))
        self.assertEqual(sum(size for _, size in self.sizes(self.peer.frames())), 65_535)
        self.peer.send(window_update(0, 1000))
        self.assertEqual(sum(size for _, size in self.sizes(self.peer.frames())), 1000)

    def test_first_windows(self) -> None:
        """Until a client says otherwise, each stream and the connection may be sent 65,535 bytes."""
        stream = self.open(1)
        self.sender.data(stream, bytes(70_000))
        self.assertEqual(sum(size for _, size in self.sizes(self.peer.frames())), 65_535)
        self.peer.send(window_update(0, 1))
        self.assertEqual(self.peer.frames(), [])
        self.peer.send(window_update(1, 2))
        self.assertEqual(self.sizes(self.peer.frames()), [(1, 1)])

    def test_headers_need_no_window(self) -> None:
        """Only data waits for a window: headers, trailers and an empty answer do not."""
        self.peer.send(settings((4, 0)), request(1, end=True), request(3, end=True), request(5, end=True))
        self.peer.frames()
        self.sender.answer(self.peer.stream(1), HEAD, (b"",), TAIL)
        self.sender.headers(self.peer.stream(3), HEAD)
        self.sender.finish(self.peer.stream(3), TAIL)
        self.sender.headers(self.peer.stream(5), TAIL, end=True)
        said = [(each.kind, each.stream, each.payload) for each in self.peer.frames() if each.kind != DATA]
        self.assertEqual([payload for _, stream, payload in said if stream == 1], [HEAD, TAIL])
        self.assertEqual([payload for _, stream, payload in said if stream == 3], [HEAD, TAIL])
        self.assertEqual([payload for _, stream, payload in said if stream == 5], [TAIL])

    def test_answers_heed_every_bound(self) -> None:
        """An answer that fits its stream's window still waits for the connection's, and is cut to the frame size."""
        self.peer.send(settings((4, 2**20)), request(1, end=True), request(3, end=True), request(5, end=True))
        self.peer.frames()
        self.sender.answer(self.peer.stream(1), HEAD, (bytes(30_000),), TAIL)
        self.assertEqual(self.sizes(self.peer.frames()), [(1, 16_384), (1, 30_000 - 16_384)])
        self.peer.send(settings((5, 2**20)))
        self.sender.answer(self.peer.stream(3), HEAD, (bytes(40_000),), TAIL)
        self.assertEqual(self.sizes(self.peer.frames()), [(3, 35_535)])
        self.sender.headers(self.peer.stream(5), HEAD)
        self.sender.data(self.peer.stream(5), b"x")
        self.assertEqual(self.peer.frames()[0].kind, HEADERS)
        self.peer.send(window_update(0, 5000))
        self.assertEqual(self.sizes(self.peer.frames()), [(3, 4465), (5, 1)])

    def test_later_streams(self) -> None:
        """A new initial window holds for streams that come later too, and not for the connection."""
        self.peer.send(settings((4, 100_000)))
        self.sender.data(self.open(1), bytes(100_000))
        self.assertEqual(sum(size for _, size in self.sizes(self.peer.frames())), 65_535)
        self.peer.send(settings((4, 10)), window_update(0, 100_000))
        self.sender.data(self.open(3), bytes(100))
        self.assertEqual(self.sizes(self.peer.frames()), [(3, 10)])

    def test_growing_window(self) -> None:
        """A larger initial window sets free what waits on open streams."""
        self.peer.send(settings((4, 10)))
        self.sender.data(self.open(1), bytes(100))
        self.assertEqual(self.sizes(self.peer.frames()), [(1, 10)])
        self.peer.send(settings((4, 30)))
        self.assertEqual(self.sizes(self.peer.frames()), [(1, 20)])

    def test_read_while_blocked(self) -> None:
        """While the transport takes no more, what a client says is still read and acted on."""
        stream = self.open(1)
        self.sender.data(stream, bytes(100_000))
        self.sender.blocked = True
        self.peer.send(window_update(1, 50_000), window_update(0, 50_000), settings((5, 2**20)))
        self.assertEqual((stream.send_window, self.sender.window), (115_535, 115_535))
        self.peer.send(frame(RST_STREAM, 0, 1, bytes(4)))
        self.assertEqual(self.sender.owed, 0)

    def test_shrinking_window(self) -> None:
        """A client may make its windows smaller, even below zero, while data waits."""
        stream = self.open(1)
        self.sender.data(stream, bytes(70_000))
        self.peer.frames()
        self.peer.send(settings((4, 1000)), window_update(0, 100_000))
        self.assertEqual(stream.send_window, 1000 - 65_535)
        self.assertEqual(self.sizes(self.peer.frames()), [])
        self.peer.send(window_update(1, 65_535))
        self.assertEqual(self.sizes(self.peer.frames()), [(1, 1000)])

    def test_acknowledgement_first(self) -> None:
        """The acknowledgement of SETTINGS leaves before data that relies on them."""
        self.peer.send(settings((4, 0)))
        self.peer.frames()
        stream = self.open(1)
        self.sender.data(stream, bytes(1000))
        self.peer.send(settings((4, 1000)))
        frames = self.peer.frames()
        self.assertEqual([each.kind for each in frames], [SETTINGS, DATA])

    def test_frame_size(self) -> None:
        """Frames are as large as the client accepts, and no larger."""
        stream = self.open(1)
        self.sender.data(stream, bytes(40_000))
        self.assertEqual(self.sizes(self.peer.frames()), [(1, 16_384), (1, 16_384), (1, 7232)])
        self.peer.send(settings((4, 2**24), (5, 2**20)), window_update(0, 2**24), window_update(1, 2**24))
        self.peer.frames()
        self.sender.data(stream, bytes(500_000))
        self.assertEqual(self.sizes(self.peer.frames()), [(1, PIECE), (1, 500_000 - PIECE)])

    def test_content_survives_cutting(self) -> None:
        """However data was handed in and cut, the client gets the same bytes."""
        self.peer.send(settings((4, 2**30), (5, 20_000)), window_update(0, 2**30))
        self.peer.frames()
        content = bytes(range(256)) * 1000
        stream = self.open(1)
        for start, stop in ((0, 1), (1, 100), (100, 100), (100, 90_000), (90_000, 256_000)):
            self.sender.data(stream, content[start:stop])
        self.sender.finish(stream, TAIL)
        got = b"".join(each.payload for each in self.peer.frames() if each.kind == DATA)
        self.assertEqual(got, content)

    def test_turns(self) -> None:
        """Streams with much to send take turns, and none waits for another to be done."""
        self.peer.send(settings((4, 2**30), (5, 2**24 - 1)), window_update(0, 2**30))
        self.peer.frames()
        for number in (1, 3, 5):
            self.sender.data(self.open(number), bytes(4 * TURN))
        piece = self.sizes(parse(self.sender.take()))
        self.assertEqual([stream for stream, _ in piece], [1, 3, 5, 1])
        self.assertEqual({size for _, size in piece}, {TURN})

    def test_blocked(self) -> None:
        """While the transport wants no more, answers wait, and control frames alone are in line."""
        self.sender.blocked = True
        self.sender.answer(self.open(1), HEAD, (b"message",), TAIL)
        self.assertEqual(self.sender.owed, 7)
        self.sender.blocked = False
        self.assertEqual([each.kind for each in self.peer.frames()], [HEADERS, DATA, HEADERS])
        self.assertEqual(self.sender.owed, 0)

    def test_reset_drops_data(self) -> None:
        """When a client gives up a call, what waits for it goes, and nothing more is sent on that stream."""
        stream = self.open(1)
        self.sender.data(stream, bytes(100_000))
        self.peer.frames()
        self.peer.send(frame(RST_STREAM, 0, 1, bytes(4)), window_update(0, 100_000))
        self.assertEqual(self.sender.owed, 0)
        self.assertEqual(self.peer.frames(), [])

    def test_told_when_drained(self) -> None:
        """Who asked for it learns when most of what waited has been taken."""
        stream = self.open(1)
        self.sender.data(stream, bytes(70_000))
        stream.wake_below = 5000
        self.peer.frames()
        self.assertEqual(self.sender.drained, [stream])

    def test_pings_overtake_data(self) -> None:
        """A PING is answered before data that waits."""
        self.peer.send(settings((4, 2**30)), window_update(0, 2**30))
        self.sender.data(self.open(1), bytes(10 * PIECE))
        self.sender.take()
        self.peer.send(frame(PING, payload=bytes(8)))
        self.assertEqual(parse(self.sender.take())[0].kind, PING)

    def test_misuse(self) -> None:
        """Sending after the end is a mistake of ours, and says so."""
        stream = self.open(1)
        self.sender.answer(stream, HEAD, (b"",), TAIL)
        for wrong in (
            lambda: self.sender.headers(stream, HEAD),
            lambda: self.sender.data(stream, b"x"),
            lambda: self.sender.finish(stream, TAIL),
            lambda: self.sender.answer(stream, HEAD, (b"",), TAIL),
        ):
            self.assertRaises(Misuse, wrong)
