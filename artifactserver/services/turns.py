"""Giving way: a long loop over results that are ready never suspends by itself, and nobody else would get a turn."""

from __future__ import annotations

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater


class Turns:
    """Hands the thread back to the reactor for a moment.

    :param clock: the reactor, or what stands in for it.
    """

    def __init__(self, clock: IReactorTime) -> None:
        self._clock = clock

    def give_way(self) -> Deferred[None]:
        """To be awaited; it may be cancelled."""
        return deferLater(self._clock, 0)
