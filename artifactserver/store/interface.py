"""The seam between the protocols and a store: what a store does, what it is handed, and how it fails.

Everything that could one day leave this machine is awaitable.  A method that does not need to wait finishes without
suspending, so a caller that drives the coroutine by hand pays nothing for that.

The errors know no protocol: each front has one table from them to its own codes.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from artifactserver.store.digest import Digest, Digests

#: What those are told who come, or still wait, when the server stops.
SHUTTING_DOWN = "the server is shutting down"


class StoreError(Exception):
    """The store did not do what it was asked to.  ``str()`` is a sentence fit for the peer."""


class BlobMissing(StoreError):
    """A blob is not in the store, or no longer: it was damaged, and is waiting to be uploaded again."""

    def __init__(self, digest: Digest) -> None:
        super().__init__(f"blob {digest} is not in this store")
        self.digest = digest


class ContentMismatch(StoreError):
    """Uploaded content is not what its digest says: another hash, too long, or too short."""


class BlobTooLarge(StoreError):
    """A blob is larger than this store takes."""


class NoRoom(StoreError):
    """Accepting an upload would leave less free space than the head room that was asked for."""


class TooBusy(StoreError):
    """The store has as much work in hand as it will take on; the same call may work in a moment."""


class TooSlow(StoreError):
    """An upload brought too little in too long a time, and its space is wanted for others."""


class Incomplete(StoreError):
    """A record refers to content that is not all present.

    :ivar missing: some of the missing digests, at least one.
    """

    def __init__(self, message: str, missing: Sequence[Digest]) -> None:
        super().__init__(message)
        self.missing = tuple(missing)


class BadReference(StoreError):
    """A record refers to something that cannot be what the record says it is: a Directory that does not parse, say."""


class StoreBroken(StoreError):
    """The disk or the index fails; the log has the details for the administrator."""


@dataclass(frozen=True, slots=True)
class Blob:
    """Content on its way in, together with the digest that it claims to have."""

    digest: Digest
    content: bytes


@dataclass(frozen=True, slots=True)
class Blobs(Sequence[Blob]):
    """Many blobs on their way in, as columns, as `Digests` are: a batch may have some ten thousand of them.

    :ivar digests: what each claims to be.
    :ivar contents: their bytes, as many.
    """

    digests: Digests
    contents: Sequence[bytes]

    @classmethod
    def of(cls, blobs: Iterable[Blob]) -> Blobs:
        """The same blobs, as columns."""
        if isinstance(blobs, Blobs):
            return blobs
        listed = list(blobs)
        return cls(Digests.of(blob.digest for blob in listed), [blob.content for blob in listed])

    def __len__(self) -> int:
        return len(self.contents)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return Blobs(self.digests[index], self.contents[index])
        return Blob(self.digests[index], self.contents[index])

    def __iter__(self) -> Iterator[Blob]:
        return map(Blob, self.digests, self.contents)

    def at(self, positions: Sequence[int]) -> Blobs:
        """Those at some positions, in ascending order."""
        if len(positions) == len(self):
            return self
        return Blobs(self.digests.at(positions), [self.contents[position] for position in positions])


class RecordKind(enum.IntEnum):
    """What a record is about.  The numbers are part of the store's format."""

    ASSET_BLOB = 1
    ASSET_DIRECTORY = 2
    ACTION_RESULT = 3


@dataclass(frozen=True, slots=True)
class RecordKey:
    """The name of a record.

    :ivar instance: the REAPI instance name: a namespace; the empty string is one like any other.
    :ivar name: an asset's URI, or whatever names a record of its kind.
    :ivar qualifiers: pairs of strings, sorted; the same name with other qualifiers is another record.
    """

    kind: RecordKind
    instance: str
    name: str
    qualifiers: tuple[tuple[str, str], ...] = ()


class Shape(enum.IntEnum):
    """How to find what a reference reaches.  The numbers are part of the store's format."""

    #: The blob alone.
    BLOB = 1
    #: A REAPI ``Directory`` message and, by way of its nodes, the whole tree below it.
    DIRECTORY = 2


@dataclass(frozen=True, slots=True)
class Reference:
    """Content that a record stands for.

    :ivar required: whether the record is worthless without it.  What is not required is kept alive while it is
        there, and its absence is no fault.
    """

    digest: Digest
    shape: Shape = Shape.BLOB
    required: bool = True


@dataclass(frozen=True, slots=True)
class Record:
    """A small mutable entry that points into the content-addressed blobs.

    :ivar value: bytes that only the service that wrote them understands.
    :ivar references: everything the record stands for.
    :ivar expires: seconds since the epoch after which the record is gone, or `None`.
    :ivar changed: seconds since the epoch at which the record was set; filled in by the store.
    """

    key: RecordKey
    value: bytes
    references: tuple[Reference, ...]
    expires: float | None = None
    changed: float = 0.0


class BlobReader(Protocol):
    """One blob, open for reading: it stays readable until it is closed, whatever happens to its entry meanwhile."""

    size: int

    async def read(self, offset: int, length: int) -> bytes:
        """Bytes ``offset`` to ``offset + length`` of the content, checked.

        The answer may be shorter than asked for; it is empty only at the end of the blob.

        :raises BlobMissing: if the content turns out to be damaged.  It has then been put aside and is missing.
        """

    def close(self) -> None: ...


class Upload(Protocol):
    """One blob on its way in, in pieces.

    Whatever happens, `close` must be called; without a `commit` that returned, nothing of the upload remains.
    """

    #: How many bytes have been handed in.
    received: int

    async def write(self, content: bytes | memoryview) -> None:
        """Take the next bytes, which must not change any more; returns when it is time for more.

        :raises ContentMismatch: if there are more bytes than the digest says.
        :raises TooSlow: if the upload was given up for that.
        """

    async def commit(self) -> None:
        """Returns when the whole blob is on disk and will survive a crash.

        :raises ContentMismatch: if the bytes are not what the digest says.
        :raises NoRoom: if the disk filled up.
        """

    def close(self) -> None: ...


class Store(Protocol):
    """Content-addressed blobs, and records that point at them.

    Whatever is found, read or written is thereby *used*: it is kept for at least the minimum lifetime from then on.
    """

    #: The largest blob that is accepted, in bytes.
    max_blob_size: int

    async def find_missing(self, digests: Digests) -> list[int]:
        """The positions in ``digests`` of those that are not present, each distinct digest once, in order."""

    async def read_many(self, digests: Digests) -> list[bytes | None]:
        """The content of each blob, `None` for one that is missing.  The caller bounds the sum of the sizes."""

    async def open(self, digest: Digest) -> BlobReader:
        """:raises BlobMissing: if there is no such blob."""

    async def add_many(self, blobs: Sequence[Blob]) -> list[StoreError | None]:
        """Store blobs; returns when they are on disk and will survive a crash.

        One outcome per blob, in order: `None` for one that is stored, or the `ContentMismatch`, `NoRoom` or other
        error for one that is not.  Many of them are quickest as `Blobs`.  The caller bounds the sum of the sizes.
        """

    async def upload(self, digest: Digest, caller: str) -> Upload:
        """Begin to receive one blob in pieces.  Its space is reserved before this returns.

        :param caller: who is uploading, for the bound on what one caller may have reserved.
        :raises NoRoom: if there is no space for it.
        :raises BlobTooLarge: if it is larger than `max_blob_size`.
        :raises TooBusy: if this caller, or all together, have too much under way.
        """

    async def get_record(self, key: RecordKey) -> Record | None:
        """The record, if it is there, has not expired, and everything it requires is present."""

    async def set_records(self, records: Sequence[Record]) -> None:
        """Set or replace records, all of them at one moment or none; returns when they are on disk.

        What several of them refer to is looked at once, so one thing may have many names.

        :raises Incomplete: if something that one of them requires is missing.
        :raises BadReference: if something that one of them refers to is not what it should be.
        """

    async def set_record(self, record: Record) -> None:
        """The same for one record."""

    async def delete_record(self, key: RecordKey) -> bool:
        """Remove a record durably; whether there was one."""
