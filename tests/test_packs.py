"""Packs: entries are read back as they were written or not at all, and one process appends."""

from __future__ import annotations

import errno
import fcntl
import os
from pathlib import Path
from unittest import mock

from twisted.trial.unittest import SynchronousTestCase

from artifactserver.store.digest import Digest
from artifactserver.store.packs import (
    KIND_BLOB,
    DamagedEntry,
    NotResident,
    PackFiles,
    PackWriter,
    Place,
    encode_head,
    entry_bytes,
    pack_ids,
    pack_name,
    read_entry,
)


def entry(content: bytes) -> bytes:
    """A whole entry with a blob."""
    digest = Digest.of(content)
    return encode_head(KIND_BLOB, digest.key[0], digest.hash, content) + content


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
                (0, 2**32 - 1, KIND_BLOB, one.hash),
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

    def test_no_locks_left(self) -> None:
        """A pack that cannot be locked for want of locks is not kept open."""
        (self.directory / pack_name(1)).touch()
        refused = OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))
        before = os.listdir("/proc/self/fd")
        with mock.patch.object(fcntl, "flock", side_effect=refused), self.assertRaises(OSError):
            PackWriter.seize(self.directory, 1)
        self.assertEqual(os.listdir("/proc/self/fd"), before)

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
