"""How slow a large upload may be, and how much of all of them may wait for the disk.

An upload holds space on the disk from its first byte on, so it must not take for ever.  What is measured is the time in
which the store waits for its client, not the time in which the client waits for the disk.

A line of 256 kbit/s carries eight uploads at once at the slowest pace, or one that rests most of the time; ten minutes
are free, for whatever happens on the way.
"""

from __future__ import annotations

from collections.abc import Callable

#: Bytes per second that an upload has to bring on the average, when its free time is over.
SLOWEST_PACE = 4 * 1024

#: Seconds for which it may be as slow as it likes.
FREE_SECONDS = 600

#: Seconds that an upload may take at most: with the pace above, what is larger than 2.4 GB has to be faster, and the
#: largest blob, of 64 GiB, needs one Mbit/s.
LONGEST_UPLOAD = 7 * 24 * 3600

#: Bytes of all large uploads together that may wait for the disk before each upload waits for its own.
WAITING_BYTES = 64 * 1024 * 1024


class Stopwatch:
    """For how long the store has waited for the client of one upload.

    :param seconds: any clock that does not go back.
    """

    __slots__ = ("_seconds", "_since", "_waited")

    def __init__(self, seconds: Callable[[], float]) -> None:
        self._seconds = seconds
        self._since: float | None = None
        self._waited = 0.0

    def start(self) -> None:
        """It is the client's turn."""
        if self._since is None:
            self._since = self._seconds()

    def stop(self) -> None:
        """It is the store's turn."""
        if self._since is not None:
            self._waited += self._seconds() - self._since
            self._since = None

    def waited(self) -> float:
        """Seconds so far."""
        return self._waited + (self._seconds() - self._since if self._since is not None else 0.0)


def is_too_slow(received: int, waited: float) -> bool:
    """Whether so many bytes are too few for so many seconds."""
    return waited > min(LONGEST_UPLOAD, FREE_SECONDS + received / SLOWEST_PACE)


class Backlog:
    """What of all uploads waits for the disk.

    :ivar waiting: bytes.
    """

    __slots__ = ("waiting",)

    def __init__(self) -> None:
        self.waiting = 0

    @property
    def is_long(self) -> bool:
        """Whether whoever brings more has to wait until it is written."""
        return self.waiting > WAITING_BYTES
