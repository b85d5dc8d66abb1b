"""Clients of the scripted service, which know what each of their calls has to come to.

A call's messages say what its handler does, so its client can tell from them, and from the clock, which ends there may
be.  The HTTP/2 of these clients is h2's.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import h2.config
import h2.connection
import h2.events
from h2.settings import SettingCodes, Settings
from twisted.internet.task import Clock

from artifactserver.rpc.codes import Code
from artifactserver.rpc.http2 import ErrorCode
from artifactserver.rpc.http2.frames import MAX_STREAM_ID
from artifactserver.rpc.transport import GrpcFactory
from tests import http2_peer as wire
from tests.echo_service import value
from tests.http2_peer import REQUEST, Frame, frame
from tests.scripted_service import ENOUGH, FAIL, WAIT_AND_FAIL, Pipe

#: What may be wrong with the head of a request, and what comes of it: a status, or an answer that is HTTP's.
BAD_HEADS: dict[str, Code | int] = {
    "an unknown method": Code.UNIMPLEMENTED,
    "a method that is not for everybody": Code.PERMISSION_DENIED,
    "an unknown encoding": Code.UNIMPLEMENTED,
    "no time": Code.INVALID_ARGUMENT,
    "no gRPC": 415,
}


@dataclass(slots=True, repr=False)
class Call:
    """One call, as its client sees it.

    :ivar begun: when it was made.
    :ivar heard: when the server learned of it.
    :ivar compressed: its messages may be.
    :ivar apart: its messages are sent in frames of their own.
    :ivar messages: those that were sent, or are about to be.
    :ivar outbox: what of them is still to be sent.
    :ivar closing: the request ends when that is out.
    :ivar flaw: what comes of what is wrong with the request.
    :ivar http: the status that is HTTP's.
    :ivar body: what came of the response.
    """

    number: int
    shape: str
    begun: float
    timeout: float | None
    compressed: bool
    apart: bool
    messages: list[bytes] = field(default_factory=list)
    outbox: list[bytes] = field(default_factory=list)
    closing: bool = False
    ended: bool = False
    flaw: Code | int | None = None
    heard: float | None = None
    http: int | None = None
    body: bytes = b""
    status: Code | None = None
    over: bool = False

    def __repr__(self) -> str:
        messages = [(chr(each[0]), each[1], len(each)) for each in self.messages]
        return f"<{self.number} {self.shape} {messages} flaw={self.flaw!r}: {self.status!r}, {len(self.body)} bytes>"

    @property
    def streams_in(self) -> bool:
        return self.shape in ("Up", "Both")

    def head(self, bad: str | None) -> list[tuple[str, str]]:
        """The headers of its request, with something wrong if ``bad`` says so."""
        fields = {**dict(REQUEST), ":path": f"/test.Echo/{self.shape}"}
        if self.timeout is not None:
            fields["grpc-timeout"] = f"{self.timeout:.0f}S"
        if self.compressed:
            fields["grpc-encoding"] = "gzip"
        if bad is not None:
            self.flaw = BAD_HEADS[bad]
            fields |= {
                "an unknown method": {":path": "/test.Echo/None"},
                "a method that is not for everybody": {":path": "/test.Echo/Forbidden"},
                "an unknown encoding": {"grpc-encoding": "lzw"},
                "no time": {"grpc-timeout": "soon"},
                "no gRPC": {"content-type": "text/plain"},
            }[bad]
        return list(fields.items())

    def heeded(self) -> list[bytes]:
        """The messages that its handler heeds."""
        if not self.streams_in:
            return self.messages[:1]
        for index, each in enumerate(self.messages):
            if each[0] in (FAIL, WAIT_AND_FAIL, ENOUGH):
                return self.messages[: index + 1]
        return self.messages

    def fails(self) -> bool:
        """Whether its handler is told to fail."""
        return any(each[0] in (FAIL, WAIT_AND_FAIL) for each in self.heeded())

    def whole(self) -> bytes:
        """The response, if all goes well; or as far as it goes, if its handler is told to fail."""
        some = [each for each in self.heeded() if each[0] not in (FAIL, WAIT_AND_FAIL)]
        if self.shape == "Up":
            some = [] if self.fails() else [b"%d" % sum(map(len, some))]
        elif self.shape == "Down" and some:
            some *= some[0][1]
        return b"".join(map(value, some))

    def check_end(self, now: float, stalled: float) -> None:
        """It has come to its end: by all that is known of it, it may have."""
        waited = now - self.begun
        if isinstance(self.flaw, int) and not isinstance(self.flaw, Code):
            assert (self.http, self.status, self.body) == (self.flaw, None, b""), self
            return
        assert self.http == 200, self
        if self.status is Code.OK:
            # What came is what was sent, and a response does not say how it was cut.
            assert self.body == self.whole() and not self.fails(), self
            # What is wrong behind what was enough may not have been looked at.
            assert self.flaw is None or ENOUGH in {each[0] for each in self.heeded()}, self
            return
        if self.status is Code.DATA_LOSS:
            assert self.fails() and self.body == self.whole(), self
        elif self.status is Code.DEADLINE_EXCEEDED:
            assert self.timeout is not None and waited >= self.timeout, self
        elif self.status is Code.ABORTED:
            assert waited >= stalled, self
        else:
            assert self.status is not None and self.status is self.flaw, self
        self.check_part()

    def check_part(self) -> None:
        """What came of the response is part of it."""
        if self.shape == "Up":
            assert self.over or not self.body, self
        else:
            assert self.whole().startswith(self.body), self


class Line:
    """One connection and its client.

    :param window: what the client is ready to take of each response at first.
    :param room: what may wait in the server's transport before that has enough.
    :ivar upwards: what is on its way to the server.
    :ivar last: the last call that the server says to have begun.
    :ivar draining: the server has been told to end it, and its client makes no further calls.
    :ivar closed: the server has closed it.
    """

    def __init__(self, factory: GrpcFactory, clock: Clock, window: int, room: int) -> None:
        protocol = factory.buildProtocol(None)
        assert protocol is not None
        self.protocol = protocol
        self.clock = clock
        self.stalled = factory.limits.stalled_download_seconds
        self.calls: dict[int, Call] = {}
        self.upwards = b""
        self.draining = False
        self.last = MAX_STREAM_ID
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

    @property
    def silent(self) -> bool:
        """Whether nothing is on its way."""
        return not (self.upwards or self._inbox or self.pipe.value())

    def speak(self) -> None:
        """Send what the windows allow."""
        for call in self.calls.values():
            while (call.outbox or call.closing) and self.open(call) and not call.ended:
                if not call.apart:
                    call.outbox = [b"".join(call.outbox)]
                part = call.outbox.pop(0) if call.outbox else b""
                window = self.client.local_flow_control_window(call.number)
                room = max(0, min(window, self.client.max_outbound_frame_size))
                if len(part) > room:
                    part, rest = part[:room], part[room:]
                    call.outbox.insert(0, rest)
                    if not part:
                        break
                call.ended = call.closing and not call.outbox
                self.client.send_data(call.number, part, end_stream=call.ended)
        self.upwards += self.client.data_to_send()

    def hear(self, size: int) -> None:
        """Let so many bytes arrive at the server."""
        data, self.upwards = self.upwards[:size], self.upwards[size:]
        if data:
            self.protocol.dataReceived(data)
            for call in self.calls.values():
                if call.heard is None and call.number <= self.protocol.engine._last_stream:
                    call.heard = self.clock.seconds()

    def listen(self, size: int) -> None:
        """Let the client read so many bytes."""
        self._inbox += self.pipe.read(size)
        while len(self._inbox) >= 9:
            end = 9 + int.from_bytes(self._inbox[:3], "big")
            if len(self._inbox) < end:
                break
            (each,) = wire.parse(self._inbox[:end])
            self._inbox = self._inbox[end:]
            if each.kind == wire.GOAWAY:
                self._sent_away(each)
                continue
            for event in self.client.receive_data(frame(each.kind, each.flags, each.stream, each.payload)):
                self._told(event)
        self.speak()

    def open(self, call: Call) -> bool:
        """Whether the client may still send or expect something."""
        stream = self.client.streams.get(call.number)
        return stream is not None and not stream.closed

    def cancel(self, call: Call) -> None:
        self.client.reset_stream(call.number, error_code=ErrorCode.CANCEL)
        call.over = True
        self.speak()

    def _sent_away(self, goaway: Frame) -> None:
        # Not for h2, which would take it for the end of the connection.
        assert goaway.code in (ErrorCode.NO_ERROR, ErrorCode.ENHANCE_YOUR_CALM), goaway
        if goaway.code == ErrorCode.NO_ERROR:
            self.draining = True
        self.last = int.from_bytes(goaway.payload[:4], "big")
        for call in self.calls.values():
            # Not begun, and never to be: a client makes it elsewhere.
            if call.number > self.last and self.open(call):
                assert not call.body and call.http is None, call
                self.cancel(call)

    def _told(self, event: Any) -> None:
        call = self.calls.get(getattr(event, "stream_id", 0) or 0)
        if call is None:
            return
        if isinstance(event, (h2.events.ResponseReceived, h2.events.TrailersReceived)):
            for name, text in event.headers:
                if name == b"grpc-status":
                    assert call.status is None, call
                    call.status = Code(int(text))
                elif name == b":status":
                    assert call.http is None, call
                    call.http = int(text)
        elif isinstance(event, h2.events.DataReceived):
            call.body += event.data
            self.client.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
        elif isinstance(event, h2.events.StreamEnded):
            call.over = True
            call.check_end(self.clock.seconds(), self.stalled)
        elif isinstance(event, h2.events.StreamReset):
            if not call.over:
                self._reset(call, event.error_code)
            elif event.remote_reset and call.http is not None:
                # After an early answer.
                assert event.error_code == ErrorCode.NO_ERROR, (call, event)
            call.over = True

    def _reset(self, call: Call, code: int) -> None:
        """A call was given up: it held the most, or its response was not read for long."""
        assert code in (ErrorCode.ENHANCE_YOUR_CALM, ErrorCode.CANCEL), (call, code)
        assert code != ErrorCode.CANCEL or self.clock.seconds() - call.begun >= self.stalled
        call.check_part()

    def agree(self) -> None:
        """Nothing is on its way: what one end believes, the other does."""
        engine, client = self.protocol.engine, self.client
        assert client.outbound_flow_control_window == engine._window._left
        assert client.inbound_flow_control_window == engine.sender.window
        assert {call.number for call in self.calls.values() if self.open(call)} == set(engine.streams)
        for number, stream in engine.streams.items():
            theirs = client.streams[number]
            if stream.remote_open:
                assert theirs.outbound_flow_control_window == stream.receive_window
            assert theirs.inbound_flow_control_window == stream.send_window
            # What could be sent has been.
            blocked = engine.sender.blocked or engine.sender.window <= 0 or stream.send_window <= 0
            assert not stream.queued or blocked, stream
