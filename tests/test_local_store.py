"""The store on a local disk keeps the store's promises, through restarts, damage and failing disks."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import shutil
import threading
import time
from pathlib import Path
from typing import Any, cast
from unittest import SkipTest, mock

import lmdb
from twisted.internet import reactor
from twisted.internet.defer import CancelledError, Deferred, gatherResults
from twisted.internet.task import deferLater
from twisted.logger import ILogObserver, LogEvent, globalLogPublisher

from artifactserver.store import (
    adding,
    batch,
    committer,
    disk,
    fsck,
    local,
    reading,
    rebuild,
    register,
    room,
    touches,
    uploads,
)
from artifactserver.store import damage as damage_module
from artifactserver.store import packs as packs_module
from artifactserver.store.changes import Changes
from artifactserver.store.digest import Digests
from artifactserver.store.files import FileName
from artifactserver.store.index import Index
from artifactserver.store.interface import (
    Blob,
    BlobMissing,
    NoRoom,
    Record,
    RecordKey,
    RecordKind,
    Reference,
    Shape,
    StoreBroken,
    StoreError,
    TooBusy,
)
from artifactserver.store.layout import RepositoryProblem
from artifactserver.store.local import LocalStore
from artifactserver.store.repository import prepare
from artifactserver.store.rows import OPEN, RETIRING, SEALED, encode_packed
from artifactserver.store.uploads import IncomingFile
from tests.local_stores import LocalStoreTestCase
from tests.store_contract import KEY, StoreContract, content_of, directory, put, random_blob, value_of
from tests.store_process import StoreProcess


class NoProgress:
    """Nobody watches."""

    def begin(self, doing: str, total: int) -> None:
        """As `artifactserver.store.fsck.Progress`."""

    def advance(self, count: int) -> None:
        """As `artifactserver.store.fsck.Progress`."""


def share_in_memory(path: Path) -> float:
    """How much of a file the page cache holds."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, mmap.MAP_PRIVATE) as mapped:
        pages = (ctypes.c_ubyte * -(-len(mapped) // mmap.PAGESIZE))()
        whole = (ctypes.c_char * len(mapped)).from_buffer(mapped)
        failed = ctypes.CDLL(None).mincore(whole, ctypes.c_size_t(len(mapped)), pages)
        del whole  # It keeps the mapping open.
    if failed:
        raise SkipTest("this system does not tell what is in memory")
    return sum(page & 1 for page in pages) / len(pages)


class LocalStoreContractTests(StoreContract, LocalStoreTestCase):
    """`LocalStore` is a store."""


class RestartTests(LocalStoreTestCase):
    """What was acknowledged is there after a restart."""

    async def test_everything_survives(self) -> None:
        """Blobs small and large, trees and records are there when the store is opened again."""
        path = self.new_path()
        store = await self.open_store(path)
        small, large = random_blob(5000), random_blob(2_500_000)
        root = directory({"small": small.digest, "large": large.digest})
        await put(store, small, large, root)
        await store.set_record(Record(KEY, b"value", (Reference(root.digest, Shape.DIRECTORY),), expires=4e9))
        await self.close_store(store)
        store = await self.open_store(path)
        for each in (small, large, root):
            self.assertEqual(await content_of(store, each.digest), each.content)
        record = await store.get_record(KEY)
        assert record is not None
        self.assertEqual((record.value, record.expires), (b"value", 4e9))

    async def test_deleted_records_stay_deleted(self) -> None:
        """A record that was deleted does not come back."""
        path = self.new_path()
        store = await self.open_store(path)
        await store.set_record(Record(KEY, b"value", ()))
        await store.delete_record(KEY)
        await self.close_store(store)
        store = await self.open_store(path)
        self.assertIsNone(await store.get_record(KEY))

    async def test_one_pack_is_used_on(self) -> None:
        """A process that starts takes over the pack that the last one left, rather than beginning another."""
        path = self.new_path()
        for _ in range(3):
            store = await self.open_store(path)
            await put(store, random_blob())
            await self.close_store(store)
        self.assertEqual(len(os.listdir(path / "packs")), 1)

    async def test_full_packs_are_left_alone(self) -> None:
        """A pack that has reached its size is followed by the next."""
        self.patch(packs_module, "PACK_BYTES", 10_000)
        self.patch(batch, "PACK_BYTES", 10_000)
        store = await self.make_store()
        blobs = [random_blob(4000) for _ in range(10)]
        for each in blobs:
            await put(store, each)
        self.assertGreaterEqual(store._index.next_pack(), 3)
        for each in blobs:
            self.assertEqual(await content_of(store, each.digest), each.content)

    async def test_what_was_not_committed_is_cut_off(self) -> None:
        """Bytes behind the committed end of a pack are cut off before anything is appended."""
        path = self.new_path()
        store = await self.open_store(path)
        one, two = random_blob(), random_blob()
        await put(store, one)
        await self.close_store(store)
        (pack,) = (path / "packs").iterdir()
        with open(pack, "ab") as file:
            file.write(b"ASe1" + os.urandom(1000))
        store = await self.open_store(path)
        await put(store, two)
        await self.close_store(store)
        report = fsck.check(path, NoProgress())
        self.assertEqual((report.blobs, report.problems), (2, []))

    async def test_left_over_uploads_are_swept(self) -> None:
        """What an upload left that was cut off with its process is gone after the next start, in both places."""
        path = self.new_path()
        store = await self.open_store(path)
        kept, lost = random_blob(100_000), random_blob(100_000)
        await put(store, kept)
        await self.close_store(store)
        lost_name = FileName.new(lost.digest)
        (kept_path,) = (each for each in path.glob("blobs/*/*"))
        (path / "incoming" / str(lost_name)).write_bytes(lost.content)
        lost_path = lost_name.below(path / "blobs")
        lost_path.parent.mkdir(exist_ok=True)
        os.link(path / "incoming" / str(lost_name), lost_path)
        os.link(kept_path, path / "incoming" / kept_path.name)
        store = await self.open_store(path)
        self.assertEqual(os.listdir(path / "incoming"), [])
        self.assertFalse(lost_path.exists())
        self.assertEqual(await content_of(store, kept.digest), kept.content)

    async def test_uploads_of_the_living_are_not_swept(self) -> None:
        """A second process that starts leaves the uploads of the first alone."""
        path = self.new_path()
        first = await self.open_store(path)
        each = random_blob(3_000_000)
        upload = await first.upload(each.digest, "me")
        await upload.write(each.content[:2_000_000])
        second = self.open_process(path)
        self.assertEqual(await second.call("find_missing", Digests.of([each.digest])), [0])
        await upload.write(each.content[2_000_000:])
        await upload.commit()
        upload.close()
        self.assertEqual(await second.call("read_many", Digests.of([each.digest])), [each.content])


class SharingTests(LocalStoreTestCase):
    """Several processes may have one repository open."""

    async def test_two_see_each_other(self) -> None:
        """What one has acknowledged, the other serves at once."""
        path = self.new_path()
        store = await self.open_store(path)
        other = self.open_process(path)
        for size in (100, 100_000):
            ours, theirs = random_blob(size), random_blob(size)
            await put(store, ours)
            self.assertEqual(await other.call("read_many", Digests.of([ours.digest])), [ours.content])
            self.assertEqual(await other.call("add_many", [theirs]), [None])
            self.assertEqual(await content_of(store, theirs.digest), theirs.content)
        await store.set_record(Record(KEY, b"ours", (Reference(theirs.digest),)))
        self.assertEqual((await other.call("get_record", KEY)).value, b"ours")
        await other.call("set_record", Record(KEY, b"theirs", (Reference(ours.digest),)))
        self.assertEqual(await value_of(store, KEY), b"theirs")
        self.assertEqual(len(os.listdir(path / "packs")), 2)

    async def test_one_blob_through_both(self) -> None:
        """The same large blob uploaded through both at once is there once, and neither upload takes it away."""
        path = self.new_path()
        store = await self.open_store(path)
        other = self.open_process(path)
        for _ in range(10):
            each = random_blob(500_000)
            await gatherResults([Deferred.fromCoroutine(put(store, each)), other_put(other, each)])
            self.assertEqual(await content_of(store, each.digest), each.content)
            self.assertEqual(await other.call("read_many", Digests.of([each.digest])), [each.content])
        self.assertEqual(len(list(path.glob("blobs/*/*"))), 10)

    async def test_removal_waits_for_no_reader(self) -> None:
        """A reader that has a blob open goes on reading although its file is replaced meanwhile."""
        path = self.new_path()
        store = await self.open_store(path)
        each = random_blob(3_000_000)
        upload = await store.upload(each.digest, "me")
        await upload.write(each.content)
        await put(store, each)
        reader = await store.open(each.digest)
        await upload.commit()
        upload.close()
        self.assertEqual(await reader.read(2_500_000, 10), each.content[2_500_000:2_500_010])
        reader.close()
        self.assertEqual(await content_of(store, each.digest), each.content)

    async def test_the_other_is_killed(self) -> None:
        """A process that is killed takes nothing with it, and its pack is used on."""
        path = self.new_path()
        store = await self.open_store(path)
        each = random_blob()
        for _ in range(3):
            other = self.open_process(path)
            self.assertEqual(await other.call("add_many", [each]), [None])
            other.kill()
            self.assertEqual(await content_of(store, each.digest), each.content)
            each = random_blob()
        await put(store, each)
        self.assertEqual(len(os.listdir(path / "packs")), 1)


def other_put(other: StoreProcess, each: Blob) -> Deferred[Any]:
    """Upload through the other process."""
    return Deferred.fromCoroutine(other.call("add_many", [each]))


class LookUpTests(LocalStoreTestCase):
    """Asking costs no more than what is asked for."""

    async def test_one_row_for_many_names(self) -> None:
        """A blob that is named a thousand times in one call is looked up once, however large its row is."""
        store = await self.make_store()
        each = random_blob(100_000)
        await put(store, each)
        rows, _ = store._index.look_up([each.digest.key] * 1000)
        self.assertEqual(len(rows), 1000)
        self.assertEqual(len({id(row) for row in rows}), 1)
        self.assertEqual(await store.find_missing(Digests.of([each.digest] * 1000)), [])

    async def test_index_in_memory(self) -> None:
        """Soon after a start all of the index is in memory, so that nobody waits for the disk to look things up."""
        path = self.new_path()
        store = await self.open_store(path)
        with store._index.change() as changes:
            changes.put_packed([(b"\1" + os.urandom(32), encode_packed(9, 1, 9, 0)) for _ in range(100_000)])
        await self.close_store(store)
        index = path / "index" / "data.mdb"
        with index.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        if share_in_memory(index) > 0.5:
            raise SkipTest("this file system forgets nothing")
        await self.open_store(path)
        for _ in range(500):
            if share_in_memory(index) == 1:
                return
            await deferLater(reactor, 0.01)
        self.fail(f"{share_in_memory(index):.0%} of the index are in memory")


class RetirementTests(LocalStoreTestCase):
    """Taking a pack away cannot race with using it."""

    async def retire(self, store: Any, state: int) -> int:
        """Put the only pack in a state, as expiry in another process would."""
        pack: int
        (pack,) = (pack for pack, _ in store._index.committed_packs())
        with store._index.change() as changes:
            changes.set_pack_state(pack, state)
        return pack

    async def test_blobs_in_use_leave_a_retiring_pack(self) -> None:
        """A blob that is found in a retiring pack is durable elsewhere before it is called present."""
        store = await self.make_store()
        used, unused = random_blob(), random_blob()
        await put(store, used, unused)
        await self.close_writer(store)
        pack = await self.retire(store, RETIRING)
        self.assertEqual(await store.find_missing(Digests.of([used.digest])), [])
        with store._index.change() as changes:
            changes.drop_pack(pack)
        os.unlink(store._path / "packs" / packs_module.pack_name(pack))
        self.assertEqual(await store.find_missing(Digests.of([used.digest, unused.digest])), [1])
        self.assertEqual(await content_of(store, used.digest), used.content)
        with self.assertRaises(BlobMissing):
            await store.open(unused.digest)

    async def test_blobs_leave_a_retiring_pack_in_slices(self) -> None:
        """However many blobs of a retiring pack one call asks for, a bounded part of them is held at a time."""
        self.patch(local, "RESCUE_BYTES", 1000)
        store = await self.make_store()
        blobs = [random_blob(size) for size in (300, 300, 300, 300, 1500, 0, 700, 300, 1)]
        gone = random_blob(300)
        await put(store, *blobs, gone)
        await self.close_writer(store)
        pack = await self.retire(store, RETIRING)
        asked = [each.digest for each in blobs]
        asked[3:3] = [gone.digest, asked[0], gone.digest]
        with open(store._path / "packs" / packs_module.pack_name(pack), "r+b") as file:
            content = bytearray(file.read())
            content[content.index(gone.content)] ^= 1
            file.seek(0)
            file.write(content)
        held = []
        real = store._reading.contents

        async def contents(digests: Digests) -> list[bytes | None]:
            held.append(sum(digests.sizes))
            return await real(digests)

        self.patch(store._reading, "contents", contents)
        self.assertEqual(await store.find_missing(Digests.of(asked)), [3])
        self.assertEqual(held, [900, 600, 1500, 1000, 1])
        with store._index.change() as changes:
            changes.drop_pack(pack)
        self.assertEqual(await store.find_missing(Digests.of(asked)), [3])
        for each in blobs:
            self.assertEqual(await content_of(store, each.digest), each.content)

    async def close_writer(self, store: Any) -> None:
        """Let the committer go on in another pack."""
        committer = store._committer
        if committer._writer is not None:
            committer._writer.close()
            committer._writer = None
        with store._index.change() as changes:
            for pack, row in changes.packs():
                if row.state == OPEN:
                    changes.set_pack_state(pack, SEALED)

    async def test_dropped_pack_is_missing_everywhere(self) -> None:
        """Entries of a pack without a row are missing, records included, and can be uploaded again."""
        store = await self.make_store()
        each = random_blob()
        await put(store, each)
        await store.set_record(Record(KEY, b"", (Reference(each.digest),)))
        await self.close_writer(store)
        (pack,) = (pack for pack, _ in store._index.committed_packs())
        with store._index.change() as changes:
            changes.drop_pack(pack)
        self.assertEqual(await store.find_missing(Digests.of([each.digest])), [0])
        self.assertEqual(await store.read_many(Digests.of([each.digest])), [None])
        self.assertIsNone(await store.get_record(KEY))
        await put(store, each)
        self.assertEqual(await content_of(store, each.digest), each.content)

    async def test_retired_while_it_is_written(self) -> None:
        """A pack that is retired or dropped while this process appends to it stays so; the work goes elsewhere."""
        store = await self.make_store()
        await put(store, random_blob())
        pack = await self.retire(store, RETIRING)
        each = random_blob()
        await put(store, each)
        with store._index.change() as changes:
            states = {number: row.state for number, row in changes.packs() if row is not None}
        self.assertEqual(states[pack], RETIRING)
        self.assertIn(OPEN, states.values())
        self.assertEqual(await content_of(store, each.digest), each.content)

    async def test_compare_and_delete(self) -> None:
        """Removing a row that has changed meanwhile removes nothing."""
        store = await self.make_store()
        for size in (100, 100_000):
            each = random_blob(size)
            await put(store, each)
            with store._index.change() as changes:
                value = changes.blob(each.digest.key) or b""
                self.assertFalse(changes.remove_blob(each.digest.key, value + b"!"))
            self.assertEqual(await content_of(store, each.digest), each.content)

    async def test_use_of_a_large_file_is_noted(self) -> None:
        """A large file that is asked for long after its last use becomes young again, and its row in ``ages`` moves."""
        clock = [1_000_000.0]
        store = await self.open_store(self.new_path(), now=lambda: clock[0])
        each = random_blob(100_000)
        await put(store, each)
        self.assertEqual([key[:4] for key, _ in store._index.rows("ages")], [(1_000_000).to_bytes(4, "big")])
        clock[0] += touches.TOUCH_SECONDS + 1
        self.assertEqual(await store.find_missing(Digests.of([each.digest])), [])
        await put(store, random_blob())
        ages = [key for key, _ in store._index.rows("ages")]
        self.assertEqual(ages, [int(clock[0]).to_bytes(4, "big") + each.digest.key])

    async def test_records_are_walked_again_after_a_removal(self) -> None:
        """A record is gone when something it requires is removed, and back when that is uploaded again."""
        store = await self.make_store()
        leaf = random_blob()
        root = directory({"leaf": leaf.digest})
        await put(store, leaf, root)
        await store.set_record(Record(KEY, b"", (Reference(root.digest, Shape.DIRECTORY),)))
        self.assertIsNotNone(await store.get_record(KEY))
        with store._index.change() as changes:
            changes.remove_blob(leaf.digest.key, changes.blob(leaf.digest.key) or b"")
        self.assertIsNone(await store.get_record(KEY))
        await put(store, leaf)
        self.assertIsNotNone(await store.get_record(KEY))

    async def test_records_are_not_walked_each_time(self) -> None:
        """A record that was whole a moment ago, with nothing removed since, is handed out without a walk."""
        store = await self.make_store()
        each = random_blob()
        await put(store, each)
        await store.set_record(Record(KEY, b"", (Reference(each.digest),)))
        with mock.patch.object(register, "require_all", side_effect=AssertionError("walked")):
            self.assertIsNotNone(await store.get_record(KEY))

    async def test_many_names_are_one_walk_and_one_commit(self) -> None:
        """A thing that gets many names is walked once, and all its names become durable in one step."""
        store = await self.make_store()
        each = random_blob()
        await put(store, each)
        root = directory({"leaf": each.digest})
        await put(store, root)
        keys = [RecordKey(RecordKind.ASSET_DIRECTORY, "", str(number)) for number in range(64)]
        walk, commit = LocalStore.read_many, Index._commit
        with (
            mock.patch.object(LocalStore, "read_many", autospec=True, side_effect=walk) as walks,
            mock.patch.object(Index, "_commit", autospec=True, side_effect=commit) as commits,
        ):
            await store.set_records([Record(key, b"", (Reference(root.digest, Shape.DIRECTORY),)) for key in keys])
            self.assertEqual((walks.call_count, commits.call_count), (1, 1))
            for key in keys:
                self.assertIsNotNone(await store.get_record(key))
            self.assertEqual(walks.call_count, 1, "what was just walked is walked again")

    async def test_expired_records(self) -> None:
        """A record is gone when its time has come."""
        clock = [1000.0]
        store = await self.open_store(self.new_path(), now=lambda: clock[0])
        await store.set_record(Record(KEY, b"", (), expires=2000.0))
        self.assertIsNotNone(await store.get_record(KEY))
        clock[0] = 2000.0
        self.assertIsNone(await store.get_record(KEY))


class RoomTests(LocalStoreTestCase):
    """Uploads never eat into the head room."""

    async def test_no_room(self) -> None:
        """What does not fit above the head room is refused before its first byte, and leaves nothing behind."""
        path = self.new_path()
        events: list[LogEvent] = []
        observer: ILogObserver = cast(ILogObserver, events.append)
        globalLogPublisher.addObserver(observer)
        self.addCleanup(globalLogPublisher.removeObserver, observer)
        store = await self.open_store(path, head_room_min=1 << 60)
        small, large = random_blob(100), random_blob(100_000)
        outcomes = await store.add_many([small, large])
        self.assertEqual([type(outcome) for outcome in outcomes], [NoRoom, NoRoom])
        with self.assertRaises(NoRoom):
            await store.upload(large.digest, "me")
        self.assertEqual(os.listdir(path / "incoming"), [])
        self.assertEqual(await store.find_missing(Digests.of([small.digest, large.digest])), [0, 1])
        complaints = [event for event in events if "are refused" in (event.get("log_format") or "")]
        self.assertEqual(len(complaints), 1, "the administrator is told, but not each time")

    async def test_space_is_reserved_first(self) -> None:
        """An upload takes all of its disk space before its first byte."""
        path = self.new_path()
        store = await self.open_store(path)
        upload = await store.upload(random_blob(10_000_000).digest, "me")
        if store._cannot_reserve:
            raise SkipTest("this file system cannot reserve space")
        (incoming,) = (path / "incoming").iterdir()
        self.assertGreaterEqual(incoming.stat().st_blocks * 512, 10_000_000)
        upload.close()

    async def test_space_stays_promised_to_a_slow_disk(self) -> None:
        """An upload that is cancelled while its space is being reserved keeps others out of it until that has ended."""
        path = self.new_path()
        store = await self.open_store(path)
        store._pool.adjustPoolsize(maxthreads=1)
        each = random_blob(5_000_000)
        for where in ("in the queue", "in the thread"):
            doors = [threading.Event(), threading.Event()]
            if where == "in the queue":
                store._pool.callInThread(doors[0].wait, 20)
            real = disk.reserve

            def slow(fd: int, length: int, doors: Any = doors, real: Any = real) -> Any:
                doors[1].set()
                doors[0].wait(20)
                return real(fd, length)

            patched = self.patch(disk, "reserve", slow)
            running = Deferred.fromCoroutine(store.upload(each.digest, "me"))
            if where == "in the thread":
                while not doors[1].is_set():
                    await deferLater(reactor, 0.001)
            failed = running.addErrback(lambda failure: failure.trap(CancelledError))
            running.cancel()
            self.assertIs(await failed, CancelledError)
            self.assertEqual(store._room._promised, 5_000_000, where)
            doors[0].set()
            while store._room._promised or store._room._callers or os.listdir(path / "incoming"):
                await deferLater(reactor, 0.001)
            patched.restore()

    async def test_promises_end_with_what_they_were_for(self) -> None:
        """However an upload ends, nothing stays promised to it; and nothing is while it has its space."""
        path = self.new_path()
        store = await self.open_store(path)
        each = random_blob(100_000)
        upload = await store.upload(each.digest, "me")
        self.assertEqual(store._room._promised, 100_000 if store._cannot_reserve else 0)
        await upload.write(each.content)
        upload.close()
        self.assertEqual(await store.add_many([random_blob(), random_blob(100_000)]), [None, None])
        self.assertEqual(store._room._promised, 0)
        Fault(self, disk, "reserve", 1, OSError(errno.ENOSPC, "full"))
        with self.assertRaises(NoRoom):
            await store.upload(each.digest, "me")
        self.assertEqual(store._room._promised, 0)
        Fault(self, disk, "reserve", 1, OSError(errno.ENOSPC, "full"))
        self.assertIsInstance((await store.add_many([each]))[0], NoRoom)
        self.assertEqual(store._room._promised, 0)

    async def test_records_need_room_too(self) -> None:
        """A record that does not fit above the head room is refused."""
        store = await self.open_store(self.new_path(), head_room_min=1 << 60)
        with self.assertRaises(NoRoom):
            await store.set_record(Record(KEY, b"x", ()))

    async def test_many_batches_at_once(self) -> None:
        """Large blobs that come in batches wait for each other, and none is refused for being one too many."""
        store = await self.make_store()
        batches = [[random_blob(70_000) for _ in range(31)] for _ in range(8)]
        outcomes = await gatherResults([Deferred.fromCoroutine(store.add_many(each)) for each in batches])
        self.assertEqual(outcomes, [[None] * 31] * 8)

    async def test_work_that_waits_is_bounded(self) -> None:
        """When the disk cannot keep up, more work is refused, and what was cancelled does not count."""
        self.patch(committer, "WAITING_BYTES", 5_000)
        store = await self.make_store()
        gate = threading.Event()
        real = batch.Batch.commit

        def slow(*arguments: Any) -> None:
            gate.wait(20)
            real(*arguments)

        self.patch(batch.Batch, "commit", slow)
        first = Deferred.fromCoroutine(store.add_many([random_blob(100)]))
        while store._committer._waiting:
            await deferLater(reactor, 0.01)
        waiting = Deferred.fromCoroutine(store.add_many([random_blob(3_000)]))
        (refused,) = await store.add_many([random_blob(3_000)])
        self.assertIsInstance(refused, TooBusy)
        waiting.addErrback(lambda failure: failure.trap(CancelledError) and None)
        waiting.cancel()
        again = Deferred.fromCoroutine(store.add_many([random_blob(3_000)]))
        gate.set()
        self.assertEqual(await gatherResults([first, again]), [[None], [None]])
        self.assertEqual(store._committer._waiting_bytes, 0)

    async def test_notes_of_use_are_bounded(self) -> None:
        """However often something is asked for while the disk is slow, its use is noted once."""
        clock = [1_000_000.0]
        store = await self.open_store(self.new_path(), now=lambda: clock[0])
        await store.set_record(Record(KEY, b"x", ()))
        clock[0] += touches.TOUCH_SECONDS + 1
        gate = threading.Event()
        real = batch.Batch.commit

        def slow(*arguments: Any) -> None:
            gate.wait(20)
            real(*arguments)

        self.patch(batch.Batch, "commit", slow)
        for _ in range(100):
            self.assertIsNotNone(await store.get_record(KEY))
        self.assertLessEqual(len(store._committer._waiting), 1)
        gate.set()

    def test_share_of_a_caller(self) -> None:
        """A caller's only upload may take all the room; with others under way, it is held to a share."""
        status = mock.Mock(f_bavail=1000, f_frsize=1)
        this = room.Room(self.new_path(), 0, statvfs=lambda path: status)
        this.enter("me", 900)
        status.f_bavail = 100  # as reserving does
        with self.assertRaises(NoRoom):
            this.enter("me", 10)
        this.enter("you", 50)
        this.leave("me", 900)
        status.f_bavail = 950
        this.enter("me", 400)
        status.f_bavail = 550
        with self.assertRaises(NoRoom):
            this.enter("me", 200)

    def test_looks_at_the_disk(self) -> None:
        """Small promises share a look at the disk, of no more than a bound, and never of more than there was."""
        self.patch(room, "LOOK_BYTES", 100)
        status = mock.Mock(f_bavail=1000, f_frsize=1)
        looks = []

        def statvfs(path: Any) -> Any:
            looks.append(path)
            return status

        this = room.Room(self.new_path(), 0, statvfs=statvfs)
        promises = [this.promise(10) for _ in range(11)]
        self.assertEqual(len(looks), 1)
        promises.append(this.promise(1))
        self.assertEqual(len(looks), 2)
        for promise in promises:
            promise.reduce(0)
        status.f_bavail = 120
        promises = [this.promise(110)]
        for size in (5, 5):
            promises.append(this.promise(size))
        with self.assertRaises(NoRoom):
            this.promise(1)

    def test_number_of_uploads(self) -> None:
        """One caller, and all together, may have only so many uploads under way."""
        self.patch(room, "CALLER_UPLOADS", 2)
        self.patch(room, "ALL_UPLOADS", 3)
        this = room.Room(self.new_path(), 0, statvfs=lambda path: mock.Mock(f_bavail=1000, f_frsize=1))
        this.enter("me", 1)
        this.enter("me", 1)
        with self.assertRaises(TooBusy):
            this.enter("me", 1)
        this.enter("you", 1)
        with self.assertRaises(TooBusy):
            this.enter("them", 1)
        this.leave("me", 1)
        this.enter("them", 1)


class Fault:
    """Makes the nth call of one of the store's durable steps fail."""

    def __init__(self, case: Any, owner: Any, name: str, nth: int, error: OSError) -> None:
        self.calls = 0
        real = getattr(owner, name)

        def step(*arguments: Any) -> Any:
            self.calls += 1
            if self.calls == nth:
                raise error
            return real(*arguments)

        self.patched = case.patch(owner, name, step)


STEPS = [
    (disk, "write_pieces"),
    (disk, "sync"),
    (disk, "sync_directory"),
    (disk, "link"),
    (disk, "unlink"),
    (disk, "reserve"),
    (Index, "_commit"),
    (Changes, "put_pack"),
]


class FailingDiskTests(LocalStoreTestCase):
    """Whatever step fails: who was told that it was stored finds it, and the store goes on."""

    async def fail_at(self, owner: Any, name: str, nth: int, error: OSError) -> bool:
        """Work with the nth call of a step failing; whether it came to that."""
        path = self.new_path()
        store = await self.open_store(path)
        before = [random_blob(1000), random_blob(100_000)]
        await put(store, *before)
        root = directory({"one": before[0].digest})
        await put(store, root)
        fault = Fault(self, owner, name, nth, error)
        acknowledged = list(before)
        records: dict[RecordKey, bytes] = {}
        for number in range(3):
            blobs = [random_blob(1000), random_blob(100_000)]
            outcomes = await store.add_many(blobs)
            acknowledged += [each for each, outcome in zip(blobs, outcomes, strict=True) if outcome is None]
            key = RecordKey(RecordKind.ASSET_DIRECTORY, "", str(number))
            try:
                await store.set_record(Record(key, b"x", (Reference(root.digest, Shape.DIRECTORY),)))
                records[key] = b"x"
            except StoreError as refusal:
                self.assertIsInstance(refusal, NoRoom if error.errno == errno.ENOSPC else StoreBroken)
        fault.patched.restore()
        self.flushLoggedErrors(type(error), StoreBroken)
        await self.verify(store, acknowledged, records)
        again = [random_blob(1000), random_blob(100_000)]
        await put(store, *again)
        acknowledged += again
        await self.close_store(store)
        store = await self.open_store(path)
        await self.verify(store, acknowledged, records)
        self.assertEqual(os.listdir(path / "incoming"), [])
        await self.close_store(store)
        self.assertEqual(fsck.check(path, NoProgress()).problems, [])
        rebuild.rebuild_index(path, NoProgress(), time.time)
        store = await self.open_store(path)
        await self.verify(store, acknowledged, records)
        await self.close_store(store)
        return fault.calls >= nth

    async def verify(self, store: Any, blobs: list[Blob], records: dict[RecordKey, bytes]) -> None:
        """Everything acknowledged is there."""
        digests = Digests.of(each.digest for each in blobs)
        self.assertEqual(await store.find_missing(digests), [])
        self.assertEqual(await store.read_many(digests), [each.content for each in blobs])
        for key, value in records.items():
            self.assertEqual(await value_of(store, key), value)

    async def test_every_step(self) -> None:
        """Each durable step fails in turn, with a full disk and with a broken one."""
        for owner, name in STEPS:
            reached = 0
            for nth in (1, 2, 3, 5):
                for code in (errno.EIO, errno.ENOSPC):
                    reached += await self.fail_at(owner, name, nth, OSError(code, os.strerror(code)))
            self.assertGreater(reached, 0, name)

    async def test_commit_that_was_durable_after_all(self) -> None:
        """A commit that fails when it was durable already takes nothing away that was there."""
        path = self.new_path()
        store = await self.open_store(path)
        kept = random_blob(100_000)
        await put(store, kept)
        upload = await store.upload(kept.digest, "me")
        await upload.write(kept.content)

        def commit(index: Index, txn: Any) -> None:
            txn.commit()
            raise OSError(errno.EIO, "too late")

        patched = self.patch(Index, "_commit", commit)
        with self.assertRaises(StoreBroken):
            await upload.commit()
        upload.close()
        patched.restore()
        self.flushLoggedErrors(OSError, StoreBroken)
        self.assertEqual(await content_of(store, kept.digest), kept.content)

    async def test_full_disk_under_the_index(self) -> None:
        """What LMDB says of a full disk becomes what clients are told of one, and no advice to repair anything."""
        store = await self.make_store()

        def commit(index: Index, txn: Any) -> None:
            raise lmdb.DiskError("no space")

        patched = self.patch(Index, "_commit", commit)
        (outcome,) = await store.add_many([random_blob()])
        patched.restore()
        self.flushLoggedErrors(NoRoom)
        self.assertIsInstance(outcome, NoRoom)
        self.assertNotIn("fsck", str(outcome))
        await put(store, random_blob())

    async def test_committer_goes_on(self) -> None:
        """A fault of our own in the committer fails the work it hit, and no other."""
        store = await self.make_store()

        def broken(*arguments: Any) -> Any:
            raise RuntimeError("a fault of our own")

        patched = self.patch(batch.Batch, "commit", broken)
        also = self.patch(committer.Committer, "_failed", broken)
        (outcome,) = await store.add_many([random_blob()])
        self.assertIsInstance(outcome, StoreBroken)
        patched.restore()
        also.restore()
        self.flushLoggedErrors(RuntimeError)
        await put(store, random_blob())

    async def test_out_of_descriptors(self) -> None:
        """A server that cannot open files just now says so, and loses nothing."""
        path = self.new_path()
        store = await self.open_store(path)
        small, large = random_blob(100), random_blob(100_000)
        await put(store, small, large)
        await store.set_record(Record(KEY, b"x", (Reference(small.digest),)))
        await self.close_store(store)
        for code in (errno.EMFILE, errno.EACCES, errno.ENOMEM):
            store = await self.open_store(path)

            def refuse(*arguments: Any, code: int = code) -> Any:
                raise OSError(code, os.strerror(code))

            patched = self.patch(disk.Descriptor, "__init__", refuse)
            for digest in (small.digest, large.digest):
                with self.assertRaises((StoreBroken, TooBusy)):
                    await store.read_many(Digests.of([digest]))
                with self.assertRaises((StoreBroken, TooBusy)):
                    await store.open(digest)
            with self.assertRaises((StoreBroken, TooBusy)):
                await store.get_record(KEY)
            patched.restore()
            self.assertEqual(await content_of(store, small.digest), small.content)
            self.assertEqual(await content_of(store, large.digest), large.content)
            self.assertEqual(await value_of(store, KEY), b"x")
            await self.close_store(store)

    async def test_no_place_for_an_upload(self) -> None:
        """An upload whose file cannot be made is refused as any other that does not fit."""
        store = await self.make_store()
        each = random_blob(100_000)

        def refuse(*arguments: Any) -> Any:
            raise OSError(errno.ENOSPC, "no inodes")

        patched = self.patch(uploads, "_create", refuse)
        with self.assertRaises(NoRoom):
            await store.upload(each.digest, "me")
        self.assertIsInstance((await store.add_many([each]))[0], NoRoom)
        patched.restore()
        await put(store, each)

    async def test_failed_sync_seals_the_pack(self) -> None:
        """After a failed sync a pack is never appended to again, by anybody."""
        path = self.new_path()
        store = await self.open_store(path)
        await put(store, random_blob())
        fault = Fault(self, disk, "sync", 1, OSError(errno.EIO, "bad"))
        self.assertIsInstance((await store.add_many([random_blob()]))[0], StoreBroken)
        fault.patched.restore()
        self.flushLoggedErrors(OSError)
        await put(store, random_blob())
        with store._index.change() as changes:
            states = [row.state for _, row in changes.packs() if row is not None]
        self.assertEqual(states, [SEALED, OPEN])


class DamageTests(LocalStoreTestCase):
    """Damage is found and not served; a new upload heals it."""

    async def flip(self, path: Any, offset: int) -> None:
        """Change one byte of a file."""
        with open(path, "r+b") as file:
            file.seek(offset)
            byte = file.read(1)
            file.seek(offset)
            file.write(bytes([byte[0] ^ 0x40]))

    async def test_flipped_bytes_in_a_pack(self) -> None:
        """Whatever byte of an entry is damaged, the blob is missing, and only that one."""
        path = self.new_path()
        store = await self.open_store(path)
        first, victim, last = random_blob(300), random_blob(300), random_blob(300)
        for each in (first, victim, last):
            await put(store, each)
        (pack,) = (path / "packs").iterdir()
        for offset in (0, 3, 4, 8, 9, 10, 11, 15, 19, 20, 51, 52, 200, 351):
            await self.flip(pack, 352 + offset)
            self.assertEqual(await store.read_many(Digests.of([first.digest, victim.digest])), [first.content, None])
            self.assertEqual(await store.find_missing(Digests.of([victim.digest, last.digest])), [0])
            with self.assertRaises(BlobMissing):
                await store.open(victim.digest)
            await put(store, victim)
            self.assertEqual(await content_of(store, victim.digest), victim.content)
            await self.flip(pack, 352 + offset)
            with store._index.change() as changes:  # back to the entry in the middle
                changes.put_packed([(victim.digest.key, encode_packed(300, 0, 300, 352))])
        self.assertTrue(os.listdir(path / "quarantine"))

    async def test_pack_cut_short(self) -> None:
        """Entries behind the cut are missing, those before it are served, also after a restart."""
        path = self.new_path()
        store = await self.open_store(path)
        first, second = random_blob(300), random_blob(300)
        await put(store, first)
        await put(store, second)
        (pack,) = (path / "packs").iterdir()
        os.truncate(pack, 500)
        self.assertEqual(await store.read_many(Digests.of([first.digest, second.digest])), [first.content, None])
        await self.close_store(store)
        store = await self.open_store(path)
        await put(store, second)
        self.assertEqual(await content_of(store, second.digest), second.content)
        self.assertEqual(await content_of(store, first.digest), first.content)

    async def test_lost_pack(self) -> None:
        """The blobs of a pack whose file is gone are missing from the next start on."""
        path = self.new_path()
        store = await self.open_store(path)
        each = random_blob()
        await put(store, each)
        await self.close_store(store)
        (pack,) = (path / "packs").iterdir()
        pack.unlink()
        store = await self.open_store(path)
        self.assertEqual(await store.find_missing(Digests.of([each.digest])), [0])
        await put(store, each)
        self.assertEqual(await content_of(store, each.digest), each.content)

    async def test_nothing_read_is_no_damage(self) -> None:
        """A read that must not wait and gives nothing, as on Linux 5.10, is made again by one that waits."""
        path = self.new_path()
        store = await self.open_store(path)
        small, large = random_blob(), random_blob(200_000)
        await put(store, small, large)
        calls = []

        def preadv(fd: int, buffers: Any, offset: int, flags: int = 0) -> int:
            calls.append(flags)
            return 0

        self.patch(os, "preadv", preadv)
        wanted = Digests.of([small.digest, large.digest])
        self.assertEqual(await store.read_many(wanted), [small.content, large.content])
        self.assertEqual(await (await store.open(small.digest)).read(0, 100), small.content)
        self.assertEqual(await store.find_missing(wanted), [])
        self.assertTrue(calls)
        self.assertFalse(os.listdir(path / "quarantine"))

    async def test_file_system_that_cannot_tell(self) -> None:
        """Where a file system cannot tell what is in memory, threads read, after one try, and nothing is damage."""
        path = self.new_path()
        store = await self.open_store(path)
        small, large = [random_blob() for _ in range(50)], random_blob(200_000)
        await put(store, *small, large)
        await store.set_record(Record(KEY, b"value", ()))
        main, calls, reads = threading.get_ident(), [], []
        real = os.pread

        def preadv(fd: int, buffers: Any, offset: int, flags: int = 0) -> int:
            calls.append(flags)
            if flags:
                raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))
            raise AssertionError("this waits for the disk")

        def pread(fd: int, count: int, offset: int) -> bytes:
            reads.append(threading.get_ident())
            return real(fd, count, offset)

        self.patch(os, "preadv", preadv)
        self.patch(os, "pread", pread)
        for _ in range(3):
            found = await store.read_many(Digests.of(each.digest for each in small))
            self.assertEqual(found, [each.content for each in small])
            self.assertEqual(await value_of(store, KEY), b"value")
        self.assertEqual(len(calls), 1)
        self.assertEqual(await content_of(store, large.digest), large.content)
        self.assertGreater(len(reads), 150)
        self.assertNotIn(main, reads)
        self.assertFalse(os.listdir(path / "quarantine"))

    async def test_out_of_memory(self) -> None:
        """When very much of a call is not in memory, the rest of it is left to a thread without a try each."""
        store = await self.make_store()
        blobs = [random_blob() for _ in range(100)]
        await put(store, *blobs)
        tries = 0
        real = os.preadv

        def preadv(fd: int, buffers: Any, offset: int, flags: int = 0) -> int:
            nonlocal tries
            tries += 1
            if tries % 2:
                raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
            return real(fd, buffers, offset, flags)

        self.patch(os, "preadv", preadv)
        self.patch(reading, "COLD_BLOBS", 5)
        for _ in range(2):
            found = await store.read_many(Digests.of(each.digest for each in blobs))
            self.assertEqual(found, [each.content for each in blobs])
        self.assertIn(tries, (18, 19))

    async def test_damaged_file(self) -> None:
        """A large blob with a flipped byte, cut short or gone is never served wrong, and heals."""
        path = self.new_path()
        store = await self.open_store(path)
        each = random_blob(2_500_000)
        for damage in ("flip", "cut", "grow", "gone"):
            await put(store, each)
            (file,) = path.glob("blobs/*/*")
            if damage == "flip":
                await self.flip(file, 2_000_000)
            elif damage == "cut":
                os.truncate(file, 2_000_000)
            elif damage == "gone":
                file.unlink()
            else:
                with open(file, "ab") as grown:
                    grown.write(b"more")
            if damage == "grow":
                self.assertEqual(await content_of(store, each.digest), each.content)
                continue
            with self.assertRaises(BlobMissing):
                await content_of(store, each.digest)
            self.assertEqual(await store.find_missing(Digests.of([each.digest])), [0])
        await put(store, each)
        self.assertEqual(await content_of(store, each.digest), each.content)

    async def test_sound_blocks_are_served_before_the_damage(self) -> None:
        """A reader gets what is sound, and an error where the damage begins."""
        path = self.new_path()
        store = await self.open_store(path)
        each = random_blob(2_500_000)
        await put(store, each)
        (file,) = path.glob("blobs/*/*")
        await self.flip(file, 1_500_000)
        reader = await store.open(each.digest)
        self.assertEqual(await reader.read(0, 1 << 20), each.content[: 1 << 20])
        with self.assertRaises(BlobMissing):
            await reader.read(1 << 20, 1 << 20)
        reader.close()

    async def test_damaged_rows(self) -> None:
        """A row of the index with any byte changed leads to the right blob or to none."""
        path = self.new_path()
        store = await self.open_store(path)
        for size in (300, 1_100_000):
            each, other = random_blob(size), random_blob(size)
            await put(store, each, other)
            value = store._index.look_up([each.digest.key])[0][0] or b""
            for position in range(len(value)):
                with store._index.change() as changes:
                    row = bytearray(value)
                    row[position] ^= 0x41
                    changes._txn.put(each.digest.key, bytes(row), db=store._index.blobs)
                (found,) = await store.read_many(Digests.of([each.digest]))
                self.assertIn(found, (None, each.content))
                await put(store, each)
                self.assertEqual(await content_of(store, each.digest), each.content)
                value = store._index.look_up([each.digest.key])[0][0] or b""

    async def test_damaged_record(self) -> None:
        """A record whose entry is damaged is gone, and can be set again."""
        path = self.new_path()
        store = await self.open_store(path)
        await store.set_record(Record(KEY, b"value", ()))
        (pack,) = (path / "packs").iterdir()
        await self.flip(pack, pack.stat().st_size - 2)
        self.assertIsNone(await store.get_record(KEY))
        await store.set_record(Record(KEY, b"value", ()))
        self.assertEqual(await value_of(store, KEY), b"value")

    async def test_damaged_record_among_many(self) -> None:
        """Forgetting a damaged record takes its name along, and no other."""
        path = self.new_path()
        store = await self.open_store(path)
        keys = [RecordKey(RecordKind.ASSET_BLOB, "i", f"urn:{number}") for number in range(50)]
        await store.set_records([Record(key, b"value", ()) for key in keys])
        (pack,) = (path / "packs").iterdir()
        for repaired_by in ("use", "fsck"):
            key = keys.pop(20)
            content = bytearray(pack.read_bytes())
            content[content.index(key.name.encode()) - 1] ^= 1
            pack.write_bytes(content)
            if repaired_by == "use":
                self.assertIsNone(await store.get_record(key))
            else:
                await self.close_store(store)
                report = fsck.check(path, NoProgress(), repair=True)
                self.assertEqual(report.problem_count, 1)
                store = await self.open_store(path)
            self.assertEqual(store._index.count_names(), (len(keys), len(keys)))
            for other in keys:
                self.assertEqual(await value_of(store, other), b"value")
        await self.close_store(store)
        self.assertEqual(fsck.check(path, NoProgress()).problems, [])

    async def test_quarantine_is_bounded(self) -> None:
        """A failing disk cannot fill itself with what it damaged."""
        self.patch(damage_module, "QUARANTINE_FILES", 2)
        path = self.new_path()
        store = await self.open_store(path)
        for size in (100, 100_000, 100, 100_000):
            each = random_blob(size)
            await put(store, each)
            for file in (*path.glob("packs/*"), *path.glob("blobs/*/*")):
                await self.flip(file, file.stat().st_size - 1)
            self.assertEqual(await store.read_many(Digests.of([each.digest])), [None])
        self.assertEqual(len(os.listdir(path / "quarantine")), 2)


class IndexDamageTests(LocalStoreTestCase):
    """A damaged index stops the start with a sentence that names the repair, and the repair brings all back."""

    async def filled(self) -> tuple[Any, list[Blob], list[RecordKey]]:
        """A repository with blobs and records, closed."""
        path = self.new_path()
        store = await self.open_store(path)
        blobs = [random_blob(size) for size in (10, 1000, 70_000, 2_100_000)]
        await put(store, *blobs)
        keys = [RecordKey(RecordKind.ASSET_BLOB, "i", f"n{number}") for number in range(5)]
        for key in keys:
            await store.set_record(Record(key, b"old", (Reference(blobs[0].digest),)))
        for key in keys:
            await store.set_record(Record(key, key.name.encode(), tuple(Reference(each.digest) for each in blobs)))
        await store.delete_record(keys[-1])
        await self.close_store(store)
        return path, blobs, keys

    async def verify(self, path: Any, blobs: list[Blob], keys: list[RecordKey]) -> None:
        store = await self.open_store(path)
        for each in blobs:
            self.assertEqual(await content_of(store, each.digest), each.content)
        for key in keys[:-1]:
            self.assertEqual(await value_of(store, key), key.name.encode())
        self.assertIsNone(await store.get_record(keys[-1]))
        await store.set_record(Record(keys[0], b"new", ()))
        self.assertEqual(await value_of(store, keys[0]), b"new")
        await put(store, random_blob(), random_blob(100_000))
        await self.close_store(store)
        self.assertEqual(fsck.check(path, NoProgress()).problems, [])

    async def test_lost_index(self) -> None:
        """An index that is deleted, emptied, cut short or scribbled over is refused and can be rebuilt."""
        for damage in ("delete", "file", "empty", "cut", "head"):
            path, blobs, keys = await self.filled()
            data = path / "index" / "data.mdb"
            if damage == "delete":
                shutil.rmtree(path / "index")
            elif damage == "file":
                data.unlink()
            elif damage == "empty":
                os.truncate(data, 0)
            elif damage == "cut":
                os.truncate(data, data.stat().st_size - 4096)
            else:
                with open(data, "r+b") as file:
                    file.write(bytes(8192))
            with self.assertRaises(RepositoryProblem) as caught:
                prepare(path)
            self.assertIn("artifactserver fsck --rebuild-index", str(caught.exception), damage)
            report = rebuild.rebuild_index(path, NoProgress(), time.time)
            self.assertEqual((report.blobs, report.records, report.problems), (4, 4, []))
            await self.verify(path, blobs, keys)

    async def test_rebuild_of_a_damaged_store(self) -> None:
        """Damage in a pack costs the entries it hit and no other; a damaged file goes to quarantine."""
        path, blobs, keys = await self.filled()
        (pack,) = (path / "packs").iterdir()
        with open(pack, "r+b") as file:
            file.seek(30)
            file.write(b"\0\0\0")
        with open(next(path.glob(f"blobs/*/*{blobs[3].digest.hex}*")), "r+b") as file:
            file.write(b"damage")
        report = rebuild.rebuild_index(path, NoProgress(), time.time)
        self.assertEqual((report.blobs, report.problem_count), (2, 2))
        store = await self.open_store(path)
        self.assertEqual(await store.find_missing(Digests.of(each.digest for each in blobs)), [0, 3])
        await put(store, blobs[0], blobs[3])
        self.assertEqual(await value_of(store, keys[0]), b"n0")

    async def test_index_of_another_store(self) -> None:
        """An index that belongs to another repository is refused."""
        path, _, _ = await self.filled()
        other, _, _ = await self.filled()
        os.rename(other / "index", other / "aside")
        os.rename(path / "index", other / "index")
        with self.assertRaises(RepositoryProblem) as caught:
            prepare(other)
        self.assertIn("belongs to another store", str(caught.exception))

    async def test_index_from_a_backup(self) -> None:
        """An index that is older than the packs is refused: it would hand out what it does not know."""
        path = self.new_path()
        prepare(path)
        saved = (path / "index" / "data.mdb").read_bytes()
        store = await self.open_store(path)
        await put(store, random_blob())
        await self.close_store(store)
        (path / "index" / "data.mdb").write_bytes(saved)
        with self.assertRaises(RepositoryProblem) as caught:
            prepare(path)
        self.assertIn("is older than", str(caught.exception))

    async def test_rebuild_that_is_cut_off(self) -> None:
        """A rebuild that does not come to its end has changed nothing."""
        path, blobs, keys = await self.filled()
        (file,) = path.glob(f"blobs/*/*{blobs[3].digest.hex}*")
        shutil.copy(file, file.with_name(str(FileName.new(blobs[3].digest))))

        def files() -> dict[Any, int]:
            found = (each for each in path.rglob("*") if each.is_file() and "index.new" not in str(each))
            return {each: each.stat().st_size for each in found}

        before = files()

        def cut_off(*arguments: Any) -> None:
            raise KeyboardInterrupt

        patched = self.patch(os, "rename", cut_off)
        with self.assertRaises(KeyboardInterrupt):
            rebuild.rebuild_index(path, NoProgress(), time.time)
        patched.restore()
        after = {
            each: each.stat().st_size for each in path.rglob("*") if each.is_file() and "index.new" not in str(each)
        }
        self.assertEqual(after, before)
        rebuild.rebuild_index(path, NoProgress(), time.time)
        self.assertEqual(len(list(path.glob(f"blobs/*/*{blobs[3].digest.hex}*"))), 1)
        await self.verify(path, blobs, keys)

    async def test_what_was_never_committed_does_not_win(self) -> None:
        """A change that a process wrote and never committed loses against one that another made after its death."""
        path = self.new_path()
        store = await self.open_store(path)
        for number in range(5):
            await store.set_record(Record(KEY, b"%d" % number, ()))

        def die(index: Index, txn: Any) -> None:
            raise OSError(errno.EIO, "dead")

        patched = self.patch(Index, "_commit", die)
        cut_back = self.patch(packs_module.PackWriter, "cut_back", lambda writer: None)
        with self.assertRaises(StoreError):
            await store.set_record(Record(KEY, b"never committed", ()))
        patched.restore()
        cut_back.restore()
        self.flushLoggedErrors(OSError, StoreBroken)
        await store.set_record(Record(KEY, b"acknowledged", ()))
        await self.close_store(store)
        rebuild.rebuild_index(path, NoProgress(), time.time)
        store = await self.open_store(path)
        self.assertEqual(await value_of(store, KEY), b"acknowledged")

    async def test_not_while_in_use(self) -> None:
        """The index is not rebuilt while a server has the repository open."""
        path = self.new_path()
        await self.open_store(path)
        with self.assertRaises(RepositoryProblem) as caught:
            rebuild.rebuild_index(path, NoProgress(), time.time)
        self.assertIn("in use", str(caught.exception))

    async def test_newer_change_wins(self) -> None:
        """When two processes wrote changes of one record to different packs, the rebuilt index has the newer one."""
        path = self.new_path()
        store = await self.open_store(path)
        other = self.open_process(path)
        for number in range(3):
            await store.set_record(Record(KEY, b"ours %d" % number, ()))
            await other.call("set_record", Record(KEY, b"theirs %d" % number, ()))
        other.kill()
        await self.close_store(store)
        rebuild.rebuild_index(path, NoProgress(), time.time)
        store = await self.open_store(path)
        self.assertEqual(await value_of(store, KEY), b"theirs 2")


class FsckTests(LocalStoreTestCase):
    """A check finds every damage, names it, and repairs it when asked to."""

    async def test_sound(self) -> None:
        """A sound repository has no problems, and everything in it is counted."""
        path = self.new_path()
        store = await self.open_store(path)
        await put(store, random_blob(100), random_blob(100_000))
        await store.set_record(Record(KEY, b"", ()))
        await self.close_store(store)
        report = fsck.check(path, NoProgress())
        self.assertEqual((report.blobs, report.records, report.content_bytes), (2, 1, 100_100))
        self.assertEqual(report.problems, [])

    async def test_damaged_records(self) -> None:
        """Damaged records are named, tombstones among them, and repaired by forgetting them."""
        path = self.new_path()
        store = await self.open_store(path)
        deleted = RecordKey(RecordKind.ASSET_BLOB, "", "deleted")
        await store.set_record(Record(deleted, b"", ()))
        await store.set_record(Record(KEY, b"", ()))
        await store.delete_record(deleted)
        await self.close_store(store)
        (pack,) = (path / "packs").iterdir()
        content = bytearray(pack.read_bytes())
        for offset in (len(content) - 1, len(content) // 2):
            content[offset] ^= 1
        pack.write_bytes(content)
        self.assertEqual(fsck.check(path, NoProgress()).problem_count, 2)
        self.assertEqual(fsck.check(path, NoProgress(), repair=True).problem_count, 2)
        self.assertEqual(fsck.check(path, NoProgress()).problems, [])

    async def test_damage_is_named_and_repaired(self) -> None:
        """Damaged blobs are named; with repair they are missing afterwards, and nothing else is."""
        path = self.new_path()
        store = await self.open_store(path)
        small, large, fine = random_blob(100), random_blob(100_000), random_blob(100)
        await put(store, small, large)
        await put(store, fine)
        for file in (*path.glob("packs/*"), *path.glob("blobs/*/*")):
            with open(file, "r+b") as opened:
                opened.seek(60)
                opened.write(b"damage")
        await self.close_store(store)
        report = fsck.check(path, NoProgress())
        for each in (small, large):
            self.assertTrue(any(str(each.digest) in problem for problem in report.problems), report.problems)
        again = fsck.check(path, NoProgress(), repair=True)
        self.assertEqual(again.problem_count, report.problem_count)
        repaired = fsck.check(path, NoProgress())
        self.assertEqual(repaired.problems, [])
        self.assertTrue(any("belong to no entry" in remark for remark in repaired.remarks), repaired.remarks)
        store = await self.open_store(path)
        wanted = Digests.of([small.digest, large.digest, fine.digest])
        self.assertEqual(await store.find_missing(wanted), [0, 1])


class StoppingTests(LocalStoreTestCase):
    """A store that stops leaves no work to the next one."""

    async def test_uploads_are_cleared_away(self) -> None:
        """Uploads that are under way when the store stops are gone from the disk when it has stopped."""
        path = self.new_path()
        store = await self.open_store(path)
        store._pool.adjustPoolsize(maxthreads=1)
        each = random_blob(5_000_000)
        idle, busy = [await store.upload(each.digest, "me") for _ in range(2)]
        door = threading.Event()
        store._pool.callInThread(door.wait, 20)
        closed_in_the_middle = await self.flushing(store, busy, each.content[:2_000_000])
        beginning = Deferred.fromCoroutine(store.upload(each.digest, "me"))
        in_a_batch = Deferred.fromCoroutine(store.add_many([each]))
        stopped = Deferred.fromCoroutine(self.close_store(store))
        self.assertFalse(stopped.called)
        door.set()
        await stopped
        self.assertEqual(os.listdir(path / "incoming"), [])
        self.assertEqual((store._room._promised, store._room._callers), (0, {}))
        for refused in (beginning, closed_in_the_middle):
            self.failureResultOf(refused, StoreBroken)
        (outcome,) = self.successResultOf(in_a_batch)
        self.assertIsInstance(outcome, StoreBroken)
        idle.close()
        for late in (store.upload(each.digest, "me"), idle.write(each.content)):
            with self.assertRaises(StoreBroken):
                await late

    async def flushing(self, store: Any, upload: Any, content: bytes) -> Deferred[None]:
        """Hand in some content, and wait for the disk with the rest."""
        await upload.write(content)
        return Deferred.fromCoroutine(upload.write(content))

    async def test_what_is_committed_stays_so(self) -> None:
        """An upload whose commit is under way when the store stops is acknowledged, and is there."""
        path = self.new_path()
        store = await self.open_store(path)
        each = random_blob(1_000_000)
        upload = await store.upload(each.digest, "me")
        await upload.write(each.content)
        begun, door = threading.Event(), threading.Event()
        real = batch.Batch.commit

        def slow(*arguments: Any) -> None:
            begun.set()
            door.wait(20)
            real(*arguments)

        self.patch(batch.Batch, "commit", slow)
        committed = Deferred.fromCoroutine(upload.commit())
        while not begun.is_set():
            await deferLater(reactor, 0.001)
        stopped = Deferred.fromCoroutine(self.close_store(store))
        door.set()
        await committed
        await stopped
        self.assertEqual(os.listdir(path / "incoming"), [])
        store = await self.open_store(path)
        self.assertEqual(await content_of(store, each.digest), each.content)

    async def test_a_disk_that_hangs(self) -> None:
        """A store waits only so long for uploads to be cleared away; the next one does it."""
        self.patch(local, "STOP_SECONDS", 0.1)
        path = self.new_path()
        store = await self.open_store(path)
        upload = await store.upload(random_blob(100_000).digest, "me")
        door = threading.Event()
        self.patch(IncomingFile, "discard", lambda file: door.wait(20))
        hanging = threading.Timer(0.5, door.set)  # the thread itself is waited for, however long that takes
        hanging.start()
        await self.close_store(store)
        hanging.join()
        self.assertEqual(len(os.listdir(path / "incoming")), 1)
        os.close(upload._file._fd)
        await self.open_store(path)
        self.assertEqual(os.listdir(path / "incoming"), [])


class CancelledUploadTests(LocalStoreTestCase):
    """Uploads that end in the middle leave nothing behind."""

    async def test_cancelled_at_any_moment(self) -> None:
        """A call that is cancelled while it waits for a thread lets go of file, space and slot."""
        path = self.new_path()
        store = await self.open_store(path)
        each = random_blob(5_000_000)

        async def call() -> None:
            upload = await store.upload(each.digest, "me")
            try:
                for start in range(0, 5_000_000, 500_000):
                    await upload.write(each.content[start : start + 500_000])
                await upload.commit()
            finally:
                upload.close()

        for delay in (0, 0.001, 0.003, 0.006, 0.01, 0.02, 0.05):
            running = Deferred.fromCoroutine(call())
            await deferLater(reactor, delay)
            running.addErrback(lambda failure: None)
            running.cancel()
        for _ in range(100):
            if not os.listdir(path / "incoming") and not store._room._callers:
                break
            await deferLater(reactor, 0.05)
        self.assertEqual(os.listdir(path / "incoming"), [])
        self.assertEqual(store._room._callers, {})
        (found,) = await store.read_many(Digests.of([each.digest]))
        self.assertIn(found, (None, each.content))

    async def test_cancelled_batch(self) -> None:
        """A batch that is cancelled while its small blobs are written lets go of all its large ones at once."""
        path = self.new_path()
        store = await self.open_store(path)
        batch = [random_blob(100), *[random_blob(100_000) for _ in range(3 * adding.BATCHED_UPLOADS)]]
        running = Deferred.fromCoroutine(store.add_many(batch))
        while not store._adding._turns.waiting:  # they are being hashed
            await deferLater(reactor, 0.001)
        self.assertEqual(len(store._adding._turns.waiting), 2 * adding.BATCHED_UPLOADS)
        running.addErrback(lambda failure: None)
        running.cancel()
        self.assertEqual(len(store._adding._turns.waiting), 0)
        for _ in range(100):
            if not os.listdir(path / "incoming") and store._adding._turns.tokens == adding.BATCHED_UPLOADS:
                break
            await deferLater(reactor, 0.05)
        self.assertEqual((os.listdir(path / "incoming"), store._adding._turns.tokens), ([], adding.BATCHED_UPLOADS))
        self.assertEqual(store._room._promised, 0)
