"""Calls whose request is one message."""

from __future__ import annotations

from artifactserver.access import Caller
from artifactserver.rpc.codes import Code
from artifactserver.rpc.exchange import Carrier, Exchange
from artifactserver.rpc.http2 import Stream
from artifactserver.rpc.messages import Message, whole_message
from artifactserver.rpc.requests import Wanted

#: How often a message counts while its handler is at it.  What is made of one takes several times as much memory as it
#: does itself: measured, two or three times for blobs, eight for a long list of digests.
WORKED_ON = 4


class UnaryExchange(Exchange):
    """Collects the message, and lets the handler have it when the request has ended.

    A message is held until its call is over, though the handler has it: what many of them wait with adds up.  When
    what handlers are at comes to `Limits.working_bytes`, further calls wait, and count against the connection's
    window.  So do those behind a message that had to be decompressed, until the reactor has turned: what was short to
    send may take long to look at.

    All that arrives is given back to the connection's window at once, as the handler can do nothing without the rest:
    many calls may each need a little more, and would wait for each other.  The stream's window is never given back; it
    has room for the largest message.
    """

    __slots__ = ("_begun", "_message", "_retaken", "_working")

    def __init__(self, carrier: Carrier, stream: Stream, wanted: Wanted, caller: Caller) -> None:
        super().__init__(carrier, stream, wanted, caller)
        self._begun = False
        self._message: Message | None = None
        self._retaken = 0
        self._working = 0

    @property
    def waits_for_data(self) -> bool:
        return not self.over and not self._begun and self.stream.remote_open

    def data_received(self, payload: bytes | memoryview, ended: bool) -> None:
        carrier = self._carrier
        carrier.engine.release(len(payload))
        if self.over:
            return
        if ended and self._reader is None and self._message is None:
            message = whole_message(payload, carrier.limits.message_bytes)
            if message is not None:
                self._whole(message)
                return
        messages = self._feed(payload, ended)
        if messages is None:
            return
        if len(messages) + (self._message is not None) > 1:
            self.give_up(Code.INTERNAL, "more than one message for a method that takes one")
            return
        if messages:
            self._message = messages[0][0]
        if not ended:
            unfinished = 0 if self._reader is None else self._reader.held
            self._hold(unfinished + len(self._message or b""))
        elif self._message is None:
            self.give_up(Code.INTERNAL, "no message for a method that takes one")
        else:
            whole, self._message = self._message, None
            self._whole(whole)

    def _whole(self, message: Message) -> None:
        carrier = self._carrier
        if (carrier.engine.sender.owed or carrier.working or carrier.expansions.enough) and carrier.postpone(self):
            self._message = message
            self._hold(len(message))
            self._retaken = len(message)
            carrier.engine.retake(self._retaken)
            return
        self._begin(message)

    def _begin(self, message: Message) -> None:
        self._begun = True
        if self.held:
            self._let_go()
        self._run(message)
        if not self.over:
            self._working = WORKED_ON * self._taken
            self._carrier.working += self._working
            self._hold(self._working)

    def proceed(self) -> None:
        """Others are done, or the peer has read enough of their answers."""
        if not self.over and self._message is not None:
            message, self._message = self._message, None
            self._begin(message)

    def _let_go(self) -> None:
        self._hold(0)
        if self._retaken:
            self._carrier.engine.release(self._retaken)
            self._retaken = 0
        if self._working:
            self._carrier.working -= self._working
            self._working = 0

    def _settle(self) -> None:
        if self.held:
            self._let_go()
        super()._settle()
        self._message = None
