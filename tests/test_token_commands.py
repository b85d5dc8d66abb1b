"""``artifactserver token``."""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from artifactserver.cli import administer
from artifactserver.tokens.commands import AddOptions
from artifactserver.tokens.known import read_tokens
from tests.processes import environment
from tests.test_cli import Broken, program
from tests.test_tap import AT_ONCE, IMPORT_PATH


class TokenCommandTests(SynchronousTestCase):
    """Adding, listing and revoking."""

    def setUp(self) -> None:
        self.place = Path(self.mktemp()).absolute()
        self.place.mkdir()
        self.path = self.place / "tokens"
        self.out, self.err = io.StringIO(), io.StringIO()
        self.patch(sys, "stdout", self.out)
        self.patch(sys, "stderr", self.err)

    def run_token(self, *arguments: str) -> tuple[int, str, str]:
        """Run a command; gives its status, and what it said on standard output and error."""
        status = administer(["token", *arguments])
        said = self.out.getvalue(), self.err.getvalue()
        for stream in (self.out, self.err):
            stream.truncate(0)
            stream.seek(0)
        return status, *said

    def test_add(self) -> None:
        """The token is alone on standard output, and what may be done with it is said beside it."""
        for options, may in (["--push"], "may pull and push"), ([], "may pull;"):
            name = f"ci{len(options)}"
            status, out, err = self.run_token("add", name, *options, "--tokens", str(self.path))
            self.assertEqual(status, 0)
            self.assertRegex(out, r"\Aast_\S+\n\Z")
            self.assertIn(f"'{name}' was added to {self.path} and {may}", err)
            self.assertNotIn(out.strip(), err)
            found = read_tokens(self.path).find(out.strip().encode())
            assert found is not None
            self.assertEqual(found.name, name)

    def test_options_anywhere(self) -> None:
        """Options may stand before and behind the name."""
        self.assertEqual(self.run_token("add", "--tokens", str(self.path), "--push", "a")[0], 0)
        self.assertEqual(self.run_token("add", f"--tokens={self.path}", "b", "--push")[0], 0)
        self.assertEqual(self.run_token("list", "--tokens", str(self.path))[1], "a push\nb push\n")

    def test_list(self) -> None:
        """Each token is a line with its name and right; no secret and no hash is shown."""
        self.run_token("add", "alice", "--tokens", str(self.path))
        self.run_token("add", "ci", "--push", "--tokens", str(self.path))
        self.assertEqual(self.run_token("list", "--tokens", str(self.path)), (0, "alice pull\nci push\n", ""))

    def test_revoke(self) -> None:
        """A token that was revoked is gone."""
        self.run_token("add", "alice", "--tokens", str(self.path))
        status, out, err = self.run_token("revoke", "alice", "--tokens", str(self.path))
        self.assertEqual((status, out), (0, ""))
        self.assertIn("'alice' was revoked", err)
        self.assertEqual(self.run_token("list", "--tokens", str(self.path)), (0, "", ""))

    def test_cannot(self) -> None:
        """What cannot be done is one sentence and status 1."""
        self.run_token("add", "alice", "--tokens", str(self.path))
        for arguments in (("add", "alice"), ("add", "a b"), ("revoke", "bob")):
            status, out, err = self.run_token(*arguments, "--tokens", str(self.path))
            self.assertEqual((status, out), (1, ""))
            self.assertRegex(err, r"\Aartifactserver token: [^\n]+\n\Z")
        self.assertEqual(self.run_token("list", "--tokens", str(self.place / "none"))[0], 1)

    def test_usage(self) -> None:
        """What is not understood is one sentence and status 2."""
        tokens = ("--tokens", str(self.path))
        for arguments in (
            *((), ("frob",), ("add",), ("add", *tokens), ("add", "a", "b", *tokens), ("add", "a")),
            *(("list",), ("list", "a", *tokens), ("revoke", *tokens), ("add", "a", "--tokens", "")),
            *(("list", "--push", *tokens), ("revoke", "a", "--push", *tokens)),
        ):
            status, out, err = self.run_token(*arguments)
            self.assertEqual((status, out), (2, ""), arguments)
            self.assertRegex(err, r"\Aartifactserver: [^\n]+\n\Z")
        self.assertFalse(self.path.exists())

    def test_not_printed(self) -> None:
        """A token that could not be shown to anybody is not kept."""
        self.patch(sys, "stdout", Broken())
        self.assertEqual(administer(["token", "add", "alice", "--tokens", str(self.path)]), 1)
        self.assertRegex(self.err.getvalue(), "could not be printed .* so 'alice' was not added: try again")
        self.assertEqual(len(read_tokens(self.path)), 0)

    def test_list_not_printed(self) -> None:
        """A list that nobody can read is a failure, told in one sentence."""
        self.run_token("add", "alice", "--tokens", str(self.path))
        self.patch(sys, "stdout", Broken())
        self.assertEqual(administer(["token", "list", "--tokens", str(self.path)]), 1)
        self.assertRegex(self.err.getvalue(), r"\Aartifactserver token: the list could not be printed [^\n]+\n\Z")

    def test_process(self) -> None:
        """In a shell, what is piped on is the token and nothing else."""
        env = environment(self.place / "home") | {"PYTHONPATH": IMPORT_PATH}
        command = [*program("administer"), "token", "add", "alice", "--tokens", "tokens"]
        finished = subprocess.run(command, cwd=self.place, env=env, capture_output=True, timeout=AT_ONCE, check=True)
        found = read_tokens(self.path).find(finished.stdout.strip())
        assert found is not None
        self.assertEqual(found.name, "alice")
        self.assertIn(b"'alice' was added", finished.stderr)

    def test_help(self) -> None:
        """Each command tells what it is for."""
        self.assertIn("Without it they can only pull.", str(AddOptions()))
