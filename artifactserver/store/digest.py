"""Digests: the only names by which the store knows a blob.

A digest is a hash function, the hash, and the size of the content in bytes (REAPI, ``message Digest``).  Every
protocol turns what its peer sent into a `Digest`, or many at once into `Digests`, at its own edge; the store takes
nothing else, so no string from a peer ever reaches a path or an index key unparsed.
"""

from __future__ import annotations

import enum
import hashlib
import re
import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any


class DigestFunction(enum.IntEnum):
    """Hash functions, with the numbers of REAPI's ``DigestFunction.Value``.

    The numbers are part of the store's format: they are the first byte of every index key.
    """

    SHA256 = 1


#: Bytes in a hash, by function.  The store's format has room for up to 64.
HASH_BYTES: dict[int, int] = {DigestFunction.SHA256: 32}

#: A constructor with the interface of ``hashlib.sha256``, by function.
HASHERS: dict[int, Callable[..., Any]] = {DigestFunction.SHA256: hashlib.sha256}

#: REAPI sizes are ``int64``; a larger one cannot have come from a valid message.
MAX_SIZE = 2**63 - 1

_HEX = re.compile("[0-9a-f]*")
_SHA256_KEY = bytes([DigestFunction.SHA256])
_SHA256_KEYS = struct.Struct(f"{1 + HASH_BYTES[DigestFunction.SHA256]}s")
_SHA256_PREFIX = _SHA256_KEY.hex()
_SHA256_HEX = 2 * HASH_BYTES[DigestFunction.SHA256]


class InvalidDigest(ValueError):
    """What a peer sent is not a digest; the message says what is wrong with it, fit for that peer."""


@dataclass(frozen=True, slots=True)
class Digest:
    """The name of one blob.

    :ivar key: one byte that names the `DigestFunction`, then the hash.
    :ivar size: the length of the content, in bytes.
    """

    key: bytes
    size: int

    @classmethod
    def parse(cls, hash: str, size: int) -> Digest:
        """Read a digest as REAPI spells it: lower-case hexadecimal, and a size of 0 or more.

        :raises InvalidDigest: if it is anything else.
        """
        if len(hash) != _SHA256_HEX or not _HEX.fullmatch(hash):
            raise InvalidDigest(f"{hash[:80]!r} is not a SHA-256 hash: {_SHA256_HEX} lower-case hexadecimal digits")
        if not 0 <= size <= MAX_SIZE:
            raise InvalidDigest(f"{size} is not the size of a blob")
        return cls(_SHA256_KEY + bytes.fromhex(hash), size)

    @classmethod
    def sound(cls, hash: str, size: int) -> Digest:
        """A SHA-256 digest of which everything has been seen that `parse` would look for."""
        return cls(_SHA256_KEY + bytes.fromhex(hash), size)

    @classmethod
    def of(cls, content: bytes, function: DigestFunction = DigestFunction.SHA256) -> Digest:
        """The digest of ``content``."""
        return cls(bytes([function]) + HASHERS[function](content).digest(), len(content))

    @property
    def function(self) -> DigestFunction:
        return DigestFunction(self.key[0])

    @property
    def hash(self) -> bytes:
        """The hash itself, without the function."""
        return self.key[1:]

    @property
    def hex(self) -> str:
        """The hash as REAPI spells it."""
        return self.key[1:].hex()

    def hasher(self) -> Any:
        """A new hash object of this digest's function."""
        return HASHERS[self.key[0]]()

    def matches(self, content: bytes) -> bool:
        """Whether ``content`` is what this digest names."""
        return len(content) == self.size and HASHERS[self.key[0]](content).digest() == self.key[1:]

    def __str__(self) -> str:
        return f"{self.hex}/{self.size}"


#: The digest of no bytes.  That blob is always present (REAPI; every client relies on it).
EMPTY = Digest.of(b"")


@dataclass(frozen=True, slots=True)
class Digests(Sequence[Digest]):
    """Many digests, validated in one go and kept as two columns.

    A call may name 13,000 digests (BuildStream 2.8 does), and a Python object for each would cost more than looking
    it up does.  Indexing or iterating makes the objects when they are wanted after all.

    :ivar keys: index keys, one per digest, as in `Digest.key`.
    :ivar sizes: sizes in bytes, one per digest.
    """

    keys: Sequence[bytes]
    sizes: Sequence[int]

    @classmethod
    def parse(cls, hashes: Sequence[str], sizes: Sequence[int]) -> Digests:
        """Read digests from a column of hashes and one of sizes.

        :raises InvalidDigest: for the first one that `Digest.parse` would refuse.
        """
        if not hashes:
            return cls([], [])
        joined = _SHA256_PREFIX + _SHA256_PREFIX.join(hashes)
        try:
            raw = bytes.fromhex(joined)
        except ValueError:
            raw = b""
        # Only what was lower-case hexadecimal throughout comes back as it was.
        sound = (
            raw.hex() == joined
            and set(map(len, hashes)) == {_SHA256_HEX}
            and min(sizes) >= 0
            and max(sizes) <= MAX_SIZE
        )
        if not sound:
            for hash, size in zip(hashes, sizes, strict=True):
                Digest.parse(hash, size)
        return cls([key for (key,) in _SHA256_KEYS.iter_unpack(raw)], sizes)

    @classmethod
    def of(cls, digests: Iterable[Digest]) -> Digests:
        """The same digests, as columns."""
        listed = list(digests)
        return cls([digest.key for digest in listed], [digest.size for digest in listed])

    def at(self, positions: Sequence[int]) -> Digests:
        """Those at some positions."""
        return Digests(
            [self.keys[position] for position in positions], [self.sizes[position] for position in positions]
        )

    def mismatches(self, contents: Sequence[bytes]) -> list[int]:
        """The positions of those that do not name the content in their place."""
        return [
            position
            for position, (key, size, content) in enumerate(zip(self.keys, self.sizes, contents, strict=True))
            if len(content) != size or HASHERS[key[0]](content).digest() != key[1:]
        ]

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return Digests(self.keys[index], self.sizes[index])
        return Digest(self.keys[index], self.sizes[index])

    def __iter__(self) -> Iterator[Digest]:
        return map(Digest, self.keys, self.sizes)
