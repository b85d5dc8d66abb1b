"""Group commit: one thread commits what all calls have handed in while the batch before was under way.

The thread is the only one in this process that writes to packs and to the index.  When a batch fails, nobody in it is
told that anything was stored.  After a failed write or sync nothing is known about the pack's newest bytes: they are
cut off, and the pack is sealed and never appended to again.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from twisted.internet.defer import Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from artifactserver.store import disk
from artifactserver.store.batch import Batch, PackTaken, Work
from artifactserver.store.changes import Changes
from artifactserver.store.index import Index
from artifactserver.store.interface import SHUTTING_DOWN, StoreBroken, StoreError, TooBusy
from artifactserver.store.layout import Layout
from artifactserver.store.packs import PackWriter, pack_name
from artifactserver.store.rows import OPEN, SEALED, PackRow

#: Bytes of blobs after which a batch takes no more work: what is handed in then waits for the next one.
BATCH_BYTES = 32 * 1024 * 1024

#: Bytes of blobs that may wait for their batch; more is refused until the disk has caught up.
WAITING_BYTES = 256 * 1024 * 1024

#: A pack that got its row this many seconds ago and still has no file never will: its process died in between.
ORPHAN_SECONDS = 3600


_OUR_FAULT = "the server failed to store this; its log has the details"


@dataclass(frozen=True, slots=True, eq=False)
class _Waiting:
    """Work that was handed in, its size, and what fires when it is durable."""

    work: Work
    size: int
    done: Deferred[Any]


class Committer:
    """The only writer of a process that serves.

    :param deliver: calls a function with arguments in the thread where answers are wanted (``callFromThread``).
    :param now: seconds since the epoch.
    """

    _log = Logger()

    def __init__(self, layout: Layout, index: Index, deliver: Callable[..., object], now: Callable[[], float]) -> None:
        self._layout = layout
        self._index = index
        self._deliver = deliver
        self._now = now
        #: In the order in which it was handed in, as keys, so that what is withdrawn is found at once.
        self._waiting: dict[_Waiting, None] = {}
        self._waiting_bytes = 0
        self._wake = threading.Condition()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="committer")
        self._writer: PackWriter | None = None
        #: Packs that failed in our hands, in case that even sealing them failed.
        self._distrusted: set[int] = set()
        self._directories: set[Path] = set()

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Commit what was handed in, and end.  It waits for that, so it belongs into a thread."""
        with self._wake:
            self._stopping = True
            self._wake.notify()
        self._thread.join()

    def submit(self, work: Work) -> Deferred[Any]:
        """Commit ``work`` with the next batch.

        :return: fires when it is durable, with the result of its edit; fails with a `StoreError`.  When it is
            cancelled before its batch has begun, the work is not done.
        """
        waiting = _Waiting(work, work.size, Deferred(lambda _: self._withdraw(waiting)))
        with self._wake:
            if self._stopping:
                refusal: StoreError | None = StoreBroken(SHUTTING_DOWN)
            elif self._waiting_bytes + waiting.size > WAITING_BYTES:
                refusal = TooBusy("the server's disk cannot keep up with all that is uploaded: try again in a moment")
            else:
                refusal = None
                self._waiting[waiting] = None
                self._waiting_bytes += waiting.size
                self._wake.notify()
        if refusal is not None:
            waiting.done.errback(refusal)
        return waiting.done

    def _withdraw(self, waiting: _Waiting) -> None:
        with self._wake:
            if waiting in self._waiting:
                del self._waiting[waiting]
                self._waiting_bytes -= waiting.size

    def _run(self) -> None:
        while batch := self._next():
            works = [waiting.work for waiting in batch]
            try:
                outcomes = self._commit(works)
            except Exception:
                # Nobody may be left without an answer, and those who come next need this thread.
                self._log.failure("the committer failed")
                outcomes = [Failure(StoreBroken(_OUR_FAULT))] * len(works)
            self._deliver(_answer, batch, outcomes)
        if self._writer is not None:
            self._writer.close()

    def _next(self) -> list[_Waiting]:
        """Wait for work; nothing when it is time to end."""
        with self._wake:
            while not self._waiting and not self._stopping:
                self._wake.wait()
            batch: list[_Waiting] = []
            size = 0
            for waiting in self._waiting:
                if size >= BATCH_BYTES:
                    break
                size += waiting.size
                batch.append(waiting)
            for waiting in batch:
                del self._waiting[waiting]
            self._waiting_bytes -= size
            return batch

    def _commit(self, works: Sequence[Work]) -> list[Any]:
        """What each piece of work came to; a `Failure` for one that failed."""
        batch = Batch(works, self._layout, self._index, self._now, self._directories)
        try:
            if batch.appends and self._writer is None:
                self._writer = self._open_writer()
            batch.commit(self._writer if batch.appends else None)
        except PackTaken:
            self._undo(batch)
            if self._writer is not None:
                if not self._writer.committed:  # then nothing in it was ever acknowledged
                    self._writer.remove(self._layout.packs)
                self._writer.close()
                self._writer = None
            return self._commit(works)
        except Exception as error:
            failure = Failure(self._failed(error, batch))
            return [failure for _ in works]
        if self._writer is not None and self._writer.full:
            self._writer.close()
            self._writer = None
        return batch.outcomes

    def _failed(self, error: Exception, batch: Batch) -> StoreError:
        """Clean up after a batch that failed; the error for everybody in it."""
        self._log.failure("writing to the repository failed: {error}", error=error)
        try:
            self._undo(batch)
        finally:
            if batch.appends:
                self._give_up_pack(batch.perhaps_committed)
        if isinstance(error, StoreError):
            return error
        if isinstance(error, OSError):
            return disk.failure(error, "the upload")
        return StoreBroken(_OUR_FAULT)

    def _undo(self, batch: Batch) -> None:
        try:
            batch.undo()
        except (OSError, StoreError) as error:
            self._log.error("cleaning up after that failed: {error}", error=error)

    def _give_up_pack(self, keep_end: bool) -> None:
        """Seal this process's pack, and cut off what the failed batch has appended.

        Either may fail as well.  The pack is not appended to by this process again; what stays behind its committed end
        is nowhere in the index, and a process that takes the pack over, which only one that is not sealed allows, cuts
        it off.
        """
        writer, self._writer = self._writer, None
        if writer is None:
            return
        self._distrusted.add(writer.pack)
        name = pack_name(writer.pack)
        try:
            with self._index.change() as changes:
                row = changes.pack(writer.pack)
                if row is not None and row.state == OPEN:
                    changes.set_pack_state(writer.pack, SEALED)
        except (OSError, StoreError) as error:
            self._log.error("pack {pack} could not be sealed: {error}", pack=name, error=error)
        finally:
            try:
                if not keep_end:
                    writer.cut_back()
            except OSError as error:
                self._log.error("pack {pack} could not be cut back: {error}", pack=name, error=error)
            finally:
                writer.close()

    def _open_writer(self) -> PackWriter:
        """Take over a pack that nobody appends to any more, or begin a new one."""
        now = int(self._now())
        writer = None
        try:
            with self._index.change() as changes:
                for pack, row in changes.packs():
                    if row is None or row.state != OPEN or pack in self._distrusted:
                        continue
                    writer = self._take_over(pack, row, changes)
                    if writer is not None:
                        return writer
                    if now - row.made > ORPHAN_SECONDS and not (self._layout.packs / pack_name(pack)).exists():
                        changes.drop_pack(pack)
                pack = changes.new_pack(now)
        except BaseException:
            if writer is not None:
                writer.close()
            raise
        return self._begin_pack(pack) or self._open_writer()

    def _take_over(self, pack: int, row: PackRow, changes: Changes) -> PackWriter | None:
        """Go on with a pack, unless somebody else does, or it is in no state for that: then it is sealed."""
        try:
            fd = PackWriter.seize(self._layout.packs, pack)
        except OSError as error:
            # That may be a matter of this process alone: others may still go on with it.
            self._log.error("pack {pack} cannot be opened to go on with it: {error}", pack=pack_name(pack), error=error)
            self._distrusted.add(pack)
            return None
        if fd is None:
            return None
        try:
            writer = PackWriter.take_over(self._layout.packs, pack, fd, row.committed)
            if writer is not None:
                return writer
            self._log.error("pack {pack} has been cut short; what is left stays readable", pack=pack_name(pack))
        except OSError as error:
            self._log.error("pack {pack} cannot be gone on with: {error}", pack=pack_name(pack), error=error)
        self._distrusted.add(pack)
        changes.set_pack_state(pack, SEALED)
        return None

    def _begin_pack(self, pack: int) -> PackWriter | None:
        """Make the file of a pack that has a row; `None` if somebody took it over before it was locked."""
        writer = None
        try:
            writer = PackWriter.create(self._layout.packs, pack)
            disk.sync_directory(self._layout.packs)
        except BlockingIOError:
            return None
        except OSError:
            self._distrusted.add(pack)
            try:
                self._drop_unused(pack, writer)
            finally:
                if writer is not None:
                    writer.close()
            raise
        return writer

    def _drop_unused(self, pack: int, writer: PackWriter | None) -> None:
        """Drop a pack that could not be begun, unless another process has committed something in it.

        If one is only about to, it will find the row gone, and take its batch elsewhere.
        """
        with self._index.change() as changes:
            row = changes.pack(pack)
            unused = row is not None and not row.committed
            if unused:
                changes.drop_pack(pack)
        if unused and writer is not None:
            writer.remove(self._layout.packs)


def _answer(batch: Sequence[_Waiting], outcomes: Sequence[Any]) -> None:
    for waiting, outcome in zip(batch, outcomes, strict=True):
        if not waiting.done.called:  # as it is when it was cancelled too late for its work not to be done
            waiting.done.callback(outcome)  # a Failure makes it fail
