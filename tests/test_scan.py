"""A pack can be read from end to end, whatever in it is damaged."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from unittest import mock

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from artifactserver.store import packs
from artifactserver.store import scan as scan_module
from artifactserver.store.packs import MAGIC
from artifactserver.store.scan import Damage, Entry, scan
from tests.chance import examples
from tests.test_packs import entry


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

    @examples(200)
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

    @examples(100)
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

    @examples(200)
    @given(st.binary(max_size=300))
    def test_junk(self, junk: bytes) -> None:
        """Junk with the magic bytes in it is passed over up to the next entry."""
        found = list(scan(self.write(b"ASe1" + junk + entry(b"content"))))
        self.assertEqual(found[-1].content if isinstance(found[-1], Entry) else None, b"content")

    @examples(200)
    @given(
        contents=st.lists(st.binary(max_size=80), min_size=1, max_size=6),
        where=st.floats(0, 1, exclude_max=True),
        junk=st.sampled_from([b"", b"A", b"ASe", b"ASe1", MAGIC * 3]),
        window=st.integers(20, 200),
    )
    def test_however_it_is_read(self, contents: list[bytes], where: float, junk: bytes, window: int) -> None:
        """What is found does not depend on how much is read at a time."""
        whole = b"".join(map(entry, contents))
        cut = int(where * len(whole))
        path = self.write(whole[:cut] + junk + whole[cut:] + junk)
        expected = list(scan(path))
        with mock.patch.object(scan_module, "SCAN_BYTES", window):
            self.assertEqual(list(scan(path)), expected)

    @examples(100)
    @given(
        sizes=st.lists(st.integers(0, 9000), min_size=1, max_size=8),
        bad=st.sets(st.integers(0, 20), max_size=4),
        window=st.sampled_from([100, 5000, 1 << 20]),
    )
    def test_bad_sectors(self, sizes: list[int], bad: set[int], window: int) -> None:
        """What the disk cannot give back costs the entries that stand there, and no other."""
        contents = [os.urandom(size) for size in sizes]
        path = self.write(b"".join(map(entry, contents)))
        real = os.pread

        def pread(fd: int, count: int, offset: int) -> bytes:
            if any(offset < (sector + 1) * 4096 and offset + count > sector * 4096 for sector in bad):
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            return real(fd, count, offset)

        kept, offset = [], 0
        for content in contents:
            end = offset + len(entry(content))
            if not bad & set(range(offset // 4096, (end - 1) // 4096 + 1)):
                kept.append(content)
            offset = end
        with mock.patch.object(os, "pread", pread), mock.patch.object(scan_module, "SCAN_BYTES", window):
            found = list(scan(path))
        self.assertEqual([each.content for each in found if isinstance(each, Entry)], kept)

    def test_out_of_reach(self) -> None:
        """That this process cannot read just now is no damage."""
        path = self.write(entry(b"one"))
        with (
            mock.patch.object(os, "pread", side_effect=OSError(errno.ENOMEM, "no memory")),
            self.assertRaises(OSError),
        ):
            list(scan(path))

    def test_cut_while_it_is_read(self) -> None:
        """A pack that becomes shorter ends in damage."""
        one = entry(b"one")
        path = self.write(one)
        with mock.patch.object(os, "fstat", return_value=mock.Mock(st_size=len(one) + 500)):
            self.assertEqual(list(scan(path))[1:], [Damage(len(one), 500)])

    def test_too_long(self) -> None:
        """An entry that says that it is longer than any is damage, and is not read."""
        content = bytes(1000)
        whole = entry(content)
        path = self.write(whole + entry(b"next"))
        with mock.patch.object(scan_module, "PAYLOAD_BYTES", 999):
            found = list(scan(path))
        self.assertEqual(found[0], Damage(0, len(whole)))
        self.assertEqual(len(found), 2)
        with mock.patch.object(packs, "PAYLOAD_BYTES", 999), self.assertRaises(ValueError):
            entry(content)
