"""Records on disk: a change of a record is a `RecordChange` message, the content of an entry in a pack.

A record's hash is the SHA-256 of its key: the kind (1 byte), then the instance, the name, and each name and value of
the qualifiers in turn, every one as its length in bytes (8, big-endian) and its UTF-8.

The last field of a change is its *proof*: BLAKE2b of everything before it, 16 bytes, with the store's identity as the
key, which no client is told.  Who may upload blobs may upload one that looks, byte for byte, like the entry of a
change.  It stands inside another entry, and nobody looks there, as long as that one is whole; but where a pack is
damaged, the next entry has to be searched for.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Sequence
from dataclasses import dataclass, field

from google.protobuf.message import DecodeError

from artifactserver.proto import records_pb2
from artifactserver.store.digest import HASH_BYTES, Digest, DigestFunction
from artifactserver.store.interface import Record, RecordKey, RecordKind, Reference, Shape

#: The length of a record's hash, which is also the end of its key in the index's ``names``.
RECORD_HASH_BYTES = 32

#: The numbers of changes are beyond the nanoseconds since the epoch only by how many there were: this is in 2262.  What
#: says otherwise would leave no number for the change after it.
MAX_SEQUENCE = 2**63

_NS = 1_000_000_000

_PROOF_BYTES = 16
#: The tag and the length of the field that is the proof.
_PROOF_HEAD = bytes([records_pb2.RecordChange.PROOF_FIELD_NUMBER << 3 | 2, _PROOF_BYTES])


def record_hash(key: RecordKey) -> bytes:
    """The 32 bytes under which the index knows the record."""
    parts = [key.instance, key.name]
    for name, value in key.qualifiers:
        parts += name, value
    hasher = hashlib.sha256(bytes([key.kind]))
    for part in parts:
        encoded = part.encode("utf-8")
        hasher.update(len(encoded).to_bytes(8, "big") + encoded)
    return hasher.digest()


@dataclass(frozen=True, slots=True)
class Change:
    """What happened to one record: it was set, or (without a record) deleted.

    :ivar content: what of its encoding does not depend on the key, if that was made beforehand.
    """

    key: RecordKey
    record: Record | None
    content: bytes = field(default=b"", compare=False, repr=False)

    @classmethod
    def setting(cls, records: Sequence[Record]) -> list[Change]:
        """Changes that set ``records``.  What several names of one thing have in common is encoded once."""
        changes: list[Change] = []
        for record in records:
            last = changes[-1] if changes else None
            same = last is not None and last.record is not None and _is_same(last.record, record)
            changes.append(cls(record.key, record, last.content if last is not None and same else _content(record)))
        return changes

    @property
    def size(self) -> int:
        """How many bytes the change takes, about."""
        return len(self.encode(0, 0.0))

    def encode(self, sequence: int, now: float) -> bytes:
        """The content of the entry that says so.

        :param sequence: the change's place among all changes.
        :param now: seconds since the epoch.
        """
        message = records_pb2.RecordChange(
            sequence=sequence,
            time_ns=int(now * _NS),
            operation=records_pb2.SET if self.record is not None else records_pb2.DELETE,
            kind=self.key.kind,
            instance=self.key.instance,
            name=self.key.name,
        )
        for name, value in self.key.qualifiers:
            message.qualifiers.add(name=name, value=value)
        encoded = message.SerializeToString()
        # The fields of the content come last, so the two encodings, joined, are that of the whole.
        return encoded if self.record is None else encoded + (self.content or _content(self.record))


def prove(content: bytes, identity: str) -> bytes:
    """The encoding of a change with the proof that it was written by the store with this identity."""
    return content + _PROOF_HEAD + _proof(content, identity)


def is_proven(content: bytes, identity: str) -> bool:
    """Whether the content of an entry ends with that proof."""
    end = len(content) - len(_PROOF_HEAD) - _PROOF_BYTES
    return end >= 0 and hmac.compare_digest(prove(content[:end], identity), content)


def _proof(content: bytes, identity: str) -> bytes:
    return hashlib.blake2b(content, digest_size=_PROOF_BYTES, key=identity.encode("ascii")).digest()


def _is_same(one: Record, other: Record) -> bool:
    """Whether two records differ in their keys alone."""
    return (one.value, one.references, one.expires) == (other.value, other.references, other.expires)


def _content(record: Record) -> bytes:
    """The fields of a `RecordChange` that do not depend on the record's key, encoded."""
    message = records_pb2.RecordChange(value=record.value, expires_ns=int((record.expires or 0) * _NS))
    for reference in record.references:
        digest = reference.digest
        message.references.add(
            key=digest.key, size=digest.size, shape=reference.shape.value, required=reference.required
        )
    return message.SerializeToString()


@dataclass(frozen=True, slots=True)
class WrittenChange:
    """A change, read back.

    :ivar order: of two changes of one record, the one with the greater order stands.
    """

    order: tuple[int, int]
    change: Change

    @classmethod
    def of(cls, hash: bytes, content: bytes) -> WrittenChange | None:
        """The change that an entry holds, or `None` if it is none of the record with this hash."""
        written = cls.decode(content)
        return written if written is not None and record_hash(written.change.key) == hash else None

    @classmethod
    def decode(cls, content: bytes) -> WrittenChange | None:
        """The change that an entry holds, or `None` for one that this version cannot understand."""
        message = records_pb2.RecordChange()
        try:
            message.ParseFromString(content)
            key = RecordKey(
                RecordKind(message.kind),
                message.instance,
                message.name,
                tuple((qualifier.name, qualifier.value) for qualifier in message.qualifiers),
            )
            record = None
            if message.operation == records_pb2.SET:
                references = []
                for reference in message.references:
                    if len(reference.key) != 1 + HASH_BYTES[DigestFunction(reference.key[0])]:
                        return None
                    digest = Digest(reference.key, reference.size)
                    references.append(Reference(digest, Shape(reference.shape), reference.required))
                expires = message.expires_ns / _NS if message.expires_ns else None
                record = Record(key, message.value, tuple(references), expires, message.time_ns / _NS)
            elif message.operation != records_pb2.DELETE:
                return None
            if message.sequence > MAX_SEQUENCE:
                return None
        except (DecodeError, ValueError, IndexError):
            return None
        return cls((message.sequence, message.time_ns), Change(key, record))
