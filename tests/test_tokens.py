"""Bearer tokens: the file that names them, and how a presented one is found."""

from __future__ import annotations

import base64
import hashlib
import hmac
import os
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from artifactserver.access import Right
from artifactserver.tokens import known
from artifactserver.tokens.known import (
    HEADING,
    MAX_NAME,
    RIGHTS,
    Token,
    TokenProblem,
    Tokens,
    credentials,
    new_secret,
    parse,
    read_tokens,
)

PATH = Path("/etc/tokens")


def token(name: str, secret: bytes = b"", right: str = "pull") -> Token:
    return Token(name, RIGHTS[right], hashlib.sha256(secret or name.encode()).digest())


def content(*lines: str) -> bytes:
    """A file of tokens with these lines behind its heading."""
    return "\n".join([HEADING, *lines, ""]).encode()


class FindTests(SynchronousTestCase):
    """Which token a client presents."""

    def test_found(self) -> None:
        """A secret leads to its token, and to no other."""
        alice, bob = token("alice", b"one"), token("bob", b"two", "push")
        known = Tokens([alice, bob])
        self.assertEqual(known.find(b"one"), alice)
        self.assertEqual(known.find(b"two"), bob)
        self.assertEqual((len(known), known.names), (2, {"alice", "bob"}))

    def test_unknown(self) -> None:
        """What is no secret leads nowhere: a name, a hash, a part of a secret, nothing at all."""
        alice = token("alice", b"secret")
        for several in (Tokens([alice]), Tokens()):
            for wrong in (b"alice", alice.digest, alice.digest.hex().encode(), b"secre", b"secret ", b"", b"\xff" * 99):
                self.assertIsNone(several.find(wrong))

    def test_constant_time(self) -> None:
        """There is one comparison in constant time, for unknown secrets too."""
        compared = []

        def compare(one: bytes, other: bytes) -> bool:
            compared.append((len(one), len(other)))
            return one == other

        self.patch(hmac, "compare_digest", compare)
        known = Tokens([token("alice", b"secret")])
        for secret in (b"secret", b"wrong"):
            known.find(secret)
        self.assertEqual(compared, [(32, 32), (32, 32)])

    def test_new_secret(self) -> None:
        """New secrets are long, never alike, and need no quoting anywhere."""
        made = {new_secret() for _ in range(100)}
        self.assertEqual(len(made), 100)
        for secret in made:
            self.assertRegex(secret, r"\Aast_[A-Za-z0-9_-]{43}\Z")


class CredentialsTests(SynchronousTestCase):
    """What is read out of an ``authorization`` field."""

    def basic(self, text: bytes) -> bytes:
        return b"Basic " + base64.b64encode(text)

    def test_bearer(self) -> None:
        """What follows ``Bearer``, however that is written."""
        for value in (b"Bearer s3cret", b"bearer s3cret", b"BEARER   s3cret ", b" Bearer s3cret"):
            self.assertEqual(credentials(value), b"s3cret")

    def test_basic(self) -> None:
        """The password of ``Basic``, whoever the user is; it may have colons itself."""
        for text in (b"user:s3cret", b":s3cret", b"\xc3\xa9:s3cret"):
            self.assertEqual(credentials(self.basic(text)), b"s3cret")
        self.assertEqual(credentials(self.basic(b"user:a:b")), b"a:b")
        self.assertEqual(credentials(b"bAsIc " + base64.b64encode(b"a:b")), b"b")

    def test_what_is_made_here(self) -> None:
        """A secret that was made here comes through both ways."""
        secret = new_secret().encode()
        self.assertEqual(credentials(b"Bearer " + secret), secret)
        self.assertEqual(credentials(self.basic(b"alice:" + secret)), secret)

    def test_malformed(self) -> None:
        """Everything else is no credential."""
        for value in (
            *(b"", b"Bearer", b"Bearer ", b"s3cret", b"Bearer a b", b"Bearer a,b", b"Bearers3cret", b"Bearer \xff"),
            *(b"Basic", b"Basic !", b"Basic YQ", b"Basic YQ==", b"Basic dXNlcjo=", b"Basic dXN%cjph"),
            *(b"Digest s3cret", b"Negotiate YTpi", b"Bearer: s3cret", b"Basic " + b"A" * 9),
        ):
            self.assertIsNone(credentials(value), value)


class FileTests(SynchronousTestCase):
    """The file."""

    def problem(self, text: bytes, pattern: str) -> None:
        """It is refused in one sentence."""
        error = self.assertRaises(TokenProblem, parse, text, PATH)
        self.assertRegex(str(error), pattern)
        self.assertNotIn("\n", str(error))

    def test_lines(self) -> None:
        """A line is a token; comments, blank lines and space are for people, as are the line ends of other systems."""
        alice, bob = token("alice@desk"), token("ci-linux_2.0", right="push")
        text = f"# who made it\n\n {HEADING}\r\n#{alice.line()}\n\n\t{alice.line()} \n   # bob\r\n{bob.line()}"
        self.assertEqual(parse(text.encode(), PATH), [alice, bob])
        self.assertEqual(alice.rights, {Right.PULL})
        self.assertEqual(bob.rights, {Right.PULL, Right.PUSH})

    def test_empty(self) -> None:
        """A file with nothing in it, or with comments alone, has no tokens."""
        for text in (b"", b"\n\n", b"# nobody yet\n", content()):
            self.assertEqual(parse(text, PATH), [])

    def test_foreign(self) -> None:
        """What is something else is refused with its line, and so is a format that is not known."""
        self.problem(
            b"root:x:0:0:root:/root:/bin/bash\n", f"^line 1 of {PATH} is not 'artifactserver tokens, format 1'"
        )
        self.problem(f"# x\n{token('alice').line()}\n".encode(), "^line 2 of /etc/tokens is not 'artifactserver tok")
        self.problem(b"artifactserver tokens, format 2\nx", "line 1 .* format 2, and this version knows format 1 alone")
        self.problem(b"\x89PNG\r\n\x1a\n", "line 1 .* is not text in UTF-8")
        self.problem(content("#") + b"caf\xe9\n", "line 3 .* is not text in UTF-8")

    def test_malformed_lines(self) -> None:
        """A line that is not whole is refused with its number; what stands there is not said, it might be a secret."""
        good = token("alice").line()
        name, right, digest = good.split()
        for line, pattern in {
            "alice": "does not consist of a name, a right and a hash: take it out",
            f"{good} more": "does not consist of",
            f"al,ice {right} {digest}": "begins with what is no name for a token",
            f"{'x' * (MAX_NAME + 1)} {right} {digest}": "begins with what is no name",
            f"\u00e9ve {right} {digest}": "begins with what is no name",
            f"{name} admin {digest}": "has something else than 'pull' or 'push'",
            f"{name} {right} s3cret": "ends with something else than 'sha256:' and 64 hex",
            f"{name} {right} {digest[:-1]}": "ends with something else",
            f"{name} {right} {digest.upper()}": "ends with something else",
            f"{name} {right} md5:{digest[7:]}": "ends with something else",
        }.items():
            self.problem(content("# first", line), f"^line 3 of {PATH} {pattern}")
        error = self.assertRaises(TokenProblem, parse, content("alice push my-s3cret"), PATH)
        self.assertNotIn("s3cret", str(error))

    def test_twice(self) -> None:
        """Two tokens with one name, or one secret, are refused: it would not be clear which of them is meant."""
        alice = token("alice")
        self.problem(
            content(alice.line(), token("alice", b"x").line()), "line 3 .* has the name 'alice', as has line 2"
        )
        self.problem(content(alice.line(), "", token("bob", b"alice").line()), "line 4 .* same secret as line 2")

    def test_bounds(self) -> None:
        """A file has so many tokens and bytes, and no more."""
        lines = [token(f"t{number}").line() for number in range(4)]
        self.patch(known, "MAX_TOKENS", 3)
        self.assertEqual(len(parse(content(*lines[:3]), PATH)), 3)
        self.problem(content(*lines), "has more than 3 tokens")
        path = Path(self.mktemp())
        path.write_bytes(content(lines[0]))
        self.patch(known, "MAX_FILE_BYTES", len(content(lines[0])))
        self.assertEqual(len(read_tokens(path)), 1)
        path.write_bytes(content(lines[0]) + b"#")
        self.assertRegex(str(self.assertRaises(TokenProblem, read_tokens, path)), "more than [0-9]+ bytes")

    def test_unreadable(self) -> None:
        """What is not there, or is no file, is refused in one sentence, without waiting for anything."""
        place = Path(self.mktemp())
        place.mkdir()
        os.mkfifo(place / "pipe")
        before = len(os.listdir("/dev/fd"))
        for path, pattern in {
            place / "none": r"none cannot be read \(No such file or directory\): give --tokens a file that 'art",
            place: "is no file",
            place / "pipe": "pipe is no file: give --tokens a file that 'artifactserver token add' has made",
            Path("/dev/null"): "is no file",
        }.items():
            self.assertRegex(str(self.assertRaises(TokenProblem, read_tokens, path)), pattern)
        self.assertEqual(len(os.listdir("/dev/fd")), before)
