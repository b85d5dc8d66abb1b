"""Failures with credentials: who is slowed down, and how much is remembered of it."""

from __future__ import annotations

import itertools

from twisted.internet.task import Clock
from twisted.logger import capturedLogs
from twisted.trial.unittest import SynchronousTestCase

from artifactserver.tokens.attempts import (
    FIRST_DELAY,
    FORGIVEN_SECONDS,
    HELD_IN_ALL,
    HELD_PER_ADDRESS,
    LONGEST_DELAY,
    MAX_ADDRESSES,
    MOST_FAILURES,
    Attempts,
)


class AttemptsTests(SynchronousTestCase):
    """Answers that wait."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.attempts = Attempts(self.clock)

    def waits(self, address: str = "10.0.0.1") -> float:
        """Seconds until a failure of an address is answered."""
        answered: list[bool] = []
        start = self.clock.seconds()
        assert self.attempts.hold(address, lambda: answered.append(True)) is not None
        end = self.clock.getDelayedCalls()[-1].getTime()
        self.clock.advance(end - start)
        self.assertEqual(answered, [True])
        return end - start

    def test_growing(self) -> None:
        """Each failure waits about twice as long as the one before, up to a limit."""
        waited = [self.waits() for _ in range(8)]
        self.assertAlmostEqual(waited[0], FIRST_DELAY)
        for before, after in itertools.pairwise(waited[:4]):
            # A little has been forgiven meanwhile.
            self.assertTrue(1.9 * before < after <= 2 * before, waited)
        self.assertAlmostEqual(waited[-1], LONGEST_DELAY)

    def test_at_once(self) -> None:
        """Failures at the same time count as well."""
        answered: list[int] = []
        for number in range(10):
            self.attempts.hold("10.0.0.1", lambda number=number: answered.append(number))  # type: ignore[misc]
        self.clock.advance(2 * FIRST_DELAY + 0.01)
        self.assertEqual(answered, [0, 1])
        self.clock.advance(LONGEST_DELAY)
        self.assertEqual(len(answered), 10)

    def test_others(self) -> None:
        """Another address does not wait for it."""
        for _ in range(5):
            self.waits("10.0.0.1")
        self.assertAlmostEqual(self.waits("10.0.0.2"), FIRST_DELAY)

    def test_forgiven(self) -> None:
        """Who has not failed for a while begins anew; however many failures there were, that takes minutes."""
        for _ in range(100):
            self.attempts.hold("10.0.0.1", lambda: None)
        self.clock.advance(FORGIVEN_SECONDS * 2)
        self.assertAlmostEqual(self.waits(), min(LONGEST_DELAY, FIRST_DELAY * 2 ** (MOST_FAILURES / 4)))
        self.clock.advance(FORGIVEN_SECONDS * 10)
        self.assertLess(self.waits(), 1.01 * FIRST_DELAY)

    def test_table(self) -> None:
        """A hundred thousand addresses are not remembered; those that failed last are, and that is all that is left."""
        self.attempts = Attempts(self.clock, in_all=10)
        for number in range(100_000):
            self.attempts.hold(f"2001:db8:{number >> 16:x}:{number & 0xFFFF:x}::/64", lambda: None)
            if number % 50 == 0:
                self.clock.advance(LONGEST_DELAY)
            self.assertLessEqual(len(self.attempts), MAX_ADDRESSES)
        self.clock.advance(LONGEST_DELAY)
        self.assertEqual(len(self.attempts), MAX_ADDRESSES)
        self.assertEqual((len(self.attempts._held), self.attempts._held_in_all), (0, 0))
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_oldest_goes(self) -> None:
        """What is forgotten first is who has not failed for the longest time."""
        self.attempts = Attempts(self.clock, addresses=2)
        for address in ("a", "b", "a", "c"):
            self.waits(address)
        self.assertEqual(list(self.attempts._records), ["a", "c"])

    def test_held(self) -> None:
        """So many answers of one address wait, and so many of all; then there is room again."""
        self.attempts = Attempts(self.clock, per_address=2, in_all=3)
        self.assertEqual([self.hold("a") for _ in range(3)], [True, True, False])
        self.assertEqual([self.hold("b") for _ in range(2)], [True, False])
        self.clock.advance(LONGEST_DELAY)
        self.assertEqual([self.hold("a"), self.hold("b")], [True, True])
        self.assertLess(HELD_PER_ADDRESS, HELD_IN_ALL)

    def hold(self, address: str) -> bool:
        return self.attempts.hold(address, lambda: None) is not None

    def test_given_up(self) -> None:
        """An answer for which nobody waits is not given, and keeps its place: to hang up and try again does not pay."""
        self.attempts = Attempts(self.clock, per_address=1)
        answered: list[bool] = []
        held = self.attempts.hold("a", lambda: answered.append(True))
        assert held is not None
        held.drop()
        self.assertFalse(self.hold("a"))
        self.clock.advance(LONGEST_DELAY)
        self.assertTrue(self.hold("a"))
        self.assertEqual(answered, [])

    def test_log(self) -> None:
        """The first failure of an address is logged, then one a minute with how many there were."""
        with capturedLogs() as events:
            for _ in range(30):
                self.hold("10.0.0.1")
            self.hold("10.0.0.2")
            self.clock.advance(61)
            self.hold("10.0.0.1")
        said = [(event["peer"], event["times"]) for event in events]
        self.assertEqual(said, [("10.0.0.1", 1), ("10.0.0.2", 1), ("10.0.0.1", 30)])

    def test_log_of_many(self) -> None:
        """However many addresses there are, the log has a few lines."""
        with capturedLogs() as events:
            for number in range(1000):
                self.hold(f"10.0.{number >> 8}.{number & 255}")
        self.assertLess(len(events), 30)

    def test_failing_answer(self) -> None:
        """An answer that cannot be given is logged, and no place is lost."""

        def broken() -> None:
            raise ZeroDivisionError

        self.attempts = Attempts(self.clock, per_address=1)
        self.attempts.hold("a", broken)
        self.clock.advance(LONGEST_DELAY)
        self.assertTrue(self.hold("a"))
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)
