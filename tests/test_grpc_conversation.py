"""gRPC calls of all shapes at once, in any order of events, over transports that pause and connections that break.

What a call was to do stands in its messages, so it is known what each has to come to (``grpc_clients.py``).  All the
while the books of each connection are right (``grpc_books.py``), and when all calls have come to an end, in whatever
way, nothing is left of them: no timer, no byte that counts as held, no handler.
"""

from __future__ import annotations

import gzip
import sys
from typing import Any

from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)
from twisted.internet.error import ConnectionLost
from twisted.internet.task import Clock
from twisted.logger import ILogObserver, LogEvent, globalLogPublisher
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import implementer

from artifactserver.rpc import protocol
from artifactserver.rpc.codes import Code
from artifactserver.rpc.http2 import Limits
from artifactserver.rpc.transport import GrpcFactory
from tests.callers import PULLER
from tests.chance import examples
from tests.echo_service import ECHO, Anybody, BytesValue, value
from tests.grpc_books import Books, is_due
from tests.grpc_clients import BAD_HEADS, Call, Line
from tests.http2_peer import message
from tests.scripted_service import NOW, STEPS, WAIT, Scripted

#: The largest message; a few of them are more than the first window of a connection.
MESSAGE = 20_000
MOST_CALLS = 20
STREAMS = 6
STALLED = 40.0

#: What may be wrong with the body of a request, and what comes of it.
FLAWS = {
    "too large": Code.RESOURCE_EXHAUSTED,
    "half a message": Code.INTERNAL,
    "no protobuf": Code.INTERNAL,
    "one message too many": Code.INTERNAL,
    "none": Code.INTERNAL,
    "compressed": Code.INTERNAL,
}


@implementer(ILogObserver)
class Failures:
    """What is logged as our own fault while this watches.

    :ivar seen: the failures.
    """

    def __init__(self) -> None:
        self.seen: list[Any] = []

    def __call__(self, event: LogEvent) -> None:
        if "log_failure" in event:
            self.seen.append(event["log_failure"])


class Conversations(RuleBasedStateMachine):
    """A server with a few connections, and all that may happen on them."""

    factory: Any = None

    @initialize(
        window=st.sampled_from([65_535, 1000, 2**20]),
        room=st.sampled_from([MESSAGE, 2**18]),
        stream_window=st.sampled_from([MESSAGE + 5, 3 * MESSAGE]),
        connection_window=st.sampled_from([2 * MESSAGE, 2**17]),
        held=st.sampled_from([3 * MESSAGE, 2**30]),
        still=st.booleans(),
    )
    def start(self, window: int, room: int, stream_window: int, connection_window: int, held: int, still: bool) -> None:
        self.window = window
        self.room = room
        self.still = still
        self.clock = Clock()
        self.failures = Failures()
        globalLogPublisher.addObserver(self.failures)
        self.service = Scripted(self.clock)
        dispatcher = Anybody()
        dispatcher.register(ECHO, self.service)
        limits = Limits(
            message_bytes=MESSAGE,
            stream_window=stream_window,
            connection_window=connection_window,
            streams_open=STREAMS,
            response_bytes_queued=MESSAGE // 4,
            working_bytes=4 * MESSAGE,
            owed_bytes=3 * MESSAGE,
            held_bytes=held,
            held_bytes_in_all=held * 3 // 2,
            handshake_seconds=STALLED,
            stalled_upload_seconds=STALLED,
            stalled_download_seconds=STALLED,
            idle_seconds=2 * STALLED,
        )
        self.factory = GrpcFactory(dispatcher, lambda transport: PULLER, self.clock, limits)
        self.lines: dict[Line, Books] = {}
        self.connect()

    def connect(self) -> None:
        line = Line(self.factory, self.clock, self.window, self.room)
        self.lines[line] = Books(line.protocol)

    def one(self, data: st.DataObject, some: list[Any]) -> Any:
        return some[data.draw(st.integers(0, len(some) - 1))]

    @rule(data=st.data())
    def something(self, data: st.DataObject) -> None:
        """One thing of those that can happen now."""
        line = self.one(data, list(self.lines))
        possible = [self.arrives] * 4 + [self.advance]
        if len(line.calls) < MOST_CALLS and line.client.open_outbound_streams < STREAMS:
            possible += [self.call] * (0 if line.closed or line.draining else 5)
        if self.sendable(line):
            possible += [self.more] * 4 + [self.end]
        if any(map(line.open, line.calls.values())):
            possible += [self.break_off]
        if self.service.waiting:
            possible += [self.resume] * 3
        if len(self.lines) < 2 or line.closed:
            possible += [self.reconnect]
        name = data.draw(st.sampled_from([each.__name__ for each in possible]))
        getattr(self, name)(data, line)

    def sendable(self, line: Line) -> list[Call]:
        return [call for call in line.calls.values() if line.open(call) and not call.closing and not call.ended]

    def call(self, data: st.DataObject, line: Line) -> None:
        shape = data.draw(st.sampled_from(["Unary", "Down", "Up", "Both"]))
        timeout = data.draw(st.sampled_from([None, 1.0, 100.0]), "timeout")
        compressed, apart = data.draw(st.booleans(), "gzip"), data.draw(st.booleans(), "apart")
        call = Call(2 * len(line.calls) + 1, shape, self.clock.seconds(), timeout, compressed, apart)
        flaw = data.draw(st.none() | st.none() | st.sampled_from([*FLAWS, *BAD_HEADS]), "flaw")
        line.client.send_headers(call.number, call.head(flaw if flaw in BAD_HEADS else None))
        line.calls[call.number] = call
        if flaw in FLAWS:
            self.spoil(data, call, flaw)
        elif not call.streams_in or data.draw(st.booleans(), "message"):
            self.write(data, call)
        call.closing = call.closing or data.draw(st.booleans(), "end")
        self.said(data, line)

    def said(self, data: st.DataObject, line: Line) -> None:
        """What the client said goes on its way, and some of it may arrive at once."""
        line.speak()
        line.hear(len(line.upwards) * data.draw(st.integers(0, 2), "arrives") // 2)

    def write(self, data: st.DataObject, call: Call) -> None:
        """Put messages in the outbox."""
        for _ in range(data.draw(st.integers(1, 3), "messages") if call.streams_in else 1):
            what = data.draw(st.sampled_from([NOW, NOW, NOW, WAIT, *STEPS]), "step")
            count = data.draw(st.integers(0, 6), "count")
            size = data.draw(st.sampled_from([0, 20, 2000, MESSAGE - 20, MESSAGE - 20]), "size")
            content = bytes([what, count]) + bytes(range(256)) * (size // 256) + bytes(size % 256)
            call.messages.append(content)
            packed = BytesValue(value=content).SerializeToString()
            small = call.compressed and count % 2
            call.outbox.append(message(gzip.compress(packed, 1), 1) if small else message(packed))

    def spoil(self, data: st.DataObject, call: Call, flaw: str) -> None:
        """Put something wrong in the outbox, in a stream perhaps behind something good."""
        call.closing = True
        if call.streams_in and flaw in ("one message too many", "none"):
            # A stream may have two, or none.
            return
        if call.streams_in and data.draw(st.booleans(), "good at first"):
            self.write(data, call)
        call.flaw = FLAWS[flaw]
        one = value(bytes([NOW, 1]))
        call.outbox += {
            "too large": [value(bytes(MESSAGE))],
            "half a message": [one[:-1]],
            "no protobuf": [message(b"\xff\xff")],
            "one message too many": [one, one],
            "none": [],
            "compressed": [message(b"not gzip", 1)],
        }[flaw]

    def more(self, data: st.DataObject, line: Line) -> None:
        """Further messages, if there may be some."""
        call = self.one(data, self.sendable(line))
        if call.streams_in:
            self.write(data, call)
        self.said(data, line)

    def end(self, data: st.DataObject, line: Line) -> None:
        self.one(data, self.sendable(line)).closing = True
        self.said(data, line)

    def break_off(self, data: st.DataObject, line: Line) -> None:
        """The client gives up a call, or the server the connection, with a word or without one."""
        what = data.draw(st.integers(0, 4), "what")
        if what == 4:
            line.draining = True
            line.protocol.drain()
        elif what == 3:
            self.lose(line)
            self.connect()
        else:
            line.cancel(self.one(data, list(filter(line.open, line.calls.values()))))

    def resume(self, data: st.DataObject, line: Line) -> None:
        """A handler that waits goes on."""
        self.service.resume(data.draw(st.integers(0, len(self.service.waiting) - 1)))

    def arrives(self, data: st.DataObject, line: Line) -> None:
        """Bytes in both directions, of which all may be left over."""
        size = st.just(2**20) | st.just(2**20) | st.integers(0, 30) | st.integers(0, 3 * MESSAGE)
        line.hear(data.draw(size, "up"))
        line.listen(data.draw(size, "down"))

    def advance(self, data: st.DataObject, line: Line) -> None:
        """Time passes, or the reactor turns."""
        self.clock.advance(data.draw(st.sampled_from([0.0, 0.0, 0.5, 1.0, 5.0, STALLED]), "seconds"))

    def reconnect(self, data: st.DataObject, line: Line) -> None:
        """A connection is new, or in the place of one that was closed."""
        if line.closed:
            self.lose(line)
        self.connect()

    def lose(self, line: Line) -> None:
        books = self.lines.pop(line)
        line.protocol.connectionLost(Failure(ConnectionLost()))
        books.check_closed()

    @invariant()
    def all_is_counted(self) -> None:
        if self.factory is None:
            return
        assert not self.failures.seen, self.failures.seen
        at_work = list(self.service.waiting.values())
        known: list[Any] = []
        for line, books in self.lines.items():
            if line.closed:
                books.check_closed()
                continue
            books.check(at_work)
            known += books.calls()
            if line.silent and not is_due(self.clock):
                line.agree()
        assert all(call in known for call in at_work), "a handler goes on though its call is over"
        assert self.factory.ledger.held == sum(line.protocol._account.held for line in self.lines)

    def teardown(self) -> None:
        if self.factory is None:
            return
        try:
            if sys.exc_info()[0] is None:
                self.finish()
        finally:
            globalLogPublisher.removeObserver(self.failures)

    def everything(self) -> None:
        """Let handlers go on and bytes arrive until nothing moves."""
        for _ in range(500):
            while self.service.waiting:
                self.service.resume(0)
            self.clock.advance(0)
            for line in self.lines:
                line.speak()
                line.hear(len(line.upwards))
                line.listen(2**20)
            moves = self.service.waiting or not all(line.silent for line in self.lines)
            if not moves and not is_due(self.clock):
                break
        self.all_is_counted()

    def stand_still(self) -> None:
        """Let time pass while no client says or reads anything."""
        for _ in range(int(3 * STALLED / 5)):
            while self.service.waiting:
                self.service.resume(0)
            self.clock.advance(5.0)
        self.all_is_counted()
        for line in self.lines:
            assert line.closed or not line.protocol.engine.streams, "calls that nobody moves are kept"

    def finish(self) -> None:
        """Bring all calls to their ends, and then the connections."""
        if self.still:
            self.stand_still()
        self.everything()
        for line in self.lines:
            for call in line.calls.values():
                call.closing = True
        self.everything()
        drained = [line for line in self.lines if not line.closed]
        for line, books in self.lines.items():
            if not line.closed:
                assert all(call.over for call in line.calls.values()), "calls came to a halt"
                books.check_idle()
                line.protocol.drain()
        assert self.service.running == 0
        self.everything()
        for line in self.lines:
            assert line.closed
            if line in drained:
                assert line.last == line.protocol.engine._last_stream
        for line in list(self.lines):
            self.lose(line)
        self.clock.advance(0)
        assert self.factory.ledger.held == 0
        assert not self.factory.connections
        assert not self.clock.getDelayedCalls(), self.clock.getDelayedCalls()


class ConversationTests(SynchronousTestCase):
    """Calls of all kinds."""

    def test_everything_ends(self) -> None:
        """Whatever clients and their connections do, calls come to the end that they have to, and leave nothing."""
        # What a transport keeps is as small as everything else.
        self.patch(protocol, "UNSENT_BYTES", MESSAGE)
        run_state_machine_as_test(Conversations, settings=examples(90, stateful_step_count=50))
