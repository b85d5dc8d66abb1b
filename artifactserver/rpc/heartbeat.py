"""What should have happened on a connection by now, looked at from time to time.

One timer per connection, a few times a minute, notices everything that does not happen: a peer that says nothing, one
that stops in the middle, a connection that nobody uses.  Nothing on the way of the bytes sets a timer or reads a clock.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

from artifactserver.rpc.http2 import Connection, Limits, Stream


class Verdict(enum.Enum):
    """What to do about a connection."""

    #: It has begun to say something small and does not get to the end, or has said nothing at all.
    TOO_SLOW = "too slow"
    #: There have been no calls for long.
    IDLE = "idle"
    #: It does not read what is written.
    UNREAD = "does not read"


@dataclass(frozen=True, slots=True)
class Findings:
    """What one look brought to light.

    :ivar connection: what to do about the connection as a whole, or `None`.
    :ivar still: streams that wait for the peer, and on which next to nothing has moved, and for how many seconds.
    """

    connection: Verdict | None
    still: list[tuple[Stream, float]]


class Heartbeat:
    """Looks after one connection.

    :param now: the connection's start, in seconds of any clock.
    """

    def __init__(self, engine: Connection, limits: Limits, now: float) -> None:
        self._engine = engine
        self._limits = limits
        self._still_since: dict[Stream, float] = {}
        self._used = now
        self._frames = -1
        self._frame_since = now
        self._blocked_since: float | None = None
        shortest = min(
            limits.handshake_seconds,
            limits.idle_seconds,
            limits.stalled_upload_seconds,
            limits.stalled_download_seconds,
        )
        #: Seconds between two looks.
        self.interval = max(shortest / 4, 0.01)

    def look(self, now: float) -> Findings:
        """Compare with the last time."""
        engine = self._engine
        still: list[tuple[Stream, float]] = []
        if engine.streams or self._still_since:
            still = self._look_at_streams(now)
            self._used = now
        return Findings(self._verdict(now), still)

    def _look_at_streams(self, now: float) -> list[tuple[Stream, float]]:
        least = self._limits.moving_bytes
        before = self._still_since
        after: dict[Stream, float] = {}
        for stream in self._engine.streams.values():
            owner = stream.owner
            waits = stream.queued or owner is not None and owner.waits_for_data
            if not waits or stream.moved >= least:
                stream.moved = 0
                after[stream] = now
            else:
                after[stream] = before.get(stream, now)
        self._still_since = after
        return [(stream, now - since) for stream, since in after.items() if now > since]

    def _verdict(self, now: float) -> Verdict | None:
        engine = self._engine
        limits = self._limits
        if engine.frames_received != self._frames or not (engine.in_mid_frame or not engine.settings_received):
            self._frames = engine.frames_received
            self._frame_since = now
        elif now - self._frame_since >= limits.handshake_seconds:
            return Verdict.TOO_SLOW
        if not engine.sender.blocked:
            self._blocked_since = None
        elif self._blocked_since is None:
            self._blocked_since = now
        elif now - self._blocked_since >= limits.stalled_download_seconds:
            return Verdict.UNREAD
        if not engine.streams and now - self._used >= limits.idle_seconds:
            return Verdict.IDLE
        return None
