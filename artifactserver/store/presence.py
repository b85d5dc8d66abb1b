"""What was found to be present a moment ago, and still is, since nothing has been removed.

Clients ask again and again for the same blobs: each one that pushes, for all that it builds upon.  A blob stays present
until something is removed, and whoever removes anything, in whatever process, counts up the index's eviction epoch or
the generation of its packs.  So as long as both are what they were, an answer from here is as good as one from the
index, at a third of its cost.

Only what is in a pack that stays is remembered, and not for long, for a use has to be noted once in a while (`rows`).
"""

from __future__ import annotations

from collections.abc import Sequence

from artifactserver.store.digest import Digests

#: Blobs that are remembered at most, some 14 MiB of them; those that would be too many take the place of all others.
REMEMBERED = 65_536

#: Seconds after which the index is asked again.
REMEMBERED_SECONDS = 60

#: What says whether anything was removed: the generation of the packs, and the eviction epoch.
State = tuple[bytes, bytes]


class Presence:
    """The memory of one process."""

    def __init__(self) -> None:
        self._sizes: dict[bytes, int] = {}
        self._state: State | None = None
        self._since = 0.0

    def knows(self, digests: Digests, state: State, now: float) -> bool:
        """Whether all of these are present.  `False` if that is not known here.

        :param state: the index's, at this moment.
        :param now: seconds since the epoch.
        """
        if state != self._state or not 0 <= now - self._since < REMEMBERED_SECONDS:
            self._sizes.clear()
            self._state = state
            self._since = now
            return False
        return list(map(self._sizes.get, digests.keys)) == digests.sizes

    def learn(self, found: Sequence[tuple[bytes, int]]) -> None:
        """These keys and sizes were found in the index after `knows` was asked."""
        if len(self._sizes) + len(found) > REMEMBERED:
            self._sizes.clear()
        self._sizes.update(found[:REMEMBERED])
