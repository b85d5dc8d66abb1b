"""Reading a pack from end to end: how a lost index is made again, and how a store is checked.

What is not a valid entry is passed over, up to where the next one begins; so is what the disk cannot give back.  A pack
is read piece by piece, and not mapped into memory: touching a page that the disk cannot give back ends the process.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from zlib_ng.zlib_ng import crc32

from artifactserver.store import disk
from artifactserver.store.packs import CHECKED_FROM, ENCODING_IDENTITY, HEADER, LONGEST_HASH, MAGIC, PAYLOAD_BYTES

#: Bytes that are read at a time, and more only for an entry that is longer.
SCAN_BYTES = 4 * 1024 * 1024
#: What cannot be read is tried in parts, down to this length.
SECTOR_BYTES = 4096


@dataclass(frozen=True, slots=True)
class Entry:
    """An entry whose checksum is right."""

    kind: int
    function: int
    hash: bytes
    offset: int
    stored: int
    content: bytes


@dataclass(frozen=True, slots=True)
class Damage:
    """``length`` bytes that belong to no valid entry."""

    offset: int
    length: int


def scan(path: Path, until: int | None = None) -> Iterator[Entry | Damage]:
    """Everything in a pack, in order.

    :param until: look no further than this offset.
    """
    with open(path, "rb", buffering=0) as file:
        length = os.fstat(file.fileno()).st_size
        if until is not None:
            length = min(length, until)
        window = _Window(file.fileno(), length)
        offset = 0
        while offset < length:
            entry = window.entry(offset)
            if entry is not None:
                yield entry
                offset += HEADER.size + len(entry.hash) + entry.stored
                continue
            start = offset
            while offset < length:
                offset = window.find_magic(offset + 1)
                if offset < length and window.entry(offset) is not None:
                    break
            yield Damage(start, offset - start)


class _Window:
    """The part of a pack that is in memory; it moves along with the scan.

    :param length: where the pack ends, as far as we look.
    """

    def __init__(self, fd: int, length: int) -> None:
        self._fd = fd
        self._length = length
        self._start = 0
        self._bytes = b""

    def entry(self, offset: int) -> Entry | None:
        """The entry that begins there, if a valid one does."""
        if offset + HEADER.size > self._length:
            return None
        at = self._at(offset, HEADER.size)
        magic, crc, kind, encoding, function, hash_bytes, size, stored = HEADER.unpack_from(self._bytes, at)
        end = HEADER.size + hash_bytes + stored
        if (
            magic != MAGIC
            or encoding != ENCODING_IDENTITY
            or hash_bytes > LONGEST_HASH
            or size != stored
            or stored > PAYLOAD_BYTES
            or offset + end > self._length
        ):
            return None
        at = self._at(offset, end)
        with memoryview(self._bytes) as view:
            if crc32(view[at + CHECKED_FROM : at + end]) != crc:
                return None
        content = at + HEADER.size + hash_bytes
        hash = self._bytes[at + HEADER.size : content]
        return Entry(kind, function, hash, offset, stored, self._bytes[content : at + end])

    def find_magic(self, offset: int) -> int:
        """Where an entry may begin next, at ``offset`` or behind it; the end of the pack if nowhere."""
        while offset + len(MAGIC) <= self._length:
            at = self._at(offset, len(MAGIC))
            found = self._bytes.find(MAGIC, at)
            if found != -1:
                return self._start + found
            offset = self._start + len(self._bytes) - len(MAGIC) + 1
        return self._length

    def _at(self, offset: int, count: int) -> int:
        """Bring ``count`` bytes into memory; where in it they begin."""
        if offset < self._start or offset + count > self._start + len(self._bytes):
            self._bytes = b""
            self._bytes = _read(self._fd, offset, min(max(count, SCAN_BYTES), self._length - offset))
            self._start = offset
        return offset - self._start


def _read(fd: int, offset: int, count: int) -> bytes:
    """So many bytes of a file, with zeros for those that cannot be had."""
    try:
        content = os.pread(fd, count, offset)
    except OSError as error:
        if not disk.is_lost(error):
            raise
        middle = (offset + count // 2) // SECTOR_BYTES * SECTOR_BYTES
        if middle <= offset:
            middle += SECTOR_BYTES
        if middle >= offset + count:
            return bytes(count)
        return _read(fd, offset, middle - offset) + _read(fd, middle, offset + count - middle)
    return content + bytes(count - len(content))
