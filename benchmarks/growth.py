"""Stores of several sizes: what it costs to start on them, to ask them, and to hold them in memory."""

from __future__ import annotations

import statistics
from typing import Any

from benchmarks import messages, servers, usage
from benchmarks.cases import find_case
from benchmarks.messages import MIB
from benchmarks.report import figure, machine, table
from benchmarks.session import Measured, Session

#: Digests out of a store that are asked for, and as many that are in none.
_SAMPLE = 100_000


def growth(session: Session) -> str:
    """Fill stores of several sizes, and see what it costs to start on them and to ask them."""
    options = session.options
    rows = []
    for kind in [servers.ours(), *(session.peers() if options.peers else [])]:
        for blobs in options.blobs:
            with session.running(kind) as server:
                rows.append([kind.name, f"{blobs:,}", *_grow(session, server, blobs)])
    head = ["Server", "Blobs", "Start, s", "Found", "Not found", "Memory, MiB", "Then, MiB", "Disk, MiB", "Uploads"]
    return (
        f"Stores of blobs of {options.size} bytes: the time until it listens; digests per CPU second of\n"
        "FindMissingBlobs, when they are there and when they are not; anonymous resident memory at the start\n"
        "and after that; blobs uploaded per CPU second, 1,000 in a batch:\n\n" + table(head, rows) + "\n" + machine()
    )


def _grow(session: Session, server: servers.Server, blobs: int) -> list[str]:
    sample: list[Any] = []
    with session.client(server) as client, server.usage() as filling:
        client.seed(messages.tiny_updates(blobs, session.options.size, sample, _SAMPLE))
    session.saw(server, filling.memory)
    server.stop()
    starts = []
    for _ in range(3):
        starts.append(server.start())
        at_start = usage.memory(server.pid)
        server.stop()
    server.start()
    with session.client(server) as client:
        present = Measured()
        absent = Measured()
        for measured, digests, missing in ((present, sample, 0), (absent, messages.absent_digests(_SAMPLE), 1000)):
            session.measure(server, client, find_case(messages.finds(digests, 1000), 1000, missing), measured)
    return [
        f"{statistics.median(starts):.2f}",
        figure(present.per_cpu_second[0]),
        figure(absent.per_cpu_second[0]),
        figure(at_start / MIB),
        figure(max(present.memory + absent.memory) / MIB),
        figure(server.disk() / MIB),
        figure(blobs / filling.cpu_seconds),
    ]
