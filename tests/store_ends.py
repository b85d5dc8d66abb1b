"""Stores whose calls return when they are done: one in this process, and one on the same repository in another.

LMDB allows each process to open an index only once, so the second has to be a process.  Run as a program this is that
process: it answers pickled ``(method, arguments)`` on its standard input with pickled results.
"""

from __future__ import annotations

import importlib
import os
import pickle
import queue
import subprocess
import sys
import time
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.python.failure import Failure

from artifactserver.store.digest import Digest, Digests
from artifactserver.store.fsck import Report, _Check
from artifactserver.store.interface import Blob, BlobMissing, Record, RecordKey, StoreError
from artifactserver.store.local import LocalStore
from artifactserver.store.repository import prepare

#: Sizes with which a small store has all that a large one has: where they stand, and what they are.
SMALL_SIZES = {
    "packs:PACK_BYTES": 12_000,
    "batch:PACK_BYTES": 12_000,
    "adding:SMALL_BYTES": 1_000,
    "adding:SLICE": 3,
    "files:BLOCK_BYTES": 2_000,
    "scan:SCAN_BYTES": 5_000,
    "rebuild:ENTRIES": 4,
}


def set_sizes(patch: Callable[[Any, str, int], Any]) -> None:
    """Make everything as small as that.

    :param patch: sets an attribute.
    """
    for where, value in SMALL_SIZES.items():
        module, _, name = where.partition(":")
        patch(importlib.import_module(f"artifactserver.store.{module}"), name, value)


class NoProgress:
    """Nobody watches."""

    def begin(self, doing: str, total: int) -> None:
        """As `artifactserver.store.fsck.Progress`."""

    def advance(self, count: int) -> None:
        """As `artifactserver.store.fsck.Progress`."""


class Reactor(Clock):
    """A reactor that turns only while somebody waits."""

    def __init__(self) -> None:
        super().__init__()
        self._calls: queue.SimpleQueue[tuple[Callable[..., Any], tuple[Any, ...]]] = queue.SimpleQueue()

    def callFromThread(self, function: Callable[..., Any], *arguments: Any) -> None:
        """As of Twisted's reactors."""
        self._calls.put((function, arguments))

    def wait_for(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        """What comes of it."""
        results: list[Any] = []
        Deferred.fromCoroutine(coroutine).addBoth(results.append)
        end = time.monotonic() + 60
        while not results:
            self.advance(0)
            try:
                function, arguments = self._calls.get(timeout=0.001)
            except queue.Empty:
                assert results or time.monotonic() < end, "nothing happens any more"
            else:
                function(*arguments)
        if isinstance(results[0], Failure):
            results[0].raiseException()
        return results[0]


class End:
    """A store at ``path``, open in this process.  What the store refuses is raised."""

    def __init__(self, path: Path) -> None:
        prepare(path)
        self._reactor = Reactor()
        self._store = LocalStore(path, reactor=self._reactor, now=time.time, head_room_min=0)
        self._store.start()

    def add(self, blobs: Sequence[Blob]) -> list[StoreError | None]:
        """Upload blobs in a batch; what came of each."""
        return self._reactor.wait_for(self._store.add_many(blobs))  # type: ignore[no-any-return]

    def upload(self, digest: Digest, pieces: Sequence[bytes]) -> None:
        """Upload one in pieces."""

        async def upload() -> None:
            upload = await self._store.upload(digest, "somebody")
            try:
                for piece in pieces:
                    await upload.write(piece)
                await upload.commit()
            finally:
                upload.close()

        self._reactor.wait_for(upload())

    def missing(self, digests: Sequence[Digest]) -> set[Digest]:
        """Those of some distinct blobs that are said to be missing."""
        positions = self._reactor.wait_for(self._store.find_missing(Digests.of(digests)))
        return {digests[position] for position in positions}

    def read(self, digests: Sequence[Digest]) -> list[bytes | None]:
        """The contents of blobs, all at once."""
        return self._reactor.wait_for(self._store.read_many(Digests.of(digests)))  # type: ignore[no-any-return]

    def stream(self, digest: Digest, length: int) -> bytes | None:
        """The content of one, so many bytes at a time."""

        async def stream() -> bytes | None:
            try:
                reader = await self._store.open(digest)
            except BlobMissing:
                return None
            content = b""
            try:
                while piece := await reader.read(len(content), length):
                    content += piece
            except BlobMissing:
                return None
            finally:
                reader.close()
            return content

        return self._reactor.wait_for(stream())  # type: ignore[no-any-return]

    def set(self, records: Sequence[Record]) -> None:
        """Set records, all at one moment."""
        self._reactor.wait_for(self._store.set_records(records))

    def get(self, key: RecordKey) -> bytes | None:
        """The value of a record."""
        record = self._reactor.wait_for(self._store.get_record(key))
        return None if record is None else bytes(record.value)

    def delete(self, key: RecordKey) -> bool:
        """Whether there was one."""
        return self._reactor.wait_for(self._store.delete_record(key))  # type: ignore[no-any-return]

    def check(self, repair: bool) -> Report:
        """Check the repository that is open here."""
        return _Check(self._store._repository, NoProgress(), repair).run()

    def tidy(self) -> None:
        """What the server does from time to time."""
        self._store.tidy()

    def close(self) -> None:
        """Stop the store."""
        self._reactor.wait_for(self._store.stop())


class OtherProcess:
    """Another process, where a store can be opened, closed and opened again."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.store_ends"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=Path(__file__).parent.parent,
        )

    def send(self, method: str, *arguments: Any) -> None:
        """Let it begin with something."""
        assert self._process.stdin is not None
        pickle.dump((method, arguments), self._process.stdin)
        self._process.stdin.flush()

    def call(self, method: str, *arguments: Any) -> Any:
        """What a method of its `End` returns."""
        self.send(method, *arguments)
        assert self._process.stdout is not None
        refusal, result = pickle.load(self._process.stdout)
        if refusal is not None:
            # Not every error can be made again from its arguments.
            raise refusal.__new__(refusal, result)
        return result

    def kill(self) -> None:
        """End it with SIGKILL."""
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                stream.close()


class OtherEnd:
    """The `End` of another process."""

    def __init__(self, process: OtherProcess, path: Path) -> None:
        self._process = process
        process.call("open", path.resolve())

    def __getattr__(self, method: str) -> Any:
        return lambda *arguments: self._process.call(method, *arguments)


def _serve() -> None:
    set_sizes(setattr)
    end: End | None = None
    answer: tuple[Any, Any]
    while True:
        try:
            method, arguments = pickle.load(sys.stdin.buffer)
        except EOFError:
            os._exit(0)  # The threads of a store would go on.
        try:
            if method == "open":
                end = End(*arguments)
                answer = None, None
            else:
                answer = None, getattr(end, method)(*arguments)
        except Exception as error:
            answer = type(error), str(error)
        pickle.dump(answer, sys.stdout.buffer)
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    _serve()
