"""Bytes into frames (RFC 9113, section 4.1), wherever the bytes were cut.

There are two kinds of frames: those whose payload *flows*, handed on in the parts in which it arrives and never kept
here (DATA, and whatever is to be ignored), and small ones, which wait until they are whole.
"""

from __future__ import annotations

from collections.abc import Callable

from artifactserver.rpc.http2.errors import ConnectionFault, ErrorCode, StreamFault
from artifactserver.rpc.http2.frames import DATA, FRAME_HEADER, read_frame_header

#: What every client sends first (RFC 9113, section 3.4).
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"

#: A small frame: what to do with it (its flags, stream and payload), and how short and how long it may be.
SmallFrame = tuple[Callable[[int, int, bytes], None], int, int]


class FrameReader:
    """Cuts what is received into frames and calls itself with them; a `Connection` knows what they mean.

    :param most: the largest payload of a frame.
    :ivar frames_received: how many frames have begun.
    :ivar particular: not any frame may come next; ask `check_particular`.
    :ivar small: the frames that do not flow, by type.
    """

    small: dict[int, SmallFrame]

    def __init__(self, most: int) -> None:
        self.frames_received = 0
        self.particular = False
        self._most = most
        self._preface = PREFACE
        # What is still to come of a payload that flows, and whether it is DATA's.
        self._flowing = 0
        self._data_flows = False
        # A frame that is not whole, header included, and how many bytes it takes to go on.
        self._partial = bytearray()
        self._needed = FRAME_HEADER

    def check_particular(self, kind: int, flags: int, stream_id: int) -> None:
        """:raises ConnectionFault: if this frame may not come now."""
        raise NotImplementedError

    def data_whole(self, data: bytes, start: int, stop: int, flags: int, stream_id: int) -> None:
        """A DATA frame that has arrived in one piece, with the payload ``data[start:stop]``."""
        raise NotImplementedError

    def data_begins(self, length: int, flags: int, stream_id: int) -> None:
        """A DATA frame begins that has not."""
        raise NotImplementedError

    def data_part(self, data: bytes, start: int, stop: int, left: int) -> None:
        """A part of DATA: ``data[start:stop]``, after which ``left`` bytes are to come.  An empty frame is one part."""
        raise NotImplementedError

    def ignored_begins(self, kind: int, length: int, stream_id: int) -> None:
        """A frame begins whose payload nobody will see."""
        raise NotImplementedError

    def stream_fault(self, stream_id: int, fault: StreamFault) -> None:
        """A small frame was its stream's undoing."""
        raise NotImplementedError

    @property
    def in_mid_frame(self) -> bool:
        """Whether the rest of something small is to come: the preface, or a frame that does not flow."""
        return bool(self._partial or self._preface)

    def read(self, data: bytes) -> None:
        """:raises ConnectionFault: if the peer does not speak HTTP/2, or says something unbearable."""
        position = 0
        end = len(data)
        small = self.small
        if self._preface:
            position = self._read_preface(data)
        while position < end:
            if self._flowing:
                stop = min(end, position + self._flowing)
                self._flowing -= stop - position
                if self._data_flows:
                    self.data_part(data, position, stop, self._flowing)
                position = stop
                continue
            if self._partial:
                position = self._complete(data, position)
                continue
            if end - position < FRAME_HEADER:
                self._partial += data[position:]
                self._needed = FRAME_HEADER
                return
            # From here on, `_complete` says the same for frames that came in pieces.
            word, flags, stream_id = read_frame_header(data, position)
            length = word >> 8
            kind = word & 0xFF
            stream_id &= 0x7FFFFFFF
            position += FRAME_HEADER
            stop = position + length
            if kind == DATA and stop <= end and length <= self._most and not self.particular:
                self.frames_received += 1
                self.data_whole(data, position, stop, flags, stream_id)
                position = stop
                continue
            frame = small.get(kind)
            if self.particular or length > self._most or frame is None:
                if self._begins(kind, length, flags, stream_id, frame):
                    continue
            elif not frame[1] <= length <= frame[2]:
                self._bad_length(kind, length, frame)
            else:
                self.frames_received += 1
            if stop > end:
                self._partial += data[position - FRAME_HEADER :]
                self._needed = FRAME_HEADER + length
                return
            try:
                frame[0](flags, stream_id, data[position:stop])  # type: ignore[index]
            except StreamFault as fault:
                self.stream_fault(stream_id, fault)
            position = stop

    def _read_preface(self, data: bytes) -> int:
        length = min(len(data), len(self._preface))
        if data[:length] != self._preface[:length]:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "a connection preface that is not HTTP/2's")
        self._preface = self._preface[length:]
        return length

    def _begins(self, kind: int, length: int, flags: int, stream_id: int, frame: SmallFrame | None) -> bool:
        """Check a frame's header; gives whether its payload flows."""
        self.frames_received += 1
        if length > self._most:
            raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, f"a frame of {length} bytes")
        if self.particular:
            self.check_particular(kind, flags, stream_id)
        if frame is not None:
            if not frame[1] <= length <= frame[2]:
                self._bad_length(kind, length, frame)
            return False
        self._flowing = length
        self._data_flows = kind == DATA
        if not self._data_flows:
            self.ignored_begins(kind, length, stream_id)
        else:
            self.data_begins(length, flags, stream_id)
            if not length:
                self.data_part(b"", 0, 0, 0)
        return True

    def _bad_length(self, kind: int, length: int, frame: SmallFrame) -> None:
        # What has a fixed form breaks it; what has not is legal, and more than we bear.
        code = ErrorCode.ENHANCE_YOUR_CALM if length > frame[2] > frame[1] else ErrorCode.FRAME_SIZE_ERROR
        raise ConnectionFault(code, f"a frame of type {kind} with {length} bytes")

    def _complete(self, data: bytes, position: int) -> int:
        """Add to the frame that is not whole; gives how far ``data`` has been used."""
        partial = self._partial
        stop = min(len(data), position + self._needed - len(partial))
        partial += data[position:stop]
        if len(partial) < self._needed:
            return stop
        word, flags, stream_id = read_frame_header(partial)
        kind = word & 0xFF
        stream_id &= 0x7FFFFFFF
        frame = self.small.get(kind)
        if self._needed == FRAME_HEADER:
            # Taken away first: a frame without payload is dealt with in there, and may end the connection.
            self._partial = bytearray()
            if self._begins(kind, word >> 8, flags, stream_id, frame):
                return stop
            if word >> 8:
                self._partial = partial
                self._needed = FRAME_HEADER + (word >> 8)
                return stop
        self._partial = bytearray()
        assert frame is not None
        try:
            frame[0](flags, stream_id, bytes(partial[FRAME_HEADER:]))
        except StreamFault as fault:
            self.stream_fault(stream_id, fault)
        return stop
