"""The names and checksums of large blobs."""

from __future__ import annotations

import zlib

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from artifactserver.store import files
from artifactserver.store.digest import Digest
from artifactserver.store.files import Checksums, FileName


class FileNameTests(SynchronousTestCase):
    """`FileName`."""

    def test_spelling(self) -> None:
        """A name spells the digest as an administrator knows it, and reads back."""
        digest = Digest.of(b"x")
        name = FileName.new(digest)
        self.assertIn(f"sha256-{digest.hex}.", str(name))
        self.assertEqual(FileName.parse(str(name)), name)
        self.assertEqual(name.key, digest.key)

    def test_never_twice(self) -> None:
        """Two uploads of one blob have different names."""
        digest = Digest.of(b"x")
        self.assertEqual(len({str(FileName.new(digest)) for _ in range(1000)}), 1000)

    def test_foreign_names(self) -> None:
        """What is not exactly such a name is not taken for one."""
        good = str(FileName.new(Digest.of(b"x")))
        for bad in (
            "",
            good[:-1],
            good + "0",
            good.upper(),
            good.replace("sha256", "md5"),
            good.replace("sha256", "sha999"),
            good.replace("-", "-00", 1),
            good[:20] + good[21:],
            "../" + good,
        ):
            self.assertIsNone(FileName.parse(bad), bad)


class ChecksumsTests(SynchronousTestCase):
    """`Checksums`."""

    def setUp(self) -> None:
        self.patch(files, "BLOCK_BYTES", 16)

    @given(st.lists(st.binary(max_size=40), max_size=12))
    def test_cut_anywhere(self, pieces: list[bytes]) -> None:
        """However a stream is cut, there is one checksum for each block, and one for what is left."""
        checksums = Checksums()
        for piece in pieces:
            checksums.update(piece)
        whole = b"".join(pieces)
        expected = [zlib.crc32(whole[start : start + 16]) for start in range(0, len(whole), 16)]
        self.assertEqual(checksums.value(), b"".join(crc.to_bytes(4, "big") for crc in expected))
