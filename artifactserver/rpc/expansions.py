"""Compressed messages, one in a turn of the reactor.

A read may hold a hundred of them, each a few bytes that take milliseconds to decompress and to look at.  Whoever else
has something to say would wait for all.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime


class Expansions:
    """Those on one connection.

    :ivar enough: one has been taken in this turn of the reactor.
    """

    __slots__ = ("_clock", "_waiting", "enough")

    def __init__(self, clock: IReactorTime) -> None:
        self._clock = clock
        self._waiting: deque[Deferred[None]] = deque()
        self.enough = False

    def take(self, go_on: Callable[[], None]) -> None:
        """A message is being decompressed.

        :param go_on: called when another one may be taken and nobody waits for `next_turn`.
        """
        if not self.enough:
            self.enough = True
            self._clock.callLater(0, self._turned, go_on)

    def next_turn(self) -> Deferred[None]:
        """Fires when another one may be taken."""
        self._waiting.append(Deferred())
        return self._waiting[-1]

    def _turned(self, go_on: Callable[[], None]) -> None:
        self.enough = False
        while self._waiting and not self.enough:
            self._waiting.popleft().callback(None)
        go_on()
