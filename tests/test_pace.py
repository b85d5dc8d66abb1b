"""How slow an upload may be, and how much of all uploads may wait for the disk."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from artifactserver.store import pace
from artifactserver.store.digest import Digest
from artifactserver.store.interface import StoreError, TooSlow
from artifactserver.store.pace import FREE_SECONDS, LONGEST_UPLOAD, SLOWEST_PACE, is_too_slow
from artifactserver.store.room import Promise, Room
from artifactserver.store.uploads import GATHER_BYTES, FileUpload, Uploads

#: Bytes per second of a slow line: 256 kbit/s.
SLOW_LINE = 32 * 1024


class RuleTests(SynchronousTestCase):
    """What is too slow."""

    def test_free(self) -> None:
        """For a while, nothing is."""
        self.assertFalse(is_too_slow(0, FREE_SECONDS))
        self.assertTrue(is_too_slow(0, FREE_SECONDS + 1))

    def test_slow_line(self) -> None:
        """Eight uploads of 2 GB at once over a slow line are not, nor is one that rests most of the time."""
        for seconds in range(0, 2 * 10**9 // (SLOW_LINE // 8), 10_000):
            self.assertFalse(is_too_slow(seconds * SLOW_LINE // 8, seconds))
        for hours in range(1, 100):
            self.assertFalse(is_too_slow(hours * 450 * SLOW_LINE, hours * 3600))

    def test_trickle(self) -> None:
        """A byte every minute is, after a while."""
        self.assertTrue(is_too_slow(11, 11 * 60))

    def test_longest(self) -> None:
        """Nothing takes longer than a week, however much has come."""
        self.assertFalse(is_too_slow(2**40, LONGEST_UPLOAD))
        self.assertTrue(is_too_slow(2**40, LONGEST_UPLOAD + 1))


class Disk:
    """Threads that do what they are given when they are told to.

    :ivar jobs: what they have not done yet.
    """

    def __init__(self) -> None:
        self.jobs: list[tuple[Callable[[], Any], Deferred[Any]]] = []
        self.fast = True

    def run(self, function: Callable[[], Any]) -> Deferred[Any]:
        done: Deferred[Any] = Deferred()
        self.jobs.append((function, done))
        if self.fast:
            self.work()
        return done

    def work(self) -> None:
        while self.jobs:
            function, done = self.jobs.pop(0)
            done.callback(function())


class _UploadTestCase(SynchronousTestCase):
    def setUp(self) -> None:
        self.incoming = Path(self.mktemp()).absolute()
        self.incoming.mkdir()
        self.clock = Clock()
        self.disk = Disk()
        self.room = Room(self.incoming, 0)
        self.committed: list[Any] = []
        self.uploads = Uploads(self.incoming, self.disk.run, self.commit, lambda: 0.0, self.clock.seconds)

    def commit(self, received: Any) -> Deferred[None]:
        self.committed.append(received)
        done: Deferred[None] = Deferred()
        done.callback(None)
        return done

    def begin(self, content: bytes) -> FileUpload:
        digest = Digest.of(content)
        self.room.enter("peer", digest.size)
        upload = self.uploads.new(digest, Promise(self.room, 0), lambda: self.room.leave("peer", digest.size))
        self.successResultOf(Deferred.fromCoroutine(upload.begin()))
        return upload

    def write(self, upload: FileUpload, content: bytes) -> Deferred[None]:
        return Deferred.fromCoroutine(upload.write(content))


class PaceTests(_UploadTestCase):
    """Uploads that are slow."""

    def test_given_up(self) -> None:
        """One that is too slow loses its file and its room at once, and its client learns that with its next bytes."""
        upload = self.begin(bytes(500_000))
        self.successResultOf(self.write(upload, bytes(100_000)))
        self.clock.advance(FREE_SECONDS)
        self.assertEqual(self.uploads.end_slow(), 0)
        self.clock.advance(100_000 / SLOWEST_PACE + 1)
        self.assertEqual(len(os.listdir(self.incoming)), 1)
        self.assertEqual(self.uploads.end_slow(), 1)
        self.assertEqual((os.listdir(self.incoming), self.room._callers), ([], {}))
        error = self.failureResultOf(self.write(upload, b"x"), TooSlow).value
        self.assertRegex(str(error), "100000 bytes in 62[0-9] seconds are too few")
        self.failureResultOf(Deferred.fromCoroutine(upload.commit()), StoreError)
        upload.close()
        self.assertEqual(self.uploads.end_slow(), 0)

    def test_steady(self) -> None:
        """One that comes slowly but steadily comes to its end."""
        content = bytes(10_000_000)
        upload = self.begin(content)
        for start in range(0, len(content), 100_000):
            self.clock.advance(100_000 / SLOWEST_PACE)
            self.assertEqual(self.uploads.end_slow(), 0)
            self.successResultOf(self.write(upload, content[start : start + 100_000]))
        self.successResultOf(Deferred.fromCoroutine(upload.commit()))
        self.assertEqual(len(self.committed), 1)
        upload.close()

    def test_slow_disk(self) -> None:
        """The time that the disk takes is not the client's."""
        upload = self.begin(bytes(3 * GATHER_BYTES))
        self.disk.fast = False
        self.successResultOf(self.write(upload, bytes(GATHER_BYTES)))
        self.clock.advance(10 * LONGEST_UPLOAD)
        self.assertEqual(self.uploads.end_slow(), 0)
        self.disk.work()
        self.clock.advance(FREE_SECONDS)
        self.assertEqual(self.uploads.end_slow(), 0)
        upload.close()
        self.disk.work()


class BacklogTests(_UploadTestCase):
    """What waits for the disk."""

    def test_waiting_bytes(self) -> None:
        """While much of all uploads waits for the disk, each waits for its own; when it is written, they go on."""
        self.patch(pace, "WAITING_BYTES", 4 * GATHER_BYTES)
        uploads = [self.begin(bytes([number]) + bytes(9 * GATHER_BYTES)) for number in range(10)]
        self.disk.fast = False
        written = []
        for number, upload in enumerate(uploads):
            written.append(self.write(upload, bytes([number]) + bytes(GATHER_BYTES)))
        self.assertEqual([done.called for done in written], [True] * 3 + [False] * 7)
        self.disk.work()
        for done in written:
            self.successResultOf(done)
        self.assertEqual(self.uploads._backlog.waiting, 0)
        for upload in uploads:
            upload.close()
        self.disk.work()

    def test_idle_uploads(self) -> None:
        """What uploads have gathered while nothing comes counts as well: it is written sooner when there is much."""
        self.patch(pace, "WAITING_BYTES", 4 * GATHER_BYTES)
        uploads = [self.begin(bytes([number]) + bytes(9 * GATHER_BYTES)) for number in range(30)]
        for upload in uploads:
            self.successResultOf(self.write(upload, bytes(GATHER_BYTES - 1)))
            self.assertLess(self.uploads._backlog.waiting, 5 * GATHER_BYTES)
        for upload in uploads:
            upload.close()
        self.assertEqual((self.uploads._backlog.waiting, os.listdir(self.incoming)), (0, []))

    def test_closed_in_the_middle(self) -> None:
        """An upload that is closed leaves nothing in the count, whatever it was at."""
        self.disk.fast = True
        for late in (False, True):
            upload = self.begin(bytes([late]) + bytes(9 * GATHER_BYTES))
            self.disk.fast = False
            self.successResultOf(self.write(upload, bytes(GATHER_BYTES)))
            self.successResultOf(self.write(upload, bytes(1000)))
            if late:
                self.disk.work()
            upload.close()
            self.disk.fast = True
            self.disk.work()
            self.assertEqual((self.uploads._backlog.waiting, os.listdir(self.incoming)), (0, []))
