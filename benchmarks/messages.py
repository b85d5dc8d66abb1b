"""What is sent, serialized: paths of methods, and requests.

Everything is made before a clock starts, so that the client, which is Python, keeps a server as busy as it can.
"""

from __future__ import annotations

import hashlib
import os
import uuid
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from artifactserver.proto import bytestream_pb2, remote_execution_pb2

MIB = 2**20
SMALL = 4096
BATCH = 200
LARGE = 256 * MIB
#: Bytes of content in one message of an upload.
WRITE_MESSAGE = 2 * MIB

CAS = "/build.bazel.remote.execution.v2.ContentAddressableStorage"
FIND_MISSING = f"{CAS}/FindMissingBlobs"
BATCH_READ = f"{CAS}/BatchReadBlobs"
BATCH_UPDATE = f"{CAS}/BatchUpdateBlobs"
CAPABILITIES = "/build.bazel.remote.execution.v2.Capabilities/GetCapabilities"
READ = "/google.bytestream.ByteStream/Read"
WRITE = "/google.bytestream.ByteStream/Write"
FETCH_DIRECTORY = "/build.bazel.remote.asset.v1.Fetch/FetchDirectory"
PUSH_DIRECTORY = "/build.bazel.remote.asset.v1.Push/PushDirectory"

#: What each connection of BuildStream 1.6 begins with, all of them empty requests.
PROBES = (CAPABILITIES, BATCH_READ, FETCH_DIRECTORY, BATCH_UPDATE, PUSH_DIRECTORY)


def digest(content: bytes) -> remote_execution_pb2.Digest:
    """The digest of some content."""
    return remote_execution_pb2.Digest(hash=hashlib.sha256(content).hexdigest(), size_bytes=len(content))


def absent_digests(number: int) -> list[Any]:
    """Digests of blobs that nobody has."""
    names = (hashlib.sha256(os.urandom(16)).hexdigest() for _ in range(number))
    return [remote_execution_pb2.Digest(hash=name, size_bytes=SMALL) for name in names]


def find(digests: Iterable[Any]) -> bytes:
    """Which of these are missing?"""
    return remote_execution_pb2.FindMissingBlobsRequest(blob_digests=digests).SerializeToString()


def finds(digests: Sequence[Any], each: int) -> list[bytes]:
    """Which of these are missing?  So many in each request, and none but whole requests."""
    return [find(digests[start : start + each]) for start in range(0, len(digests) - each + 1, each)]


def update(number: int, size: int) -> tuple[bytes, list[Any]]:
    """A batch of new blobs to upload, and their digests."""
    return update_of(os.urandom(size) for _ in range(number))


def update_of(contents: Iterable[bytes]) -> tuple[bytes, list[Any]]:
    """A batch of these blobs to upload, and their digests."""
    request = remote_execution_pb2.BatchUpdateBlobsRequest()
    for content in contents:
        request.requests.add(digest=digest(content), data=content)
    return request.SerializeToString(), [each.digest for each in request.requests]


def tiny_updates(blobs: int, size: int, sample: list[Any], wanted: int) -> Iterator[bytes]:
    """Batches of so many new blobs of a size in all, 1,000 in each.

    :param sample: gets the digests of about ``wanted`` of them, from all over.
    """
    every = max(1, blobs // wanted)
    for start in range(0, blobs, 1000):
        request, digests = update(min(1000, blobs - start), size)
        sample += digests[(-start) % every :: every]
        yield request


def batch_read(digests: Iterable[Any]) -> bytes:
    """Read all of these in one answer."""
    return remote_execution_pb2.BatchReadBlobsRequest(digests=digests).SerializeToString()


def stream_read(digest: Any) -> bytes:
    """Read one blob, in pieces."""
    return bytestream_pb2.ReadRequest(resource_name=f"blobs/{digest.hash}/{digest.size_bytes}").SerializeToString()


def upload_name(hash: str, size: int) -> str:
    """The name of a new upload."""
    return f"uploads/{uuid.uuid4()}/blobs/{hash}/{size}"


def stream_write(content: bytes) -> list[bytes]:
    """The messages that upload a blob, with its name in each of them, as buildbox-casd and Pants send them."""
    name = upload_name(hashlib.sha256(content).hexdigest(), len(content))
    return [
        bytestream_pb2.WriteRequest(
            resource_name=name,
            write_offset=start,
            data=content[start : start + WRITE_MESSAGE],
            finish_write=start + WRITE_MESSAGE >= len(content),
        ).SerializeToString()
        for start in range(0, len(content), WRITE_MESSAGE)
    ]
