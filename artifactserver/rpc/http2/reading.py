"""Bytes into frames (RFC 9113, section 4.1), wherever the bytes were cut.

Two kinds of frames: those whose payload *flows*, handed on in the parts in which it arrives and never kept here, and
those that are small, and wait until they are whole.
"""

from __future__ import annotations

from artifactserver.rpc.http2.errors import ConnectionFault, ErrorCode
from artifactserver.rpc.http2.frames import FRAME_HEADER, read_frame_header

#: What every client sends first (RFC 9113, section 3.4).
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"


class FrameReader:
    """Cuts what is received into frames, and calls itself with them: a `Connection` says what they mean.

    :ivar frames_received: how many frames have begun.
    """

    def __init__(self) -> None:
        self.frames_received = 0
        self._preface = PREFACE
        # What is still to come of a payload that flows.
        self._flowing = 0
        # A frame that is not whole, header included, and how many bytes it takes to go on.
        self._partial = bytearray()
        self._needed = FRAME_HEADER

    def frame_begins(self, kind: int, length: int, flags: int, stream_id: int) -> bool:
        """A frame header has been read.  Gives whether its payload flows."""
        raise NotImplementedError

    def payload_part(self, data: bytes, start: int, stop: int, left: int) -> None:
        """A part of a payload that flows: ``data[start:stop]``, after which ``left`` bytes are to come.

        A payload without bytes is one part.
        """
        raise NotImplementedError

    def frame(self, kind: int, flags: int, stream_id: int, payload: bytes) -> None:
        """A whole frame whose payload does not flow."""
        raise NotImplementedError

    def read(self, data: bytes) -> None:
        """:raises ConnectionFault: if the peer does not speak HTTP/2, or says something unbearable."""
        position = 0
        end = len(data)
        if self._preface:
            position = self._read_preface(data)
        while position < end:
            if self._flowing:
                stop = min(end, position + self._flowing)
                self._flowing -= stop - position
                self.payload_part(data, position, stop, self._flowing)
                position = stop
            elif self._partial:
                position = self._complete(data, position)
            elif end - position < FRAME_HEADER:
                self._partial += data[position:]
                self._needed = FRAME_HEADER
                return
            else:
                word, flags, stream_id = read_frame_header(data, position)
                length = word >> 8
                position += FRAME_HEADER
                if self._begin(word, flags, stream_id):
                    continue
                if end - position < length:
                    self._partial += data[position - FRAME_HEADER :]
                    self._needed = FRAME_HEADER + length
                    return
                self.frame(word & 0xFF, flags, stream_id & 0x7FFFFFFF, data[position : position + length])
                position += length

    @property
    def in_mid_frame(self) -> bool:
        """Whether the rest of something small is to come: the preface, or a frame that does not flow."""
        return bool(self._partial or self._preface)

    def _read_preface(self, data: bytes) -> int:
        length = min(len(data), len(self._preface))
        if data[:length] != self._preface[:length]:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "a connection preface that is not HTTP/2's")
        self._preface = self._preface[length:]
        return length

    def _begin(self, word: int, flags: int, stream_id: int) -> bool:
        """Whether the payload flows, and with it everything that is still to do for this frame here."""
        self.frames_received += 1
        length = word >> 8
        if not self.frame_begins(word & 0xFF, length, flags, stream_id & 0x7FFFFFFF):
            return False
        self._flowing = length
        if not length:
            self.payload_part(b"", 0, 0, 0)
        return True

    def _complete(self, data: bytes, position: int) -> int:
        """Add to the frame that is not whole; gives how far ``data`` has been used."""
        partial = self._partial
        stop = min(len(data), position + self._needed - len(partial))
        partial += data[position:stop]
        if len(partial) < self._needed:
            return stop
        word, flags, stream_id = read_frame_header(partial)
        if self._needed == FRAME_HEADER:
            # Taken away first: a payload without bytes is dealt with in there, and may end the connection.
            self._partial = bytearray()
            if self._begin(word, flags, stream_id):
                return stop
            if word >> 8:
                self._partial = partial
                self._needed = FRAME_HEADER + (word >> 8)
                return stop
        self._partial = bytearray()
        self.frame(word & 0xFF, flags, stream_id & 0x7FFFFFFF, bytes(partial[FRAME_HEADER:]))
        return stop
