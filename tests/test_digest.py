"""Digests are read strictly, one by one and in columns."""

from __future__ import annotations

import hashlib

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from artifactserver.store.digest import EMPTY, MAX_SIZE, Digest, Digests, InvalidDigest

HASH = hashlib.sha256(b"x").hexdigest()

BAD_HASHES = [
    "",
    HASH[:-1],
    HASH + "0",
    HASH[:-1] + "G",
    HASH.upper(),
    HASH[:-2] + " 0",
    HASH[:-1] + "\n",
    "0x" + HASH[2:],
    "٣" * 64,
    "../" * 21 + "x",
]


class DigestTests(SynchronousTestCase):
    """`Digest` and `Digests`."""

    def test_parse(self) -> None:
        """Lower-case hexadecimal and a size make a digest that spells itself the same way."""
        digest = Digest.parse(HASH, 7)
        self.assertEqual((digest.hex, digest.size, str(digest)), (HASH, 7, f"{HASH}/7"))
        self.assertEqual(Digest.of(b"x"), Digest.parse(HASH, 1))
        self.assertEqual(Digests.parse([HASH, EMPTY.hex], [7, 0]), Digests.of([digest, EMPTY]))

    def test_bad_hashes(self) -> None:
        """Anything but 64 lower-case hexadecimal digits is refused, alone and among good ones."""
        for bad in BAD_HASHES:
            with self.assertRaises(InvalidDigest):
                Digest.parse(bad, 1)
            with self.assertRaises(InvalidDigest):
                Digests.parse([HASH, bad, HASH], [1, 1, 1])

    def test_two_wrongs(self) -> None:
        """Hashes whose lengths only add up together are refused."""
        with self.assertRaises(InvalidDigest):
            Digests.parse([HASH[:-1], HASH + "0"], [1, 1])

    def test_bad_sizes(self) -> None:
        """A size below nothing, or beyond what a message can hold, is refused."""
        for bad in (-1, MAX_SIZE + 1):
            with self.assertRaises(InvalidDigest):
                Digest.parse(HASH, bad)
            with self.assertRaises(InvalidDigest):
                Digests.parse([HASH, HASH], [1, bad])

    def test_messages_are_short(self) -> None:
        """A refusal does not repeat a megabyte that a peer sent."""
        with self.assertRaises(InvalidDigest) as caught:
            Digest.parse("x" * 1_000_000, 1)
        self.assertLess(len(str(caught.exception)), 300)

    def test_matches(self) -> None:
        """Only the content itself matches: not another of the same size, nor more or less of it."""
        digest = Digest.of(b"content")
        self.assertTrue(digest.matches(b"content"))
        for other in (b"", b"Content", b"content ", b"conten"):
            self.assertFalse(digest.matches(other))

    @given(st.lists(st.text(max_size=70)), st.integers(-5, 5))
    def test_columns_agree_with_single_digests(self, hashes: list[str], size: int) -> None:
        """Whatever is in the columns, they are accepted exactly when each digest would be."""
        hashes = [*hashes, HASH]
        sizes = [size] * len(hashes)
        try:
            expected = [Digest.parse(hash, size) for hash in hashes]
        except InvalidDigest:
            with self.assertRaises(InvalidDigest):
                Digests.parse(hashes, sizes)
        else:
            self.assertEqual(list(Digests.parse(hashes, sizes)), expected)
