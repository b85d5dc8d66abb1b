"""Packs can be read back entry by entry, also when something in them is damaged."""

from __future__ import annotations

import os
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from artifactserver.store.digest import Digest
from artifactserver.store.packs import (
    KIND_BLOB,
    Damage,
    DamagedEntry,
    Entry,
    NotResident,
    PackFiles,
    PackWriter,
    Place,
    encode_head,
    entry_bytes,
    pack_ids,
    pack_name,
    read_entry,
    scan,
)


def entry(content: bytes) -> bytes:
    """A whole entry with a blob."""
    digest = Digest.of(content)
    return encode_head(KIND_BLOB, digest.key[0], digest.hash, content) + content


class ScanTests(SynchronousTestCase):
    """`scan`, what a lost index is rebuilt with."""

    def write(self, content: bytes) -> Path:
        """A file with this content."""
        path = Path(self.mktemp())
        path.write_bytes(content)
        return path

    def test_whole(self) -> None:
        """Every entry of a sound pack is found, in order."""
        contents = [os.urandom(size) for size in (0, 1, 1000, 70_000)]
        found = list(scan(self.write(b"".join(map(entry, contents)))))
        self.assertEqual([each.content for each in found if isinstance(each, Entry)], contents)
        self.assertEqual(len(found), 4)

    def test_empty(self) -> None:
        """An empty pack has no entries."""
        self.assertEqual(list(scan(self.write(b""))), [])

    def test_no_further_than_told(self) -> None:
        """Nothing behind the committed end is looked at."""
        one, two = entry(b"one"), entry(b"two")
        found = list(scan(self.write(one + two), len(one)))
        self.assertEqual(len(found), 1)

    @settings(max_examples=200, deadline=None)
    @given(
        contents=st.lists(st.binary(max_size=80), min_size=1, max_size=6),
        where=st.floats(0, 1, exclude_max=True),
        bit=st.integers(0, 7),
    )
    def test_one_flipped_bit(self, contents: list[bytes], where: float, bit: int) -> None:
        """One flipped bit costs one entry; all others are found, and the gap between them is reported."""
        pieces = [entry(content) for content in contents]
        whole = bytearray(b"".join(pieces))
        position = int(where * len(whole))
        whole[position] ^= 1 << bit
        hit, end = 0, len(pieces[0])
        while end <= position:
            hit += 1
            end += len(pieces[hit])
        found = list(scan(self.write(bytes(whole))))
        self.assertEqual(
            [each.content for each in found if isinstance(each, Entry)], contents[:hit] + contents[hit + 1 :]
        )
        gaps = [each for each in found if isinstance(each, Damage)]
        self.assertEqual(gaps, [Damage(end - len(pieces[hit]), len(pieces[hit]))])

    @settings(max_examples=100, deadline=None)
    @given(contents=st.lists(st.binary(max_size=80), min_size=1, max_size=4), where=st.floats(0, 1, exclude_max=True))
    def test_cut_short(self, contents: list[bytes], where: float) -> None:
        """Cut anywhere, the entries that are whole are found, and nothing else is."""
        pieces = [entry(content) for content in contents]
        whole = b"".join(pieces)
        cut = int(where * len(whole))
        whole_entries, end = 0, 0
        for piece in pieces:
            end += len(piece)
            whole_entries += end <= cut
        found = [each.content for each in scan(self.write(whole[:cut])) if isinstance(each, Entry)]
        self.assertEqual(found, contents[:whole_entries])

    @settings(max_examples=200, deadline=None)
    @given(st.binary(max_size=300))
    def test_junk(self, junk: bytes) -> None:
        """Junk with the magic bytes in it is passed over up to the next entry."""
        found = list(scan(self.write(b"ASe1" + junk + entry(b"content"))))
        self.assertEqual(found[-1].content if isinstance(found[-1], Entry) else None, b"content")


class ReadEntryTests(SynchronousTestCase):
    """`read_entry` gives the right content or none."""

    def test_only_the_right_entry(self) -> None:
        """A place that holds another entry, or the right one elsewhere, is damage."""
        directory = Path(self.mktemp())
        directory.mkdir()
        writer = PackWriter.create(directory, 7)
        one, two = Digest.of(b"first"), Digest.of(b"other")
        writer.append([entry(b"first"), entry(b"other")])
        files = PackFiles(directory)
        fd = files.descriptor(7).fd
        length = entry_bytes(32, 5)

        def waiting(offset: int, stored: int, kind: int, hash: bytes) -> bytes:
            return read_entry(fd, Place(7, offset, stored), kind, 1, hash)

        def at_once(offset: int, stored: int, kind: int, hash: bytes) -> bytes:
            return files.read_resident(7, offset, stored, kind, 1, hash)

        for read, failures in ((waiting, DamagedEntry), (at_once, (DamagedEntry, NotResident))):
            self.assertEqual(read(0, 5, KIND_BLOB, one.hash), b"first")
            self.assertEqual(read(length, 5, KIND_BLOB, two.hash), b"other")
            for offset, stored, kind, hash in (
                (0, 5, KIND_BLOB, two.hash),
                (0, 4, KIND_BLOB, one.hash),
                (0, 6, KIND_BLOB, one.hash),
                (1, 5, KIND_BLOB, one.hash),
                (0, 5, KIND_BLOB + 1, one.hash),
                (2 * length, 5, KIND_BLOB, one.hash),
                (2 * length - 1, 5, KIND_BLOB, two.hash),
            ):
                with self.assertRaises(failures):
                    read(offset, stored, kind, hash)
        writer.close()


class PackFilesTests(SynchronousTestCase):
    """A process keeps only so many packs open, and none that was dropped."""

    def test_bound(self) -> None:
        """Packs beyond the bound are closed, the one used longest ago first; a reader keeps what it has."""
        directory = Path(self.mktemp())
        directory.mkdir()
        for pack in range(5):
            (directory / pack_name(pack)).write_bytes(b"%d" % pack)
        before = len(os.listdir("/proc/self/fd"))
        files = PackFiles(directory, limit=3)
        held = files.descriptor(0)
        for pack in (1, 0, 2, 3, 4):
            self.assertEqual(os.pread(files.descriptor(pack).fd, 1, 0), b"%d" % pack)
        self.assertEqual(len(os.listdir("/proc/self/fd")), before + 4)
        self.assertEqual(os.pread(held.fd, 1, 0), b"0")
        del held
        files.forget(frozenset({4}))
        self.assertEqual(len(os.listdir("/proc/self/fd")), before + 1)
        files.close()
        self.assertEqual(len(os.listdir("/proc/self/fd")), before)

    def test_names(self) -> None:
        """Only files with the name of a pack are packs."""
        directory = Path(self.mktemp())
        directory.mkdir()
        for name in (pack_name(255), pack_name(2), "x.pack", "00000000000000zz.pack", pack_name(3) + ".bak"):
            (directory / name).touch()
        self.assertEqual(pack_ids(directory), [2, 255])


class PackWriterTests(SynchronousTestCase):
    """Only one process appends to a pack."""

    def setUp(self) -> None:
        self.directory = Path(self.mktemp())
        self.directory.mkdir()

    def test_seize(self) -> None:
        """A pack that somebody appends to cannot be taken over; one that was left can, up to its committed end."""
        writer = PackWriter.create(self.directory, 1)
        writer.append([b"committed", b"not"])
        self.assertIsNone(PackWriter.seize(self.directory, 1))
        writer.close()
        fd = PackWriter.seize(self.directory, 1)
        assert fd is not None
        successor = PackWriter.take_over(self.directory, 1, fd, 9)
        assert successor is not None
        successor.append([b"!"])
        successor.close()
        self.assertEqual((self.directory / pack_name(1)).read_bytes(), b"committed!")

    def test_cut_short(self) -> None:
        """A pack that is shorter than its committed end is not appended to."""
        (self.directory / pack_name(1)).write_bytes(b"short")
        fd = PackWriter.seize(self.directory, 1)
        assert fd is not None
        self.assertIsNone(PackWriter.take_over(self.directory, 1, fd, 9))
        self.assertIsNone(PackWriter.seize(self.directory, 2))

    def test_never_over_another(self) -> None:
        """A new pack never takes the place of a file that is there."""
        (self.directory / pack_name(1)).touch()
        with self.assertRaises(FileExistsError):
            PackWriter.create(self.directory, 1)
