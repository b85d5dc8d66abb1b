"""HTTP/1.1, of which there is nothing yet: those who may ask learn that, and others why they may not.

Who may do what is decided when a request's head is complete, before it is told to go on, and nothing of its body is
kept.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from twisted.internet.interfaces import IReactorTime, ITransport
from twisted.internet.protocol import connectionDone
from twisted.python.failure import Failure
from twisted.web import http
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET, Request, Site

from artifactserver.access import Caller, Refusal, Right, http_right
from artifactserver.tokens.authentication import INVALID, Authentication, Visit, challenges

#: Of HTTP/1.1, bytes of one line of a request's head, and of all lines together.
LINE_BYTES = 16 * 1024
HEAD_BYTES = 16 * 1024

#: Of HTTP/1.1, seconds from the connection's start, or the end of the answer before, until a request's head is whole.
HEAD_SECONDS = 60.0

#: Of HTTP/1.1, bytes that are read at once: requests in a row are all answered before somebody else has a turn.
HTTP1_READ_BYTES = 8 * 1024

#: Of HTTP/1.1, seconds that a client is given to notice that it is sent away.
SEND_AWAY_SECONDS = 1.0


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

    def process(self) -> None:
        if self.path == b"*":
            # Twisted answers this one by itself, whoever asks and whatever they have shown.
            self.path = b"/*"
        super().process()

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
