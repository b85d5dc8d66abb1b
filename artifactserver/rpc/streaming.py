"""Calls whose request is a stream of messages.

Backpressure from the handler to the peer: what has arrived counts against the stream's window until the handler has
taken the message it belongs to, and against the connection's window until the handler is hungry, that is, has taken all
there is and asks for more.  A message that is not whole is not held against the connection while its handler waits for
it: many calls may each need the rest of theirs, and would wait for each other.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Coroutine
from typing import Any

from twisted.internet.defer import Deferred

from artifactserver.access import Caller
from artifactserver.rpc.exchange import Carrier, Exchange
from artifactserver.rpc.http2 import Stream
from artifactserver.rpc.messages import Message
from artifactserver.rpc.requests import Wanted

#: What a message that waits takes besides its content, in bytes.
MESSAGE_BYTES = 100


class StreamingExchange(Exchange):
    """Hands the messages on as the handler asks for them.

    The handler begins, and goes on, when everything that arrived together has been looked at: by then it often need
    not wait at all.  One that has nothing to say before the end does not begin before its first message is here.
    """

    __slots__ = ("_begun", "_ended", "_hungry", "_messages", "_queued", "_waiting", "_withheld")

    def __init__(self, carrier: Carrier, stream: Stream, wanted: Wanted, caller: Caller) -> None:
        super().__init__(carrier, stream, wanted, caller)
        self._begun = False
        self._ended = False
        self._hungry = True
        self._messages: deque[tuple[Message, int]] = deque()
        # Bytes in those messages, and bytes not given back to the connection's window yet.
        self._queued = 0
        self._withheld = 0
        self._waiting: Deferred[None] | None = None
        if wanted.method.streams_out or self._call.deadline is not None:
            carrier.wake(self)

    @property
    def waits_for_data(self) -> bool:
        return not self.over and (self._waiting is not None or not self._begun)

    def data_received(self, payload: bytes | memoryview, ended: bool) -> None:
        self._withheld += len(payload)
        if self.over:
            self._release()
            return
        messages = self._feed(payload, ended)
        if messages is None:
            return
        if ended:
            self._ended = True
        for message in messages:
            self._messages.append(message)
            self._queued += message[1]
        if messages or ended:
            if self._waiting is not None or not self._begun:
                self._carrier.wake(self)
        elif self._hungry and not self._messages:
            self._release()
        self._count()

    def proceed(self) -> None:
        if self.over:
            return
        if not self._begun:
            if self._messages or self._ended or self._wanted.method.streams_out:
                self._begun = True
                self._run(Requests(self))
            else:
                self._mind_deadline()
        elif self._waiting is not None and (self._messages or self._ended):
            # Woken once for each part that arrived, it may have had them all the first time.
            waiting, self._waiting = self._waiting, None
            waiting.callback(None)

    async def next_request(self) -> Any:
        """The next message.

        :raises StopAsyncIteration: at the end.
        """
        self._taken = 0
        while not self._messages or self._carrier.expansions.enough:
            if self._messages:
                await self._carrier.expansions.next_turn()
                continue
            if self._ended:
                raise StopAsyncIteration
            self._hungry = True
            self._release()
            self._count()
            self._carrier.flush()
            waiting: Deferred[None] = Deferred()
            self._waiting = waiting
            await waiting
        self._hungry = False
        message, size = self._messages.popleft()
        self._queued -= size
        self._carrier.engine.release_stream(self.stream, size)
        try:
            return self._parse(message)
        finally:
            self._count()
            # Whoever has waited for something else, a disk say, is here at a moment of its own.
            self._carrier.flush()

    def _release(self) -> None:
        if self._withheld:
            self._carrier.engine.release(self._withheld)
            self._withheld = 0

    def _count(self) -> None:
        size = self._queued + MESSAGE_BYTES * len(self._messages) + self._taken
        if self._reader is not None:
            size += self._reader.held
        if size != self.held:
            self._hold(size)

    def _settle(self) -> None:
        super()._settle()
        self._messages.clear()
        self._queued = 0
        self._release()

    def _cancel_handler(self) -> None:
        self._waiting = None
        super()._cancel_handler()


class Requests:
    """The stream of requests, as the handler sees it."""

    __slots__ = ("_exchange",)

    def __init__(self, exchange: StreamingExchange) -> None:
        self._exchange = exchange

    def __aiter__(self) -> Requests:
        return self

    def __anext__(self) -> Coroutine[Any, Any, Any]:
        return self._exchange.next_request()
