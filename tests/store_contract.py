"""What every store promises, as tests: each implementation of the seam runs all of them."""

from __future__ import annotations

import hashlib
import os
from typing import TYPE_CHECKING, Any

from twisted.trial.unittest import TestCase

from artifactserver.proto import remote_execution_pb2 as reapi
from artifactserver.store.digest import EMPTY, Digest, Digests
from artifactserver.store.interface import (
    BadReference,
    Blob,
    BlobMissing,
    BlobTooLarge,
    ContentMismatch,
    Incomplete,
    Record,
    RecordKey,
    RecordKind,
    Reference,
    Shape,
    Store,
)

#: Sizes on both sides of every border that an implementation is likely to have.
SIZES = (1, 4096, 64 * 1024, 64 * 1024 + 1, 1024 * 1024, 3 * 1024 * 1024 + 17)


def blob(content: bytes) -> Blob:
    """``content`` under its true digest."""
    return Blob(Digest.of(content), content)


def random_blob(size: int = 100) -> Blob:
    """A blob that no store has seen."""
    return blob(os.urandom(size))


def digest_message(digest: Digest) -> reapi.Digest:
    """The digest as REAPI has it."""
    return reapi.Digest(hash=digest.hex, size_bytes=digest.size)


def directory(files: dict[str, Digest] | None = None, folders: dict[str, Digest] | None = None) -> Blob:
    """A ``Directory`` message with these files and folders."""
    message = reapi.Directory()
    for name, digest in sorted((files or {}).items()):
        message.files.add(name=name, digest=digest_message(digest))
    for name, digest in sorted((folders or {}).items()):
        message.directories.add(name=name, digest=digest_message(digest))
    return blob(message.SerializeToString())


async def content_of(store: Store, digest: Digest) -> bytes:
    """All of a blob, read in pieces."""
    reader = await store.open(digest)
    try:
        pieces = []
        offset = 0
        while piece := await reader.read(offset, 1 << 20):
            pieces.append(piece)
            offset += len(piece)
        return b"".join(pieces)
    finally:
        reader.close()


async def put(store: Store, *blobs: Blob) -> None:
    """Store blobs, all of them."""
    outcomes = await store.add_many(blobs)
    for outcome in outcomes:
        if outcome is not None:
            raise outcome


async def value_of(store: Store, key: RecordKey) -> bytes:
    """The value of a record that must be there."""
    record = await store.get_record(key)
    assert record is not None, key
    return record.value


if TYPE_CHECKING:
    _TestCase = TestCase
else:
    # Trial would run the tests of a base class that is a test case.
    _TestCase = object

KEY = RecordKey(RecordKind.ASSET_BLOB, "", "urn:x")


class StoreContract(_TestCase):
    """A mixin: `make_store` gives the store under test."""

    make_store: Any

    async def test_what_is_added_can_be_read(self) -> None:
        """Blobs of every size come back byte for byte, one at a time and many at once."""
        store = await self.make_store()
        blobs = [random_blob(size) for size in SIZES]
        self.assertEqual(await store.add_many(blobs), [None] * len(blobs))
        digests = Digests.of(each.digest for each in blobs)
        self.assertEqual(await store.read_many(digests), [each.content for each in blobs])
        for each in blobs:
            self.assertEqual(await content_of(store, each.digest), each.content)

    async def test_read_anywhere(self) -> None:
        """A reader gives the bytes at any offset, and nothing behind the end."""
        store = await self.make_store()
        for size in (1000, 3 * 1024 * 1024 + 17):
            each = random_blob(size)
            await put(store, each)
            reader = await store.open(each.digest)
            self.addCleanup(reader.close)
            self.assertEqual(reader.size, size)
            for offset in (0, 1, size // 2, size - 1):
                piece = await reader.read(offset, 10)
                self.assertEqual(piece, each.content[offset : offset + 10][: len(piece)])
                self.assertTrue(piece)
            self.assertEqual(await reader.read(size, 10), b"")

    async def test_find_missing(self) -> None:
        """Those that are absent are named by position, each distinct digest once, and in order."""
        store = await self.make_store()
        present, absent, other = random_blob(), random_blob(), random_blob(200_000)
        await put(store, present)
        asked = [absent.digest, present.digest, absent.digest, EMPTY, other.digest, absent.digest]
        self.assertEqual(await store.find_missing(Digests.of(asked)), [0, 4])
        self.assertEqual(await store.find_missing(Digests.of([])), [])

    async def test_empty_blob(self) -> None:
        """The empty blob is always there, and may be uploaded all the same."""
        store = await self.make_store()
        self.assertEqual(await store.find_missing(Digests.of([EMPTY])), [])
        self.assertEqual(await store.read_many(Digests.of([EMPTY])), [b""])
        self.assertEqual(await content_of(store, EMPTY), b"")
        self.assertEqual(await store.add_many([Blob(EMPTY, b"")]), [None])
        upload = await store.upload(EMPTY, "me")
        await upload.commit()
        upload.close()
        self.assertEqual(await content_of(store, EMPTY), b"")

    async def test_wrong_size_is_a_miss(self) -> None:
        """A known hash with another size is not there, and is never cut to fit."""
        store = await self.make_store()
        for size in (100, 100_000):
            each = random_blob(size)
            await put(store, each)
            for wrong in (0, size - 1, size + 1):
                digest = Digest(each.digest.key, wrong)
                self.assertEqual(await store.find_missing(Digests.of([digest])), [0])
                self.assertEqual(await store.read_many(Digests.of([digest])), [None])
                with self.assertRaises(BlobMissing):
                    await store.open(digest)

    async def test_missing_blob(self) -> None:
        """Reading what is not there says so, and does not keep the rest from being read."""
        store = await self.make_store()
        present, absent = random_blob(), random_blob()
        await put(store, present)
        digests = Digests.of([absent.digest, present.digest, present.digest])
        self.assertEqual(await store.read_many(digests), [None, present.content, present.content])
        with self.assertRaises(BlobMissing):
            await store.open(absent.digest)

    async def test_wrong_content_is_refused(self) -> None:
        """Content that its digest does not name is refused by itself, and changes nothing."""
        store = await self.make_store()
        for size in (100, 100_000):
            good, other = random_blob(size), random_blob(size)
            wrong = Blob(other.digest, good.content)
            short = Blob(Digest(other.digest.key, size + 1), other.content)
            outcomes = await store.add_many([good, wrong, short])
            self.assertIsNone(outcomes[0])
            self.assertIsInstance(outcomes[1], ContentMismatch)
            self.assertIsInstance(outcomes[2], ContentMismatch)
            self.assertEqual(await store.find_missing(Digests.of([good.digest, other.digest])), [1])

    async def test_the_same_blob_twice_in_one_call(self) -> None:
        """Duplicates in one call are both answered."""
        store = await self.make_store()
        for size in (100, 100_000):
            each = random_blob(size)
            self.assertEqual(await store.add_many([each, each]), [None, None])
            self.assertEqual(await content_of(store, each.digest), each.content)

    async def test_upload_in_pieces(self) -> None:
        """An upload may come in pieces of any size."""
        store = await self.make_store()
        for size in SIZES:
            each = random_blob(size)
            upload = await store.upload(each.digest, "me")
            for start in range(0, size, 300_000):
                await upload.write(each.content[start : start + 300_000])
            self.assertEqual(upload.received, size)
            self.assertEqual(await store.find_missing(Digests.of([each.digest])), [0])
            await upload.commit()
            upload.close()
            self.assertEqual(await content_of(store, each.digest), each.content)

    async def test_upload_of_something_else(self) -> None:
        """An upload with other, too few or too many bytes is refused, and nothing of it remains."""
        store = await self.make_store()
        each = random_blob(100_000)
        for content in (bytes(100_000), each.content[:-1], b""):
            upload = await store.upload(each.digest, "me")
            await upload.write(content)
            with self.assertRaises(ContentMismatch):
                await upload.commit()
            upload.close()
            self.assertEqual(await store.find_missing(Digests.of([each.digest])), [0])
        upload = await store.upload(each.digest, "me")
        with self.assertRaises(ContentMismatch):
            await upload.write(each.content + b"!")
        upload.close()

    async def test_two_uploads_of_one_blob(self) -> None:
        """Two clients may upload the same blob at the same time, and both succeed."""
        store = await self.make_store()
        each = random_blob(200_000)
        first = await store.upload(each.digest, "me")
        second = await store.upload(each.digest, "me")
        await first.write(each.content[:150_000])
        await second.write(each.content)
        await second.commit()
        second.close()
        await first.write(each.content[150_000:])
        await first.commit()
        first.close()
        self.assertEqual(await content_of(store, each.digest), each.content)

    async def test_abandoned_upload(self) -> None:
        """An upload that is closed without a commit was never there."""
        store = await self.make_store()
        each = random_blob(100_000)
        upload = await store.upload(each.digest, "me")
        await upload.write(each.content)
        upload.close()
        self.assertEqual(await store.find_missing(Digests.of([each.digest])), [0])

    async def test_too_large(self) -> None:
        """A blob beyond the limit is refused before its first byte."""
        store = await self.make_store()
        with self.assertRaises(BlobTooLarge):
            await store.upload(Digest(random_blob().digest.key, store.max_blob_size + 1), "me")

    async def test_record(self) -> None:
        """A record comes back as it was set, is replaced as a whole, and can be deleted."""
        store = await self.make_store()
        one, two = random_blob(), random_blob(100_000)
        await put(store, one, two)
        self.assertIsNone(await store.get_record(KEY))
        self.assertFalse(await store.delete_record(KEY))
        await store.set_record(Record(KEY, b"first", (Reference(one.digest),)))
        await store.set_record(Record(KEY, b"second", (Reference(one.digest), Reference(two.digest))))
        found = await store.get_record(KEY)
        assert found is not None
        self.assertEqual((found.key, found.value), (KEY, b"second"))
        self.assertEqual(found.references, (Reference(one.digest), Reference(two.digest)))
        self.assertIsNone(found.expires)
        self.assertGreater(found.changed, 0)
        self.assertTrue(await store.delete_record(KEY))
        self.assertIsNone(await store.get_record(KEY))
        self.assertFalse(await store.delete_record(KEY))

    async def test_record_names(self) -> None:
        """Kind, instance, name and qualifiers all belong to the name of a record, however they are cut."""
        store = await self.make_store()
        keys = [
            RecordKey(RecordKind.ASSET_BLOB, "", "ab"),
            RecordKey(RecordKind.ASSET_DIRECTORY, "", "ab"),
            RecordKey(RecordKind.ASSET_BLOB, "a", "b"),
            RecordKey(RecordKind.ASSET_BLOB, "ab", ""),
            RecordKey(RecordKind.ASSET_BLOB, "", "a", (("b", ""),)),
            RecordKey(RecordKind.ASSET_BLOB, "", "a", (("", "b"),)),
            RecordKey(RecordKind.ASSET_BLOB, "", "a" * 3000),
            RecordKey(RecordKind.ASSET_BLOB, "", "a" * 3001),
            RecordKey(RecordKind.ASSET_BLOB, "ä/ö", "日本語"),
        ]
        for number, key in enumerate(keys):
            await store.set_record(Record(key, b"%d" % number, ()))
        for number, key in enumerate(keys):
            self.assertEqual(await value_of(store, key), b"%d" % number)

    async def test_record_of_missing_content(self) -> None:
        """A record whose content is not all present is refused, names what is missing, and replaces nothing."""
        store = await self.make_store()
        present, absent = random_blob(), random_blob()
        await put(store, present)
        await store.set_record(Record(KEY, b"good", (Reference(present.digest),)))
        with self.assertRaises(Incomplete) as caught:
            await store.set_record(Record(KEY, b"bad", (Reference(present.digest), Reference(absent.digest))))
        self.assertEqual(caught.exception.missing, (absent.digest,))
        self.assertEqual(await value_of(store, KEY), b"good")
        await store.set_record(Record(KEY, b"kept", (Reference(absent.digest, required=False),)))
        self.assertEqual(await value_of(store, KEY), b"kept")

    async def test_records_together(self) -> None:
        """Several records are set at one moment: all of them, or, if one of them cannot be, none."""
        store = await self.make_store()
        one, two, absent = random_blob(), random_blob(), random_blob()
        root = directory({"one": one.digest, "two": two.digest})
        await put(store, one, two, root)
        keys = [RecordKey(RecordKind.ASSET_DIRECTORY, "", f"urn:{number}") for number in range(4)]
        tree = (Reference(root.digest, Shape.DIRECTORY), Reference(absent.digest, required=False))
        await store.set_records([Record(key, b"first", tree) for key in keys[:3]])
        for key in keys[:3]:
            found = await store.get_record(key)
            assert found is not None
            self.assertEqual((found.key, found.value, found.references), (key, b"first", tree))
        for bad in (Reference(absent.digest), Reference(one.digest, Shape.DIRECTORY)):
            with self.assertRaises((Incomplete, BadReference)):
                await store.set_records([Record(keys[0], b"second", tree), Record(keys[3], b"second", (bad,))])
            self.assertEqual(await value_of(store, keys[0]), b"first")
            self.assertIsNone(await store.get_record(keys[3]))
        await store.set_records([])
        different = [
            Record(keys[0], b"", ()),
            Record(keys[1], b"a", (Reference(one.digest),), expires=4e9),
            Record(keys[2], b"a", (Reference(one.digest),)),
            Record(keys[3], b"a", (Reference(two.digest),)),
            Record(keys[0], b"last", ()),
        ]
        await store.set_records(different)
        for record in different[1:]:
            found = await store.get_record(record.key)
            assert found is not None
            self.assertEqual((found.value, found.references), (record.value, record.references))
            self.assertEqual(found.expires, record.expires)

    async def test_record_of_a_tree(self) -> None:
        """A record of a directory stands for everything below it."""
        store = await self.make_store()
        leaf, absent = random_blob(), random_blob()
        inner = directory({"leaf": leaf.digest, "empty": EMPTY})
        root = directory({"leaf": leaf.digest}, {"a": inner.digest, "b": inner.digest, "c": EMPTY})
        await put(store, leaf, inner, root)
        await store.set_record(Record(KEY, b"tree", (Reference(root.digest, Shape.DIRECTORY),)))
        self.assertEqual(await value_of(store, KEY), b"tree")
        for broken in (
            directory({"leaf": absent.digest}),
            directory({}, {"d": directory({"x": absent.digest}).digest}),
            directory({"leaf": Digest(leaf.digest.key, 5)}),
        ):
            await put(store, broken)
            top = directory({}, {"e": broken.digest})
            await put(store, top)
            with self.assertRaises(Incomplete):
                await store.set_record(Record(KEY, b"broken", (Reference(top.digest, Shape.DIRECTORY),)))
        self.assertEqual(await value_of(store, KEY), b"tree")

    async def test_record_of_no_tree(self) -> None:
        """A reference to a directory that is none is refused."""
        store = await self.make_store()
        junk = blob(b"\xff\xff\xff this is no message")
        wrong = reapi.Directory()
        wrong.files.add(name="x", digest=reapi.Digest(hash="ABC", size_bytes=1))
        bad_hash = blob(wrong.SerializeToString())
        await put(store, junk, bad_hash)
        for each in (junk, bad_hash):
            with self.assertRaises(BadReference):
                await store.set_record(Record(KEY, b"", (Reference(each.digest, Shape.DIRECTORY),)))
        self.assertIsNone(await store.get_record(KEY))

    async def test_wide_and_repeated_trees(self) -> None:
        """A tree that names the same folder over and over is walked by digest, so its size does not explode."""
        store = await self.make_store()
        level = directory({"leaf": EMPTY})
        await put(store, level)
        for _ in range(60):
            level = directory({}, {f"d{number}": level.digest for number in range(10)})
            await put(store, level)
        await store.set_record(Record(KEY, b"deep", (Reference(level.digest, Shape.DIRECTORY),)))
        self.assertEqual(await value_of(store, KEY), b"deep")

    async def test_many(self) -> None:
        """A thousand blobs in one call."""
        store = await self.make_store()
        blobs = [blob(hashlib.sha256(b"%d" % number).digest()) for number in range(1000)]
        await put(store, *blobs)
        digests = Digests.of(each.digest for each in blobs)
        self.assertEqual(await store.find_missing(digests), [])
        self.assertEqual(await store.read_many(digests), [each.content for each in blobs])
