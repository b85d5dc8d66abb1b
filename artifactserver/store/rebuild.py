"""Making the index again from packs and files, when it is lost or damaged.

Everything is read and checked against its digest, so what comes back is right.  A blob that stands inside another one,
whose entry is damaged, may be found as well: somebody has uploaded it.  A change of a record that is found behind
damage might be such content too, and is taken only if it is proven (`artifactserver.store.records`).

The new index is built beside the old one and takes its place when it is complete: a rebuild that is cut off has changed
nothing and can be started again.
"""

from __future__ import annotations

import os
import shutil
import time
import uuid
from collections.abc import Callable
from pathlib import Path

from artifactserver.store import disk
from artifactserver.store.changes import Changes
from artifactserver.store.files import FileName
from artifactserver.store.fsck import Progress, Report, content_of_file, is_what_it_says, large_files
from artifactserver.store.index import Index
from artifactserver.store.interface import StoreError
from artifactserver.store.layout import Layout, RepositoryProblem
from artifactserver.store.packs import KIND_BLOB, KIND_RECORD, Place, entry_bytes, pack_ids, pack_name
from artifactserver.store.records import WrittenChange, is_proven
from artifactserver.store.rows import (
    DELETED,
    PACKED,
    SEALED,
    SET,
    PackRow,
    RecordRow,
    encode_packed,
    name_row,
    unpack_packed,
)
from artifactserver.store.scan import Damage, Entry, scan

#: Entries that go into one transaction.
ENTRIES = 10_000
#: Bytes of content that may be held for one transaction.
CONTENT_BYTES = 16 * 1024 * 1024


def rebuild_index(path: Path, progress: Progress, now: Callable[[], float]) -> Report:
    """Make the index of the repository at ``path`` again; the old one goes to ``quarantine/``.

    :raises RepositoryProblem: if the repository is in use or is none.
    """
    layout = Layout(path)
    identity = layout.identity()
    layout.check_writable(but="index")
    lock = layout.lock(exclusive=True)
    try:
        new = path / "index.new"
        shutil.rmtree(new, ignore_errors=True)
        new.mkdir()
        index = Index(new, identity)
        index.open(create=True)
        try:
            report = _Rebuild(layout, index, progress, now).run()
            disk.sync_directory(new)
            if layout.index.exists():
                aside = f"index.{time.strftime('%Y%m%dT%H%M%S')}.{uuid.uuid4().hex}"
                os.rename(layout.index, layout.quarantine / aside)
            os.rename(new, layout.index)
            disk.sync_directory(path)
            _clear_away(layout, index)
        finally:
            index.close()
        return report
    except (OSError, StoreError) as error:
        raise RepositoryProblem(
            f"the index of {path} cannot be made ({error}): run this as the server's user"
        ) from error
    finally:
        os.close(lock)


class _Rebuild:
    def __init__(self, layout: Layout, index: Index, progress: Progress, now: Callable[[], float]) -> None:
        self._layout = layout
        self._index = index
        self._progress = progress
        self._now = int(now())
        self._report = Report()
        #: The greatest sequence number of any change.
        self._sequence = 0

    def run(self) -> Report:
        packs = pack_ids(self._layout.packs)
        total = sum((self._layout.packs / pack_name(pack)).stat().st_size for pack in packs)
        total += sum(path.stat().st_size for path in large_files(self._layout.blobs))
        self._progress.begin("rebuilding the index", total)
        for pack in packs:
            self._take_pack(pack)
        for path in large_files(self._layout.blobs):
            self._take_file(path)
        with self._index.change() as changes:
            changes.set_counter(b"next_pack", packs[-1] + 1 if packs else 0)
            changes.set_counter(b"sequence", self._sequence)
            changes.set_counter(b"epoch", self._now)  # no row has a walk of this epoch yet
        counters = self._index.counters()
        self._report.blobs = counters["blobs"]
        self._report.content_bytes = counters["file_bytes"] + self._packed_bytes()
        return self._report

    def _packed_bytes(self) -> int:
        """Bytes of the blobs in packs, each counted once."""
        total = 0
        after = b""
        while rows := self._index.rows("blobs", after):
            total += sum(unpack_packed(value)[1] for _, value in rows if value[0] == PACKED)
            after = rows[-1][0]
        return total

    def _take_pack(self, pack: int) -> None:
        path = self._layout.packs / pack_name(pack)
        end = entries = size = 0
        chained = True  # each entry so far stood where the one before it ended
        group: list[Entry] = []
        for found in scan(path):
            if isinstance(found, Damage):
                self._report.problem(f"{path} is damaged at {found.offset}: {found.length} bytes belong to no entry")
                self._progress.advance(found.length)
                chained = False
                continue
            length = entry_bytes(len(found.hash), found.stored)
            self._progress.advance(length)
            if not is_what_it_says(found):
                self._report.problem(f"{path} holds content at {found.offset} that is not what its digest says")
                continue
            if found.kind == KIND_RECORD and not chained and not is_proven(found.content, self._index.identity):
                self._report.problem(
                    f"{path} holds what looks like a change of a record at {found.offset}, behind damage, and does not "
                    "show that this store wrote it: it may be content of a blob, and is not taken"
                )
                continue
            end = found.offset + length
            entries += 1
            group.append(found)
            size += found.stored
            if len(group) == ENTRIES or size > CONTENT_BYTES:
                self._take_entries(pack, group)
                group, size = [], 0
        self._take_entries(pack, group)
        with self._index.change() as changes:
            changes.put_pack(pack, PackRow(SEALED, end, entries, self._now, int(path.stat().st_mtime)))

    def _take_entries(self, pack: int, entries: list[Entry]) -> None:
        with self._index.change() as changes:
            rows = []
            for entry in entries:
                if entry.kind == KIND_BLOB:
                    row = encode_packed(entry.stored, pack, entry.stored, entry.offset)
                    rows.append((bytes([entry.function]) + entry.hash, row))
                else:
                    self._take_change(pack, entry, changes)
            changes.put_packed(rows)

    def _take_change(self, pack: int, entry: Entry, changes: Changes) -> None:
        written = WrittenChange.of(entry.hash, entry.content)
        if written is None:
            return
        sequence, time_ns = written.order
        before = changes.record(entry.hash)
        # The time stands, for now, where the epoch of the last walk will be noted; no epoch is as large.
        if before is not None and (before.sequence, before.epoch) >= (sequence, time_ns):
            return
        key = written.change.key
        state = SET if written.change.record is not None else DELETED
        if before is None or before.state != state:
            self._report.records += (1 if state == SET else 0) - (
                1 if before is not None and before.state == SET else 0
            )
        row = RecordRow(state, sequence, Place(pack, entry.offset, entry.stored), epoch=time_ns)
        changes.put_record(entry.hash, name_row(key.kind, key.instance, key.name, entry.hash), row)
        self._sequence = max(self._sequence, sequence)

    def _take_file(self, path: Path) -> None:
        name = FileName.parse(path.name)
        try:
            sound, row = content_of_file(path, self._progress)
        except OSError as error:
            if not disk.is_lost(error):
                raise
            sound, row = False, None
        if name is None or row is None or not sound:
            self._report.problem(f"{path} does not hold what its name says: it goes to quarantine")
            return
        with self._index.change() as changes:
            changes.put_file(name.key, row)


def _clear_away(layout: Layout, index: Index) -> None:
    """Remove the files that the new index has no use for, now that it is in place; those without a row are damaged."""
    for path in large_files(layout.blobs):
        name = FileName.parse(path.name)
        if name is None or index.names_file(name):
            continue
        if index.look_up([name.key])[0] == [None]:
            os.rename(path, layout.quarantine / path.name)
        else:
            disk.unlink(path)
