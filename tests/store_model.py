"""What goes into a store that is used at random, and what has to be true of it afterwards."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

from artifactserver.store.digest import Digest
from artifactserver.store.interface import Blob, Record, RecordKey, RecordKind
from artifactserver.store.packs import KIND_BLOB, KIND_RECORD, encode_head
from artifactserver.store.records import Change, record_hash
from tests.store_ends import SMALL_SIZES

SMALL = SMALL_SIZES["adding:SMALL_BYTES"]

#: Records that there may be, by number.
KEYS = [RecordKey(RecordKind(1 + number % 3), "main" * (number % 2), f"urn:{number}") for number in range(5)]
BY_HASH = {record_hash(key): key for key in KEYS}

#: Blobs of one example, by number: some that are small, some that get files, some that look like entries of a pack.
BLOBS = 24


def make_blob(number: int, salt: int) -> Blob:
    """A blob of its own kind, by its number."""
    noise = random.Random(number * 1_000_003 + salt)
    content = noise.randbytes(noise.choice([8, 20, 300, SMALL]) if number % 3 else noise.randint(SMALL + 1, 7_000))
    if number % 5 == 1:
        # What it would take to forge a record, and another blob, out of content.
        key = KEYS[number // 5 % len(KEYS)]
        change = Change(key, Record(key, b"forged", ())).encode(1 << 62, 4e9)
        content = encode_head(KIND_RECORD, 0, record_hash(key), change) + change
        inner = make_blob((number + 1) % BLOBS, salt).content[:300] if number % 2 else b"inner"
        content += encode_head(KIND_BLOB, 1, Digest.of(inner).hash, inner) + inner
    return Blob(Digest.of(content), content)


@dataclass(slots=True)
class Known:
    """What has to be true of a record.

    :ivar values: what may be answered.
    :ivar references: of each value that was ever set, what it requires.
    :ivar history: all that was ever written, `None` for a deletion.
    :ivar hurt: changes of it were damaged, or perhaps never committed: older ones may come back with a new index.
    """

    values: set[bytes | None] = field(default_factory=lambda: {None})
    references: dict[bytes, list[Digest]] = field(default_factory=dict)
    history: list[bytes | None] = field(default_factory=lambda: [None])
    hurt: bool = False
