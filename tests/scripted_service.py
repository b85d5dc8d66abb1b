"""A service whose requests say what its handlers do, and a transport whose peer reads when the test says so."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import Any

from google.protobuf.wrappers_pb2 import BytesValue
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.internet.testing import StringTransport

from artifactserver.rpc.dispatch import Call, Response
from artifactserver.rpc.status import Code, RpcError

#: What a handler may be told to do, by the first byte of a message.
NOW, WAIT, FAIL, WAIT_AND_FAIL, ENOUGH = b"nwfFe"
STEPS = (NOW, WAIT, FAIL, WAIT_AND_FAIL, ENOUGH)


def shaped(message: BytesValue) -> Response:
    """A response in one of the forms in which a handler may give it; which one, its second byte says."""
    form = message.value[1] % 3
    if form == 0:
        return message
    packed = message.SerializeToString()
    return packed if form == 1 else (packed[:1], packed[1:])


class Scripted:
    """The methods of ``test.Echo``; each message that they get begins with one of `STEPS`.

    :ivar running: handlers that have begun and not ended.
    :ivar waiting: what those of them wait for that wait, and the call that each of them is at.
    """

    def __init__(self, clock: IReactorTime) -> None:
        self._clock = clock
        self.running = 0
        self.waiting: dict[Deferred[None], Call] = {}

    @contextmanager
    def _at(self, call: Call) -> Iterator[None]:
        """A handler is at a call; none begins when nobody waits for it any more."""
        assert call.deadline is None or self._clock.seconds() < call.deadline, "begun too late"
        self.running += 1
        try:
            yield
        finally:
            self.running -= 1

    async def step(self, message: BytesValue, call: Call) -> None:
        """Do what a message says."""
        what = message.value[0]
        if what in (WAIT, WAIT_AND_FAIL):
            waiting: Deferred[None] = Deferred(self._forget)
            self.waiting[waiting] = call
            await waiting
        if what in (FAIL, WAIT_AND_FAIL):
            raise RpcError(Code.DATA_LOSS, "as you asked")

    def _forget(self, cancelled: Deferred[None]) -> None:
        del self.waiting[cancelled]

    def resume(self, number: int) -> None:
        """Let one of the handlers that wait go on."""
        waiting = list(self.waiting)[number]
        del self.waiting[waiting]
        waiting.callback(None)

    async def Unary(self, request: BytesValue, call: Call) -> Response:
        """The same."""
        with self._at(call):
            await self.step(request, call)
            return shaped(request)

    #: What nobody may call would work.
    Forbidden = Unary

    async def Down(self, request: BytesValue, call: Call) -> Response | AsyncIterator[Response] | None:
        """The same as many times as the second byte says; none and one are known at once."""
        with self._at(call):
            await self.step(request, call)
        if request.value[1] < 2:
            return shaped(request) if request.value[1] else None
        return self._many(request, call)

    async def _many(self, request: BytesValue, call: Call) -> AsyncIterator[Response]:
        self.running += 1
        try:
            for _ in range(request.value[1]):
                await self.step(request, call)
                yield shaped(request)
        finally:
            self.running -= 1

    async def Up(self, requests: AsyncIterator[BytesValue], call: Call) -> BytesValue:
        """How many bytes came, up to a message that is enough."""
        size = 0
        with self._at(call):
            async for request in requests:
                await self.step(request, call)
                size += len(request.value)
                if request.value[0] == ENOUGH:
                    break
        return BytesValue(value=b"%d" % size)

    async def Both(self, requests: AsyncIterator[BytesValue], call: Call) -> AsyncIterator[Response]:
        """The same, one by one, up to a message that is enough."""
        with self._at(call):
            async for request in requests:
                await self.step(request, call)
                yield shaped(request)
                if request.value[0] == ENOUGH:
                    break


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
