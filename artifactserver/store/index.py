"""The index: where every blob and every record is, in LMDB, shared by all processes that have the repository open.

Six tables; integers are big-endian.  Nothing in them is the only copy of anything: `artifactserver.store.rebuild`
makes the index again from packs and files.

``blobs``
    function (1 byte) + hash → one of

    * ``1``, size (8), pack (8), payload bytes as stored (4), offset (4): an entry in a pack;
    * ``2``, size (8), file serial (8), last use (4, seconds since the epoch), then CRC-32s (4 each), one for each MiB
      of the content and one for what is left: a file of its own.
``ages``
    last use (4) + blob key → nothing.  One row for each *file* in ``blobs``, oldest first.
``records``
    record hash (32) → state (1: 1 set, 2 deleted), sequence (8), pack (8), payload bytes (4), offset (4), then
    eviction epoch (8) and time (4) of the last walk that found everything present, then CRC-32 (4) of all that.
    A deleted record keeps its row, which says where its tombstone stands.
``names``
    kind (1) + instance, NUL, name, cut to 479 bytes, + record hash (32) → nothing.  One row for each set record.
``packs``
    pack id (8) → state (1: 1 open, 2 sealed, 3 retiring), committed bytes (8), entries (8), made at (8), renewed at
    (8; both seconds since the epoch), CRC-32 (4).
``meta``
    ``store``: the store's identity, as in ``format``.  ``version``: of these tables.  Counters (8): ``generation``
    goes up when a row of ``packs`` comes, goes or changes state; ``epoch`` when blobs were removed; ``sequence`` is
    that of the newest record change; ``next_pack``; ``pack_bytes`` and ``file_bytes`` are what packs and files hold.

Rules that every writer keeps: bytes are durable before the transaction that names them commits; an entry whose pack
has no row is missing; a blob in a retiring pack is made durable elsewhere before anybody is told that it is present;
a row is only removed by compare-and-delete, and neither a pack id nor a file serial is ever used twice.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import lmdb

from artifactserver.store.interface import NoRoom, StoreBroken
from artifactserver.store.layout import RepositoryProblem
from artifactserver.store.packs import Place

INDEX_VERSION = 1

#: Address space for the index, the same in every process; some 700 million blobs.  It costs no disk and no memory.
MAP_BYTES = 64 * 1024**3
#: Read transactions that all processes together can have open.
READERS = 1024

PACKED = 1
FILED = 2

OPEN = 1
SEALED = 2
RETIRING = 3

SET = 1
DELETED = 2

_PACKED = struct.Struct(">BQQII")
_FILED = struct.Struct(">BQQI")
_RECORD = struct.Struct(">BQQIIQI")
_PACK = struct.Struct(">BQQQQ")
_U64 = struct.Struct(">Q")
_U32 = struct.Struct(">I")
_NAME_BYTES = 479

#: The length of a ``blobs`` value that points into a pack, and how to read one; for the store's inner loops.
PACKED_BYTES = _PACKED.size
unpack_packed = _PACKED.unpack


def encode_packed(size: int, pack: int, stored: int, offset: int) -> bytes:
    """The ``blobs`` value of an entry in a pack."""
    return _PACKED.pack(PACKED, size, pack, stored, offset)


@dataclass(frozen=True, slots=True)
class FileRow:
    """The ``blobs`` value of a file.

    :ivar checksums: CRC-32s, four bytes each.
    """

    size: int
    serial: int
    used: int
    checksums: bytes

    def encode(self) -> bytes:
        return _FILED.pack(FILED, self.size, self.serial, self.used) + self.checksums

    @classmethod
    def decode(cls, value: bytes) -> FileRow | None:
        """The row, or `None` if ``value`` is not one."""
        if len(value) < _FILED.size or value[0] != FILED or (len(value) - _FILED.size) % 4:
            return None
        _, size, serial, used = _FILED.unpack_from(value)
        return cls(size, serial, used, value[_FILED.size :])


@dataclass(frozen=True, slots=True)
class PackRow:
    """A row of ``packs``; times in seconds since the epoch."""

    state: int
    committed: int
    entries: int
    made: int
    renewed: int

    def encode(self) -> bytes:
        packed = _PACK.pack(self.state, self.committed, self.entries, self.made, self.renewed)
        return packed + _U32.pack(zlib.crc32(packed))

    @classmethod
    def decode(cls, value: bytes) -> PackRow | None:
        packed = value[:-4]
        if len(packed) != _PACK.size or _U32.pack(zlib.crc32(packed)) != value[-4:]:
            return None
        return cls(*_PACK.unpack(packed))


@dataclass(frozen=True, slots=True)
class RecordRow:
    """A row of ``records``: the newest change of one record.

    :ivar epoch: the eviction epoch in which everything that the record requires was last seen to be present.
    :ivar walked: when that was, in seconds since the epoch; 0 for never.
    """

    state: int
    sequence: int
    place: Place
    epoch: int = 0
    walked: int = 0

    def encode(self) -> bytes:
        place = self.place
        packed = _RECORD.pack(
            self.state, self.sequence, place.pack, place.stored, place.offset, self.epoch, self.walked
        )
        return packed + _U32.pack(zlib.crc32(packed))

    @classmethod
    def decode(cls, value: bytes) -> RecordRow | None:
        packed = value[:-4]
        if len(packed) != _RECORD.size or _U32.pack(zlib.crc32(packed)) != value[-4:]:
            return None
        state, sequence, pack, stored, offset, epoch, walked = _RECORD.unpack(packed)
        return cls(state, sequence, Place(pack, offset, stored), epoch, walked)


@dataclass(frozen=True, slots=True)
class PackTable:
    """The packs as of one generation.

    :ivar ready: ids of packs whose entries are present without further ado.
    :ivar retiring: ids of packs whose entries have to be made durable elsewhere first.
    :ivar all: both.
    """

    generation: bytes | None = None
    ready: frozenset[int] = frozenset()
    retiring: frozenset[int] = frozenset()
    all: frozenset[int] = frozenset()


def name_row(kind: int, instance: str, name: str, record: bytes) -> bytes:
    """The key in ``names`` of a record whose hash is ``record``."""
    return (bytes([kind]) + instance.encode("utf-8") + b"\0" + name.encode("utf-8"))[:_NAME_BYTES] + record


@contextmanager
def _translated() -> Iterator[None]:
    """LMDB's errors as the store's."""
    try:
        yield
    except (lmdb.MapFullError, lmdb.DbsFullError) as error:
        raise NoRoom("the server's index is full") from error
    except lmdb.Error as error:
        raise StoreBroken(
            f"the server's index cannot be used ({error}); its administrator can make it again "
            "with 'artifactserver fsck --rebuild-index'"
        ) from error


class Changes:
    """One write transaction.  Only the thread that began it may use it."""

    def __init__(self, index: Index, txn: Any) -> None:
        self._index = index
        self._txn = txn

    def counter(self, name: bytes) -> int:
        value = self._txn.get(name, db=self._index.meta)
        return _U64.unpack(value)[0] if value is not None else 0

    def set_counter(self, name: bytes, value: int) -> None:
        self._txn.put(name, _U64.pack(value), db=self._index.meta)

    def count(self, name: bytes, by: int = 1) -> int:
        """Add to a counter; its new value."""
        value = max(0, self.counter(name) + by)
        self.set_counter(name, value)
        return value

    # Packs

    def pack(self, pack: int) -> PackRow | None:
        value = self._txn.get(_U64.pack(pack), db=self._index.packs)
        return PackRow.decode(value) if value is not None else None

    def packs(self) -> list[tuple[int, PackRow | None]]:
        """All rows, oldest id first; `None` for one that is damaged."""
        with self._txn.cursor(db=self._index.packs) as cursor:
            return [(_U64.unpack(key)[0], PackRow.decode(value)) for key, value in cursor]

    def put_pack(self, pack: int, row: PackRow) -> None:
        before = self.pack(pack)
        self._txn.put(_U64.pack(pack), row.encode(), db=self._index.packs)
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
        if self._txn.delete(_U64.pack(pack), db=self._index.packs):
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
        before = self.remove_blob(key, self.blob(key))
        self._txn.put(key, row.encode(), db=self._index.blobs)
        self._txn.put(_U32.pack(row.used) + key, b"", db=self._index.ages)
        self.count(b"file_bytes", row.size)
        return before

    def touch_file(self, key: bytes, value: bytes, used: int) -> None:
        """Note that a file was used, if its row is still ``value``."""
        row = FileRow.decode(value)
        if row is not None and used > row.used and self.blob(key) == value:
            self.put_file(key, replace(row, used=used))

    def remove_blob(self, key: bytes, value: bytes | None) -> FileRow | None:
        """Remove a blob's row if it is still ``value``; the file it named, if it named one."""
        if value is None or self.blob(key) != value:
            return None
        self._txn.delete(key, db=self._index.blobs)
        row = FileRow.decode(value)
        if row is not None:
            self._txn.delete(_U32.pack(row.used) + key, db=self._index.ages)
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

    def remove_record(self, record: bytes, name: bytes, row: RecordRow) -> bool:
        """Forget a record whose change was lost, if its row is still ``row``."""
        if self._txn.get(record, db=self._index.records) != row.encode():
            return False
        self._txn.delete(record, db=self._index.records)
        self._txn.delete(name, db=self._index.names)
        return True


class Index:
    """The index of one repository, open in this process.

    Reading happens in short transactions of its own, in the thread of the caller; none outlives a method.
    """

    meta: Any
    blobs: Any
    ages: Any
    records: Any
    names: Any
    packs: Any

    def __init__(self, path: Path, identity: str) -> None:
        self._path = path
        self._identity = identity
        self._table = PackTable()

    def open(self, create: bool = False) -> None:
        """Open the index, and look whether it is whole and belongs to this store.

        :param create: make it, if it is not there.
        :raises RepositoryProblem: if it cannot be used; the sentence names the repair.
        """
        data = self._path / "data.mdb"
        repair = f"run 'artifactserver fsck --rebuild-index {self._path.parent}'"
        size = data.stat().st_size if data.exists() else 0
        if not create and size == 0:
            raise RepositoryProblem(f"the index {data} is missing or empty: {repair}")
        try:
            self._env = lmdb.open(
                str(self._path), map_size=MAP_BYTES, max_dbs=8, max_readers=READERS, readahead=False, create=create
            )
        except lmdb.Error as error:
            raise RepositoryProblem(f"the index {data} cannot be opened ({error}): {repair}") from error
        try:
            # Touching a mapped page that the file does not have would end the process with SIGBUS.
            end = (self._env.info()["last_pgno"] + 1) * self._env.stat()["psize"]
            if data.stat().st_size < end:
                raise RepositoryProblem(f"the index {data} has been cut short: {repair}")
            self._env.reader_check()
            for table in ("meta", "blobs", "ages", "records", "names", "packs"):
                setattr(self, table, self._env.open_db(table.encode("ascii"), create=create))
            with self._env.begin(write=create) as txn:
                if create and txn.get(b"store", db=self.meta) is None:
                    txn.put(b"store", self._identity.encode("ascii"), db=self.meta)
                    txn.put(b"version", _U64.pack(INDEX_VERSION), db=self.meta)
                    txn.put(b"generation", _U64.pack(1), db=self.meta)
                    txn.put(b"epoch", _U64.pack(1), db=self.meta)
                store = txn.get(b"store", db=self.meta)
                version = txn.get(b"version", db=self.meta)
                with txn.cursor(db=self.packs) as cursor:
                    damaged = [key for key, value in cursor if PackRow.decode(value) is None]
        except lmdb.Error as error:
            self._env.close()
            raise RepositoryProblem(f"the index {data} is damaged ({error}): {repair}") from error
        except BaseException:
            self._env.close()
            raise
        if store != self._identity.encode("ascii"):
            problem = f"the index {data} belongs to another store: {repair}"
        elif version is None or damaged:
            problem = f"the index {data} is damaged: {repair}"
        elif version > _U64.pack(INDEX_VERSION):
            problem = f"the index {data} was made by a newer artifactserver: install that version"
        else:
            return
        self._env.close()
        raise RepositoryProblem(problem)

    def close(self) -> None:
        self._env.close()

    def clear_dead_readers(self) -> int:
        """Free the reader slots of processes that died; how many there were."""
        with _translated():
            return self._env.reader_check()

    def look_up(self, keys: Sequence[bytes]) -> tuple[list[bytes | None], PackTable]:
        """The rows of blobs, `None` for one that has none, and the packs as of the same moment."""
        try:
            with self._env.begin(db=self.blobs) as txn:
                generation = txn.get(b"generation", db=self.meta)
                table = self._table
                if generation != table.generation:
                    table = self._table = self._read_table(txn, generation)
                get = txn.get
                return [get(key) for key in keys], table
        except lmdb.Error as error:
            with _translated():
                raise error

    def look_up_record(self, record: bytes) -> tuple[RecordRow | None, PackTable, int]:
        """The row of a record, the packs, and the eviction epoch, as of one moment."""
        with _translated(), self._env.begin(db=self.records) as txn:
            generation = txn.get(b"generation", db=self.meta)
            if generation != self._table.generation:
                self._table = self._read_table(txn, generation)
            value = txn.get(record)
            epoch = txn.get(b"epoch", db=self.meta) or bytes(8)
            return RecordRow.decode(value) if value is not None else None, self._table, _U64.unpack(epoch)[0]

    def _read_table(self, txn: Any, generation: bytes | None) -> PackTable:
        ready: set[int] = set()
        retiring: set[int] = set()
        with txn.cursor(db=self.packs) as cursor:
            for key, value in cursor:
                row = PackRow.decode(value)
                if row is not None:
                    (retiring if row.state == RETIRING else ready).add(_U64.unpack(key)[0])
        return PackTable(generation, frozenset(ready), frozenset(retiring), frozenset(ready | retiring))

    def committed_packs(self) -> list[tuple[int, int]]:
        """Every pack's id, and how many of its bytes are committed."""
        rows = ((_U64.unpack(key)[0], PackRow.decode(value)) for key, value in self.rows("packs", limit=1 << 30))
        return [(pack, row.committed) for pack, row in rows if row is not None]

    def next_pack(self) -> int:
        """No pack has this id, or a higher one."""
        with _translated(), self._env.begin(db=self.meta) as txn:
            value = txn.get(b"next_pack")
            return _U64.unpack(value)[0] if value is not None else 0

    def counters(self) -> dict[str, int]:
        """The counters in ``meta``, and how many rows ``blobs`` and ``records`` have."""
        with _translated(), self._env.begin(db=self.meta) as txn:
            found = {
                name: _U64.unpack(txn.get(name.encode("ascii")) or bytes(8))[0]
                for name in ("generation", "epoch", "sequence", "next_pack", "pack_bytes", "file_bytes")
            }
            found["blobs"] = txn.stat(self.blobs)["entries"]
            found["records"] = txn.stat(self.records)["entries"]
            return found

    def rows(self, table: str, after: bytes = b"", limit: int = 10_000) -> list[tuple[bytes, bytes]]:
        """The next rows of a table behind ``after``, in order of their keys."""
        with _translated(), self._env.begin() as txn, txn.cursor(db=getattr(self, table)) as cursor:
            found: list[tuple[bytes, bytes]] = []
            if cursor.set_range(after) if after else cursor.first():
                for key, value in cursor:
                    if key != after:
                        found.append((key, value))
                        if len(found) == limit:
                            break
            return found

    @contextmanager
    def change(self) -> Iterator[Changes]:
        """One write transaction: durable when the block ends, undone when it raises.

        It waits for other processes' transactions, so it has no place in the reactor's thread.
        """
        with _translated():
            txn = self._env.begin(write=True)
            try:
                yield Changes(self, txn)
                self._commit(txn)
            except BaseException:
                txn.abort()
                raise

    def _commit(self, txn: Any) -> None:
        txn.commit()
