"""Every bound of the transport, made small, and what happens to who passes it."""

from __future__ import annotations

import struct
import tracemalloc
from dataclasses import fields
from typing import Any

from hpack import Encoder
from twisted.internet.defer import Deferred
from twisted.logger import capturedLogs
from twisted.trial.unittest import SynchronousTestCase

from artifactserver.rpc.http2 import (
    ConnectionFailed,
    ErrorCode,
    Limits,
    RequestReceived,
    RequestRefused,
    StreamReset,
    blocks,
)
from artifactserver.rpc.http2.rates import Allowance
from artifactserver.rpc.ledger import Ledger
from artifactserver.rpc.protocol import CALL_BYTES
from artifactserver.rpc.status import Code
from tests import http2_peer as wire
from tests.echo_service import Wire, value
from tests.http2_peer import REQUEST, Peer, frame, request, settings, window_update


class EngineLimitTests(SynchronousTestCase):
    """Bounds of the HTTP/2 engine."""

    def assert_sent_away(self, peer: Peer, *data: bytes, code: ErrorCode = ErrorCode.ENHANCE_YOUR_CALM) -> None:
        events = peer.send(*data)
        self.assertIsInstance(events[-1], ConnectionFailed)
        self.assertEqual(peer.goaway_code(), code)

    def test_frame_bytes(self) -> None:
        """A frame larger than we announced costs the connection."""
        peer = Peer(Limits(frame_bytes=20_000))
        peer.send(request(1), frame(wire.DATA, 0, 1, bytes(20_000)))
        self.assert_sent_away(peer, frame(wire.DATA, 0, 1, bytes(20_001)), code=ErrorCode.FRAME_SIZE_ERROR)

    def test_control_frame_bytes(self) -> None:
        """SETTINGS and GOAWAY of great length cost the connection before they have come."""
        limits = Limits(control_frame_bytes=60)
        for kind in (wire.SETTINGS, wire.GOAWAY):
            peer = Peer(limits)
            self.assertEqual(peer.send(frame(wire.SETTINGS, payload=struct.pack(">HL", 99, 0) * 10)), [])
            self.assert_sent_away(peer, frame(kind, payload=bytes(66))[:9])

    def test_header_block_bytes(self) -> None:
        """A header block that is too long on the wire costs the connection, in one frame or in many."""
        limits = Limits(header_block_bytes=1000)
        self.assert_sent_away(Peer(limits), frame(wire.HEADERS, 0, 1, bytes(1500)))
        peer = Peer(limits)
        peer.send(frame(wire.HEADERS, 0, 1, bytes(600)))
        self.assert_sent_away(peer, frame(wire.CONTINUATION, 0, 1, bytes(600)))

    def test_header_list_bytes(self) -> None:
        """A request with too much in its headers is answered, and the connection goes on."""
        peer = Peer(Limits(header_list_bytes=1000))
        peer.send(request(1, fields=(*REQUEST, ("x", "y" * 1000))), request(3))
        self.assertIsInstance(peer.events[0], RequestRefused)
        self.assertIsInstance(peer.events[1], RequestReceived)
        line = Wire(Limits(header_list_bytes=1000))
        line.send(request(1, fields=(*REQUEST, ("x", "y" * 1000))))
        self.assertEqual(line.statuses()[1][0], "431")

    def test_header_flood(self) -> None:
        """A client that sends such requests all the time is sent away."""
        peer = Peer(Limits(header_count=20, resets_burst=10))
        huge = (*REQUEST, *[("a", "b")] * 20)
        self.assert_sent_away(peer, *[request(number, fields=huge) for number in range(1, 31, 2)])
        # The one that was too much has not begun, and so does not end.
        refused = {event.stream.id for event in peer.events if isinstance(event, RequestRefused)}
        self.assertEqual({event.stream.id for event in peer.events if isinstance(event, StreamReset)}, refused)

    def test_header_flood_is_short(self) -> None:
        """The more there is to decode of what is too large, in requests or in trailers, the sooner that is."""
        accepted = Encoder().encode(REQUEST)
        for resets in (40, 400):
            for first, last in ((accepted, b""), (b"", accepted)):
                for size in (21, 64, 500):
                    limits = Limits(header_count=20, resets_burst=resets, resets_per_second=1)
                    peer = Peer(limits)
                    many = first + b"\x90" * size
                    decoded = 0
                    number = 1
                    while not peer.engine.failed:
                        # Of the one that was too much, too.
                        decoded += size
                        if last:
                            peer.send(frame(wire.HEADERS, 4, number, last))
                        peer.send(frame(wire.HEADERS, 5, number, many))
                        number += 2
                    self.assertEqual(peer.goaway_code(), ErrorCode.ENHANCE_YOUR_CALM)
                    self.assertGreater(number, 2)
                    self.assertLess(decoded, resets * blocks.FIELDS_PER_RESET + size)

    def test_headers_in_vain(self) -> None:
        """Headers of calls that are over here are decoded and thrown away, and may be sent up to a point."""
        trailers = wire.block(("x", "y"))
        peer = Peer(Limits(chores_burst=10, chores_per_second=1))
        peer.send(request(1))
        peer.engine.reset(peer.stream(1), ErrorCode.CANCEL)
        self.assert_sent_away(peer, *[frame(wire.HEADERS, 5, 1, trailers)] * 20)
        peer = Peer(Limits(chores_burst=10, chores_per_second=1))
        peer.engine.goaway()
        self.assert_sent_away(peer, *[request(number) for number in range(1, 41, 2)])

    def test_header_bomb(self) -> None:
        """A few bytes that stand for a very large header list cost the connection, and no memory."""
        encoder = Encoder()
        first = encoder.encode([*REQUEST, ("x", "y" * 3000)])
        again = encoder.encode([("x", "y" * 3000)])
        self.assertEqual(len(again), 1)
        peer = Peer()
        peer.send(frame(wire.HEADERS, 5, 1, first))
        self.assert_sent_away(peer, frame(wire.HEADERS, 5, 3, again * 10_000), code=ErrorCode.COMPRESSION_ERROR)

    def test_header_count(self) -> None:
        """A request with too many headers is answered, and the connection goes on."""
        peer = Peer(Limits(header_count=20))
        peer.send(request(1, fields=(*REQUEST, *[("a", "b")] * 20)), request(3))
        self.assertEqual([type(event) for event in peer.events], [RequestRefused, RequestReceived])

    def test_header_blocks_cached(self) -> None:
        """A client that never repeats itself does not fill the memory."""
        peer = Peer(Limits(header_blocks_cached=3))
        for number in range(50):
            peer.send(request(2 * number + 1, fields=(*REQUEST, ("n", str(number)))))
        self.assertLessEqual(len(peer.engine._blocks._own), 3)

    def test_header_cache_bytes(self) -> None:
        """Neither does one with headers of a size that few have, whatever they grow to and however they come."""
        encoder = Encoder()
        first = encoder.encode([*REQUEST, ("x", "y" * 3000)])
        self.patch(blocks, "BEGINNINGS_BYTES", 10_000)
        line = Wire(Limits(header_cache_bytes=10_000))
        line.send(frame(wire.HEADERS, 5, 1, first))
        tracemalloc.start()
        self.addCleanup(tracemalloc.stop)
        for number in range(3, 403, 4):
            again = encoder.encode([*REQUEST, *[("x", "y" * 3000)] * (number % 5), ("n", str(number), True)])
            line.send(frame(wire.HEADERS, 5, number, again))
            line.send(request(number + 2, fields=(*REQUEST, ("n", f"{number}" * 500))))
            line.transport.clear()
        self.assertLess(line.protocol.engine._blocks._own_bytes, 10_000)
        line.writes.clear()
        self.assertLess(tracemalloc.get_traced_memory()[0], 50_000)

    def test_header_cache(self) -> None:
        """Requests that are alike are looked at once."""
        peer = Peer(Limits(header_cache_bytes=2000))
        heads = [event.head for event in peer.send(request(1), request(3)) if isinstance(event, RequestReceived)]
        self.assertIs(heads[0], heads[1])

    def test_continuations(self) -> None:
        """A header block in too many frames costs the connection."""
        peer = Peer(Limits(continuations=3))
        peer.send(frame(wire.HEADERS, 0, 1), *[frame(wire.CONTINUATION, 0, 1)] * 3)
        self.assert_sent_away(peer, frame(wire.CONTINUATION, 0, 1))

    def test_streams_open(self) -> None:
        """Calls beyond the number at once are refused so that a client may repeat them, and the others go on."""
        peer = Peer(Limits(streams_open=3))
        peer.send(*[request(number) for number in (1, 3, 5, 7)])
        self.assertEqual(peer.resets(), [(7, ErrorCode.REFUSED_STREAM)])
        peer.send(frame(wire.RST_STREAM, 0, 1, bytes(4)), request(9))
        self.assertEqual(peer.resets(), [])

    def test_rapid_reset(self) -> None:
        """A client that opens and resets calls without end is sent away; what its calls cost is bounded."""
        peer = Peer(Limits(resets_burst=10, resets_per_second=5))
        number = 1
        for _ in range(10):
            peer.send(request(number), frame(wire.RST_STREAM, 0, number, bytes(4)))
            number += 2
        peer.now = 1.0
        for _ in range(5):
            peer.send(request(number), frame(wire.RST_STREAM, 0, number, bytes(4)))
            number += 2
        self.assertIsNone(peer.goaway_code())
        self.assert_sent_away(peer, request(number), frame(wire.RST_STREAM, 0, number, bytes(4)))

    def test_forced_resets(self) -> None:
        """It is the same when a client makes the server do the resetting."""
        peer = Peer(Limits(resets_burst=10))
        bad = (*REQUEST, ("Bad", "x"))
        self.assert_sent_away(peer, *[request(number, fields=bad) for number in range(1, 31, 2)])

    def test_chores(self) -> None:
        """A flood of frames that do nothing costs the connection, whatever they are."""
        for chore in (
            frame(wire.PING, payload=bytes(8)),
            frame(wire.PING, wire.ACK, payload=bytes(8)),
            settings(),
            frame(wire.SETTINGS, wire.ACK),
            frame(wire.PRIORITY, 0, 1, bytes(5)),
            frame(0x99),
            frame(wire.DATA, 0, 1),
            frame(wire.DATA, wire.PADDED, 1, b"\0"),
            frame(wire.GOAWAY, payload=bytes(8)),
        ):
            peer = Peer(Limits(chores_burst=20, chores_per_second=10))
            peer.send(request(1), *[chore] * 15)
            self.assertIsNone(peer.goaway_code(), chore)
            peer.now = 10.0
            peer.send(*[chore] * 20)
            self.assertIsNone(peer.goaway_code(), chore)
            self.assert_sent_away(peer, chore)

    def test_control_frames_queued(self) -> None:
        """A client that asks for answers and does not read them is sent away."""
        peer = Peer(Limits(control_frames_queued=5))
        peer.send(*[frame(wire.PING, payload=bytes(8))] * 4)
        self.assertEqual(len(peer.said(wire.PING)), 4)
        self.assert_sent_away(peer, *[frame(wire.PING, payload=bytes(8))] * 7)

    def test_windows(self) -> None:
        """More data than a window costs the call, or the connection."""
        limits = Limits(stream_window=2000, connection_window=70_000, message_bytes=1000)
        peer = Peer(limits)
        peer.send(request(1), frame(wire.DATA, 0, 1, bytes(2001)))
        self.assertEqual(peer.resets(), [(1, ErrorCode.FLOW_CONTROL_ERROR)])
        peer = Peer(limits)
        peer.send(*[request(number) + frame(wire.DATA, 0, number, bytes(2000)) for number in range(3, 73, 2)])
        self.assertIsNone(peer.goaway_code())
        self.assert_sent_away(peer, request(73), frame(wire.DATA, 0, 73, bytes(1)), code=ErrorCode.FLOW_CONTROL_ERROR)


class CallLimitTests(SynchronousTestCase):
    """Bounds of calls and of what is held for them."""

    def test_message_bytes(self) -> None:
        """A message that is too large is refused, and the connection goes on."""
        line = Wire(Limits(message_bytes=1000))
        line.call(1, "Unary", bytes(1000))
        line.call(3, "Unary", bytes(500))
        statuses = {stream: code for stream, (code, _) in line.statuses().items()}
        self.assertEqual(statuses, {1: str(int(Code.RESOURCE_EXHAUSTED)), 3: "0"})

    def test_batches(self) -> None:
        """A batch of 4 MiB and what it needs besides is accepted as things are."""
        line = Wire()
        line.echo.unary = lambda sent: b"%d" % len(sent)
        line.call(1, "Unary", bytes(4 * 2**20 + 2**19))
        self.assertEqual(line.statuses()[1][0], "0")

    def test_response_bytes_queued(self) -> None:
        """A handler that gives more than its client takes is suspended at the bound."""
        line = Wire(Limits(response_bytes_queued=100_000))
        line.send(settings((4, 0)))
        line.call(1, "Down", b"100x10000")
        self.assertLess(line.protocol.engine.sender.owed, 120_000)

    def test_owed_bytes(self) -> None:
        """While a client has much to read, its further calls wait their turn, and then have it."""
        line = Wire(Limits(owed_bytes=10_000))
        line.echo.unary = lambda sent: bytes(6000)
        line.send(settings((4, 0)))
        for number in range(1, 21, 2):
            line.call(number, "Unary", b"")
        self.assertEqual(len(line.echo.calls), 2)
        self.assertLess(line.protocol.engine.sender.owed, 20_000)
        line.send(settings((4, 10_000)), window_update(0, 2**20))
        self.assertEqual(len(line.statuses()), 10)

    def test_held_bytes(self) -> None:
        """What is held for one connection is bounded: its largest call is given up, and the others go on."""
        line = Wire(Limits(held_bytes=100_000))
        with capturedLogs() as events:
            for number, size in ((1, 30_000), (3, 50_000), (5, 30_000)):
                line.call(number, "Unary", end=False)
                line.send(frame(wire.DATA, 0, number, value(bytes(60_000))[:size]))
            line.clock.advance(0)
        resets = [(each.stream, each.number) for each in line.frames() if each.kind == wire.RST_STREAM]
        self.assertEqual(resets, [(3, ErrorCode.ENHANCE_YOUR_CALM)])
        self.assertEqual(line.protocol.held, 60_000 - 10)
        self.assertEqual(len(events), 1)

    def test_held_answers(self) -> None:
        """Answers that a client does not read are bounded in the same way."""
        line = Wire(Limits(held_bytes=100_000))
        waiting: list[Deferred[bytes]] = []

        def later(_: bytes) -> Deferred[bytes]:
            waiting.append(Deferred())
            return waiting[-1]

        line.echo.unary = later
        line.send(settings((4, 0)))
        for number in range(1, 41, 2):
            line.call(number, "Unary", b"")
        for each in waiting:
            each.callback(bytes(30_000))
        self.assertLessEqual(line.protocol.engine.sender.owed, 100_000)

    def test_held_bytes_in_all(self) -> None:
        """What is held for all connections is bounded: who holds the most has to give, not who comes last."""
        greedy = Wire(Limits(held_bytes_in_all=100_000))
        modest = Wire(factory=greedy.factory)
        for number in (1, 3, 5):
            greedy.call(number, "Unary", end=False)
            greedy.send(frame(wire.DATA, 0, number, value(bytes(60_000))[:30_000]))
        modest.send(modest.request(1, "Unary", b"x" * 20_000)[:-10])
        greedy.clock.advance(0)
        self.assertEqual([each.kind for each in modest.frames()], [])
        self.assertEqual([each.kind for each in greedy.frames()], [wire.RST_STREAM])
        self.assertLessEqual(greedy.factory.ledger.held, 100_000)
        greedy.lost()
        self.assertLess(greedy.factory.ledger.held, 21_000 + CALL_BYTES)

    def test_nothing_held_after_the_end(self) -> None:
        """When all is over, nothing is held."""
        line = Wire()
        line.call(1, "Up", b"x" * 1000, end=False)
        line.send(frame(wire.DATA, 0, 1, b"\0\0"))
        line.call(3, "Unary", b"x" * 1000)
        self.assertGreater(line.factory.ledger.held, 0)
        line.send(frame(wire.RST_STREAM, 0, 1, bytes(4)))
        self.assertEqual((line.protocol.held, line.factory.ledger.held), (0, 0))

    def test_seconds(self) -> None:
        """Each time has its test among those of the transport."""
        from tests import test_transport

        small = test_transport.TimeTests.LIMITS
        for field in fields(Limits):
            if field.name.endswith("_seconds"):
                self.assertLess(getattr(small, field.name), getattr(Limits(), field.name))

    def test_impossible(self) -> None:
        """Bounds that contradict each other are refused at once."""
        self.assertRaises(ValueError, Limits, stream_window=1000, message_bytes=1000)
        self.assertRaises(ValueError, Limits, frame_bytes=100)


class AllowanceTests(SynchronousTestCase):
    """So many at once, so many per second."""

    def test_refills(self) -> None:
        """What was spent comes back with time, up to the burst."""
        allowance = Allowance(2.0, 3)
        spent: list[Any] = [allowance.spend(0.0) for _ in range(4)]
        spent += [allowance.spend(1.0) for _ in range(3)]
        spent += [allowance.spend(1000.0) for _ in range(4)]
        self.assertEqual(spent, [True] * 3 + [False] + [True] * 2 + [False] + [True] * 3 + [False])

    def test_clock_that_goes_back(self) -> None:
        """A clock that is set back gives nothing at that moment, and goes on from there."""
        allowance = Allowance(1.0, 1)
        self.assertEqual([allowance.spend(now) for now in (10.0, 5.0, 5.5, 6.0)], [True, False, False, True])


class LedgerTests(SynchronousTestCase):
    """What all connections hold together."""

    def test_nobody_can_give(self) -> None:
        """When nothing can be freed, nothing hangs."""
        ledger = Ledger(10, 10)
        account = ledger.open(lambda: 0)
        ledger.update(account, 100)
        self.assertEqual(ledger.held, 100)
        ledger.close(account)
        self.assertEqual(ledger.held, 0)
