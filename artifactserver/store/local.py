"""The store on a local disk: packs for what is small, files for what is large, LMDB to find it, one committer.

Everything here runs in the reactor's thread.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater
from twisted.internet.threads import deferToThreadPool
from twisted.logger import Logger
from twisted.python.threadpool import ThreadPool

from artifactserver.store.adding import Adding
from artifactserver.store.batch import Work
from artifactserver.store.committer import Committer
from artifactserver.store.damage import Quarantine
from artifactserver.store.digest import EMPTY, Digest, Digests
from artifactserver.store.interface import (
    Blob,
    BlobReader,
    Blobs,
    BlobTooLarge,
    NoRoom,
    Record,
    RecordKey,
    StoreError,
)
from artifactserver.store.presence import Presence
from artifactserver.store.reading import Reading
from artifactserver.store.register import Register
from artifactserver.store.repository import Repository
from artifactserver.store.room import Promise, Room
from artifactserver.store.rows import PACKED, PACKED_BYTES, FileRow, unpack_packed
from artifactserver.store.slices import slices
from artifactserver.store.touches import TOUCH_SECONDS, Touches
from artifactserver.store.uploads import FileUpload, Uploads

#: The largest blob that is taken: its checksums have to fit into a row of the index.
MAX_BLOB_BYTES = 64 * 1024**3

#: Seconds between two complaints in the log that the disk is full.
COMPLAINT_SECONDS = 60

#: Threads that wait for the disk: reads of what is not in memory, and large uploads.
DISK_THREADS = 4

#: Seconds that uploads which are cut off by the end of the server have to be cleared away.
STOP_SECONDS = 5.0

#: Bytes of blobs that one call holds while it carries them out of packs that are about to go.
RESCUE_BYTES = 4 * 1024 * 1024


class LocalStore:
    """The `artifactserver.store.interface.Store` in the repository at ``path``.

    :param reactor: where the methods are called.
    :param now: seconds since the epoch.
    :param head_room_min: bytes of the disk that uploads leave free.
    :param together: calls a function with arguments; whoever is told of a commit is told so in one such call.
    """

    _log = Logger()
    max_blob_size = MAX_BLOB_BYTES

    def __init__(
        self,
        path: Path,
        *,
        reactor: Any,
        now: Callable[[], float],
        head_room_min: int,
        together: Callable[..., None] | None = None,
    ) -> None:
        self._path = path
        self._reactor = reactor
        self._now = now
        self._together = together
        self._room = Room(path, head_room_min)
        self._complained = float("-inf")
        self._cannot_reserve = False
        self._stopping = False
        self._pool = ThreadPool(minthreads=1, maxthreads=DISK_THREADS, name="disk")

    def start(self) -> None:
        """Open the repository, which must have been prepared, and start the threads: after any fork.

        :raises RepositoryProblem: if it cannot be used.
        """
        self._repository = Repository(self._path)
        self._index = self._repository.index
        self._repository.forget_lost_packs()
        self._repository.sweep()
        layout = self._repository.layout
        call = self._reactor.callFromThread
        deliver = call if self._together is None else partial(call, self._together)
        self._committer = Committer(layout, self._index, deliver, self._now)
        self._touches = Touches(self._committer.submit)
        self._quarantine = Quarantine(layout, self._committer.submit)
        self._presence = Presence()
        self._uploads = Uploads(
            layout.incoming,
            self._in_thread,
            lambda received: self._committer.submit(Work(file=received)),
            self._now,
            self._reactor.seconds,
        )
        self._adding = Adding(
            self.find_missing,
            self._committer.submit,
            self._upload_whole,
            self._room,
            self._in_thread,
            self._give_way,
            self._complain,
        )
        self._reading = Reading(layout, self._index, self._in_thread, self._quarantine)
        self._register = Register(
            self,
            self._index,
            self._reading,
            self._quarantine,
            self._committer.submit,
            self._room,
            self._now,
            self._give_way,
        )
        self._pool.start()
        self._pool.callInThread(self._index.warm, lambda: not self._stopping)
        self._committer.start()

    async def stop(self) -> None:
        """Finish what was handed in, clear away what has not come to its end, and let go of everything."""
        self._stopping = True
        left = await self._uploads.end(self._reactor, STOP_SECONDS)
        if left:
            self._log.warn("{count} uploads are left for the next start to clear away", count=left)
        await self._in_thread(self._committer.stop)
        self._pool.stop()
        self._reading.close()
        self._repository.close()

    def tidy(self) -> None:
        """What has to be done from time to time.

        The index's reader slots of processes that died are freed, descriptors of packs that are gone are closed, and
        uploads that are too slow lose the space that they hold.
        """
        self._reading.look_up(Digests.of([]))
        cleared = self._index.clear_dead_readers()
        if cleared:
            self._log.info("cleared {count} index readers of processes that died", count=cleared)
        slow = self._uploads.end_slow()
        if slow:
            self._log.info("{count} uploads were given up: they were too slow to keep room for them", count=slow)

    # Blobs

    async def find_missing(self, digests: Digests) -> list[int]:
        now = self._now()
        if self._presence.knows(digests, self._index.state(), now):
            return []
        values, table = self._reading.look_up(digests)
        sizes, ready = digests.sizes, table.ready
        missing = []
        packed: list[tuple[bytes, int]] = []
        retiring: list[int] = []
        unused: dict[bytes, bytes] = {}
        used = int(now)
        for position, value in enumerate(values):
            if value is None:
                missing.append(position)
            elif len(value) == PACKED_BYTES and value[0] == PACKED:
                _, size, pack, _, _ = unpack_packed(value)
                if size != sizes[position]:
                    missing.append(position)
                elif pack in ready:
                    packed.append((digests.keys[position], size))
                else:
                    (retiring if pack in table.retiring else missing).append(position)
            else:
                row = FileRow.decode(value)
                if row is None or row.size != sizes[position]:
                    missing.append(position)
                elif used - row.used > TOUCH_SECONDS:
                    unused[digests.keys[position]] = value
        self._presence.learn(packed)
        if unused:
            self._touches.note(unused, used)
        if retiring:
            missing += await self._rescue(digests, retiring)
            missing.sort()
        if not missing:
            return missing
        distinct = {digests.keys[position] for position in missing}
        if len(distinct) == len(missing) and EMPTY.key not in distinct:
            return missing
        return _wanted(digests, missing)

    async def read_many(self, digests: Digests) -> list[bytes | None]:
        return await self._reading.contents(digests)

    async def open(self, digest: Digest) -> BlobReader:
        return await self._reading.open(digest)

    async def add_many(self, blobs: Sequence[Blob]) -> list[StoreError | None]:
        return await self._adding.add_many(blobs)

    async def upload(self, digest: Digest, caller: str) -> FileUpload:
        if digest.size > self.max_blob_size:
            raise BlobTooLarge(f"blob {digest} is larger than this server takes: {self.max_blob_size} bytes")
        self._uploads.require_open()
        try:
            self._room.enter(caller, digest.size)
        except NoRoom as error:
            self._complain(error)
            raise
        promise = Promise(self._room, digest.size)  # there is room for it, or it would not have been let in
        upload = self._uploads.new(digest, promise, lambda: self._room.leave(caller, digest.size))
        try:
            self._note_reserving(await upload.begin())
        except BaseException:
            upload.close()
            raise
        return upload

    def _complain(self, error: StoreError) -> None:
        """Tell the administrator that uploads are refused: BuildStream does not tell its users."""
        if isinstance(error, NoRoom) and self._now() - self._complained >= COMPLAINT_SECONDS:
            self._complained = self._now()
            self._log.warn("uploads to {path} are refused: {error}", path=str(self._path), error=error)

    def _note_reserving(self, can_reserve: bool) -> None:
        """Tell the administrator, once, when space is only promised."""
        if not can_reserve and not self._cannot_reserve:
            self._cannot_reserve = True
            self._log.warn(
                "the file system of {path} cannot reserve space (fallocate): uploads may fail in the middle when "
                "something else fills the disk",
                path=str(self._path),
            )

    async def _upload_whole(self, blob: Blob) -> None:
        """Store a large blob that came whole."""
        self._uploads.require_open()
        upload = self._uploads.new(blob.digest, self._room.promise(blob.digest.size), lambda: None)
        try:
            self._note_reserving(await upload.begin())
            await upload.write(blob.content)
            await upload.commit()
        finally:
            upload.close()

    async def _rescue(self, digests: Digests, positions: Sequence[int]) -> list[int]:
        """Make blobs durable elsewhere whose pack is about to go; the positions of those that are missing."""
        named: dict[Digest, list[int]] = {}
        for position in positions:
            named.setdefault(digests[position], []).append(position)
        missing: list[int] = []
        all_wanted = Digests.of(named)
        for start, end in slices(all_wanted.sizes, len(all_wanted), RESCUE_BYTES):
            wanted = all_wanted[start:end]
            contents = await self._reading.contents(wanted)
            pairs = list(zip(wanted, contents, strict=True))
            found = Blobs.of(Blob(digest, content) for digest, content in pairs if content is not None)
            if found:
                await self._committer.submit(Work(blobs=found))
            for digest, content in pairs:
                missing += named[digest] if content is None else ()
        return missing

    # Records

    async def get_record(self, key: RecordKey) -> Record | None:
        return await self._register.get(key)

    async def set_records(self, records: Sequence[Record]) -> None:
        try:
            await self._register.set(records)
        except NoRoom as error:
            self._complain(error)
            raise

    async def set_record(self, record: Record) -> None:
        await self.set_records([record])

    async def delete_record(self, key: RecordKey) -> bool:
        return await self._register.delete(key)

    # Threads and time

    def _in_thread(self, function: Callable[[], Any]) -> Deferred[Any]:
        return deferToThreadPool(self._reactor, self._pool, function)

    def _give_way(self) -> Awaitable[None]:
        return deferLater(self._reactor, 0)


def _wanted(digests: Digests, positions: Sequence[int]) -> list[int]:
    """The first position of each distinct digest, but for that of the empty blob, which needs no upload."""
    seen = {(EMPTY.key, EMPTY.size)}
    wanted = []
    for position in positions:
        named = digests.keys[position], digests.sizes[position]
        if named not in seen:
            seen.add(named)
            wanted.append(position)
    return wanted
