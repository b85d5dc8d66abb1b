"""Changing a file of tokens."""

from __future__ import annotations

import fcntl
import os
import stat
import subprocess
import sys
from pathlib import Path

from twisted.trial.unittest import SkipTest, SynchronousTestCase

from artifactserver.access import Right
from artifactserver.tokens import known, token_file
from artifactserver.tokens.known import HEADING, TokenProblem, read_tokens
from artifactserver.tokens.token_file import add, revoke
from tests.processes import environment
from tests.test_tap import IMPORT_PATH
from tests.test_tokens import token

#: Adds tokens to a file, as many commands would one after another.
_ADD = "import sys, pathlib; from artifactserver.tokens import token_file; [token_file.add(pathlib.Path(sys.argv[1]), f'{sys.argv[2]}.{number}', push=False) for number in range(20)]"  # noqa: E501


class ChangeTests(SynchronousTestCase):
    """Adding and revoking."""

    def setUp(self) -> None:
        self.place = Path(self.mktemp()).absolute()
        self.place.mkdir()
        self.path = self.place / "tokens"

    def fails(self, pattern: str, function: object, *arguments: object, **options: object) -> None:
        """It is refused in one sentence, and nothing has changed."""
        before = self.path.read_bytes() if self.path.exists() else None
        error = self.assertRaises(TokenProblem, function, *arguments, **options)
        self.assertRegex(str(error), pattern)
        self.assertNotIn("\n", str(error))
        self.assertEqual(self.path.read_bytes() if self.path.exists() else None, before)

    def mode(self) -> int:
        return stat.S_IMODE(self.path.stat().st_mode)

    def test_byte_order_mark(self) -> None:
        """A mark that an editor has put before the first line is no harm, whatever that line is."""
        for before in ("", "# ours\n", f"{HEADING}\n"):
            self.path.write_text(before, encoding="utf-8-sig")
            self.assertEqual(len(read_tokens(self.path)), 0)
            add(self.path, "alice", push=False)
            self.assertEqual(read_tokens(self.path).names, {"alice"})

    def test_add(self) -> None:
        """The first token makes the file, for its owner alone; the secret is not in it."""
        secret = add(self.path, "alice", push=True)
        other = add(self.path, "bob", push=False)
        known = read_tokens(self.path)
        alice, bob = known.find(secret.encode()), known.find(other.encode())
        assert alice is not None
        assert bob is not None
        self.assertEqual((alice.name, alice.rights), ("alice", {Right.PULL, Right.PUSH}))
        self.assertEqual((bob.name, bob.rights), ("bob", {Right.PULL}))
        self.assertEqual(self.mode(), 0o600)
        self.assertNotIn(secret, self.path.read_text())
        self.assertEqual(os.listdir(self.place), ["tokens"])

    def test_revoke(self) -> None:
        """A token that was revoked is not found any more, and all others are."""
        secrets = {name: add(self.path, name, push=False).encode() for name in ("a", "b", "artifactserver", "c")}
        self.assertEqual(revoke(self.path, "b").name, "b")
        self.assertEqual(revoke(self.path, "artifactserver").name, "artifactserver")
        known = read_tokens(self.path)
        self.assertEqual(known.names, {"a", "c"})
        self.assertIsNone(known.find(secrets["b"]))
        for name in ("a", "c"):
            revoke(self.path, name)
        self.assertEqual(self.path.read_text(), f"{HEADING}\n")

    def test_comments_stay(self) -> None:
        """What people wrote into the file stays as it is."""
        alice = token("alice").line()
        before = f"# ours\n\n{HEADING}\n  # desk\n{alice}   \n# caf\u00e9"
        self.path.write_text(before, encoding="utf-8")
        add(self.path, "bob", push=False)
        text = self.path.read_text(encoding="utf-8")
        self.assertTrue(text.startswith(f"{before}\nbob pull sha256:"), text)
        revoke(self.path, "bob")
        self.assertEqual(self.path.read_text(encoding="utf-8"), f"{before}\n")

    def test_comments_alone(self) -> None:
        """An empty file, or one with comments alone, can be added to."""
        for text in ("", "\n", "# nobody yet\n"):
            self.path.write_text(text)
            add(self.path, "bob", push=False)
            self.assertEqual(read_tokens(self.path).names, {"bob"})
            self.assertIn(text.strip(), self.path.read_text())

    def test_mode_stays(self) -> None:
        """A file that its owner let others read, or nobody write, stays so."""
        for mode in (0o644, 0o400, 0o640):
            self.path.touch()
            self.path.chmod(mode)
            add(self.path, "alice", push=False)
            self.assertEqual(self.mode(), mode)
            revoke(self.path, "alice")
            self.assertEqual(self.mode(), mode)
            self.path.unlink()

    def test_not_writable(self) -> None:
        """A file that its owner may only read can be changed all the same, since it is another that takes its place."""
        add(self.path, "alice", push=False)
        open_ = os.open

        def not_to_write(path: Path, flags: int, *mode: int) -> int:
            if path == self.path and flags & os.O_RDWR:
                raise PermissionError(13, "Permission denied")
            return open_(path, flags, *mode)

        self.patch(os, "open", not_to_write)
        add(self.path, "bob", push=False)
        self.assertEqual(read_tokens(self.path).names, {"alice", "bob"})

    def test_owner_stays(self) -> None:
        """When root changes the file of another user, it stays that user's."""
        if os.geteuid() != 0:
            raise SkipTest("only root can give files away")
        self.path.touch()
        os.chown(self.path, 12345, 23456)
        add(self.path, "alice", push=False)
        there = self.path.stat()
        self.assertEqual((there.st_uid, there.st_gid), (12345, 23456))

    def test_owner_cannot_stay(self) -> None:
        """Who cannot keep the owner changes nothing, or the server might not be able to read the file."""

        def may_not(*arguments: object) -> None:
            raise PermissionError(1, "Operation not permitted")

        if os.geteuid() != 0:
            raise SkipTest("only root can give files away")
        self.path.touch()
        os.chown(self.path, 12345, 23456)
        self.patch(os, "fchown", may_not)
        self.fails("belongs to a user or group .*: change it as its owner, or as root", add, self.path, "x", push=False)
        self.assertEqual(os.listdir(self.place), ["tokens"])

    def test_link(self) -> None:
        """Where the name is a link, the file that it leads to is changed, and the link stays."""
        link = self.place / "link"
        link.symlink_to("tokens")
        secret = add(link, "alice", push=False)
        self.assertTrue(link.is_symlink())
        self.assertIsNotNone(read_tokens(self.path).find(secret.encode()))

    def test_names(self) -> None:
        """A token has a name of its own, of a kind that can be typed and logged."""
        for name in ("a", "A.b_c-d@e", "x" * 64, "-x"):
            add(self.path, name, push=False)
        for name in ("", "x" * 65, "a b", "a/b", "a:b", "caf\u00e9", "a\n", "#a"):
            self.fails(f"is no name for a token: give {known.NAMES}", add, self.path, name, push=False)
            self.fails("is no name for a token", revoke, self.path, name)
        self.fails("has a token with the name 'a': revoke that, or choose another", add, self.path, "a", push=False)
        self.fails("has no token with the name 'A'", revoke, self.path, "A")

    def test_bounds(self) -> None:
        """There are so many tokens and bytes in a file, and no more."""
        self.patch(token_file, "MAX_TOKENS", 2)
        for name in ("a", "b"):
            add(self.path, name, push=False)
        self.fails("has 2 tokens, and more are not taken: revoke some", add, self.path, "c", push=False)
        revoke(self.path, "a")
        self.patch(token_file, "MAX_FILE_BYTES", self.path.stat().st_size)
        self.fails("would have more than [0-9]+ bytes", add, self.path, "a", push=False)

    def test_not_ours(self) -> None:
        """A file that is something else is left alone."""
        self.path.write_text("root:x:0:0\n")
        self.fails("line 1 of .* is not", add, self.path, "a", push=False)
        self.fails("line 1 of .* is not", revoke, self.path, "a")

    def test_nowhere(self) -> None:
        """Where no file can be there is none."""
        self.fails("cannot be opened to change it", revoke, self.path, "a")
        self.assertFalse(self.path.exists())
        self.fails("cannot be opened .* give --tokens a file in a directory", add, self.path / "x", "a", push=False)

    def test_disk_fails(self) -> None:
        """If the new file cannot be written, the old one stays, and nothing is left beside it."""

        def full(*arguments: object) -> None:
            raise OSError(28, "No space left on device")

        add(self.path, "a", push=False)
        for step in ("fsync", "replace"):
            with self.subTest(step):
                patch = self.patch(os, step, full)
                self.fails(r"cannot be changed \(No space left on device\)", add, self.path, "b", push=False)
                self.fails(r"cannot be changed \(No space left on device\)", revoke, self.path, "a")
                self.assertEqual(os.listdir(self.place), ["tokens"])
                patch.restore()

    def test_left_behind(self) -> None:
        """What a command that was killed has left is no hindrance, be it a link to somewhere else."""
        elsewhere = self.place / "elsewhere"
        elsewhere.write_text("mine")
        (self.place / ".tokens.new").symlink_to(elsewhere)
        add(self.path, "a", push=False)
        self.assertEqual(elsewhere.read_text(), "mine")
        self.assertEqual(sorted(os.listdir(self.place)), ["elsewhere", "tokens"])

    def test_order(self) -> None:
        """It is on disk before it takes the old one's place, and so is that before the command ends."""
        done = []
        for step in ("fsync", "replace"):
            original = getattr(os, step)

            def spy(*arguments: object, step: str = step, original: object = original) -> None:
                done.append(step)
                original(*arguments)  # type: ignore[operator]

            self.patch(os, step, spy)
        add(self.path, "a", push=False)
        self.assertEqual(done, ["fsync", "replace", "fsync"])

    def test_at_once(self) -> None:
        """Several commands at once lose nothing of each other."""
        env = environment(self.place / "home") | {"PYTHONPATH": IMPORT_PATH}
        names = ("a", "b", "c")
        commands = [subprocess.Popen([sys.executable, "-c", _ADD, str(self.path), name], env=env) for name in names]
        self.assertEqual([command.wait(60) for command in commands], [0, 0, 0])
        expected = {f"{name}.{number}" for name in names for number in range(20)}
        self.assertEqual(read_tokens(self.path).names, expected)

    def test_turn(self) -> None:
        """A command that had to wait for another one goes on with what that has made."""
        add(self.path, "a", push=False)
        lock = fcntl.flock
        waited: list[bool] = []

        def other_first(fd: int, how: int) -> None:
            if not waited:
                waited.append(True)
                add(self.path, "other", push=False)
            lock(fd, how)

        self.patch(fcntl, "flock", other_first)
        add(self.path, "b", push=False)
        self.assertEqual(read_tokens(self.path).names, {"a", "other", "b"})
