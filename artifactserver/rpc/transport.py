"""gRPC for listening ports: who serves its connections, what they share, and how all of them end."""

from __future__ import annotations

from collections.abc import Callable

from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IAddress, IReactorTime, ITransport
from twisted.internet.protocol import Factory
from twisted.logger import Logger

from artifactserver.access import Caller
from artifactserver.complaints import Complaints
from artifactserver.rpc.dispatch import Routes
from artifactserver.rpc.http2 import Beginnings, Limits
from artifactserver.rpc.ledger import Ledger
from artifactserver.rpc.protocol import GrpcProtocol
from artifactserver.tokens.authentication import Authentication

__all__ = ["GrpcFactory", "GrpcProtocol"]


class GrpcFactory(Factory):
    """Serves gRPC, on connections that speak HTTP/2 from their first byte.

    :param routes: the dispatcher.
    :param caller_of: who is at the other end of a transport; called once its handshake is done.
    :param clock: the reactor, or what stands for it in a test.
    :param authentication: knows who shows a token; without it nobody is asked.
    """

    noisy = False
    _log = Logger()

    def __init__(
        self,
        routes: Routes,
        caller_of: Callable[[ITransport], Caller],
        clock: IReactorTime,
        limits: Limits = Limits(),  # noqa: B008 - frozen
        authentication: Authentication | None = None,
    ) -> None:
        self.routes = routes
        self.caller_of = caller_of
        self.clock = clock
        self.limits = limits
        self.authentication = authentication
        self.ledger = Ledger(limits.held_bytes, limits.held_bytes_in_all)
        self.beginnings = Beginnings(limits)
        self.connections: set[GrpcProtocol] = set()
        #: Logs what a peer did, unless they do so all the time.
        self.complain = Complaints(self._log, clock).say
        #: Connections that have something to send when what happens `together` is over; otherwise `None`.
        self.waiting: set[GrpcProtocol] | None = None
        self._drained: Deferred[None] | None = None

    def buildProtocol(self, addr: IAddress | None) -> GrpcProtocol | None:  # type: ignore[override]
        if self._drained is not None:
            return None
        return GrpcProtocol(self)

    def at(self, caller_of: Callable[[ITransport], Caller]) -> Factory:
        """For another port: serves its connections together with those of this one, but for other callers."""
        return _AnotherPort(self, caller_of)

    def together(self, function: Callable[..., None], *arguments: object) -> None:
        """Call ``function``, and let everything that it causes to be sent on one connection leave in one piece."""
        outermost = self.waiting is None
        if self.waiting is None:
            self.waiting = set()
        try:
            function(*arguments)
        finally:
            if outermost:
                waiting, self.waiting = self.waiting, None
                for connection in waiting:
                    with self._log.failuresHandled("while sending what is ready"):
                        connection.flush()

    def drain(self, grace: float) -> Deferred[None]:
        """Let running calls finish within ``grace`` seconds, then cut off what is left; fires when all is closed."""
        if not self.connections:
            return succeed(None)
        done: Deferred[None] = Deferred()
        self._drained = done
        timer = self.clock.callLater(grace, self._abort_all)
        for connection in list(self.connections):
            connection.drain()

        def stop_timer(result: None) -> None:
            if timer.active():
                timer.cancel()

        return done.addCallback(stop_timer)

    def _abort_all(self) -> None:
        for connection in list(self.connections):
            connection.abort()

    def connection_lost(self) -> None:
        """Called by each connection when it is gone."""
        if self._drained is not None and not self.connections and not self._drained.called:
            self._drained.callback(None)


class _AnotherPort(Factory):
    """Connections that are the factory's in all but who their callers are."""

    noisy = False

    def __init__(self, shared: GrpcFactory, caller_of: Callable[[ITransport], Caller]) -> None:
        self._shared = shared
        self._caller_of = caller_of

    def buildProtocol(self, addr: IAddress | None) -> GrpcProtocol | None:  # type: ignore[override]
        protocol = self._shared.buildProtocol(addr)
        if protocol is not None:
            protocol.caller_of = self._caller_of
        return protocol
