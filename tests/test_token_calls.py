"""Tokens with gRPC calls, on a transport in memory: who is let through, who has to wait for a refusal, and how many."""

from __future__ import annotations

from typing import Any

from hpack import Decoder
from twisted.internet.task import Clock
from twisted.logger import capturedLogs
from twisted.trial.unittest import SynchronousTestCase

from artifactserver.rpc.http2 import Limits
from artifactserver.rpc.status import Code
from artifactserver.rpc.transport import GrpcFactory
from artifactserver.tokens.attempts import FIRST_DELAY, LONGEST_DELAY, Attempts
from artifactserver.tokens.authentication import INVALID, Authentication, Visit
from artifactserver.tokens.known import Tokens
from tests import http2_peer as wire
from tests.callers import PULLER
from tests.echo_service import ECHO, Anybody, Echo, Wire, value
from tests.http2_peer import frame
from tests.test_tokens import token

GOOD = "Bearer alice"
BAD = "Bearer mallory"

UNAUTHENTICATED = (str(int(Code.UNAUTHENTICATED)), INVALID.reason)
OK = ("0", "")


class TokenCallTests(SynchronousTestCase):
    """Calls with an ``authorization`` field."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.echo = Echo()
        self.serve(Attempts(self.clock))

    def serve(self, attempts: Attempts | None, limits: Limits | None = None) -> None:
        """Begin anew; without `attempts` no tokens are known."""
        tokens = Tokens([token("alice"), token("ci", right="push")])
        self.authentication = None if attempts is None else Authentication(tokens, attempts)
        dispatcher = Anybody()
        dispatcher.register(ECHO, self.echo)
        self.factory = GrpcFactory(
            dispatcher, lambda transport: PULLER, self.clock, limits or Limits(), self.authentication
        )
        self.wire = Wire(factory=self.factory)

    def said(self, wire: Wire | None = None) -> dict[int, tuple[str, str]]:
        return (wire or self.wire).statuses()

    def test_good(self) -> None:
        """A call with a token that is good is answered at once, and its handler knows who calls."""
        for stream, shown, name in ((1, GOOD, "alice"), (3, "bearer ci", "ci"), (5, "Basic eDpjaQ==", "ci")):
            self.wire.call(stream, "Unary", b"x", authorization=shown)
            self.assertEqual(self.said(), {stream: OK})
            (identity,) = self.echo.calls[-1].caller.identities
            self.assertEqual((identity.kind, identity.id), ("token", name))

    def test_none(self) -> None:
        """A call without a token is what it was: its caller is who the connection is."""
        self.wire.call(1, "Unary", b"x")
        self.assertEqual(self.said(), {1: OK})
        self.assertIs(self.echo.calls[-1].caller, PULLER)

    def test_one_after_another(self) -> None:
        """Each call counts for itself, on one connection too."""
        shown = [GOOD, None, "Bearer ci", GOOD]
        for number, each in enumerate(shown):
            more: dict[str, Any] = {} if each is None else {"authorization": each}
            self.wire.call(2 * number + 1, "Unary", b"x", **more)
        names = [[identity.id for identity in call.caller.identities] for call in self.echo.calls]
        self.assertEqual(names, [["alice"], [], ["ci"], ["alice"]])

    def test_bad(self) -> None:
        """A call with one that is not good is refused after a while, and its handler never hears of it."""
        self.wire.call(1, "Unary", b"x", authorization=BAD)
        self.clock.advance(FIRST_DELAY - 0.01)
        self.assertEqual(self.said(), {})
        self.clock.advance(0.02)
        self.assertEqual(self.said(), {1: UNAUTHENTICATED})
        self.assertEqual(self.echo.calls, [])
        self.assertEqual(self.wire.protocol.engine.streams, {})

    def test_bad_everywhere(self) -> None:
        """Whatever is called with it, be it nothing at all or what nobody may, the answer is the same."""
        for number, method in enumerate(("Unary", "Down", "Up", "Both", "Missing", "Forbidden", "Nowhere")):
            self.wire.call(2 * number + 1, method, b"1x1", authorization=BAD)
            self.assertEqual(self.said(), {})
            self.clock.advance(LONGEST_DELAY)
            self.assertEqual(self.said(), {2 * number + 1: UNAUTHENTICATED}, method)

    def test_other_refusals(self) -> None:
        """With a token that is good, a call is refused for its other faults as ever, at once."""
        for number, (method, code) in enumerate((("Nowhere", 12), ("Forbidden", 7))):
            self.wire.call(2 * number + 1, method, b"", authorization=GOOD)
            self.assertEqual(self.said()[2 * number + 1][0], str(code))

    def test_malformed(self) -> None:
        """What cannot be read is not good, and neither are two at once, be both good."""
        for number, shown in enumerate(("", "alice", "Digest alice", "Basic !", "Bearer ", "Bearer alice x")):
            self.wire.call(2 * number + 1, "Unary", b"x", authorization=shown.strip())
            self.clock.advance(LONGEST_DELAY)
            self.assertEqual(self.said(), {2 * number + 1: UNAUTHENTICATED}, shown)
        fields = (*wire.REQUEST[:2], (":path", "/test.Echo/Unary"), *wire.REQUEST[3:])
        both = (("authorization", GOOD), ("authorization", GOOD))
        self.wire.send(wire.request(101, end=True, fields=(*fields, *both)))
        self.clock.advance(LONGEST_DELAY)
        self.assertEqual(self.said(), {101: UNAUTHENTICATED})

    def test_not_grpc(self) -> None:
        """What is no gRPC gets HTTP's word for it, with how to do better."""
        for stream, method in ((1, "POST"), (3, "GET")):
            fields = ((":method", method), *wire.REQUEST[1:4], ("authorization", BAD))
            self.wire.send(wire.request(stream, end=True, fields=fields))
            self.assertEqual(self.wire.frames(), [])
            self.clock.advance(LONGEST_DELAY)
            (answer,) = self.wire.frames()
            decoded = [(str(name), str(text)) for name, text in Decoder().decode(answer.payload)]
            self.assertIn((":status", "401"), decoded)
            challenges = [text.split()[0] for name, text in decoded if name == "www-authenticate"]
            self.assertEqual(challenges, ["Basic", "Bearer"])

    def test_without_tokens(self) -> None:
        """A server without tokens does not look at the field."""
        self.serve(None)
        self.wire.call(1, "Unary", b"x", authorization=BAD)
        self.assertEqual(self.said(), {1: OK})
        self.assertIs(self.echo.calls[-1].caller, PULLER)

    def test_one_look(self) -> None:
        """For a call without a token, nobody is asked; with the same token again, its value is looked up once."""
        asked: list[bytes] = []
        original = Visit._look_up

        def look_up(visit: Visit, authorization: bytes) -> Any:
            asked.append(authorization)
            return original(visit, authorization)

        self.patch(Visit, "_look_up", look_up)
        for number in range(5):
            self.wire.call(2 * number + 1, "Unary", b"x")
        self.assertEqual(asked, [])
        for number in range(5, 10):
            self.wire.call(2 * number + 1, "Unary", b"x", authorization=GOOD)
        self.assertEqual(asked, [GOOD.encode()])
        self.assertEqual(len(self.echo.calls), 10)

    def test_revoked(self) -> None:
        """A token that is taken away is not good for the next call on an open connection."""
        assert self.authentication is not None
        self.wire.call(1, "Unary", b"x", authorization=GOOD)
        self.assertEqual(self.said(), {1: OK})
        self.authentication.tokens = Tokens([token("bob")])
        self.assertEqual(self.authentication.forgotten(), [self.wire.protocol])
        self.wire.call(3, "Unary", b"x", authorization=GOOD)
        self.clock.advance(LONGEST_DELAY)
        self.assertEqual(self.said(), {3: UNAUTHENTICATED})
        self.wire.lost()
        self.assertEqual(self.authentication.forgotten(), [])

    def test_brute_force(self) -> None:
        """Whoever tries one after the other from an address waits; a token that is good is answered at once there."""
        other = Wire(factory=self.factory)
        tried = 0
        end = self.clock.seconds() + 60
        while self.clock.seconds() < end:
            self.wire.call(2 * tried + 1, "Unary", b"x", authorization=f"Bearer guess{tried}")
            other.call(2 * tried + 1, "Unary", b"x", authorization=GOOD)
            self.assertEqual(self.said(other), {2 * tried + 1: OK})
            while not self.said():
                self.clock.advance(0.05)
            tried += 1
        self.assertLess(tried, 25)

    def test_too_many_wait(self) -> None:
        """When many refusals wait, the next one is given at once, and its connection ends when the others are given."""
        self.serve(Attempts(self.clock, per_address=3))
        for number in range(5):
            self.wire.call(2 * number + 1, "Unary", b"x", authorization=BAD)
        self.assertEqual(self.said(), {7: UNAUTHENTICATED, 9: UNAUTHENTICATED})
        for _ in range(5):
            self.clock.advance(LONGEST_DELAY / 5)
        self.assertTrue(self.wire.transport.disconnecting)

    def test_calls_end_in_order(self) -> None:
        """Such a connection lets calls that run finish."""
        self.serve(Attempts(self.clock, per_address=0))
        self.wire.call(1, "Up", b"abc", end=False, authorization=GOOD)
        self.wire.call(3, "Unary", b"x", authorization=BAD)
        self.clock.advance(1.1)
        self.assertFalse(self.wire.transport.disconnecting)
        self.wire.send(frame(wire.DATA, wire.END_STREAM, 1, value(b"de")))
        self.assertEqual(self.said(), {1: OK, 3: UNAUTHENTICATED})
        self.assertTrue(self.wire.transport.disconnecting)

    def test_body(self) -> None:
        """A body that comes with it goes nowhere, and takes no window from the connection's other calls."""
        limits = Limits(message_bytes=65_536, stream_window=100_000, connection_window=100_000)
        self.serve(Attempts(self.clock), limits)
        for number in range(5):
            self.wire.call(2 * number + 1, "Up", bytes(60_000), end=False, authorization=BAD)
        self.wire.call(99, "Up", bytes(60_000))
        self.assertEqual(self.said()[99], OK)
        self.clock.advance(LONGEST_DELAY)
        self.assertEqual(len(self.said()), 5)
        self.assertEqual(self.wire.protocol.held, 0)

    def test_given_up(self) -> None:
        """A client that resets the call, or is gone, gets no answer, and nothing is left of it but the time."""
        self.wire.call(1, "Unary", b"x", authorization=BAD)
        self.wire.send(frame(wire.RST_STREAM, 0, 1, bytes(4)))
        self.wire.call(3, "Unary", b"x", authorization=BAD)
        self.wire.lost()
        self.wire.frames()
        self.clock.advance(LONGEST_DELAY)
        self.assertEqual(self.said(), {})
        self.assertEqual(self.flushLoggedErrors(), [])

    def test_given_up_for_memory(self) -> None:
        """When memory is short, a call that waits to be refused can be let go of."""
        self.serve(Attempts(self.clock), Limits(held_bytes=3 * 4096))
        for number in range(5):
            self.wire.call(2 * number + 1, "Unary", b"x", authorization=BAD)
        self.clock.advance(LONGEST_DELAY)
        ended = [each.stream for each in self.wire.frames() if each.kind == wire.RST_STREAM]
        self.assertGreater(len(ended), 0)
        self.assertEqual(self.wire.protocol.engine.streams, {})

    def test_stopping(self) -> None:
        """When the server stops, a refusal that waits is given, or cut off with the rest."""
        self.wire.call(1, "Unary", b"x", authorization=BAD)
        done = self.factory.drain(5.0)
        self.clock.advance(FIRST_DELAY + 0.01)
        self.assertEqual(self.said(), {1: UNAUTHENTICATED})
        self.clock.advance(1.0)
        self.assertTrue(self.wire.transport.disconnecting)
        self.wire.lost()
        self.successResultOf(done)

    def test_log(self) -> None:
        """The log has one line about many failures, and nothing of what was shown."""
        with capturedLogs() as events:
            for number in range(20):
                self.wire.call(2 * number + 1, "Unary", b"x", authorization=f"Bearer s3cret{number}")
            self.clock.advance(LONGEST_DELAY)
        self.assertEqual(len(self.said()), 20)
        self.assertEqual(len(events), 1)
        self.assertNotIn("s3cret", str(events))
