"""Records: small, changing, and pointing at blobs.

A record is handed out only while everything it requires is present.  That is looked up again when something was removed
since the last time, or when the last time is long ago.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

from twisted.internet.defer import Deferred
from twisted.logger import Logger

from artifactserver.store import disk
from artifactserver.store.batch import Work
from artifactserver.store.damage import Quarantine
from artifactserver.store.index import Index
from artifactserver.store.interface import BadReference, Incomplete, Record, RecordKey
from artifactserver.store.packs import KIND_RECORD, DamagedEntry
from artifactserver.store.reading import Reading
from artifactserver.store.records import Change, WrittenChange, record_hash
from artifactserver.store.room import Room
from artifactserver.store.rows import SET, RecordRow, name_row
from artifactserver.store.touches import TOUCH_SECONDS
from artifactserver.store.trees import Blobs, require_all

#: Notes of walks that may be on their way to the index at once; more are left out, and made at the next use.
PASSING = 1_000


class Register:
    """The records of one repository: `get`, `set` and `delete` as in `artifactserver.store.interface.Store`.

    :param blobs: where to see what is present.
    :param submit: hands work to the committer.
    :param now: seconds since the epoch.
    :param give_way: its awaitable lets others have the thread for a moment.
    """

    _log = Logger()

    def __init__(
        self,
        blobs: Blobs,
        index: Index,
        reading: Reading,
        quarantine: Quarantine,
        submit: Callable[[Work], Deferred[object]],
        room: Room,
        now: Callable[[], float],
        give_way: Callable[[], Awaitable[None]],
    ) -> None:
        self._blobs = blobs
        self._index = index
        self._reading = reading
        self._quarantine = quarantine
        self._submit = submit
        self._room = room
        self._now = now
        self._give_way = give_way
        self._passing: set[bytes] = set()

    async def get(self, key: RecordKey) -> Record | None:
        hash = record_hash(key)
        row, epoch, record = await self._read(key, hash)
        if row is None or record is None or (record.expires is not None and record.expires <= self._now()):
            return None
        now = int(self._now())
        if row.epoch != epoch or now - row.walked > TOUCH_SECONDS:
            try:
                await require_all(self._blobs, record.references, self._give_way)
            except (Incomplete, BadReference) as error:
                self._log.debug("record {name} is not handed out: {error}", name=key.name, error=error)
                return None
            sequence = row.sequence
            self._in_passing(hash, Work(edit=lambda changes: changes.note_walk(hash, sequence, epoch, now)))
        return record

    async def set(self, records: Sequence[Record]) -> None:
        if not records:
            return
        _, _, epoch = self._index.look_up_record(record_hash(records[0].key))
        references = dict.fromkeys(reference for record in records for reference in record.references)
        await require_all(self._blobs, list(references), self._give_way)
        work = Work(changes=Change.setting(records), epoch=epoch)
        with self._room.promise(work.size):
            await self._submit(work)

    async def delete(self, key: RecordKey) -> bool:
        row, _, _ = self._index.look_up_record(record_hash(key))
        if row is None or row.state != SET:
            return False
        await self._submit(Work(changes=[Change(key, None)]))
        return True

    async def _read(self, key: RecordKey, hash: bytes) -> tuple[RecordRow | None, int, Record | None]:
        """A record's row, the eviction epoch of that moment, and the record."""
        for last_try in (False, True):
            row, table, epoch = self._index.look_up_record(hash)
            if row is None or row.state != SET or row.place.pack not in table.all:
                return None, epoch, None
            try:
                content = await self._reading.entry(row.place, KIND_RECORD, 0, hash)
                written = WrittenChange.decode(content)
                if written is not None and written.change.key == key:
                    return row, epoch, written.change.record
                raise DamagedEntry("it is not the change of this record")
            except (DamagedEntry, OSError) as error:
                if isinstance(error, OSError) and not disk.is_lost(error):
                    raise disk.failure(error, "reading a record") from error
                if last_try:
                    name = name_row(key.kind, key.instance, key.name, hash)
                    await self._quarantine.record(hash, name, row, str(error))
        return None, 0, None

    def _in_passing(self, record: bytes, work: Work) -> None:
        """Commit something that nobody waits for, unless the same is on its way already, or too much is."""
        if record in self._passing or len(self._passing) >= PASSING:
            return
        self._passing.add(record)
        done = self._submit(work)
        done.addErrback(lambda failure: self._log.warn("the index was not updated: {error}", error=failure.value))
        done.addBoth(lambda _: self._passing.discard(record))
