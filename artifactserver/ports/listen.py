"""One port, several protocols: which one a peer speaks is seen from its first bytes.

HTTP/2 without TLS starts with a preface that no HTTP/1.1 request can start with.  Over TLS, ALPN has decided before the
first byte; a client without ALPN is told apart by the preface there too.  A peer that says nothing is let go.
"""

from __future__ import annotations

from typing import Protocol as TypingProtocol
from typing import runtime_checkable

from twisted.internet.interfaces import (
    IAddress,
    IDelayedCall,
    IProtocol,
    IProtocolFactory,
    IProtocolNegotiationFactory,
    IReactorTime,
)
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from artifactserver.addresses import host_of
from artifactserver.complaints import Complaints

#: How the preface of HTTP/2 begins (RFC 9113, section 3.4).  Whatever begins so and goes on otherwise is HTTP/2's to
#: refuse.
_PREFACE = b"PRI * HTTP/2.0\r\n"

#: How a TLS connection begins: a handshake record of SSL 3 or later (RFC 8446, section 5.1).
_CLIENT_HELLO = b"\x16\x03"

#: Seconds until a connection must have shown what it speaks, the TLS handshake included.
CHOICE_SECONDS = 30.0

#: Connections at one port that have not shown yet what they speak.  It takes honest clients two or three round trips,
#: and no processor core can shake hands with so many in that time.
MOST_UNDECIDED = 1024

#: The share of all connections that these may be, where there are few.
UNDECIDED_SHARE = 0.5

#: Seconds between two log lines about clients that got the kind of port wrong.
_COMPLAINT_SECONDS = 60.0


def most_undecided(connections: int) -> int:
    """How many connections may be undecided at one port, if there may be so many connections in all."""
    return min(MOST_UNDECIDED, int(connections * UNDECIDED_SHARE))


@runtime_checkable
class Leaving(TypingProtocol):
    """A protocol that knows how to end a connection at once, and in order."""

    def send_away(self) -> None:
        """End it; what is under way is lost."""


class _Chooser(Protocol):
    """A connection about which nothing is known yet, and then a link to the protocol that was chosen."""

    def __init__(self, factory: PortFactory, address: IAddress) -> None:
        self.factory: PortFactory = factory
        self.address = address
        self._received = b""
        self._chosen: IProtocol | None = None
        self._timer: IDelayedCall | None = None

    def connectionMade(self) -> None:
        self.factory.enter(self)
        self._timer = self.factory.clock.callLater(self.factory.timeout, self._too_late)

    def dataReceived(self, data: bytes) -> None:
        received = self._received = self._received + data
        agreed = getattr(self.transport, "negotiatedProtocol", None)
        if agreed is None and received.startswith(_CLIENT_HELLO):
            self.factory.complain_of_tls(self.address)
            self._is_decided()
            self.transport.loseConnection()  # type: ignore[union-attr]
        elif agreed == b"h2" or received.startswith(_PREFACE):
            self._choose(self.factory.http2)
        elif not (_PREFACE.startswith(received) or received == _CLIENT_HELLO[:1]) or agreed is not None:
            self._choose(self.factory.http1)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self._is_decided()
        if self._chosen is not None:
            self._chosen.connectionLost(reason)

    def _choose(self, factory: IProtocolFactory) -> None:
        self._is_decided()
        transport = self.transport
        assert transport is not None
        chosen = factory.buildProtocol(self.address)
        if chosen is None:
            transport.loseConnection()
            return
        self._chosen = chosen
        received, self._received = self._received, b""
        # From here on every byte goes straight to it.
        self.dataReceived = chosen.dataReceived  # type: ignore[method-assign]
        chosen.makeConnection(transport)
        chosen.dataReceived(received)

    def _is_decided(self) -> None:
        self.factory.leave(self)
        if self._timer is not None and self._timer.active():
            self._timer.cancel()

    def _too_late(self) -> None:
        self.transport.abortConnection()  # type: ignore[union-attr]

    def give_way(self) -> None:
        """End, for others to be let in."""
        self._is_decided()
        self._too_late()

    def send_away(self) -> None:
        """End the connection, in the way of what was chosen: its client may not be here any more."""
        if isinstance(self._chosen, Leaving):
            self._chosen.send_away()
        else:
            self._too_late()


@implementer(IProtocolNegotiationFactory)
class PortFactory(Factory):
    """Serves HTTP/2 and HTTP/1.1 on one port, in clear text or inside TLS.

    :param http2: serves connections that begin with the HTTP/2 preface.
    :param http1: serves all others.
    :param clock: the reactor, or what stands for it in a test.
    :param timeout: seconds until a connection must have shown what it speaks, the TLS handshake included.
    :param most_undecided: connections at once that have not; with one more, the one that has taken longest has to go.
    """

    noisy = False
    _log = Logger()

    def __init__(
        self,
        http2: IProtocolFactory,
        http1: IProtocolFactory,
        clock: IReactorTime,
        timeout: float = CHOICE_SECONDS,
        most_undecided: int = MOST_UNDECIDED,
    ) -> None:
        self.http2 = http2
        self.http1 = http1
        self.clock = clock
        self.timeout = timeout
        self._most_undecided = most_undecided
        # In the order in which they came.
        self._undecided: dict[_Chooser, None] = {}
        self._complaints = Complaints(self._log, clock, 1 / _COMPLAINT_SECONDS, 1)
        self._crowds = Complaints(self._log, clock, 1 / _COMPLAINT_SECONDS, 1)

    def startFactory(self) -> None:
        self.http2.doStart()
        self.http1.doStart()

    def stopFactory(self) -> None:
        self.http2.doStop()
        self.http1.doStop()

    def buildProtocol(self, addr: IAddress) -> Protocol:  # type: ignore[override]
        return _Chooser(self, addr)

    def acceptableProtocols(self) -> list[bytes]:
        """For ALPN, best first: browsers and curl offer both and get HTTP/1.1; gRPC clients offer ``h2`` alone."""
        return [b"http/1.1", b"h2"]

    def enter(self, undecided: _Chooser) -> None:
        """Count a connection that has not shown yet what it speaks; `leave` has to follow."""
        self._undecided[undecided] = None
        if len(self._undecided) > self._most_undecided:
            # Not the new one: those who stall could keep everybody else out.
            slowest = next(iter(self._undecided))
            self._crowds.say(
                "a connection from {peer} was cut off: {most} at once that have not shown yet what they speak are the "
                "most",
                peer=host_of(slowest.address),
                most=self._most_undecided,
            )
            slowest.give_way()

    def leave(self, decided: _Chooser) -> None:
        """A connection has shown what it speaks, or is gone."""
        self._undecided.pop(decided, None)

    def complain_of_tls(self, address: IAddress) -> None:
        """Say, once in a while, that a client expects TLS where there is none."""
        self._complaints.say(
            "{peer} tried TLS on a port that is in clear text: it should use http:// or grpc://, "
            "or the server should be given --server-key and --server-cert",
            peer=host_of(address),
        )
