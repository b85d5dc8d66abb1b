"""Large blobs: one plain file each, with a checksum per MiB in the index.

``blobs/<ab>/<function>-<hash>.<serial>``: the name of the digest function in lower case, the hash in hexadecimal,
whose first two digits name the directory, and a random serial of 16 hexadecimal digits.  The content is the blob as
it is, so ``sha256sum`` of the file shows whether it is sound.  The serial makes every name new, so removing one upload
of a blob can never take another upload of the same blob with it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from zlib_ng.zlib_ng import crc32

from artifactserver.store import disk
from artifactserver.store.digest import HASH_BYTES, Digest, DigestFunction
from artifactserver.store.disk import Descriptor
from artifactserver.store.rows import FileRow

#: What one checksum covers, in bytes: the most that is read at once.
BLOCK_BYTES = 1024 * 1024

_NOWAIT = getattr(os, "RWF_NOWAIT", 0)
_NAME = re.compile(r"([a-z0-9]+)-([0-9a-f]{2,128})\.([0-9a-f]{16})")

T = TypeVar("T")
#: Runs a function in a thread that may wait for a disk, and gives its result.
InThread = Callable[[Callable[[], T]], Awaitable[T]]


class DamagedFile(Exception):
    """A block of a file is not as it was written."""


@dataclass(frozen=True, slots=True)
class FileName:
    """The name of one upload of one blob, in ``blobs/`` and, while it is in flight, in ``incoming/``."""

    function: DigestFunction
    hash: bytes
    serial: int

    @classmethod
    def new(cls, digest: Digest) -> FileName:
        """A name that nobody has had yet."""
        return cls(digest.function, digest.hash, int.from_bytes(os.urandom(8), "big"))

    @classmethod
    def parse(cls, name: str) -> FileName | None:
        """The parts of a file's name, or `None` if it is not one of ours."""
        match = _NAME.fullmatch(name)
        if match is None or match[1].upper() not in DigestFunction.__members__:
            return None
        function, hash = DigestFunction[match[1].upper()], bytes.fromhex(match[2]) if len(match[2]) % 2 == 0 else b""
        return cls(function, hash, int(match[3], 16)) if len(hash) == HASH_BYTES[function] else None

    def __str__(self) -> str:
        return f"{self.function.name.lower()}-{self.hash.hex()}.{self.serial:016x}"

    @property
    def key(self) -> bytes:
        """The blob's key in the index."""
        return bytes([self.function]) + self.hash

    def below(self, blobs: Path) -> Path:
        """Where this file is, below the directory of large blobs."""
        return blobs / self.hash[:1].hex() / str(self)

    @classmethod
    def of_row(cls, key: bytes, row: FileRow) -> FileName:
        """The name that a row in the index stands for."""
        return cls(DigestFunction(key[0]), key[1:], row.serial)


class Checksums:
    """The CRC-32 of each block of a stream, gathered as it flows."""

    def __init__(self) -> None:
        self._done: list[int] = []
        self._crc = 0
        self._filled = 0

    def update(self, content: bytes | memoryview) -> None:
        room = BLOCK_BYTES - self._filled
        if len(content) < room:
            self._crc = crc32(content, self._crc)
            self._filled += len(content)
            return
        with memoryview(content) as view:
            while len(view) >= room:
                self._done.append(crc32(view[:room], self._crc))
                view, room, self._crc = view[room:], BLOCK_BYTES, 0
            self._crc = crc32(view)
            self._filled = len(view)

    def value(self) -> bytes:
        """All checksums, four bytes each."""
        crcs = [*self._done, self._crc] if self._filled else self._done
        return b"".join(crc.to_bytes(4, "big") for crc in crcs)


def blocks_of(fd: int) -> Iterator[bytes]:
    """The content of a file, from its beginning."""
    offset = 0
    while block := os.pread(fd, BLOCK_BYTES, offset):
        yield block
        offset += len(block)


class FileReader:
    """A large blob, open for reading.

    What the page cache holds is read at once; for the rest a thread waits for the disk.

    :param in_thread: runs a function in such a thread.
    :param damaged: called with a reason when a block is not as it was written; its awaitable raises what the
        reader of the blob should get.
    """

    def __init__(
        self, file: Descriptor, row: FileRow, in_thread: InThread[Any], damaged: Callable[[str], Awaitable[None]]
    ) -> None:
        self._file: Descriptor | None = file
        self._checksums = row.checksums
        self._in_thread = in_thread
        self._damaged = damaged
        self._last_block = -1
        self._last = b""
        self.size = row.size

    async def read(self, offset: int, length: int) -> bytes:
        file = self._file
        if file is None:
            raise ValueError("this blob has been closed")
        block, start = divmod(offset, BLOCK_BYTES)
        wanted = min(BLOCK_BYTES, self.size - block * BLOCK_BYTES)
        if wanted <= start or length <= 0:
            return b""
        if block != self._last_block:
            try:
                if _resident(file.fd, block * BLOCK_BYTES, wanted):
                    content = self._block(file, block, wanted)
                else:
                    content = await self._in_thread(lambda: self._block(file, block, wanted))
            except (DamagedFile, OSError) as error:
                if isinstance(error, OSError) and not disk.is_lost(error):
                    raise disk.failure(error, "reading a blob") from error
                await self._damaged(str(error))
                raise
            if start == 0 and length >= wanted:
                return content
            # Who reads less than a block reads the rest of it next.
            self._last_block, self._last = block, content
        return self._last[start : start + length]

    def _block(self, file: Descriptor, block: int, wanted: int) -> bytes:
        content = os.pread(file.fd, wanted, block * BLOCK_BYTES)
        if crc32(content).to_bytes(4, "big") != self._checksums[4 * block : 4 * block + 4]:
            raise DamagedFile(f"block {block} of {BLOCK_BYTES} bytes has a wrong checksum")
        return content

    def close(self) -> None:
        self._file = None
        self._last_block, self._last = -1, b""


class MemoryReader:
    """A small blob, already read and checked."""

    def __init__(self, content: bytes) -> None:
        self._content = content
        self.size = len(content)

    async def read(self, offset: int, length: int) -> bytes:
        if offset == 0 and length >= self.size:
            return self._content
        return self._content[offset : offset + length]

    def close(self) -> None:
        self._content = b""


def _resident(fd: int, offset: int, length: int) -> bool:
    """Whether a stretch of a file looks as if it were in memory: its first and its last byte are."""
    if not _NOWAIT:
        return False
    byte = bytearray(1)
    try:
        # Linux 5.9 and 5.10 give nothing at all, and no error, for what is not in memory (preadv2(2)).
        return all(os.preadv(fd, (byte,), position, _NOWAIT) for position in (offset, offset + length - 1))
    except OSError:
        return False
