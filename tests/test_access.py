"""Every method needs a right, and who lacks it is told so in a sentence that helps."""

from __future__ import annotations

import time
from collections.abc import Iterable

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from artifactserver.access import (
    METHODS,
    PULLING,
    PUSHING,
    Caller,
    Identity,
    PortPolicy,
    Right,
    Source,
    http_right,
    main_port,
    public_port,
)
from artifactserver.rpc.dispatch import Dispatcher
from artifactserver.services import register_all
from tests.callers import NOBODY, PULLER, PUSHER
from tests.memory_store import MemoryStore

CERTIFICATE: frozenset[Source] = frozenset({"certificate"})
TOKEN: frozenset[Source] = frozenset({"token"})

HOLDER = Identity("certificate", "ab" * 32, "alice", PUSHING)
READER = Identity("token", "reader", "reader", PULLING)
WRITER = Identity("token", "ci", "ci", PUSHING)

#: Every main port that there can be.
MAIN_PORTS = [
    main_port(enable_push=enable_push, sources=sources, private=private, known_only=known_only)
    for enable_push in (False, True)
    for sources in (frozenset[Source](), CERTIFICATE, TOKEN, CERTIFICATE | TOKEN)
    for private in ((False, True) if sources else (False,))
    for known_only in ((False, True) if "certificate" in sources else (False,))
]
PORTS = [*MAIN_PORTS, *(public_port(port) for port in MAIN_PORTS)]


def calling(port: PortPolicy, *identities: Identity) -> Caller:
    return Caller("192.0.2.1", port, identities)


class MethodsTests(SynchronousTestCase):
    """The table of methods."""

    def test_complete(self) -> None:
        """Every method of every service stands in the table, and nothing else does."""
        dispatcher = Dispatcher()
        register_all(dispatcher, MemoryStore(time.time), Clock())
        self.assertEqual(set(METHODS), set(dispatcher.paths()))

    def test_writing_is_pushing(self) -> None:
        """Whatever changes the store needs the right to push."""
        pushing = {path.rpartition("/")[2] for path, right in METHODS.items() if right is Right.PUSH}
        self.assertEqual(
            pushing, {"BatchUpdateBlobs", "SpliceBlob", "Write", "PushBlob", "PushDirectory", "UpdateReference"}
        )

    def test_health_is_open(self) -> None:
        """Whoever can connect may ask whether the server is up."""
        open_to_all = {path for path, right in METHODS.items() if right is Right.NONE}
        self.assertEqual(open_to_all, {"/grpc.health.v1.Health/Check", "/grpc.health.v1.Health/Watch"})

    def test_http(self) -> None:
        """Of HTTP's methods, those that only read need the right to pull, and all others that to push."""
        for path in (b"/", b"/cas/abc", b"*", b"http://host/", b""):
            for method in (b"GET", b"HEAD"):
                self.assertIs(http_right(method, path), Right.PULL)
            for method in (b"PUT", b"POST", b"DELETE", b"OPTIONS", b"PATCH", b"TRACE", b"get", b"GETS", b""):
                self.assertIs(http_right(method, path), Right.PUSH)


class CallerTests(SynchronousTestCase):
    """What a caller may do, whatever led to it."""

    def may(self, caller: Caller) -> set[Right]:
        """The rights of a caller, each of which opens all methods that need it, and no other."""
        for path, right in METHODS.items():
            self.assertEqual(caller.refusals[path] is None, caller.may(right), path)
            self.assertEqual(caller.refusals[path], caller.refusal(right), path)
        return {right for right in Right if caller.may(right)}

    def test_rights(self) -> None:
        """Each right opens the methods that need it; without any one may ask for the server's health."""
        self.assertEqual(self.may(NOBODY), {Right.NONE})
        self.assertEqual(self.may(PULLER), {Right.NONE, Right.PULL})
        self.assertEqual(self.may(PUSHER), {Right.NONE, Right.PULL, Right.PUSH})

    def test_unknown(self) -> None:
        """A method that the table forgot needs the greatest right."""
        for caller in (NOBODY, PULLER):
            self.assertEqual(caller.refusals["/new.Service/Method"], caller.refusal(Right.PUSH))
            self.assertNotIn("/new.Service/Method", caller.refusals)
        self.assertIsNone(PUSHER.refusals["/new.Service/Method"])

    def test_what_is_announced(self) -> None:
        """Capabilities announce pushing to those who may push."""
        self.assertTrue(PUSHER.may_push)
        self.assertFalse(PULLER.may_push)

    def test_shared(self) -> None:
        """Callers who may do the same share the answers: a connection costs no memory for them."""
        port = main_port(enable_push=True, sources=CERTIFICATE)
        self.assertIs(calling(port).refusals, calling(port).refusals)
        self.assertIsNot(calling(port).refusals, calling(port, HOLDER).refusals)

    def test_account(self) -> None:
        """What uploads take up counts for who makes them, and for the address only if that is not known."""
        port = main_port(enable_push=True, sources=CERTIFICATE)
        self.assertEqual(calling(port).account, "192.0.2.1")
        self.assertNotEqual(calling(port, HOLDER).account, calling(port, READER).account)


class PolicyTests(SynchronousTestCase):
    """What each port lets whom do."""

    def rights(self, port: PortPolicy, *identities: Identity) -> Iterable[Right]:
        return calling(port, *identities).rights

    def test_push_is_off(self) -> None:
        """Without --enable-push nobody may push, whatever they present."""
        for port in PORTS:
            if not port.push_enabled:
                for identities in ((), (HOLDER,), (WRITER,), (HOLDER, WRITER)):
                    self.assertFalse(calling(port, *identities).may_push)

    def test_no_sources(self) -> None:
        """Where nobody can prove anything, everybody may do what is enabled."""
        self.assertEqual(self.rights(main_port(enable_push=True)), PUSHING)
        self.assertEqual(self.rights(main_port(enable_push=False)), PULLING)

    def test_sources(self) -> None:
        """Where people can prove who they are, nobody else pushes."""
        for sources in (CERTIFICATE, TOKEN, CERTIFICATE | TOKEN):
            port = main_port(enable_push=True, sources=sources)
            self.assertEqual(self.rights(port), PULLING)
            self.assertEqual(self.rights(port, HOLDER), PUSHING)
            self.assertEqual(self.rights(port, READER), PULLING)

    def test_private(self) -> None:
        """On a private port, and on one where a certificate is needed to connect, nobody else pulls either."""
        for more in ({"private": True}, {"known_only": True}):
            port = main_port(enable_push=True, sources=CERTIFICATE, **more)
            self.assertEqual(self.rights(port), frozenset())
            self.assertEqual(self.rights(port, HOLDER), PUSHING)
            self.assertEqual(self.rights(port, READER), PULLING)

    def test_several_identities(self) -> None:
        """The rights of several identities add up."""
        port = main_port(enable_push=True, sources=CERTIFICATE | TOKEN, private=True)
        only_push = Identity("token", "x", "x", frozenset({Right.PUSH}))
        self.assertEqual(self.rights(port, READER, only_push), PUSHING)

    def test_public(self) -> None:
        """On the public port everybody may pull and nobody may push, whoever they are."""
        for port in PORTS:
            if port.name == "public":
                self.assertEqual(self.rights(port), PULLING)
                self.assertEqual(self.rights(port, HOLDER, WRITER), PULLING)

    def test_promises(self) -> None:
        """The log says what each port lets whom do."""
        both = CERTIFICATE | TOKEN
        for port, promise in (
            (main_port(enable_push=False), "everybody may pull"),
            (main_port(enable_push=True), "everybody may pull and push"),
            (main_port(enable_push=False, sources=CERTIFICATE), "everybody may pull"),
            (
                main_port(enable_push=True, sources=CERTIFICATE),
                "everybody may pull, those with a client certificate may push",
            ),
            (
                main_port(enable_push=True, sources=CERTIFICATE, known_only=True),
                "those with a client certificate may pull and push",
            ),
            (
                main_port(enable_push=False, sources=both, private=True),
                "those with a client certificate or a token may pull",
            ),
            (public_port(main_port(enable_push=True, sources=CERTIFICATE)), "public port, everybody may pull"),
        ):
            self.assertEqual(port.promise, promise)


class ReasonTests(SynchronousTestCase):
    """What those are told who may not."""

    def refused(self, pattern: str, right: Right, port: PortPolicy, *identities: Identity) -> None:
        refusal = calling(port, *identities).refusal(right)
        assert refusal is not None
        self.assertFalse(refusal.unauthenticated)
        self.assertRegex(refusal.reason, pattern)

    def test_push_is_off(self) -> None:
        """The option is named that is missing, on every port."""
        for port in PORTS:
            if not port.push_enabled:
                self.refused("started without --enable-push", Right.PUSH, port)

    def test_certificate(self) -> None:
        """Who has to show a certificate learns that, and where BuildStream wants it."""
        port = main_port(enable_push=True, sources=CERTIFICATE)
        self.refused("need a client certificate to push here: set client-cert and client-key", Right.PUSH, port)
        port = main_port(enable_push=False, sources=CERTIFICATE, private=True)
        self.refused("need a client certificate to pull here: set client-cert and client-key", Right.PULL, port)

    def test_token(self) -> None:
        """Who has to show a token, or one of both, learns that."""
        for sources, needed in (
            (TOKEN, "need a token to push"),
            (CERTIFICATE | TOKEN, "need a client certificate or a token to push"),
        ):
            self.refused(needed, Right.PUSH, main_port(enable_push=True, sources=sources))

    def test_not_enough(self) -> None:
        """Who is known and may not push learns that it is not a matter of being known."""
        port = main_port(enable_push=True, sources=TOKEN)
        self.refused("does not give you the right to push", Right.PUSH, port, READER)

    def test_public(self) -> None:
        """Who pushes to the public port is sent to the main one, with what is needed there."""
        self.refused("public port.*main port$", Right.PUSH, public_port(main_port(enable_push=True)))
        port = public_port(main_port(enable_push=True, sources=CERTIFICATE))
        self.refused("public port.*main port, with a client certificate$", Right.PUSH, port)

    def test_short(self) -> None:
        """BuildStream 1.x shows the sentence alone, in one line."""
        for port in PORTS:
            for identities in ((), (READER,)):
                for right in (Right.PULL, Right.PUSH):
                    refusal = calling(port, *identities).refusal(right)
                    if refusal is not None:
                        self.assertLess(len(refusal.reason), 120)
                        self.assertRegex(refusal.reason, r"\A[a-z][ -~]+[a-z]\Z")
