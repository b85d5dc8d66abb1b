"""Packs that several processes begin, take over and give up: nothing acknowledged is lost, whoever comes between."""

from __future__ import annotations

import errno
import os
import time
from pathlib import Path
from typing import Any

from twisted.internet.defer import Deferred

from artifactserver.store import committer, fsck, rebuild
from artifactserver.store.digest import Digests
from artifactserver.store.index import Index
from artifactserver.store.interface import Blob, StoreBroken
from artifactserver.store.packs import PackWriter
from artifactserver.store.repository import prepare
from tests.local_stores import LocalStoreTestCase
from tests.store_contract import put, random_blob
from tests.test_local_store import NoProgress

DISK = "artifactserver.store.disk:"


class CommitterTestCase(LocalStoreTestCase):
    """Looks at what is left on disk."""

    async def verify(self, path: Path, blobs: list[Blob]) -> None:
        """Everything acknowledged is there for the next process, with the index as it is and with one made anew."""
        for rebuilt in (False, True):
            if rebuilt:
                rebuild.rebuild_index(path, NoProgress(), time.time)
            self.assertEqual(fsck.check(path, NoProgress()).problems, [])
            store = await self.open_store(path)
            contents = await store.read_many(Digests.of(each.digest for each in blobs))
            self.assertEqual(contents, [each.content for each in blobs])
            await self.close_store(store)


class BeginningTests(CommitterTestCase):
    """A process begins a pack in steps: a row, a file, a lock, content, the row's new end.

    Others start, upload and leave while it stands between two of them.
    """

    async def meet(self, pause: str, hours: float, leaves: bool) -> Path:
        """One process pauses with its first upload; we start, upload, and leave before it goes on, or after."""
        path = self.new_path()
        prepare(path)
        theirs, ours, later = random_blob(), random_blob(), random_blob()
        other = self.open_process(path, pause)
        answer = Deferred.fromCoroutine(other.call("add_many", [theirs]))
        await other.paused()
        store = await self.open_store(path, now=lambda: time.time() + 3600 * hours)
        await put(store, ours)
        if leaves:
            await self.close_store(store)
        other.go_on()
        self.assertEqual(await answer, [None])
        self.assertEqual(
            await other.call("read_many", Digests.of([theirs.digest, ours.digest])),
            [
                theirs.content,
                ours.content,
            ],
        )
        self.assertEqual(await other.call("add_many", [later]), [None])
        other.kill()
        await self.close_store(store)
        await self.verify(path, [theirs, ours, later])
        return path

    async def test_row_without_a_file(self) -> None:
        """A pack that has a row and no file yet is left to the process that begins it."""
        for leaves in (False, True):
            path = await self.meet("artifactserver.store.packs:PackWriter.create", 0, leaves)
            self.assertEqual(len(os.listdir(path / "packs")), 2)

    async def test_row_without_a_file_for_hours(self) -> None:
        """A process that took hours to make the file finds its pack gone, and goes to another."""
        self.assertGreater(2 * 3600, committer.ORPHAN_SECONDS)
        for leaves in (False, True):
            path = await self.meet("artifactserver.store.packs:PackWriter.create", 2, leaves)
            self.assertNotIn("0000000000000000.pack", os.listdir(path / "packs"), "an empty file is left for good")

    async def test_file_without_a_lock(self) -> None:
        """A pack that is taken over before its maker has locked it belongs to the one who took it, who may leave."""
        for leaves in (False, True):
            path = await self.meet("fcntl:flock", 0, leaves)
            self.assertEqual(len(os.listdir(path / "packs")), 1 if leaves else 2)

    async def test_content_without_a_row_that_says_so(self) -> None:
        """A pack with content that is not committed yet is left alone, however long that takes."""
        for hours in (0, 2):
            for leaves in (False, True):
                path = await self.meet(DISK + "sync", hours, leaves)
                self.assertEqual(len(os.listdir(path / "packs")), 2)

    async def test_begun_while_we_start(self) -> None:
        """A pack that another process begins while we look for lost ones is not taken for one of them."""
        for before in (True, False):
            path = self.new_path()
            prepare(path)
            other = self.open_process(path)
            theirs = random_blob()
            real = Index.committed_packs

            def meanwhile(
                index: Index,
                real: Any = real,
                before: bool = before,
                other: Any = other,
                theirs: Blob = theirs,
            ) -> Any:
                early = None if before else real(index)
                self.assertEqual(other.exchange("add_many", [theirs]), [None])
                return real(index) if before else early

            patched = self.patch(Index, "committed_packs", meanwhile)
            store = await self.open_store(path)
            patched.restore()
            self.assertEqual(await store.find_missing(Digests.of([theirs.digest])), [])
            other.kill()
            await self.close_store(store)
            await self.verify(path, [theirs])

    async def test_name_that_cannot_be_made_durable(self) -> None:
        """A pack whose name may not survive is gone before anybody can take it over."""
        path = self.new_path()
        prepare(path)
        other = self.open_process(path, DISK + "unlink", fail=DISK + "sync_directory")
        answer = Deferred.fromCoroutine(other.call("add_many", [random_blob()]))
        await other.paused()
        store = await self.open_store(path)
        ours, theirs = random_blob(), random_blob()
        await put(store, ours)
        other.go_on()
        (outcome,) = await answer
        self.assertIsInstance(outcome, StoreBroken)
        self.assertEqual(await other.call("add_many", [theirs]), [None])
        other.kill()
        await self.close_store(store)
        self.assertNotIn("0000000000000000.pack", os.listdir(path / "packs"))
        await self.verify(path, [ours, theirs])

    async def test_taken_over_by_another(self) -> None:
        """A pack that could not be begun is not dropped when another process has committed something in it."""
        path = self.new_path()
        store = await self.open_store(path)
        other = self.open_process(path)
        ours, theirs = random_blob(), random_blob()
        real = PackWriter.create

        def create(directory: Path, pack: int) -> PackWriter:
            real(directory, pack).close()
            self.assertEqual(other.exchange("add_many", [theirs]), [None])
            raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

        patched = self.patch(PackWriter, "create", create)
        self.assertIsInstance((await store.add_many([random_blob()]))[0], StoreBroken)
        patched.restore()
        self.flushLoggedErrors(OSError)
        await put(store, ours)
        other.kill()
        await self.close_store(store)
        await self.verify(path, [ours, theirs])
