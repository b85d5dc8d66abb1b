"""What is committed together, and the order of steps that makes an acknowledgement true.

1. The bytes of small blobs are appended to this process's pack, and files that are ready get their name in ``blobs/``.
2. Pack and directories are synced.  Record changes are numbered under the index's write lock, so when a batch has
   some, they are appended and the pack is synced after the transaction has begun.
3. One transaction names it all in the index, durably.

Only then may anybody be told that anything was stored.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from twisted.python.failure import Failure

from artifactserver.store import disk
from artifactserver.store.changes import Changes
from artifactserver.store.files import FileName
from artifactserver.store.index import Index
from artifactserver.store.interface import Blob, Blobs, StoreError
from artifactserver.store.layout import Layout
from artifactserver.store.packs import (
    KIND_BLOB,
    KIND_RECORD,
    PACK_BYTES,
    PackWriter,
    Place,
    encode_head,
    entry_bytes,
)
from artifactserver.store.records import Change, prove, record_hash
from artifactserver.store.rows import DELETED, OPEN, SEALED, SET, RecordRow, encode_packed, name_row
from artifactserver.store.uploads import Received

#: Bytes that an entry takes besides its content, about: it is that for the digest function that everybody uses.
HEAD_BYTES = entry_bytes(32, 0)

#: What an edit does to the index, given the transaction; what it returns goes to whoever asked for it.
Edit = Callable[[Changes], Any]


@dataclass(frozen=True, slots=True)
class Work:
    """What one call wants to see committed: all of it, or nothing.

    :ivar blobs: checked content for the pack.
    :ivar file: a received file.
    :ivar changes: changes of records.
    :ivar epoch: the eviction epoch in which everything that the changed records require was seen to be present.
    :ivar edit: anything else; its result is the result of the whole.
    """

    blobs: Sequence[Blob] = ()
    file: Received | None = None
    changes: Sequence[Change] = ()
    epoch: int = 0
    edit: Edit | None = None

    @property
    def size(self) -> int:
        """Bytes that go into the pack, about."""
        contents = sum(Blobs.of(self.blobs).digests.sizes)
        return contents + HEAD_BYTES * len(self.blobs) + sum(change.size for change in self.changes)

    @property
    def appends(self) -> bool:
        """Whether any of it goes into a pack."""
        return bool(self.blobs or self.changes)


class PackTaken(Exception):
    """The pack was retired or dropped while it was appended to: the batch has to go to another one."""


class Batch:
    """Several pieces of work on their way through the steps.

    :param now: seconds since the epoch.
    :param directories: below ``blobs/``, those whose names are known to be durable; added to.
    """

    def __init__(
        self,
        works: Sequence[Work],
        layout: Layout,
        index: Index,
        now: Callable[[], float],
        directories: set[Path],
    ) -> None:
        self._works = works
        self._layout = layout
        self._index = index
        self._now = now
        self._directories = directories
        self._linked: list[FileName] = []
        #: What each piece of work came to; a `Failure` for one that failed by itself.
        self.outcomes: list[Any] = [None] * len(works)
        #: Whether a transaction that failed may have become durable all the same.
        self.perhaps_committed = False

    @property
    def appends(self) -> bool:
        return any(work.appends for work in self._works)

    def commit(self, writer: PackWriter | None) -> None:
        """Go through all the steps.

        :param writer: the pack to append to, if there is anything to append.
        :raises OSError: and `StoreError`, and `PackTaken`: if any step fails; `undo` has to follow.
        """
        packed: dict[bytes, bytes] = {}
        if writer is not None:
            packed = self._append_blobs(writer)
        self._link_files()
        changed = any(work.changes for work in self._works)
        if packed and writer is not None and not changed:
            writer.sync()
        with self._index.change() as changes:
            entries = len(packed)
            if changed and writer is not None:
                entries += self._append_changes(writer, changes)
                writer.sync()
            changes.put_packed(list(packed.items()))
            replaced = self._name_files(changes)
            for position, work in enumerate(self._works):
                if work.edit is not None:
                    try:
                        self.outcomes[position] = work.edit(changes)
                    except OSError:
                        self.outcomes[position] = Failure()
            if writer is not None and entries:
                self._advance(writer, entries, changes)
            self.perhaps_committed = True
        if writer is not None:
            writer.advance()
        for path in replaced:
            with suppress(OSError):  # It is an orphan then, which fsck names; what was committed stays committed.
                disk.unlink(path)

    def undo(self) -> None:
        """Take back the names that a failed `commit` gave to files, but for those that the index knows after all.

        :raises OSError: and `StoreError`: if that failed for some; the others are gone.
        """
        failed: Exception | None = None
        for name in self._linked:
            try:
                if not (self.perhaps_committed and self._index.names_file(name)):
                    disk.unlink(name.below(self._layout.blobs))
            except (OSError, StoreError) as error:
                failed = error
        if failed is not None:
            raise failed

    def _append_blobs(self, writer: PackWriter) -> dict[bytes, bytes]:
        """Write all blobs to the pack; their rows, by key."""
        pack = writer.pack
        pieces: list[bytes] = []
        rows: dict[bytes, bytes] = {}
        offset = writer.end
        for work in self._works:
            blobs = Blobs.of(work.blobs)
            for key, content in zip(blobs.digests.keys, blobs.contents, strict=True):
                if key in rows:
                    continue
                length = len(content)
                head = encode_head(KIND_BLOB, key[0], key[1:], content)
                rows[key] = encode_packed(length, pack, length, offset)
                pieces += head, content
                offset += len(head) + length
        if pieces:
            writer.append(pieces)
        return rows

    def _link_files(self) -> None:
        """Give every received file its name in ``blobs/``; one that cannot have it fails alone."""
        directories = set()
        for position, work in enumerate(self._works):
            if work.file is None:
                continue
            path = work.file.name.below(self._layout.blobs)
            try:
                if path.parent not in self._directories:
                    # Whoever made it may not have come to syncing it.
                    path.parent.mkdir(exist_ok=True)
                    disk.sync_directory(self._layout.blobs)
                    self._directories.add(path.parent)
                disk.link(work.file.path, path)
            except OSError as error:
                self.outcomes[position] = Failure(disk.failure(error, f"the upload {work.file.name}"))
                continue
            self._linked.append(work.file.name)
            directories.add(path.parent)
        for directory in sorted(directories):
            disk.sync_directory(directory)

    def _append_changes(self, writer: PackWriter, changes: Changes) -> int:
        """Number and write all changes of records; how many there were.

        A number is at least the time in nanoseconds, so that changes which a process wrote but never committed, and
        which a rebuilt index may find, stand behind those that others made after its death.
        """
        count = 0
        for change, epoch in [(change, work.epoch) for work in self._works for change in work.changes]:
            record = record_hash(change.key)
            now = self._now()
            sequence = max(changes.counter(b"sequence") + 1, int(now * 1e9))
            changes.set_counter(b"sequence", sequence)
            content = prove(change.encode(sequence, now), self._index.identity)
            offset = writer.append([encode_head(KIND_RECORD, 0, record, content), content])
            place = Place(writer.pack, offset, len(content))
            key = change.key
            changes.put_record(
                record,
                name_row(key.kind, key.instance, key.name, record),
                RecordRow(SET, sequence, place, epoch, int(now))
                if change.record is not None
                else RecordRow(DELETED, sequence, place),
            )
            count += 1
        return count

    def _name_files(self, changes: Changes) -> list[Path]:
        """Index the received files; the paths of those that they take the place of."""
        replaced = []
        for position, work in enumerate(self._works):
            if work.file is None or self.outcomes[position] is not None:
                continue
            key = work.file.name.key
            before = changes.put_file(key, work.file.row)
            if before is not None and before.serial != work.file.name.serial:
                replaced.append(FileName.of_row(key, before).below(self._layout.blobs))
        return replaced

    def _advance(self, writer: PackWriter, entries: int, changes: Changes) -> None:
        """Note how far the pack reaches now."""
        now = int(self._now())
        row = changes.pack(writer.pack)
        if row is None or row.state != OPEN:
            raise PackTaken
        state = OPEN if writer.end < PACK_BYTES else SEALED
        changes.put_pack(
            writer.pack,
            replace(row, state=state, committed=writer.end, entries=row.entries + entries, renewed=now),
        )
