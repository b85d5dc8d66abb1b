"""Files that are read again when they change."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from twisted.logger import LogLevel, globalLogPublisher
from twisted.trial.unittest import SynchronousTestCase

from artifactserver.watched import RESTLESS_LOOKS, RETRY_LOOKS, SETTLED_LOOKS, Watched


class Unreadable(Exception):
    """What is wrong with a file of these tests."""


class WatchedTests(SynchronousTestCase):
    """A file with one word in each line; a line that is not a word is wrong."""

    def setUp(self) -> None:
        self.place = Path(self.mktemp()).absolute()
        self.place.mkdir()
        self.path = self.place / "words"
        self.path.write_text("one\n")
        self.reads = 0
        self.settled: list[list[str]] = []
        self.events: list[Any] = []
        observer: Any = self.events.append
        globalLogPublisher.addObserver(observer)
        self.addCleanup(globalLogPublisher.removeObserver, observer)
        self.watched = self.watch(self.path)

    def watch(self, *paths: Path, **options: Any) -> Watched[list[str]]:
        watched = Watched(paths, lambda: self.read(*paths), Unreadable, **options)
        watched.settled = self.settled.append
        return watched

    def read(self, *paths: Path) -> list[str]:
        self.reads += 1
        words: list[str] = []
        for path in paths:
            try:
                lines = path.read_text().splitlines()
            except OSError as error:
                raise Unreadable(f"{path} cannot be read ({error.strerror})") from None
            for number, line in enumerate(lines, 1):
                if not line.isalpha():
                    raise Unreadable(f"line {number} of {path} is no word")
            words += lines
        return words

    def settle(self) -> None:
        """Look as often as it takes."""
        for _ in range(SETTLED_LOOKS + 1):
            self.watched.look()

    def said(self, level: LogLevel = LogLevel.warn) -> list[str]:
        return [str(event.get("wrong", event["log_format"])) for event in self.events if event["log_level"] is level]

    def test_beginning(self) -> None:
        """What is there in the beginning is in force, and what cannot be used is refused."""
        self.assertEqual(self.watched.value, ["one"])
        self.assertRaises(Unreadable, self.watch, self.place / "gone")
        self.path.write_text("1\n")
        self.assertRaises(Unreadable, self.watch, self.path)

    def test_unchanged(self) -> None:
        """A file that does not change is not read again and again, and nobody is told of it."""
        for _ in range(50):
            self.watched.look()
        self.assertEqual(self.reads, 2)
        self.assertEqual((self.settled, self.said(), self.said(LogLevel.info)), ([], [], []))

    def test_append(self) -> None:
        """What is appended is there with the next look, and is told of once it has settled."""
        taken: list[list[str]] = []
        self.watched.taken = taken.append
        with self.path.open("a") as file:
            file.write("two\n")
        self.watched.look()
        self.assertEqual(self.watched.value, ["one", "two"])
        self.assertEqual((taken, self.settled), ([["one", "two"]], []))
        self.settle()
        self.settle()
        self.assertEqual(self.settled, [["one", "two"]])

    def test_restless(self) -> None:
        """What was read counts as settled after a while, though the file never comes to rest, or breaks meanwhile."""
        for breaks in (False, True):
            self.settled.clear()
            self.path.write_text("left\n")
            for look in range(RESTLESS_LOOKS):
                self.assertEqual(self.settled, [], look)
                self.watched.look()
                self.path.write_text("1\n" if breaks else "left\n" * (look % 2 + 1))
            self.assertEqual([set(words) for words in self.settled], [{"left"}])
            self.path.write_text("left\n")
            self.settle()

    def test_at_once(self) -> None:
        """Whoever needs the newest gets it without waiting for a look."""
        self.assertFalse(self.watched.catch_up())
        self.path.write_text("two\n")
        self.assertTrue(self.watched.catch_up())
        self.assertEqual(self.watched.value, ["two"])
        self.settle()
        self.assertEqual(self.settled, [["two"]])

    def test_rename(self) -> None:
        """A file that is replaced by renaming is another one, though size and time of its change are the same."""
        other = self.place / "other"
        other.write_text("two\n")
        status = self.path.stat()
        os.utime(other, ns=(status.st_atime_ns, status.st_mtime_ns))
        os.rename(other, self.path)
        self.watched.look()
        self.assertEqual(self.watched.value, ["two"])

    def test_symlink(self) -> None:
        """A symlink that is turned elsewhere is a change, also where it is one on the way, as certbot has it."""
        for number in ("1", "2"):
            (self.place / "archive" / number).mkdir(parents=True)
            (self.place / "archive" / number / "words").write_text(f"archive{'x' * int(number)}\n")
        (self.place / "live").symlink_to("archive/1")
        (self.place / "link").symlink_to("live/words")
        self.watched = self.watch(self.place / "link")
        self.assertEqual(self.watched.value, ["archivex"])
        (self.place / "new").symlink_to("archive/2")
        os.rename(self.place / "new", self.place / "live")
        self.watched.look()
        self.assertEqual(self.watched.value, ["archivexx"])

    def test_same_size_and_time(self) -> None:
        """A file whose times were set back after it was written is read again all the same."""
        status = self.path.stat()
        # The clock of the file system has steps.
        while self.path.stat().st_ctime_ns == status.st_ctime_ns:
            self.path.write_text("two\n")
            os.utime(self.path, ns=(status.st_atime_ns, status.st_mtime_ns))
        self.watched.look()
        self.assertEqual(self.watched.value, ["two"])

    def test_each_sign(self) -> None:
        """Another device, inode, size or time is a change each, though all else is the same."""
        status = self.path.stat()
        signs = {name: getattr(status, name) for name in dir(status) if name.startswith("st_")}
        self.path.write_text("two\n")
        for name in ("st_dev", "st_ino", "st_size", "st_mtime_ns", "st_ctime_ns"):
            self.patch(os, "stat", lambda path: SimpleNamespace(**signs))
            self.watched.catch_up()
            signs[name] += 1
            self.assertTrue(self.watched.catch_up(), name)
            self.assertFalse(self.watched.catch_up(), name)

    def test_within_one_step_of_the_clock(self) -> None:
        """Two changes that look like one are both seen in the end."""
        version = self.watched._version_now
        self.path.write_text("two\n")
        self.watched.look()
        before = version()
        self.path.write_text("six\n")
        self.patch(self.watched, "_version_now", lambda: before)
        self.watched.look()
        self.assertEqual(self.watched.value, ["two"])
        self.settle()
        self.assertEqual((self.watched.value, self.settled), (["six"], [["six"]]))

    def test_broken(self) -> None:
        """A broken version is complained of once, with file and line; the old one stays; then a good one is taken."""
        self.path.write_text("one\n2\n")
        for _ in range(20):
            self.watched.look()
        self.assertEqual(self.watched.value, ["one"])
        self.assertEqual(self.said(), [f"line 2 of {self.path} is no word"])
        self.path.write_text("one\ntwo\n3\n")
        self.settle()
        self.assertEqual(self.said()[1:], [f"line 3 of {self.path} is no word"])
        self.path.write_text("one\ntwo\n")
        self.watched.look()
        self.assertEqual(self.watched.value, ["one", "two"])
        self.settle()
        self.assertEqual(self.settled, [["one", "two"]])
        self.assertIn("what is there now is in force", self.said()[-1])

    def test_half(self) -> None:
        """A file that is seen half written is nothing to complain of, and nothing to settle for."""
        for half in ("", "o", "one\n2", "one\n", "one\ntwo\n"):
            self.path.write_text(half)
            self.watched.look()
        self.settle()
        self.assertEqual((self.said(), self.settled), ([], [["one", "two"]]))

    def test_gone(self) -> None:
        """A file that is gone for a moment changes nothing; that it stays away is said once, and that it is back."""
        for looks in (1, 20):
            kept = self.place / "kept"
            os.rename(self.path, kept)
            for _ in range(looks):
                self.watched.look()
            os.rename(kept, self.path)
            self.assertEqual(self.watched.value, ["one"])
            self.settle()
            self.assertEqual(self.watched.value, ["one"])
        self.assertEqual(
            self.said(),
            [
                f"{self.path} cannot be read (No such file or directory)",
                "{paths} changed, and what is there now is in force",
            ],
        )

    def test_changed_while_read(self) -> None:
        """What changes while it is read is not taken, since it may be half old and half new."""
        read = self.read

        def meanwhile(*paths: Path) -> list[str]:
            words = read(*paths)
            if self.reads == 2:
                self.path.write_text("three\nand more\n".replace(" ", ""))
            return words

        self.read = meanwhile  # type: ignore[method-assign]
        self.path.write_text("three\n")
        self.watched.look()
        self.assertEqual(self.watched.value, ["one"])
        self.watched.look()
        self.assertEqual(self.watched.value, ["three", "andmore"])

    def test_two_files(self) -> None:
        """Files that belong together may be replaced one after the other, in some time, without a complaint."""
        other = self.place / "other"
        other.write_text("two\n")
        self.watched = self.watch(self.path, other, patience=10)
        other.unlink()
        for _ in range(9):
            self.watched.look()
        other.write_text("six\n")
        self.watched.look()
        self.assertEqual(self.watched.value, ["one", "six"])
        self.settle()
        self.assertEqual((self.said(), self.settled), ([], [["one", "six"]]))

    def test_rights(self) -> None:
        """What comes back without a trace on the file itself is found, and so is what went that way."""
        may_not = True
        read = self.read

        def denied(*paths: Path) -> list[str]:
            if may_not:
                raise Unreadable("permission denied")
            return read(*paths)

        self.read = denied  # type: ignore[method-assign]
        self.settle()
        self.assertEqual((self.watched.value, self.said()), (["one"], ["permission denied"]))
        for _ in range(1000):
            self.watched.look()
        reads = self.reads
        may_not = False
        for _ in range(RETRY_LOOKS):
            self.watched.look()
        self.assertEqual(self.settled, [["one"]])
        self.assertEqual(self.reads, reads + 1)

    def test_seldom(self) -> None:
        """A version that cannot be used is not read again with each look for ever."""
        self.path.write_text("1\n")
        for _ in range(RETRY_LOOKS * 10):
            self.watched.look()
        self.assertLess(self.reads, 30)

    def test_fault(self) -> None:
        """A fault of our own is not taken for one of the file, and does not come again with each look."""
        self.read = lambda *paths: [][1]  # type: ignore[method-assign]
        self.path.write_text("two\n")
        self.assertRaises(IndexError, self.watched.look)
        self.watched.look()
        self.assertEqual(self.watched.value, ["one"])
