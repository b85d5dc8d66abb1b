"""The calls that clients make: probes, uploads and downloads in one message and in many, good, refused and odd ones."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import grpc
from google.protobuf.message import Message

from artifactserver.proto import buildstream_pb2 as buildstream
from artifactserver.proto import bytestream_pb2 as bytestream
from artifactserver.proto import health_pb2 as health
from artifactserver.proto import remote_asset_pb2 as asset
from artifactserver.proto import remote_execution_pb2 as reapi
from fuzz import calls

DIGEST = reapi.Digest(hash=hashlib.sha256(calls.CONTENT).hexdigest(), size_bytes=len(calls.CONTENT))
EMPTY = reapi.Digest(hash=hashlib.sha256(b"").hexdigest())
ABSENT = reapi.Digest(hash="ab" * 32, size_bytes=1234)
NAME = f"{DIGEST.hash}/{DIGEST.size_bytes}"
UPLOAD = f"main/uploads/c0ffee00-1111-4222-8333-444455556666/blobs/{NAME}"


@dataclass(frozen=True, slots=True)
class Planned:
    """A call to be made.

    :ivar name: the method, by its short name.
    :ivar messages: its requests.
    :ivar options: what grpcio's client is to be told; with ``cancel`` the call is given up after the first response.
    """

    name: str
    messages: list[Message]
    options: dict[str, Any] = field(default_factory=dict)


def probe() -> Iterator[Planned]:
    """What clients ask before they do anything."""
    yield Planned("GetCapabilities", [reapi.GetCapabilitiesRequest(instance_name="main")])
    yield Planned("Check", [health.HealthCheckRequest()])
    yield Planned("Status", [buildstream.StatusRequest()])
    yield Planned("BatchUpdateBlobs", [reapi.BatchUpdateBlobsRequest()])
    yield Planned("BatchReadBlobs", [reapi.BatchReadBlobsRequest()])
    yield Planned("QueryWriteStatus", [bytestream.QueryWriteStatusRequest()])
    yield Planned("PushBlob", [asset.PushBlobRequest()])
    yield Planned("GetReference", [buildstream.GetReferenceRequest(key="x")])


def push() -> Iterator[Planned]:
    """Uploads, and names for what was uploaded."""
    yield Planned("FindMissingBlobs", [reapi.FindMissingBlobsRequest(blob_digests=[DIGEST, ABSENT, EMPTY])])
    update = reapi.BatchUpdateBlobsRequest(instance_name="main")
    update.requests.add(digest=DIGEST, data=calls.CONTENT)
    update.requests.add(digest=ABSENT, data=b"wrong")
    yield Planned("BatchUpdateBlobs", [update])
    pieces = [calls.CONTENT[:5], calls.CONTENT[5:]]
    first = bytestream.WriteRequest(resource_name=UPLOAD, data=pieces[0])
    last = bytestream.WriteRequest(write_offset=5, data=pieces[1], finish_write=True)
    yield Planned("Write", [first, last])
    yield Planned("QueryWriteStatus", [bytestream.QueryWriteStatusRequest(resource_name=UPLOAD)])
    directory = reapi.Directory()
    directory.files.add(name="file", digest=DIGEST)
    content = directory.SerializeToString()
    root = reapi.Digest(hash=hashlib.sha256(content).hexdigest(), size_bytes=len(content))
    update = reapi.BatchUpdateBlobsRequest()
    update.requests.add(digest=root, data=content)
    yield Planned("BatchUpdateBlobs", [update])
    qualifiers = [asset.Qualifier(name="a", value="b"), asset.Qualifier(name="c")]
    push = asset.PushDirectoryRequest(
        uris=["urn:one", "urn:two"], qualifiers=qualifiers, root_directory_digest=root, references_blobs=[DIGEST]
    )
    push.expire_at.seconds = 2**32
    yield Planned("PushDirectory", [push])
    yield Planned("PushBlob", [asset.PushBlobRequest(uris=["urn:blob"], qualifiers=qualifiers, blob_digest=DIGEST)])
    yield Planned("UpdateReference", [buildstream.UpdateReferenceRequest(keys=["a/b", "c"], digest=root)])


def pull() -> Iterator[Planned]:
    """What was uploaded, by its names; and some of what was not."""
    yield Planned("FetchDirectory", [asset.FetchDirectoryRequest(uris=["urn:one"], instance_name="main")])
    fetch = asset.FetchBlobRequest(uris=["urn:blob"], qualifiers=[asset.Qualifier(name="a", value="b")])
    fetch.timeout.seconds = 3
    fetch.oldest_content_accepted.seconds = 1
    yield Planned("FetchBlob", [fetch], {"timeout": 5})
    yield Planned("GetReference", [buildstream.GetReferenceRequest(key="a/b")])
    yield Planned("BatchReadBlobs", [reapi.BatchReadBlobsRequest(digests=[DIGEST, ABSENT, EMPTY])])
    yield Planned("Read", [bytestream.ReadRequest(resource_name=f"main/blobs/{NAME}", read_offset=2, read_limit=5)])
    yield Planned("Read", [bytestream.ReadRequest(resource_name=f"blobs/{ABSENT.hash}/1234")])
    yield Planned("GetTree", [reapi.GetTreeRequest(root_digest=DIGEST)])


def odd() -> Iterator[Planned]:
    """Metadata, deadlines, compressed messages, calls that are given up or refused."""
    metadata = (("x-bin", b"\0\xff"), ("plain", "text"), ("authorization", "Bearer abc"), ("plain", "again"))
    query = bytestream.QueryWriteStatusRequest(resource_name="nonsense")
    yield Planned("QueryWriteStatus", [query], {"metadata": metadata, "timeout": 0.5})
    yield Planned("Check", [health.HealthCheckRequest(service="x")], {"compression": grpc.Compression.Gzip})
    many = reapi.FindMissingBlobsRequest(blob_digests=[ABSENT] * 60)
    yield Planned("FindMissingBlobs", [many], {"compression": grpc.Compression.Gzip})
    yield Planned("Watch", [health.HealthCheckRequest()], {"cancel": True})
    yield Planned("Write", [bytestream.WriteRequest(resource_name=UPLOAD, data=b"x" * 15_000)])
    yield Planned("SplitBlob", [reapi.SplitBlobRequest(blob_digest=DIGEST)])


#: Each makes up one connection.
SESSIONS = (probe, push, pull, odd)
