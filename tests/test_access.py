"""Every method needs a right, and who lacks it is told so in a sentence that helps."""

from __future__ import annotations

import time

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from artifactserver.access import METHODS, Access, Caller, Right
from artifactserver.rpc.dispatch import Dispatcher
from artifactserver.services import register_all
from tests.memory_store import MemoryStore

PULLER = Caller("192.0.2.1")
PUSHER = Caller("192.0.2.1", "ci", frozenset({Right.PULL, Right.PUSH}))
NOBODY = Caller("192.0.2.1", None, frozenset())


class MethodsTests(SynchronousTestCase):
    """The table of methods."""

    def test_complete(self) -> None:
        """Every method of every service stands in the table, and nothing else does."""
        dispatcher = Dispatcher(Access(True))
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


class AccessTests(SynchronousTestCase):
    """Who may call what."""

    def test_push_is_off(self) -> None:
        """Without --enable-push nobody may push, whatever they present, and the sentence names the option."""
        access = Access(enable_push=False)
        for path, right in METHODS.items():
            for caller in (PULLER, PUSHER):
                refusal = access.refusal(caller, path)
                if right is Right.PUSH:
                    assert refusal is not None
                    self.assertIn("--enable-push", refusal)
                else:
                    self.assertIsNone(refusal)

    def test_push_is_on(self) -> None:
        """With --enable-push those may push who have the right, and the others are told that they have not."""
        access = Access(enable_push=True)
        for path, right in METHODS.items():
            self.assertIsNone(access.refusal(PUSHER, path))
            refusal = access.refusal(PULLER, path)
            if right is Right.PUSH:
                assert refusal is not None
                self.assertIn("may not upload", refusal)
            else:
                self.assertIsNone(refusal)

    def test_nobody(self) -> None:
        """Without any right one may ask for the server's health, and nothing else."""
        access = Access(enable_push=True)
        for path, right in METHODS.items():
            self.assertEqual(access.refusal(NOBODY, path) is None, right is Right.NONE, path)

    def test_unknown(self) -> None:
        """A method that the table forgot needs the greatest right."""
        self.assertIsNotNone(Access(True).refusal(PULLER, "/new.Service/Method"))
        self.assertIsNotNone(Access(False).refusal(PUSHER, "/new.Service/Method"))

    def test_refusals_fit(self) -> None:
        """BuildStream 1.x shows the sentence alone, in one line."""
        for access in (Access(True), Access(False)):
            for path in METHODS:
                refusal = access.refusal(NOBODY, path)
                if refusal is not None:
                    self.assertLess(len(refusal), 120)
                    self.assertNotIn("\n", refusal)

    def test_what_is_announced(self) -> None:
        """Capabilities announce pushing to those who may push."""
        self.assertTrue(PUSHER.may_push)
        self.assertFalse(PULLER.may_push)
