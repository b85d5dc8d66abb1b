"""The largest requests that are taken, and reads of what is not in memory: what might hold a reactor for long."""

from __future__ import annotations

import itertools
import os
import random
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from artifactserver.proto import remote_asset_pb2, remote_execution_pb2
from benchmarks import messages
from benchmarks.cases import Case, Material, find_case
from benchmarks.client import Client, Work
from benchmarks.messages import MIB, SMALL
from benchmarks.servers import Server

#: Digests that BuildStream 2.8 names in one request.
MANY = 13_000

#: Blobs of so many bytes, and how many of them go into one batch.
TINY = 100
TINIES = 18_000

#: Blobs that are in the store beside those, so that the index has some size.
OTHERS = 200_000

#: Files in each folder of a tree; one more folder has all files of the tree.
FILES = 1_000


def fill(client: Client) -> list[Any]:
    """Upload `OTHERS`; the digests of some of them, from all over."""
    some: list[Any] = []
    client.seed(messages.tiny_updates(OTHERS, TINY, some, 2 * MANY))
    return some


def large_requests(client: Client, present: Sequence[Any]) -> Iterator[Case]:
    """Cases, each of which has to run before the next one is asked for.

    :param present: digests of blobs that are there.
    """
    yield find_case(messages.finds(messages.absent_digests(4 * MANY), MANY), MANY, MANY)
    yield find_case(messages.finds(present, MANY), MANY, 0)
    for number, size, batches in ((1, 2 * MIB, 30), (500, SMALL, 30), (TINIES, TINY, 4)):
        yield _update(number, size, [messages.update(number, size)[0] for _ in range(batches)])
        seeds = [messages.update(number, size) for _ in range(3)]
        client.seed(request for request, _ in seeds)
        yield _read(number, size, [messages.batch_read(digests) for _, digests in seeds])
    yield _push(client, seeds[0][1])


def cold_reads(server: Server, made: Material) -> Iterator[Case]:
    """Cases that read, each of them asked for right before it runs: then the kernel forgets all content."""
    cold = (
        Case(
            "ByteStream.Read, 256 MiB",
            "MiB",
            lambda client, seconds: client.read_large(made.large_read, made.large_hash, 0),
        ),
        Case(
            "ByteStream.Read, 4 kB, 32 in flight",
            "blobs",
            lambda client, seconds: client.read_small(random.sample(made.stream_reads, 2000), seconds / 4),
        ),
        _read(messages.BATCH, SMALL, random.sample(made.reads, 20)),
    )
    for case in cold:
        forget(server, "packs", "blobs")
        yield Case(f"{case.title}, from the disk", case.unit, case.run)


def cold_look_ups(present: Sequence[Any]) -> Case:
    """Questions to a server that was started with nothing in memory."""
    case = find_case(messages.finds(random.sample(present, len(present)), 1000), 1000, 0)
    return Case(f"{case.title}, index on the disk", case.unit, case.run)


def forget(server: Server, *folders: str) -> None:
    """Have the kernel drop what it keeps in memory of a server's files; what a process has mapped stays."""
    for folder in folders:
        for path in (server.repo / folder).rglob("*"):
            if path.is_file():
                _forget(path)


def _forget(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(fd)


def _update(number: int, size: int, requests: list[bytes]) -> Case:
    return Case(
        f"BatchUpdateBlobs, {number:,} of {_size(size)}",
        "blobs",
        lambda client, seconds: client.update(requests, seconds, number),
    )


def _read(number: int, size: int, requests: list[bytes]) -> Case:
    return Case(
        f"BatchReadBlobs, {number:,} of {_size(size)}",
        "blobs",
        lambda client, seconds: client.read_batches(requests, seconds, number),
    )


def _size(size: int) -> str:
    return {2 * MIB: "2 MiB", SMALL: "4 kB"}.get(size, f"{size} bytes")


def _push(client: Client, files: Sequence[Any]) -> Case:
    """Name a tree of these files, all of which are there."""
    contents = [_folder(files[start : start + FILES], ()) for start in range(0, len(files), FILES)]
    folders: Iterable[Any] = (_upload(client, content) for content in (*contents, _folder(files, ())))
    push = remote_asset_pb2.PushDirectoryRequest(
        uris=["urn:benchmark"], root_directory_digest=_upload(client, _folder((), folders))
    ).SerializeToString()

    def run(client: Client, seconds: float) -> Work:
        answers = client.unary(messages.PUSH_DIRECTORY, itertools.repeat(push), seconds)
        return Work(len(answers), lambda: None)

    return Case(f"PushDirectory, {len(files):,} files", "trees", run)


def _upload(client: Client, content: bytes) -> Any:
    request, (digest,) = messages.update_of([content])
    client.seed([request])
    return digest


def _folder(files: Iterable[Any], folders: Iterable[Any]) -> bytes:
    directory = remote_execution_pb2.Directory()
    for number, digest in enumerate(files):
        directory.files.add(name=f"file-{number:05}", digest=digest)
    for number, digest in enumerate(folders):
        directory.directories.add(name=f"folder-{number:05}", digest=digest)
    return directory.SerializeToString()
