"""The use of large files is noted without holding up anybody."""

from __future__ import annotations

from typing import Any, cast

from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase

from artifactserver.store import touches
from artifactserver.store.batch import Work
from artifactserver.store.changes import Changes
from artifactserver.store.digest import Digests
from artifactserver.store.interface import StoreBroken
from artifactserver.store.rows import FileRow
from artifactserver.store.touches import Touches
from tests.local_stores import LocalStoreTestCase
from tests.store_contract import put, random_blob


class Written:
    """A transaction that remembers what was touched."""

    def __init__(self) -> None:
        self.touched: list[tuple[bytes, bytes, int]] = []

    def touch_file(self, key: bytes, value: bytes, used: int) -> None:
        """As `Changes.touch_file`."""
        self.touched.append((key, value, used))


class TouchesTests(SynchronousTestCase):
    """`Touches`."""

    def setUp(self) -> None:
        self.patch(touches, "TOUCHES_AT_ONCE", 3)
        self.patch(touches, "TOUCHES_WAITING", 8)
        self.handed_in: list[tuple[Work, Deferred[Any]]] = []
        self.touches = Touches(self.submit)

    def submit(self, work: Work) -> Deferred[Any]:
        """As `Committer.submit`."""
        done: Deferred[Any] = Deferred()
        self.handed_in.append((work, done))
        return done

    def write(self) -> list[tuple[bytes, bytes, int]]:
        """Write the one group that was handed in; what it noted."""
        ((work, done),) = self.handed_in
        self.handed_in.clear()
        written = Written()
        assert work.edit is not None
        work.edit(cast(Changes, written))
        done.callback(None)
        return written.touched

    def test_in_groups(self) -> None:
        """Few are written at once, one group after the other; none is written twice."""
        rows = {b"%d" % number: b"row %d" % number for number in range(7)}
        self.touches.note(rows, 5)
        self.touches.note(rows, 6)
        groups = [self.write(), self.write(), self.write()]
        self.assertEqual([len(group) for group in groups], [3, 3, 1])
        self.assertEqual([each for group in groups for each in group], [(key, row, 5) for key, row in rows.items()])
        self.assertEqual(self.handed_in, [])
        self.touches.note({b"0": b"later"}, 7)
        self.assertEqual(self.write(), [(b"0", b"later", 7)])

    def test_bound(self) -> None:
        """While the disk is slow, only so many wait."""
        for number in range(20):
            self.touches.note({b"%d" % number: b""}, 5)
        noted = []
        while self.handed_in:
            noted += self.write()
        self.assertEqual(len(noted), 8)

    def test_failure(self) -> None:
        """When the index cannot be written, what waits is forgotten, and the next use is noted again."""
        self.touches.note({b"%d" % number: b"" for number in range(7)}, 5)
        ((_, done),) = self.handed_in
        self.handed_in.clear()
        done.errback(StoreBroken("broken"))
        self.assertEqual(self.handed_in, [])
        self.touches.note({b"0": b"again"}, 6)
        self.assertEqual(self.write(), [(b"0", b"again", 6)])


class LocalStoreTests(LocalStoreTestCase):
    """The store notes the use of all that one call asks for."""

    async def test_all_are_noted(self) -> None:
        """However many large files are asked for in one call, all of them become young again."""
        self.patch(touches, "TOUCHES_AT_ONCE", 2)
        clock = [1_000_000.0]
        store = await self.open_store(self.new_path(), now=lambda: clock[0])
        blobs = [random_blob(100_000) for _ in range(7)]
        await put(store, *blobs)
        clock[0] += touches.TOUCH_SECONDS + 1
        wanted = Digests.of(each.digest for each in blobs)
        self.assertEqual(await store.find_missing(wanted), [])
        while store._touches._writing:
            await put(store, random_blob())
        rows = [FileRow.decode(value or b"") for value in store._index.look_up(wanted.keys)[0]]
        self.assertEqual({row and row.used for row in rows}, {int(clock[0])})
