"""Unix sockets: their files, and what is in the way of one."""

from __future__ import annotations

import fcntl
import os
import shutil
import socket
import tempfile
from pathlib import Path

from twisted.trial.unittest import SkipTest, SynchronousTestCase

from artifactserver.ports.sockets import CannotListen
from artifactserver.ports.unix_ports import UnixSocket
from artifactserver.ports.unix_sockets import open_unix


class OpenTests(SynchronousTestCase):
    """A socket at a path."""

    def setUp(self) -> None:
        # Trial's own folder may have a longer path than a socket can have.
        place = Path(tempfile.mkdtemp())
        self.addCleanup(shutil.rmtree, place)
        self.path = place / "socket"

    def open(self, mode: int = 0o660) -> UnixSocket:
        opened = open_unix(self.path, mode, 5)
        self.addCleanup(opened.close)
        return opened

    def refused(self, pattern: str, path: Path | None = None) -> None:
        error = str(self.assertRaises(CannotListen, open_unix, path or self.path, 0o660, 5))
        self.assertRegex(error, pattern)
        self.assertNotIn("\n", error)

    def test_mode(self) -> None:
        """Its file has the mode that was asked for, whatever the umask, which stays as it was."""
        for umask in (0o077, 0o000):
            before = os.umask(umask)
            self.addCleanup(os.umask, before)
            for mode in (0o600, 0o660, 0o666):
                opened = self.open(mode)
                self.assertEqual(self.path.stat().st_mode & 0o777, mode)
                opened.close()
            self.assertEqual(os.umask(before), umask)

    def test_removed(self) -> None:
        """When it is closed its file is gone, unless that is another one by now."""
        opened = self.open()
        socket.socket(socket.AF_UNIX).connect(str(self.path))
        opened.close()
        self.assertFalse(self.path.exists())
        opened.close()
        opened = self.open()
        self.path.unlink()
        self.path.touch()
        opened.close()
        self.assertTrue(self.path.exists())

    def test_stale(self) -> None:
        """What a server that was killed has left is taken over."""
        with socket.socket(socket.AF_UNIX) as killed:
            killed.bind(str(self.path))
            killed.listen()
        self.assertTrue(self.path.exists())
        self.open()
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(self.path))

    def test_taken(self) -> None:
        """One at which somebody listens is left alone, even if they are too busy to accept."""
        with socket.socket(socket.AF_UNIX) as theirs:
            theirs.bind(str(self.path))
            theirs.listen(0)
            clients = [socket.socket(socket.AF_UNIX) for _ in range(3)]
            for client in clients:
                self.addCleanup(client.close)
                client.setblocking(False)
                client.connect_ex(str(self.path))
            self.refused(f"somebody listens on {self.path} already: stop them, or choose another path")
            theirs.accept()[0].close()

    def test_something_else(self) -> None:
        """What is no socket is left alone."""
        self.path.write_text("mine")
        self.refused(f"{self.path} is there, and no socket: take it away, or choose another path")
        self.assertEqual(self.path.read_text(), "mine")
        self.path.unlink()
        self.path.symlink_to("elsewhere")
        self.refused("is there, and no socket")
        self.assertTrue(self.path.is_symlink())

    def test_another_kind(self) -> None:
        """A socket of another kind is somebody's, and left alone."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as theirs:
            theirs.bind(str(self.path))
            self.refused("somebody listens on")

    def test_no_directory(self) -> None:
        """A directory that is not there, or is none, is named."""
        self.refused(
            "there can be no socket at .*none/socket .No such file.*: choose", self.path.parent / "none/socket"
        )
        self.path.touch()
        self.refused("there can be no socket at .*socket/x .Not a dir", self.path / "x")

    def test_not_allowed(self) -> None:
        """A directory that this user may not write to is named, and nothing is left of the try."""
        if os.geteuid() == 0:
            raise SkipTest("root may write everywhere")
        self.path.parent.chmod(0o500)
        self.addCleanup(self.path.parent.chmod, 0o700)
        self.refused("there can be no socket at .*Permission denied")

    def test_one_at_a_time(self) -> None:
        """While somebody else opens a socket in the directory it is not looked whether anybody listens."""
        descriptor = os.open(self.path.parent, os.O_RDONLY)
        self.addCleanup(os.close, descriptor)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        self.refused(f"another program has locked the directory {self.path.parent}: try again")
        self.assertFalse(self.path.exists())
        fcntl.flock(descriptor, fcntl.LOCK_UN)
        self.open()
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def test_owner(self) -> None:
        """It can be given to somebody else; where that is not allowed nothing is left of the try."""
        opened = open_unix(self.path, 0o660, 5, (os.geteuid(), os.getegid()))
        opened.close()
        if os.geteuid() == 0:
            opened = open_unix(self.path, 0o660, 5, (65534, 65533))
            found = self.path.stat()
            self.assertEqual((found.st_uid, found.st_gid, found.st_mode & 0o777), (65534, 65533, 0o660))
            opened.close()

        def may_not(*arguments: object) -> None:
            raise PermissionError(1, "Operation not permitted")

        self.patch(os, "chown", may_not)
        error = self.assertRaises(CannotListen, open_unix, self.path, 0o660, 5, (1, 1))
        self.assertRegex(str(error), "Operation not permitted")
        self.assertFalse(self.path.exists())
