"""One port for several protocols, and the web site that has nothing."""

from __future__ import annotations

from typing import Any

from twisted.internet.address import IPv4Address
from twisted.internet.error import ConnectionDone
from twisted.internet.interfaces import IProtocolNegotiationFactory
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.logger import capturedLogs
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase
from zope.interface.verify import verifyObject

from artifactserver.access import Caller, Right
from artifactserver.ports import listen
from artifactserver.ports.listen import PortFactory
from artifactserver.web.site import SEND_AWAY_SECONDS, not_found_site
from tests.callers import NOBODY, PULLER, PUSHER

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"


class Recorder(Protocol):
    """Remembers what it got."""

    def __init__(self) -> None:
        self.received: list[bytes] = []
        self.lost = 0

    def dataReceived(self, data: bytes) -> None:
        self.received.append(data)

    def connectionLost(self, reason: object = None) -> None:
        self.lost += 1


class Recorders(Factory):
    noisy = False

    def __init__(self) -> None:
        self.built: list[Recorder] = []
        self.full = False

    def buildProtocol(self, addr: object) -> Recorder | None:
        if self.full:
            return None
        self.built.append(Recorder())
        return self.built[-1]


class Transport(StringTransport):
    """One that can be cut off, and may have agreed on a protocol."""

    negotiatedProtocol: bytes | None = None
    aborted = False

    def abortConnection(self) -> None:
        self.aborted = True


class ChoiceTests(SynchronousTestCase):
    """Which protocol a peer speaks."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.http2 = Recorders()
        self.http1 = Recorders()
        self.port = PortFactory(self.http2, self.http1, self.clock, timeout=10)

    def connect(self, agreed: bytes | None = None) -> tuple[Protocol, Transport]:
        protocol = self.port.buildProtocol(IPv4Address("TCP", "10.0.0.1", 1))
        transport = Transport()
        transport.negotiatedProtocol = agreed
        protocol.makeConnection(transport)
        return protocol, transport

    def test_http2(self) -> None:
        """The preface of HTTP/2 is recognised, however it is cut, and nothing of it is lost."""
        for step in (1, 5, 100):
            protocol, transport = self.connect()
            whole = PREFACE + b"and more"
            for start in range(0, len(whole), step):
                protocol.dataReceived(whole[start : start + step])
            chosen = self.http2.built[-1]
            self.assertEqual(b"".join(chosen.received), whole)
            self.assertIs(chosen.transport, transport)
        self.assertEqual(self.http1.built, [])

    def test_http1(self) -> None:
        """Anything else is HTTP/1.1, at the first byte that shows it."""
        for first in (b"GET / HTTP/1.1\r\n", b"P", b"POST", b"PRI * HTTP/1", b"\0"):
            protocol, _ = self.connect()
            protocol.dataReceived(first)
            if first == b"P":
                self.assertEqual(len(self.http1.built), 1)
                protocol.dataReceived(b"UT /")
                first = b"PUT /"
            self.assertEqual(self.http1.built[-1].received, [first])
        self.assertEqual(self.http2.built, [])

    def test_agreed(self) -> None:
        """What was agreed on in TLS counts, whatever the bytes look like."""
        protocol, _ = self.connect(b"h2")
        protocol.dataReceived(b"GET")
        self.assertEqual(self.http2.built[-1].received, [b"GET"])
        protocol, _ = self.connect(b"http/1.1")
        protocol.dataReceived(b"P")
        self.assertEqual(self.http1.built[-1].received, [b"P"])

    def test_lost(self) -> None:
        """The chosen protocol learns of the end; before the choice there is nobody to tell."""
        protocol, _ = self.connect()
        protocol.connectionLost()
        protocol, _ = self.connect()
        protocol.dataReceived(PREFACE)
        protocol.connectionLost()
        self.assertEqual(self.http2.built[-1].lost, 1)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_silence(self) -> None:
        """Who says nothing, or too little, for too long is let go."""
        for start in (b"", b"PRI * HT"):
            protocol, transport = self.connect()
            protocol.dataReceived(start) if start else None
            self.clock.advance(9)
            self.assertFalse(transport.aborted)
            self.clock.advance(2)
            self.assertTrue(transport.aborted)

    def test_too_many_undecided(self) -> None:
        """When too many have not shown what they speak, the one that took longest has to go, and not the new one."""
        self.port = PortFactory(self.http2, self.http1, self.clock, timeout=10, most_undecided=3)
        silent = [self.connect() for _ in range(2)]
        for _ in range(10):
            protocol, _ = self.connect()
            protocol.dataReceived(b"GET /")
        gone, _ = self.connect()
        gone.connectionLost()
        with capturedLogs() as events:
            for _ in range(3):
                self.clock.advance(0.1)
                silent.append(self.connect())
        self.assertEqual([transport.aborted for _, transport in silent], [True, True, False, False, False])
        self.assertEqual(len(events), 1)
        self.assertEqual(events[0]["most"], 3)
        self.clock.advance(10)
        self.assertEqual([transport.aborted for _, transport in silent], [True] * 5)
        self.assertEqual(len(self.port._undecided), 3)
        for protocol, _ in silent:
            protocol.connectionLost()
        self.assertEqual(len(self.port._undecided), 0)

    def test_most_undecided(self) -> None:
        """Where there may be few connections, half of them may be undecided, so that the others get in."""
        self.assertEqual(listen.most_undecided(100), 50)
        self.assertEqual(listen.most_undecided(8192), listen.MOST_UNDECIDED)

    def test_send_away(self) -> None:
        """A connection is ended in the way of what was chosen; if nothing was yet, it is cut off."""
        protocol: Any
        protocol, transport = self.connect()
        protocol.send_away()
        self.assertTrue(transport.aborted)
        for first, chosen in ((PREFACE, self.http2), (b"GET", self.http1)):
            protocol, transport = self.connect()
            protocol.dataReceived(first)
            protocol.send_away()
            self.assertTrue(transport.aborted)
            chosen.built[-1].send_away = lambda: None  # type: ignore[attr-defined]
            protocol, transport = self.connect()
            self.assertFalse(transport.aborted)

    def test_no_more_connections(self) -> None:
        """A protocol that takes nobody in lets the connection be closed."""
        self.http2.full = True
        protocol, transport = self.connect()
        protocol.dataReceived(PREFACE)
        self.assertTrue(transport.disconnecting)

    def test_tls_on_a_clear_port(self) -> None:
        """A client that expects TLS is let go, and the log says what to do; a thousand of them say it once."""
        with capturedLogs() as events:
            for _ in range(1000):
                protocol, transport = self.connect()
                protocol.dataReceived(b"\x16")
                protocol.dataReceived(b"\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03")
                self.assertTrue(transport.disconnecting)
        self.assertEqual(len(events), 1)
        self.assertIn("--server-key", str(events[0]["log_format"]))
        self.assertEqual(self.http1.built + self.http2.built, [])

    def test_alpn(self) -> None:
        """Over TLS, HTTP/1.1 is preferred for those who offer both; Twisted asks us."""
        verifyObject(IProtocolNegotiationFactory, self.port)
        self.assertEqual(self.port.acceptableProtocols(), [b"http/1.1", b"h2"])

    def test_factories_start_and_stop(self) -> None:
        """Both protocols learn when the port starts and stops."""
        self.port.doStart()
        self.assertEqual((self.http1.numPorts, self.http2.numPorts), (1, 1))
        self.port.doStop()
        self.assertEqual((self.http1.numPorts, self.http2.numPorts), (0, 0))


class NotFoundTests(SynchronousTestCase):
    """HTTP/1.1, until there is something to find."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.caller: Caller = PUSHER
        self.site = not_found_site(lambda transport: self.caller, self.clock)
        self.site.doStart()
        self.addCleanup(self.site.doStop)

    def talk(self, *data: bytes) -> tuple[bytes, Transport]:
        protocol = self.site.buildProtocol(IPv4Address("TCP", "10.0.0.1", 1))
        transport = Transport()
        protocol.makeConnection(transport)
        for piece in data:
            protocol.dataReceived(piece)
        self.protocol: Any = protocol
        return transport.value(), transport

    def test_get(self) -> None:
        """Everything is answered with 404 and a length, and the connection stays open."""
        for method in (b"GET", b"DELETE", b"OPTIONS", b"FROBNICATE"):
            answer, transport = self.talk(method + b" /x HTTP/1.1\r\nHost: h\r\n\r\n")
            head, _, body = answer.partition(b"\r\n\r\n")
            self.assertTrue(head.startswith(b"HTTP/1.1 404 "), answer)
            self.assertIn(b"Content-Length: %d" % len(body), head)
            self.assertFalse(transport.disconnecting)

    def test_head(self) -> None:
        """HEAD gets the same without a body, and the operator's log gets nothing."""
        whole, _ = self.talk(b"GET /x HTTP/1.1\r\nHost: h\r\n\r\n")
        with capturedLogs() as events:
            answer, _ = self.talk(b"HEAD /x HTTP/1.1\r\nHost: h\r\n\r\n")
        self.assertEqual(events, [])
        self.assertIn(b"Content-Length: %d\r\n" % len(whole.partition(b"\r\n\r\n")[2]), answer)
        self.assertTrue(answer.startswith(b"HTTP/1.1 404 "))
        self.assertTrue(answer.endswith(b"\r\n\r\n"))

    def test_keep_alive(self) -> None:
        """Requests on one connection are each answered, those with bodies too."""
        get = b"GET /x HTTP/1.1\r\nHost: h\r\n\r\n"
        put = b"PUT /x HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\n\r\nhello"
        chunked = b"PUT /x HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n"
        answer, transport = self.talk(get + put, chunked, put + get)
        self.assertEqual(answer.count(b"HTTP/1.1 404 "), 5)
        self.assertFalse(transport.disconnecting)

    def test_body_is_not_kept(self) -> None:
        """A body of any size goes nowhere."""
        _, transport = self.talk(b"PUT /x HTTP/1.1\r\nHost: h\r\nContent-Length: 100000000\r\n\r\n")
        content = self.protocol.requests[-1].content
        self.assertNotIn("IO", type(content).__name__)
        for _ in range(1000):
            self.protocol.dataReceived(bytes(100_000))
        self.assertTrue(transport.value().startswith(b"HTTP/1.1 404 "))

    def test_expect(self) -> None:
        """A client that asks before it sends is told no, and not to go on."""
        answer, transport = self.talk(
            b"PUT /x HTTP/1.1\r\nHost: h\r\nContent-Length: 100000000\r\nExpect: 100-continue\r\n\r\n"
        )
        self.assertTrue(answer.startswith(b"HTTP/1.1 404 "), answer)
        self.assertIn(b"Connection: close", answer)
        self.assertTrue(transport.disconnecting)

    def test_refused(self) -> None:
        """Who may not make a request is told why, whatever there is, and the connection stays open."""
        put = b"PUT /x HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\n\r\nhello"
        for self.caller, request, right in (
            (PULLER, put, Right.PUSH),
            (PULLER, b"FROBNICATE /x HTTP/1.1\r\nHost: h\r\n\r\n", Right.PUSH),
            (NOBODY, b"GET /x HTTP/1.1\r\nHost: h\r\n\r\n", Right.PULL),
        ):
            refusal = self.caller.refusal(right)
            assert refusal is not None
            answer, transport = self.talk(request)
            head, _, body = answer.partition(b"\r\n\r\n")
            self.assertTrue(head.startswith(b"HTTP/1.1 403 "), answer)
            self.assertIn(b"Content-Type: text/plain", head)
            self.assertIn(b"Content-Length: %d" % len(body), head)
            self.assertEqual(body.decode(), f"{refusal.reason}\n")
            self.assertFalse(transport.disconnecting)

    def test_refused_head(self) -> None:
        """HEAD is refused as GET is, without the sentence."""
        self.caller = NOBODY
        answer, _ = self.talk(b"HEAD /x HTTP/1.1\r\nHost: h\r\n\r\n")
        self.assertTrue(answer.startswith(b"HTTP/1.1 403 "), answer)
        self.assertTrue(answer.endswith(b"\r\n\r\n"))

    def test_refused_before_the_body(self) -> None:
        """A client that asks before it sends is refused before it has sent anything."""
        self.caller = PULLER
        answer, transport = self.talk(
            b"PUT /x HTTP/1.1\r\nHost: h\r\nContent-Length: 100000000\r\nExpect: 100-continue\r\n\r\n"
        )
        self.assertTrue(answer.startswith(b"HTTP/1.1 403 "), answer)
        self.assertTrue(transport.disconnecting)

    def test_send_away(self) -> None:
        """Who is sent away is closed at once, in the middle of a request too, and cut off if they do not notice."""
        for said in (b"", b"PUT /x HTTP/1.1\r\nHost: h\r\nContent-Length: 100\r\n\r\nabc"):
            _, transport = self.talk(said)
            transport.clear()
            self.protocol.send_away()
            self.protocol.send_away()
            self.assertTrue(transport.disconnecting)
            self.protocol.dataReceived(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n")
            self.assertEqual(transport.value(), b"")
            self.assertFalse(transport.aborted)
            self.clock.advance(SEND_AWAY_SECONDS)
            self.assertTrue(transport.aborted)
            self.protocol.connectionLost(Failure(ConnectionDone()))

    def test_each_connection(self) -> None:
        """Each connection has a caller of its own."""
        get = b"GET /x HTTP/1.1\r\nHost: h\r\n\r\n"
        for self.caller, status in ((NOBODY, b"403"), (PULLER, b"404")):
            answer, _ = self.talk(get + get)
            self.assertEqual(answer.count(b"HTTP/1.1 " + status), 2)

    def test_upgrade(self) -> None:
        """An offer to go on in HTTP/2 is no reason to: who can speak it says so with its first bytes."""
        offer = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAoAAA\r\n"
        answer, transport = self.talk(b"GET /x HTTP/1.1\r\nHost: h\r\n" + offer + b"\r\n")
        self.assertTrue(answer.startswith(b"HTTP/1.1 404 "), answer)
        self.assertFalse(transport.disconnecting)

    def test_http_1_0(self) -> None:
        """HTTP/1.0 gets its answer and the end of the connection."""
        answer, transport = self.talk(b"GET /x HTTP/1.0\r\n\r\n")
        self.assertTrue(answer.startswith(b"HTTP/1.0 404 "), answer)
        self.assertTrue(transport.disconnecting)

    def test_too_long(self) -> None:
        """A request with too much in one line of its head, or in all of them, is told so, and the connection ends."""
        for head, status in (
            (b"GET /x HTTP/1.1\r\nHost: h\r\nCookie: " + b"c" * 20_000 + b"\r\n\r\n", b"HTTP/1.1 431 "),
            (b"GET /" + b"x" * 20_000 + b" HTTP/1.1\r\nHost: h\r\n\r\n", b"HTTP/1.1 414 "),
            (b"GET /x HTTP/1.1\r\nHost: h\r\n" + b"a: b\r\n" * 10_000 + b"\r\n", b"HTTP/1.1 400 "),
        ):
            for step in (len(head), 1000):
                answer, transport = self.talk(*[head[start : start + step] for start in range(0, len(head), step)])
                self.assertTrue(answer.startswith(status), answer)
                self.assertEqual(answer.count(b"HTTP/1.1"), 1)
                self.assertTrue(transport.disconnecting)

    def test_few_at_once(self) -> None:
        """Not many requests are read at once: each costs more than the bytes that it takes."""
        _, transport = self.talk()
        self.assertLessEqual(transport.bufferSize, 8192)  # type: ignore[attr-defined]

    def test_slow_head(self) -> None:
        """A head that does not become whole ends the connection, though a byte of it comes now and then."""
        with capturedLogs() as events:
            _, transport = self.talk(b"GET /x HTTP/1.1\r\n")
            for _ in range(5):
                self.clock.advance(10)
                self.assertFalse(transport.disconnecting)
                self.protocol.dataReceived(b"a")
            self.clock.advance(11)
        self.assertTrue(transport.disconnecting)
        self.assertEqual(events, [])

    def test_deaf(self) -> None:
        """A client that does not go when it is let go is cut off, and nothing of all that is in the log."""
        with capturedLogs() as events:
            _, transport = self.talk()
            self.clock.advance(61)
            self.assertEqual((transport.disconnecting, transport.aborted), (True, False))
            self.clock.advance(30)
            self.assertTrue(transport.aborted)
        self.assertEqual(events, [])

    def test_one_request_after_another(self) -> None:
        """Each request has the whole time for its head; while the body comes, it is not counted."""
        put = b"PUT /x HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\n\r\n"
        _, transport = self.talk()
        for _ in range(3):
            self.clock.advance(50)
            self.protocol.dataReceived(put)
            for byte in (b"a", b"b", b"c", b"d", b"e"):
                self.clock.advance(50)
                self.protocol.dataReceived(byte)
        self.assertFalse(transport.disconnecting)
        self.assertEqual(transport.value().count(b"HTTP/1.1 404 "), 3)
        self.protocol.connectionLost(Failure(ConnectionDone()))
