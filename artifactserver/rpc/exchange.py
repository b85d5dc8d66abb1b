"""A call and the handler that answers it: driving the handler, sending what it gives, and every way to end.

A handler is driven by hand.  Most finish without waiting for anything: those are answered at once.  One that suspends
names the `Deferred` that it waits for, and goes on when that fires; to cancel it is to cancel that.  `Deferred` has a
driver of its own for coroutines, which keeps a context and a result for everybody who might ask: twice the work.

Response data beyond `Limits.response_bytes_queued` suspends the handler until the peer has taken half of it.  How
request data reaches the handler is in ``unary.py`` and ``streaming.py``.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Coroutine
from typing import Any, Protocol

from google.protobuf.message import DecodeError
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from artifactserver.access import Caller
from artifactserver.rpc import answers
from artifactserver.rpc.codes import Code
from artifactserver.rpc.dispatch import Call, Response
from artifactserver.rpc.expansions import Expansions
from artifactserver.rpc.http2 import Connection, ErrorCode, Limits, Stream
from artifactserver.rpc.messages import BadMessage, Message, MessageReader, prefix, whole_message
from artifactserver.rpc.requests import Wanted
from artifactserver.rpc.status import RpcError, details_of, status_of

_log = Logger()

_OUR_FAULT = "the server failed to answer this call; its log says why"


class Carrier(Protocol):
    """What a call needs of the connection it came over.

    :ivar held: request bytes that the calls of this connection keep.
    :ivar working: those of them that are messages which handlers of unary calls are at.
    """

    engine: Connection
    clock: IReactorTime
    limits: Limits
    held: int
    working: int
    expansions: Expansions

    def flush(self) -> None:
        """Write what may be written, unless that will happen anyway before the reactor turns."""

    def wake(self, exchange: Exchange) -> None:
        """Call `Exchange.proceed` when everything that has been received has been looked at."""

    def postpone(self, exchange: Exchange) -> bool:
        """Whether a call has to wait until others are done or the peer has read more; if so, it is woken then."""


class Exchange:
    """One call.  A subclass takes in its request.

    :ivar stream: where it came from.
    :ivar over: the outcome is settled, though the end of the response may not be out.
    :ivar held: request bytes kept here.
    """

    __slots__ = (
        "_awaited",
        "_call",
        "_cancel_next",
        "_carrier",
        "_head_sent",
        "_reader",
        "_room",
        "_taken",
        "_timer",
        "_wanted",
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
        # Made when it is needed: most requests are one message in one piece.
        self._reader: MessageReader | None = None
        # The size of the message that the handler has got last.
        self._taken = 0
        self._head_sent = False
        # What the handler waits for.
        self._awaited: Deferred[Any] | None = None
        # It was to be cancelled, but waited for nothing: it was running, and its own doing led to the end of its call.
        self._cancel_next = False
        self._room: Deferred[None] | None = None
        self._timer: IDelayedCall | None = None
        self.held = 0
        self.over = False

    # The request

    @property
    def waits_for_data(self) -> bool:
        """Whether nothing will happen until the peer sends more of the request."""
        raise NotImplementedError

    def data_received(self, payload: bytes | memoryview, ended: bool) -> None:
        """More of the request's body."""
        raise NotImplementedError

    def proceed(self) -> None:
        """Everything that has been received has been looked at: begin, or go on."""
        raise NotImplementedError

    def _feed(self, payload: bytes | memoryview, ended: bool) -> list[tuple[Message, int]] | None:
        """The messages that are whole now, with their sizes on the wire; `None` if that was the end of the call."""
        reader = self._reader
        if reader is None:
            message = whole_message(payload, self._carrier.limits.message_bytes)
            if message is not None:
                return [(message, len(payload))]
            if not payload:
                return []
            reader = self._reader = MessageReader(self._carrier.limits.message_bytes, self._wanted.encoding)
        try:
            messages = reader.feed(payload) if payload else []
            if ended and reader.unfinished:
                raise BadMessage(Code.INTERNAL, "the request ended in the middle of a message")
        except BadMessage as error:
            self.give_up(error.code, str(error))
            return None
        return messages

    def _parse(self, message: Message) -> Any:
        method = self._wanted.method
        try:
            if isinstance(message, bytes):
                content = message
            else:
                self._carrier.expansions.take(self._carrier.flush)
                content = message.expand()
            self._taken = len(content)
            return method.decode(content)
        except BadMessage as error:
            raise RpcError(error.code, str(error)) from None
        except DecodeError:
            name = method.request.DESCRIPTOR.full_name
            raise RpcError(Code.INTERNAL, f"a request that is not a {name} message") from None

    def _hold(self, size: int) -> None:
        """So many request bytes are kept here now."""
        self._carrier.held += size - self.held
        self.held = size

    # The handler

    def _run(self, request: Any) -> None:
        """Let the handler answer ``request``: a message still to be parsed, or whatever gives all of them."""
        if not self.stream.local_open:
            return  # Reset by what was received right behind the request; we are about to be told.
        self.check_deadline()
        if self.over:
            return
        method = self._wanted.method
        assert method.handler is not None
        try:
            if not method.streams_in:
                request = self._parse(request)
            answer = method.handler(request, self._call)
        except Exception as error:
            self._failed(error)
        else:
            self._drive(self._send_all(answer) if method.yields else answer)

    def _drive(self, coroutine: Coroutine[Any, Any, Any], failure: Failure | None = None) -> None:
        """Let the handler go on until it ends or waits for something.

        :param failure: what came of that for which it has waited, if it failed.
        """
        self._awaited = None
        try:
            if failure is None:
                awaited = coroutine.send(None)
            else:
                awaited = failure.throwExceptionIntoGenerator(coroutine)
        except StopIteration as stop:
            self._finished(stop.value)
        except Exception as error:
            self._failed(error)
            # Its traceback knows the frames of those who brought the failure, down to the transport, and they know it.
            error.__traceback__ = None
        else:
            if not self.over:
                self._mind_deadline()
                self._awaited = awaited
            awaited.addBoth(self._resume, coroutine)
            if self._cancel_next:
                self._cancel_next = False
                awaited.cancel()

    def _resume(self, result: Any, coroutine: Coroutine[Any, Any, Any]) -> None:
        """What the handler waited for is here; it takes the result from its `Deferred` itself."""
        self._drive(coroutine, result if isinstance(result, Failure) else None)

    async def _send_all(self, source: AsyncGenerator[Response, None]) -> None:
        limits = self._carrier.limits
        try:
            async for message in source:
                self._send(message)
                if self.stream.queued > limits.response_bytes_queued:
                    room: Deferred[None] = Deferred()
                    self._room = room
                    self.stream.wake_below = limits.response_bytes_queued // 2
                    await room
        except Exception:
            # Cancelled at our own await, the generator stands at its yield and knows nothing of it.
            await source.aclose()
            raise

    def _send(self, message: Response) -> None:
        if self.over or not self.stream.local_open:
            raise CancelledError
        pieces = _serialized(message)
        sender = self._carrier.engine.sender
        if not self._head_sent:
            self._head_sent = True
            sender.headers(self.stream, answers.HEAD)
        sender.data(self.stream, prefix(pieces), *pieces)
        self._carrier.flush()

    def drained(self) -> None:
        """The peer has taken enough of the response for its handler to go on."""
        if self._room is not None:
            room, self._room = self._room, None
            room.callback(None)

    # The end

    def _finished(self, answer: Any) -> None:
        """The handler has returned: with the response, if that is one message, or with what will yield its messages."""
        if self.over:
            return
        stream = self.stream
        sender = self._carrier.engine.sender
        if not stream.local_open:
            pass  # Reset by what was received right behind the request.
        elif type(answer) is not tuple and isinstance(answer, AsyncGenerator):  # which takes long to find out
            self._drive(self._send_all(answer))
            return
        elif answer is None and self._wanted.method.streams_out:
            if not self._head_sent:
                sender.headers(stream, answers.HEAD)
            sender.finish(stream, answers.TAIL)
        else:
            try:
                pieces = _serialized(answer)
            except Exception as error:
                self._failed(error)
                return
            sender.answer(stream, answers.HEAD, (prefix(pieces), *pieces), answers.TAIL)
        self._settle()
        self._carrier.flush()

    def _failed(self, error: BaseException) -> None:
        """The handler raised ``error``, which is being handled right now."""
        status = status_of(error)
        gone = self.over or not self.stream.local_open
        if status is None and not (gone and isinstance(error, CancelledError)):
            _log.failure("{path} failed", path=self._wanted.method.path)
            status = Code.INTERNAL, _OUR_FAULT
        if not self.over and status is not None:
            self._fail(*status, details_of(error))

    def _fail(self, code: Code, message: str, details: bytes = b"") -> None:
        sender = self._carrier.engine.sender
        if self.stream.local_open:
            most = sender.header_list_bytes
            if self._head_sent:
                sender.finish(self.stream, answers.trailers(code, message, details, most))
            else:
                sender.headers(self.stream, answers.trailers_only(code, message, details, most), end=True)
        self._settle()
        self._carrier.flush()

    def give_up(self, code: Code, message: str) -> None:
        """End the call with a status, whatever its handler is doing."""
        if not self.over:
            self._fail(code, message)
            self._cancel_handler()

    def cancelled(self) -> None:
        """The stream is gone, and with it the reason to go on."""
        self.stream.owner = None
        if not self.over:
            self._settle()
            self._cancel_handler()

    def abandon(self, code: ErrorCode) -> None:
        """Reset the stream and drop everything."""
        self._carrier.engine.reset(self.stream, code)
        self.cancelled()
        self._carrier.flush()

    def _mind_deadline(self) -> None:
        """From now on, a timer ends the call when its deadline passes: something has to be waited for."""
        deadline = self._call.deadline
        if deadline is not None and self._timer is None:
            clock = self._carrier.clock
            self._timer = clock.callLater(max(0.0, deadline - clock.seconds()), self._expired)

    def check_deadline(self) -> None:
        """End the call if its deadline has passed.  A timer does that only from when something has to be waited for."""
        deadline = self._call.deadline
        if deadline is not None and self._timer is None and self._carrier.clock.seconds() >= deadline:
            self._expired()

    def _expired(self) -> None:
        self._timer = None
        self.give_up(Code.DEADLINE_EXCEEDED, "the deadline that the client set has passed")

    def _settle(self) -> None:
        """Let go of everything but the response bytes that are still to be sent."""
        self.over = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self.held:
            self._hold(0)
        self._reader = None

    def _cancel_handler(self) -> None:
        awaited, self._awaited = self._awaited, None
        self._room = None
        if awaited is not None:
            awaited.cancel()
        else:
            self._cancel_next = True


def _serialized(message: Any) -> tuple[bytes, ...]:
    """A response on its way out, in the pieces in which the handler gave it."""
    if type(message) is bytes:
        return (message,)
    if type(message) is tuple:
        return message
    return (message.SerializeToString(),)
