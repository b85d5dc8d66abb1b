"""A directory is taken for a repository only if it is one, and is made into one only if it is empty."""

from __future__ import annotations

import errno
import fcntl
import os
from pathlib import Path
from unittest import SkipTest, mock

from twisted.trial.unittest import SynchronousTestCase

from artifactserver.store.layout import RepositoryProblem
from artifactserver.store.repository import Repository, prepare


class PrepareTests(SynchronousTestCase):
    """`prepare`, before a server starts."""

    def setUp(self) -> None:
        self.path = Path(self.mktemp())

    def refusal(self) -> str:
        """The sentence with which the directory is refused."""
        with self.assertRaises(RepositoryProblem) as caught:
            prepare(self.path)
        sentence = str(caught.exception)
        self.assertIn(str(self.path), sentence)
        self.assertNotIn("\n", sentence)
        return sentence

    def test_new(self) -> None:
        """A directory that does not exist, or is empty, becomes a repository; a second time changes nothing."""
        prepare(self.path)
        before = (self.path / "format").read_bytes()
        prepare(self.path)
        self.assertEqual((self.path / "format").read_bytes(), before)
        other = Path(self.mktemp())
        other.mkdir()
        prepare(other)
        self.assertNotEqual((other / "format").read_bytes(), before)

    def test_nothing_stays_open(self) -> None:
        """Nothing is left open that a fork would inherit."""
        before = os.listdir("/proc/self/fd")
        prepare(self.path)
        self.assertEqual(len(os.listdir("/proc/self/fd")), len(before))

    def test_half_made(self) -> None:
        """A directory in which making a repository was cut off becomes one."""
        prepare(self.path)
        (self.path / "format").rename(self.path / "format.new")
        for part in (self.path / "index").iterdir():  # it is made after the format file
            part.unlink()
        prepare(self.path)
        self.assertFalse((self.path / "format.new").exists())

    def test_half_made_index(self) -> None:
        """A directory in which making the index was cut off becomes a repository, as long as it holds nothing."""
        prepare(self.path)
        for content in (b"", None):
            for part in (self.path / "index").iterdir():
                part.unlink()
            if content is not None:
                (self.path / "index" / "data.mdb").write_bytes(content)
            prepare(self.path)

    def test_foreign(self) -> None:
        """A directory that holds something else is refused, and nothing in it changes."""
        self.path.mkdir()
        (self.path / "thesis.tex").touch()
        self.assertIn("not an artifactserver repository", self.refusal())
        self.assertEqual(os.listdir(self.path), ["thesis.tex"])

    def test_old_server(self) -> None:
        """A directory of BuildStream's own server is refused by name."""
        for name in ("cas", "refs"):
            (self.path / name).mkdir(parents=True)
        self.assertIn("BuildStream", self.refusal())

    def test_newer(self) -> None:
        """A repository of a newer format is refused, and says which version is needed."""
        prepare(self.path)
        line = (self.path / "format").read_text()
        (self.path / "format").write_text(line.replace("format 1,", "format 2,"))
        self.assertIn("install a newer artifactserver", self.refusal())

    def test_scribbled(self) -> None:
        """A format file that makes no sense is refused."""
        prepare(self.path)
        (self.path / "format").write_bytes(b"\xff" * 1000)
        self.assertIn("format file", self.refusal())

    def test_lost_format(self) -> None:
        """A repository with data that has lost its format file is not taken for an empty directory."""
        prepare(self.path)
        (self.path / "packs" / "0000000000000000.pack").touch()
        (self.path / "format").unlink()
        self.assertIn("restore", self.refusal())

    def test_a_file(self) -> None:
        """A file is no repository."""
        self.path.touch()
        self.refusal()

    def test_not_writable(self) -> None:
        """A directory that this user cannot write is refused."""
        if os.geteuid() == 0:
            raise SkipTest("root can write everywhere")
        self.path.mkdir(mode=0o555)
        self.assertIn("permission", self.refusal().lower())

    def test_missing_part(self) -> None:
        """A repository that has lost one of its directories is refused, by name."""
        for name in ("packs", "blobs", "incoming", "quarantine"):
            self.path = Path(self.mktemp())
            prepare(self.path)
            (self.path / name).rmdir()
            self.assertIn(str(self.path / name), self.refusal())

    def test_being_repaired(self) -> None:
        """A repository that is being rebuilt is not served."""
        prepare(self.path)
        lock = Repository(self.path)
        lock.close()
        fd = lock.layout.lock(exclusive=True)
        self.assertIn("being repaired", self.refusal())
        os.close(fd)
        prepare(self.path)

    def test_no_locks_left(self) -> None:
        """A repository that cannot be locked for want of locks is refused in one sentence, and not kept open."""
        prepare(self.path)
        refused = OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))
        before = os.listdir("/proc/self/fd")
        with mock.patch.object(fcntl, "flock", side_effect=refused):
            self.assertIn(refused.strerror, self.refusal())
        self.assertEqual(os.listdir("/proc/self/fd"), before)
