"""gRPC calls of all shapes at once, in any order of events, over transports that pause and connections that break.

The clients are h2's.  What a call was to do stands in its messages, so it is known what each has to come to; and when
all calls have, in whatever way, nothing is left of them: no timer, no byte that counts as held, no handler.
"""

from __future__ import annotations

import gzip
import sys
from dataclasses import dataclass, field
from typing import Any

import h2.config
import h2.connection
import h2.events
from h2.settings import SettingCodes, Settings
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

from artifactserver.rpc.codes import Code
from artifactserver.rpc.http2 import ErrorCode, Limits
from artifactserver.rpc.transport import GrpcFactory
from tests import http2_peer as wire
from tests.callers import PULLER
from tests.chance import examples
from tests.echo_service import ECHO, Anybody, BytesValue, value
from tests.http2_peer import REQUEST, frame, message
from tests.scripted_service import ENOUGH, FAIL, NOW, STEPS, WAIT_AND_FAIL, Pipe, Scripted

#: The largest message; a few of them are more than the first window of a connection.
MESSAGE = 20_000
MOST_CALLS = 20
STREAMS = 6
STALLED = 40.0

#: What may be wrong with a request.
FLAWS = ("too large", "half a message", "no protobuf", "one message too many", "none", "compressed")


@dataclass(slots=True)
class Call:
    """One call, as its client sees it.

    :ivar messages: those that were sent, or are about to be.
    :ivar outbox: what of them is still to be sent.
    :ivar closing: the request ends when that is out.
    :ivar flawed: there is something wrong with the request.
    :ivar body: what came of the response.
    """

    number: int
    shape: str
    begun: float
    timeout: float | None
    compressed: bool
    messages: list[bytes] = field(default_factory=list)
    outbox: bytes = b""
    closing: bool = False
    ended: bool = False
    flawed: bool = False
    cancelled: bool = False
    body: bytes = b""
    status: Code | None = None
    over: bool = False

    @property
    def streams_in(self) -> bool:
        return self.shape in ("Up", "Both")

    def expected(self) -> list[bytes]:
        """The values in the response, if all goes well."""
        if self.shape == "Unary":
            return self.messages[:1]
        if self.shape == "Down":
            return self.messages[:1] * self.messages[0][1]
        some = []
        for each in self.messages:
            some.append(each)
            if each[0] == ENOUGH:
                break
        return some if self.shape == "Both" else [b"%d" % sum(map(len, some))]

    def fails(self) -> bool:
        """Whether a handler was told to fail."""
        for each in self.messages:
            if each[0] in (FAIL, WAIT_AND_FAIL):
                return True
            if each[0] == ENOUGH:
                break
        return False


class Line:
    """One connection and its client.

    :param window: what the client is ready to take of each response at first.
    :ivar upwards: what is on its way to the server.
    :ivar closed: the server has closed it.
    """

    def __init__(self, factory: GrpcFactory, clock: Clock, window: int, room: int) -> None:
        protocol = factory.buildProtocol(None)
        assert protocol is not None
        self.protocol = protocol
        self.clock = clock
        self.calls: dict[int, Call] = {}
        self.upwards = b""
        self._inbox = b""
        config = h2.config.H2Configuration(client_side=True, header_encoding=None)
        self.client: Any = h2.connection.H2Connection(config)
        self.client.local_settings = Settings(client=True, initial_values={SettingCodes.INITIAL_WINDOW_SIZE: window})
        self.client.local_settings.enable_push = 0
        self.client.initiate_connection()
        self.pipe = Pipe(room)
        protocol.makeConnection(self.pipe)
        self.speak()
        self.hear(len(self.upwards))

    @property
    def closed(self) -> bool:
        return bool(self.pipe.disconnecting)

    def speak(self) -> None:
        """Send what the windows allow."""
        for call in self.calls.values():
            while (call.outbox or call.closing) and self.open(call) and not call.ended:
                room = min(self.client.local_flow_control_window(call.number), self.client.max_outbound_frame_size)
                if room <= 0 and call.outbox:
                    break
                part, call.outbox = call.outbox[:room], call.outbox[room:]
                call.ended = call.closing and not call.outbox
                self.client.send_data(call.number, part, end_stream=call.ended)
        self.upwards += self.client.data_to_send()

    def hear(self, size: int) -> None:
        """Let so many bytes arrive at the server."""
        data, self.upwards = self.upwards[:size], self.upwards[size:]
        if data:
            self.protocol.dataReceived(data)

    def listen(self, size: int) -> None:
        """Let the client read so many bytes."""
        self._inbox += self.pipe.read(size)
        while len(self._inbox) >= 9:
            end = 9 + int.from_bytes(self._inbox[:3], "big")
            if len(self._inbox) < end:
                break
            (each,) = wire.parse(self._inbox[:end])
            self._inbox = self._inbox[end:]
            if each.kind != wire.GOAWAY:  # For h2 it is the end of the connection.
                for event in self.client.receive_data(frame(each.kind, each.flags, each.stream, each.payload)):
                    self._told(event)
        self.speak()

    def open(self, call: Call) -> bool:
        """Whether the client may still send or expect something."""
        stream = self.client.streams.get(call.number)
        return stream is not None and not stream.closed

    def cancel(self, call: Call) -> None:
        self.client.reset_stream(call.number, error_code=ErrorCode.CANCEL)
        call.cancelled = call.over = True
        self.speak()

    def _told(self, event: Any) -> None:
        call = self.calls.get(getattr(event, "stream_id", 0) or 0)
        if call is None:
            return
        if isinstance(event, (h2.events.ResponseReceived, h2.events.TrailersReceived)):
            for name, text in event.headers:
                if name == b"grpc-status":
                    call.status = Code(int(text))
                elif name == b":status":
                    assert text == b"200"
        elif isinstance(event, h2.events.DataReceived):
            call.body += event.data
            self.client.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
        elif isinstance(event, h2.events.StreamEnded):
            call.over = True
            self._ended(call)
        elif isinstance(event, h2.events.StreamReset):
            if not call.over:
                self._reset(call, event.error_code)
            call.over = True

    def _ended(self, call: Call) -> None:
        """A call has come to its end: by all that is known of it, it may have."""
        waited = self.clock.seconds() - call.begun
        if call.status is Code.OK:
            # What came is what was sent, and a response does not say how it was cut.
            assert call.body == b"".join(map(value, call.expected())), call
        elif call.status is Code.DATA_LOSS:
            assert call.fails(), call
        elif call.status is Code.DEADLINE_EXCEEDED:
            assert call.timeout is not None and waited >= call.timeout, call
        elif call.status is Code.ABORTED:
            assert waited >= STALLED, call
        else:
            assert call.status in (Code.INTERNAL, Code.RESOURCE_EXHAUSTED) and call.flawed, call

    def _reset(self, call: Call, code: int) -> None:
        """A call was given up: it held the most, or its response was not read for long."""
        assert code in (ErrorCode.ENHANCE_YOUR_CALM, ErrorCode.CANCEL), (call, code)
        assert code != ErrorCode.CANCEL or self.clock.seconds() - call.begun >= STALLED


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
        held=st.sampled_from([3 * MESSAGE, 2**20]),
    )
    def start(self, window: int, room: int, stream_window: int, connection_window: int, held: int) -> None:
        self.window = window
        self.room = room
        self.clock = Clock()
        self.failures = Failures()
        globalLogPublisher.addObserver(self.failures)
        self.service = Scripted()
        dispatcher = Anybody()
        dispatcher.register(ECHO, self.service)
        limits = Limits(
            message_bytes=MESSAGE,
            stream_window=stream_window,
            connection_window=connection_window,
            streams_open=STREAMS,
            response_bytes_queued=2 * MESSAGE,
            owed_bytes=3 * MESSAGE,
            held_bytes=held,
            held_bytes_in_all=held * 3 // 2,
            handshake_seconds=STALLED,
            stalled_upload_seconds=STALLED,
            stalled_download_seconds=STALLED,
            idle_seconds=2 * STALLED,
        )
        self.factory = GrpcFactory(dispatcher, lambda transport: PULLER, self.clock, limits)
        self.lines: list[Line] = []
        self.connect()

    def connect(self) -> None:
        self.lines.append(Line(self.factory, self.clock, self.window, self.room))

    def one(self, data: st.DataObject, some: list[Any]) -> Any:
        return some[data.draw(st.integers(0, len(some) - 1))]

    @rule(data=st.data())
    def something(self, data: st.DataObject) -> None:
        """One thing of those that can happen now."""
        line = self.one(data, self.lines)
        possible = [self.arrives] * 3 + [self.advance]
        if len(line.calls) < MOST_CALLS and line.client.open_outbound_streams < STREAMS and not line.closed:
            possible += [self.call] * 3
        if any(self.sendable(line)):
            possible += [self.more, self.end] * 2
        if any(map(line.open, line.calls.values())):
            possible += [self.cancel]
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
        timeout = data.draw(st.sampled_from([None, None, 1.0, 100.0]), "timeout")
        call = Call(2 * len(line.calls) + 1, shape, self.clock.seconds(), timeout, data.draw(st.booleans(), "gzip"))
        fields = [*REQUEST[:2], (":path", f"/test.Echo/{shape}"), *REQUEST[3:]]
        if timeout is not None:
            fields.append(("grpc-timeout", f"{timeout:.0f}S"))
        if call.compressed:
            fields.append(("grpc-encoding", "gzip"))
        line.client.send_headers(call.number, fields)
        line.calls[call.number] = call
        if data.draw(st.integers(0, 9), "flaw") == 0:
            self.spoil(call, data.draw(st.sampled_from(FLAWS)))
        elif not call.streams_in or data.draw(st.booleans(), "message"):
            self.write(data, call)
        call.closing = call.closing or data.draw(st.booleans(), "end")
        line.speak()

    def write(self, data: st.DataObject, call: Call) -> None:
        """Put a message in the outbox."""
        what = data.draw(st.sampled_from([NOW, NOW, *STEPS]), "step")
        count = data.draw(st.integers(0, 6), "count")
        size = data.draw(st.sampled_from([0, 20, 2000, MESSAGE - 20, MESSAGE - 20]), "size")
        content = bytes([what, count]) + bytes(range(256)) * (size // 256) + bytes(size % 256)
        call.messages.append(content)
        packed = BytesValue(value=content).SerializeToString()
        call.outbox += message(gzip.compress(packed), 1) if call.compressed and count % 2 else message(packed)

    def spoil(self, call: Call, flaw: str) -> None:
        call.closing = True
        one = value(bytes([NOW, 1]))
        call.outbox += {
            "too large": value(bytes(MESSAGE)),
            "half a message": one[:-1],
            "no protobuf": message(b"\xff\xff"),
            "one message too many": one + one,
            "none": b"",
            "compressed": message(b"not gzip", 1),
        }[flaw]
        call.flawed = True
        if call.streams_in and flaw in ("one message too many", "none"):
            # A stream may have two, or none.
            call.flawed = False
            call.messages = [bytes([NOW, 1])] * (2 if call.outbox else 0)

    def more(self, data: st.DataObject, line: Line) -> None:
        """Another message, if it may be one."""
        call = self.one(data, self.sendable(line))
        if call.streams_in:
            self.write(data, call)
        line.speak()

    def end(self, data: st.DataObject, line: Line) -> None:
        self.one(data, self.sendable(line)).closing = True
        line.speak()

    def cancel(self, data: st.DataObject, line: Line) -> None:
        line.cancel(self.one(data, list(filter(line.open, line.calls.values()))))

    def resume(self, data: st.DataObject, line: Line) -> None:
        """A handler that waits goes on."""
        self.service.resume(data.draw(st.integers(0, len(self.service.waiting) - 1)))

    def arrives(self, data: st.DataObject, line: Line) -> None:
        """Bytes in both directions, of which all may be left over."""
        size = st.just(2**20) | st.integers(0, 30) | st.integers(0, 3 * MESSAGE)
        line.hear(data.draw(size, "up"))
        line.listen(data.draw(size, "down"))

    def advance(self, data: st.DataObject, line: Line) -> None:
        """Time passes, or the reactor turns."""
        self.clock.advance(data.draw(st.sampled_from([0.0, 0.0, 0.5, 1.0, 5.0, STALLED]), "seconds"))

    def reconnect(self, data: st.DataObject, line: Line) -> None:
        """A connection is new, or in the place of one that broke."""
        if line.closed or len(self.lines) > 1 or data.draw(st.booleans(), "breaks"):
            self.lose(line)
        self.connect()

    def lose(self, line: Line) -> None:
        self.lines.remove(line)
        line.protocol.connectionLost(Failure(ConnectionLost()))

    @invariant()
    def nothing_failed(self) -> None:
        if self.factory is not None:
            assert not self.failures.seen, self.failures.seen
            for line in self.lines:
                assert line.protocol.held >= 0

    def teardown(self) -> None:
        if self.factory is None:
            return
        try:
            if sys.exc_info()[0] is None:
                self.finish()
        finally:
            globalLogPublisher.removeObserver(self.failures)

    def finish(self) -> None:
        """Bring all calls to their ends, and then the connections."""
        for _ in range(500):
            while self.service.waiting:
                self.service.resume(0)
            self.clock.advance(0)
            for line in self.lines:
                for call in line.calls.values():
                    call.closing = True
                line.speak()
                line.hear(len(line.upwards))
                line.listen(2**20)
            moves = any(line.upwards or line.pipe.value() or self.service.waiting for line in self.lines)
            if not moves and not any(call.getTime() <= self.clock.seconds() for call in self.clock.getDelayedCalls()):
                break
        for line in self.lines:
            assert line.protocol.held == 0
            if not line.closed:
                engine = line.protocol.engine
                assert all(call.over for call in line.calls.values()), "calls came to a halt"
                assert not engine.streams
                assert engine.sender.owed == 0
                assert engine._window._outstanding == 0
        assert self.service.running == 0
        for line in list(self.lines):
            self.lose(line)
        self.clock.advance(0)
        assert self.factory.ledger.held == 0
        assert not self.factory.connections
        assert not self.clock.getDelayedCalls(), self.clock.getDelayedCalls()
        self.nothing_failed()


class ConversationTests(SynchronousTestCase):
    """Calls of all kinds."""

    def test_everything_ends(self) -> None:
        """Whatever clients and their connections do, calls come to the end that they have to, and leave nothing."""
        run_state_machine_as_test(Conversations, settings=examples(60, stateful_step_count=50))
