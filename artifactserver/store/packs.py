"""Packs: append-only files that hold many small blobs, and every change of a record.

``packs/<id>.pack``, the id as 16 hexadecimal digits, counting up.  A pack is a row of entries with nothing between
them, before them or behind them.  An entry describes itself, so a lost index can be made again from the packs::

    offset  bytes  what (integers are big-endian)
         0      4  magic, "ASe1"
         4      4  CRC-32 (zlib's) of everything in the entry that follows this field
         8      1  kind: 1 blob, 2 record change
         9      1  encoding of the payload: 0 as it is (others are reserved)
        10      1  digest function, REAPI's number; 0 for a record change
        11      1  length of the hash, 0 to 64
        12      4  length of the content once decoded
        16      4  length of the payload as it stands here, at most 32 MiB
        20      h  hash: the blob's, or the record key's (see `artifactserver.store.records`)
      20+h      p  payload

The index knows how far each pack is *committed*.  Bytes beyond that belong to a batch that was never acknowledged:
whoever takes the pack over cuts them off before it appends.  A process appends only to a pack on whose file it holds
an exclusive ``flock``.
"""

from __future__ import annotations

import errno
import fcntl
import functools
import os
import re
import struct
from collections import OrderedDict
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from zlib_ng.zlib_ng import crc32

from artifactserver.store import disk

#: A pack that is this long or longer takes no further batch.
PACK_BYTES = 256 * 1024 * 1024

#: Packs kept open for reading by one process; the one read longest ago is closed first.
OPEN_PACKS = 128

#: Bytes of an entry for which a reader keeps a buffer: those of all small blobs.
_USUAL_ENTRY = 65 * 1024

KIND_BLOB = 1
KIND_RECORD = 2
ENCODING_IDENTITY = 0

MAGIC = b"ASe1"
HEADER = struct.Struct(">4sIBBBBII")
CHECKED_FROM = 8
_CRC = struct.Struct(">I")
_DESCRIPTION = struct.Struct(">BBBBII")
LONGEST_HASH = 64

#: No payload is longer, in bytes: what says that it is, is damaged.  (Blobs in packs, and records, are much shorter.)
PAYLOAD_BYTES = 32 * 1024 * 1024

#: No pack has a number that is so high that the next one would not fit.
_NAME = re.compile("[0-7][0-9a-f]{15}\\.pack")

#: Reads only what the page cache holds, and fails instead of waiting for a disk; 0 where the system has no such flag.
_NOWAIT = getattr(os, "RWF_NOWAIT", 0)

#: What a file system answers that has no such flag.
_NO_FLAG = {errno.EOPNOTSUPP, errno.ENOSYS}


class DamagedEntry(Exception):
    """The bytes where an entry should be are not that entry."""


class NotResident(Exception):
    """The bytes are not in memory: reading them would wait for a disk."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where an entry stands.

    :ivar pack: the id of its pack.
    :ivar offset: where the entry begins, in bytes.
    :ivar stored: the length of its payload as it stands there.
    """

    pack: int
    offset: int
    stored: int


def pack_name(pack: int) -> str:
    """The file name of a pack."""
    return f"{pack:016x}.pack"


def pack_ids(directory: Path) -> list[int]:
    """The ids of all packs that have a file, in order."""
    return sorted(int(name[:16], 16) for name in os.listdir(directory) if _NAME.fullmatch(name))


def encode_head(kind: int, function: int, hash: bytes, content: bytes) -> bytes:
    """What goes before ``content`` to make an entry of it."""
    length = len(content)
    if length > PAYLOAD_BYTES:
        raise ValueError(f"{length} bytes are too long for an entry")
    described = _description(kind, function, len(hash), length) + hash
    return MAGIC + crc32(content, crc32(described)).to_bytes(4, "big") + described


def entry_bytes(hash_bytes: int, stored: int) -> int:
    """The length of a whole entry."""
    return HEADER.size + hash_bytes + stored


@functools.lru_cache(maxsize=1024)
def _description(kind: int, function: int, hash_bytes: int, stored: int) -> bytes:
    """The part of an entry's head between checksum and hash, made once for all entries of a length."""
    return _DESCRIPTION.pack(kind, ENCODING_IDENTITY, function, hash_bytes, stored, stored)


def _check(entry: memoryview, kind: int, function: int, hash: bytes, stored: int) -> None:
    """:raises DamagedEntry: if this is not the entry that the other arguments describe."""
    checksum = _CRC.pack(crc32(entry[CHECKED_FROM:]))
    found = entry[: HEADER.size + len(hash)]
    if found != MAGIC + checksum + _description(kind, function, len(hash), stored) + hash:
        if found[CHECKED_FROM:] == _description(kind, function, len(hash), stored) + hash:
            raise DamagedEntry("its checksum is wrong")
        raise DamagedEntry("another entry stands there, or none")


def read_entry(fd: int, place: Place, kind: int, function: int, hash: bytes) -> bytes:
    """The content of the entry at ``place``, which must be the one that the other arguments describe.

    It waits for the disk.

    :raises DamagedEntry: if anything there is not as it was written.
    """
    if place.stored > PAYLOAD_BYTES:
        raise DamagedEntry("no entry is as long as that")
    start = HEADER.size + len(hash)
    raw = os.pread(fd, start + place.stored, place.offset)
    if len(raw) != start + place.stored:
        raise DamagedEntry(f"the pack ends at {place.offset + len(raw)}, inside the entry")
    with memoryview(raw) as entry:
        _check(entry, kind, function, hash, place.stored)
    return raw[start:]


class PackWriter:
    """The one pack that this process appends to.

    :ivar pack: its id.
    :ivar committed: the length up to which the index vouches for it.
    """

    def __init__(self, pack: int, fd: int, committed: int) -> None:
        self.pack = pack
        self.committed = committed
        self._end = committed
        self._fd = fd

    @classmethod
    def create(cls, directory: Path, pack: int) -> PackWriter:
        """A new and empty pack; its name is not durable yet.

        :raises FileExistsError: if there is a file of that name.
        :raises BlockingIOError: if another process took it over before it was locked.
        """
        fd = os.open(directory / pack_name(pack), os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.fstat(fd).st_size:
                raise BlockingIOError(errno.EAGAIN, "another process has come and gone")
        except BaseException:
            os.close(fd)
            raise
        return cls(pack, fd, 0)

    @staticmethod
    def seize(directory: Path, pack: int) -> int | None:
        """A locked descriptor of a pack that nobody appends to any more, or `None` if somebody does.

        :raises OSError: if it can be neither opened nor locked.
        """
        try:
            fd = os.open(directory / pack_name(pack), os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(fd)
            if isinstance(error, BlockingIOError):
                return None
            raise
        return fd

    @classmethod
    def take_over(cls, directory: Path, pack: int, fd: int, committed: int) -> PackWriter | None:
        """Go on with a seized pack behind what the index vouches for; `None` if even that much is not there."""
        try:
            length = os.fstat(fd).st_size
            if length < committed:
                os.close(fd)
                return None
            if length > committed:
                disk.truncate(fd, committed)
            if not committed:
                disk.sync_directory(directory)  # whoever made the file may not have come to that
        except OSError:
            os.close(fd)
            raise
        return cls(pack, fd, committed)

    @property
    def full(self) -> bool:
        return self.committed >= PACK_BYTES

    @property
    def end(self) -> int:
        """The length of the pack with everything that was appended, committed or not."""
        return self._end

    def append(self, pieces: list[bytes]) -> int:
        """Write ``pieces`` at the end; the offset at which they begin."""
        start = self._end
        disk.write_pieces(self._fd, pieces, start)
        self._end = start + sum(map(len, pieces))
        return start

    def sync(self) -> None:
        disk.sync(self._fd)

    def advance(self) -> None:
        """Everything appended is committed now."""
        self.committed = self._end

    def cut_back(self) -> None:
        """Take back what was appended since the last commit."""
        disk.truncate(self._fd, self.committed)
        self._end = self.committed

    def remove(self, directory: Path) -> None:
        """Remove the file, which nobody has any use for."""
        disk.unlink(directory / pack_name(self.pack))

    def close(self) -> None:
        with suppress(OSError):  # all that counts has been synced
            os.close(self._fd)


class PackFiles:
    """The packs of a repository, open for reading; used by one thread, though a descriptor of it may travel."""

    def __init__(self, directory: Path, limit: int = OPEN_PACKS) -> None:
        self._directory = directory
        self._limit = limit
        self._open: OrderedDict[int, disk.Descriptor] = OrderedDict()
        # Whether this file system can say what is in memory; where it cannot, threads read everything.
        self._can_tell = bool(_NOWAIT)
        # What is read stands here while it is checked: a fifth less work than in a new buffer each time.
        self._buffer = memoryview(bytearray(_USUAL_ENTRY))

    def descriptor(self, pack: int) -> disk.Descriptor:
        """:raises FileNotFoundError: if the pack has no file."""
        found = self._open.get(pack)
        if found is None:
            found = self._open[pack] = disk.Descriptor(self._directory / pack_name(pack))
            if len(self._open) > self._limit:
                self._open.popitem(last=False)
        elif len(self._open) == self._limit:
            self._open.move_to_end(pack)
        return found

    def read_resident(self, pack: int, offset: int, stored: int, kind: int, function: int, hash: bytes) -> bytes:
        """As `read_entry`, without waiting for the disk.

        :raises NotResident: if the content is not in memory.
        :raises DamagedEntry: if anything there is not as it was written.
        :raises FileNotFoundError: if the pack has no file.
        """
        if stored > PAYLOAD_BYTES:
            raise DamagedEntry("no entry is as long as that")
        if not self._can_tell:
            raise NotResident
        fd = self.descriptor(pack).fd
        start = HEADER.size + len(hash)
        length = start + stored
        entry = self._buffer[:length] if length <= _USUAL_ENTRY else memoryview(bytearray(length))
        try:
            got = os.preadv(fd, (entry,), offset, _NOWAIT)
        except OSError as error:
            if error.errno in _NO_FLAG:
                self._can_tell = False
            raise NotResident from None  # Whatever else is wrong, who waits for the disk finds out.
        if got != length:
            # Nothing at all is no sign of the pack's end: Linux 5.9 and 5.10 give it for what is not in memory, too
            # (preadv2(2)).  Who waits for the disk finds out.
            raise NotResident
        _check(entry, kind, function, hash, stored)
        return bytes(entry[start:])

    def forget(self, keep: frozenset[int]) -> None:
        """Let go of every pack that is not among ``keep``: its file may be gone, and must not fill the disk."""
        for pack in [pack for pack in self._open if pack not in keep]:
            del self._open[pack]

    def close(self) -> None:
        self._open.clear()
