"""Packs that several processes begin, take over and give up: nothing acknowledged is lost, whoever comes between."""

from __future__ import annotations

import errno
import os
import threading
import time
from pathlib import Path
from typing import Any

from twisted.internet import reactor
from twisted.internet.defer import CancelledError, Deferred, gatherResults
from twisted.internet.task import deferLater

from artifactserver.store import committer, disk, fsck, rebuild
from artifactserver.store.batch import Work
from artifactserver.store.digest import Digests
from artifactserver.store.index import Index
from artifactserver.store.interface import Blob, Record, StoreBroken
from artifactserver.store.packs import PackWriter, pack_name
from artifactserver.store.records import Change
from artifactserver.store.repository import prepare
from artifactserver.store.rows import OPEN, SEALED
from tests.local_stores import LocalStoreTestCase
from tests.store_contract import KEY, put, random_blob
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


class GivingUpTests(CommitterTestCase):
    """When a write fails, and taking it back fails as well, nothing is lost and the store goes on."""

    def break_step(self, owner: Any, name: str, times: int = 1) -> Any:
        """Let the next calls of a step fail."""
        real = getattr(owner, name)
        left = times

        def step(*arguments: Any) -> Any:
            nonlocal left
            if left:
                left -= 1
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            return real(*arguments)

        return self.patch(owner, name, step)

    def states(self, store: Any) -> dict[int, int]:
        """The state of each pack that has a row."""
        with store._index.change() as changes:
            return {pack: row.state for pack, row in changes.packs() if row is not None}

    async def refuse_one(self, store: Any) -> None:
        """A blob and a record that are committed together, and refused together."""
        each = random_blob()
        work = Work(blobs=[each], changes=[Change(KEY, Record(KEY, b"refused", ()))])
        with self.assertRaises(StoreBroken):
            await store._committer.submit(work)
        self.assertEqual(await store.find_missing(Digests.of([each.digest])), [0])
        self.assertIsNone(await store.get_record(KEY))
        self.flushLoggedErrors(OSError)

    async def test_truncate_fails(self) -> None:
        """A batch that can be neither synced nor cut off is refused; its pack takes nothing more, from anybody."""
        path = self.new_path()
        store = await self.open_store(path)
        kept = random_blob()
        await put(store, kept)
        self.break_step(disk, "sync")
        self.break_step(disk, "truncate", 100)
        await self.refuse_one(store)
        (pack,) = (path / "packs").iterdir()
        left = pack.read_bytes()
        self.assertIn(b"refused", left)
        more = [random_blob() for _ in range(3)]
        await put(store, more[0])
        self.assertEqual(self.states(store), {0: SEALED, 1: OPEN})
        await self.close_store(store)
        store = await self.open_store(path)
        await put(store, more[1])
        other = self.open_process(path)
        self.assertEqual(await other.call("add_many", [more[2]]), [None])
        other.kill()
        self.assertEqual(pack.read_bytes(), left)
        self.assertEqual(await store.read_many(Digests.of([kept.digest])), [kept.content])
        await self.close_store(store)
        await self.verify(path, [kept, *more])

    async def test_index_fails_too(self) -> None:
        """When the pack cannot even be sealed, this process goes to another, and the next one cuts it back."""
        path = self.new_path()
        store = await self.open_store(path)
        kept, more, last = random_blob(), random_blob(), random_blob()
        await put(store, kept)
        self.break_step(disk, "sync")
        truncate = self.break_step(disk, "truncate")
        commit = self.break_step(Index, "_commit")
        await self.refuse_one(store)
        truncate.restore()
        commit.restore()
        await put(store, more)
        self.assertEqual(self.states(store), {0: OPEN, 1: OPEN})
        await self.close_store(store)
        self.assertIn(b"refused", (path / "packs" / pack_name(0)).read_bytes())
        store = await self.open_store(path)
        await put(store, last)
        await self.close_store(store)
        self.assertNotIn(b"refused", (path / "packs" / pack_name(0)).read_bytes())
        await self.verify(path, [kept, more, last])

    async def test_unlink_fails(self) -> None:
        """A file that cannot be taken back keeps nothing else from being taken back."""
        path = self.new_path()
        store = await self.open_store(path)
        kept, more = random_blob(), random_blob()
        await put(store, kept)
        uploads = []
        for _ in range(2):
            each = random_blob(100_000)
            uploads.append(await store.upload(each.digest, "me"))
            await uploads[-1].write(each.content)
        received = []
        for upload in uploads:
            await upload._settled()
            upload._flush()
            await upload._settled()
            received.append(upload._file.finish(0))
        works = [Work(file=each) for each in received]
        works.append(Work(blobs=[random_blob()], changes=[Change(KEY, Record(KEY, b"refused", ()))]))
        self.break_step(disk, "sync")
        self.break_step(disk, "unlink")
        failures = store._committer._commit(works)
        self.flushLoggedErrors(OSError)
        self.assertEqual([each.type for each in failures], [StoreBroken] * 3)
        self.assertEqual(len(list(path.glob("blobs/*/*"))), 1)
        self.assertEqual(self.states(store), {0: SEALED})
        self.assertNotIn(b"refused", (path / "packs" / pack_name(0)).read_bytes())
        for upload in uploads:
            upload.close()
        await put(store, more)
        self.assertEqual(self.states(store), {0: SEALED, 1: OPEN})

    async def test_pack_that_cannot_be_gone_on_with(self) -> None:
        """A pack that was left, and cannot be opened or cut back, keeps nobody from uploading."""
        for owner, name, state in (
            (PackWriter, "seize", OPEN),
            (disk, "truncate", SEALED),
            (disk, "sync_directory", SEALED),
        ):
            path = self.new_path()
            store = await self.open_store(path)
            kept, more = random_blob(), random_blob()
            if name == "sync_directory":  # which is done again only for a pack in which nothing is committed
                with store._index.change() as changes:
                    changes.new_pack(int(time.time()))
                (path / "packs" / pack_name(0)).touch()
                kept = random_blob(100_000)
            await put(store, kept)
            await self.close_store(store)
            pack = path / "packs" / pack_name(0)
            with open(pack, "ab") as file:
                file.write(b"never committed")
            left = pack.read_bytes()
            store = await self.open_store(path)
            patched = self.break_step(owner, name)
            await put(store, more)
            patched.restore()
            self.assertEqual(self.states(store), {0: state, 1: OPEN}, name)
            self.assertEqual(pack.read_bytes(), left if name != "sync_directory" else b"", name)
            await self.close_store(store)
            await self.verify(path, [kept, more])


class WaitingTests(CommitterTestCase):
    """Work waits for the disk, in the order in which it came."""

    async def test_cancelled_in_the_middle(self) -> None:
        """A caller that goes away while its batch is on its way to the disk keeps nobody from being answered."""
        store = await self.make_store()
        begun = [threading.Event(), threading.Event()]
        doors = [threading.Event(), threading.Event()]
        real = committer.Committer._commit
        batches: list[int] = []

        def slow(this: Any, works: Any) -> Any:
            number = len(batches)
            batches.append(len(works))
            begun[number].set()
            doors[number].wait(20)
            return real(this, works)

        async def until(event: threading.Event) -> None:
            while not event.is_set():
                await deferLater(reactor, 0.001)

        self.patch(committer.Committer, "_commit", slow)
        calls = [Deferred.fromCoroutine(store.add_many([random_blob()]))]
        await until(begun[0])
        blobs = [random_blob() for _ in range(3)]
        calls += [Deferred.fromCoroutine(store.add_many([each])) for each in blobs]
        doors[0].set()
        await until(begun[1])
        calls[1].addErrback(lambda failure: failure.trap(CancelledError) and [None])
        calls[1].cancel()
        doors[1].set()
        for call in calls:
            call.addTimeout(20, reactor)
        self.assertEqual(await gatherResults(calls), [[None]] * 4)
        self.assertEqual(batches, [1, 3])
        self.assertEqual(await store.find_missing(Digests.of(each.digest for each in blobs)), [])

    async def test_order(self) -> None:
        """What came first is committed first, in batches of a bounded size; what was withdrawn is not done."""
        self.patch(committer, "BATCH_BYTES", 1000)
        store = await self.make_store()
        begun, door = threading.Event(), threading.Event()
        batches: list[list[int]] = []
        real = committer.Committer._commit

        def slow(this: Any, works: Any) -> Any:
            begun.set()
            door.wait(20)
            batches.append([len(work.blobs[0].content) for work in works])
            return real(this, works)

        self.patch(committer.Committer, "_commit", slow)
        jobs = [store._committer.submit(Work(blobs=[random_blob(100)]))]
        while not begun.is_set():
            await deferLater(reactor, 0.001)
        sizes = (401, 402, 403, 404, 405, 0, 1, 2)
        jobs += [store._committer.submit(Work(blobs=[random_blob(size)])) for size in sizes]
        for number in (2, 5):
            jobs[number].addErrback(lambda failure: failure.trap(CancelledError))
            jobs[number].cancel()
        door.set()
        await gatherResults(jobs)
        self.assertEqual(batches, [[100], [401, 403, 404], [0, 1, 2]])
        self.assertEqual((len(store._committer._waiting), store._committer._waiting_bytes), (0, 0))

    async def test_withdrawing_many(self) -> None:
        """Withdrawing a lot of work, as a client does that goes away, takes no time to speak of."""
        store = await self.make_store()
        door = threading.Event()
        self.patch(committer.Committer, "_commit", lambda this, works: door.wait(20) and [None] * len(works))
        jobs = [store._committer.submit(Work()) for _ in range(20_000)]
        for job in jobs:
            job.addErrback(lambda failure: failure.trap(CancelledError))
        before = time.monotonic()
        for job in reversed(jobs):
            job.cancel()
        self.assertLess(time.monotonic() - before, 3)
        door.set()
