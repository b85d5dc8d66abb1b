"""Who shows a token: what a connection remembers of it, and what that costs."""

from __future__ import annotations

import base64
import functools
from typing import Any

from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from artifactserver.access import PULLING, PUSHING, Caller, Identity, PortPolicy, main_port, public_port
from artifactserver.tokens.attempts import FIRST_DELAY, LONGEST_DELAY, Attempts
from artifactserver.tokens.authentication import (
    REMEMBERED_TOKENS,
    REMEMBERED_VALUE_BYTES,
    REMEMBERED_VALUES,
    Authentication,
    Visit,
    challenges,
)
from artifactserver.tokens.known import RIGHTS, Token, Tokens
from tests.test_tokens import token

PUSH_PORT = main_port(enable_push=True, sources=frozenset({"certificate", "token"}))
CERTIFICATE = Identity("certificate", "ab" * 32, "certificate abab", PUSHING)


class Counted(Tokens):
    """Tokens that count how often somebody looks for one."""

    searched = 0

    def find(self, secret: bytes) -> Token | None:
        self.searched += 1
        return super().find(secret)


class VisitTests(SynchronousTestCase):
    """One connection."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.tokens = Counted([token("alice"), token("ci", right="push")])
        self.authentication = Authentication(self.tokens, Attempts(self.clock))

    def visit(self, port: PortPolicy = PUSH_PORT, *known: Identity, host: str = "10.0.0.1", name: str = "c") -> Visit:
        address: Any = IPv6Address if ":" in host else IPv4Address
        return self.authentication.visit(Caller(host, port, known), address("TCP", host, 1), name)

    def test_rights(self) -> None:
        """A token gives its holder what it is for, besides what everybody may do."""
        visit = self.visit()
        for value, name, rights in (b"Bearer alice", "alice", PULLING), (b"Bearer ci", "ci", PUSHING):
            caller = visit.caller(value)
            assert caller is not None
            self.assertEqual([(each.kind, each.id) for each in caller.identities], [("token", name)])
            self.assertEqual(caller.rights, rights)
            self.assertEqual(caller.account, f"token {name}")

    def test_private(self) -> None:
        """Where nobody else may, a token to pull lets pull, and one to push lets push."""
        private = main_port(enable_push=True, sources=frozenset({"token"}), private=True)
        caller = self.visit(private).caller(b"Bearer alice")
        assert caller is not None
        self.assertEqual(caller.rights, PULLING)

    def test_ceiling(self) -> None:
        """No token gives more than anybody may do at a port: nothing but to pull at the public one, or without push."""
        for port in public_port(PUSH_PORT), main_port(enable_push=False, sources=frozenset({"token"})):
            caller = self.visit(port).caller(b"Bearer ci")
            assert caller is not None
            self.assertEqual(caller.rights, PULLING)

    def test_with_certificate(self) -> None:
        """What a token lets somebody do adds to what their certificate does, and takes nothing away."""
        nothing = Identity("certificate", "cd" * 32, "weak", frozenset())
        for known, value, rights in (
            (CERTIFICATE, b"Bearer alice", PUSHING),
            (nothing, b"Bearer ci", PUSHING),
            (nothing, b"Bearer alice", PULLING),
        ):
            caller = self.visit(PUSH_PORT, known).caller(value)
            assert caller is not None
            self.assertEqual((caller.identities[0], caller.rights), (known, rights))

    def test_not_good(self) -> None:
        """What is not good is nobody, whoever they are besides."""
        for value in (b"Bearer bob", b"alice", b"Digest alice", b"", b"Bearer alice, Bearer alice"):
            self.assertIsNone(self.visit(PUSH_PORT, CERTIFICATE).caller(value))

    def test_remembered(self) -> None:
        """A token that comes again and again is looked for once on each connection; one that is not good, each time."""
        visit = self.visit()
        callers = [visit.caller(b"Bearer alice") for _ in range(5)]
        self.assertEqual(len(set(map(id, callers))), 1)
        self.assertEqual(self.tokens.searched, 1)
        self.visit().caller(b"Bearer alice")
        self.assertEqual(self.tokens.searched, 2)
        for _ in range(3):
            visit.caller(b"Bearer bob")
        self.assertEqual(self.tokens.searched, 5)

    def test_remembered_bounds(self) -> None:
        """A connection remembers few values, and none that is long."""
        visit = self.visit()
        for number in range(3 * REMEMBERED_VALUES):
            self.assertIsNotNone(visit.caller(b"Basic " + base64.b64encode(b"%d:alice" % number)))
            self.assertLessEqual(len(visit._callers), REMEMBERED_VALUES)
        visit = self.visit()
        for size, remembered in ((REMEMBERED_VALUE_BYTES, 1), (REMEMBERED_VALUE_BYTES + 1, 1)):
            self.assertIsNotNone(visit.caller(b"Bearer alice".replace(b" ", b" " * (size - 11))))
            self.assertEqual(len(visit._callers), remembered)

    def test_replaced(self) -> None:
        """When the tokens are replaced, that counts for the next call."""
        visit = self.visit()
        self.assertIsNotNone(visit.caller(b"Bearer alice"))
        self.authentication.tokens = Tokens([token("bob"), token("ci", right="pull")])
        self.assertIsNone(visit.caller(b"Bearer alice"))
        self.assertIsNotNone(visit.caller(b"Bearer bob"))
        caller = visit.caller(b"Bearer ci")
        assert caller is not None
        self.assertEqual(caller.rights, PULLING)

    def test_catch_up(self) -> None:
        """Before a token is refused, it is asked whether others have come since, and these are looked through."""
        asked: list[bool] = []

        def catch_up() -> bool:
            asked.append(True)
            if len(asked) == 2:
                self.authentication.replace(Tokens([token("bob")]))
            return len(asked) == 2

        self.authentication.catch_up = catch_up
        visit = self.visit()
        self.assertIsNotNone(visit.caller(b"Bearer alice"))
        self.assertEqual(asked, [])
        self.assertIsNone(visit.caller(b"Bearer bob"))
        self.assertIsNotNone(visit.caller(b"Bearer bob"))
        self.assertEqual(len(asked), 2)
        self.assertIsNone(visit.caller(b"Bearer alice"))
        self.assertIsNotNone(visit.caller(b"Bearer bob"))

    def test_forgotten(self) -> None:
        """A connection is forgotten when a token that was shown on it is gone, or is another, or lets do less."""
        alice, ci = self.tokens.find(b"alice"), self.tokens.find(b"ci")
        assert alice is not None
        assert ci is not None
        visits = [self.visit(name=name) for name in ("none", "alice", "ci", "both")]
        for visit, values in zip(visits, ([], [b"alice"], [b"ci"], [b"alice", b"ci"]), strict=True):
            for value in values:
                visit.caller(b"Bearer " + value)
        less = Token("ci", RIGHTS["pull"], ci.digest)
        for now, forgotten in (
            ([alice, ci], []),
            ([token("new"), ci, Token("renamed", RIGHTS["push"], alice.digest)], []),
            ([ci], ["alice", "both"]),
            ([ci, token("alice", b"another secret")], ["alice", "both"]),
            ([alice, less], ["both", "ci"]),
            ([], ["alice", "both", "ci"]),
        ):
            self.authentication.tokens = Tokens(now)
            self.assertEqual(sorted(self.authentication.forgotten()), forgotten)

    def test_relies_on_many(self) -> None:
        """A connection that shows very many tokens is forgotten with any change, and remembers no more of them."""
        tokens = [token(str(number)) for number in range(REMEMBERED_TOKENS + 5)]
        self.authentication.tokens = Tokens(tokens)
        visit = self.visit()
        for number in range(len(tokens)):
            self.assertIsNotNone(visit.caller(b"Bearer %d" % number))
            self.assertLessEqual(len(visit._relies_on), REMEMBERED_TOKENS)
        self.assertEqual(self.authentication.forgotten(), [])
        self.authentication.tokens = Tokens(tokens[:-1])
        self.assertEqual(self.authentication.forgotten(), ["c"])

    def test_over(self) -> None:
        """Nothing is kept of a connection that is over."""
        visit = self.visit()
        visit.caller(b"Bearer alice")
        self.assertEqual(len(self.authentication.relying), 1)
        visit.leave()
        self.assertEqual((self.authentication.relying, visit._callers, visit.connection), (set(), {}, None))
        self.authentication.tokens = Tokens()
        self.assertEqual(self.authentication.forgotten(), [])

    def test_counted_by_network(self) -> None:
        """Failures count for an IPv4 address, however it is written, or a network of IPv6 addresses."""
        for hosts in (
            ("10.0.0.1", "::ffff:10.0.0.1", "10.0.0.1"),
            ("2001:db8::1", "2001:db8::2:3", "2001:db8::ffff:ffff:ffff:ffff"),
        ):
            answered: list[str] = []
            for host in hosts:
                self.visit(host=host).refuse(functools.partial(answered.append, host))
            self.clock.advance(FIRST_DELAY + 0.01)
            self.assertEqual(answered, list(hosts[:1]))
            self.clock.advance(LONGEST_DELAY)
            self.assertEqual(answered, list(hosts))

    def test_challenges(self) -> None:
        """HTTP clients are asked for a token in both ways that they know, and told whether theirs was wrong."""
        self.assertEqual(
            challenges(invalid=False),
            [b'Basic realm="artifactserver", charset="UTF-8"', b'Bearer realm="artifactserver"'],
        )
        self.assertEqual(challenges(invalid=True)[1], b'Bearer realm="artifactserver", error="invalid_token"')
