"""The kinds of load that servers are compared under, and the material for them."""

from __future__ import annotations

import hashlib
import os
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from benchmarks import messages
from benchmarks.client import Client, Work
from benchmarks.messages import BATCH, LARGE, SMALL


@dataclass(frozen=True, slots=True)
class Case:
    """One kind of load.

    :ivar unit: what is counted.
    :ivar run: sends requests until they are used up or the time is over; returns how much work was done.
    :ivar floor: what we hold ourselves to, as a multiple of what buildbox-casd does for the same CPU time.
    :ivar tls_floor: the same over TLS, as a part of what we do in clear text.
    """

    title: str
    unit: str
    run: Callable[[Client, float], Work]
    floor: float | None = None
    tls_floor: float | None = None


@dataclass(slots=True)
class Material:
    """What one round sends; the same to all servers, and new to each of them.

    :ivar seeds: batches to be uploaded before anything else.
    """

    absent: list[bytes] = field(default_factory=list)
    present: list[bytes] = field(default_factory=list)
    updates: list[bytes] = field(default_factory=list)
    seeds: list[bytes] = field(default_factory=list)
    reads: list[bytes] = field(default_factory=list)
    stream_reads: list[bytes] = field(default_factory=list)
    stream_writes: list[bytes] = field(default_factory=list)
    large_write: list[bytes] = field(default_factory=list)
    large_read: bytes = b""
    large_hash: bytes = b""


def prepare(updates: int = 120, writes: int = 5000, seeds: int = 20) -> Material:
    """Make the material of one round.

    :param updates: how many batches there are to upload, of `BATCH` blobs each.
    :param writes: how many blobs there are to upload by themselves.
    :param seeds: how many batches are uploaded before the clock starts, to be found and read.
    """
    made = Material()
    made.absent = messages.finds(messages.absent_digests(20_000), 1000)
    seeded: list[Any] = []
    for _ in range(seeds):
        request, batch = messages.update(BATCH, SMALL)
        made.seeds.append(request)
        seeded += batch
    shuffled = list(seeded)
    for _ in range(3):
        random.shuffle(shuffled)
        batches = [shuffled[start : start + BATCH] for start in range(0, len(shuffled), BATCH)]
        made.present += map(messages.find, batches)
        made.reads += map(messages.batch_read, batches)
    made.stream_reads = [messages.stream_read(digest) for digest in shuffled]
    made.updates = [messages.update(BATCH, SMALL)[0] for _ in range(updates)]
    for _ in range(writes):
        made.stream_writes += messages.stream_write(os.urandom(SMALL))
    content = os.urandom(LARGE)
    made.large_write = messages.stream_write(content)
    made.large_hash = hashlib.sha256(content).digest()
    made.large_read = messages.stream_read(messages.digest(content))
    return made


def find_case(requests: Sequence[bytes], digests: int, missing: int, floor: float | None = None) -> Case:
    """Ask for so many digests at a time, of which so many are missing."""
    return Case(
        f"FindMissingBlobs, {digests:,} {'absent' if missing else 'present'} digests",
        "digests",
        lambda client, seconds: client.find(requests, digests, missing, seconds),
        floor,
    )


def cases(made: Material) -> list[Case]:
    """The cases of one round, in the order in which they have to run."""
    return [
        Case("GetCapabilities, 32 in flight", "calls", lambda client, seconds: client.capabilities(seconds), 3.0),
        find_case(made.absent, 1000, 1000, 2.0),
        find_case(made.present, BATCH, 0, 4.0),
        Case(
            "BatchUpdateBlobs, 200 of 4 kB", "blobs", lambda client, seconds: client.update(made.updates, seconds), 6.0
        ),
        Case(
            "BatchReadBlobs, 200 of 4 kB",
            "blobs",
            lambda client, seconds: client.read_batches(made.reads, seconds),
            1.5,
        ),
        Case(
            "ByteStream.Write, 4 kB, 32 in flight",
            "blobs",
            lambda client, seconds: client.write_small(made.stream_writes, seconds),
            2.0,
        ),
        Case(
            "ByteStream.Read, 4 kB, 32 in flight",
            "blobs",
            lambda client, seconds: client.read_small(made.stream_reads, seconds),
            3.0,
        ),
        Case(
            "ByteStream.Write, 256 MiB",
            "MiB",
            lambda client, seconds: client.write_large(made.large_write),
            1.0,
            0.7,
        ),
        Case(
            "ByteStream.Read, 256 MiB",
            "MiB",
            lambda client, seconds: client.read_large(made.large_read, made.large_hash, seconds),
            2.5,
            0.5,
        ),
    ]
