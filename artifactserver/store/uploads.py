"""Large uploads on their way in.

Each has a file in ``incoming/`` under the name that it will have in ``blobs/``, locked by the process that receives
it.  When all bytes are there, hashed as they came and synced, the committer gives the file its second name in
``blobs/`` and commits its row in the index; only then is the first name removed.  So wherever a crash strikes, what is
left in ``incoming/`` tells the next start what to clear away, in both places, without a look at anything else.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from twisted.internet.defer import Deferred, TimeoutError
from twisted.python.failure import Failure

from artifactserver.store import disk
from artifactserver.store.digest import Digest
from artifactserver.store.files import Checksums, FileName
from artifactserver.store.interface import SHUTTING_DOWN, ContentMismatch, StoreBroken, TooSlow
from artifactserver.store.layout import PROBE
from artifactserver.store.pace import Backlog, Stopwatch, is_too_slow
from artifactserver.store.room import Promise
from artifactserver.store.rows import FileRow

#: Bytes of one upload that are gathered before a thread hashes and writes them.  As many again may be in that thread.
GATHER_BYTES = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Received:
    """A whole blob in ``incoming/``, checked and synced, but not yet in the index."""

    name: FileName
    path: Path
    row: FileRow


class IncomingFile:
    """The file of one upload.  Its methods wait for the disk and belong into a thread; one at a time.

    :ivar has_space: whether all the space that it will need is its own.  Where the file system cannot give that, space
        is only promised (`artifactserver.store.room`), and what other programs write is not kept out of it.
    """

    def __init__(self, directory: Path, digest: Digest) -> None:
        self._digest = digest
        self._hasher = digest.hasher()
        self._checksums = Checksums()
        self._length = 0
        try:
            self.name, self._fd = _create(directory, digest)
        except OSError as error:
            raise disk.failure(error, f"the upload of blob {digest}") from error
        self.path = directory / str(self.name)
        try:
            self.has_space = disk.reserve(self._fd, digest.size)
        except OSError as error:
            self.discard()
            raise disk.failure(error, f"the upload of blob {digest}") from error

    @property
    def lacking(self) -> int:
        """How many bytes of space it still has to find."""
        return 0 if self.has_space else self._digest.size - self._length

    def absorb(self, pieces: Sequence[bytes | memoryview]) -> None:
        """Hash and write the next bytes."""
        for piece in pieces:
            self._hasher.update(piece)
            self._checksums.update(piece)
        try:
            disk.write_pieces(self._fd, pieces, self._length)
        except OSError as error:
            raise disk.failure(error, f"the upload of blob {self._digest}") from error
        self._length += sum(map(len, pieces))

    def finish(self, now: int) -> Received:
        """Check and sync the whole blob.

        :raises ContentMismatch: if the bytes are not what the digest says.
        """
        if self._length != self._digest.size:
            raise ContentMismatch(f"{self._length} bytes were uploaded for blob {self._digest}")
        if self._hasher.digest() != self._digest.hash:
            raise ContentMismatch(f"what was uploaded for blob {self._digest} has the hash {self._hasher.hexdigest()}")
        try:
            disk.sync(self._fd)
        except OSError as error:
            raise disk.failure(error, f"the upload of blob {self._digest}") from error
        row = FileRow(self._length, self.name.serial, now, self._checksums.value())
        return Received(self.name, self.path, row)

    def discard(self) -> None:
        """Remove the name in ``incoming/``, if it is still there, and let go of the file."""
        try:
            disk.unlink(self.path)
        finally:
            os.close(self._fd)


def _create(directory: Path, digest: Digest) -> tuple[FileName, int]:
    while True:
        name = FileName.new(digest)
        fd = os.open(directory / str(name), os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.fstat(fd).st_nlink:
                return name, fd
        except BlockingIOError:
            pass
        except BaseException:
            os.close(fd)
            raise
        os.close(fd)  # another process that is just starting took it for a left-over


def sweep(incoming: Path, blobs: Path, indexed: Callable[[FileName], bool]) -> int:
    """Clear away what uploads of processes that died have left; how many there were.

    :param indexed: whether the index says that the blob is in the file of this name.
    """
    swept = 0
    for entry in os.listdir(incoming):
        path = incoming / entry
        name = FileName.parse(entry)
        if name is None:
            if entry.startswith(PROBE):
                disk.unlink(path)
            continue
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            continue  # gone, or not ours
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not indexed(name):
                disk.unlink(name.below(blobs))
            disk.unlink(path)
            swept += 1
        except OSError:
            pass  # somebody is at it, or it is not ours to remove
        finally:
            os.close(fd)
    return swept


class FileUpload:
    """One blob on its way into a file of its own, as the services see it.

    At most one job of an upload is under way at a time: a thread that hashes and writes, or the committer.  While it
    is, the next bytes gather; who brings more than `GATHER_BYTES` of them waits, and so does everybody while very much
    of all uploads waits for the disk.  An upload that is closed in the middle of a job is discarded when the job has
    ended, so nothing is pulled from under it.

    :param directory: ``incoming/``.
    :param promise: of space for the whole blob; it is kept until the file has that space, whoever goes away meanwhile,
        or, where the file system cannot reserve any, for what is not written yet.
    :param run: runs a function in a thread that may wait for the disk.
    :param commit: makes what was received part of the store.
    :param now: seconds since the epoch.
    :param seconds: any clock that does not go back.
    :param backlog: what of all uploads waits for the disk.
    :param closed: called once when nothing of the upload is left but what was committed.
    """

    def __init__(
        self,
        directory: Path,
        digest: Digest,
        promise: Promise,
        run: Callable[[Callable[[], Any]], Deferred[Any]],
        commit: Callable[[Received], Deferred[None]],
        now: Callable[[], float],
        seconds: Callable[[], float],
        backlog: Backlog,
        closed: Callable[[], None],
    ) -> None:
        self._directory = directory
        self._file: IncomingFile
        self._begun = False
        self._digest = digest
        self._promise = promise
        self._run = run
        self._commit = commit
        self._now = now
        self._stopwatch = Stopwatch(seconds)
        self._backlog = backlog
        self._when_closed = closed
        self._gathered: list[bytes | memoryview] = []
        self._gathered_bytes = 0
        self._absorbing = 0
        self._busy = False
        self._failure: Failure | None = None
        self._waiting: Deferred[None] | None = None
        self._result: Any = None
        self._closed = False
        self.received = 0

    async def begin(self) -> bool:
        """Make the file and reserve its space; comes before anything but `close`.

        :return: whether the file system can reserve space.
        """
        self._start(lambda: self._run(self._create))
        await self._settled()
        self._require_open()
        return self._file.has_space

    async def write(self, content: bytes | memoryview) -> None:
        if self._failure is not None:
            self._failure.raiseException()
        self.received += len(content)
        if self.received > self._digest.size:
            raise ContentMismatch(f"more than {self._digest.size} bytes were uploaded for blob {self._digest}")
        self._gathered.append(content)
        self._gathered_bytes += len(content)
        self._backlog.waiting += len(content)
        if self._gathered_bytes >= GATHER_BYTES or self._backlog.is_long:
            await self._settled()
            self._flush()
            if self._backlog.is_long:
                await self._settled()

    async def commit(self) -> None:
        await self._settled()
        if self._gathered:
            self._flush()
            await self._settled()
        now = int(self._now())
        self._start(lambda: self._run(lambda: self._file.finish(now)))
        received = await self._settled()
        self._start(lambda: self._commit(received))
        await self._settled()

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            self._gathered = []
            self._backlog.waiting -= self._gathered_bytes
            self._gathered_bytes = 0
            if not self._busy:
                self._discard()

    def end_if_slow(self) -> bool:
        """Give up if the client has been too slow; whether that is so.  Its next bytes are refused."""
        waited = self._stopwatch.waited()
        if self._busy or self._closed or not is_too_slow(self.received, waited):
            return False
        error = TooSlow(
            f"the upload of blob {self._digest} was given up: {self.received} bytes in {waited:.0f} seconds are too "
            "few to keep room for the rest"
        )
        self._failure = Failure(error)
        self.close()
        return True

    def _create(self) -> None:
        if self._closed:  # while this waited for a thread
            return
        self._file = IncomingFile(self._directory, self._digest)
        self._begun = True

    def _flush(self) -> None:
        pieces, self._gathered = self._gathered, []
        self._absorbing, self._gathered_bytes = self._gathered_bytes, 0
        self._start(lambda: self._run(lambda: self._file.absorb(pieces)))

    def _start(self, job: Callable[[], Deferred[Any]]) -> None:
        self._require_open()
        self._busy = True
        self._stopwatch.stop()
        job().addBoth(self._ended)

    def _require_open(self) -> None:
        if self._closed:  # by the store, which is about to stop: whoever uploads would not go on after closing
            raise StoreBroken(SHUTTING_DOWN)

    def _ended(self, result: Any) -> None:
        self._busy = False
        self._stopwatch.start()
        self._backlog.waiting -= self._absorbing
        self._absorbing = 0
        if self._begun:
            self._promise.reduce(self._file.lacking)
        if isinstance(result, Failure):
            self._failure = result
        self._result = result
        waiting, self._waiting = self._waiting, None
        if self._closed:
            self._discard()
        if waiting is not None:
            waiting.callback(None)

    async def _settled(self) -> Any:
        """Wait for the job that is under way, if one is; its result.

        The job goes on when the wait is cancelled.
        """
        while self._busy:
            self._waiting = Deferred()
            await self._waiting
        if self._failure is not None:
            self._failure.raiseException()
        return self._result

    def _discard(self) -> None:
        self._promise.reduce(0)
        if self._begun:
            self._run(self._file.discard).addBoth(lambda _: self._when_closed())
        else:
            self._when_closed()


class Uploads:
    """All the uploads that a store has under way.

    :param directory: and the other parameters: as of `FileUpload`.
    """

    def __init__(
        self,
        directory: Path,
        run: Callable[[Callable[[], Any]], Deferred[Any]],
        commit: Callable[[Received], Deferred[None]],
        now: Callable[[], float],
        seconds: Callable[[], float],
    ) -> None:
        self._directory = directory
        self._run = run
        self._commit = commit
        self._now = now
        self._seconds = seconds
        self._backlog = Backlog()
        self._under_way: set[FileUpload] = set()
        self._all_gone: Deferred[None] | None = None

    def require_open(self) -> None:
        """:raises StoreBroken: if the store is about to stop."""
        if self._all_gone is not None:
            raise StoreBroken(SHUTTING_DOWN)

    def new(self, digest: Digest, promise: Promise, closed: Callable[[], None]) -> FileUpload:
        """One more of them; `FileUpload.begin` comes next."""

        def gone() -> None:
            closed()
            self._under_way.remove(upload)
            if self._all_gone is not None and not self._under_way:
                self._all_gone.callback(None)

        upload = FileUpload(
            self._directory,
            digest,
            promise,
            self._run,
            self._commit,
            self._now,
            self._seconds,
            self._backlog,
            gone,
        )
        self._under_way.add(upload)
        return upload

    def end_slow(self) -> int:
        """Give up those that are too slow; how many they were.  To be called from time to time."""
        return sum(upload.end_if_slow() for upload in list(self._under_way))

    async def end(self, clock: Any, seconds: float) -> int:
        """Close all of them, and wait until nothing is left of them; how many there still are after ``seconds``.

        What an upload is waiting for is finished: one that was about to be committed is.
        """
        self._all_gone = Deferred()
        for upload in list(self._under_way):
            upload.close()
        if self._under_way:
            with suppress(TimeoutError):
                await self._all_gone.addTimeout(seconds, clock)
        return len(self._under_way)
