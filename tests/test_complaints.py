"""Lines in the log about peers that misbehave."""

from __future__ import annotations

from twisted.internet.task import Clock
from twisted.logger import Logger, capturedLogs
from twisted.trial.unittest import SynchronousTestCase

from artifactserver.complaints import Complaints


class ComplaintTests(SynchronousTestCase):
    """How much is said."""

    def test_some(self) -> None:
        """A few lines are what they are, with their fields."""
        complaints = Complaints(Logger(), Clock(), 1.0, 3)
        with capturedLogs() as events:
            for peer in ("a", "b", "c"):
                complaints.say("{peer} is rude", peer=peer)
        self.assertEqual([event["peer"] for event in events], ["a", "b", "c"])
        self.assertEqual({event["log_format"] for event in events}, {"{peer} is rude"})

    def test_many(self) -> None:
        """Of a thousand there are a few lines; the next one says how many were left out, and only that one."""
        clock = Clock()
        complaints = Complaints(Logger(), clock, 0.1, 3)
        with capturedLogs() as events:
            for _ in range(1000):
                complaints.say("{peer} is rude", peer="a")
            clock.advance(20)
            complaints.say("{peer} is rude", peer="b")
            complaints.say("{peer} is rude", peer="c")
            complaints.say("{peer} is rude", peer="d")
        self.assertEqual([event.get("unsaid") for event in events], [None, None, None, 997, None])
        self.assertEqual(events[3]["log_format"], "{peer} is rude, and {unsaid} like it")
        self.assertEqual([event["peer"] for event in events[3:]], ["b", "c"])
