"""One call, from its first message to its trailers.

A handler is driven by hand first.  Most finish without waiting for anything: those are answered at once, with no
`Deferred` made.  One that suspends is handed on to `Deferred.fromCoroutine`, which starts by asking what it waits for
once more; a `Deferred` that has no result yet names itself again.

Backpressure.  Request data counts against the connection's window until its handler is hungry, and against its
stream's window until the handler has taken the message it belongs to.  (A message that is not whole yet is not held
against the connection: many calls may each need the rest of theirs, and would wait for each other.)  Response data
beyond `Limits.response_bytes_queued` suspends the handler until the peer has taken half of it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncGenerator, Coroutine
from typing import Any, Protocol

from google.protobuf.message import DecodeError, Message
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from artifactserver.access import Caller
from artifactserver.rpc import answers
from artifactserver.rpc.codes import Code
from artifactserver.rpc.dispatch import Call
from artifactserver.rpc.http2 import Connection, ErrorCode, Limits, Stream
from artifactserver.rpc.messages import BadMessage, MessageReader, prefix
from artifactserver.rpc.requests import Wanted
from artifactserver.rpc.status import RpcError, details_of, status_of

_log = Logger()

_OUR_FAULT = "the server failed to answer this call; its log says why"


class Carrier(Protocol):
    """What a call needs of the connection it came over.

    :ivar held: request bytes that the calls of this connection keep.
    """

    engine: Connection
    clock: IReactorTime
    limits: Limits
    held: int

    def flush(self) -> None:
        """Write what may be written, unless that will happen anyway before the reactor turns."""

    def wake(self, exchange: Exchange) -> None:
        """Call `Exchange.proceed` when everything that has been received has been looked at."""

    def postpone(self, exchange: Exchange) -> bool:
        """Whether a call has to wait until the peer has read more of its answers; if so, it is woken then."""


class Exchange:
    """A call and the handler that answers it."""

    __slots__ = (
        "_begun",
        "_call",
        "_carrier",
        "_ended",
        "_head_sent",
        "_hungry",
        "_messages",
        "_reader",
        "_room",
        "_running",
        "_timer",
        "_waiting",
        "_wanted",
        "_withheld",
        "held",
        "over",
        "stream",
    )

    def __init__(self, carrier: Carrier, stream: Stream, wanted: Wanted, caller: Caller) -> None:
        self._carrier = carrier
        self.stream = stream
        self._wanted = wanted
        deadline = None if wanted.timeout is None else carrier.clock.seconds() + wanted.timeout
        self._call = Call(caller, wanted.metadata, deadline)
        self._reader = MessageReader(carrier.limits.message_bytes, wanted.encoding)
        self._messages: deque[tuple[bytes, int]] = deque()
        self._begun = False
        self._ended = False
        self._hungry = True
        self._head_sent = False
        self._running: Deferred[Any] | None = None
        self._waiting: Deferred[None] | None = None
        self._room: Deferred[None] | None = None
        self._timer: IDelayedCall | None = None
        #: Request bytes not given back to the connection's window yet.
        self._withheld = 0
        #: Request bytes kept here.
        self.held = 0
        #: The outcome is settled, though the end of the response may not be out.
        self.over = False

    @property
    def waits_for_data(self) -> bool:
        """Whether nothing will happen until the peer sends more of the request."""
        return not self.over and not self._ended and (not self._begun or self._waiting is not None)

    # The request

    def data_received(self, payload: bytes | memoryview, ended: bool) -> None:
        """More of the request's body."""
        self._withheld += len(payload)
        if self.over:
            self._release()
            return
        messages = self._messages
        if payload:
            try:
                messages.extend(self._reader.feed(payload))
            except BadMessage as error:
                self._fail(error.code, str(error))
                self._cancel_handler()
                return
        if ended:
            self._ended = True
            if self._reader.unfinished:
                self._fail(Code.INTERNAL, "the request ended in the middle of a message")
                self._cancel_handler()
                return
        if not self._wanted.method.streams_in:
            self._unary_request()
        elif self._hungry:
            if messages or ended:
                self._carrier.wake(self)
            else:
                self._release()
                self._account()
        else:
            self._account()

    def _unary_request(self) -> None:
        messages = self._messages
        self._release()
        if len(messages) > 1:
            self._fail(Code.INTERNAL, "more than one message for a method that takes one")
        elif not self._ended:
            self._account()
        elif not messages:
            self._fail(Code.INTERNAL, "no message for a method that takes one")
        elif self._carrier.engine.sender.owed and self._carrier.postpone(self):
            self._account()
        else:
            self._begin()

    def proceed(self) -> None:
        """Begin, or let the handler have what it waits for."""
        if self.over:
            return
        if not self._begun:
            self._begin()
        elif self._waiting is not None:
            waiting, self._waiting = self._waiting, None
            waiting.callback(None)
        if self._messages and not self.over:
            self._account()

    def _release(self) -> None:
        if self._withheld:
            self._carrier.engine.release(self._withheld)
            self._withheld = 0

    def _account(self) -> None:
        """Keep count of what is held, when it may have changed."""
        held = self._reader.held
        for _, size in self._messages:
            held += size
        self._carrier.held += held - self.held
        self.held = held

    async def next_request(self) -> Message:
        """The next message of a stream of requests.

        :raises StopAsyncIteration: at its end.
        """
        while not self._messages:
            if self._ended:
                raise StopAsyncIteration
            self._hungry = True
            self._release()
            self._account()
            waiting: Deferred[None] = Deferred()
            self._waiting = waiting
            await waiting
        self._hungry = False
        message, size = self._messages.popleft()
        # The connection's window is given back when the handler has time for more than this.
        self._carrier.engine.release_stream(self.stream, size)
        if self.held:
            self._account()
        return self._parse(message)

    def _parse(self, message: bytes) -> Message:
        method = self._wanted.method
        try:
            return method.request.FromString(message)
        except DecodeError:
            name = method.request.DESCRIPTOR.full_name
            raise RpcError(Code.INTERNAL, f"a request that is not a {name} message") from None

    # The handler

    def _begin(self) -> None:
        self._begun = True
        method = self._wanted.method
        assert method.handler is not None
        coroutine: Coroutine[Any, Any, Any]
        try:
            request: Any = Requests(self) if method.streams_in else self._parse(self._messages.popleft()[0])
            if self.held:
                self._account()
            answer = method.handler(request, self._call)
            coroutine = self._send_all(answer) if method.streams_out else answer
            coroutine.send(None)
        except StopIteration as stop:
            self._finished(stop.value)
        except Exception as error:
            self._failed(error)
        else:
            deadline = self._call.deadline
            if deadline is not None:
                clock = self._carrier.clock
                self._timer = clock.callLater(max(0.0, deadline - clock.seconds()), self._expired)
            self._running = Deferred.fromCoroutine(coroutine)
            self._running.addCallbacks(self._finished, self._failed_later)

    async def _send_all(self, source: AsyncGenerator[Message | bytes, None]) -> None:
        limits = self._carrier.limits
        try:
            async for message in source:
                self._send(message)
                if self.stream.queued > limits.response_bytes_queued:
                    self._room = Deferred()
                    self.stream.wake_below = limits.response_bytes_queued // 2
                    await self._room
        except BaseException:
            # Cancelled at our own await, the generator stands at its yield and knows nothing of it.
            await source.aclose()
            raise

    def _send(self, message: Message | bytes) -> None:
        if self.over or not self.stream.local_open:
            raise CancelledError
        body = message if type(message) is bytes else message.SerializeToString()  # type: ignore[union-attr]
        sender = self._carrier.engine.sender
        if not self._head_sent:
            self._head_sent = True
            sender.headers(self.stream, answers.HEAD)
        sender.data(self.stream, prefix(body), body)
        self._carrier.flush()

    def drained(self) -> None:
        """The peer has taken enough of the response for its handler to go on."""
        if self._room is not None:
            room, self._room = self._room, None
            room.callback(None)

    def _finished(self, answer: Any) -> None:
        if self.over:
            return
        stream = self.stream
        sender = self._carrier.engine.sender
        if stream.local_open:
            if not self._wanted.method.streams_out:
                try:
                    body = answer if type(answer) is bytes else answer.SerializeToString()
                except Exception as error:
                    self._failed(error)
                    return
                sender.answer(stream, answers.HEAD, prefix(body), body, answers.TAIL)
            else:
                if not self._head_sent:
                    sender.headers(stream, answers.HEAD)
                sender.finish(stream, answers.TAIL)
        self._settle()
        self._carrier.flush()

    def _failed_later(self, failure: Failure) -> None:
        assert failure.value is not None
        self._failed(failure.value, failure)

    def _failed(self, error: BaseException, failure: Failure | None = None) -> None:
        """The handler raised ``error``."""
        status = status_of(error)
        if status is None and not (self.over and isinstance(error, CancelledError)):
            # Called while the exception is being handled, or with what is left of it.
            _log.failure("{path} failed", failure, path=self._wanted.method.path)
            status = Code.INTERNAL, _OUR_FAULT
        if not self.over and status is not None:
            self._fail(*status, details_of(error))

    # The end

    def _fail(self, code: Code, message: str, details: bytes = b"") -> None:
        sender = self._carrier.engine.sender
        if self.stream.local_open:
            if self._head_sent:
                sender.finish(self.stream, answers.trailers(code, message, details))
            else:
                sender.headers(self.stream, answers.trailers_only(code, message, details), end=True)
        self._settle()
        self._carrier.flush()

    def give_up(self, code: Code, message: str) -> None:
        """End the call with a status, whatever its handler is doing."""
        if not self.over:
            self._fail(code, message)
            self._cancel_handler()

    def cancelled(self) -> None:
        """The stream is gone, and with it the reason to go on."""
        if not self.over:
            self._settle()
            self._cancel_handler()

    def abandon(self, code: ErrorCode) -> None:
        """Reset the stream and drop everything."""
        self._carrier.engine.reset(self.stream, code)
        self.cancelled()
        self._carrier.flush()

    def _expired(self) -> None:
        self._timer = None
        self.give_up(Code.DEADLINE_EXCEEDED, "the deadline that the client set has passed")

    def _settle(self) -> None:
        """Let go of everything but the response bytes that are still to be sent."""
        self.over = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._withheld:
            self._release()
        if self.held:
            self._carrier.held -= self.held
            self.held = 0
            self._messages.clear()
            self._reader = MessageReader(0)

    def _cancel_handler(self) -> None:
        running, self._running = self._running, None
        if running is not None:
            self._waiting = self._room = None
            running.cancel()


class Requests:
    """A stream of requests, as its handler sees it."""

    __slots__ = ("_exchange",)

    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange

    def __aiter__(self) -> Requests:
        return self

    def __anext__(self) -> Coroutine[Any, Any, Any]:
        return self._exchange.next_request()
