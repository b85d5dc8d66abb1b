"""A client on grpcio.  Answers are looked at when the clock has stopped."""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import grpc
import grpc.aio

from artifactserver.proto import bytestream_pb2, remote_execution_pb2
from benchmarks import messages
from benchmarks.messages import BATCH, LARGE, MIB, SMALL
from benchmarks.servers import Server

IN_FLIGHT = 32

_OPTIONS = [
    ("grpc.enable_http_proxy", 0),
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    ("grpc.use_local_subchannel_pool", 1),
]


class Wrong(Exception):
    """A server answered something else than what was asked for, or nothing."""

    def __init__(self, message: str = "a server answered something else than what was asked for") -> None:
        super().__init__(message)


@dataclass(frozen=True, slots=True)
class Work:
    """What was done, in a case's units, and the check of the answers, to be made when the clock has stopped."""

    amount: float
    check: Callable[[], None]


class Client:
    """A client of one server, with one connection.  Its methods block until their work is done."""

    def __init__(self, server: Server, loop: asyncio.AbstractEventLoop) -> None:
        self._server = server
        self._loop = loop
        self._channel = loop.run_until_complete(self._open())

    async def _open(self) -> grpc.aio.Channel:
        target = f"127.0.0.1:{self._server.port}"
        if self._server.tls is None:
            channel = grpc.aio.insecure_channel(target, _OPTIONS)
        else:
            credentials = grpc.ssl_channel_credentials(self._server.tls.certificate.read_bytes())
            channel = grpc.aio.secure_channel(target, credentials, _OPTIONS)
        await channel.channel_ready()
        return channel

    def close(self) -> None:
        self._loop.run_until_complete(self._channel.close())

    def capabilities(self, seconds: float) -> Work:
        answers = self.unary(messages.CAPABILITIES, itertools.repeat(b""), seconds, IN_FLIGHT)

        def check() -> None:
            require(bool(remote_execution_pb2.ServerCapabilities.FromString(answers[0]).cache_capabilities))

        return Work(len(answers), check)

    def find(self, requests: Sequence[bytes], digests: int, missing: int, seconds: float) -> Work:
        answers = self.unary(messages.FIND_MISSING, itertools.cycle(requests), seconds)

        def check() -> None:
            for answer in answers[:50]:
                found = remote_execution_pb2.FindMissingBlobsResponse.FromString(answer).missing_blob_digests
                require(len(found) == missing)

        return Work(len(answers) * digests, check)

    def seed(self, requests: Iterable[bytes]) -> None:
        """Upload everything, four batches at a time."""
        for answer in self.unary(messages.BATCH_UPDATE, iter(requests), float("inf"), 4):
            responses = remote_execution_pb2.BatchUpdateBlobsResponse.FromString(answer).responses
            require(not any(each.status.code for each in responses))

    def update(self, requests: Sequence[bytes], seconds: float, blobs: int = BATCH) -> Work:
        answers = self.unary(messages.BATCH_UPDATE, iter(requests), seconds)

        def check() -> None:
            for answer in answers:
                responses = remote_execution_pb2.BatchUpdateBlobsResponse.FromString(answer).responses
                require(len(responses) == blobs and not any(each.status.code for each in responses))

        return Work(len(answers) * blobs, check)

    def read_batches(self, requests: Sequence[bytes], seconds: float, blobs: int = BATCH) -> Work:
        answers = self.unary(messages.BATCH_READ, itertools.cycle(requests), seconds)

        def check() -> None:
            for answer in answers[:20]:
                responses = remote_execution_pb2.BatchReadBlobsResponse.FromString(answer).responses
                require(len(responses) == blobs)
                for each in responses:
                    require(hashlib.sha256(each.data).hexdigest() == each.digest.hash)

        return Work(len(answers) * blobs, check)

    def write_small(self, requests: Sequence[bytes], seconds: float) -> Work:
        call = self._channel.stream_unary(messages.WRITE)

        async def one(request: bytes) -> bytes:
            return bytes(await call(iter([request])))

        answers = self._loop.run_until_complete(_in_flight(one, iter(requests), seconds, IN_FLIGHT))

        def check() -> None:
            for answer in answers:
                require(bytestream_pb2.WriteResponse.FromString(answer).committed_size == SMALL)

        return Work(len(answers), check)

    def read_small(self, requests: Sequence[bytes], seconds: float) -> Work:
        call = self._channel.unary_stream(messages.READ)

        async def one(request: bytes) -> tuple[bytes, list[bytes]]:
            return request, [message async for message in call(request)]

        answers = self._loop.run_until_complete(_in_flight(one, itertools.cycle(requests), seconds, IN_FLIGHT))

        def check() -> None:
            for request, answer in answers[:500]:
                hash = bytestream_pb2.ReadRequest.FromString(request).resource_name.split("/")[1]
                content = b"".join(bytestream_pb2.ReadResponse.FromString(message).data for message in answer)
                require(hashlib.sha256(content).hexdigest() == hash)

        return Work(len(answers), check)

    def write_large(self, upload: Sequence[bytes]) -> Work:
        call = self._channel.stream_unary(messages.WRITE)

        async def one() -> bytes:
            return bytes(await call(iter(upload)))

        answer = self._loop.run_until_complete(one())

        def check() -> None:
            require(bytestream_pb2.WriteResponse.FromString(answer).committed_size == LARGE)

        return Work(LARGE / MIB, check)

    def read_large(self, request: bytes, expected: bytes, seconds: float) -> Work:
        call = self._channel.unary_stream(messages.READ)
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
                hasher.update(bytestream_pb2.ReadResponse.FromString(message).data)
            require(hasher.digest() == expected)

        return Work(amount * LARGE / MIB, check)

    def unary(self, method: str, requests: Iterator[bytes], seconds: float, in_flight: int = 1) -> list[bytes]:
        """The answers to as many requests as can be sent in so many seconds."""
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


def require(sound: bool) -> None:
    """:raises Wrong: if it is not."""
    if not sound:
        raise Wrong
