"""PEM files: private keys and certificates, and what is wrong with a file that should hold them.

A file of certificates is made by hand, by writing one after another.  So it may hold text between them, as ``openssl
x509 -text`` writes it, but nothing that looks like a part of a certificate, a key, or no text at all: whoever put it
there thinks that it does something.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes

from artifactserver.file_content import NoContent, content_of

#: Bytes of a file of keys or certificates: those of 13,000 clients.
MAX_FILE_BYTES = 16 * 1024 * 1024

#: Where something begins or ends.  Not only at the start of a line: what is appended to a file that does not end with
#: a line's end begins in the middle of one.
_MARK = re.compile(rb"-----(BEGIN|END) ([A-Z0-9 ]+)-----")

#: What no text holds: most control characters, marks that are damaged, and lines of base64, which belong between two.
#: A mark is bounded, or text with many beginnings of one would take hours.
_NO_TEXT = re.compile(
    rb"[\0-\x08\x0e-\x1f\x7f]|\b(?:BEGIN|END) [A-Z0-9 ]{0,40}(?:CERTIFICATE|KEY)\b|^[A-Za-z0-9+/]{60,}={0,2}\r?$",
    re.MULTILINE,
)


class TlsProblem(Exception):
    """A key or certificate file cannot be used; ``str()`` is one sentence that says which, and what to do."""


@dataclass(frozen=True, slots=True)
class _Block:
    """What stands between two marks, and they themselves.

    :ivar label: what it says it is, such as ``CERTIFICATE``.
    :ivar line: where it begins.
    """

    label: str
    line: int
    content: bytes


def read_key(path: Path, option: str) -> PrivateKeyTypes:
    """The private key in a file; certificates and parameters may stand in it as well.

    :param option: where the file was given, for the sentence.
    :raises TlsProblem: if there is none that can be used.
    """
    pem = _read(path, option)
    try:
        return _load_key(pem)
    except TypeError:
        raise TlsProblem(
            f"the key in {path} has a passphrase, which a server cannot type: "
            "write one without with 'openssl pkey -in KEY -out NEW'"
        ) from None
    except (ValueError, UnsupportedAlgorithm):
        raise TlsProblem(f"{path} holds no private key in PEM form: give {option} the server's key") from None


@functools.lru_cache(maxsize=1)
def _load_key(pem: bytes) -> PrivateKeyTypes:
    """Check a key; that takes long, a third of a second for RSA with 4096 bits, so it is done once for each."""
    return serialization.load_pem_private_key(pem, password=None)


def read_chain(path: Path, option: str) -> list[x509.Certificate]:
    """The certificates in a file, in order and at least one; keys may stand in it as well.

    :raises TlsProblem: if there is none, or something is wrong with one.
    """
    # Key and certificate are often kept in one file.
    blocks = [block for block in _blocks(path, option) if block.label == "CERTIFICATE"]
    if not blocks:
        raise TlsProblem(f"{path} holds no certificate in PEM form: give {option} the server's certificate")
    return [_certificate(block, path) for block in blocks]


def read_bundle(path: Path, option: str) -> list[x509.Certificate]:
    """The certificates in a file that holds nothing else but text; a file with nothing at all has none.

    :raises TlsProblem: if there is something else in it, or something is wrong with one.
    """
    certificates = []
    for block in _blocks(path, option):
        if block.label == "TRUSTED CERTIFICATE":
            raise TlsProblem(
                f"the certificate at line {block.line} of {path} is in a form of OpenSSL's own: "
                "write it as others read it, with 'openssl x509 -in CERTIFICATE -out NEW'"
            )
        if block.label != "CERTIFICATE":
            raise TlsProblem(
                f"{path} holds a {block.label.lower()} at line {block.line}: put certificates alone into the file of "
                f"{option}"
            )
        certificates.append(_certificate(block, path))
    return certificates


def _certificate(block: _Block, path: Path) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificate(block.content)
    except ValueError:
        raise TlsProblem(
            f"the certificate at line {block.line} of {path} cannot be read: take it out, or copy it again"
        ) from None


def _blocks(path: Path, option: str) -> Iterator[_Block]:
    content = _read(path, option)
    lines = _Lines(content)
    begin: re.Match[bytes] | None = None
    end = 0
    for mark in _MARK.finditer(content):
        if begin is None:
            _check_text(content, end, mark.start(), lines, path)
        if mark[1] == b"END" and begin is None:
            raise TlsProblem(
                f"the {_name(mark)} that ends at line {lines.at(mark.start())} of {path} has no beginning: "
                "take it out, or copy it again"
            )
        if begin is not None and (mark[1] == b"BEGIN" or mark[2] != begin[2]):
            break
        if begin is None:
            begin = mark
            continue
        end = mark.end()
        yield _Block(begin[2].decode("ascii"), lines.at(begin.start()), content[begin.start() : end])
        begin = None
    if begin is not None:
        raise TlsProblem(
            f"the {_name(begin)} at line {lines.at(begin.start())} of {path} has no end: take it out, or copy it again"
        )
    if content.strip() and not end:
        raise TlsProblem(f"{path} holds no certificate in PEM form: give {option} a file that does")
    _check_text(content, end, len(content), lines, path)


def _check_text(content: bytes, start: int, end: int, lines: _Lines, path: Path) -> None:
    """:raises TlsProblem: if there is anything but text between certificates."""
    found = _NO_TEXT.search(content[start:end])
    if found is not None:
        raise TlsProblem(
            f"what stands at line {lines.at(start + found.start())} of {path} is neither a certificate nor text: "
            "take it out, or copy again what it is a part of"
        )


class _Lines:
    """The numbers of lines, asked for from top to bottom: to count anew for each would take long for many."""

    def __init__(self, content: bytes) -> None:
        self._content = content
        self._line = 1
        self._at = 0

    def at(self, place: int) -> int:
        """The number of the line at ``place``, which is not before the one asked for last."""
        self._line += self._content.count(b"\n", self._at, place)
        self._at = place
        return self._line


def _name(mark: re.Match[bytes]) -> str:
    return mark[2].decode("ascii").lower()


def _read(path: Path, option: str) -> bytes:
    try:
        return content_of(path, MAX_FILE_BYTES)
    except NoContent as why:
        raise TlsProblem(f"{path} {why}: give {option} a PEM file that is there and that this user may read") from why
