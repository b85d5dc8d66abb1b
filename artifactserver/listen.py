"""One port, several protocols: which one a peer speaks is seen from its first bytes.

HTTP/2 without TLS starts with a preface that no HTTP/1.1 request can start with.  Over TLS, ALPN has decided before the
first byte; a client without ALPN is told apart by the preface there too.  A peer that says nothing is let go.

HTTP/1.1 is answered by `not_found_site` until there is something to find: those who may ask that learn that there is
nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, runtime_checkable
from typing import Protocol as TypingProtocol

from twisted.internet.interfaces import (
    IAddress,
    IDelayedCall,
    IProtocol,
    IProtocolFactory,
    IProtocolNegotiationFactory,
    IReactorTime,
    ITransport,
)
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web import http
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET, Request, Site
from zope.interface import implementer

from artifactserver.access import Caller, Refusal, Right, http_right
from artifactserver.authentication import INVALID, Authentication, Visit, challenges
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

#: Of HTTP/1.1, bytes of one line of a request's head, and of all lines together.
LINE_BYTES = 16 * 1024
HEAD_BYTES = 16 * 1024

#: Of HTTP/1.1, seconds from the connection's start, or the end of the answer before, until a request's head is whole.
HEAD_SECONDS = 60.0

#: Of HTTP/1.1, bytes that are read at once: requests in a row are all answered before somebody else has a turn.
HTTP1_READ_BYTES = 8 * 1024

#: Of HTTP/1.1, seconds that a client is given to notice that it is sent away.
SEND_AWAY_SECONDS = 1.0

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
        self._address = address
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
            self.factory.complain_of_tls(self.transport)
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
        chosen = factory.buildProtocol(self._address)
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
                peer=_host_of(slowest.transport),
                most=self._most_undecided,
            )
            slowest.give_way()

    def leave(self, decided: _Chooser) -> None:
        """A connection has shown what it speaks, or is gone."""
        self._undecided.pop(decided, None)

    def complain_of_tls(self, transport: ITransport | None) -> None:
        """Say, once in a while, that a client expects TLS where there is none."""
        self._complaints.say(
            "{peer} tried TLS on a port that is in clear text: it should use http:// or grpc://, "
            "or the server should be given --server-key and --server-cert",
            peer=_host_of(transport),
        )


def _host_of(transport: ITransport | None) -> str:
    return getattr(transport.getPeer(), "host", "").removeprefix("::ffff:") if transport is not None else ""


class _Nowhere:
    """A file that keeps nothing."""

    def write(self, data: bytes) -> None: ...

    def tell(self) -> int:
        return 0

    def seek(self, *where: int) -> None: ...

    def read(self, *size: int) -> bytes:
        return b""

    def close(self) -> None: ...


class _BodylessRequest(Request):
    """A request whose body is not wanted: what comes of it is thrown away as it comes.

    :ivar refusal: why it may not be made, or `None` if it may.
    :ivar challenges: how to get further with a token, if that is how.
    """

    channel: _Channel
    refusal: Refusal | None = None
    challenges: Sequence[bytes] = ()

    def gotLength(self, length: int | None) -> None:
        # The head is complete, and nothing else is here.
        self._decide(http_right(self.channel._command, self.channel._path))
        self.content = _Nowhere()
        if self.requestHeaders.hasHeader(b"expect"):
            # The client asks before it sends.  It is answered now, and since it may yet send, not listened to again.
            self.requestHeaders.removeHeader(b"expect")
            self.responseHeaders.setRawHeaders(b"connection", [b"close"])
            self.channel.persistent = False
            self.channel.length = 0

    def _decide(self, right: Right) -> None:
        caller: Caller | None = self.channel.caller
        assert caller is not None
        shown = self.requestHeaders.getRawHeaders(b"authorization")
        if shown and self.channel.visit is not None:
            caller = self.channel.visit.caller(b", ".join(shown))
        if caller is None:
            self.refusal = INVALID
        else:
            self.refusal = caller.refusal(right)
        if caller is None or self.refusal is not None and caller.would_gain(right):
            self.challenges = challenges(invalid=caller is None)

    def reject(self, body: bytes) -> int | bytes:
        """Answer later, since something was shown that is not good; gives what `Resource.render` has to give."""
        visit = self.channel.visit
        assert visit is not None

        def answer() -> None:
            self.write(body)
            self.finish()

        held = visit.refuse(answer)
        if held is None:
            # Whoever does so very often has to connect for it anew.
            self.setHeader(b"connection", b"close")
            self.channel.persistent = False
            return body
        self.notifyFinish().addErrback(lambda reason: held.drop())
        return NOT_DONE_YET


_NOTHING_HERE = b"This server speaks gRPC; there are no pages here.\n"


class _NotFound(Resource):
    isLeaf = True

    def render(self, request: Request) -> bytes:
        assert isinstance(request, _BodylessRequest)
        # A method that no resource here knows is still a path that does not exist.
        status, body = 404, _NOTHING_HERE
        if request.refusal is not None:
            status, body = 401 if request.challenges else 403, request.refusal.reason.encode() + b"\n"
            request.responseHeaders.setRawHeaders(b"www-authenticate", request.challenges)
        request.setResponseCode(status)
        request.setHeader(b"content-type", b"text/plain; charset=utf-8")
        # Says its length for a HEAD request too.  To leave the body out is for us: Twisted would, but logs a complaint.
        request.setHeader(b"content-length", b"%d" % len(body))
        if request.method == b"HEAD":
            body = b""
        return request.reject(body) if request.refusal is INVALID else body  # type: ignore[return-value]


class _Channel(http.HTTPChannel):
    """A connection of HTTP/1.1 that says what was too long, and lets slow clients go without a word in the log.

    :ivar caller: who is at its other end, as far as is known without a token.
    :ivar visit: knows who shows a token; `None` if nobody is asked for one.
    """

    MAX_LENGTH = LINE_BYTES
    totalHeadersSize = HEAD_BYTES
    transport: Any
    site: _QuietSite
    visit: Visit | None = None

    def connectionMade(self) -> None:
        self.caller = self.site.caller_of(self.transport)
        authentication = self.site.authentication
        if authentication is not None:
            self.visit = authentication.visit(self.caller, self.transport.getPeer(), self)
        # Below TLS, if there is TLS.
        getattr(self.transport, "transport", self.transport).bufferSize = HTTP1_READ_BYTES
        super().connectionMade()

    def dataReceived(self, data: bytes) -> None:
        # A transport that is being closed may still have something; one answer to it is enough.
        if not self.transport.disconnecting:
            super().dataReceived(data)

    def allHeadersReceived(self) -> None:
        super().allHeadersReceived()
        super().resetTimeout()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        if self.visit is not None:
            self.visit.leave()
        super().connectionLost(reason)

    def lineLengthExceeded(self, line: bytes) -> None:
        status = b"431 Request Header Fields Too Large" if self.requests else b"414 URI Too Long"
        self.transport.write(b"HTTP/1.1 %s\r\nConnection: close\r\nContent-Length: 0\r\n\r\n" % status)
        self.loseConnection()

    def resetTimeout(self) -> None:
        # The time for a head does not begin anew with each byte of it.
        if not self.line_mode:
            super().resetTimeout()

    def timeoutConnection(self) -> None:
        self._abortingCall = self.callLater(self.abortTimeout, self.forceAbortClient)
        self.loseConnection()

    def send_away(self) -> None:
        """End the connection at once; whatever is under way on it is lost."""
        if self._abortingCall is None:
            self._abortingCall = self.callLater(SEND_AWAY_SECONDS, self.forceAbortClient)
            self.loseConnection()

    def forceAbortClient(self) -> None:
        self._abortingCall = None
        self.transport.abortConnection()


class _QuietSite(Site):
    protocol = _Channel  # type: ignore[assignment]
    caller_of: Callable[[ITransport], Caller]
    authentication: Authentication | None

    def log(self, request: http.Request) -> None:
        """An access log is not wanted for answers that are all the same."""


def not_found_site(
    caller_of: Callable[[ITransport], Caller], reactor: IReactorTime, authentication: Authentication | None = None
) -> Site:
    """A web site that has nothing: a request that may be made is answered with 404, and no body is kept.

    :param caller_of: who is at the other end of a transport; called once its handshake is done.
    :param authentication: knows who shows a token; without it nobody is asked.
    """
    site = _QuietSite(
        _NotFound(),
        requestFactory=_BodylessRequest,
        parsePOSTFormSubmission=False,
        reactor=reactor,
        timeout=HEAD_SECONDS,
    )
    site.caller_of = caller_of
    site.authentication = authentication
    site.noisy = False
    site.displayTracebacks = False
    return site
