"""Blobs that come whole are taken in without holding up the reactor."""

from __future__ import annotations

import os
import threading
from typing import Any

from twisted.internet.defer import fail

from artifactserver.store import adding
from artifactserver.store.batch import Work
from artifactserver.store.digest import Digest, Digests
from artifactserver.store.interface import Blob, Blobs, ContentMismatch, NoRoom
from tests.local_stores import LocalStoreTestCase
from tests.store_contract import random_blob


class AddingTests(LocalStoreTestCase):
    """`artifactserver.store.adding`, over a store on disk."""

    async def open_counted(self) -> Any:
        """A store that notes how often it gave way, and what was committed, in ``ways`` and ``works``."""
        store = await self.make_store()
        self.ways = 0
        self.works: list[Work] = []
        give_way, submit = store._adding._give_way, store._adding._submit

        def counted() -> Any:
            self.ways += 1
            return give_way()

        def noted(work: Work) -> Any:
            self.works.append(work)
            return submit(work)

        store._adding._give_way = counted
        store._adding._submit = noted
        return store

    async def test_slices(self) -> None:
        """A large batch is hashed in slices, with turns for others in between, and committed in few pieces."""
        self.patch(adding, "SLICE", 10)
        self.patch(adding, "SLICE_BYTES", 1000)
        for sizes, ways in (([8] * 10, 0), ([8] * 100, 10), ([500] * 10, 5), ([2000] * 3, 3), ([], 0)):
            store = await self.open_counted()
            blobs = [random_blob(size) for size in sizes]
            bad = Blob(Digest.of(b"good"), b"bad!")
            contents = {each.digest: each.content for each in blobs}
            outcomes = await store.add_many(Blobs.of(blobs))
            self.assertEqual(outcomes, [None] * len(blobs))
            self.assertEqual(self.ways, ways)
            self.assertEqual(sum(len(work.blobs) for work in self.works), len(contents))
            self.assertLessEqual(len(self.works), 1)
            for first in (True, False):
                outcomes = await store.add_many([bad, *blobs] if first else [*blobs, bad])
                self.assertIsInstance(outcomes.pop(0 if first else -1), ContentMismatch)
                self.assertEqual(outcomes, [None] * len(blobs))
            self.assertLessEqual(len(self.works), 1)
            wanted = Digests.of([*contents, bad.digest])
            self.assertEqual(await store.read_many(wanted), [*contents.values(), None])

    async def test_commits(self) -> None:
        """A transaction has a bounded number of blobs; each is committed once, and only what failed says so."""
        self.patch(adding, "COMMITTED_BLOBS", 10)
        self.patch(adding, "SLICE", 7)
        store = await self.open_counted()
        blobs = [random_blob() for _ in range(25)]
        self.assertEqual(await store.add_many([*blobs, *blobs]), [None] * 50)
        self.assertEqual([len(work.blobs) for work in self.works], [10, 10, 5])
        found = await store.read_many(Digests.of(each.digest for each in blobs))
        self.assertEqual(found, [each.content for each in blobs])
        more = [random_blob() for _ in range(25)]
        submit, number = store._adding._submit, 0

        def second_fails(work: Work) -> Any:
            nonlocal number
            number += 1
            return fail(NoRoom("no room")) if number == 2 else submit(work)

        store._adding._submit = second_fails
        outcomes = await store.add_many([*more, *blobs, *more])
        stored = [not 10 <= place < 20 for place in range(25)]
        self.assertEqual([outcome is None for outcome in outcomes], [*stored, *[True] * 25, *stored])
        missing = await store.find_missing(Digests.of(each.digest for each in more))
        self.assertEqual(missing, list(range(10, 20)))

    async def test_large_ones(self) -> None:
        """Large blobs of a batch are hashed in threads; each has its own outcome, whatever is beside it or here."""
        store = await self.make_store()
        main, hashed = threading.get_ident(), []
        real = Digests.mismatches

        def mismatches(digests: Digests, contents: Any) -> list[int]:
            hashed.append((threading.get_ident() == main, max(map(len, contents), default=0)))
            return real(digests, contents)

        self.patch(Digests, "mismatches", mismatches)
        here, large, small = random_blob(100_000), random_blob(100_000), random_blob(100)
        self.assertEqual(await store.add_many([here]), [None])
        evil = [Blob(each.digest, os.urandom(len(each.content))) for each in (here, large, small)]
        long = Blob(small.digest, here.content)
        short = Blob(large.digest, small.content)
        batch = [evil[0], large, evil[1], here, large, small, evil[2], long, short]
        outcomes = await store.add_many(batch)
        refused = [position for position, outcome in enumerate(outcomes) if outcome is not None]
        self.assertEqual(refused, [0, 2, 6, 7, 8])
        self.assertTrue(all(isinstance(outcomes[position], ContentMismatch) for position in refused))
        wanted = [here, large, small]
        found = await store.read_many(Digests.of(each.digest for each in wanted))
        self.assertEqual(found, [each.content for each in wanted])
        self.assertTrue(all(size <= adding.SMALL_BYTES for in_reactor, size in hashed if in_reactor))
        self.assertIn((False, 100_000), hashed)

    async def test_no_room(self) -> None:
        """Where there is no room, each blob that is sound and not here says so, twins too, and no other does."""
        store = await self.make_store()
        here, one, two, large = random_blob(), random_blob(), random_blob(), random_blob(100_000)
        self.assertEqual(await store.add_many([here, two]), [None, None])
        store._room._head_room = 2**62
        store._room._granted = 0
        bad = Blob(one.digest, b"bad")
        outcomes = await store.add_many([one, here, bad, large, one, two])
        kinds = [type(outcome) for outcome in outcomes]
        self.assertEqual(kinds, [NoRoom, type(None), ContentMismatch, NoRoom, NoRoom, type(None)])
        self.assertEqual([type(outcome) for outcome in await store.add_many([one])], [NoRoom])
