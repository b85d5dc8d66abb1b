"""gRPC on one Twisted transport: bytes, timers, and how it ends.

Everything a peer sends in one piece is looked at before anything is written, so that the answers to many small calls
leave together.  Downloads are pulled: the protocol is the transport's one push producer, and cuts the next piece from
whichever calls have data and window until the transport says that it has enough.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from twisted.internet.interfaces import IDelayedCall, IPushProducer, ISSLTransport, ITCPTransport
from twisted.internet.protocol import Protocol, connectionDone
from twisted.python.failure import Failure
from zope.interface import implementer

from artifactserver.rpc import answers
from artifactserver.rpc.codes import Code
from artifactserver.rpc.exchange import Exchange
from artifactserver.rpc.expansions import Expansions
from artifactserver.rpc.heartbeat import Heartbeat, Verdict
from artifactserver.rpc.http2 import (
    Connection,
    ConnectionFailed,
    ConnectionFault,
    DataReceived,
    ErrorCode,
    Event,
    PingAcknowledged,
    RequestReceived,
    RequestRefused,
    StreamReset,
)
from artifactserver.rpc.http2.sending import PIECE
from artifactserver.rpc.reception import Reception
from artifactserver.tokens.authentication import Visit

if TYPE_CHECKING:
    from artifactserver.rpc.transport import GrpcFactory

#: What a call costs besides its data: streams, coroutines, timers.  Measured, and rounded up.
CALL_BYTES = 4 * 1024
#: What may wait in a transport that does not want more: all that it holds before it says so, and the piece after that.
UNSENT_BYTES = 256 * 1024 + PIECE

#: How long a peer may take to answer the PING that tells what it sent before it knew of our going away.
_GOAWAY_SECONDS = 1.0
_GOAWAY_PING = b"goaway\0\0"


@implementer(IPushProducer)
class GrpcProtocol(Protocol):
    """One connection.  It is the `artifactserver.rpc.exchange.Carrier` of its calls."""

    factory: GrpcFactory

    def __init__(self, factory: GrpcFactory) -> None:
        self.factory = factory
        #: Who is at the other end; that depends on the port.
        self.caller_of = factory.caller_of
        self.clock = factory.clock
        self.limits = factory.limits
        self.engine = Connection(factory.limits, factory.beginnings)
        self.held = 0
        self.working = 0
        self.expansions = Expansions(self.clock)
        # How pieces are written that need not be joined; over TLS they need not.
        self._write_pieces: Callable[[Any], None] | None = None
        self._woken: list[Exchange] = []
        self._postponed: deque[Exchange] = deque()
        # While this is set, something further up will flush.
        self._busy = False
        # While this is set, somebody counts what is let go.
        self._shedding = False
        self._closing = False
        self._draining = False
        self._beat: IDelayedCall | None = None
        self._close_timer: IDelayedCall | None = None
        self._goaway_timer: IDelayedCall | None = None
        self._visit: Visit | None = None

    # The transport's side

    def connectionMade(self) -> None:
        transport = self.transport
        assert transport is not None
        self._caller = self.caller_of(transport)
        authentication = self.factory.authentication
        if authentication is not None:
            self._visit = authentication.visit(self._caller, transport.getPeer(), self)
        self._reception = Reception(self.factory.routes, self._caller, self._visit)
        self._account = self.factory.ledger.open(self._shed)
        self.factory.connections.add(self)
        self._heartbeat = Heartbeat(self.engine, self.limits, self.clock.seconds())
        self._beat = self.clock.callLater(self._heartbeat.interval, self._look)
        if ISSLTransport.providedBy(transport):
            self._write_pieces = transport.writeSequence
        transport.registerProducer(self, True)  # type: ignore[attr-defined]
        self.engine.start()
        self.flush()

    def dataReceived(self, data: bytes) -> None:
        if self._closing:
            return
        self._busy = True
        try:
            for event in self.engine.receive(data, self.clock.seconds()):
                # The frequent ones first, and without a further call.
                if type(event) is DataReceived:
                    exchange = event.stream.owner
                    if exchange is None:
                        self.engine.release(len(event.payload))
                    else:
                        exchange.data_received(event.payload, event.ended)
                elif type(event) is RequestReceived:
                    if not self._reception.receive(self, event.stream, event.head, event.ended):
                        self.drain()
                else:
                    self._rare(event)
            while self._woken:
                woken, self._woken = self._woken, []
                for exchange in woken:
                    exchange.proceed()
        finally:
            self._busy = False
        self.flush()

    def pauseProducing(self) -> None:
        self.engine.sender.blocked = True

    def resumeProducing(self) -> None:
        self.engine.sender.blocked = False
        self.flush()

    def stopProducing(self) -> None:
        """The connection is lost; `connectionLost` will say so."""
        self.engine.sender.blocked = True

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self._closing = True
        self.factory.connections.discard(self)
        for timer in (self._close_timer, self._goaway_timer):
            if timer is not None and timer.active():
                timer.cancel()
        self._let_go()
        if self._visit is not None:
            self._visit.leave()
        self.factory.ledger.close(self._account)
        self.factory.connection_lost()

    # The calls' side

    def flush(self) -> None:
        """Write what may be written, unless that will happen anyway before the reactor turns."""
        if self._busy or self._closing:
            return
        if self.factory.waiting is not None:
            self.factory.waiting.add(self)
            return
        self._busy = True
        try:
            self._write()
        finally:
            self._busy = False
        if self.engine.sender.in_line > self.limits.owed_bytes:
            # Answers that are headers alone: their calls are over, so there is nothing else to hold them back by.
            self._cut_off("it does not read")
            return
        self._settle_accounts()
        if self._draining and not self.engine.streams and self._goaway_timer is None:
            self._close()

    def _write(self) -> None:
        sender = self.engine.sender
        transport: Any = self.transport
        write_pieces = self._write_pieces
        while True:
            while not sender.blocked:
                pieces = sender.take_pieces()
                if not pieces:
                    break
                if write_pieces is not None:
                    write_pieces(pieces)
                else:
                    transport.write(pieces[0] if len(pieces) == 1 else b"".join(pieces))
            if sender.drained:
                drained, sender.drained = sender.drained, []
                for stream in drained:
                    if stream.owner is not None:
                        stream.owner.drained()
            elif self._postponed and not self._too_much_at_once():
                self._postponed.popleft().proceed()
            else:
                return

    def wake(self, exchange: Exchange) -> None:
        self._woken.append(exchange)

    def postpone(self, exchange: Exchange) -> bool:
        if not self._too_much_at_once():
            return False
        if len(self._postponed) >= 2 * self.limits.streams_open:
            # Most of them were reset while they waited.
            self._postponed = deque(each for each in self._postponed if not each.over)
        self._postponed.append(exchange)
        return True

    def _too_much_at_once(self) -> bool:
        limits = self.limits
        too_much = self.engine.sender.owed > limits.owed_bytes or self.working >= limits.working_bytes
        return too_much or self.expansions.enough

    # Events

    def _rare(self, event: Event) -> None:
        if isinstance(event, StreamReset):
            owner, event.stream.owner = event.stream.owner, None
            if owner is not None:
                owner.cancelled()
        elif isinstance(event, RequestRefused):
            if event.stream.local_open:
                self.engine.sender.headers(event.stream, answers.plain(431), end=True)
        elif isinstance(event, PingAcknowledged):
            if event.payload == _GOAWAY_PING:
                self._goaway()
        elif isinstance(event, ConnectionFailed):
            self._failed(event)

    def _failed(self, event: ConnectionFailed) -> None:
        self.factory.complain(
            "{peer} was sent away: {reason} ({code})",
            peer=self._caller.address,
            reason=event.reason,
            code=event.code.name,
        )
        self._close()

    # What does not happen

    def _look(self) -> None:
        self._beat = self.clock.callLater(self._heartbeat.interval, self._look)
        findings = self._heartbeat.look(self.clock.seconds())
        if findings.connection is Verdict.IDLE:
            self.drain()
        elif findings.connection is Verdict.TOO_SLOW:
            for event in self.engine.fail(ConnectionFault(ErrorCode.ENHANCE_YOUR_CALM, "too slow to say anything")):
                self._rare(event)
        elif findings.connection is Verdict.UNREAD:
            self._cut_off("it does not read")
        if self._closing:
            return
        limits = self.limits
        for stream, seconds in findings.still:
            exchange = stream.owner
            if exchange is None:
                continue
            if stream.queued:
                if seconds >= limits.stalled_download_seconds:
                    exchange.abandon(ErrorCode.CANCEL)
            elif exchange.waits_for_data and seconds >= limits.stalled_upload_seconds:
                exchange.give_up(
                    Code.ABORTED, f"fewer than {limits.moving_bytes} bytes have come in {seconds:.0f} seconds"
                )
        for stream in list(self.engine.streams.values()):
            if stream.owner is not None:
                stream.owner.check_deadline()
        self._settle_accounts()

    def _settle_accounts(self) -> None:
        engine = self.engine
        sender = engine.sender
        held = self.held + sender.owed + sender.in_line + CALL_BYTES * len(engine.streams)
        if sender.blocked:
            held += UNSENT_BYTES
        if held != self._account.held and not self._shedding:
            self.factory.ledger.update(self._account, held)

    def _shed(self) -> int:
        """Let go of the call that holds the most, or, where there are no calls, of the connection."""
        largest: Exchange | None = None
        most = 0
        for stream in self.engine.streams.values():
            exchange = stream.owner
            if exchange is not None and exchange.held + stream.queued + CALL_BYTES > most:
                largest = exchange
                most = exchange.held + stream.queued + CALL_BYTES
        # Nothing begins in its place before this has been counted.
        busy, self._busy = self._busy, True
        self._shedding = True
        try:
            if largest is None:
                most = self._account.held
                self._cut_off(f"{most} bytes that wait for it are too many")
                return most
            self.factory.complain(
                "a call of {peer} was given up: {most} bytes held for it were too many",
                peer=self._caller.address,
                most=most,
            )
            largest.abandon(ErrorCode.ENHANCE_YOUR_CALM)
            if not busy:
                self.clock.callLater(0, self.flush)
            return most
        finally:
            self._shedding = False
            self._busy = busy

    # The end

    def drain(self) -> None:
        """Accept no further calls, and close when those that run are done."""
        if self._draining or self._closing:
            return
        self._draining = True
        self.engine.announce_goaway()
        self.engine.ping(_GOAWAY_PING)
        self._goaway_timer = self.clock.callLater(_GOAWAY_SECONDS, self._goaway)
        self.flush()

    def send_away(self) -> None:
        """End the connection at once, and what is under way on it: its client has lost the right to be here."""
        if self._closing:
            return
        for event in self.engine.fail(ConnectionFault(ErrorCode.NO_ERROR, "what vouched for you has been withdrawn")):
            # The connection has not failed, which would be the client's fault; but its calls are over.
            if isinstance(event, StreamReset):
                self._rare(event)
        self._close()

    def _goaway(self) -> None:
        timer, self._goaway_timer = self._goaway_timer, None
        if timer is not None and timer.active():
            timer.cancel()
        self.engine.goaway()
        self.flush()

    def _cut_off(self, reason: str) -> None:
        self.factory.complain("{peer} was cut off: {reason}", peer=self._caller.address, reason=reason)
        self.abort()

    def abort(self) -> None:
        """Close without regard for what runs or is still to be sent."""
        self._closing = True
        self._let_go()
        self.transport.abortConnection()  # type: ignore[union-attr]

    def _close(self) -> None:
        """Send what is in line, and close."""
        if self._closing:
            return
        self._closing = True
        transport: Any = self.transport
        transport.write(self.engine.sender.take())
        self._let_go()
        # A transport with a producer stays open for it, over TLS for good.
        transport.unregisterProducer()
        self._close_timer = self.clock.callLater(self.limits.close_seconds, transport.abortConnection)
        if ITCPTransport.providedBy(transport) and not ISSLTransport.providedBy(transport):
            # To close with bytes unread would reset the connection, and the peer might never see why.
            transport.loseWriteConnection()
        else:
            transport.loseConnection()

    def _let_go(self) -> None:
        """Of all but the transport: nothing of the calls is kept until it has closed."""
        if self._beat is not None and self._beat.active():
            self._beat.cancel()
        self._busy = True
        for stream in list(self.engine.streams.values()):
            if stream.owner is not None:
                stream.owner.cancelled()
        self._postponed.clear()
        self.engine.lost()
        self._settle_accounts()
