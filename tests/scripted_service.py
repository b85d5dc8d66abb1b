"""A service whose requests say what its handlers do, and a transport whose peer reads when the test says so."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from google.protobuf.wrappers_pb2 import BytesValue
from twisted.internet.defer import Deferred
from twisted.internet.testing import StringTransport

from artifactserver.rpc.dispatch import Call
from artifactserver.rpc.status import Code, RpcError

#: What a handler may be told to do, by the first byte of a message.
NOW, WAIT, FAIL, WAIT_AND_FAIL, ENOUGH = b"nwfFe"
STEPS = (NOW, WAIT, FAIL, WAIT_AND_FAIL, ENOUGH)


class Scripted:
    """The methods of ``test.Echo``; each message that they get begins with one of `STEPS`.

    :ivar running: handlers that have begun and not ended.
    :ivar waiting: what those of them wait for that wait.
    """

    def __init__(self) -> None:
        self.running = 0
        self.waiting: list[Deferred[None]] = []

    async def step(self, message: BytesValue) -> None:
        """Do what a message says."""
        what = message.value[0]
        if what in (WAIT, WAIT_AND_FAIL):
            waiting: Deferred[None] = Deferred(self.waiting.remove)
            self.waiting.append(waiting)
            await waiting
        if what in (FAIL, WAIT_AND_FAIL):
            raise RpcError(Code.DATA_LOSS, "as you asked")

    def resume(self, number: int) -> None:
        """Let one of the handlers that wait go on."""
        self.waiting.pop(number).callback(None)

    async def Unary(self, request: BytesValue, call: Call) -> BytesValue:
        """The same."""
        self.running += 1
        try:
            await self.step(request)
            return request
        finally:
            self.running -= 1

    async def Down(self, request: BytesValue, call: Call) -> BytesValue | AsyncIterator[BytesValue] | None:
        """The same as many times as the second byte says; none and one are known at once."""
        self.running += 1
        try:
            await self.step(request)
        finally:
            self.running -= 1
        if request.value[1] < 2:
            return request if request.value[1] else None
        return self._many(request)

    async def _many(self, request: BytesValue) -> AsyncIterator[BytesValue]:
        self.running += 1
        try:
            for _ in range(request.value[1]):
                await self.step(request)
                yield request
        finally:
            self.running -= 1

    async def Up(self, requests: AsyncIterator[BytesValue], call: Call) -> BytesValue:
        """How many bytes came, up to a message that is enough."""
        self.running += 1
        size = 0
        try:
            async for request in requests:
                await self.step(request)
                size += len(request.value)
                if request.value[0] == ENOUGH:
                    break
            return BytesValue(value=b"%d" % size)
        finally:
            self.running -= 1

    async def Both(self, requests: AsyncIterator[BytesValue], call: Call) -> AsyncIterator[BytesValue]:
        """The same, one by one, up to a message that is enough."""
        self.running += 1
        try:
            async for request in requests:
                await self.step(request)
                yield request
                if request.value[0] == ENOUGH:
                    break
        finally:
            self.running -= 1


class Pipe(StringTransport):
    """Says that it has enough when so many bytes wait, and that it wants more when all have been read.

    :param room: how many.
    """

    def __init__(self, room: int) -> None:
        super().__init__()
        self.room = room
        self.full = False

    def write(self, data: bytes) -> None:
        super().write(data)
        producer: Any = self.producer
        if producer is not None and not self.full and len(self.value()) > self.room:
            self.full = True
            producer.pauseProducing()

    def read(self, size: int) -> bytes:
        """Take what the peer reads, at most so many bytes."""
        waiting: bytes = self.value()
        self.clear()
        StringTransport.write(self, waiting[size:])
        if self.full and len(waiting) <= size:
            self.full = False
            producer: Any = self.producer
            if producer is not None:
                producer.resumeProducing()
        return waiting[:size]
