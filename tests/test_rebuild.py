"""An index that is made again knows all that packs and files hold, and nothing that was taken back."""

from __future__ import annotations

import errno
import os
import time
from pathlib import Path
from typing import Any
from unittest import mock

from artifactserver.store import batch, fsck, rebuild
from artifactserver.store import packs as packs_module
from artifactserver.store.digest import Digest, Digests
from artifactserver.store.files import FileName
from artifactserver.store.fsck import Report
from artifactserver.store.interface import Record, RecordKey, RecordKind, Reference
from artifactserver.store.layout import RepositoryProblem
from artifactserver.store.packs import KIND_BLOB, KIND_RECORD, encode_head, pack_name
from artifactserver.store.records import MAX_SEQUENCE, Change, WrittenChange, prove, record_hash
from artifactserver.store.rows import SEALED, unpack_packed
from tests.local_stores import LocalStoreTestCase
from tests.store_contract import KEY, blob, content_of, put, random_blob, value_of
from tests.test_fsck import flip
from tests.test_local_store import NoProgress


class RebuildTestCase(LocalStoreTestCase):
    """Makes indexes again."""

    def rebuild(self, path: Path) -> Report:
        """Make the index again; what came of it."""
        report = rebuild.rebuild_index(path, NoProgress(), time.time)
        checked = fsck.check(path, NoProgress())
        self.assertEqual(checked.problems, [])
        self.assertEqual(
            (report.blobs, report.records, report.content_bytes),
            (checked.blobs, checked.records, checked.content_bytes),
        )
        return report

    def seal(self, store: Any, pack: int = 0) -> None:
        """Let what comes go to another pack."""
        with store._index.change() as changes:
            changes.set_pack_state(pack, SEALED)


class BlobTests(RebuildTestCase):
    """Blobs come back."""

    async def test_two_copies(self) -> None:
        """A blob that stands in two packs is there once; when one copy is damaged, the other is found."""
        for damaged in (None, 0, 1):
            path = self.new_path()
            store = await self.open_store(path)
            each, large = random_blob(300), random_blob(100_000)
            await put(store, each, large)
            self.seal(store)
            await put(store, random_blob(10))
            with store._index.change() as changes:
                changes.remove_blob(each.digest.key, changes.blob(each.digest.key))
            await put(store, each)
            (value,), _ = store._index.look_up([each.digest.key])
            _, _, pack, _, offset = unpack_packed(value or b"")
            self.assertEqual(pack, 1)
            await self.close_store(store)
            if damaged is not None:
                flip(path / "packs" / pack_name(damaged), (offset if damaged else 0) + 60)
            report = self.rebuild(path)
            self.assertEqual((report.blobs, report.content_bytes), (3, 100_310))
            self.assertEqual(report.problem_count, damaged is not None)
            store = await self.open_store(path)
            self.assertEqual(await content_of(store, each.digest), each.content)

    async def test_damage_in_the_middle(self) -> None:
        """What stands before and behind damaged entries is found, records too, in each pack by itself."""
        self.patch(batch, "PACK_BYTES", 4_000)
        self.patch(packs_module, "PACK_BYTES", 4_000)
        path = self.new_path()
        store = await self.open_store(path)
        blobs = [random_blob(700) for _ in range(30)]
        keys = [RecordKey(RecordKind.ASSET_BLOB, "", f"urn:{number}") for number in range(30)]
        for each, key in zip(blobs, keys, strict=True):
            await put(store, each)
            await store.set_record(Record(key, b"value", ()))
        rows = [store._index.look_up([each.digest.key])[0][0] or b"" for each in blobs]
        places = [unpack_packed(row) for row in rows]
        self.assertGreater(len({place[2] for place in places}), 3)
        await self.close_store(store)
        hit = (0, 1, 2, 9, 15, 29)
        for number in hit:
            _, _, pack, _, offset = places[number]
            flip(path / "packs" / pack_name(pack), offset + number * 20)
        report = self.rebuild(path)
        self.assertEqual((report.blobs, report.records), (24, 30))
        store = await self.open_store(path)
        self.assertEqual(await store.find_missing(Digests.of(each.digest for each in blobs)), list(hit))
        for key in keys:
            self.assertEqual(await value_of(store, key), b"value")

    async def test_cut_in_the_last_entry(self) -> None:
        """A pack that ends in the middle of an entry loses that one, and is not gone on with."""
        path = self.new_path()
        store = await self.open_store(path)
        one, two, three = random_blob(300), random_blob(300), random_blob(300)
        await put(store, one)
        await put(store, two)
        await self.close_store(store)
        os.truncate(path / "packs" / pack_name(0), 700)
        report = self.rebuild(path)
        self.assertEqual((report.blobs, report.problem_count), (1, 1))
        store = await self.open_store(path)
        await put(store, three)
        self.assertEqual((path / "packs" / pack_name(0)).stat().st_size, 700)
        self.assertEqual(await store.find_missing(Digests.of([one.digest, two.digest, three.digest])), [1])

    async def test_two_files(self) -> None:
        """Of several files with one blob a sound one is kept, whichever it is; what is in the way is gone."""
        for sound in (0, 1):
            path = self.new_path()
            store = await self.open_store(path)
            each = random_blob(100_000)
            await put(store, each)
            await self.close_store(store)
            second = FileName.new(each.digest).below(path / "blobs")
            second.write_bytes(each.content)
            files = sorted(path.glob("blobs/*/*"))
            flip(files[1 - sound], 5)
            self.assertEqual(self.rebuild(path).problem_count, 1)
            self.assertEqual(list(path.glob("blobs/*/*")), [files[sound]])
            store = await self.open_store(path)
            self.assertEqual(await content_of(store, each.digest), each.content)

    async def test_disk_errors(self) -> None:
        """What the disk cannot give back is put aside or passed over, and keeps nothing else from coming back."""
        path = self.new_path()
        store = await self.open_store(path)
        bad = [random_blob(5000), random_blob(100_000)]
        good = [random_blob(3000), random_blob(100_000), random_blob(3000)]
        for each in (bad[0], *good, bad[1]):
            await put(store, each)
        await self.close_store(store)
        real = os.pread

        def pread(fd: int, count: int, offset: int) -> bytes:
            name = os.readlink(f"/proc/self/fd/{fd}")
            if bad[1].digest.hex in name or (name.endswith(".pack") and offset < 3000):
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            return real(fd, count, offset)

        with mock.patch.object(os, "pread", pread):
            report = rebuild.rebuild_index(path, NoProgress(), time.time)
        self.assertEqual((report.problem_count, report.blobs), (2, 3))
        store = await self.open_store(path)
        wanted = Digests.of(each.digest for each in (*bad, *good))
        self.assertEqual(await store.find_missing(wanted), [0, 1])

    async def test_missing_parts(self) -> None:
        """A repository that lacks a directory is not rebuilt around the gap: the sentence says which one that is."""
        for name in ("packs", "blobs", "quarantine", "incoming"):
            path = self.new_path()
            store = await self.open_store(path)
            await put(store, random_blob())
            await self.close_store(store)
            os.rename(path / name, path / "aside")
            with self.assertRaises(RepositoryProblem) as caught:
                rebuild.rebuild_index(path, NoProgress(), time.time)
            self.assertIn(f"{path / name} is missing", str(caught.exception))
            os.rename(path / "aside", path / name)
            self.assertEqual(self.rebuild(path).blobs, 1)

    async def test_another_stores_index(self) -> None:
        """The index of another store in the place of the lost one is put aside like any other."""
        path, other = self.new_path(), self.new_path()
        each = random_blob()
        for where, content in ((path, each), (other, random_blob())):
            store = await self.open_store(where)
            await put(store, content)
            await self.close_store(store)
        os.rename(path / "index", other / "aside")
        os.rename(other / "index", path / "index")
        for _ in range(2):  # as often as one likes
            self.assertEqual(self.rebuild(path).blobs, 1)
        self.assertEqual(len(os.listdir(path / "quarantine")), 2)
        store = await self.open_store(path)
        self.assertEqual(await content_of(store, each.digest), each.content)


class RecordTests(RebuildTestCase):
    """Records come back as they were last."""

    async def test_deleted_later(self) -> None:
        """A record that was set in one pack and deleted in another stays deleted, whichever pack comes first."""
        for deleted_in in (0, 1):
            path = self.new_path()
            store = await self.open_store(path)
            first = RecordKey(RecordKind.ASSET_BLOB, "", "first")
            await store.set_record(Record(first, b"", ()))  # this process has pack 0
            other = self.open_process(path)
            await other.call("set_record", Record(KEY, b"theirs", ()))  # that one has pack 1
            await store.set_record(Record(KEY, b"ours", ()))
            if deleted_in:
                self.assertTrue(await other.call("delete_record", KEY))
            else:
                await other.call("set_record", Record(KEY, b"theirs again", ()))
                self.assertTrue(await store.delete_record(KEY))
            other.kill()
            await self.close_store(store)
            for _ in range(2):
                report = self.rebuild(path)
                self.assertEqual((report.records, report.problems), (1, []))
                store = await self.open_store(path)
                self.assertIsNone(await store.get_record(KEY))
                await self.close_store(store)

    async def test_set_again(self) -> None:
        """A record that was deleted and set again is there, with its last value."""
        path = self.new_path()
        store = await self.open_store(path)
        other = self.open_process(path)
        await store.set_record(Record(KEY, b"one", ()))
        await other.call("set_record", Record(KEY, b"two", ()))
        await store.delete_record(KEY)
        await other.call("set_record", Record(KEY, b"three", ()))
        await store.set_record(Record(KEY, b"four", ()))
        other.kill()
        await self.close_store(store)
        self.assertEqual(self.rebuild(path).records, 1)
        store = await self.open_store(path)
        self.assertEqual(await value_of(store, KEY), b"four")
        self.assertEqual(store._index.count_names(), (1, 1))

    async def test_clock_that_goes_back(self) -> None:
        """The order of changes is that in which they were acknowledged, whatever the clock says meanwhile."""
        clock = [2_000_000_000.0]
        path = self.new_path()
        store = await self.open_store(path, now=lambda: clock[0])
        for number in range(3):
            await store.set_record(Record(KEY, b"%d" % number, ()))
            clock[0] -= 1_000_000
        await self.close_store(store)
        self.rebuild(path)
        store = await self.open_store(path, now=lambda: clock[0])
        self.assertEqual(await value_of(store, KEY), b"2")
        await store.set_record(Record(KEY, b"3", ()))
        await self.close_store(store)
        self.rebuild(path)
        store = await self.open_store(path)
        self.assertEqual(await value_of(store, KEY), b"3")

    async def test_change_inside_a_blob(self) -> None:
        """Content that looks like changes of records is content; read as such behind damage, it breaks nothing."""
        path = self.new_path()
        store = await self.open_store(path)
        each = random_blob()
        await put(store, each)
        await store.set_record(Record(KEY, b"true", (Reference(each.digest),)))
        other = RecordKey(RecordKind.ASSET_BLOB, "", "other")
        last = Change(KEY, Record(KEY, b"last", ())).encode(MAX_SEQUENCE + 1, 9e9)
        odd = Change(KEY, Record(KEY, b"odd", (Reference(Digest(b"\1" * 600, 5)),))).encode(1 << 62, 4e9)
        moved = Change(other, Record(other, b"moved", ())).encode(1 << 62, 4e9)
        hash = record_hash(KEY)
        forged = blob(b"".join(encode_head(KIND_RECORD, 0, hash, content) + content for content in (last, odd, moved)))
        await put(store, forged)
        await self.close_store(store)
        self.assertEqual(self.rebuild(path).problem_count, 0)
        pack = path / "packs" / pack_name(0)
        flip(pack, pack.read_bytes().index(forged.content) - 30)
        self.assertEqual(self.rebuild(path).records, 1)
        store = await self.open_store(path)
        self.assertEqual(await value_of(store, KEY), b"true")
        await store.set_record(Record(KEY, b"new", ()))
        self.assertEqual(await value_of(store, KEY), b"new")

    async def test_forged_change(self) -> None:
        """A change of a record that somebody uploads as a blob is never taken for one, whatever is damaged."""
        path = self.new_path()
        store = await self.open_store(path)
        await store.set_record(Record(KEY, b"true", ()))
        other, gone = (RecordKey(RecordKind.ASSET_BLOB, "", name) for name in ("other", "gone"))
        await store.set_record(Record(gone, b"true", ()))
        contents = [
            prove(change.encode(1 << 62, 4e9), identity)
            for change in (Change(KEY, Record(KEY, b"forged", ())), Change(other, Record(other, b"forged", ())))
            for identity in ("", "0" * 32)
        ]
        contents += [
            Change(KEY, Record(KEY, b"forged", ())).encode(1 << 62, 4e9),
            Change(gone, None).encode(1 << 62, 4e9),
        ]
        entries = []
        for content in contents:
            written = WrittenChange.decode(content)
            assert written is not None
            entries.append(encode_head(KIND_RECORD, 0, record_hash(written.change.key), content) + content)
        inner = random_blob(300)
        entries.append(encode_head(KIND_BLOB, 1, inner.digest.hash, inner.content) + inner.content)
        forged = blob(b"".join(entries))
        await put(store, forged)
        last = RecordKey(RecordKind.ASSET_BLOB, "", "last")
        await store.set_record(Record(last, b"true", ()))
        await self.close_store(store)
        self.assertEqual(self.rebuild(path).problem_count, 0)
        pack = path / "packs" / pack_name(0)
        flip(pack, pack.read_bytes().index(forged.content) - 30)
        report = self.rebuild(path)
        self.assertEqual((report.blobs, report.records, report.problem_count), (1, 3, 1 + len(contents)))
        self.assertIn("does not show that this store wrote it", report.problems[-1])
        store = await self.open_store(path)
        for key in (KEY, gone, last):
            self.assertEqual(await value_of(store, key), b"true")
        self.assertIsNone(await store.get_record(other))
        # It was uploaded, though inside another one, and is what its digest says.
        self.assertEqual(await content_of(store, inner.digest), inner.content)

    async def test_lost_identity(self) -> None:
        """Records survive the loss of ``format`` and with it of the store's identity, where the pack is whole."""
        path = self.new_path()
        store = await self.open_store(path)
        keys = [RecordKey(RecordKind.ASSET_BLOB, "", f"urn:{number}") for number in range(9)]
        for key in keys:
            await store.set_record(Record(key, b"value", ()))
        await self.close_store(store)
        pack = path / "packs" / pack_name(0)
        whole = (path / "format").read_text()
        (path / "format").write_text(whole.replace(whole[-33:], "0" * 32 + "\n"))
        self.assertEqual(self.rebuild(path).records, 9)
        content = pack.read_bytes()
        flip(pack, content.index(b"urn:4"))
        self.assertEqual(self.rebuild(path).records, 4)
        (path / "format").write_text(whole)
        self.assertEqual(self.rebuild(path).records, 8)
