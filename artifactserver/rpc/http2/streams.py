"""One stream: what is left of its windows, what waits to be sent on it, and which halves are open."""

from __future__ import annotations

from collections import deque
from typing import Any


class Stream:
    """State of one request and its response.

    A plain record: `Connection` keeps the receiving half, `Sender` the sending half.  Only streams that are open or
    half-closed have one; idle and closed ones are told apart by their number.

    :ivar owner: whatever the layer above keeps per stream; nothing here looks at it.
    :ivar remote_open: the peer may still send a body.
    :ivar local_open: the response has not ended.
    :ivar receive_window: how many body bytes the peer may still send.
    :ivar unreturned: body bytes that were consumed and not yet given back to the peer.
    :ivar body_left: what ``content-length`` still promises, or -1 for a request without one.
    :ivar send_window: how many body bytes the peer is ready for; negative after it shrank its window.
    :ivar queue: response bytes that wait, in order; `offset` of the first have been sent.
    :ivar queued: how many they are.
    :ivar tail: the header block that ends the response once the queue is empty.
    :ivar scheduled: the sender will come round to this stream.
    :ivar wake_below: tell the layer above when no more than this many bytes are queued; -1 for never.
    :ivar moved: body bytes that have moved, in or out, since somebody last set this to 0.
    """

    __slots__ = (
        "body_left",
        "id",
        "local_open",
        "moved",
        "offset",
        "owner",
        "queue",
        "queued",
        "receive_window",
        "remote_open",
        "scheduled",
        "send_window",
        "tail",
        "unreturned",
        "wake_below",
    )

    def __init__(self, id: int, receive_window: int, send_window: int) -> None:
        self.id = id
        self.owner: Any = None
        self.remote_open = True
        self.local_open = True
        self.receive_window = receive_window
        self.unreturned = 0
        self.body_left = -1
        self.send_window = send_window
        # Most answers never wait, so the queue is made when something does.
        self.queue: deque[bytes] | None = None
        self.offset = 0
        self.queued = 0
        self.tail: bytes | None = None
        self.scheduled = False
        self.wake_below = -1
        self.moved = 0

    def __repr__(self) -> str:
        return f"<Stream {self.id}>"
