"""What uploads keep in memory while their clients take their time."""

from __future__ import annotations

import weakref
from collections.abc import AsyncIterator
from typing import Any

from twisted.internet.defer import CancelledError, Deferred
from twisted.trial.unittest import SynchronousTestCase

from artifactserver.rpc.dispatch import Call
from artifactserver.services import byte_stream
from artifactserver.services.byte_stream import ByteStream
from artifactserver.services.write_requests import LargeWrite
from artifactserver.store.digest import Digest, Digests
from artifactserver.store.interface import Blob, TooBusy
from tests.callers import PULLER

SIZE = 100_000


class Drain:
    """A store that has nothing, takes everything, and keeps nothing."""

    def __init__(self) -> None:
        self.added: list[Digest] = []

    async def find_missing(self, digests: Digests) -> list[int]:
        return list(range(len(digests)))

    async def add_many(self, blobs: list[Blob]) -> list[None]:
        self.added += [blob.digest for blob in blobs]
        return [None] * len(blobs)

    async def upload(self, digest: Digest, caller: str) -> Drain:
        return self

    async def write(self, content: memoryview) -> None: ...

    async def commit(self) -> None: ...

    def close(self) -> None: ...


def name_of(digest: Digest) -> str:
    return f"uploads/u/blobs/{digest.hex}/{digest.size}"


class LargeUploadTests(SynchronousTestCase):
    """Blobs that flow to the disk."""

    def test_messages_are_let_go(self) -> None:
        """While an upload waits for its next message, nothing is kept of those before."""
        digest = Digest.of(bytes(5 * SIZE))
        sent: list[weakref.ref[memoryview]] = []
        alive: list[int] = []

        async def messages() -> AsyncIterator[LargeWrite]:
            for number in range(5):
                alive.append(sum(each() is not None for each in sent))
                data = memoryview(bytes(SIZE))
                sent.append(weakref.ref(data))
                request = LargeWrite(name_of(digest), number * SIZE, number == 4, data)
                del data
                yield request
                del request

        service: Any = ByteStream(Drain())  # type: ignore[arg-type]
        answer = self.successResultOf(Deferred.fromCoroutine(service.Write(messages(), Call(PULLER, {}))))
        self.assertEqual(answer.committed_size, 5 * SIZE)
        self.assertEqual(alive, [0] * 5)


class SmallUploadTests(SynchronousTestCase):
    """Blobs that are gathered in memory."""

    def setUp(self) -> None:
        self.store = Drain()
        self.service: Any = ByteStream(self.store)  # type: ignore[arg-type]

    def begin(self, content: bytes) -> tuple[Deferred[Any], Deferred[None]]:
        """An upload of which half has come, and what lets the rest come."""
        more: Deferred[None] = Deferred()
        half = len(content) // 2

        async def messages() -> AsyncIterator[LargeWrite]:
            yield LargeWrite(name_of(Digest.of(content)), 0, False, memoryview(content)[:half])
            await more
            yield LargeWrite("", half, True, memoryview(content)[half:])

        return Deferred.fromCoroutine(self.service.Write(messages(), Call(PULLER, {}))), more

    def test_gathered_in_all(self) -> None:
        """So much is gathered for all together; who comes with more is told to try again, and can when others end."""
        self.patch(byte_stream, "GATHERED_IN_ALL", 25_000)
        uploads = [self.begin(bytes([number]) * 10_000) for number in range(4)]
        for done, _ in uploads[2:]:
            self.failureResultOf(done, TooBusy)
        uploads[0][1].callback(None)
        self.assertEqual(self.successResultOf(uploads[0][0]).committed_size, 10_000)
        again, more = self.begin(b"\2" * 10_000)
        more.callback(None)
        self.successResultOf(again)
        uploads[1][0].cancel()
        self.failureResultOf(uploads[1][0], CancelledError)
        self.assertEqual((len(self.store.added), self.service._gathering), (2, 0))
