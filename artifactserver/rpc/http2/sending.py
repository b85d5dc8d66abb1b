"""The sending half: what may go out now, in which order, and in pieces of which size (RFC 9113, section 5.2).

Control frames and answers that fit the windows are put in line at once.  Other response data waits with its stream
and is cut into frames only when the transport asks for the next piece.  So an acknowledgement of SETTINGS always
leaves before the first DATA frame that makes use of them, and what a peer is not ready for costs no cutting.

Streams that have both data and window take turns, a piece each.  A piece is one `bytes` of frame headers and payload
joined: a transport would join them anyway, and takes nothing else.  TLS copies them anyway, and takes them as they are.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from artifactserver.rpc.http2 import frames
from artifactserver.rpc.http2.errors import ConnectionFault, ErrorCode, Misuse, StreamFault
from artifactserver.rpc.http2.frames import END_HEADERS, END_STREAM, HEADERS, frame_header
from artifactserver.rpc.http2.headers import NO_TABLE
from artifactserver.rpc.http2.streams import Stream

#: How much is written at once: measured, larger ones do not gain anything.
PIECE = 256 * 1024
#: How much one stream sends before the next has its turn, while several wait.
TURN = 64 * 1024
#: An answer up to this size is put in line behind what is already there, without waiting for its stream's turn.
DIRECT = 64 * 1024


def _nobody(stream: Stream) -> None: ...


class Sender:
    """What one connection has to send.

    :param ended: called with each stream whose response is complete.
    :ivar blocked: the transport does not want more at the moment; what can wait, waits.
    :ivar window: how much the peer is ready for, all streams together.
    :ivar header_list_bytes: the largest header list that the peer likes to get, counted as HPACK does.
    :ivar owed: response bytes waiting on all streams together.
    :ivar drained: streams whose queue has sunk to their `Stream.wake_below`; whoever reads the list empties it.
    """

    __slots__ = (
        "_ended",
        "_out",
        "_out_bytes",
        "_ready",
        "_table_bytes",
        "_table_update",
        "blocked",
        "control_frames",
        "drained",
        "frame_bytes",
        "header_list_bytes",
        "initial_window",
        "owed",
        "window",
    )

    def __init__(self, ended: Callable[[Stream], None]) -> None:
        self._ended = ended
        self._out: list[bytes] = []
        self._out_bytes = 0
        self._ready: deque[Stream] = deque()
        # How large our dynamic table may be for all that the peer's decoder has been told, and what to tell it next.
        self._table_bytes = frames.DEFAULT_TABLE_BYTES
        self._table_update = b""
        self.control_frames = 0
        self.blocked = False
        self.window = frames.DEFAULT_WINDOW
        self.initial_window = frames.DEFAULT_WINDOW
        self.frame_bytes = frames.DEFAULT_FRAME_BYTES
        self.header_list_bytes = frames.MAX_HEADER_LIST_BYTES
        self.owed = 0
        self.drained: list[Stream] = []

    # What the peer allows

    def open_window(self, increment: int) -> None:
        """:raises ConnectionFault: if the peer allows more than can be counted."""
        self.window += increment
        if self.window > frames.MAX_WINDOW:
            raise ConnectionFault(ErrorCode.FLOW_CONTROL_ERROR, "a connection window beyond 2**31 - 1")

    def open_stream_window(self, stream: Stream, increment: int) -> None:
        """:raises StreamFault: if the peer allows more than can be counted."""
        stream.send_window += increment
        if stream.send_window > frames.MAX_WINDOW:
            raise StreamFault(ErrorCode.FLOW_CONTROL_ERROR, "a stream window beyond 2**31 - 1")
        if stream.queued:
            self._schedule(stream)

    def change_initial_window(self, size: int, streams: list[Stream]) -> None:
        """The peer's new INITIAL_WINDOW_SIZE, which also moves the windows of open streams, below zero if need be.

        :raises ConnectionFault: if a window would become larger than can be counted.
        """
        change = size - self.initial_window
        self.initial_window = size
        for stream in streams:
            stream.send_window += change
            if stream.send_window > frames.MAX_WINDOW:
                raise ConnectionFault(ErrorCode.FLOW_CONTROL_ERROR, "INITIAL_WINDOW_SIZE makes a window overflow")
            if stream.queued:
                self._schedule(stream)

    def limit_table(self, size: int) -> None:
        """The peer's new HEADER_TABLE_SIZE, of which we make no use.

        Its decoder still wants to hear of a table that has to become smaller, at the start of the next header block
        (RFC 9113, section 4.3.1; RFC 7541, section 4.2).
        """
        if size < self._table_bytes:
            self._table_bytes = 0
            self._table_update = NO_TABLE

    # What we want to say

    def control(self, frame: bytes) -> None:
        """Put a control frame in line."""
        self._out.append(frame)
        self._out_bytes += len(frame)
        self.control_frames += 1

    def answer(self, stream: Stream, head: bytes, body: tuple[bytes, ...], tail: bytes) -> None:
        """A whole response: headers, body, trailers; as one piece if it fits the windows."""
        size = sum(map(len, body))
        if (
            self.blocked
            or size > DIRECT
            or size > stream.send_window
            or size > self.window
            or size > self.frame_bytes
            or self._table_update
        ):
            self.headers(stream, head)
            self.data(stream, *body)
            self.finish(stream, tail)
            return
        if not stream.local_open:
            raise Misuse(f"an answer on {stream}, whose response has ended")
        stream_id = stream.id
        self.window -= size
        whole = b"".join(
            (
                frame_header(len(head) << 8 | HEADERS, END_HEADERS, stream_id),
                head,
                frame_header(size << 8, 0, stream_id),
                *body,
                frame_header(len(tail) << 8 | HEADERS, END_HEADERS | END_STREAM, stream_id),
                tail,
            )
        )
        self._out.append(whole)
        self._out_bytes += len(whole)
        self._ended(stream)

    def headers(self, stream: Stream, block: bytes, *, end: bool = False) -> None:
        """Begin a response, or with ``end`` make it one of headers only."""
        if not stream.local_open:
            raise Misuse(f"headers on {stream}, whose response has ended")
        self._put_block(stream, block, end)
        if end:
            self._ended(stream)

    def data(self, stream: Stream, *pieces: bytes) -> None:
        """More of a response's body."""
        if not stream.local_open or stream.tail is not None:
            raise Misuse(f"data on {stream}, whose response has ended")
        size = 0
        for piece in pieces:
            size += len(piece)
        if (
            size <= DIRECT
            and not stream.queued
            and not self.blocked
            and size <= stream.send_window
            and size <= self.window
            and size <= self.frame_bytes
        ):
            self.window -= size
            stream.send_window -= size
            self._put(b"".join((frame_header(size << 8, 0, stream.id), *pieces)))
            return
        if stream.queue is None:
            stream.queue = deque()
        stream.queue.extend(piece for piece in pieces if piece)
        stream.queued += size
        self.owed += size
        self._schedule(stream)

    def finish(self, stream: Stream, tail: bytes) -> None:
        """End a response with trailers, once its data is out."""
        if not stream.local_open or stream.tail is not None:
            raise Misuse(f"trailers on {stream}, whose response has ended")
        if stream.queued:
            stream.tail = tail
        else:
            self._put_block(stream, tail, True)
            self._ended(stream)

    def forget(self, stream: Stream) -> None:
        """Drop what waits on a stream that is no more."""
        if stream.queued:
            self.owed -= stream.queued
            stream.queued = 0
            stream.queue = None
        stream.tail = None

    def lost(self) -> None:
        """There is nobody left to send anything to."""
        self._ended = _nobody
        self._out = []
        self._out_bytes = 0
        self._ready.clear()

    # What goes out

    @property
    def in_line(self) -> int:
        """Bytes that wait for nothing but the transport: control frames, headers, and answers that fit the windows."""
        return self._out_bytes

    def take(self, most: int = PIECE) -> bytes:
        """The next bytes to write: at most about ``most``, unless control frames alone are more; empty for none."""
        pieces = self.take_pieces(most)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def take_pieces(self, most: int = PIECE) -> list[bytes]:
        """The same in pieces, some of which may be a `memoryview`: for who need not join them."""
        if self._ready and self.window > 0:
            self._cut(most - self._out_bytes)
        out = self._out
        if out:
            self._out = []
            self._out_bytes = 0
            self.control_frames = 0
        return out

    def _put(self, frame: bytes) -> None:
        self._out.append(frame)
        self._out_bytes += len(frame)

    def _put_block(self, stream: Stream, block: bytes, end: bool) -> None:
        if self._table_update:
            block = self._table_update + block
            self._table_update = b""
        frame = frames.headers_frame(stream.id, block, end)
        self._out.append(frame)
        self._out_bytes += len(frame)

    def _schedule(self, stream: Stream) -> None:
        if not stream.scheduled and stream.send_window > 0:
            stream.scheduled = True
            self._ready.append(stream)

    def _cut(self, room: int) -> None:
        """Move data from the streams whose turn it is into the line, ``room`` bytes at most."""
        ready = self._ready
        while ready and room > 0 and self.window > 0:
            stream = ready.popleft()
            stream.scheduled = False
            size = min(room, self.window, stream.send_window, stream.queued)
            if ready and size > TURN:
                size = TURN
            if size > 0:
                self._cut_stream(stream, size)
                room -= size
            if stream.queued:
                self._schedule(stream)
            elif stream.tail is not None:
                self._put_block(stream, stream.tail, True)
                stream.tail = None
                self._ended(stream)

    def _cut_stream(self, stream: Stream, size: int) -> None:
        queue = stream.queue
        assert queue is not None
        self.window -= size
        self.owed -= size
        stream.send_window -= size
        stream.queued -= size
        stream.moved += size
        if stream.queued <= stream.wake_below:
            stream.wake_below = -1
            self.drained.append(stream)
        out = self._out
        self._out_bytes += size
        while size:
            left = min(size, self.frame_bytes)
            size -= left
            out.append(frame_header(left << 8, 0, stream.id))
            while left:
                piece = queue[0]
                rest = len(piece) - stream.offset
                if rest <= left:
                    out.append(memoryview(piece)[stream.offset :] if stream.offset else piece)  # type: ignore[arg-type]
                    queue.popleft()
                    stream.offset = 0
                    left -= rest
                else:
                    out.append(memoryview(piece)[stream.offset : stream.offset + left])  # type: ignore[arg-type]
                    stream.offset += left
                    left = 0
