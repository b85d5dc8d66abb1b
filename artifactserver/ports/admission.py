"""Who is let in at the port: how many connections there may be, in all and from one address.

A connection costs a descriptor, and over TLS some 50 KiB, before its client has said a word.  One too many is closed
when it is accepted, before TLS has begun: its client sees a server that is not available, and tries again.
"""

from __future__ import annotations

from collections import Counter

from twisted.internet.interfaces import IAddress, ILoggingContext, IProtocol, IProtocolFactory, IReactorTime, ITransport
from twisted.internet.protocol import Factory
from twisted.logger import Logger
from twisted.python.failure import Failure

from artifactserver.addresses import caller_at
from artifactserver.complaints import Complaints

#: Connections at once, however many descriptors there are.
MOST_CONNECTIONS = 8192

#: The share of the process's descriptors that connections may take.  The rest is for packs, large blobs and uploads.
DESCRIPTOR_SHARE = 0.5

#: The share of the connections that one address may have.  Whole offices come from one address, and everybody behind a
#: load balancer does; clients of BuildStream 1 open a connection for each element.
ADDRESS_SHARE = 0.5

#: Seconds between two log lines about connections that were too many.  A full house stays full for a while.
_COMPLAINT_SECONDS = 60.0


def most_connections(descriptors: int) -> int:
    """How many connections a process may have that may have so many descriptors."""
    return min(MOST_CONNECTIONS, int(descriptors * DESCRIPTOR_SHARE))


class Admission:
    """Counts the connections of all ports together.

    :param in_all: connections at once.
    :param per_address: connections at once from one IPv4 address, or one IPv6 network of 64 bits.
    """

    def __init__(self, in_all: int, per_address: int) -> None:
        self._in_all = in_all
        self._per_address = per_address
        self._callers: Counter[str] = Counter()
        self.connections = 0

    def refusal(self, caller: str) -> str | None:
        """Why one more connection of a caller is too many, or `None`."""
        if self._callers[caller] >= self._per_address:
            return f"{self._per_address} connections from one address are the most"
        if self.connections >= self._in_all:
            return f"{self._in_all} connections are the most"
        return None

    def enter(self, caller: str) -> None:
        """Count a connection; `leave` has to follow."""
        self._callers[caller] += 1
        self.connections += 1

    def leave(self, caller: str) -> None:
        self._callers[caller] -= 1
        self.connections -= 1
        if not self._callers[caller]:
            del self._callers[caller]


class AdmittingFactory(Factory):
    """Lets connections in to ``wrapped`` while there is room for them.  It belongs outside of TLS.

    :param clock: the reactor, or what stands for it in a test.
    """

    noisy = False
    _log = Logger()

    def __init__(self, wrapped: IProtocolFactory, admission: Admission, clock: IReactorTime) -> None:
        self._wrapped = wrapped
        self._admission = admission
        self._complaints = Complaints(self._log, clock, 1 / _COMPLAINT_SECONDS, 1)

    def doStart(self) -> None:
        self._wrapped.doStart()

    def doStop(self) -> None:
        self._wrapped.doStop()

    def logPrefix(self) -> str:
        """The name of what is wrapped, for Twisted's line about the port."""
        context = ILoggingContext(self._wrapped, None)
        return context.logPrefix() if context is not None else type(self._wrapped).__name__

    def buildProtocol(self, addr: IAddress) -> IProtocol | None:  # type: ignore[override]
        admission = self._admission
        caller = caller_at(addr)
        refusal = admission.refusal(caller)
        if refusal is not None:
            self._complaints.say("a connection from {peer} was closed: {reason}", peer=caller, reason=refusal)
            return None
        protocol = self._wrapped.buildProtocol(addr)
        if protocol is None:
            return None

        def make_connection(transport: ITransport) -> None:
            # Counted from here on: whoever has a transport is told of its end.
            del protocol.makeConnection
            admission.enter(caller)
            protocol.connectionLost = connection_lost  # type: ignore[method-assign]
            try:
                protocol.makeConnection(transport)
            except Exception:
                # Half made, it has no timer that would ever end it.
                self._log.failure("a connection from {peer} could not be begun", peer=caller)
                transport.abortConnection()  # type: ignore[attr-defined]

        def connection_lost(reason: Failure) -> None:
            # Gone at once, and not when somebody looks for cycles: with it goes what was not sent.
            del protocol.connectionLost
            admission.leave(caller)
            protocol.connectionLost(reason)

        # Told to the protocol itself: a wrapper would stand in the way of every byte.
        protocol.makeConnection = make_connection  # type: ignore[method-assign]
        return protocol
