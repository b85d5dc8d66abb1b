"""Tokens with HTTP/1.1, on a transport in memory."""

from __future__ import annotations

from typing import Any

from twisted.internet.address import IPv4Address
from twisted.internet.error import ConnectionLost
from twisted.internet.task import Clock
from twisted.logger import capturedLogs
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from artifactserver.access import PUSHING, Caller, Identity, PortPolicy, main_port, public_port
from artifactserver.tokens.attempts import FIRST_DELAY, LONGEST_DELAY, Attempts
from artifactserver.tokens.authentication import INVALID, Authentication
from artifactserver.tokens.known import Tokens
from artifactserver.web.site import not_found_site
from tests.test_listen import Transport
from tests.test_tokens import token

GOOD, BAD = b"Bearer ci", b"Bearer mallory"
PORT = main_port(enable_push=True, sources=frozenset({"token"}))
PRIVATE = main_port(enable_push=True, sources=frozenset({"token"}), private=True)

BASIC_CHALLENGE = b'WWW-Authenticate: Basic realm="artifactserver", charset="UTF-8"\r\n'
BEARER_CHALLENGE = b'WWW-Authenticate: Bearer realm="artifactserver"'


def request(shown: bytes | None = None, method: bytes = b"GET", more: bytes = b"") -> bytes:
    """A request's head, and its body if it is one that has to have one."""
    authorization = b"" if shown is None else b"Authorization: %b\r\n" % shown
    body = (b"Content-Length: 5\r\n", b"hello") if method == b"PUT" else (b"", b"")
    return b"%b /x HTTP/1.1\r\nHost: h\r\n%b%b%b\r\n%b" % (method, authorization, more, *body)


class TokenRequestTests(SynchronousTestCase):
    """Requests with an ``Authorization`` field."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.serve(Attempts(self.clock))

    def serve(self, attempts: Attempts | None, port: PortPolicy = PORT, known: tuple[Identity, ...] = ()) -> None:
        """Begin anew; without `attempts` no tokens are known."""
        tokens = Tokens([token("alice"), token("ci", right="push")])
        self.authentication = None if attempts is None else Authentication(tokens, attempts)
        caller = Caller("10.0.0.1", port, known)
        site = not_found_site(lambda transport: caller, self.clock, self.authentication)
        self.protocol: Any = site.buildProtocol(IPv4Address("TCP", "10.0.0.1", 1))
        self.transport = Transport()
        self.protocol.makeConnection(self.transport)

    def ask(self, *data: bytes) -> bytes:
        """What is answered at once."""
        self.transport.clear()
        for each in data:
            self.protocol.dataReceived(each)
        answer: bytes = self.transport.value()
        return answer

    def later(self, seconds: float = LONGEST_DELAY) -> bytes:
        """What is answered after a while."""
        self.transport.clear()
        self.clock.advance(seconds)
        answer: bytes = self.transport.value()
        return answer

    def test_good(self) -> None:
        """A request with a token that is good is answered at once, according to what it lets do."""
        for shown in (GOOD, b"bearer ci", b"Basic eDpjaQ=="):
            for method in (b"GET", b"PUT"):
                self.assertTrue(self.ask(request(shown, method)).startswith(b"HTTP/1.1 404 "), shown)

    def test_too_little(self) -> None:
        """A token to pull does not let push, and another one of the same is not asked for."""
        answer = self.ask(request(b"Bearer alice", b"PUT"))
        self.assertTrue(answer.startswith(b"HTTP/1.1 403 "), answer)
        self.assertNotIn(b"WWW-Authenticate", answer)
        self.assertIn(b"does not give you the right to push", answer)

    def test_none(self) -> None:
        """Who shows none is asked for one, where one would help."""
        self.assertTrue(self.ask(request()).startswith(b"HTTP/1.1 404 "))
        for port, method in ((PORT, b"PUT"), (PRIVATE, b"GET"), (PRIVATE, b"PUT")):
            self.serve(Attempts(self.clock), port)
            answer = self.ask(request(None, method))
            self.assertTrue(answer.startswith(b"HTTP/1.1 401 "), answer)
            self.assertIn(BASIC_CHALLENGE, answer)
            self.assertIn(BEARER_CHALLENGE + b"\r\n", answer)
            self.assertRegex(
                answer, rb"\r\n\r\nyou need a token to (push|pull) here: give one that the server knows\n$"
            )
            self.assertFalse(self.transport.disconnecting)

    def test_no_use(self) -> None:
        """Where no token would help, nobody is asked for one."""
        closed = main_port(enable_push=False, sources=frozenset({"token"}))
        certificates = main_port(enable_push=True, sources=frozenset({"certificate"}))
        for port in (public_port(PORT), closed, certificates):
            self.serve(Attempts(self.clock), port)
            answer = self.ask(request(None, b"PUT"))
            self.assertTrue(answer.startswith(b"HTTP/1.1 403 "), answer)
            self.assertNotIn(b"WWW-Authenticate", answer)

    def test_bad(self) -> None:
        """A token that is not good is refused after a while, and the client is told to show another."""
        self.assertEqual(self.ask(request(BAD)), b"")
        self.assertEqual(self.later(FIRST_DELAY - 0.01), b"")
        head, _, body = self.later(0.02).partition(b"\r\n\r\n")
        self.assertTrue(head.startswith(b"HTTP/1.1 401 "), head)
        self.assertIn(BASIC_CHALLENGE, head)
        self.assertIn(BEARER_CHALLENGE + b', error="invalid_token"', head)
        self.assertIn(b"Content-Length: %d" % len(body), head)
        self.assertEqual(body.decode(), f"{INVALID.reason}\n")
        self.assertFalse(self.transport.disconnecting)

    def test_bad_everywhere(self) -> None:
        """That is so for whatever is asked for, at a public port too, and for somebody with a certificate."""
        certificate = Identity("certificate", "ab" * 32, "certificate abab", PUSHING)
        for port, known in ((PORT, (certificate,)), (public_port(PORT), ()), (PRIVATE, ())):
            for method in (b"GET", b"HEAD", b"PUT", b"DELETE"):
                self.serve(Attempts(self.clock), port, known)
                self.assertEqual(self.ask(request(BAD, method)), b"")
                self.assertTrue(self.later().startswith(b"HTTP/1.1 401 "), method)

    def test_no_path(self) -> None:
        """A request for the server as a whole is one like any other."""
        for method in (b"OPTIONS", b"GET"):
            self.serve(Attempts(self.clock))
            self.assertEqual(self.ask(request(BAD, method).replace(b"/x", b"*")), b"")
            self.assertTrue(self.later().startswith(b"HTTP/1.1 401 "), method)
            self.serve(Attempts(self.clock), PRIVATE)
            self.assertTrue(self.ask(request(None, method).replace(b"/x", b"*")).startswith(b"HTTP/1.1 401 "), method)
            self.assertTrue(self.ask(request(GOOD, method).replace(b"/x", b"*")).startswith(b"HTTP/1.1 404 "), method)

    def test_head(self) -> None:
        """HEAD gets the same without the sentence."""
        self.ask(request(BAD, b"HEAD"))
        answer = self.later()
        self.assertTrue(answer.startswith(b"HTTP/1.1 401 "), answer)
        self.assertTrue(answer.endswith(b"\r\n\r\n"))

    def test_malformed(self) -> None:
        """What cannot be read is not good, and neither are two at once, be both good."""
        for shown in (b"", b"ci", b"Digest ci", b"Basic !", GOOD + b"\r\nAuthorization: " + GOOD):
            self.assertEqual(self.ask(request(shown)), b"", shown)
            self.assertTrue(self.later().startswith(b"HTTP/1.1 401 "), shown)

    def test_one_after_another(self) -> None:
        """Requests in a row are answered in order, each for what it shows."""
        answer = self.ask(request(GOOD, b"PUT") + request(BAD) + request(None, b"PUT") + request(GOOD, b"PUT"))
        answer += self.later()
        statuses = [part[:3] for part in answer.split(b"HTTP/1.1 ")[1:]]
        self.assertEqual(statuses, [b"404", b"401", b"401", b"404"])

    def test_before_the_body(self) -> None:
        """A client that asks before it sends is refused without a byte of the body, and not told to go on."""
        more = b"Expect: 100-continue\r\nContent-Length: 100000000\r\n"
        self.assertEqual(self.ask(request(BAD, b"POST", more)), b"")
        answer = self.later()
        self.assertTrue(answer.startswith(b"HTTP/1.1 401 "), answer)
        self.assertTrue(self.transport.disconnecting)

    def test_without_tokens(self) -> None:
        """A server without tokens does not look at the field."""
        self.serve(None)
        self.assertTrue(self.ask(request(BAD)).startswith(b"HTTP/1.1 404 "))

    def test_too_many_wait(self) -> None:
        """When many refusals wait, the next one is given at once, and its connection is closed."""
        self.serve(Attempts(self.clock, per_address=0))
        answer = self.ask(request(BAD) + request(BAD))
        self.assertEqual(answer.count(b"HTTP/1.1 401 "), 1)
        self.assertIn(b"Connection: close\r\n", answer)
        self.assertTrue(self.transport.disconnecting)

    def test_gone(self) -> None:
        """A client that is gone gets no answer, and that is no fault of ours."""
        self.ask(request(BAD))
        self.protocol.connectionLost(Failure(ConnectionLost()))
        self.assertEqual(self.later(), b"")
        self.assertEqual(self.flushLoggedErrors(), [])

    def test_revoked(self) -> None:
        """A token that is taken away is not good for the next request on an open connection."""
        assert self.authentication is not None
        self.ask(request(GOOD))
        self.authentication.tokens = Tokens()
        self.assertEqual(self.authentication.forgotten(), [self.protocol])
        self.assertEqual(self.ask(request(GOOD)), b"")
        self.assertTrue(self.later().startswith(b"HTTP/1.1 401 "))
        self.protocol.connectionLost(Failure(ConnectionLost()))
        self.assertEqual(self.authentication.forgotten(), [])

    def test_log(self) -> None:
        """The log has one line about many failures, and nothing of what was shown."""
        with capturedLogs() as events:
            for _ in range(20):
                self.ask(request(b"Bearer s3cret"))
                self.assertTrue(self.later().startswith(b"HTTP/1.1 401 "))
        self.assertLessEqual(len(events), 2)
        self.assertNotIn("s3cret", str(events))
