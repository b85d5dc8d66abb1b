"""What is held in memory for clients: all that adds up is counted, and when it is too much, somebody has to give."""

from __future__ import annotations

import gc
import gzip
import tracemalloc
from collections.abc import AsyncIterator, Callable
from functools import partial
from typing import Any

from twisted.internet.defer import Deferred
from twisted.logger import capturedLogs
from twisted.trial.unittest import SynchronousTestCase

from artifactserver.rpc.exchange import Exchange
from artifactserver.rpc.http2 import ErrorCode, Limits
from artifactserver.rpc.protocol import CALL_BYTES, UNSENT_BYTES
from artifactserver.rpc.streaming import MESSAGE_BYTES
from artifactserver.rpc.unary import WORKED_ON
from tests import http2_peer as wire
from tests.echo_service import BytesValue, Wire, value
from tests.http2_peer import frame, message, settings, window_update


def bomb(size: int) -> bytes:
    """A short message that stands for one of ``size`` zeros and a few bytes."""
    return message(gzip.compress(BytesValue(value=bytes(size)).SerializeToString()), 1)


class Slow:
    """Answers when it is told to.

    :ivar waiting: the calls that were begun and not finished: the size of each request, and what it waits for.
    """

    def __init__(self) -> None:
        self.waiting: list[tuple[int, Deferred[bytes]]] = []

    async def Unary(self, request: BytesValue, call: Any) -> BytesValue:
        done: Deferred[bytes] = Deferred()
        self.waiting.append((len(request.value), done))
        return BytesValue(value=await done)

    async def Up(self, requests: AsyncIterator[BytesValue], call: Any) -> BytesValue:
        async for request in requests:
            done: Deferred[bytes] = Deferred()
            self.waiting.append((len(request.value), done))
            await done
        return BytesValue()

    def finish(self, answer: bytes = b"") -> None:
        """Let the eldest call, or message, be done."""
        self.waiting.pop(0)[1].callback(answer)


class RequestTests(SynchronousTestCase):
    """The requests of calls that are waited for."""

    def setUp(self) -> None:
        self.slow = Slow()

    def test_working_bytes(self) -> None:
        """Calls wait while others are at as many bytes as are allowed at once, and then have their turn, in order."""
        line = Wire(Limits(working_bytes=WORKED_ON * 10_000), self.slow)
        for number, size in ((1, 6000), (3, 6001), (5, 6002), (7, 6003), (9, 10)):
            line.call(number, "Unary", bytes(size))
        self.assertEqual([size for size, _ in self.slow.waiting], [6000, 6001])
        self.assertGreater(line.protocol.held, WORKED_ON * 12_000 + 12_000)
        self.slow.finish()
        self.assertEqual([size for size, _ in self.slow.waiting], [6001, 6002])
        while self.slow.waiting:
            self.slow.finish()
        self.assertEqual(list(line.statuses()), [1, 3, 5, 7, 9])
        self.assertEqual((line.protocol.held, line.protocol.working, line.factory.ledger.held), (0, 0, 0))

    def test_small_calls(self) -> None:
        """Small calls do not wait, however many there are."""
        line = Wire(implementation=self.slow)
        for number in range(1, 1999, 2):
            line.call(number, "Unary", b"x")
        self.assertEqual(len(self.slow.waiting), 999)

    def test_bombs(self) -> None:
        """A message counts as what it has grown to; while too many have, others stay as small as they came."""
        line = Wire(Limits(working_bytes=WORKED_ON * 100_000), self.slow)
        for number in range(1, 41, 2):
            line.call(number, "Unary", end=False, grpc_encoding="gzip")
            line.send(frame(wire.DATA, 1, number, bomb(60_000)))
        line.clock.pump([0] * 5)
        self.assertEqual([size for size, _ in self.slow.waiting], [60_000, 60_000])
        self.assertGreater(line.protocol.held, WORKED_ON * 120_000)
        self.assertLess(line.protocol.held, WORKED_ON * 120_100 + 18 * 200)
        while self.slow.waiting:
            self.slow.finish()
            line.clock.advance(0)
        self.assertEqual(len(line.statuses()), 20)

    def test_one_bomb_at_a_time(self) -> None:
        """Of messages that have to be decompressed one is taken in each turn of the reactor, on each connection."""
        line = Wire(implementation=self.slow)
        call_later = line.clock.callLater
        taken = []

        def turn(function: Callable[..., None], *arguments: Any) -> None:
            before = len(self.slow.waiting)
            function(*arguments)
            taken.append(len(self.slow.waiting) - before)

        line.clock.callLater = lambda delay, *what: call_later(delay, turn, *what)  # type: ignore[method-assign]
        calls = [line.request(number, "Unary", end=False, grpc_encoding="gzip") for number in (1, 3, 5)]
        line.send(*calls, *[frame(wire.DATA, 1, number, bomb(1000)) for number in (1, 3, 5)])
        other = Wire(factory=line.factory)
        other.call(1, "Unary", b"hello")
        self.assertEqual(len(self.slow.waiting), 2)
        line.clock.advance(0)
        self.assertEqual(taken, [1, 1, 0])

    def test_one_bomb_at_a_time_for_quick_handlers(self) -> None:
        """So it is where each handler is done at once."""
        line = Wire()
        calls = [line.request(number, "Unary", end=False, grpc_encoding="gzip") for number in (1, 3, 5)]
        line.send(*calls, *[frame(wire.DATA, 1, number, bomb(1000)) for number in (1, 3, 5)])
        self.assertEqual(len(line.echo.calls), 1)
        line.clock.advance(0)
        self.assertEqual(len(line.statuses()), 3)

    def test_one_bomb_at_a_time_in_a_stream(self) -> None:
        """So it is within one call; while it waits, it may be given up."""

        class Greedy:
            async def Up(self, requests: AsyncIterator[BytesValue], call: Any) -> BytesValue:
                async for request in requests:
                    taken.append(len(request.value))
                return BytesValue()

        taken: list[int] = []
        line = Wire(implementation=Greedy())
        for number in (1, 3):
            line.call(number, "Up", end=False, grpc_encoding="gzip")
            line.send(frame(wire.DATA, 1, number, bomb(1000) * 3))
        self.assertEqual(taken, [1000])
        line.send(frame(wire.RST_STREAM, 0, 1, bytes(4)))
        line.clock.advance(0)
        self.assertEqual(taken, [1000] * 4)
        self.assertEqual(list(line.statuses()), [3])
        self.assertEqual(line.factory.ledger.held, 0)

    def test_waiting_calls_take_window(self) -> None:
        """Calls that wait their turn use up the connection's window: a client with many is slowed, and loses none."""
        limits = Limits(
            working_bytes=WORKED_ON * 50_000, connection_window=200_000, message_bytes=60_000, held_bytes=900_000
        )
        line = Wire(limits, self.slow)
        left = 200_000
        answered = sent = 0
        for number in range(1, 101, 2):
            request = line.request(number, "Unary", bytes(50_000))
            while left < 50_100:
                self.slow.finish()
                for each in line.frames():
                    left += each.number if each.kind == wire.WINDOW_UPDATE and not each.stream else 0
                    answered += each.kind == wire.HEADERS and each.flags == 5
                    self.assertNotEqual(each.kind, wire.RST_STREAM)
            line.send(request)
            left -= len(value(bytes(50_000)))
            sent += 1
            self.assertLess(line.protocol.held, WORKED_ON * 50_100 + 250_000)
        while self.slow.waiting:
            self.slow.finish()
        self.assertEqual(answered + len(line.statuses()), sent)
        self.assertEqual(line.protocol.engine._window._outstanding, 0)

    def test_reset_while_waiting(self) -> None:
        """A call that is given up while it waits, or is worked on, gives back what it held."""
        line = Wire(Limits(working_bytes=1000), self.slow)
        for number in (1, 3):
            line.call(number, "Unary", bytes(5000))
        for number in (3, 1):
            self.assertGreater(line.protocol.held, 5000 * (number == 3))
            line.send(frame(wire.RST_STREAM, 0, number, bytes(4)))
        self.assertEqual((line.protocol.held, line.protocol.working), (0, 0))
        self.assertEqual(line.protocol.engine._window._outstanding, 0)
        line.call(5, "Unary", b"")
        self.assertEqual(len(self.slow.waiting), 2)

    def test_in_hand(self) -> None:
        """The message that a handler of a stream has in hand counts, as what it has grown to."""
        line = Wire(implementation=self.slow)
        line.call(1, "Up", end=False, grpc_encoding="gzip")
        line.send(frame(wire.DATA, 0, 1, bomb(100_000) * 3))
        self.assertGreater(line.protocol.held, 100_000)
        self.assertLess(line.protocol.held, 101_000)
        for _ in range(3):
            line.clock.advance(0)
            self.slow.finish()
        self.assertEqual(line.protocol.held, 0)

    def test_empty_messages(self) -> None:
        """Messages with nothing in them count as well: each takes some memory while it waits."""
        line = Wire(Limits(held_bytes=500_000), self.slow)
        with capturedLogs() as events:
            line.call(1, "Up", end=False)
            for _ in range(10):
                line.send(frame(wire.DATA, 0, 1, message(b"") * 200))
            self.assertGreater(line.protocol.held, 1999 * MESSAGE_BYTES)
            line.send(*[frame(wire.DATA, 0, 1, message(b"") * 200)] * 20)
            line.clock.advance(0)
        self.assertEqual([each.kind for each in line.frames()], [wire.RST_STREAM])
        self.assertEqual((line.protocol.held, len(events)), (0, 1))


class ConnectionTests(SynchronousTestCase):
    """What else is counted."""

    def test_calls(self) -> None:
        """Each call counts for something, even if nothing was sent with it."""
        slow = Slow()
        line = Wire(Limits(held_bytes=50 * CALL_BYTES), slow)
        for number in range(1, 101, 2):
            line.call(number, "Unary", b"")
        self.assertEqual(line.factory.ledger.held, 50 * CALL_BYTES)
        line.call(101, "Unary", b"")
        line.clock.advance(0)
        resets = [each.number for each in line.frames() if each.kind == wire.RST_STREAM]
        self.assertEqual(resets, [ErrorCode.ENHANCE_YOUR_CALM])
        while slow.waiting:
            try:
                slow.finish()
            except Exception as error:  # the one that was cancelled
                self.assertEqual(type(error).__name__, "AlreadyCalledError")
        self.assertEqual(line.factory.ledger.held, 0)

    def test_unsent(self) -> None:
        """What waits in the transport of a client that does not read counts, until it is read."""
        line = Wire()
        line.protocol.pauseProducing()
        line.call(1, "Unary", b"")
        self.assertGreater(line.factory.ledger.held, UNSENT_BYTES)
        line.protocol.resumeProducing()
        self.assertEqual(line.factory.ledger.held, 0)
        self.assertEqual(len(line.statuses()), 1)

    def test_cut_off(self) -> None:
        """When nothing but what waits in transports can be let go, a connection is: that of one that does not read."""
        first = Wire(Limits(held_bytes_in_all=2 * UNSENT_BYTES + 100))
        lines = [first, Wire(factory=first.factory), Wire(factory=first.factory)]
        modest = Wire(factory=first.factory)
        cut: list[Wire] = []
        for line in lines:
            line.transport.abortConnection = partial(cut.append, line)  # type: ignore[method-assign]
            line.protocol.pauseProducing()
            line.protocol._look()
        self.assertEqual(len(cut), 1)
        modest.call(1, "Unary", b"hello")
        self.assertEqual(len(modest.statuses()), 1)
        cut[0].lost()
        self.assertEqual(first.factory.ledger.held, 2 * UNSENT_BYTES)

    def test_nothing_begins_instead(self) -> None:
        """Where a call is given up for any connection's sake, what waits behind it begins no sooner than it counts."""
        first = Wire(Limits(held_bytes_in_all=200_000, owed_bytes=10_000))
        first.echo.unary = lambda sent: bytes(60_000)
        lines = [first, *[Wire(factory=first.factory) for _ in range(5)]]
        for line in lines:
            line.send(settings((4, 0)))
            line.send(*[line.request(number, "Unary", b"") for number in range(1, 21, 2)])
            self.assertLess(sum(each.protocol.engine.sender.owed for each in lines), 200_000)
        for _ in range(100):
            first.clock.advance(0)
            self.assertLess(sum(each.protocol.engine.sender.owed for each in lines), 200_000)

    def test_late_answers(self) -> None:
        """Answers that are ready at some moment of their own are counted at that moment."""
        slow = Slow()
        line = Wire(Limits(held_bytes=100_000), slow)
        line.send(settings((4, 0)))
        for number in (1, 3, 5, 7):
            line.call(number, "Unary", b"")
        for _ in range(4):
            slow.finish(bytes(40_000))
            self.assertLessEqual(line.protocol.engine.sender.owed, 100_000)
        line.send(settings((4, 10**6)), window_update(0, 10**6))
        self.assertEqual(len(line.statuses()), 2)
        self.assertEqual(line.factory.ledger.held, 0)

    def test_given_up_at_work(self) -> None:
        """A call that is too much at the moment at which its handler goes on is cancelled as soon as it waits."""
        ended: list[str] = []

        class Waiting(Slow):
            async def Up(self, requests: AsyncIterator[BytesValue], call: Any) -> BytesValue:
                try:
                    return await super().Up(requests, call)
                finally:
                    ended.append("ended")

        slow = Waiting()
        line = Wire(Limits(held_bytes=100_000), slow)
        with capturedLogs():
            line.call(1, "Up", end=False, grpc_encoding="gzip")
            line.send(frame(wire.DATA, 0, 1, bomb(10)), frame(wire.DATA, 0, 1, bomb(200_000)))
            slow.finish()
            # The second message is decompressed in a turn of its own.
            line.clock.advance(0)
        self.assertEqual([each.kind for each in line.frames()], [wire.RST_STREAM])
        self.assertEqual(ended, ["ended"])
        self.assertEqual(line.protocol.held, 0)

    def test_reset_while_waiting(self) -> None:
        """Calls that are reset while they wait their turn are not remembered until it comes."""
        line = Wire(Limits(owed_bytes=10_000, streams_open=10))
        line.echo.unary = lambda sent: bytes(6000)
        line.send(settings((4, 0)))
        for number in (1, 3):
            line.call(number, "Unary", b"")
        for number in range(5, 1005, 2):
            line.call(number, "Unary", b"x")
            line.send(frame(wire.RST_STREAM, 0, number, bytes(4)))
        self.assertLessEqual(len(line.protocol._postponed), 20)
        line.call(1005, "Unary", b"")
        line.send(settings((4, 10_000)), window_update(0, 2**20))
        self.assertEqual(set(line.statuses()), {1, 3, 1005})

    def test_unread_refusals(self) -> None:
        """A client that makes calls which are refused, and does not read that, is cut off before it costs much."""
        line = Wire(Limits(owed_bytes=50_000))
        line.protocol.pauseProducing()
        cut: list[str] = []
        line.transport.abortConnection = lambda: cut.append("off")  # type: ignore[method-assign]
        with capturedLogs() as events:
            for number in range(1, 4001, 2):
                line.call(number, "Forbidden", b"")
                self.assertLessEqual(line.protocol.engine.sender.in_line, 50_000)
        self.assertEqual(cut, ["off"])
        self.assertEqual([event["reason"] for event in events], ["it does not read"])
        self.assertEqual(line.protocol.engine.sender.in_line, 0)

    def test_unread_refusals_count(self) -> None:
        """Refusals that are not read count with all else that is held for their client."""
        line = Wire()
        line.protocol.pauseProducing()
        line.call(1, "Forbidden", b"")
        self.assertEqual(line.factory.ledger.held, line.protocol.engine.sender.in_line + UNSENT_BYTES)

    def test_no_cycles(self) -> None:
        """A call that is over is gone at once, however it ended: nothing has to look for what is left of it."""
        waiting: list[Deferred[bytes]] = []

        def answer(sent: bytes) -> Any:
            if sent == b"later":
                waiting.append(Deferred())
                return waiting[-1]
            return sent

        line = Wire()
        line.echo.unary = answer
        before = {id(each) for each in gc.get_objects() if isinstance(each, Exchange)}
        gc.disable()
        self.addCleanup(gc.enable)
        line.call(1, "Unary", b"now")
        line.call(3, "Unary", b"later")
        waiting.pop().callback(b"")
        line.call(5, "Down", b"3x300000")
        for _ in range(20):
            line.send(window_update(0, 60_000), window_update(5, 60_000))
        line.call(7, "Up", b"x", end=False)
        line.send(frame(wire.DATA, 1, 7, value(b"y")))
        line.call(9, "Up", b"enough", end=False)
        line.call(11, "Both", b"x", b"y")
        line.call(13, "Up", b"fail")
        line.call(15, "Unary", end=False)
        line.send(frame(wire.RST_STREAM, 0, 15, bytes(4)))
        self.assertEqual(set(line.statuses()), {1, 3, 5, 7, 9, 11, 13})
        line.echo.calls.clear()
        after = {id(each) for each in gc.get_objects() if isinstance(each, Exchange)}
        self.assertEqual(after - before, set())

    def test_idle(self) -> None:
        """A connection on which nothing happens keeps nothing of what it received last."""
        line = Wire()
        line.call(1, "Up", end=False)
        tracemalloc.start()
        self.addCleanup(tracemalloc.stop)
        line.send(frame(wire.DATA, 1, 1, value(bytes(900_000))))
        self.assertEqual(len(line.statuses()), 1)
        self.assertLess(tracemalloc.get_traced_memory()[0], 50_000)
