"""Reading blobs: from the row in the index to checked bytes.

What the page cache holds is read on the spot; a read that would wait for the disk happens in a thread.  Nothing leaves
here unchecked.  A place that turns out to be gone or wrong is looked up once more, since another process may just have
moved the blob; if the row still says the same, the content is damaged and put aside.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from twisted.internet.defer import Deferred

from artifactserver.store import disk
from artifactserver.store.damage import Quarantine
from artifactserver.store.digest import EMPTY, Digest, Digests
from artifactserver.store.disk import Descriptor
from artifactserver.store.files import FileName, FileReader, MemoryReader
from artifactserver.store.index import Index
from artifactserver.store.interface import BlobMissing, BlobReader
from artifactserver.store.layout import Layout
from artifactserver.store.packs import KIND_BLOB, DamagedEntry, NotResident, PackFiles, Place, read_entry
from artifactserver.store.rows import PACKED, PACKED_BYTES, FileRow, PackTable, unpack_packed

#: Blobs of one call that turn out not to be in memory, after which the others of it are left to a thread without a try:
#: each has the system begin to read, which takes some 40 µs.
COLD_BLOBS = 16


@dataclass(frozen=True, slots=True)
class _InFile:
    """Where a large blob is."""

    row: FileRow


def _place(value: bytes | None, size: int, packs: PackTable) -> Place | _InFile | None:
    """Where a row of the index says that a blob of this size is; `None` if it is missing."""
    if value is None:
        return None
    if len(value) == PACKED_BYTES and value[0] == PACKED:
        _, stored_size, pack, stored, offset = unpack_packed(value)
        return Place(pack, offset, stored) if stored_size == size and pack in packs.all else None
    row = FileRow.decode(value)
    return _InFile(row) if row is not None and row.size == size else None


class Reading:
    """Reads blobs of one repository.

    :param in_thread: runs a function in a thread that may wait for the disk.
    """

    def __init__(
        self,
        layout: Layout,
        index: Index,
        in_thread: Callable[[Callable[[], Any]], Deferred[Any]],
        quarantine: Quarantine,
    ) -> None:
        self._layout = layout
        self._index = index
        self._in_thread = in_thread
        self._quarantine = quarantine
        self._packs = PackFiles(layout.packs)
        self._table: PackTable | None = None

    def close(self) -> None:
        self._packs.close()

    def look_up(self, digests: Digests) -> tuple[list[bytes | None], PackTable]:
        """The rows of blobs, and the packs as of the same moment."""
        values, table = self._index.look_up(digests.keys)
        if table is not self._table:
            self._packs.forget(table.all)
            self._table = table
        return values, table

    async def contents(self, digests: Digests) -> list[bytes | None]:
        """The content of each blob; `None` for one that is missing."""
        values, table = self.look_up(digests)
        keys, sizes = digests.keys, digests.sizes
        found: list[bytes | None] = [None] * len(values)
        cold: list[tuple[int, Place, Descriptor]] = []
        doubtful: list[int] = []
        packs, read = table.all, self._packs.read_resident
        for position, value in enumerate(values):
            if value is None or len(value) != PACKED_BYTES or value[0] != PACKED:
                if value is not None or sizes[position] == 0:
                    doubtful.append(position)
                continue
            _, size, pack, stored, offset = unpack_packed(value)
            if size != sizes[position] or pack not in packs:
                continue
            if stored != size:  # A damaged row, and maybe a size for which there is no memory.
                doubtful.append(position)
                continue
            key = keys[position]
            try:
                if len(cold) < COLD_BLOBS:
                    found[position] = read(pack, offset, stored, KIND_BLOB, key[0], key[1:])
                    continue
            except NotResident:
                pass
            except (DamagedEntry, OSError):
                doubtful.append(position)
                continue
            try:
                cold.append((position, Place(pack, offset, stored), self._packs.descriptor(pack)))
            except OSError:
                doubtful.append(position)
        if cold:
            doubtful += await self._in_thread(lambda: _read_cold(digests, cold, found))
        for position in doubtful:
            found[position] = await self._whole(digests[position])
        return found

    async def open(self, digest: Digest) -> BlobReader:
        """:raises BlobMissing: if there is no such blob."""
        if digest == EMPTY:
            return MemoryReader(b"")
        for last_try in (False, True):
            (value,), table = self.look_up(Digests.of([digest]))
            place = _place(value, digest.size, table)
            if value is None or place is None:
                raise BlobMissing(digest)
            try:
                if isinstance(place, Place):
                    if place.stored != digest.size:
                        raise DamagedEntry("the index says that it has another length in its pack")
                    return MemoryReader(await self.entry(place, KIND_BLOB, digest.key[0], digest.hash))
                return self._filed(digest, place.row, value)
            except (DamagedEntry, OSError) as error:
                if isinstance(error, OSError) and not disk.is_lost(error):
                    raise disk.failure(error, f"reading blob {digest}") from error
                if last_try:
                    if isinstance(place, Place):
                        await self._quarantine.packed(digest, value, place, str(error))
                    else:
                        await self._quarantine.filed(digest, value, str(error))
        raise BlobMissing(digest)

    async def _whole(self, digest: Digest) -> bytes | None:
        try:
            reader = await self.open(digest)
        except BlobMissing:
            return None
        pieces = []
        offset = 0
        try:
            while piece := await reader.read(offset, reader.size):
                pieces.append(piece)
                offset += len(piece)
        except BlobMissing:
            return None
        finally:
            reader.close()
        return b"".join(pieces)

    async def entry(self, place: Place, kind: int, function: int, hash: bytes) -> bytes:
        """The content of an entry in a pack.

        :raises DamagedEntry: and `OSError`: if it is not there.
        """
        try:
            return self._packs.read_resident(place.pack, place.offset, place.stored, kind, function, hash)
        except NotResident:
            descriptor = self._packs.descriptor(place.pack)
            content: bytes = await self._in_thread(lambda: read_entry(descriptor.fd, place, kind, function, hash))
            return content

    def _filed(self, digest: Digest, row: FileRow, value: bytes) -> FileReader:
        file = Descriptor(FileName.of_row(digest.key, row).below(self._layout.blobs))

        async def damaged(reason: str) -> None:
            await self._quarantine.filed(digest, value, reason)
            raise BlobMissing(digest)

        return FileReader(file, row, self._in_thread, damaged)


def _read_cold(digests: Digests, cold: list[tuple[int, Place, Descriptor]], found: list[bytes | None]) -> list[int]:
    """Read what has to come from the disk into ``found``; the positions of what cannot be read."""
    doubtful = []
    for position, place, descriptor in cold:
        key = digests.keys[position]
        try:
            found[position] = read_entry(descriptor.fd, place, KIND_BLOB, key[0], key[1:])
        except (DamagedEntry, OSError):
            doubtful.append(position)
    return doubtful
