"""Bearer tokens: the file that names them, and how a token that a client presents is found in it.

The file is text.  Its first line says what it is, then each line is a token; blank lines and lines that begin with
``#`` are for people::

    artifactserver tokens, format 1
    # the build machines
    ci-linux    push  sha256:1f0c...
    alice@desk  pull  sha256:9b11...

A line has the token's name, what its holder may do (``pull``, or ``push``, which includes it), and the SHA-256 of the
secret in lower-case hexadecimal.  The secret itself is nowhere.

One SHA-256 is enough.  Hashes that are slow on purpose, with salt, protect what people think up, since that can be
guessed; a secret here is 256 random bits (see `new_secret`), so there is nothing to guess, and no two are alike.  And
what is compared with a presented token are hashes, too: how long it takes says something about the hash of a wrong
guess, which leads nowhere.
"""

from __future__ import annotations

import base64
import binascii
import codecs
import hashlib
import hmac
import os
import re
import secrets
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from artifactserver.access import Right
from artifactserver.file_content import NoContent, content_of

#: The first line of a file of tokens.
HEADING = "artifactserver tokens, format 1"

#: Bytes of a file of tokens.
MAX_FILE_BYTES = 4 * 1024 * 1024

#: Tokens in a file.
MAX_TOKENS = 10_000

#: Characters of a token's name.
MAX_NAME = 64

#: What a token may be called, in words.
NAMES = f"1 to {MAX_NAME} letters, digits and '.', '_', '-', '@'"

#: What a token's holder may do, by the word for it in the file.
RIGHTS = {"pull": frozenset({Right.PULL}), "push": frozenset({Right.PULL, Right.PUSH})}

#: Random bytes in a secret.
SECRET_BYTES = 32

_HEADING = re.compile(r"artifactserver tokens, format ([0-9]{1,9})")
_NAME = re.compile(rf"[A-Za-z0-9._@-]{{1,{MAX_NAME}}}", re.ASCII)
_DIGEST = re.compile(r"sha256:([0-9a-f]{64})", re.ASCII)
_TOKEN68 = re.compile(rb"[A-Za-z0-9._~+/-]+=*")


class TokenProblem(Exception):
    """A file of tokens, or what is to be done with it, is not as it should be; ``str()`` is one sentence."""


@dataclass(frozen=True, slots=True)
class Token:
    """What is known of a token.

    :ivar digest: the SHA-256 of its secret.
    """

    name: str
    rights: frozenset[Right]
    digest: bytes

    def line(self) -> str:
        """How it is written in a file, without an end of line."""
        return f"{self.name} {right_word(self.rights)} sha256:{self.digest.hex()}"


#: Stands in for tokens that do not exist, so that there always is something to compare with.
_NOBODY = Token("", frozenset(), os.urandom(SECRET_BYTES))


class Tokens:
    """The tokens that are good."""

    def __init__(self, tokens: Iterable[Token] = ()) -> None:
        self._by_digest = {token.digest: token for token in tokens}
        self.names = frozenset(token.name for token in self._by_digest.values())

    def __len__(self) -> int:
        return len(self._by_digest)

    def still_hold(self, token: Token) -> bool:
        """Whether the secret of a token of other days is good, and for no less than it was then."""
        now = self._by_digest.get(token.digest)
        return now is not None and token.rights <= now.rights

    def find(self, secret: bytes) -> Token | None:
        """The token with this secret, or `None`."""
        digest = hashlib.sha256(secret).digest()
        token = self._by_digest.get(digest, _NOBODY)
        return token if hmac.compare_digest(token.digest, digest) else None


def new_secret() -> str:
    """A secret for a new token: 256 random bits, in characters that need no quoting in shells, URLs and headers.

    The beginning is always the same, so that a search for lost secrets finds it, and no option begins like that.
    """
    return f"ast_{secrets.token_urlsafe(SECRET_BYTES)}"


def credentials(value: bytes) -> bytes | None:
    """The secret in the value of an ``authorization`` field (RFC 6750, section 2.1; RFC 7617).

    :return: what follows ``Bearer``, or the password of ``Basic``, whoever the user is; `None` if it is neither, or
        malformed, which is as good as a wrong secret.
    """
    scheme, _, rest = value.strip().partition(b" ")
    rest = rest.strip()
    if _TOKEN68.fullmatch(rest) is None:
        return None
    if scheme.lower() == b"bearer":
        return rest
    if scheme.lower() != b"basic":
        return None
    try:
        _, colon, password = base64.b64decode(rest, validate=True).partition(b":")
    except binascii.Error:
        return None
    return password if colon and password else None


def check_name(name: str) -> None:
    """
    :raises TokenProblem: if no token may be called so.
    """
    if _NAME.fullmatch(name) is None:
        raise TokenProblem(f"{name[: 2 * MAX_NAME]!r} is no name for a token: give {NAMES}")


def right_word(rights: frozenset[Right]) -> str:
    """The word for what a token's holder may do."""
    return "push" if Right.PUSH in rights else "pull"


def read_tokens(path: Path) -> Tokens:
    """The tokens in a file; none, if it is empty.

    :raises TokenProblem: if it cannot be read, or is no file of tokens.
    """
    return Tokens(parse(read_file(path), path))


def read_file(path: Path) -> bytes:
    """The content of a file of tokens, without a byte order mark.

    :raises TokenProblem: if it cannot be read, or is too large.
    """
    try:
        # Editors of some systems put a mark before UTF-8, which nobody sees.
        return content_of(path, MAX_FILE_BYTES).removeprefix(codecs.BOM_UTF8)
    except NoContent as why:
        raise TokenProblem(
            f"{path} {why}: give --tokens a file that 'artifactserver token add' has made and that this user may read"
        ) from why


def parse(content: bytes, path: Path) -> list[Token]:
    """The tokens in the content of a file, in order.

    What is wrong is not quoted: somebody may have put a secret there.

    :param path: where it comes from, to say so.
    :raises TokenProblem: if something is wrong with a line.
    """
    headed = False
    tokens: dict[str, int] = {}
    digests: dict[bytes, int] = {}
    found: list[Token] = []
    for number, raw in enumerate(content.split(b"\n"), 1):
        where = f"line {number} of {path}"
        try:
            line = raw.decode("utf-8").strip()
        except UnicodeDecodeError:
            raise TokenProblem(f"{where} is not text in UTF-8: take it out, or write it anew") from None
        if not line or line.startswith("#"):
            continue
        if not headed:
            _check_heading(line, where)
            headed = True
            continue
        token = _token(line, where)
        if token.name in tokens:
            raise TokenProblem(
                f"{where} has the name {token.name!r}, as has line {tokens[token.name]}: take one of them out"
            )
        if token.digest in digests:
            raise TokenProblem(f"{where} has the same secret as line {digests[token.digest]}: take one of them out")
        if len(found) == MAX_TOKENS:
            raise TokenProblem(f"{path} has more than {MAX_TOKENS} tokens: revoke some")
        tokens[token.name] = digests[token.digest] = number
        found.append(token)
    return found


def _check_heading(line: str, where: str) -> None:
    heading = _HEADING.fullmatch(line)
    if heading is None:
        raise TokenProblem(
            f"{where} is not {HEADING!r}, with which a file of tokens begins: "
            "give --tokens a file that 'artifactserver token add' has made"
        )
    if line != HEADING:
        raise TokenProblem(
            f"{where} says format {heading[1]}, and this version knows format 1 alone: install another artifactserver"
        )


def _token(line: str, where: str) -> Token:
    words = line.split()
    if len(words) != 3:
        raise TokenProblem(
            f"{where} does not consist of a name, a right and a hash: take it out, and add the token with "
            "'artifactserver token add'"
        )
    name, right, digest = words
    if _NAME.fullmatch(name) is None:
        raise TokenProblem(f"{where} begins with what is no name for a token: make it {NAMES}")
    if right not in RIGHTS:
        raise TokenProblem(f"{where} has something else than 'pull' or 'push' behind the name: make it one of them")
    match = _DIGEST.fullmatch(digest)
    if match is None:
        raise TokenProblem(
            f"{where} ends with something else than 'sha256:' and 64 hexadecimal digits: take it out, and add the "
            "token with 'artifactserver token add'"
        )
    return Token(name, RIGHTS[right], bytes.fromhex(match[1]))
