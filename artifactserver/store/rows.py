"""The rows of the index, as they stand in LMDB.

Six tables; integers are big-endian.  Nothing in them is the only copy of anything: `artifactserver.store.rebuild`
makes the index again from packs and files.

``blobs``
    function (1 byte) + hash → one of

    * ``1``, size (8), pack (8), payload bytes as stored (4), offset (4): an entry in a pack;
    * ``2``, size (8), file serial (8), last use (4, seconds since the epoch), then CRC-32s (4 each), one for each MiB
      of the content and one for what is left: a file of its own.
``ages``
    last use (4) + blob key → nothing.  One row for each *file* in ``blobs``, oldest first.
``records``
    record hash (32) → state (1: 1 set, 2 deleted), sequence (8), pack (8), payload bytes (4), offset (4), then
    eviction epoch (8) and time (4) of the last walk that found everything present, then CRC-32 (4) of all that.
    A deleted record keeps its row, which says where its tombstone stands.
``names``
    kind (1) + instance, NUL, name, cut to 479 bytes, + record hash (32) → nothing.  One row for each set record.
``packs``
    pack id (8) → state (1: 1 open, 2 sealed, 3 retiring), committed bytes (8), entries (8), made at (8), renewed at
    (8; both seconds since the epoch), CRC-32 (4).
``meta``
    ``store``: the store's identity, as in ``format``.  ``version``: of these tables.  Counters (8): ``generation``
    goes up when a row of ``packs`` comes, goes or changes state; ``epoch`` when blobs were removed; ``sequence`` is
    that of the newest record change, and at least its time in nanoseconds since the epoch; ``next_pack``;
    ``pack_bytes`` and ``file_bytes`` are what packs and files hold.

Rules that every writer keeps: bytes are durable before the transaction that names them commits; an entry whose pack
has no row is missing; a blob in a retiring pack is made durable elsewhere before anybody is told that it is present;
a row is only removed by compare-and-delete, and neither a pack id nor a file serial is ever used twice.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from zlib_ng.zlib_ng import crc32

from artifactserver.store.packs import Place

INDEX_VERSION = 1

PACKED = 1
FILED = 2

OPEN = 1
SEALED = 2
RETIRING = 3

SET = 1
DELETED = 2

_PACKED = struct.Struct(">BQQII")
_FILED = struct.Struct(">BQQI")
_RECORD = struct.Struct(">BQQIIQI")
_PACK = struct.Struct(">BQQQQ")
U64 = struct.Struct(">Q")
U32 = struct.Struct(">I")
_NAME_BYTES = 479

#: The length of a ``blobs`` value that points into a pack, and how to read one; for the store's inner loops.
PACKED_BYTES = _PACKED.size
unpack_packed = _PACKED.unpack


def encode_packed(size: int, pack: int, stored: int, offset: int) -> bytes:
    """The ``blobs`` value of an entry in a pack."""
    return _PACKED.pack(PACKED, size, pack, stored, offset)


@dataclass(frozen=True, slots=True)
class FileRow:
    """The ``blobs`` value of a file.

    :ivar checksums: CRC-32s, four bytes each.
    """

    size: int
    serial: int
    used: int
    checksums: bytes

    def encode(self) -> bytes:
        return _FILED.pack(FILED, self.size, self.serial, self.used) + self.checksums

    @classmethod
    def decode(cls, value: bytes) -> FileRow | None:
        """The row, or `None` if ``value`` is not one."""
        if len(value) < _FILED.size or value[0] != FILED or (len(value) - _FILED.size) % 4:
            return None
        _, size, serial, used = _FILED.unpack_from(value)
        return cls(size, serial, used, value[_FILED.size :])


@dataclass(frozen=True, slots=True)
class PackRow:
    """A row of ``packs``; times in seconds since the epoch."""

    state: int
    committed: int
    entries: int
    made: int
    renewed: int

    def encode(self) -> bytes:
        packed = _PACK.pack(self.state, self.committed, self.entries, self.made, self.renewed)
        return packed + U32.pack(crc32(packed))

    @classmethod
    def decode(cls, value: bytes) -> PackRow | None:
        packed = value[:-4]
        if len(packed) != _PACK.size or U32.pack(crc32(packed)) != value[-4:]:
            return None
        return cls(*_PACK.unpack(packed))


@dataclass(frozen=True, slots=True)
class RecordRow:
    """A row of ``records``: the newest change of one record.

    :ivar epoch: the eviction epoch in which everything that the record requires was last seen to be present.
    :ivar walked: when that was, in seconds since the epoch; 0 for never.
    """

    state: int
    sequence: int
    place: Place
    epoch: int = 0
    walked: int = 0

    def encode(self) -> bytes:
        place = self.place
        packed = _RECORD.pack(
            self.state, self.sequence, place.pack, place.stored, place.offset, self.epoch, self.walked
        )
        return packed + U32.pack(crc32(packed))

    @classmethod
    def decode(cls, value: bytes) -> RecordRow | None:
        packed = value[:-4]
        if len(packed) != _RECORD.size or U32.pack(crc32(packed)) != value[-4:]:
            return None
        state, sequence, pack, stored, offset, epoch, walked = _RECORD.unpack(packed)
        return cls(state, sequence, Place(pack, offset, stored), epoch, walked)


@dataclass(frozen=True, slots=True)
class PackTable:
    """The packs as of one generation.

    :ivar ready: ids of packs whose entries are present without further ado.
    :ivar retiring: ids of packs whose entries have to be made durable elsewhere first.
    :ivar all: both.
    """

    generation: bytes | None = None
    ready: frozenset[int] = frozenset()
    retiring: frozenset[int] = frozenset()
    all: frozenset[int] = frozenset()


def name_row(kind: int, instance: str, name: str, record: bytes) -> bytes:
    """The key in ``names`` of a record whose hash is ``record``."""
    return (bytes([kind]) + instance.encode("utf-8") + b"\0" + name.encode("utf-8"))[:_NAME_BYTES] + record
