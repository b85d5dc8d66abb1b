"""What a write transaction may do to the index; `artifactserver.store.rows` says what that means.

It begins and ends in `artifactserver.store.index.Index.change`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from artifactserver.store.rows import OPEN, SET, U32, U64, FileRow, PackRow, RecordRow

if TYPE_CHECKING:
    from artifactserver.store.index import Index


class Changes:
    """One write transaction.  Only the thread that began it may use it."""

    def __init__(self, index: Index, txn: Any) -> None:
        self._index = index
        self._txn = txn

    def counter(self, name: bytes) -> int:
        value = self._txn.get(name, db=self._index.meta)
        return U64.unpack(value)[0] if value is not None else 0

    def set_counter(self, name: bytes, value: int) -> None:
        self._txn.put(name, U64.pack(value), db=self._index.meta)

    def count(self, name: bytes, by: int = 1) -> int:
        """Add to a counter; its new value."""
        value = max(0, self.counter(name) + by)
        self.set_counter(name, value)
        return value

    # Packs

    def pack(self, pack: int) -> PackRow | None:
        value = self._txn.get(U64.pack(pack), db=self._index.packs)
        return PackRow.decode(value) if value is not None else None

    def packs(self) -> list[tuple[int, PackRow | None]]:
        """All rows, oldest id first; `None` for one that is damaged."""
        with self._txn.cursor(db=self._index.packs) as cursor:
            return [(U64.unpack(key)[0], PackRow.decode(value)) for key, value in cursor]

    def put_pack(self, pack: int, row: PackRow) -> None:
        before = self.pack(pack)
        self._txn.put(U64.pack(pack), row.encode(), db=self._index.packs)
        self.count(b"pack_bytes", row.committed - (before.committed if before else 0))
        if before is None or before.state != row.state:
            self.count(b"generation")

    def new_pack(self, now: int) -> int:
        """A row for a new and open pack; its id."""
        pack = self.count(b"next_pack") - 1
        self.put_pack(pack, PackRow(OPEN, 0, 0, now, now))
        return pack

    def set_pack_state(self, pack: int, state: int) -> None:
        row = self.pack(pack)
        if row is not None:
            self.put_pack(pack, replace(row, state=state))

    def drop_pack(self, pack: int) -> None:
        """Every entry in this pack is missing from now on; the caller removes the file after the commit."""
        row = self.pack(pack)
        if self._txn.delete(U64.pack(pack), db=self._index.packs):
            self.count(b"pack_bytes", -(row.committed if row else 0))
            self.count(b"generation")
            self.count(b"epoch")

    # Blobs

    def blob(self, key: bytes) -> bytes | None:
        value: bytes | None = self._txn.get(key, db=self._index.blobs)
        return value

    def put_packed(self, items: Sequence[tuple[bytes, bytes]]) -> None:
        """Entries in packs: pairs of blob key and `encode_packed`."""
        with self._txn.cursor(db=self._index.blobs) as cursor:
            cursor.putmulti(items)

    def put_file(self, key: bytes, row: FileRow) -> FileRow | None:
        """A blob in a file of its own; the file that it takes the place of, if there was one."""
        before = self._take_out(key, self.blob(key))
        self._txn.put(key, row.encode(), db=self._index.blobs)
        self._txn.put(U32.pack(row.used) + key, b"", db=self._index.ages)
        self.count(b"file_bytes", row.size)
        return before

    def touch_file(self, key: bytes, value: bytes, used: int) -> None:
        """Note that a file was used, if its row is still ``value``."""
        row = FileRow.decode(value)
        if row is not None and used > row.used and self.blob(key) == value:
            self.put_file(key, replace(row, used=used))

    def remove_blob(self, key: bytes, value: bytes | None) -> bool:
        """Remove a blob's row if it is still ``value``, and let everybody know that something is missing now."""
        if value is None or self.blob(key) != value:
            return False
        self._take_out(key, value)
        self.count(b"epoch")
        return True

    def _take_out(self, key: bytes, value: bytes | None) -> FileRow | None:
        """Remove a blob's row if it is still ``value``; the file it named, if it named one."""
        if value is None or self.blob(key) != value:
            return None
        self._txn.delete(key, db=self._index.blobs)
        row = FileRow.decode(value)
        if row is not None:
            self._txn.delete(U32.pack(row.used) + key, db=self._index.ages)
            self.count(b"file_bytes", -row.size)
        return row

    # Records

    def record(self, record: bytes) -> RecordRow | None:
        value = self._txn.get(record, db=self._index.records)
        return RecordRow.decode(value) if value is not None else None

    def put_record(self, record: bytes, name: bytes, row: RecordRow) -> None:
        """The newest change of a record; ``name`` is its key in ``names``."""
        self._txn.put(record, row.encode(), db=self._index.records)
        if row.state == SET:
            self._txn.put(name, b"", db=self._index.names)
        else:
            self._txn.delete(name, db=self._index.names)

    def note_walk(self, record: bytes, sequence: int, epoch: int, walked: int) -> None:
        """Note that everything a record requires was there, if the record has not changed since."""
        row = self.record(record)
        if row is not None and row.sequence == sequence:
            self._txn.put(record, replace(row, epoch=epoch, walked=walked).encode(), db=self._index.records)

    def remove_record(self, record: bytes, name: bytes | None, row: RecordRow) -> bool:
        """Forget a record whose change was lost, if its row is still ``row``.

        :param name: its key in ``names``, `None` if it has none there.
        """
        if self._txn.get(record, db=self._index.records) != row.encode():
            return False
        self._txn.delete(record, db=self._index.records)
        if name is not None:
            self._txn.delete(name, db=self._index.names)
        return True
