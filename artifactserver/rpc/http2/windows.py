"""The window that a peer sends into: what it may still send, and when to give back what was consumed."""

from __future__ import annotations

from artifactserver.rpc.http2.errors import ConnectionFault, ErrorCode, Misuse
from artifactserver.rpc.http2.frames import DEFAULT_WINDOW


class ReceiveWindow:
    """The window of a connection (RFC 9113, section 6.9).

    It is given back in large steps, a quarter at a time: each WINDOW_UPDATE costs both sides about as much as a small
    call.
    """

    __slots__ = ("_consumed", "_left", "_outstanding", "_size")

    def __init__(self, size: int) -> None:
        self._size = size
        self._left = DEFAULT_WINDOW
        self._consumed = 0
        self._outstanding = 0

    def enlarge(self) -> int:
        """What to add to the window that every connection starts with; 0 if ours is to be smaller."""
        increment = max(0, self._size - self._left)
        self._left += increment
        return increment

    def receive(self, size: int) -> None:
        """:raises ConnectionFault: if the peer sends more than it may."""
        if size > self._left:
            raise ConnectionFault(ErrorCode.FLOW_CONTROL_ERROR, "more data than the connection's window")
        self._left -= size
        self._outstanding += size

    def release(self, size: int) -> int:
        """So much was consumed; gives what to tell the peer now, mostly nothing."""
        self._outstanding -= size
        if self._outstanding < 0:
            raise Misuse("more request data released than received")
        self._consumed += size
        if self._consumed * 4 < self._size:
            return 0
        # A window that was meant to be smaller than HTTP/2's first one shrinks to its size before it grows again.
        increment = min(self._consumed, self._size - self._left - self._outstanding)
        self._consumed = 0
        if increment <= 0:
            return 0
        self._left += increment
        return increment

    def retake(self, size: int) -> None:
        """So much that was consumed has to be kept after all: less is given back from now on, until it is released."""
        self._outstanding += size
        self._consumed -= size
