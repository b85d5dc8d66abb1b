"""gRPC on a transport in memory: what is written when, and what happens as time passes."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from twisted.internet.address import IPv4Address
from twisted.internet.defer import CancelledError, Deferred
from twisted.logger import capturedLogs
from twisted.trial.unittest import SynchronousTestCase

from artifactserver.rpc.http2 import ErrorCode, Limits
from artifactserver.rpc.http2.sending import PIECE
from artifactserver.rpc.messages import PREFIX_BYTES
from artifactserver.rpc.status import Code
from artifactserver.rpc.streaming import MESSAGE_BYTES
from tests import http2_peer as wire
from tests.callers import PULLER, PUSHER
from tests.echo_service import BytesValue, Wire, value
from tests.http2_peer import Frame, frame, message, settings, window_update


def data(frames: list[Frame]) -> bytes:
    return b"".join(each.payload for each in frames if each.kind == wire.DATA)


def status(code: Code) -> str:
    return str(int(code))


class UnaryTests(SynchronousTestCase):
    """Calls of one request and one response."""

    def setUp(self) -> None:
        self.wire = Wire()

    def test_one_write(self) -> None:
        """A small answer is one write."""
        self.wire.writes.clear()
        self.wire.call(1, "Unary", b"hello")
        self.assertEqual(len(self.wire.writes), 1)
        frames = self.wire.frames()
        self.assertEqual([each.kind for each in frames], [wire.HEADERS, wire.DATA, wire.HEADERS])
        self.assertEqual(data(frames), value(b"hello"))

    def test_together(self) -> None:
        """The answers to calls that arrive together leave together."""
        self.wire.writes.clear()
        self.wire.send(*[self.wire.request(number, "Unary", b"x") for number in range(1, 65, 2)])
        self.assertEqual(len(self.wire.writes), 1)
        self.assertEqual(len(self.wire.statuses()), 32)

    def test_in_parts(self) -> None:
        """A request that arrives byte by byte is answered the same."""
        for byte in self.wire.request(1, "Unary", b"hello"):
            self.wire.send(bytes([byte]))
        self.assertEqual(data(self.wire.frames()), value(b"hello"))

    def test_later(self) -> None:
        """A handler may take its time."""
        waiting: Deferred[bytes] = Deferred()
        self.wire.echo.unary = lambda _: waiting
        self.wire.call(1, "Unary", b"")
        self.assertEqual(self.wire.frames(), [])
        waiting.callback(b"late")
        self.assertEqual(data(self.wire.frames()), value(b"late"))

    def test_two_messages(self) -> None:
        """A method that takes one message refuses two, and none."""
        self.wire.call(1, "Unary", b"a", b"b")
        self.wire.call(3, "Unary")
        self.wire.send(
            wire.request(5, end=True, fields=(*wire.REQUEST[:2], (":path", "/test.Echo/Unary"), *wire.REQUEST[3:]))
        )
        self.assertEqual({code for code, _ in self.wire.statuses().values()}, {status(Code.INTERNAL)})

    def test_two_messages_apart(self) -> None:
        """So it does if the second comes later than the first."""
        self.wire.call(1, "Unary", b"a", end=False)
        self.wire.send(frame(wire.DATA, 1, 1, value(b"b")))
        self.assertEqual(self.wire.statuses()[1][0], status(Code.INTERNAL))
        self.assertEqual(self.wire.echo.calls, [])

    def test_half_a_message(self) -> None:
        """A request that ends within a message is refused."""
        whole = self.wire.request(1, "Unary", b"", end=False)
        self.wire.send(whole, frame(wire.DATA, 1, 1, value(b"abc")[:-1]))
        self.assertEqual(self.wire.statuses()[1][0], status(Code.INTERNAL))

    def test_not_protobuf(self) -> None:
        """Bytes that are no message are refused, and nothing is logged as our fault."""
        self.wire.send(self.wire.request(1, "Unary", end=False), frame(wire.DATA, 1, 1, wire.message(b"\xff\xff\xff")))
        code, text = self.wire.statuses()[1]
        self.assertEqual(code, status(Code.INTERNAL))
        self.assertIn("google.protobuf.BytesValue", text)

    def test_handler_fails(self) -> None:
        """When a handler breaks, the client learns that and no more; the log has the traceback, once."""
        self.wire.echo.unary = lambda _: 1 / 0
        self.wire.call(1, "Unary", b"")
        code, text = self.wire.statuses()[1]
        self.assertEqual(code, status(Code.INTERNAL))
        self.assertNotIn("zero", text)
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)

    def test_handler_fails_later(self) -> None:
        """The same when it had to wait first."""
        waiting: Deferred[bytes] = Deferred()
        self.wire.echo.unary = lambda _: waiting
        self.wire.call(1, "Unary", b"")
        waiting.errback(ZeroDivisionError())
        self.assertEqual(self.wire.statuses()[1][0], status(Code.INTERNAL))
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)

    def test_handler_answers_nonsense(self) -> None:
        """A handler that returns something else than a message is broken too."""

        class Nothing:
            async def Unary(self, request: BytesValue, call: Any) -> None:
                return None

        self.wire = Wire(implementation=Nothing())
        self.wire.call(1, "Unary", b"")
        self.assertEqual(self.wire.statuses()[1][0], status(Code.INTERNAL))
        self.assertEqual(len(self.flushLoggedErrors(AttributeError)), 1)

    def test_only_response(self) -> None:
        """A handler of a stream may return its only response, none, or what yields them; one is one write."""

        class Returning:
            async def Down(self, request: BytesValue, call: Any) -> Any:
                if request.value == b"none":
                    return None
                if request.value == b"some":
                    return self.some()
                return BytesValue(value=request.value)

            async def some(self) -> AsyncIterator[BytesValue]:
                for each in (b"1", b"2"):
                    yield BytesValue(value=each)

        self.wire = Wire(implementation=Returning())
        for stream, asked, answered in (
            (1, b"one", value(b"one")),
            (3, b"none", b""),
            (5, b"some", value(b"1") + value(b"2")),
        ):
            self.wire.writes.clear()
            self.wire.call(stream, "Down", asked, grpc_timeout="1S")
            self.assertEqual(len(self.wire.writes), 1)
            frames = self.wire.frames()
            self.assertEqual(data(frames), answered)
            self.assertTrue(frames[-1].flags & wire.END_STREAM)
        self.assertEqual(self.wire.protocol.engine.streams, {})

    def test_serialized(self) -> None:
        """A handler may answer with bytes, or with bytes in pieces."""

        class Bytes:
            async def Unary(self, request: BytesValue, call: Any) -> bytes | tuple[bytes, ...]:
                return b"\x0a\x01" + b"x" if request.value else (b"\x0a\x01", b"y")

        self.wire = Wire(implementation=Bytes())
        self.wire.call(1, "Unary", b"1")
        self.assertEqual(data(self.wire.frames()), value(b"x"))
        self.wire.call(3, "Unary", b"")
        self.assertEqual(data(self.wire.frames()), value(b"y"))

    def test_refused_before_the_handler(self) -> None:
        """Who may not call a method is told so, and nothing runs."""
        self.wire.call(1, "Forbidden", b"")
        self.assertEqual(self.wire.statuses()[1], (status(Code.PERMISSION_DENIED), "not for you"))

    def test_invalid_credentials(self) -> None:
        """Who has shown something that is not valid is told that, with a code of its own."""
        self.wire.factory.routes.unauthenticated = True  # type: ignore[attr-defined]
        self.wire.call(1, "Forbidden", b"")
        self.assertEqual(self.wire.statuses()[1], (status(Code.UNAUTHENTICATED), "not for you"))

    def test_another_port(self) -> None:
        """Calls of another port are made by its callers; memory and the end are counted together."""
        shared = self.wire.factory
        line = Wire(implementation=self.wire.echo, factory=shared, caller=PUSHER)
        for each in (self.wire, line):
            each.call(1, "Unary", b"x")
        self.assertEqual([call.caller for call in self.wire.echo.calls], [PULLER, PUSHER])
        self.assertEqual(len(shared.connections), 2)
        done = shared.drain(5)
        for each in (self.wire, line):
            self.assertNoResult(done)
            each.lost()
        self.successResultOf(done)
        self.assertIsNone(shared.at(lambda transport: PUSHER).buildProtocol(IPv4Address("TCP", "10.0.0.1", 1)))

    def test_unknown_methods(self) -> None:
        """What is not there, or declared and not built, is UNIMPLEMENTED."""
        self.wire.call(1, "Nothing", b"")
        self.wire.call(3, "Missing", b"")
        self.assertEqual({code for code, _ in self.wire.statuses().values()}, {status(Code.UNIMPLEMENTED)})

    def test_not_grpc(self) -> None:
        """What is not gRPC gets an HTTP status: 415 for another content type, 405 for another method."""
        self.wire.send(
            wire.request(1, fields=(*wire.REQUEST[:-1], ("content-type", "text/plain"))),
            wire.request(3, fields=wire.REQUEST[:-1], end=True),
            wire.request(5, fields=((":method", "GET"), *wire.REQUEST[1:-2]), end=True),
        )
        self.assertEqual(
            {stream: code for stream, (code, _) in self.wire.statuses().items()}, {1: "415", 3: "415", 5: "405"}
        )

    def test_unknown_encoding(self) -> None:
        """A request compressed in a way that we lack is told which ways we have."""
        self.wire.call(1, "Unary", b"", grpc_encoding="snappy")
        head = self.wire.frames()[0]
        self.assertIn(b"identity,gzip", head.payload)

    def test_metadata(self) -> None:
        """A handler sees who calls, what they sent along, and when they stop waiting."""
        self.wire.clock.advance(100)
        self.wire.call(1, "Unary", b"", some_name="text", other_bin="AAE", grpc_timeout="5S")
        (call,) = self.wire.echo.calls
        self.assertEqual(call.caller.address, "peer")
        self.assertEqual(dict(call.metadata), {"some-name": "text", "other-bin": b"\0\1"})
        self.assertEqual(call.deadline, 105)

    def test_bad_metadata(self) -> None:
        """Metadata that makes no sense fails the call."""
        self.wire.call(1, "Unary", b"", other_bin="!")
        self.wire.call(3, "Unary", b"", grpc_timeout="soon")
        codes = {stream: code for stream, (code, _) in self.wire.statuses().items()}
        self.assertEqual(codes, {1: status(Code.INTERNAL), 3: status(Code.INVALID_ARGUMENT)})


class CancellationTests(SynchronousTestCase):
    """A call whose result nobody waits for any more."""

    def setUp(self) -> None:
        self.wire = Wire()
        self.cancelled: list[object] = []
        waiting: Deferred[bytes] = Deferred(self.cancelled.append)
        self.wire.echo.unary = lambda _: waiting

    def test_reset(self) -> None:
        """When the client gives up, what the handler waits for is cancelled, and nothing is sent or logged."""
        self.wire.call(1, "Unary", b"")
        self.wire.send(frame(wire.RST_STREAM, 0, 1, bytes(4)))
        self.assertEqual(len(self.cancelled), 1)
        self.assertEqual(self.wire.frames(), [])

    def test_lost(self) -> None:
        """The same when the connection is lost."""
        self.wire.call(1, "Unary", b"")
        self.wire.lost()
        self.assertEqual(len(self.cancelled), 1)
        self.assertEqual(self.wire.clock.getDelayedCalls(), [])

    def test_reset_in_one_piece(self) -> None:
        """A call that is given up in the same breath is never begun."""
        self.wire.send(self.wire.request(1, "Unary", b""), frame(wire.RST_STREAM, 0, 1, bytes(4)))
        self.assertEqual(self.wire.echo.calls, [])

    def test_reset_with_the_end(self) -> None:
        """Neither is one whose last bytes come together with its end."""
        for number, method in ((1, "Unary"), (3, "Down"), (5, "Up")):
            whole = self.wire.request(number, method, b"1x1")
            self.wire.send(whole[:-3])
            self.wire.send(whole[-3:], frame(wire.RST_STREAM, 0, number, bytes(4)))
        self.assertEqual(self.wire.echo.calls, [])
        self.assertEqual(self.wire.frames(), [])

    def test_sent_away(self) -> None:
        """So it is when its client has lost the right to be here, who is told so, and hears nothing more."""
        self.wire.call(1, "Unary", b"")
        with capturedLogs() as events:
            self.wire.protocol.send_away()
            self.wire.protocol.send_away()
        self.assertEqual((len(self.cancelled), events), (1, []))
        (goaway,) = self.wire.frames()
        self.assertEqual((goaway.kind, goaway.code), (wire.GOAWAY, ErrorCode.NO_ERROR))
        self.assertTrue(goaway.payload.endswith(b"withdrawn"))
        self.assertTrue(self.wire.transport.disconnecting)
        self.wire.call(3, "Unary", b"")
        self.assertEqual((self.wire.frames(), len(self.wire.echo.calls)), ([], 1))
        self.wire.clock.advance(self.wire.factory.limits.close_seconds)
        self.assertTrue(self.wire.transport.disconnected)
        self.wire.lost()
        self.assertEqual(self.wire.clock.getDelayedCalls(), [])

    def test_deadline(self) -> None:
        """When the deadline passes, the client is told and the handler cancelled."""
        self.wire.call(1, "Unary", b"", grpc_timeout="1500m")
        self.wire.clock.advance(1.4)
        self.assertEqual(self.wire.frames(), [])
        self.wire.clock.advance(0.2)
        self.assertEqual(self.wire.statuses()[1][0], status(Code.DEADLINE_EXCEEDED))
        self.assertEqual(len(self.cancelled), 1)

    def test_deadline_of_an_upload(self) -> None:
        """It passes for an upload of which nothing has come yet, and whose handler has not begun, as well."""
        self.wire.call(1, "Up", end=False, grpc_timeout="1500m")
        self.wire.clock.advance(1.4)
        self.assertEqual(self.wire.frames(), [])
        self.wire.clock.advance(0.2)
        self.assertEqual(self.wire.statuses()[1][0], status(Code.DEADLINE_EXCEEDED))

    def test_in_time(self) -> None:
        """A deadline that is kept leaves nothing behind."""
        self.wire.echo.unary = lambda sent: sent
        before = len(self.wire.clock.getDelayedCalls())
        self.wire.call(1, "Unary", b"", grpc_timeout="1S")
        waiting: Deferred[bytes] = Deferred()
        self.wire.echo.unary = lambda _: waiting
        self.wire.call(3, "Unary", b"", grpc_timeout="1S")
        waiting.callback(b"")
        self.assertEqual(len(self.wire.statuses()), 2)
        self.assertEqual(len(self.wire.clock.getDelayedCalls()), before)

    def test_generator(self) -> None:
        """A handler that stands at a yield, as its client does not read, gets to its finally."""
        ended: list[str] = []

        class Endless:
            async def Down(self, request: BytesValue, call: Any) -> AsyncIterator[BytesValue]:
                try:
                    while True:
                        yield BytesValue(value=bytes(100_000))
                finally:
                    ended.append("cleaned up")

        self.wire = Wire(implementation=Endless())
        self.wire.call(1, "Down", b"")
        self.assertEqual(ended, [])
        self.wire.send(frame(wire.RST_STREAM, 0, 1, bytes(4)))
        self.assertEqual(ended, ["cleaned up"])

    def test_stream_of_requests(self) -> None:
        """A handler that waits for more of a request gets to its finally."""
        ended: list[type] = []

        class Waiting:
            async def Up(self, requests: AsyncIterator[BytesValue], call: Any) -> BytesValue:
                try:
                    async for _ in requests:
                        pass
                except BaseException as error:
                    ended.append(type(error))
                    raise
                return BytesValue()

        self.wire = Wire(implementation=Waiting())
        self.wire.call(1, "Up", b"x", end=False)
        self.wire.send(frame(wire.RST_STREAM, 0, 1, bytes(4)))
        self.assertEqual(ended, [CancelledError])

    def test_stubborn(self) -> None:
        """A handler that goes on regardless changes nothing; if it then breaks, that is logged."""
        seen: list[str] = []

        class Stubborn:
            async def Unary(self, request: BytesValue, call: Any) -> BytesValue:
                try:
                    await Deferred()
                except CancelledError:
                    seen.append("ignored it")
                if request.value:
                    raise ZeroDivisionError
                return BytesValue()

        self.wire = Wire(implementation=Stubborn())
        for number, body in ((1, b""), (3, b"x")):
            self.wire.call(number, "Unary", body)
            self.wire.send(frame(wire.RST_STREAM, 0, number, bytes(4)))
        self.assertEqual(seen, ["ignored it"] * 2)
        self.assertEqual(self.wire.frames(), [])
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)


class StreamTests(SynchronousTestCase):
    """Calls with many messages."""

    def setUp(self) -> None:
        self.wire = Wire()

    def test_up(self) -> None:
        """A stream of requests has one answer, however its bytes arrive."""
        whole = self.wire.request(1, "Up", *[b"x" * 100] * 30)
        for step in (1, 7, 10_000):
            self.wire = Wire()
            for start in range(0, len(whole), step):
                self.wire.send(whole[start : start + step])
            self.assertEqual(data(self.wire.frames()), value(b"3000"))

    def test_empty(self) -> None:
        """A stream may have no messages at all, in either direction."""
        self.wire.call(1, "Up")
        self.wire.call(3, "Both")
        self.wire.call(5, "Down", b"0x0")
        frames = self.wire.frames()
        self.assertEqual(data(frames), value(b"0"))
        self.assertEqual([each.kind for each in frames if each.stream > 1], [wire.HEADERS] * 4)

    def test_down(self) -> None:
        """A stream of answers comes in order, and trailers after it."""
        self.wire.call(1, "Down", b"3x5")
        frames = self.wire.frames()
        self.assertEqual(data(frames), b"".join(value(bytes([n]) * 5) for n in range(3)))
        self.assertEqual((frames[-1].kind, frames[-1].flags), (wire.HEADERS, 5))

    def test_both(self) -> None:
        """Each request is answered when it comes."""
        self.wire.call(1, "Both", b"one", end=False)
        self.assertEqual(data(self.wire.frames()), value(b"one"))
        self.wire.send(frame(wire.DATA, 0, 1, value(b"two")))
        self.assertEqual(data(self.wire.frames()), value(b"two"))
        self.wire.send(frame(wire.DATA, 1, 1))
        self.assertEqual([each.kind for each in self.wire.frames()], [wire.HEADERS])

    def test_server_speaks_first(self) -> None:
        """A handler begins when the request does, without waiting for its first message."""

        class Greeter:
            async def Both(self, requests: Any, call: Any) -> AsyncIterator[BytesValue]:
                yield BytesValue(value=b"welcome")
                async for _ in requests:
                    pass

        self.wire = Wire(implementation=Greeter())
        self.wire.send(wire.request(1, fields=(*wire.REQUEST[:2], (":path", "/test.Echo/Both"), *wire.REQUEST[3:])))
        self.assertEqual(data(self.wire.frames()), value(b"welcome"))

    def test_early_answer(self) -> None:
        """A handler may answer before the request has ended: answer, then RST_STREAM; what still comes is dropped."""
        self.wire.call(1, "Up", b"enough", end=False)
        frames = self.wire.frames()
        self.assertEqual(data(frames), value(b"6"))
        self.assertEqual((frames[-1].kind, frames[-1].number), (wire.RST_STREAM, ErrorCode.NO_ERROR))
        self.wire.send(*[frame(wire.DATA, 0, 1, value(bytes(1000)))] * 10)
        self.assertEqual(self.wire.frames(), [])
        self.assertEqual(self.wire.protocol.held, 0)

    def test_error_within(self) -> None:
        """An error after the first messages ends the stream with its status."""

        class Breaking:
            async def Down(self, request: BytesValue, call: Any) -> AsyncIterator[BytesValue]:
                yield BytesValue(value=b"fine")
                raise ZeroDivisionError

        self.wire = Wire(implementation=Breaking())
        self.wire.call(1, "Down", b"")
        frames = self.wire.frames()
        self.assertEqual([each.kind for each in frames], [wire.HEADERS, wire.DATA, wire.HEADERS])
        self.assertIn(b"grpc-status\x0213", frames[-1].payload)
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)

    def test_status_of_the_handler(self) -> None:
        """An error that a handler raises on purpose arrives as it is."""
        self.wire.call(1, "Up", b"fail", end=False)
        self.assertEqual(self.wire.statuses()[1], (status(Code.DATA_LOSS), "as you asked"))

    def test_bad_message_within(self) -> None:
        """A message that is too large ends a stream whose handler is waiting."""
        self.wire = Wire(Limits(message_bytes=1000))
        self.wire.call(1, "Up", b"fine", end=False)
        self.wire.send(frame(wire.DATA, 0, 1, value(bytes(1001))))
        self.assertEqual(self.wire.statuses()[1][0], status(Code.RESOURCE_EXHAUSTED))
        self.assertEqual(self.wire.protocol.held, 0)


class BackpressureTests(SynchronousTestCase):
    """Nobody gets more than they can take."""

    def test_download_waits_for_the_window(self) -> None:
        """A handler that yields faster than its client reads is suspended at a bound."""
        made: list[int] = []

        class Endless:
            async def Down(self, request: BytesValue, call: Any) -> AsyncIterator[bytes]:
                while True:
                    made.append(1)
                    yield bytes(10_000)

        line = Wire(Limits(response_bytes_queued=50_000), Endless())
        line.call(1, "Down", b"")
        self.assertEqual(len(data(line.frames())), 65_535)
        self.assertLess(len(made), 14)
        self.assertLess(line.protocol.engine.sender.owed, 70_000)
        line.send(window_update(0, 40_000), window_update(1, 40_000))
        self.assertEqual(len(data(line.frames())), 40_000)
        self.assertGreater(len(made), 14)

    def test_download_waits_for_the_transport(self) -> None:
        """While the transport has enough, nothing is written; it gets pieces of a bounded size after that."""
        line = Wire()
        line.send(settings((4, 2**30), (5, 2**24 - 1)), window_update(0, 2**30))
        line.frames()
        line.writes.clear()
        producer: Any = line.transport.producer
        write = line.transport.write

        def full(content: bytes) -> None:
            write(content)
            producer.pauseProducing()

        line.transport.write = full  # type: ignore[method-assign]
        line.call(1, "Down", b"10x1000000")
        self.assertEqual(len(line.writes), 1)
        for _ in range(100):
            producer.resumeProducing()
        self.assertEqual(len(data(line.frames())), 10 * len(value(bytes(1_000_000))))
        self.assertLessEqual(max(map(len, line.writes)), PIECE + 100)

    def test_upload_waits_for_the_handler(self) -> None:
        """A handler that does not ask for more gets no more sent than a window."""
        steps: list[Deferred[None]] = []

        class Slow:
            async def Up(self, requests: AsyncIterator[BytesValue], call: Any) -> BytesValue:
                async for _ in requests:
                    steps.append(Deferred())
                    await steps[-1]
                return BytesValue()

        limits = Limits(stream_window=100_000, connection_window=150_000, message_bytes=50_000)
        line = Wire(limits, Slow())
        body = value(bytes(9992))
        self.assertEqual(len(body), 10_000)
        line.call(1, "Up", end=False)
        line.send(*[frame(wire.DATA, 0, 1, body)] * 10)
        self.assertEqual([each for each in line.frames() if each.kind == wire.WINDOW_UPDATE], [])
        for _ in range(3):
            steps[-1].callback(None)
        (update,) = line.frames()
        self.assertEqual((update.kind, update.stream), (wire.WINDOW_UPDATE, 1))
        self.assertGreaterEqual(update.number, 30_000)
        # Six wait, and one is in the handler's hands.
        self.assertEqual(line.protocol.held, 6 * (10_000 + MESSAGE_BYTES) + 10_000 - PREFIX_BYTES)

    def test_part_of_a_message(self) -> None:
        """While its handler is at work, or has messages waiting, a part of another one counts against the window."""
        steps: list[Deferred[None]] = []

        class Slow:
            async def Up(self, requests: AsyncIterator[BytesValue], call: Any) -> BytesValue:
                async for _ in requests:
                    steps.append(Deferred())
                    await steps[-1]
                return BytesValue()

        line = Wire(implementation=Slow())
        window = line.protocol.engine._window
        whole = value(bytes(20_000))
        line.call(1, "Up", b"at work", end=False)
        line.send(frame(wire.DATA, 0, 1, whole[:6000]))
        self.assertGreaterEqual(window._outstanding, 6000)
        # What comes behind the rest of a message that the handler asks for, in one piece with it.
        steps[0].callback(None)
        self.assertEqual(window._outstanding, 0)
        line.send(frame(wire.DATA, 0, 1, whole[6000:]), frame(wire.DATA, 0, 1, whole[:7000]))
        self.assertEqual(len(steps), 2)
        self.assertGreaterEqual(window._outstanding, 7000)

    def test_many_unfinished_messages(self) -> None:
        """Calls that each wait for the rest of a message do not use up the window that they all need."""
        limits = Limits(stream_window=100_000, connection_window=150_000, message_bytes=90_000)
        line = Wire(limits)
        calls = range(1, 41, 2)
        for number in calls:
            method = "Unary" if number % 4 == 1 else "Up"
            line.call(number, method, end=False)
            line.send(frame(wire.DATA, 0, number, value(bytes(50_000))[:40_000]))
        for number in calls:
            line.send(frame(wire.DATA, 1, number, value(bytes(50_000))[40_000:]))
        line.send(window_update(0, 2**30))
        self.assertEqual(set(line.statuses()), set(calls))

    def test_room_for_the_largest_message(self) -> None:
        """What is kept back of a stream's window while small messages come never lacks for a large one."""
        line = Wire(Limits(message_bytes=1000, stream_window=1000 + 5))
        line.call(1, "Up", b"small", b"small", end=False)
        room = 1000 + 5
        for each in line.frames():
            self.assertEqual((each.kind, each.stream), (wire.WINDOW_UPDATE, 1))
            room += each.number
        room -= 2 * len(value(b"small"))
        self.assertEqual(room, 1000 + 5)

    def test_window_returns_after_an_end(self) -> None:
        """However calls end, the window of the connection is whole again."""
        line = Wire(Limits(connection_window=100_000, stream_window=90_000, message_bytes=80_000))
        window = line.protocol.engine._window
        for number, ending in ((1, b""), (3, frame(wire.RST_STREAM, 0, 3, bytes(4))), (5, frame(wire.DATA, 1, 5))):
            line.call(number, "Up", b"x" * 30_000, b"enough" if number == 1 else b"", end=False)
            line.send(frame(wire.DATA, 0, number, value(bytes(50_000))[:20_000]), ending)
        self.assertEqual(window._outstanding, 0)
        self.assertEqual(line.protocol.held, 0)

    def test_window_returns_behind_an_answer(self) -> None:
        """What a client sends on while its answer waits for it to read is given back as it comes."""
        line = Wire()
        line.send(settings((4, 0)))
        line.call(1, "Both", b"x" * 1000, end=False)
        line.send(frame(wire.DATA, 0, 1, message(b"\xff\xff")))
        self.assertTrue(line.protocol.engine.streams[1].owner.over)
        line.send(frame(wire.DATA, 0, 1, bytes(5000)))
        self.assertEqual(line.protocol.engine._window._outstanding, 0)


class TimeTests(SynchronousTestCase):
    """What happens when nothing happens."""

    LIMITS = Limits(
        handshake_seconds=10,
        idle_seconds=100,
        stalled_upload_seconds=20,
        stalled_download_seconds=40,
        moving_bytes=50,
        close_seconds=3,
    )

    def setUp(self) -> None:
        self.wire = Wire(self.LIMITS)

    def pass_time(self, seconds: float) -> None:
        self.wire.clock.pump([0.5] * int(seconds * 2))

    def test_stalled_upload(self) -> None:
        """An upload that stops is given up, and its handler cancelled."""
        self.wire.call(1, "Up", b"x", end=False)
        self.pass_time(15)
        self.wire.send(frame(wire.DATA, 0, 1, value(b"y" * 50)))
        self.pass_time(15)
        self.assertEqual(self.wire.statuses(), {})
        self.pass_time(15)
        self.assertEqual(self.wire.statuses()[1][0], status(Code.ABORTED))

    def test_stalled_request(self) -> None:
        """So is a call whose one message never comes."""
        self.wire.call(1, "Unary", end=False)
        self.pass_time(30)
        self.assertEqual(self.wire.statuses()[1][0], status(Code.ABORTED))

    def test_slow_handler(self) -> None:
        """A handler that takes long is not a stalled upload, even in the middle of one."""
        self.wire.echo.unary = lambda _: Deferred()
        self.wire.call(1, "Unary", b"")
        self.pass_time(90)
        self.assertEqual(self.wire.statuses(), {})

    def test_stalled_download(self) -> None:
        """A client that does not read its answer loses the call."""
        self.wire.call(1, "Down", b"1x100000")
        self.wire.frames()
        self.pass_time(60)
        (reset,) = self.wire.frames()
        self.assertEqual((reset.kind, reset.number), (wire.RST_STREAM, ErrorCode.CANCEL))

    def test_never_reads(self) -> None:
        """A client that reads nothing at all loses the connection."""
        self.wire.protocol.pauseProducing()
        self.wire.call(1, "Unary", b"")
        self.pass_time(60)
        self.assertTrue(
            self.wire.transport.disconnected or self.wire.transport.disconnecting or self.wire.protocol._closing
        )

    def test_idle(self) -> None:
        """A connection without calls is closed in good order, after a long time."""
        self.wire.call(1, "Unary", b"")
        self.wire.frames()
        self.pass_time(90)
        self.assertEqual(self.wire.frames(), [])
        self.pass_time(20)
        self.assertEqual([each.kind for each in self.wire.frames()], [wire.GOAWAY, wire.PING, wire.GOAWAY])
        self.assertTrue(self.wire.transport.disconnecting)

    def test_busy_is_not_idle(self) -> None:
        """A call that runs keeps its connection."""
        self.wire.echo.unary = lambda _: Deferred()
        self.wire.call(1, "Unary", b"")
        self.pass_time(300)
        self.assertEqual(self.wire.frames(), [])

    def test_half_a_frame(self) -> None:
        """A frame that does not get to its end costs the connection."""
        self.wire.send(frame(wire.PING, payload=bytes(8))[:12])
        self.pass_time(15)
        self.assertEqual(self.wire.frames()[-1].code, ErrorCode.ENHANCE_YOUR_CALM)
        self.assertTrue(self.wire.transport.disconnecting)

    def test_a_byte_a_second(self) -> None:
        """So does one that is sent a byte at a time, for too long."""
        for byte in self.wire.request(1, "Unary", b""):
            self.wire.send(bytes([byte]))
            self.pass_time(1)
        self.assertTrue(self.wire.transport.disconnecting)

    def test_data_may_be_slow(self) -> None:
        """The body of an upload may come slowly, in single bytes and with pauses, as long as it comes."""
        whole = self.wire.request(1, "Up", b"x" * 1000)
        self.wire.send(whole[:-990])
        for start in range(-990, 0, 60):
            for position in range(start, start + 30):
                self.wire.send(whole[position : position + 1 or None])
                self.pass_time(0.5)
            self.wire.send(whole[start + 30 : start + 60 or None])
            self.pass_time(3)
        self.assertEqual(self.wire.statuses()[1][0], status(Code.OK))

    def test_trickling_upload(self) -> None:
        """An upload of which next to nothing comes is given up, though it never quite stands still."""
        whole = self.wire.request(1, "Up", b"x" * 1000)
        self.wire.send(whole[:-990])
        for position in range(-990, -960):
            self.wire.send(whole[position : position + 1])
            self.pass_time(1)
        self.assertEqual(self.wire.statuses()[1][0], status(Code.ABORTED))

    def test_trickling_download(self) -> None:
        """So is an answer that its client takes byte by byte."""
        self.wire.send(settings((4, 0)))
        self.wire.call(1, "Down", b"1x100000")
        kinds = []
        for _ in range(35):
            self.wire.send(window_update(1, 1))
            kinds += [each.kind for each in self.wire.frames()]
            self.pass_time(2)
        self.assertEqual(kinds.count(wire.RST_STREAM), 1)
        self.assertLess(kinds.count(wire.DATA), 30)

    def test_slow_download(self) -> None:
        """An answer that is taken slowly arrives."""
        self.wire.send(settings((4, 0)))
        self.wire.call(1, "Down", b"1x1000")
        for _ in range(60):
            self.wire.send(window_update(1, 20))
            self.pass_time(5)
        self.assertEqual(self.wire.statuses()[1][0], status(Code.OK))

    def test_waiting_begins_with_the_answer(self) -> None:
        """How long an answer waits is counted from when it is there, however long it took to make it."""
        waiting: Deferred[bytes] = Deferred()
        self.wire.echo.unary = lambda _: waiting
        self.wire.send(settings((4, 0)))
        self.wire.call(1, "Unary", b"")
        self.pass_time(100)
        waiting.callback(b"x" * 100)
        self.pass_time(30)
        self.wire.send(window_update(1, 1000))
        self.assertEqual(self.wire.statuses()[1][0], status(Code.OK))

    def test_no_timers_left(self) -> None:
        """A connection that is lost leaves no timer."""
        self.wire.call(1, "Unary", b"")
        self.wire.lost()
        self.assertEqual(self.wire.clock.getDelayedCalls(), [])


class EndTests(SynchronousTestCase):
    """How a connection ends."""

    def setUp(self) -> None:
        self.wire = Wire()

    def test_fault(self) -> None:
        """A client that breaks the protocol gets GOAWAY, and is really let go, in one line of the log."""
        cancelled: list[object] = []
        self.wire.echo.unary = lambda _: Deferred(cancelled.append)
        self.wire.call(1, "Unary", b"")
        with capturedLogs() as events:
            self.wire.send(frame(wire.DATA, 0, 9, b"x"))
            self.wire.send(frame(wire.DATA, 0, 9, b"x"))
        self.assertEqual(self.wire.frames()[-1].code, ErrorCode.PROTOCOL_ERROR)
        self.assertTrue(self.wire.transport.disconnecting)
        self.assertIsNone(self.wire.transport.producer)
        self.assertEqual(len(events), 1)
        self.assertEqual(len(cancelled), 1)

    def test_deaf(self) -> None:
        """One that does not even close its end is cut off."""
        aborted: list[bool] = []
        self.wire.transport.abortConnection = lambda: aborted.append(True)  # type: ignore[method-assign]
        self.wire.send(frame(wire.DATA, 0, 9, b"x"))
        self.wire.clock.advance(10)
        self.assertEqual(aborted, [True])
        self.assertEqual(self.wire.clock.getDelayedCalls(), [])

    def test_many_faults(self) -> None:
        """A thousand bad connections are a few lines of the log."""
        with capturedLogs() as events:
            for _ in range(1000):
                Wire(factory=self.wire.factory).send(frame(wire.DATA, 0, 9, b"x"))
            self.wire.clock.advance(5)
            Wire(factory=self.wire.factory).send(frame(wire.DATA, 0, 9, b"x"))
        self.assertLess(len(events), 30)
        self.assertEqual(events[-1]["unsaid"], 980)

    def test_drain(self) -> None:
        """Going away, the server finishes what runs, takes what was on its way, and closes."""
        waiting: Deferred[bytes] = Deferred()
        self.wire.echo.unary = lambda _: waiting
        self.wire.call(1, "Unary", b"")
        done = self.wire.factory.drain(30)
        goaway, ping = self.wire.frames()
        self.assertEqual(int.from_bytes(goaway.payload[:4], "big"), 2**31 - 1)
        self.wire.call(3, "Unary", b"")
        self.wire.send(frame(wire.PING, wire.ACK, payload=ping.payload))
        (last,) = self.wire.frames()
        self.assertEqual((int.from_bytes(last.payload[:4], "big"), last.code), (3, ErrorCode.NO_ERROR))
        self.wire.call(5, "Unary", b"")
        self.assertFalse(self.wire.transport.disconnecting)
        waiting.callback(b"done")
        self.assertEqual(set(self.wire.statuses()), {1, 3})
        self.assertTrue(self.wire.transport.disconnecting)
        self.assertNoResult(done)
        self.wire.lost()
        self.successResultOf(done)
        self.assertEqual(self.wire.clock.getDelayedCalls(), [])

    def test_drain_idle(self) -> None:
        """Connections without calls close at once, even if the client does not answer."""
        self.wire.factory.drain(30)
        self.wire.clock.advance(2)
        self.assertTrue(self.wire.transport.disconnecting)

    def test_drain_ends(self) -> None:
        """What is not done within the grace is cut off."""
        cancelled: list[Any] = []
        self.wire.echo.unary = lambda _: Deferred(cancelled.append)
        self.wire.call(1, "Unary", b"")
        self.wire.factory.drain(30)
        self.wire.clock.pump([1] * 29)
        self.assertEqual(cancelled, [])
        self.wire.clock.pump([1] * 2)
        self.assertEqual(len(cancelled), 1)

    def test_no_new_connections(self) -> None:
        """While draining, nobody new is taken in."""
        self.wire.factory.drain(30)
        self.assertIsNone(self.wire.factory.buildProtocol(None))

    def test_nothing_to_drain(self) -> None:
        """A server without connections is drained at once."""
        self.wire.lost()
        self.successResultOf(self.wire.factory.drain(30))
