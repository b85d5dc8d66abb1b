"""What frames mean: a server's side of one HTTP/2 connection (RFC 9113, sections 5 and 6).

What the peer does wrong is raised inside as a `PeerFault` and turned, here alone, into RST_STREAM or GOAWAY and an
event.  A malformed request costs its stream; only what leaves the connection's own state in doubt costs the connection.
"""

from __future__ import annotations

from collections import deque

from artifactserver.rpc.http2 import frames
from artifactserver.rpc.http2.blocks import Beginnings, HeaderBlocks
from artifactserver.rpc.http2.bodies import NOT_CONTENT_LENGTH, BodyReader
from artifactserver.rpc.http2.errors import ConnectionFault, ErrorCode, HeaderListTooLarge, StreamFault
from artifactserver.rpc.http2.events import (
    ConnectionFailed,
    DataReceived,
    Event,
    GoAwayReceived,
    PingAcknowledged,
    RequestReceived,
    RequestRefused,
    StreamReset,
)
from artifactserver.rpc.http2.frames import (
    CONTINUATION,
    END_HEADERS,
    END_STREAM,
    HEADERS,
    PADDED,
    PRIORITY_FLAG,
    SETTINGS,
)
from artifactserver.rpc.http2.headers import RequestHead, check_trailers
from artifactserver.rpc.http2.limits import Limits
from artifactserver.rpc.http2.rates import Allowance
from artifactserver.rpc.http2.sending import Sender
from artifactserver.rpc.http2.streams import Stream

#: What padding and priority may add to a HEADERS frame.
_HEADERS_EXTRA = 1 + 255 + 5


class Connection(BodyReader):
    """One HTTP/2 connection, as its server sees it.

    :param beginnings: how others have begun, if there are others.
    :ivar failed: the peer broke the connection; it will not be listened to any more.
    :ivar settings_received: the peer has introduced itself.
    """

    def __init__(self, limits: Limits, beginnings: Beginnings | None = None) -> None:
        super().__init__(limits, Sender(self._response_ended))
        self.failed = False
        self.settings_received = False
        self._blocks = HeaderBlocks(limits, beginnings or Beginnings(limits))
        self._resets = Allowance(limits.resets_per_second, limits.resets_burst)
        # A particular frame has to come next: SETTINGS at first, CONTINUATION within a header block.
        self.particular = True
        # A header block that is not whole yet.
        self._block: bytearray | None = None
        self._block_stream = 0
        self._block_ends = False
        self._continuations = 0
        self._ignore_above = frames.MAX_STREAM_ID
        # The latest streams to come to a good end, or to be reset by the peer.
        self._completed: deque[int] = deque(maxlen=2 * limits.streams_open)
        block = limits.header_block_bytes
        control = limits.control_frame_bytes
        self.small = {
            HEADERS: (self._headers, 0, block + _HEADERS_EXTRA),
            CONTINUATION: (self._continuation, 0, block),
            frames.RST_STREAM: (self._rst_stream, 4, 4),
            SETTINGS: (self._settings, 0, control),
            frames.PING: (self._ping, 8, 8),
            frames.GOAWAY: (self._goaway, 8, control),
            frames.WINDOW_UPDATE: (self._window_update, 4, 4),
        }

    # For the layer above

    def start(self) -> None:
        """Put our SETTINGS in line, and the window for the connection."""
        limits = self.limits
        self.sender.control(
            frames.settings_frame(
                {
                    frames.SETTINGS_MAX_CONCURRENT_STREAMS: limits.streams_open,
                    frames.SETTINGS_INITIAL_WINDOW_SIZE: limits.stream_window,
                    frames.SETTINGS_MAX_FRAME_SIZE: limits.frame_bytes,
                    frames.SETTINGS_MAX_HEADER_LIST_SIZE: limits.header_list_bytes,
                }
            )
        )
        increment = self._window.enlarge()
        if increment:
            self.sender.control(frames.window_update_frame(0, increment))

    def receive(self, data: bytes, now: float) -> list[Event]:
        """Take what the peer sent at ``now``, in seconds of a clock that does not go back."""
        events: list[Event] = []
        if not self.failed:
            self._now = now
            self._events = events
            try:
                self.read(data)
            except ConnectionFault as fault:
                events += self.fail(fault)
            # What was received is not kept until more comes.
            self._events = []
        return events

    def fail(self, fault: ConnectionFault) -> list[Event]:
        """End the connection: GOAWAY, and nothing of what was still to be sent on its streams."""
        self.failed = True
        ends: list[Event] = []
        for stream in list(self.streams.values()):
            self._close(stream)
            ends.append(StreamReset(stream, fault.code))
        # What was ignored has not been acted on, and no GOAWAY may name more than one before (section 6.8).
        last = min(self._last_stream, self._ignore_above)
        self.sender.control(frames.goaway_frame(last, fault.code, fault.reason))
        ends.append(ConnectionFailed(fault.code, fault.reason))
        return ends

    def lost(self) -> None:
        """The connection is gone, and with it all that was on its streams.  No event tells of it.

        It is not used any more, and made to go without the collector of cycles.
        """
        for stream in list(self.streams.values()):
            self._close(stream)
        self.small = {}
        self.sender.lost()

    def reset(self, stream: Stream, code: ErrorCode) -> None:
        """Give up a stream of our own accord.  No event tells of it."""
        if stream.remote_open or stream.local_open:
            self._close(stream)
            self._reset_here.append(stream.id)
            self.sender.control(frames.reset_frame(stream.id, code))

    def ping(self, payload: bytes) -> None:
        """Ask the peer to say when it has read everything up to here; ``payload`` is eight bytes."""
        self.sender.control(frames.ping_frame(payload))

    def announce_goaway(self) -> None:
        """Tell the peer to start no more calls here; those that are on their way are still accepted."""
        self.sender.control(frames.goaway_frame(frames.MAX_STREAM_ID, ErrorCode.NO_ERROR, "going away"))

    def goaway(self) -> None:
        """Accept no more calls than have begun."""
        if self._ignore_above == frames.MAX_STREAM_ID:
            self._ignore_above = self._last_stream
            self.sender.control(frames.goaway_frame(self._last_stream, ErrorCode.NO_ERROR, "going away"))

    @property
    def in_mid_frame(self) -> bool:
        """Whether the rest of something small is to come: the preface, a frame that is not DATA, a header block."""
        return super().in_mid_frame or self._block is not None

    # Frames, as the reader finds them

    def check_particular(self, kind: int, flags: int, stream_id: int) -> None:
        if not self.settings_received:
            if kind != SETTINGS or flags & frames.ACK:
                raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "the first frame was not SETTINGS")
        elif kind != CONTINUATION or stream_id != self._block_stream:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "a header block with something else in between")

    def ignored_begins(self, kind: int, length: int, stream_id: int) -> None:
        """Priorities are no more (section 5.3), and what is unknown is ignored (section 5.5)."""
        if kind == frames.PUSH_PROMISE:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "PUSH_PROMISE from a client")
        if kind == frames.PRIORITY:
            if not stream_id:
                raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "PRIORITY on stream 0")
            if length != 5 and stream_id not in self.streams:
                # On a stream that is not open there is nothing to reset, and nothing may be sent.
                raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, f"PRIORITY of {length} bytes")
            if length != 5:
                self.stream_fault(stream_id, StreamFault(ErrorCode.FRAME_SIZE_ERROR, f"PRIORITY of {length} bytes"))
        self.chore()

    def stream_fault(self, stream_id: int, fault: StreamFault) -> None:
        self._spend_resets()
        self.sender.control(frames.reset_frame(stream_id, fault.code))
        self._reset_here.append(stream_id)
        stream = self.streams.get(stream_id)
        if stream is not None:
            self._close(stream)
            self._events.append(StreamReset(stream, fault.code))

    # Streams

    def _headers(self, flags: int, stream_id: int, payload: bytes) -> None:
        if flags & (PADDED | PRIORITY_FLAG):
            payload = frames.unpadded(payload, flags, 5 if flags & PRIORITY_FLAG else 0)
        if not stream_id:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "HEADERS on stream 0")
        if flags & END_HEADERS:
            self._header_block(stream_id, payload, bool(flags & END_STREAM))
        else:
            self._block = bytearray(payload)
            self._block_stream = stream_id
            self._block_ends = bool(flags & END_STREAM)
            self._continuations = 0
            self.particular = True

    def _continuation(self, flags: int, stream_id: int, payload: bytes) -> None:
        if self._block is None:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "CONTINUATION without HEADERS")
        self._continuations += 1
        if self._continuations > self.limits.continuations:
            raise ConnectionFault(ErrorCode.ENHANCE_YOUR_CALM, "a header block in too many frames")
        if len(self._block) + len(payload) > self.limits.header_block_bytes:
            raise ConnectionFault(ErrorCode.ENHANCE_YOUR_CALM, "a header block that is too long")
        self._block += payload
        if flags & END_HEADERS:
            block = bytes(self._block)
            self._block = None
            self.particular = False
            self._header_block(stream_id, block, self._block_ends)

    def _header_block(self, stream_id: int, block: bytes, ended: bool) -> None:
        if stream_id <= self._last_stream:
            self._more_headers(stream_id, block, ended)
            return
        if not stream_id & 1:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "a client's stream with an even number")
        self._last_stream = stream_id
        if stream_id > self._ignore_above:
            self._reset_here.append(stream_id)
            self._more_headers(stream_id, block, ended)
            return
        head: RequestHead | None
        try:
            # Even a request that will be refused is decoded: the connection's HPACK state depends on it.
            head = self._blocks.known(block) or self._blocks.request(block)
        except HeaderListTooLarge as error:
            # To decode it took long for what it was; nobody may ask for that all the time.
            self._spend_resets(error.resets)
            head = None
        if len(self.streams) >= self.limits.streams_open:
            raise StreamFault(ErrorCode.REFUSED_STREAM, "too many calls at once")
        if head is not None and ended and head.content_length:
            raise StreamFault(ErrorCode.PROTOCOL_ERROR, NOT_CONTENT_LENGTH)
        stream = self.streams[stream_id] = Stream(stream_id, self._stream_window, self.sender.initial_window)
        if ended:
            stream.remote_open = False
        if head is None:
            self._events.append(RequestRefused(stream))
            return
        if head.content_length is not None:
            stream.body_left = head.content_length
        self._events.append(RequestReceived(stream, head, ended))

    def _more_headers(self, stream_id: int, block: bytes, ended: bool) -> None:
        """A header block on a stream that has had one: trailers, or a mistake."""
        stream = self.streams.get(stream_id)
        if stream is None and stream_id not in self._reset_here:
            if stream_id in self._completed:
                raise ConnectionFault(ErrorCode.STREAM_CLOSED, "HEADERS on a stream that is closed")
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "a stream number lower than one before")
        try:
            fields = self._blocks.trailers(block)
        except HeaderListTooLarge as error:
            self._spend_resets(error.resets)
            fields = []
            ended = False
        if stream is None:
            # Nobody will see it.
            self.chore()
            return
        if not stream.remote_open:
            raise StreamFault(ErrorCode.STREAM_CLOSED, "HEADERS after the end of a request")
        if not ended:
            raise StreamFault(ErrorCode.PROTOCOL_ERROR, "trailers that do not end the request, or are too large")
        check_trailers(fields)
        if stream.body_left > 0:
            raise StreamFault(ErrorCode.PROTOCOL_ERROR, NOT_CONTENT_LENGTH)
        stream.remote_open = False
        self._events.append(DataReceived(stream, b"", True))

    def _rst_stream(self, flags: int, stream_id: int, payload: bytes) -> None:
        if self.is_idle(stream_id):
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "RST_STREAM on a stream that was not opened")
        self._spend_resets()
        stream = self.streams.get(stream_id)
        if stream is not None:
            self._close(stream)
            self._completed.append(stream_id)
            self._events.append(StreamReset(stream, _code(payload)))

    def _spend_resets(self, number: int = 1) -> None:
        if not self._resets.spend(self._now, number):
            raise ConnectionFault(ErrorCode.ENHANCE_YOUR_CALM, "too many streams reset")

    def _close(self, stream: Stream) -> None:
        stream.remote_open = stream.local_open = False
        self.sender.forget(stream)
        self.streams.pop(stream.id, None)

    def _response_ended(self, stream: Stream) -> None:
        """The sender has put the end of a response in line."""
        stream.local_open = False
        # Its owner knows it as well: to part them frees both at once, and not when garbage is next looked for.
        stream.owner = None
        del self.streams[stream.id]
        if stream.remote_open:
            # An early answer: tell the peer not to go on (section 8.1).
            stream.remote_open = False
            self._reset_here.append(stream.id)
            self.sender.control(frames.reset_frame(stream.id, ErrorCode.NO_ERROR))
        else:
            self._completed.append(stream.id)

    # The connection

    def _settings(self, flags: int, stream_id: int, payload: bytes) -> None:
        if stream_id:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "SETTINGS on a stream")
        if flags & frames.ACK:
            if payload:
                raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, "an acknowledgement of SETTINGS with a payload")
            self.chore()
            self._settings_acknowledged()
            return
        if len(payload) % 6:
            raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, f"SETTINGS with {len(payload)} bytes")
        self.chore()
        if not self.settings_received:
            self.settings_received = True
            self.particular = False
        for name, value in frames.read_settings(payload):
            if name == frames.SETTINGS_INITIAL_WINDOW_SIZE:
                self.sender.change_initial_window(value, list(self.streams.values()))
            elif name == frames.SETTINGS_MAX_FRAME_SIZE:
                self.sender.frame_bytes = value
            elif name == frames.SETTINGS_MAX_HEADER_LIST_SIZE:
                self.sender.header_list_bytes = value
            elif name == frames.SETTINGS_HEADER_TABLE_SIZE:
                self.sender.limit_table(value)
        self.sender.control(frames.SETTINGS_ACK)

    def _settings_acknowledged(self) -> None:
        excess = self._stream_window - self.limits.stream_window
        if excess:
            self._stream_window = self.limits.stream_window
            for stream in self.streams.values():
                stream.receive_window -= excess

    def _ping(self, flags: int, stream_id: int, payload: bytes) -> None:
        if stream_id:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "PING on a stream")
        self.chore()
        if flags & frames.ACK:
            self._events.append(PingAcknowledged(payload))
        else:
            self.sender.control(frames.ping_frame(payload, frames.ACK))

    def _goaway(self, flags: int, stream_id: int, payload: bytes) -> None:
        if stream_id:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "GOAWAY on a stream")
        self.chore()
        self._events.append(GoAwayReceived(_code(payload[4:8])))

    def _window_update(self, flags: int, stream_id: int, payload: bytes) -> None:
        increment = int.from_bytes(payload, "big") & frames.MAX_WINDOW
        if not stream_id:
            if not increment:
                raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "WINDOW_UPDATE of 0")
            self.sender.open_window(increment)
            return
        stream = self.streams.get(stream_id)
        if stream is None:
            if self.is_idle(stream_id):
                raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "WINDOW_UPDATE on a stream that was not opened")
            return
        if not increment:
            raise StreamFault(ErrorCode.PROTOCOL_ERROR, "WINDOW_UPDATE of 0")
        self.sender.open_stream_window(stream, increment)


def _code(payload: bytes) -> ErrorCode | int:
    """The error code in a frame; a number without a name is no fault (RFC 9113, section 7)."""
    number = int.from_bytes(payload, "big")
    return ErrorCode(number) if number <= ErrorCode.HTTP_1_1_REQUIRED else number
