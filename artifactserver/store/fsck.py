"""Checking a repository: is every blob what its digest says, and does every row of the index lead to what it names?

Packs are read from end to end, in order, and so is every file; the index is walked in slices.  It may run beside a
server: content only ever gets added at the end, and what is added meanwhile is left for the next check.  Memory does
not grow with the number of blobs.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Coroutine, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from twisted.internet.defer import Deferred, maybeDeferred

from artifactserver.store import disk
from artifactserver.store.batch import Work
from artifactserver.store.damage import Quarantine
from artifactserver.store.digest import HASHERS, Digest
from artifactserver.store.files import Checksums, FileName, blocks_of
from artifactserver.store.index import Index
from artifactserver.store.interface import StoreError
from artifactserver.store.layout import RepositoryProblem
from artifactserver.store.packs import (
    KIND_BLOB,
    KIND_RECORD,
    DamagedEntry,
    Place,
    entry_bytes,
    pack_name,
    read_entry,
)
from artifactserver.store.records import RECORD_HASH_BYTES, WrittenChange
from artifactserver.store.repository import Repository
from artifactserver.store.rows import PACKED, PACKED_BYTES, SET, FileRow, RecordRow, unpack_packed
from artifactserver.store.scan import Damage, Entry, scan

#: Problems that are named one by one; of the rest only the number is given.
NAMED_PROBLEMS = 1000


class Progress(Protocol):
    """Somebody who watches."""

    def begin(self, doing: str, total: int) -> None:
        """A step of ``total`` bytes begins."""

    def advance(self, count: int) -> None:
        """``count`` more bytes of it are done."""


@dataclass(slots=True)
class Report:
    """What was found.

    :ivar problems: a sentence for each of the first `NAMED_PROBLEMS`.
    :ivar remarks: what is not as it was written, though nothing that is wanted stands there any more; as many at most.
    """

    blobs: int = 0
    records: int = 0
    content_bytes: int = 0
    problem_count: int = 0
    problems: list[str] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)

    def problem(self, sentence: str) -> None:
        self.problem_count += 1
        if len(self.problems) < NAMED_PROBLEMS:
            self.problems.append(sentence)

    def remark(self, sentence: str) -> None:
        if len(self.remarks) < NAMED_PROBLEMS:
            self.remarks.append(sentence)


def content_of_file(path: Path, progress: Progress) -> tuple[bool, FileRow | None]:
    """Whether a large blob's file holds what its name says, and the row that it should have in the index."""
    name = FileName.parse(path.name)
    if name is None:
        return False, None
    hasher, checksums, size = HASHERS[name.function](), Checksums(), 0
    fd = os.open(path, os.O_RDONLY)
    try:
        used = int(os.fstat(fd).st_mtime)
        for block in blocks_of(fd):
            hasher.update(block)
            checksums.update(block)
            size += len(block)
            progress.advance(len(block))
    finally:
        os.close(fd)
    return hasher.digest() == name.hash, FileRow(size, name.serial, used, checksums.value())


def is_what_it_says(entry: Entry) -> bool:
    """Whether an entry with a right checksum also has the content that its digest names."""
    if entry.kind == KIND_RECORD:
        return WrittenChange.of(entry.hash, entry.content) is not None
    hasher = HASHERS.get(entry.function)
    return entry.kind == KIND_BLOB and hasher is not None and hasher(entry.content).digest() == entry.hash


def large_files(blobs: Path) -> Iterator[Path]:
    """Every file below ``blobs/`` that has the name of a large blob."""
    for directory in sorted(blobs.iterdir()):
        if directory.is_dir():
            for path in sorted(directory.iterdir()):
                if FileName.parse(path.name) is not None:
                    yield path


def check(path: Path, progress: Progress, repair: bool = False) -> Report:
    """Check everything in the repository at ``path``.

    :param repair: put aside what is damaged, so that it is missing from now on and clients upload it again.
    :raises RepositoryProblem: if the repository cannot be opened.
    """
    repository = Repository(path)
    try:
        return _Check(repository, progress, repair).run()
    except (OSError, StoreError) as error:
        raise RepositoryProblem(
            f"{path} cannot be checked ({error}): run this as the user that the server runs as"
        ) from error
    finally:
        repository.close()


class _Check:
    def __init__(self, repository: Repository, progress: Progress, repair: bool) -> None:
        self._layout = repository.layout
        self._index: Index = repository.index
        self._progress = progress
        self._repair = repair
        self._quarantine = Quarantine(self._layout, self._commit)
        self._report = Report()

    def _commit(self, work: Work) -> Deferred[Any]:
        def commit() -> Any:
            with self._index.change() as changes:
                return work.edit(changes) if work.edit is not None else None

        return maybeDeferred(commit)

    def run(self) -> Report:
        committed = dict(self._index.committed_packs())
        files = self._index.counters()["file_bytes"]
        self._progress.begin("checking", sum(committed.values()) + files)
        sound = {pack: self._scan_pack(pack, length) for pack, length in committed.items()}
        named: Counter[int] = Counter()
        for rows in self._slices("blobs"):
            packs = self._packs()
            for key, value in rows:
                if len(value) == PACKED_BYTES and value[0] == PACKED:
                    pack = unpack_packed(value)[2]
                    if pack in packs:  # else the blob is missing, as all in that pack are
                        self._report.blobs += 1
                        named[pack] += _fingerprint(key)
                else:
                    self._report.blobs += 1
                    self._check_file(key, value)
        doubtful = {pack for pack in named if named[pack] != sound.get(pack)}
        if doubtful:
            self._check_packed(doubtful)
        self._check_records()
        self._check_orphans()
        return self._report

    def _slices(self, table: str) -> Iterator[list[tuple[bytes, bytes]]]:
        """All rows of a table; between two slices of them others may write."""
        after = b""
        while rows := self._index.rows(table, after):
            yield rows
            after = rows[-1][0]

    def _rows(self, table: str) -> Iterator[tuple[bytes, bytes]]:
        for rows in self._slices(table):
            yield from rows

    def _packs(self) -> frozenset[int]:
        """The packs whose entries count, as of now."""
        return self._index.look_up([])[1].all

    def _scan_pack(self, pack: int, length: int) -> int:
        """Which rows of the index lead to a sound blob in this pack: the sum of their fingerprints.

        Damage is a problem only if a row leads to it; that shows when all rows are summed up in the same way.
        """
        path = self._layout.packs / pack_name(pack)
        sound = 0
        group: list[Entry] = []
        try:
            if length and path.stat().st_size < length:
                self._report.remark(f"{path} has been cut short: {length} bytes are committed")
            for found in scan(path, length):
                if isinstance(found, Damage):
                    self._report.remark(f"{path} is damaged at {found.offset}: {found.length} bytes belong to no entry")
                    self._progress.advance(found.length)
                    continue
                self._progress.advance(entry_bytes(len(found.hash), found.stored))
                if not is_what_it_says(found):
                    self._report.remark(f"{path} holds content at {found.offset} that is not what its digest says")
                elif found.kind == KIND_BLOB:
                    group.append(found)
                    if len(group) == 1000:
                        sound += self._sum_named(pack, group)
                        group = []
        except FileNotFoundError:
            if length and pack in self._packs():
                self._report.remark(f"{path} is missing")
        return sound + self._sum_named(pack, group)

    def _sum_named(self, pack: int, entries: list[Entry]) -> int:
        keys = [bytes([entry.function]) + entry.hash for entry in entries]
        values, _ = self._index.look_up(keys)
        total = 0
        for entry, key, value in zip(entries, keys, values, strict=True):
            if value is not None and len(value) == PACKED_BYTES and value[0] == PACKED:
                _, size, there, stored, offset = unpack_packed(value)
                if (there, offset, stored, size) == (pack, entry.offset, entry.stored, entry.stored):
                    total += _fingerprint(key)
                    self._report.content_bytes += size
        return total

    def _check_packed(self, packs: set[int]) -> None:
        """Find the rows that do not lead to a sound blob, in packs where some do not."""
        for key, value in self._rows("blobs"):
            if len(value) != PACKED_BYTES or value[0] != PACKED:
                continue
            _, size, pack, stored, offset = unpack_packed(value)
            if pack not in packs:
                continue
            place = Place(pack, offset, stored)
            digest = Digest(key, size)
            reason = self._trouble(digest, place)
            if reason is not None and self._index.look_up([key])[0] == [value] and pack in self._packs():
                self._report.problem(f"blob {digest} is damaged: {reason}")
                if self._repair:
                    self._wait(self._quarantine.packed(digest, value, place, reason))

    def _trouble(self, digest: Digest, place: Place) -> str | None:
        try:
            content = self._read(place, KIND_BLOB, digest.key[0], digest.hash)
        except (DamagedEntry, OSError) as error:
            return _why(error)
        return None if digest.matches(content) else "the content has another hash"

    def _read(self, place: Place, kind: int, function: int, hash: bytes) -> bytes:
        fd = os.open(self._layout.packs / pack_name(place.pack), os.O_RDONLY)
        try:
            return read_entry(fd, place, kind, function, hash)
        finally:
            os.close(fd)

    def _check_file(self, key: bytes, value: bytes) -> None:
        row = FileRow.decode(value)
        digest = Digest(key, row.size if row is not None else 0)
        reason = None
        if row is None:
            reason = "its row in the index is damaged"
        else:
            path = FileName.of_row(key, row).below(self._layout.blobs)
            try:
                sound, there = content_of_file(path, self._progress)
                if not sound or there is None:
                    reason = f"{path} does not hold what its name says"
                elif (there.size, there.checksums) != (row.size, row.checksums):
                    reason = f"{path} is not what its row in the index says"
            except OSError as error:
                reason = _why(error)
        if reason is None:
            self._report.content_bytes += digest.size
            return
        (now,), _ = self._index.look_up([key])
        if now is not None and (now == value or _serial(now) == _serial(value) is not None):
            self._report.problem(f"blob {digest} is damaged: {reason}")
            if self._repair:
                self._wait(self._quarantine.filed(digest, now, reason))
        # Else it was replaced or removed while we looked.

    def _check_records(self) -> None:
        for rows in self._slices("records"):
            damaged = self._damaged_records(rows, self._packs())
            if damaged and self._repair:
                names = self._names_of(set(damaged))
                for record, (row, reason) in damaged.items():
                    self._wait(self._quarantine.record(record, names.get(record), row, reason))
        names_count, records = self._index.count_names()
        if names_count != records:
            self._report.problem(
                f"the index lists {names_count} names of {records} records: "
                "'artifactserver fsck --rebuild-index' mends that"
            )

    def _damaged_records(
        self, rows: Iterable[tuple[bytes, bytes]], packs: frozenset[int]
    ) -> dict[bytes, tuple[RecordRow, str]]:
        """Of some rows of ``records`` those that do not lead to a change, and why, by record."""
        damaged = {}
        for record, value in rows:
            row = RecordRow.decode(value)
            if row is None:
                self._report.problem(
                    f"the index row of record {record.hex()} is damaged: 'artifactserver fsck --rebuild-index' mends it"
                )
                continue
            if row.place.pack not in packs:  # the record is gone, as all in that pack are
                continue
            # The tombstones of deleted records as well: a rebuilt index would bring back what they have deleted.
            reason = self._record_trouble(record, row)
            if reason is None:
                self._report.records += row.state == SET
                continue
            now, table, _ = self._index.look_up_record(record)
            if now is not None and now.place == row.place and now.place.pack in table.all:
                self._report.problem(f"record {record.hex()} is damaged: {reason}")
                damaged[record] = now, reason
        return damaged

    def _names_of(self, records: set[bytes]) -> dict[bytes, bytes]:
        """The keys in ``names`` of records whose own name was lost with their entry; that takes a look at all names."""
        return {
            name[-RECORD_HASH_BYTES:]: name for name, _ in self._rows("names") if name[-RECORD_HASH_BYTES:] in records
        }

    def _record_trouble(self, record: bytes, row: RecordRow) -> str | None:
        try:
            content = self._read(row.place, KIND_RECORD, 0, record)
        except (DamagedEntry, OSError) as error:
            return _why(error)
        return None if WrittenChange.of(record, content) is not None else "it is no change of this record"

    def _wait(self, repair: Coroutine[Any, Any, None]) -> None:
        """Drive a repair, which never waits here, to its end."""
        Deferred.fromCoroutine(repair).addErrback(
            lambda failure: self._report.problem(f"that could not be repaired: {failure.getErrorMessage()}")
        )

    def _check_orphans(self) -> None:
        for path in large_files(self._layout.blobs):
            name = FileName.parse(path.name)
            if name is None or (self._layout.incoming / path.name).exists():
                continue
            (value,), table = self._index.look_up([name.key])
            if _serial(value) == name.serial or not path.exists():
                continue
            if not _leads_somewhere(value, table.all):
                self._report.problem(f"{path} is not in the index: 'artifactserver fsck --rebuild-index' takes it in")
                continue
            # Whoever committed the later upload died before removing this one, or is about to.
            self._report.remark(f"{path} is not needed: the same blob was uploaded again")
            if self._repair:
                disk.unlink(path)


def _fingerprint(key: bytes) -> int:
    """Sums of these tell sets of blobs apart, even if one of them has changed for another meanwhile."""
    return int.from_bytes(key[-8:], "big")


def _serial(value: bytes | None) -> int | None:
    """The serial of the file that a row of ``blobs`` names, if it names one."""
    row = FileRow.decode(value) if value is not None else None
    return row.serial if row is not None else None


def _leads_somewhere(value: bytes | None, packs: frozenset[int]) -> bool:
    """Whether a row of ``blobs`` says where the blob is."""
    if value is not None and len(value) == PACKED_BYTES and value[0] == PACKED:
        return unpack_packed(value)[2] in packs
    return _serial(value) is not None


def _why(error: DamagedEntry | OSError) -> str:
    """What is wrong with content that could not be read.

    :raises OSError: the error, if it says something about this process rather than about the content.
    """
    if isinstance(error, OSError) and not disk.is_lost(error):
        raise error
    return str(error)
