"""The index: where every blob and every record is, in LMDB, shared by all processes that have the repository open.

`artifactserver.store.rows` says what is in it.  Reading happens in short transactions; writing in one per batch, by the
committer's thread alone.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lmdb
from twisted.logger import Logger

from artifactserver.store import disk
from artifactserver.store.changes import Changes
from artifactserver.store.files import FileName
from artifactserver.store.interface import NoRoom, StoreBroken, StoreError, TooBusy
from artifactserver.store.layout import RepositoryProblem
from artifactserver.store.rows import (
    INDEX_VERSION,
    RETIRING,
    SET,
    U64,
    FileRow,
    PackRow,
    PackTable,
    RecordRow,
)

_log = Logger()

#: Address space for the index, the same in every process; some 700 million blobs.  It costs no disk and no memory.
MAP_BYTES = 64 * 1024**3
#: With less free space than this, in bytes, a failed write of the index is put down to that.
FULL_BYTES = 1024 * 1024
#: How much of the index a start brings into memory, in bytes: all of it for some ten million blobs.
WARM_BYTES = 1024**3
#: And how much of it at once.
WARM_PIECE = 1024 * 1024
#: Read transactions that all processes together can have open.
READERS = 1024


class Index:
    """The index of one repository, open in this process.

    Reading happens in short transactions of its own, in the thread of the caller; none outlives a method.

    :ivar identity: of the store.
    """

    meta: Any
    blobs: Any
    ages: Any
    records: Any
    names: Any
    packs: Any

    def __init__(self, path: Path, identity: str) -> None:
        self._path = path
        self.identity = identity
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
            raise self._cannot_open(error, repair) from error
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
                    txn.put(b"store", self.identity.encode("ascii"), db=self.meta)
                    txn.put(b"version", U64.pack(INDEX_VERSION), db=self.meta)
                    txn.put(b"generation", U64.pack(1), db=self.meta)
                    txn.put(b"epoch", U64.pack(1), db=self.meta)
                store = txn.get(b"store", db=self.meta)
                version = txn.get(b"version", db=self.meta)
                with txn.cursor(db=self.packs) as cursor:
                    damaged = [key for key, value in cursor if PackRow.decode(value) is None]
        except lmdb.Error as error:
            self._env.close()
            raise self._cannot_open(error, repair) from error
        except BaseException:
            self._env.close()
            raise
        if create:
            disk.sync_directory(self._path)
        if store != self.identity.encode("ascii"):
            problem = f"the index {data} belongs to another store: {repair}"
        elif version is None or damaged:
            problem = f"the index {data} is damaged: {repair}"
        elif version > U64.pack(INDEX_VERSION):
            problem = f"the index {data} was made by a newer artifactserver: install that version"
        else:
            return
        self._env.close()
        raise RepositoryProblem(problem)

    def _cannot_open(self, error: lmdb.Error, repair: str) -> RepositoryProblem:
        data = self._path / "data.mdb"
        for path in (data, self._path / "lock.mdb"):
            if path.exists() and not os.access(path, os.R_OK | os.W_OK):
                return RepositoryProblem(
                    f"{path} belongs to another user: run the server as that user, or give the whole repository to "
                    "this one with 'chown -R'"
                )
        if isinstance(error, lmdb.DiskError) or self._disk_is_full():
            return RepositoryProblem(f"there is no space left for the index {data}: make room")
        return RepositoryProblem(f"the index {data} is damaged ({error}): {repair}")

    def close(self) -> None:
        self._env.close()

    def warm(self, go_on: Callable[[], bool]) -> None:
        """Bring the index into memory, unless it is there.  It waits for the disk, so it belongs into a thread.

        Look-ups happen in the reactor's thread; a thousand of them would wait for a thousand pages, one by one.

        :param go_on: whether there is still a reason to.
        """
        piece = bytearray(WARM_PIECE)
        with open(self._path / "data.mdb", "rb", buffering=0) as file:
            for _ in range(0, WARM_BYTES, WARM_PIECE):
                if not go_on() or not file.readinto(piece):
                    return

    def clear_dead_readers(self) -> int:
        """Free the reader slots of processes that died; how many there were."""
        with self._translated():
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
                if len(keys) == 1 or len(distinct := set(keys)) == len(keys):
                    return [get(key) for key in keys], table
                # The row of a large blob is large: who names one a thousand times gets it a thousand times, but once.
                rows = {key: get(key) for key in distinct}
                return [rows[key] for key in keys], table
        except lmdb.Error as error:
            raise self._failure(error) from error

    def state(self) -> tuple[bytes, bytes]:
        """The generation of the packs and the eviction epoch: while both stay, nothing has been removed."""
        try:
            with self._env.begin(db=self.meta) as txn:
                return txn.get(b"generation", b""), txn.get(b"epoch", b"")
        except lmdb.Error as error:
            raise self._failure(error) from error

    def names_file(self, name: FileName) -> bool:
        """Whether the blob is in the file of this name, according to its row."""
        value = self.look_up([name.key])[0][0]
        row = FileRow.decode(value) if value is not None else None
        return row is not None and row.serial == name.serial

    def look_up_record(self, record: bytes) -> tuple[RecordRow | None, PackTable, int]:
        """The row of a record, the packs, and the eviction epoch, as of one moment."""
        with self._translated(), self._env.begin(db=self.records) as txn:
            generation = txn.get(b"generation", db=self.meta)
            table = self._table
            if generation != table.generation:
                table = self._table = self._read_table(txn, generation)
            value = txn.get(record)
            epoch = txn.get(b"epoch", db=self.meta) or bytes(8)
            return RecordRow.decode(value) if value is not None else None, table, U64.unpack(epoch)[0]

    def _read_table(self, txn: Any, generation: bytes | None) -> PackTable:
        ready: set[int] = set()
        retiring: set[int] = set()
        with txn.cursor(db=self.packs) as cursor:
            for key, value in cursor:
                row = PackRow.decode(value)
                if row is not None:
                    (retiring if row.state == RETIRING else ready).add(U64.unpack(key)[0])
        return PackTable(generation, frozenset(ready), frozenset(retiring), frozenset(ready | retiring))

    def committed_packs(self) -> list[tuple[int, int]]:
        """Every pack's id, and how many of its bytes are committed."""
        rows = ((U64.unpack(key)[0], PackRow.decode(value)) for key, value in self.rows("packs", limit=1 << 30))
        return [(pack, row.committed) for pack, row in rows if row is not None]

    def next_pack(self) -> int:
        """No pack has this id, or a higher one."""
        with self._translated(), self._env.begin(db=self.meta) as txn:
            value = txn.get(b"next_pack")
            return U64.unpack(value)[0] if value is not None else 0

    def counters(self) -> dict[str, int]:
        """The counters in ``meta``, and how many rows ``blobs`` and ``records`` have."""
        with self._translated(), self._env.begin(db=self.meta) as txn:
            found = {
                name: U64.unpack(txn.get(name.encode("ascii")) or bytes(8))[0]
                for name in ("generation", "epoch", "sequence", "next_pack", "pack_bytes", "file_bytes")
            }
            found["blobs"] = txn.stat(self.blobs)["entries"]
            found["records"] = txn.stat(self.records)["entries"]
            return found

    def count_names(self) -> tuple[int, int]:
        """How many rows ``names`` has, and how many records are set, as of one moment."""
        with self._translated(), self._env.begin() as txn, txn.cursor(db=self.records) as cursor:
            records = sum(value[0] == SET for value in cursor.iternext(keys=False, values=True))
            return txn.stat(self.names)["entries"], records

    def rows(self, table: str, after: bytes = b"", limit: int = 10_000) -> list[tuple[bytes, bytes]]:
        """The next rows of a table behind ``after``, in order of their keys."""
        with self._translated(), self._env.begin() as txn, txn.cursor(db=getattr(self, table)) as cursor:
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
        with self._translated():
            txn = self._env.begin(write=True)
            try:
                yield Changes(self, txn)
                self._commit(txn)
            except BaseException:
                txn.abort()
                raise

    def _commit(self, txn: Any) -> None:
        txn.commit()

    @contextmanager
    def _translated(self) -> Iterator[None]:
        """LMDB's errors as the store's."""
        try:
            yield
        except lmdb.Error as error:
            raise self._failure(error) from error

    def _failure(self, error: lmdb.Error) -> StoreError:
        """The store's error for one of LMDB's, in words for the peer; the log has LMDB's own."""
        if isinstance(error, lmdb.MapFullError | lmdb.DbsFullError | lmdb.TxnFullError):
            return NoRoom("the server's index is full")
        if isinstance(error, lmdb.ReadersFullError):
            return TooBusy("too many processes read the server's index: try again in a moment")
        if isinstance(error, lmdb.DiskError) or self._disk_is_full():
            return NoRoom("the server's disk is full: its index cannot grow")
        if isinstance(error, lmdb.CorruptedError | lmdb.PageNotFoundError | lmdb.InvalidError | lmdb.PanicError):
            _log.critical(
                "the index {path} is damaged ({error}): stop the server and run 'artifactserver fsck --rebuild-index "
                "{repo}'",
                path=str(self._path),
                repo=str(self._path.parent),
                error=error,
            )
        return StoreBroken(f"the server's index cannot be used ({error})")

    def _disk_is_full(self) -> bool:
        # LMDB takes a write that ends early for an input or output error.
        status = os.statvfs(self._path)
        return status.f_bavail * status.f_frsize < FULL_BYTES
