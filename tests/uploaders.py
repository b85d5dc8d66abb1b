"""Clients that upload without pause, and remember what a server promised them.

Each uploader is a thread.  When its server dies under it, it goes on at the one that it is then sent to; what a dying
server left unanswered may have been done or not.  Any other failure is written down, for a test to find.
"""

from __future__ import annotations

import hashlib
import random
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import grpc

from artifactserver.proto import buildstream_pb2, bytestream_pb2, remote_asset_pb2
from artifactserver.proto import remote_execution_pb2 as reapi
from tests.grpc_cases import GrpcClient

#: Seconds that one call may take.
TIMEOUT = 30.0

#: What a client sees of a server that dies, or that is not there.
DEAD = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)


@dataclass(slots=True)
class Name:
    """A reference or an asset, with one writer.

    :ivar attempts: every digest that it was ever to stand for, in order.
    :ivar acknowledged: the index of the last one of them that the server acknowledged.
    """

    attempts: list[str] = field(default_factory=list)
    acknowledged: int = -1

    def allows(self, hash: str | None) -> bool:
        """Whether a server may say that this is what it stands for; `None`: that it stands for nothing."""
        if hash is None:
            return self.acknowledged < 0
        return hash in self.attempts[max(0, self.acknowledged) :]


class Ledger:
    """What was promised, by all uploaders together.

    :ivar attempted: the size of every blob that was ever sent, by hash.
    :ivar acknowledged: the hashes of those that a server said it has.
    :ivar wrong: what no crash explains.
    """

    def __init__(self) -> None:
        self.attempted: dict[str, int] = {}
        self.acknowledged: list[str] = []
        self.references: dict[str, Name] = {}
        self.artifacts: dict[str, Name] = {}
        self.wrong: list[str] = []

    def attempt(self, content: bytes) -> reapi.Digest:
        digest = digest_of(content)
        self.attempted[digest.hash] = digest.size_bytes
        return digest


class Uploaders:
    """Some of each kind, all against one server at a time.

    :param tolerant: whether the server may die; if not, every failure is wrong.
    """

    def __init__(self, ledger: Ledger, seed: object, *, tolerant: bool = True, label: str = "") -> None:
        self._ledger = ledger
        self._tolerant = tolerant
        self._done = threading.Event()
        self._client: GrpcClient | None = None
        self.calls = 0
        kinds = (self._batches, self._streams, self._large_streams, self._references, self._artifacts, self._reads)
        self._threads = [
            threading.Thread(target=self._run, args=(kind, random.Random(f"{seed} {label} {kind.__name__}"), label))
            for kind in kinds
        ]

    def use(self, port: int) -> None:
        """Send them to the server on this port."""
        before, self._client = self._client, GrpcClient(port)
        if before is not None:
            before.channel.close()
        else:
            for thread in self._threads:
                thread.start()

    def stop(self) -> None:
        """Let each of them finish its call."""
        self._done.set()
        for thread in self._threads:
            if thread.is_alive():
                thread.join()
        if self._client is not None:
            self._client.channel.close()

    def _run(self, kind: Callable[[random.Random, str], None], random_: random.Random, label: str) -> None:
        while not self._done.is_set():
            try:
                kind(random_, label)
            except grpc.RpcError as error:
                if not self._tolerant or error.code() not in DEAD:
                    self._ledger.wrong.append(f"{kind.__name__}: {error.code()}: {error.details()}")
            except ValueError as error:
                # grpcio's ways to say that the channel was closed, which is how this thread is sent elsewhere.
                if not {"closed", "channel"} <= set(str(error).lower().strip("!").split()):
                    self._ledger.wrong.append(f"{kind.__name__}: {error!r}")
            self._done.wait(random_.random() * 0.02)

    def _call(self, name: str, request: Any) -> Any:
        assert self._client is not None
        answer = self._client.callable(name)(request, timeout=TIMEOUT)
        self.calls += 1
        return answer

    def _batches(self, random_: random.Random, label: str) -> None:
        contents = [random_.randbytes(random_.randrange(1, 8000)) for _ in range(random_.randrange(1, 40))]
        self._upload(contents)

    def _upload(self, contents: list[bytes]) -> None:
        request = reapi.BatchUpdateBlobsRequest()
        for content in contents:
            request.requests.add(digest=self._ledger.attempt(content), data=content)
        for response in self._call("BatchUpdateBlobs", request).responses:
            if response.status.code:
                self._ledger.wrong.append(f"BatchUpdateBlobs: {response.digest.hash}: {response.status.message}")
            else:
                self._ledger.acknowledged.append(response.digest.hash)

    def _streams(self, random_: random.Random, label: str) -> None:
        self._write(random_.randbytes(random_.randrange(1, 70_000)), 2**16)

    def _large_streams(self, random_: random.Random, label: str) -> None:
        self._write(random_.randbytes(random_.randrange(70_000, 1_500_000)), random_.choice([2**16, 2**20]))
        self._done.wait(0.05)

    def _write(self, content: bytes, step: int) -> None:
        digest = self._ledger.attempt(content)
        name = f"uploads/{uuid.uuid4()}/blobs/{digest.hash}/{digest.size_bytes}"

        def messages() -> Iterator[bytestream_pb2.WriteRequest]:
            for start in range(0, len(content), step):
                part = content[start : start + step]
                last = start + step >= len(content)
                yield bytestream_pb2.WriteRequest(resource_name=name, write_offset=start, data=part, finish_write=last)

        committed = self._call("Write", messages()).committed_size
        if committed == len(content):
            self._ledger.acknowledged.append(digest.hash)
        else:
            self._ledger.wrong.append(f"Write: {committed} of {len(content)} bytes of {digest.hash}")

    def _references(self, random_: random.Random, label: str) -> None:
        key = f"project/{label}element-{random_.randrange(5)}/key"
        root = self._tree(random_)
        name = self._ledger.references.setdefault(key, Name())
        name.attempts.append(root.hash)
        self._call("UpdateReference", buildstream_pb2.UpdateReferenceRequest(keys=[key], digest=root))
        name.acknowledged = len(name.attempts) - 1

    def _artifacts(self, random_: random.Random, label: str) -> None:
        uri = f"urn:fdc:buildstream.build:2020:artifact:project/{label}element/{random_.randrange(5)}"
        root = self._tree(random_)
        artifact = buildstream_pb2.Artifact(version=1, build_success=True, strong_key=str(random_.random()), files=root)
        content = artifact.SerializeToString()
        digest = digest_of(content)
        self._upload([content])
        name = self._ledger.artifacts.setdefault(uri, Name())
        name.attempts.append(digest.hash)
        self._call(
            "PushBlob",
            remote_asset_pb2.PushBlobRequest(uris=[uri], blob_digest=digest, references_directories=[root]),
        )
        name.acknowledged = len(name.attempts) - 1

    def _tree(self, random_: random.Random) -> reapi.Digest:
        """Upload a small tree, and return the digest of its root."""
        files = [random_.randbytes(random_.randrange(1, 3000)) for _ in range(3)]
        folder = reapi.Directory()
        for number, content in enumerate(files):
            folder.files.add(name=str(number), digest=digest_of(content))
        inner = folder.SerializeToString(deterministic=True)
        root = reapi.Directory()
        root.directories.add(name="folder", digest=digest_of(inner))
        outer = root.SerializeToString(deterministic=True)
        self._upload([*files, inner, outer])
        return digest_of(outer)

    def _reads(self, random_: random.Random, label: str) -> None:
        """Read back a few blobs that were acknowledged, at once or long ago."""
        known = self._ledger.acknowledged
        if known:
            check_blobs(self._call, self._ledger, [random_.choice(known[-100:]), random_.choice(known)])
        time.sleep(0.01)


def digest_of(content: bytes) -> reapi.Digest:
    return reapi.Digest(hash=hashlib.sha256(content).hexdigest(), size_bytes=len(content))


def check_everything(port: int, ledger: Ledger) -> None:
    """Ask a server for everything that was ever uploaded, and write down in the ledger what is wrong with it."""
    client = GrpcClient(port)

    def call(name: str, request: Any) -> Any:
        return client.callable(name)(request, timeout=TIMEOUT)

    try:
        acknowledged = set(ledger.acknowledged)
        every = list(ledger.attempted)
        present = []
        for start in range(0, len(every), 1000):
            some = every[start : start + 1000]
            request = reapi.FindMissingBlobsRequest(blob_digests=[_digest(ledger, hash) for hash in some])
            missing = {digest.hash for digest in call("FindMissingBlobs", request).missing_blob_digests}
            for hash in missing & acknowledged:
                ledger.wrong.append(
                    f"FindMissingBlobs: {hash}/{ledger.attempted[hash]} was acknowledged and is missing"
                )
            present += [hash for hash in some if hash not in missing]
        check_blobs(call, ledger, present)
        for key, name in ledger.references.items():
            _check_name(call, ledger, "GetReference", buildstream_pb2.GetReferenceRequest(key=key), key, name)
        for uri, name in ledger.artifacts.items():
            _check_name(call, ledger, "FetchBlob", remote_asset_pb2.FetchBlobRequest(uris=[uri]), uri, name)
    finally:
        client.channel.close()


def check_blobs(call: Callable[[str, Any], Any], ledger: Ledger, hashes: list[str]) -> None:
    """Read blobs that have to be there, small ones in batches."""
    batch: list[str] = []
    for hash in hashes:
        if ledger.attempted[hash] > 100_000:
            name = f"blobs/{hash}/{ledger.attempted[hash]}"
            try:
                content = b"".join(each.data for each in call("Read", bytestream_pb2.ReadRequest(resource_name=name)))
            except grpc.RpcError as error:
                if error.code() is not grpc.StatusCode.NOT_FOUND:
                    raise
                ledger.wrong.append(f"Read: {hash} is missing")
                continue
            _check_content(ledger, hash, content)
        else:
            batch.append(hash)
        if len(batch) == 30:
            _check_batch(call, ledger, batch)
            batch = []
    _check_batch(call, ledger, batch)


def _check_batch(call: Callable[[str, Any], Any], ledger: Ledger, batch: list[str]) -> None:
    request = reapi.BatchReadBlobsRequest(digests=[_digest(ledger, hash) for hash in batch])
    for response in call("BatchReadBlobs", request).responses:
        if response.status.code:
            ledger.wrong.append(f"BatchReadBlobs: {response.digest.hash}: {response.status.message}")
        else:
            _check_content(ledger, response.digest.hash, response.data)


def _check_content(ledger: Ledger, hash: str, content: bytes) -> None:
    if hashlib.sha256(content).hexdigest() != hash:
        ledger.wrong.append(f"{hash}/{ledger.attempted[hash]} was served with {len(content)} bytes of something else")


def _check_name(
    call: Callable[[str, Any], Any], ledger: Ledger, method: str, request: Any, spelled: str, name: Name
) -> None:
    try:
        answer = call(method, request)
        hash = (answer.blob_digest if method == "FetchBlob" else answer.digest).hash
    except grpc.RpcError as error:
        if error.code() is not grpc.StatusCode.NOT_FOUND:
            raise
        hash = None
    if not name.allows(hash):
        at = name.attempts.index(hash) if hash in name.attempts else None
        ledger.wrong.append(
            f"{method}: {spelled} is attempt {at} of {len(name.attempts)} ({hash}); {name.acknowledged} was promised"
        )


def _digest(ledger: Ledger, hash: str) -> reapi.Digest:
    return reapi.Digest(hash=hash, size_bytes=ledger.attempted[hash])
