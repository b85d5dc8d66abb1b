"""Space is reserved where the file system can do that, and otherwise promised."""

from __future__ import annotations

import ctypes
import errno
import os
from pathlib import Path
from typing import cast
from unittest import SkipTest, mock

from twisted.logger import ILogObserver, LogEvent, globalLogPublisher
from twisted.trial.unittest import SynchronousTestCase

from artifactserver.store import disk
from artifactserver.store.interface import NoRoom
from tests.local_stores import LocalStoreTestCase
from tests.store_contract import content_of, put, random_blob


class Fallocate:
    """The C library's function, which fails with each of some errors in turn; 0 is for success."""

    def __init__(self, *errors: int) -> None:
        self._errors = list(errors)

    def __call__(self, fd: int, mode: int, offset: int, length: int) -> int:
        error = self._errors.pop(0) if len(self._errors) > 1 else self._errors[0]
        ctypes.set_errno(error)
        return -1 if error else 0


class ReserveTests(SynchronousTestCase):
    """`disk.reserve`."""

    def setUp(self) -> None:
        self.path = Path(self.mktemp())
        self.fd = os.open(self.path, os.O_CREAT | os.O_RDWR)
        self.addCleanup(os.close, self.fd)

    def test_reserved(self) -> None:
        """A file has its space, without a byte being written, and sizes beyond 4 GiB are what they are."""
        if not disk.reserve(self.fd, 10_000_000):
            raise SkipTest("this file system cannot reserve space")
        self.assertGreaterEqual(os.fstat(self.fd).st_blocks * 512, 10_000_000)
        with self.assertRaises(OSError):
            disk.reserve(self.fd, 2**62 + 1)

    def test_nothing(self) -> None:
        """Nothing is always there."""
        self.patch(disk, "_fallocate", Fallocate(errno.EINVAL))
        self.assertTrue(disk.reserve(self.fd, 0))

    def test_not_supported(self) -> None:
        """Where it cannot be done, that is said, and nothing is written in its place."""
        for fallocate in (Fallocate(errno.EOPNOTSUPP), Fallocate(errno.ENOSYS), None):
            self.patch(disk, "_fallocate", fallocate)
            self.assertFalse(disk.reserve(self.fd, 10_000_000))
            self.assertEqual((os.fstat(self.fd).st_blocks, os.fstat(self.fd).st_size), (0, 0))

    def test_interrupted(self) -> None:
        """A signal is no reason to fail."""
        self.patch(disk, "_fallocate", Fallocate(errno.EINTR, errno.EINTR, 0))
        self.assertTrue(disk.reserve(self.fd, 1000))

    def test_full(self) -> None:
        """A full disk is an error, as everywhere."""
        self.patch(disk, "_fallocate", Fallocate(errno.ENOSPC))
        with self.assertRaises(OSError) as caught:
            disk.reserve(self.fd, 1000)
        self.assertEqual(caught.exception.errno, errno.ENOSPC)


class PromisedTests(LocalStoreTestCase):
    """A store on a file system that cannot reserve space."""

    async def test_promised_until_written(self) -> None:
        """What is not written of an upload yet counts as taken; the administrator is told once."""
        self.patch(disk, "_fallocate", Fallocate(errno.EOPNOTSUPP))
        events: list[LogEvent] = []
        observer: ILogObserver = cast(ILogObserver, events.append)
        globalLogPublisher.addObserver(observer)
        self.addCleanup(globalLogPublisher.removeObserver, observer)
        path = self.new_path()
        store = await self.open_store(path)
        each, other = random_blob(6_000_000), random_blob(3_000_000)
        store._room._statvfs = lambda path: mock.Mock(f_bavail=8_000_000, f_frsize=1)
        upload = await store.upload(each.digest, "me")
        (file,) = (path / "incoming").iterdir()
        self.assertEqual((file.stat().st_blocks, store._room._promised), (0, 6_000_000))
        with self.assertRaises(NoRoom):
            await store.upload(other.digest, "you")
        store._room._statvfs = os.statvfs
        await upload.write(each.content[:4_000_000])
        await upload._settled()
        self.assertEqual(store._room._promised, 2_000_000)
        await upload.write(each.content[4_000_000:])
        await upload.commit()
        self.assertEqual(store._room._promised, 0)
        upload.close()
        self.assertEqual(await content_of(store, each.digest), each.content)
        await put(store, other)
        given_up = await store.upload(random_blob(5_000_000).digest, "me")
        await given_up.write(bytes(2_000_000))
        given_up.close()
        while os.listdir(path / "incoming"):
            await store._in_thread(lambda: None)
        self.assertEqual(store._room._promised, 0)
        told = [event for event in events if "cannot reserve space" in (event.get("log_format") or "")]
        self.assertEqual(len(told), 1)
