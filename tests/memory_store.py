"""A store in memory: the second implementation of the store's interface, and the one that needs no disk.

It keeps every promise but that of surviving its process.  It owes nothing to `artifactserver.store.local`, so that a
test which passes over both says something about the interface.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

from google.protobuf.message import DecodeError

from artifactserver.proto import remote_execution_pb2 as reapi
from artifactserver.store.digest import EMPTY, Digest, Digests, InvalidDigest
from artifactserver.store.interface import (
    BadReference,
    Blob,
    BlobMissing,
    BlobTooLarge,
    ContentMismatch,
    Incomplete,
    NoRoom,
    Record,
    RecordKey,
    Reference,
    Shape,
    StoreError,
    TooBusy,
)


class MemoryStore:
    """A store of dictionaries.

    :param now: seconds since the epoch.
    :param capacity: bytes of blobs that there is room for.
    :param max_blob_size: the largest blob that is accepted, in bytes.
    :param max_uploads: how many uploads in pieces one caller may have under way.
    """

    def __init__(
        self,
        now: Callable[[], float],
        *,
        capacity: int = 2**30,
        max_blob_size: int = 2**36,
        max_uploads: int = 100,
    ) -> None:
        self.max_blob_size = max_blob_size
        self.capacity = capacity
        self.max_uploads = max_uploads
        self.blobs: dict[Digest, bytes] = {EMPTY: b""}
        self.records: dict[RecordKey, Record] = {}
        #: Uploads that were begun and not closed, by caller.
        self.uploads: dict[str, list[MemoryUpload]] = {}
        #: Readers that were opened and not closed.
        self.readers: set[MemoryReader] = set()
        self._now = now

    async def find_missing(self, digests: Digests) -> list[int]:
        assert isinstance(digests, Digests), digests
        seen = set()
        missing = []
        for position, digest in enumerate(digests):
            if digest not in self.blobs and digest not in seen:
                seen.add(digest)
                missing.append(position)
        return missing

    async def read_many(self, digests: Digests) -> list[bytes | None]:
        assert isinstance(digests, Digests), digests
        return [self.blobs.get(digest) for digest in digests]

    async def open(self, digest: Digest) -> MemoryReader:
        if digest not in self.blobs:
            raise BlobMissing(digest)
        return MemoryReader(self, digest, self.blobs[digest])

    async def add_many(self, blobs: Sequence[Blob]) -> list[StoreError | None]:
        outcomes: list[StoreError | None] = []
        for blob in blobs:
            assert isinstance(blob.content, bytes), blob
            try:
                self.add(blob.digest, blob.content)
            except StoreError as error:
                outcomes.append(error)
            else:
                outcomes.append(None)
        return outcomes

    async def upload(self, digest: Digest, caller: str) -> MemoryUpload:
        assert isinstance(caller, str), caller
        if digest.size > self.max_blob_size:
            raise BlobTooLarge(f"{digest} is larger than {self.max_blob_size} bytes")
        own = self.uploads.setdefault(caller, [])
        if len(own) >= self.max_uploads:
            raise TooBusy(f"{caller} has {len(own)} uploads under way")
        if self.used + digest.size > self.capacity:
            raise NoRoom("there is no room")
        upload = MemoryUpload(self, digest, own)
        own.append(upload)
        return upload

    async def get_record(self, key: RecordKey) -> Record | None:
        record = self.records.get(key)
        if record is None or (record.expires is not None and record.expires <= self._now()):
            return None
        try:
            self._require(record.references)
        except (Incomplete, BadReference):
            return None
        return record

    async def set_records(self, records: Sequence[Record]) -> None:
        for record in records:
            assert record.key.qualifiers == tuple(sorted(record.key.qualifiers)), record
            self._require(record.references)
        self.records.update((record.key, replace(record, changed=self._now())) for record in records)

    async def set_record(self, record: Record) -> None:
        await self.set_records([record])

    async def delete_record(self, key: RecordKey) -> bool:
        return self.records.pop(key, None) is not None

    @property
    def used(self) -> int:
        """Bytes of blobs."""
        return sum(map(len, self.blobs.values()))

    def add(self, digest: Digest, content: bytes) -> None:
        """Store one blob, at once."""
        if not digest.matches(content):
            raise ContentMismatch(f"{len(content)} bytes are not {digest}")
        if digest in self.blobs:
            return
        if digest.size > self.max_blob_size:
            raise BlobTooLarge(f"{digest} is larger than {self.max_blob_size} bytes")
        if self.used + digest.size > self.capacity:
            raise NoRoom("there is no room")
        self.blobs[digest] = content

    def lose(self, digest: Digest) -> None:
        """What expiry and damage do."""
        del self.blobs[digest]

    def _require(self, references: Iterable[Reference]) -> None:
        missing = []
        for reference in references:
            if reference.required:
                missing += [digest for digest in self._reached(reference) if digest not in self.blobs]
        if missing:
            raise Incomplete(f"{missing[0]} is missing", missing)

    def _reached(self, reference: Reference) -> set[Digest]:
        if reference.shape is Shape.BLOB:
            return {reference.digest}
        reached = {reference.digest}
        directories = [reference.digest]
        while directories:
            digest = directories.pop()
            content = self.blobs.get(digest)
            if content is None:
                continue
            try:
                directory = reapi.Directory.FromString(content)
                files = {Digest.parse(node.digest.hash, node.digest.size_bytes) for node in directory.files}
                folders = {Digest.parse(node.digest.hash, node.digest.size_bytes) for node in directory.directories}
            except (DecodeError, InvalidDigest) as error:
                raise BadReference(f"{digest} is not a Directory") from error
            directories += folders - reached
            reached |= files | folders
        return reached


class MemoryReader:
    """One blob of a `MemoryStore`, open for reading."""

    def __init__(self, store: MemoryStore, digest: Digest, content: bytes) -> None:
        self.size = digest.size
        self._content = content
        self._store = store
        store.readers.add(self)

    async def read(self, offset: int, length: int) -> bytes:
        assert self in self._store.readers, "it is closed"
        assert 0 <= offset <= self.size and length > 0, (offset, length)
        return self._content[offset : offset + length]

    def close(self) -> None:
        self._store.readers.discard(self)


class MemoryUpload:
    """One blob on its way into a `MemoryStore`."""

    def __init__(self, store: MemoryStore, digest: Digest, siblings: list[MemoryUpload]) -> None:
        self.received = 0
        self._store = store
        self._digest = digest
        self._siblings = siblings
        self._pieces: list[bytes | memoryview] = []

    async def write(self, content: bytes | memoryview) -> None:
        assert isinstance(content, (bytes, memoryview)), content
        assert self in self._siblings, "it is closed"
        self.received += len(content)
        if self.received > self._digest.size:
            raise ContentMismatch(f"{self.received} bytes are more than {self._digest}")
        self._pieces.append(content)

    async def commit(self) -> None:
        assert self in self._siblings, "it is closed"
        self._store.add(self._digest, b"".join(self._pieces))

    def close(self) -> None:
        if self in self._siblings:
            self._siblings.remove(self)
