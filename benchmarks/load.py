"""The load: what the client sends, prepared beforehand, and how it is sent.

Requests are serialized before the clock starts and responses are looked at after it has stopped, so the client, which
is Python, keeps a server as busy as it can.  Every server gets the same requests in the same order.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import random
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import grpc
import grpc.aio

from artifactserver.proto import bytestream_pb2, remote_execution_pb2

MIB = 2**20
_CAS = "/build.bazel.remote.execution.v2.ContentAddressableStorage"
_CAPABILITIES = "/build.bazel.remote.execution.v2.Capabilities/GetCapabilities"
_BYTE_STREAM = "/google.bytestream.ByteStream"
_OPTIONS = [
    ("grpc.enable_http_proxy", 0),
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    ("grpc.use_local_subchannel_pool", 1),
]

#: What each connection of BuildStream 1.6 begins with.
_PROBES = (
    _CAPABILITIES,
    f"{_CAS}/BatchReadBlobs",
    "/build.bazel.remote.asset.v1.Fetch/FetchDirectory",
    f"{_CAS}/BatchUpdateBlobs",
    "/build.bazel.remote.asset.v1.Push/PushDirectory",
)

SMALL = 4096
BATCH = 200
IN_FLIGHT = 32
LARGE = 256 * MIB
WRITE_MESSAGE = 2 * MIB


class Wrong(Exception):
    """A server answered something else than what was asked for."""


@dataclass(frozen=True, slots=True)
class Case:
    """One kind of load.

    :ivar unit: what is counted.
    :ivar run: sends requests until they are used up or the time is over; returns how much work was done.
    """

    title: str
    unit: str
    run: Callable[[Client, float], Work]


@dataclass(frozen=True, slots=True)
class Work:
    """What was done, in a case's units, and the check of the answers, to be made when the clock has stopped."""

    amount: float
    check: Callable[[], None]


@dataclass(slots=True)
class Round:
    """The material of one round; the same for all servers, and new to each of them."""

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


def prepare(updates: int = 120, writes: int = 6000, seeds: int = 20) -> Round:
    """Make the material of one round.

    :param updates: how many batches there are to upload, of `BATCH` blobs each.
    :param writes: how many blobs there are to upload by themselves.
    :param seeds: how many batches are uploaded before the clock starts, to be found and read.
    """
    made = Round()
    made.absent = find_requests(absent_digests(20_000))
    seeded: list[Any] = []
    for _ in range(seeds):
        request, batch = _update(BATCH, SMALL)
        made.seeds.append(request)
        seeded += batch
    shuffled = list(seeded)
    for _ in range(3):
        random.shuffle(shuffled)
        batches = [shuffled[start : start + BATCH] for start in range(0, len(shuffled), BATCH)]
        made.present += map(_find, batches)
        made.reads += [_batch_read(batch) for batch in batches]
    made.stream_reads = [_stream_read(digest) for digest in shuffled]
    made.updates = [_update(BATCH, SMALL)[0] for _ in range(updates)]
    for _ in range(writes):
        content = os.urandom(SMALL)
        made.stream_writes += _stream_write(content)
    content = os.urandom(LARGE)
    made.large_write = _stream_write(content)
    made.large_hash = hashlib.sha256(content).digest()
    made.large_read = _stream_read(_digest(content, LARGE))
    return made


def find_case(requests: Sequence[bytes], digests: int, missing: int) -> Case:
    """Ask for so many digests at a time, of which so many are missing."""
    return Case(
        f"FindMissingBlobs, {digests:,} {'absent' if missing else 'present'} digests",
        "digests",
        lambda client, seconds: client.find(requests, digests, missing, seconds),
    )


def cases(made: Round) -> list[Case]:
    """The cases of one round, in the order in which they have to run."""
    return [
        Case("GetCapabilities, 32 in flight", "calls", lambda client, seconds: client.capabilities(seconds)),
        find_case(made.absent, 1000, 1000),
        find_case(made.present, BATCH, 0),
        Case("BatchUpdateBlobs, 200 of 4 kB", "blobs", lambda client, seconds: client.update(made.updates, seconds)),
        Case("BatchReadBlobs, 200 of 4 kB", "blobs", lambda client, seconds: client.read_batches(made.reads, seconds)),
        Case(
            "ByteStream.Write, 4 kB, 32 in flight",
            "blobs",
            lambda client, seconds: client.write_small(made.stream_writes, seconds),
        ),
        Case(
            "ByteStream.Read, 4 kB, 32 in flight",
            "blobs",
            lambda client, seconds: client.read_small(made.stream_reads, seconds),
        ),
        Case("ByteStream.Write, 256 MiB", "MiB", lambda client, seconds: client.write_large(made.large_write)),
        Case(
            "ByteStream.Read, 256 MiB",
            "MiB",
            lambda client, seconds: client.read_large(made.large_read, made.large_hash, seconds),
        ),
        Case(
            "New connection, BuildStream 1.6's 5 probes", "connections", lambda client, seconds: client.connect(seconds)
        ),
    ]


def tiny_batches(blobs: int, size: int, sample: list[Any], wanted: int) -> Iterator[bytes]:
    """Requests that upload so many new blobs of a size, 1,000 at a time.

    :param sample: gets the digests of about ``wanted`` of them, from all over.
    """
    every = max(1, blobs // wanted)
    for start in range(0, blobs, 1000):
        request, digests = _update(min(1000, blobs - start), size)
        sample += digests[(-start) % every :: every]
        yield request


def find_requests(digests: Sequence[Any]) -> list[bytes]:
    """FindMissingBlobs requests for these digests, 1,000 in each."""
    return [_find(digests[start : start + 1000]) for start in range(0, len(digests), 1000)]


def absent_digests(number: int) -> list[Any]:
    """Digests of blobs that nobody has."""
    return [_digest(os.urandom(16), SMALL) for _ in range(number)]


class Client:
    """A client of one server, with one connection.  Its methods block until their work is done."""

    def __init__(self, port: int, loop: asyncio.AbstractEventLoop) -> None:
        self._port = port
        self._loop = loop
        self._channel = loop.run_until_complete(self._open(port))

    @staticmethod
    async def _open(port: int) -> grpc.aio.Channel:
        channel = grpc.aio.insecure_channel(f"127.0.0.1:{port}", _OPTIONS)
        await channel.channel_ready()
        return channel

    def close(self) -> None:
        self._loop.run_until_complete(self._channel.close())

    def capabilities(self, seconds: float) -> Work:
        answers = self._unary(_CAPABILITIES, _cycle([b""]), seconds, IN_FLIGHT)

        def check() -> None:
            _require(bool(_parse(remote_execution_pb2.ServerCapabilities, answers[0]).cache_capabilities))

        return Work(len(answers), check)

    def find(self, requests: Sequence[bytes], digests: int, missing: int, seconds: float) -> Work:
        answers = self._unary(f"{_CAS}/FindMissingBlobs", _cycle(requests), seconds)

        def check() -> None:
            for answer in answers[:50]:
                found = _parse(remote_execution_pb2.FindMissingBlobsResponse, answer).missing_blob_digests
                _require(len(found) == missing)

        return Work(len(answers) * digests, check)

    def seed(self, requests: Iterable[bytes]) -> None:
        """Upload everything, four batches at a time."""
        for answer in self._unary(f"{_CAS}/BatchUpdateBlobs", iter(requests), float("inf"), 4):
            responses = _parse(remote_execution_pb2.BatchUpdateBlobsResponse, answer).responses
            _require(not any(each.status.code for each in responses))

    def update(self, requests: Sequence[bytes], seconds: float) -> Work:
        answers = self._unary(f"{_CAS}/BatchUpdateBlobs", iter(requests), seconds)

        def check() -> None:
            for answer in answers:
                responses = _parse(remote_execution_pb2.BatchUpdateBlobsResponse, answer).responses
                _require(len(responses) == BATCH and not any(each.status.code for each in responses))

        return Work(len(answers) * BATCH, check)

    def read_batches(self, requests: Sequence[bytes], seconds: float) -> Work:
        answers = self._unary(f"{_CAS}/BatchReadBlobs", _cycle(requests), seconds)

        def check() -> None:
            for answer in answers[:20]:
                responses = _parse(remote_execution_pb2.BatchReadBlobsResponse, answer).responses
                _require(len(responses) == BATCH)
                for each in responses:
                    _require(hashlib.sha256(each.data).hexdigest() == each.digest.hash)

        return Work(len(answers) * BATCH, check)

    def write_small(self, requests: Sequence[bytes], seconds: float) -> Work:
        call = self._channel.stream_unary(f"{_BYTE_STREAM}/Write")

        async def one(request: bytes) -> bytes:
            return bytes(await call(iter([request])))

        answers = self._loop.run_until_complete(_in_flight(one, iter(requests), seconds, IN_FLIGHT))

        def check() -> None:
            for answer in answers:
                _require(_parse(bytestream_pb2.WriteResponse, answer).committed_size == SMALL)

        return Work(len(answers), check)

    def read_small(self, requests: Sequence[bytes], seconds: float) -> Work:
        call = self._channel.unary_stream(f"{_BYTE_STREAM}/Read")

        async def one(request: bytes) -> tuple[bytes, list[bytes]]:
            return request, [message async for message in call(request)]

        answers = self._loop.run_until_complete(_in_flight(one, _cycle(requests), seconds, IN_FLIGHT))

        def check() -> None:
            for request, answer in answers[:500]:
                hash = _parse(bytestream_pb2.ReadRequest, request).resource_name.split("/")[1]
                content = b"".join(_parse(bytestream_pb2.ReadResponse, message).data for message in answer)
                _require(hashlib.sha256(content).hexdigest() == hash)

        return Work(len(answers), check)

    def write_large(self, messages: Sequence[bytes]) -> Work:
        call = self._channel.stream_unary(f"{_BYTE_STREAM}/Write")

        async def one() -> bytes:
            return bytes(await call(iter(messages)))

        answer = self._loop.run_until_complete(one())

        def check() -> None:
            _require(_parse(bytestream_pb2.WriteResponse, answer).committed_size == LARGE)

        return Work(LARGE / MIB, check)

    def read_large(self, request: bytes, expected: bytes, seconds: float) -> Work:
        call = self._channel.unary_stream(f"{_BYTE_STREAM}/Read")
        last: list[bytes] = []
        amount = 0

        async def whole() -> None:
            nonlocal amount
            end = time.monotonic() + seconds
            while not amount or time.monotonic() < end:
                last[:] = [message async for message in call(request)]
                amount += 1

        self._loop.run_until_complete(whole())

        def check() -> None:
            hasher = hashlib.sha256()
            for message in last:
                hasher.update(_parse(bytestream_pb2.ReadResponse, message).data)
            _require(hasher.digest() == expected)

        return Work(amount * LARGE / MIB, check)

    def connect(self, seconds: float) -> Work:
        """Open connections one after another, and ask on each what BuildStream 1.6 asks before it pushes."""

        async def one(_: bytes) -> list[grpc.StatusCode]:
            async with grpc.aio.insecure_channel(f"127.0.0.1:{self._port}", _OPTIONS) as channel:
                return [await channel.unary_unary(method)(b"").code() for method in _PROBES]

        answers = self._loop.run_until_complete(_in_flight(one, _cycle([b""]), seconds, 1))

        def check() -> None:
            _require(all(codes[0] is grpc.StatusCode.OK for codes in answers))

        return Work(len(answers), check)

    def _unary(self, method: str, requests: Iterator[bytes], seconds: float, in_flight: int = 1) -> list[bytes]:
        call = self._channel.unary_unary(method)

        async def one(request: bytes) -> bytes:
            return bytes(await call(request))

        return self._loop.run_until_complete(_in_flight(one, requests, seconds, in_flight))


async def _in_flight(call: Callable[[bytes], Any], requests: Iterator[bytes], seconds: float, number: int) -> list[Any]:
    """Keep so many calls going until the requests or the seconds are used up."""
    answers: list[Any] = []
    end = time.monotonic() + seconds

    async def one_after_another() -> None:
        for request in requests:
            answers.append(await call(request))
            if time.monotonic() >= end:
                return

    await asyncio.gather(*(one_after_another() for _ in range(number)))
    return answers


def _digest(content: bytes, size: int) -> remote_execution_pb2.Digest:
    return remote_execution_pb2.Digest(hash=hashlib.sha256(content).hexdigest(), size_bytes=size)


def _find(digests: Iterable[Any]) -> bytes:
    return remote_execution_pb2.FindMissingBlobsRequest(blob_digests=digests).SerializeToString()


def _update(number: int, size: int) -> tuple[bytes, list[Any]]:
    """A batch of new blobs, and their digests."""
    request = remote_execution_pb2.BatchUpdateBlobsRequest()
    for _ in range(number):
        content = os.urandom(size)
        request.requests.add(digest=_digest(content, size), data=content)
    return request.SerializeToString(), [each.digest for each in request.requests]


def _batch_read(digests: Iterable[Any]) -> bytes:
    return remote_execution_pb2.BatchReadBlobsRequest(digests=digests).SerializeToString()


def _stream_read(digest: Any) -> bytes:
    return bytestream_pb2.ReadRequest(resource_name=f"blobs/{digest.hash}/{digest.size_bytes}").SerializeToString()


def _stream_write(content: bytes) -> list[bytes]:
    """The messages that upload a blob, with its name in each of them, as buildbox-casd and Pants send them."""
    hash = hashlib.sha256(content).hexdigest()
    name = f"uploads/{uuid.uuid4()}/blobs/{hash}/{len(content)}"
    return [
        bytestream_pb2.WriteRequest(
            resource_name=name,
            write_offset=start,
            data=content[start : start + WRITE_MESSAGE],
            finish_write=start + WRITE_MESSAGE >= len(content),
        ).SerializeToString()
        for start in range(0, len(content), WRITE_MESSAGE)
    ]


def _parse(kind: Any, message: bytes) -> Any:
    return kind.FromString(message)


def _cycle(requests: Sequence[bytes]) -> Iterator[bytes]:
    while True:
        yield from requests


def _require(sound: bool) -> None:
    if not sound:
        raise Wrong
