"""A check of a repository names what is wrong, and nothing else, whatever happens to the repository meanwhile."""

from __future__ import annotations

import errno
import itertools
import os
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.threads import blockingCallFromThread, deferToThread

from artifactserver.store import batch, damage, fsck
from artifactserver.store import packs as packs_module
from artifactserver.store.digest import Digests
from artifactserver.store.files import FileName
from artifactserver.store.fsck import Report
from artifactserver.store.interface import Blob, Record, RecordKey, RecordKind, Reference
from artifactserver.store.layout import RepositoryProblem
from artifactserver.store.packs import KIND_BLOB, encode_head, pack_name
from artifactserver.store.repository import prepare
from artifactserver.store.rows import RETIRING, SEALED, FileRow, unpack_packed
from tests.local_stores import LocalStoreTestCase
from tests.store_contract import KEY, content_of, put, random_blob, value_of
from tests.test_local_store import NoProgress


class Meanwhile:
    """Lets something happen in the reactor's thread each time that a check, in another thread, gets on."""

    def __init__(self, what: Callable[[], Awaitable[None]]) -> None:
        self._what = what

    def begin(self, doing: str, total: int) -> None:
        """As `artifactserver.store.fsck.Progress`."""

    def advance(self, count: int) -> None:
        """As `artifactserver.store.fsck.Progress`."""
        blockingCallFromThread(reactor, lambda: Deferred.fromCoroutine(self._what()))  # type: ignore[arg-type]


async def upload_again(store: Any, each: Blob) -> None:
    """A blob that is there already, from somebody who did not ask."""
    upload = await store.upload(each.digest, "me")
    await upload.write(each.content)
    await upload.commit()
    upload.close()


def flip(path: Path, offset: int) -> None:
    """Change one bit of a file."""
    with open(path, "r+b") as file:
        file.seek(offset)
        byte = file.read(1)
        file.seek(offset)
        file.write(bytes([byte[0] ^ 1]))


class InUseTests(LocalStoreTestCase):
    """A store is checked while it is used."""

    async def check(self, store: Any, what: Callable[[], Awaitable[None]], repair: bool = False) -> Report:
        """Check a store that is open here, with something happening all the while."""
        this = fsck._Check(store._repository, Meanwhile(what), repair)
        return await deferToThread(this.run)

    async def test_everything_at_once(self) -> None:
        """Uploads, replacements, deletions, moves to other packs and dropped packs are no damage."""
        self.patch(batch, "PACK_BYTES", 3_000)
        self.patch(packs_module, "PACK_BYTES", 3_000)
        for repair in (False, True):
            store = await self.make_store()
            large = [random_blob(size) for size in (70_000, 1_500_000)]
            small = [random_blob(400) for _ in range(30)]
            await put(store, *large)
            for each in small:
                await put(store, each)
            keys = [RecordKey(RecordKind.ASSET_BLOB, "", f"urn:{number}") for number in range(10)]
            for key in keys:
                await store.set_record(Record(key, b"old", (Reference(small[-1].digest),)))
            turn = itertools.count()

            async def add(store: Any = store, small: list[Blob] = small) -> None:
                small.append(random_blob(400))
                await put(store, small[-1])

            async def replace(store: Any = store, large: list[Blob] = large) -> None:
                for each in large:
                    await upload_again(store, each)

            async def change(store: Any = store, keys: list[RecordKey] = keys, turn: Iterator[int] = turn) -> None:
                number = next(turn)
                await store.set_record(Record(keys[number % 9], b"%d" % number, ()))
                await store.delete_record(keys[9 - number % 2])

            async def drop(store: Any = store, small: list[Blob] = small, keys: list[RecordKey] = keys) -> None:
                with store._index.change() as changes:
                    sealed = [pack for pack, row in changes.packs() if row is not None and row.state == SEALED]
                    for pack in sealed[:1]:
                        changes.set_pack_state(pack, RETIRING)
                self.assertEqual(await store.find_missing(Digests.of(each.digest for each in small)), [])
                # As expiry will carry records forward.
                for key in keys:
                    if (record := await store.get_record(key)) is not None:
                        await store.set_record(record)
                for pack in sealed[:1]:
                    with store._index.change() as changes:
                        changes.drop_pack(pack)
                    (store._path / "packs" / pack_name(pack)).unlink()

            actions = itertools.cycle([add, replace, change, drop])

            async def act(actions: Iterator[Any] = actions) -> None:
                await next(actions)()

            report = await self.check(store, act, repair)
            self.assertEqual(report.problems, [])
            self.assertGreater(next(turn), 3)
            for each in small + large:
                self.assertEqual(await content_of(store, each.digest), each.content)
            await self.close_store(store)
            self.assertEqual(fsck.check(store._path, NoProgress()).problems, [])

    async def test_damage_is_found_all_the_same(self) -> None:
        """Damage is named although as many sound blobs have left the pack, once counted, as damaged ones are there."""
        store = await self.make_store()
        damaged, moved, other = random_blob(400), random_blob(400), random_blob(400)
        await put(store, damaged)
        await put(store, moved)
        flip(store._path / "packs" / pack_name(0), 100)
        with store._index.change() as changes:
            changes.set_pack_state(0, SEALED)
        await put(store, other)
        self.assertEqual(store._index.next_pack(), 2)
        steps = itertools.count(1)

        async def move() -> None:
            if next(steps) == 3:  # now the second pack is read
                with store._index.change() as changes:
                    changes.remove_blob(moved.digest.key, changes.blob(moved.digest.key))
                await put(store, moved)

        report = await self.check(store, move)
        self.assertGreater(next(steps), 3)
        (problem,) = report.problems
        self.assertIn(str(damaged.digest), problem)

    async def test_damaged_and_used(self) -> None:
        """Damage is named although its row changes while it is looked at, and left be when another upload healed it."""
        clock = [1_000_000.0]
        store = await self.open_store(self.new_path(), now=lambda: clock[0])
        used, replaced = random_blob(100_000), random_blob(100_000)
        await put(store, used, replaced)
        await store.set_record(Record(KEY, b"value", ()))
        for each in (used, replaced):
            (path,) = store._path.glob(f"blobs/*/*{each.digest.hex}*")
            flip(path, 500)
        flip(store._path / "packs" / pack_name(0), (store._path / "packs" / pack_name(0)).stat().st_size - 1)

        async def use() -> None:
            clock[0] += 10
            with store._index.change() as changes:
                value = changes.blob(used.digest.key) or b""
                changes.touch_file(used.digest.key, value, int(clock[0]))
                (record,) = [key for key, _ in store._index.rows("records")]
                row = changes.record(record)
                assert row is not None
                changes.note_walk(record, row.sequence, 5, int(clock[0]))
            await upload_again(store, replaced)

        report = await self.check(store, use, repair=True)
        self.assertEqual(len(report.problems), 2, report.problems)
        self.assertIn(str(used.digest), report.problems[0])
        self.assertIn("record", report.problems[1])
        self.assertEqual(await store.find_missing(Digests.of([used.digest, replaced.digest])), [0])
        self.assertEqual(await content_of(store, replaced.digest), replaced.content)
        self.assertIsNone(await store.get_record(KEY))


class FindingTests(LocalStoreTestCase):
    """What is wrong is named and put aside; the rest is left as it is."""

    async def test_two_copies(self) -> None:
        """Of a blob that stands in two packs, the copy counts that the index knows."""
        for counts in (False, True):
            path = self.new_path()
            store = await self.open_store(path)
            each, other = random_blob(300), random_blob(300)
            await put(store, each)
            first = store._index.look_up([each.digest.key])[0]
            with store._index.change() as changes:
                changes.set_pack_state(0, SEALED)
            await put(store, other)
            with store._index.change() as changes:
                changes.remove_blob(each.digest.key, changes.blob(each.digest.key))
            await put(store, each)
            value = store._index.look_up([each.digest.key])[0][0]
            self.assertNotEqual(first, [value])
            _, _, pack, _, offset = unpack_packed(value or b"")
            await self.close_store(store)
            self.assertEqual(fsck.check(path, NoProgress()).content_bytes, 600)
            flip(path / "packs" / pack_name(pack if counts else 0), (offset if counts else 0) + 100)
            report = fsck.check(path, NoProgress())
            self.assertEqual(report.problem_count, counts)
            self.assertEqual(len(report.remarks), 1)

    async def test_cut_short(self) -> None:
        """Of a pack that ends in the middle of an entry, what stands before that is sound."""
        path = self.new_path()
        store = await self.open_store(path)
        one, two = random_blob(300), random_blob(300)
        await put(store, one)
        await put(store, two)
        await self.close_store(store)
        os.truncate(path / "packs" / pack_name(0), 700)
        for _ in range(2):
            report = fsck.check(path, NoProgress(), repair=True)
            self.assertTrue(any("cut short" in remark for remark in report.remarks), report.remarks)
        self.assertEqual((report.problems, report.blobs), ([], 1))
        store = await self.open_store(path)
        self.assertEqual(await store.find_missing(Digests.of([one.digest, two.digest])), [1])

    async def test_lost_pack(self) -> None:
        """What was in a pack that the store has given up is missing, and no problem."""
        path = self.new_path()
        store = await self.open_store(path)
        each = random_blob(300)
        await put(store, each)
        await store.set_record(Record(KEY, b"value", (Reference(each.digest),)))
        await self.close_store(store)
        (path / "packs" / pack_name(0)).unlink()
        report = fsck.check(path, NoProgress())
        self.assertEqual((report.problem_count, len(report.remarks)), (2, 1))
        await self.close_store(await self.open_store(path))
        report = fsck.check(path, NoProgress())
        self.assertEqual((report.problems, report.remarks, report.blobs, report.records), ([], [], 0, 0))

    async def test_disk_errors(self) -> None:
        """What the disk cannot give back is damage like any other, and the check goes on."""
        path = self.new_path()
        store = await self.open_store(path)
        bad = [random_blob(3000), random_blob(2_500_000)]
        good = [random_blob(3000), random_blob(2_500_000), random_blob(3000)]
        for each in (bad[0], *good, bad[1]):
            await put(store, each)
        await store.set_record(Record(KEY, b"value", ()))
        await self.close_store(store)
        real = os.pread

        def pread(fd: int, count: int, offset: int) -> bytes:
            name = os.readlink(f"/proc/self/fd/{fd}")
            if (bad[1].digest.hex in name and offset + count > 1_000_000) or (name.endswith(".pack") and offset < 3000):
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            return real(fd, count, offset)

        with mock.patch.object(os, "pread", pread):
            report = fsck.check(path, NoProgress(), repair=True)
        self.assertEqual(report.problem_count, 2, report.problems)
        for each in bad:
            self.assertTrue(any(str(each.digest) in problem for problem in report.problems), report.problems)
        store = await self.open_store(path)
        self.assertEqual(await store.find_missing(Digests.of(each.digest for each in (*bad, *good))), [0, 1])
        self.assertEqual(await value_of(store, KEY), b"value")

    async def test_out_of_reach(self) -> None:
        """A check that cannot read for want of something else says so, and takes nothing for damaged."""
        path = self.new_path()
        store = await self.open_store(path)
        each = random_blob(100_000)
        await put(store, each)
        await self.close_store(store)
        with (
            mock.patch.object(os, "pread", side_effect=OSError(errno.EACCES, os.strerror(errno.EACCES))),
            self.assertRaises(RepositoryProblem) as caught,
        ):
            fsck.check(path, NoProgress(), repair=True)
        self.assertIn("as the user", str(caught.exception))
        self.assertEqual(fsck.check(path, NoProgress()).problems, [])

    async def test_files_that_nobody_names(self) -> None:
        """A file that is not in the index is named; one whose blob was uploaded again is only in the way."""
        path = self.new_path()
        store = await self.open_store(path)
        kept, lost = random_blob(100_000), random_blob(100_000)
        await put(store, kept)
        await self.close_store(store)
        left = [FileName.new(each.digest).below(path / "blobs") for each in (kept, lost)]
        for file, each in zip(left, (kept, lost), strict=True):
            file.parent.mkdir(exist_ok=True)
            file.write_bytes(each.content)
        for repair in (False, True):
            report = fsck.check(path, NoProgress(), repair=repair)
            self.assertEqual((report.problem_count, len(report.remarks)), (1, 1))
            self.assertIn(str(left[1]), report.problems[0])
            self.assertIn(str(left[0]), report.remarks[0])
            self.assertEqual([file.exists() for file in left], [not repair, True])
        store = await self.open_store(path)
        self.assertEqual(await content_of(store, kept.digest), kept.content)

    async def test_uploads_in_flight(self) -> None:
        """A file that is on its way into the index is not taken for one that nobody names."""
        path = self.new_path()
        prepare(path)
        other = self.open_process(path, "artifactserver.store.index:Index.change")
        each = random_blob(100_000)
        answer = Deferred.fromCoroutine(other.call("add_many", [each]))
        await other.paused()
        self.assertEqual(len(list(path.glob("blobs/*/*"))), 1)
        self.assertEqual(fsck.check(path, NoProgress()).problems, [])
        other.go_on()
        self.assertEqual(await answer, [None])

    async def test_damaged_row_of_a_file(self) -> None:
        """A row that does not fit its file is named as what is wrong."""
        path = self.new_path()
        store = await self.open_store(path)
        each = random_blob(100_000)
        await put(store, each)
        (value,), _ = store._index.look_up([each.digest.key])
        row = FileRow.decode(value or b"")
        assert row is not None
        with store._index.change() as changes:
            changes.put_file(each.digest.key, FileRow(row.size, row.serial, row.used, b"\0\0\0\0"))
        await self.close_store(store)
        (problem,) = fsck.check(path, NoProgress()).problems
        self.assertIn("row in the index", problem)

    async def test_another_stores_index(self) -> None:
        """A repository with the index of another one is not checked, and nothing of it is touched."""
        path, other = self.new_path(), self.new_path()
        for each in (path, other):
            store = await self.open_store(each)
            await put(store, random_blob())
            await self.close_store(store)
        os.rename(path / "index", path / "aside")
        os.rename(other / "index", path / "index")
        before = (path / "packs" / pack_name(0)).read_bytes()
        with self.assertRaises(RepositoryProblem) as caught:
            fsck.check(path, NoProgress(), repair=True)
        self.assertIn("belongs to another store", str(caught.exception))
        self.assertEqual((path / "packs" / pack_name(0)).read_bytes(), before)

    async def test_content_of_another_name(self) -> None:
        """Content under a digest that is not its own is found, though its checksum is right."""
        path = self.new_path()
        store = await self.open_store(path)
        each, other = random_blob(300), random_blob(300)
        await put(store, each)
        await put(store, other)
        await self.close_store(store)
        forged = encode_head(KIND_BLOB, 1, each.digest.hash, other.content) + other.content
        with open(path / "packs" / pack_name(0), "r+b") as file:
            file.write(forged)
        report = fsck.check(path, NoProgress(), repair=True)
        self.assertEqual((report.problem_count, len(report.remarks)), (1, 1))
        store = await self.open_store(path)
        self.assertEqual(await store.find_missing(Digests.of([each.digest, other.digest])), [0])

    async def test_many_problems(self) -> None:
        """Only so many problems are named, and all are counted."""
        self.patch(fsck, "NAMED_PROBLEMS", 3)
        self.patch(damage, "QUARANTINE_FILES", 2)
        path = self.new_path()
        store = await self.open_store(path)
        blobs = [random_blob(300) for _ in range(10)]
        await put(store, *blobs)
        await self.close_store(store)
        for number in range(10):
            flip(path / "packs" / pack_name(0), number * 352 + 200)
        report = fsck.check(path, NoProgress(), repair=True)
        self.assertEqual((report.problem_count, len(report.problems)), (10, 3))
        self.assertEqual(len(os.listdir(path / "quarantine")), 2)
        self.assertEqual(fsck.check(path, NoProgress()).problems, [])
