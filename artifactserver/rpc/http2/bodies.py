"""DATA: the bodies of requests, and the windows that they count against (RFC 9113, sections 5.2, 6.1 and 6.9)."""

from __future__ import annotations

from collections import deque

from artifactserver.rpc.http2 import frames
from artifactserver.rpc.http2.errors import ConnectionFault, ErrorCode, StreamFault
from artifactserver.rpc.http2.events import DataReceived, Event
from artifactserver.rpc.http2.frames import END_STREAM, PADDED
from artifactserver.rpc.http2.limits import MESSAGE_PREFIX, Limits
from artifactserver.rpc.http2.rates import Allowance
from artifactserver.rpc.http2.reading import FrameReader
from artifactserver.rpc.http2.sending import Sender
from artifactserver.rpc.http2.streams import Stream
from artifactserver.rpc.http2.windows import ReceiveWindow

NOT_CONTENT_LENGTH = "a body that is not content-length long"

#: A payload is handed on as a view of what was received if it is at least this large, and at least this share of it.
#: Anything else is copied, so that a few bytes which have to wait do not keep a large buffer alive.
VIEW_LEAST = 16 * 1024
VIEW_SHARE = 2


class BodyReader(FrameReader):
    """Hands on request bodies as they arrive, and gives window back as it is told.

    :ivar sender: the sending half.
    :ivar streams: the open streams, by number.
    """

    def __init__(self, limits: Limits, sender: Sender) -> None:
        super().__init__(limits.frame_bytes)
        self.limits = limits
        self.sender = sender
        self.streams: dict[int, Stream] = {}
        self._now = 0.0
        self._events: list[Event] = []
        # Stream numbers only ever grow.  Of the latest that were reset here, more may still arrive.
        self._last_stream = 0
        self._reset_here: deque[int] = deque(maxlen=2 * limits.streams_open)
        self._window = ReceiveWindow(limits.connection_window)
        # Until the peer has acknowledged our SETTINGS, it may rely on what holds without them.
        self._stream_window = max(limits.stream_window, frames.DEFAULT_WINDOW)
        # What is kept back meanwhile has to leave room for the largest message, since a handler waits for all of it.
        self._stream_step = min(limits.stream_window // 4, limits.stream_window - limits.message_bytes - MESSAGE_PREFIX)
        self._chores = Allowance(limits.chores_per_second, limits.chores_burst)
        # The DATA frame that flows; without a stream it is thrown away.
        self._data_stream: Stream | None = None
        self._data_ends = False
        self._pad_length_next = False
        self._padding = 0

    def release(self, size: int) -> None:
        """So many body bytes no longer count against the connection's window."""
        increment = self._window.release(size)
        if increment:
            self.sender.control(frames.window_update_frame(0, increment))

    def retake(self, size: int) -> None:
        """So many released body bytes count against the connection's window once more, until they are released."""
        self._window.retake(size)

    def release_stream(self, stream: Stream, size: int) -> None:
        """So many body bytes no longer count against their stream's window."""
        if stream.remote_open:
            stream.unreturned += size
            if stream.unreturned > self._stream_step:
                stream.receive_window += stream.unreturned
                self.sender.control(frames.window_update_frame(stream.id, stream.unreturned))
                stream.unreturned = 0

    def is_idle(self, stream_id: int) -> bool:
        """Whether no stream of this number was ever opened: even ones would be ours to open, and we open none."""
        return not stream_id & 1 or stream_id > self._last_stream

    def data_whole(self, data: bytes, start: int, stop: int, flags: int, stream_id: int) -> None:
        size = stop - start
        stream = self.streams.get(stream_id)
        if (
            stream is None
            or not stream.remote_open
            or not 1 < size <= stream.receive_window
            or stream.body_left >= 0
            or flags & PADDED
        ):
            self.data_begins(size, flags, stream_id)
            self.data_part(data, start, stop, 0)
            return
        # For nearly all frames, the same in one go.
        self._window.receive(size)
        stream.receive_window -= size
        stream.moved += size
        ended = bool(flags & END_STREAM)
        if ended:
            stream.remote_open = False
        if size >= VIEW_LEAST and size * VIEW_SHARE >= len(data):
            self._events.append(DataReceived(stream, memoryview(data)[start:stop], ended))
        else:
            self._events.append(DataReceived(stream, data[start:stop], ended))

    def data_begins(self, length: int, flags: int, stream_id: int) -> None:
        self._window.receive(length)
        self._data_ends = bool(flags & END_STREAM)
        self._padding = 0
        self._pad_length_next = bool(flags & PADDED)
        if self._pad_length_next and not length:
            raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, "a padded frame without a pad length")
        stream = self._data_stream = self.streams.get(stream_id)
        if stream is None:
            if self.is_idle(stream_id):
                raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "DATA on a stream that was not opened")
            if stream_id not in self._reset_here:
                raise ConnectionFault(ErrorCode.STREAM_CLOSED, "DATA on a stream that is closed")
        elif not stream.remote_open:
            self._data_stream = None
            self.stream_fault(stream_id, StreamFault(ErrorCode.STREAM_CLOSED, "DATA after the end of a request"))
        elif length > stream.receive_window and length:
            self._data_stream = None
            self.stream_fault(stream_id, StreamFault(ErrorCode.FLOW_CONTROL_ERROR, "data beyond a stream's window"))
        else:
            stream.receive_window -= length
        if length <= 1 and not self._data_ends:
            # Too little to be of use: legal, and free up to a point.
            self.chore()

    def data_part(self, data: bytes, start: int, stop: int, left: int) -> None:
        arrived = stop - start
        if self._pad_length_next:
            self._pad_length_next = False
            self._padding = data[start]
            start += 1
            if self._padding > stop - start + left:
                raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "padding longer than the frame")
        if self._padding:
            # Of the bytes that remain in the frame, the last are padding.
            stop = max(start, min(stop, stop + left - self._padding))
        size = stop - start
        stream = self._data_stream
        if stream is None:
            self.release(arrived)
            return
        if arrived != size:
            self.release(arrived - size)
            self.release_stream(stream, arrived - size)
        ended = self._data_ends and not left
        if stream.body_left >= 0:
            stream.body_left -= size
            if stream.body_left < 0 or (ended and stream.body_left):
                self.release(size)
                self._data_stream = None
                self.stream_fault(stream.id, StreamFault(ErrorCode.PROTOCOL_ERROR, NOT_CONTENT_LENGTH))
                return
        if ended:
            stream.remote_open = False
        if size or ended:
            stream.moved += size
            if size >= VIEW_LEAST and size * VIEW_SHARE >= len(data):
                self._events.append(DataReceived(stream, memoryview(data)[start:stop], ended))
            else:
                self._events.append(DataReceived(stream, data[start:stop], ended))

    def chore(self) -> None:
        """A frame that only makes work."""
        if not self._chores.spend(self._now) or self.sender.control_frames > self.limits.control_frames_queued:
            raise ConnectionFault(ErrorCode.ENHANCE_YOUR_CALM, "too many frames that do nothing")
