"""The answers that are sent by the thousand, written as bytes without a message object for each part.

A protobuf message is a sequence of fields, each a tag, for what is not a number a length, and a value; these
functions write exactly the bytes that the message classes would (the tests compare them).  Measured for batches of 200
blobs of 4 kB: 0.7 µs a blob for ``BatchReadBlobsResponse`` instead of 5 to 8 µs, which also copies each payload
twice less; 0.4 µs a digest instead of 1.3 to 2.9 µs for ``BatchUpdateBlobsResponse``.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence


@functools.lru_cache(maxsize=4096)
def varint(number: int) -> bytes:
    """A number of 0 or more as protobuf writes it: seven bits a byte, the lowest first."""
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


@functools.lru_cache(maxsize=4096)
def _around_hash(tag: bytes, length: int, size: int) -> tuple[int, bytes, bytes]:
    """What stands before and after a hash in a ``Digest`` field, and how long all of it is.

    :param tag: the tag of the field that holds the ``Digest``.
    :param length: the length of the hash in hexadecimal digits.
    :param size: the size that the digest states.
    """
    after = b"\x10" + varint(size) if size else b""
    inner = b"\x0a" + varint(length)
    before = tag + varint(len(inner) + length + len(after)) + inner
    return len(before) + length + len(after), before, after


def missing_blobs(hashes: Sequence[str], sizes: Sequence[int], positions: Iterable[int]) -> bytes:
    """A ``FindMissingBlobsResponse`` with the digests at ``positions``."""
    parts: list[bytes] = []
    for position in positions:
        hash = hashes[position]
        _, before, after = _around_hash(b"\x12", len(hash), sizes[position])
        parts += (before, hash.encode(), after)
    return b"".join(parts)


def stored_blob(hash: str, size: int, status: bytes = b"") -> bytes:
    """One entry of a ``BatchUpdateBlobsResponse``.

    :param status: a serialized ``google.rpc.Status``; empty for success.
    """
    length, before, after = _around_hash(b"\x0a", len(hash), size)
    tail = b"\x12" + varint(len(status)) + status
    return b"\x0a%b%b%b%b%b" % (varint(length + len(tail)), before, hash.encode(), after, tail)


def stored_blobs(hashes: Sequence[str], sizes: Sequence[int]) -> bytes:
    """An entry of a ``BatchUpdateBlobsResponse`` for each of these, all of them stored."""
    return "".join(map(_stored_blob, hashes, sizes)).encode("latin-1")


def _stored_blob(hash: str, size: int) -> str:
    before, after = _around_stored(len(hash), size)
    return f"{before}{hash}{after}"


@functools.lru_cache(maxsize=4096)
def _around_stored(length: int, size: int) -> tuple[str, str]:
    """What stands before and after a hash of a stored blob, each byte as the character of its number."""
    inner, before, after = _around_hash(b"\x0a", length, size)
    start, end = b"\x0a" + varint(inner + 2) + before, after + b"\x12\x00"
    return start.decode("latin-1"), end.decode("latin-1")


def read_blob(hash: str, size: int, content: bytes) -> tuple[bytes, bytes, bytes]:
    """One entry of a ``BatchReadBlobsResponse``, in pieces to be joined: a blob that was found."""
    length, before, after = _around_hash(b"\x0a", len(hash), size)
    # An empty status is there all the same: not every client takes its absence for success.
    if not content:
        return b"\x0a%b%b%b%b" % (varint(length + 2), before, hash.encode(), after), b"", b"\x1a\x00"
    counted = varint(len(content))
    whole = varint(length + 1 + len(counted) + len(content) + 2)
    return b"\x0a%b%b%b%b\x12%b" % (whole, before, hash.encode(), after, counted), content, b"\x1a\x00"


def unread_blob(hash: str, size: int, status: bytes) -> tuple[bytes, bytes, bytes]:
    """One entry of a ``BatchReadBlobsResponse``, in as many pieces: a blob that was not found."""
    length, before, after = _around_hash(b"\x0a", len(hash), size)
    tail = b"\x1a" + varint(len(status)) + status
    return b"\x0a%b%b%b%b" % (varint(length + len(tail)), before, hash.encode(), after), tail, b""


def read_response(content: bytes) -> tuple[bytes, bytes]:
    """A ``ReadResponse`` that carries ``content``, in pieces to be sent one after the other."""
    return b"\x52" + varint(len(content)), content
