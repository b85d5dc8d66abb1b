"""Answers that are written by hand are, byte for byte, what the message classes would write."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as some
from twisted.trial.unittest import SynchronousTestCase

from artifactserver.proto import bytestream_pb2 as bytestream
from artifactserver.proto import remote_execution_pb2 as reapi
from artifactserver.proto import status_pb2
from artifactserver.services import encoding

HASHES = some.sampled_from(["0" * 64, "0123456789abcdef" * 4, "f" * 40, "a" * 96, "b" * 128])
SIZES = some.sampled_from([0, 1, 127, 128, 4096, 16383, 16384, 2**31, 2**63 - 1])
CONTENTS = some.binary(max_size=300) | some.sampled_from([b"x" * 127, b"x" * 128, b"y" * 16384, b"z" * 70000])
STATUSES = some.sampled_from(
    [b"", status_pb2.Status(code=5, message="it is not here: " + "m" * 120).SerializeToString()]
)


class EncodingTests(SynchronousTestCase):
    """What `artifactserver.services.encoding` writes."""

    @given(some.integers(min_value=0, max_value=2**64 - 1))
    def test_numbers(self, number: int) -> None:
        """Numbers of any size."""
        message = reapi.Digest(size_bytes=number & (2**63 - 1))
        expected = b"\x10" + encoding.varint(number & (2**63 - 1)) if message.size_bytes else b""
        self.assertEqual(message.SerializeToString(), expected)

    @given(some.lists(some.tuples(HASHES, SIZES), max_size=5))
    def test_missing_blobs(self, digests: list[tuple[str, int]]) -> None:
        """Lists of missing blobs."""
        hashes, sizes = [hash for hash, _ in digests], [size for _, size in digests]
        positions = range(0, len(digests), 2)
        message = reapi.FindMissingBlobsResponse()
        for position in positions:
            message.missing_blob_digests.add(hash=hashes[position], size_bytes=sizes[position])
        self.assertEqual(encoding.missing_blobs(hashes, sizes, positions), message.SerializeToString())

    @given(HASHES, SIZES, STATUSES)
    def test_stored_blob(self, hash: str, size: int, status: bytes) -> None:
        """Outcomes of uploads, good and bad."""
        message = reapi.BatchUpdateBlobsResponse()
        message.responses.add(
            digest=reapi.Digest(hash=hash, size_bytes=size), status=status_pb2.Status.FromString(status)
        )
        self.assertEqual(encoding.stored_blob(hash, size, status), message.SerializeToString())

    @given(some.lists(some.tuples(HASHES, SIZES), max_size=5))
    def test_stored_blobs(self, digests: list[tuple[str, int]]) -> None:
        """Outcomes of uploads, all of them good."""
        message = reapi.BatchUpdateBlobsResponse()
        for hash, size in digests:
            message.responses.add(digest=reapi.Digest(hash=hash, size_bytes=size), status=status_pb2.Status())
        hashes, sizes = [hash for hash, _ in digests], [size for _, size in digests]
        self.assertEqual(encoding.stored_blobs(hashes, sizes), message.SerializeToString())

    @given(HASHES, SIZES, CONTENTS)
    def test_read_blob(self, hash: str, size: int, content: bytes) -> None:
        """Blobs that were found."""
        message = reapi.BatchReadBlobsResponse()
        message.responses.add(digest=reapi.Digest(hash=hash, size_bytes=size), data=content, status=status_pb2.Status())
        self.assertEqual(b"".join(encoding.read_blob(hash, size, content)), message.SerializeToString())

    @given(HASHES, SIZES, STATUSES)
    def test_unread_blob(self, hash: str, size: int, status: bytes) -> None:
        """Blobs that were not found."""
        message = reapi.BatchReadBlobsResponse()
        message.responses.add(
            digest=reapi.Digest(hash=hash, size_bytes=size), status=status_pb2.Status.FromString(status)
        )
        self.assertEqual(b"".join(encoding.unread_blob(hash, size, status)), message.SerializeToString())

    @given(CONTENTS)
    def test_read_response(self, content: bytes) -> None:
        """Pieces of a stream."""
        message = bytestream.ReadResponse(data=content or b"x")
        self.assertEqual(b"".join(encoding.read_response(content or b"x")), message.SerializeToString())
