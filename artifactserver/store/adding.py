"""Taking in blobs that come whole, many at a time.

Small ones are hashed in the reactor's thread, slice by slice: a thread of its own would have to ask for the interpreter
after each of them.  Large ones are hashed and written in threads.  What is not here yet of all small ones is committed
in few pieces.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from twisted.internet.defer import Deferred, DeferredSemaphore, gatherResults

from artifactserver.store.batch import Work
from artifactserver.store.digest import Digest, Digests
from artifactserver.store.interface import Blob, Blobs, ContentMismatch, StoreError
from artifactserver.store.room import Room
from artifactserver.store.slices import slices

#: Blobs up to this size, in bytes, share packs; larger ones get a file each.
SMALL_BYTES = 64 * 1024

#: Small blobs that are hashed and looked up before others get their turn, and their bytes: a millisecond or two.
SLICE = 500
SLICE_BYTES = 1024 * 1024

#: Small blobs of one call that are committed at once.  Each touches a page of the index, in whose memory all pages stay
#: that a transaction has touched: of one batch of 18,000 tiny blobs those were 20 MiB.
COMMITTED_BLOBS = 1_000

#: Large blobs out of batches that are on their way to the disk at once; the others wait, in memory as they are.
BATCHED_UPLOADS = 32


class Adding:
    """`add_many` of one repository's store, as in `artifactserver.store.interface.Store`.

    :param find_missing: as of the store.
    :param submit: hands work to the committer.
    :param upload: stores one large blob.
    :param in_thread: runs a function in a thread.
    :param give_way: its awaitable lets others have the reactor's thread for a moment.
    :param failed: is told of each error that keeps blobs out.
    """

    def __init__(
        self,
        find_missing: Callable[[Digests], Awaitable[list[int]]],
        submit: Callable[[Work], Deferred[Any]],
        upload: Callable[[Blob], Awaitable[None]],
        room: Room,
        in_thread: Callable[[Callable[[], Any]], Deferred[Any]],
        give_way: Callable[[], Awaitable[None]],
        failed: Callable[[StoreError], None],
    ) -> None:
        self._find_missing = find_missing
        self._submit = submit
        self._upload = upload
        self._room = room
        self._in_thread = in_thread
        self._give_way = give_way
        self._failed = failed
        self._turns = DeferredSemaphore(BATCHED_UPLOADS)

    async def add_many(self, blobs: Sequence[Blob]) -> list[StoreError | None]:
        if len(blobs) == 1 and len(blobs[0].content) <= SMALL_BYTES:
            return [await self._add_one(blobs[0])]
        blobs = Blobs.of(blobs)
        outcomes: list[StoreError | None] = [None] * len(blobs)
        lengths = list(map(len, blobs.contents))
        if max(lengths, default=0) <= SMALL_BYTES:
            await self._add_small(blobs, range(len(blobs)), outcomes)
            return outcomes
        small = [position for position, length in enumerate(lengths) if length <= SMALL_BYTES]
        large = [position for position, length in enumerate(lengths) if length > SMALL_BYTES]
        pending = await self._begin_large(blobs.at(large), large, outcomes)
        try:
            await self._add_small(blobs.at(small), small, outcomes)
        except BaseException:
            # Nobody waits any more: what is large does not go on, nor wait its turn, with all its content.
            for each in pending.values():
                each.addErrback(lambda _: None)
                each.cancel()
            raise
        failures = dict(zip(pending, await gatherResults(pending.values(), consumeErrors=True), strict=True))
        for position in large:
            outcomes[position] = outcomes[position] or failures.get(blobs.digests[position])
        return outcomes

    # Small ones

    async def _add_one(self, blob: Blob) -> StoreError | None:
        """What all this comes to for one small blob, as most uploads are, with less ado."""
        one = Blobs(Digests([blob.digest.key], [blob.digest.size]), [blob.content])
        if one.digests.mismatches(one.contents):
            return _mismatch(blob)
        return await self._commit(one) if await self._find_missing(one.digests) else None

    async def _add_small(self, blobs: Blobs, positions: Sequence[int], outcomes: list[StoreError | None]) -> None:
        """Store blobs that go into a pack.

        :param positions: where what came of each of them belongs in ``outcomes``.
        """
        missing: list[int] = []
        if not positions:
            return
        for start, end in slices(list(map(len, blobs.contents)), SLICE, SLICE_BYTES):
            several = end - start < len(blobs)
            if several:
                await self._give_way()
            part = blobs[start:end] if several else blobs
            missing += [start + place for place in await self._find_wanted(part, positions[start:end], outcomes)]
        if not missing:
            return
        if len(missing) > COMMITTED_BLOBS:
            # One that is named twice would be in two pieces.
            first: dict[bytes, int] = {}
            for position in missing:
                first.setdefault(blobs.digests.keys[position], position)
            missing = list(first.values())
        failures: dict[bytes, StoreError] = {}
        for start in range(0, len(missing), COMMITTED_BLOBS):
            part = blobs.at(missing[start : start + COMMITTED_BLOBS])
            error = await self._commit(part)
            if error is not None:
                failures.update(dict.fromkeys(part.digests.keys, error))
        if failures:
            for position, key in zip(positions, blobs.digests.keys, strict=True):
                outcomes[position] = outcomes[position] or failures.get(key)

    async def _find_wanted(
        self, blobs: Blobs, positions: Sequence[int], outcomes: list[StoreError | None]
    ) -> Sequence[int]:
        """Which of these are sound and not here."""
        digests = blobs.digests
        mismatches = digests.mismatches(blobs.contents)
        if not mismatches:
            return await self._find_missing(digests)
        sound = _refuse(blobs, mismatches, positions, outcomes)
        return [sound[place] for place in await self._find_missing(digests.at(sound))]

    async def _commit(self, blobs: Blobs) -> StoreError | None:
        try:
            with self._room.promise(sum(blobs.digests.sizes)):
                await self._submit(Work(blobs=blobs))
        except StoreError as error:
            self._failed(error)
            return error
        return None

    # Large ones

    async def _begin_large(
        self, blobs: Blobs, positions: Sequence[int], outcomes: list[StoreError | None]
    ) -> dict[Digest, Deferred[StoreError | None]]:
        """Begin to store blobs that get files; what will come of each that is sound and not here."""
        mismatches = await self._in_thread(lambda: blobs.digests.mismatches(blobs.contents))
        sound = blobs.at(_refuse(blobs, mismatches, positions, outcomes))
        missing = await self._find_missing(sound.digests)
        return {sound.digests[place]: self._turns.run(self._start, sound[place]) for place in missing}

    def _start(self, blob: Blob) -> Deferred[StoreError | None]:
        return Deferred.fromCoroutine(self._add_large(blob))

    async def _add_large(self, blob: Blob) -> StoreError | None:
        try:
            await self._upload(blob)
        except StoreError as error:
            self._failed(error)
            return error
        return None


def _refuse(
    blobs: Blobs, mismatches: Sequence[int], positions: Sequence[int], outcomes: list[StoreError | None]
) -> list[int]:
    """Note that some blobs are not what their digests say; where the others stand."""
    for place in mismatches:
        outcomes[positions[place]] = _mismatch(blobs[place])
    odd = set(mismatches)
    return [place for place in range(len(blobs)) if place not in odd]


def _mismatch(blob: Blob) -> ContentMismatch:
    if len(blob.content) != blob.digest.size:
        return ContentMismatch(f"{len(blob.content)} bytes were uploaded for blob {blob.digest}")
    return ContentMismatch(f"what was uploaded for blob {blob.digest} has another hash")
