"""Credentials that are not good: who shows them, how often, and how long their answers wait.

An answer that says "no" waits, longer with each failure of its address, and less so when some time has passed.  One
that says "yes" never does, whatever others at the same address have done: whole offices come from one.  What keeps a
secret from being guessed is its length.  This keeps a client that was given the wrong one from asking thousands of
times a second, and a search for weak ones from being worth while.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from artifactserver.complaints import Complaints

#: Seconds that the answer to an address's first failure waits.  Each further one doubles them.
FIRST_DELAY = 0.2

#: Seconds that an answer waits at most: less than any client's patience.
LONGEST_DELAY = 5.0

#: Seconds after which half of an address's failures are forgotten.
FORGIVEN_SECONDS = 60.0

#: Failures of an address that count: more would take longer to be forgotten, and delay nothing any more.
MOST_FAILURES = 16

#: Addresses whose failures are remembered; then the one that has not failed for the longest time is forgotten.
MAX_ADDRESSES = 10_000

#: Answers that wait at once, of one address and of all.
HELD_PER_ADDRESS = 100
HELD_IN_ALL = 1_000

#: Seconds between two log lines about one address.
_COMPLAINT_SECONDS = 60.0


@dataclass(slots=True)
class _Record:
    """The failures of one address.

    :ivar failures: how many there were, less what has been forgotten.
    :ivar last: when the last one was.
    :ivar said: when that was logged, or `None`.
    :ivar unsaid: failures since.
    """

    failures: float
    last: float
    said: float | None = None
    unsaid: int = 0


class Held:
    """An answer that waits."""

    __slots__ = ("_answer",)

    def __init__(self, answer: Callable[[], None]) -> None:
        self._answer: Callable[[], None] | None = answer

    def drop(self) -> None:
        """Nobody waits for it any more.  It counts as waiting until its time has come, or to give up would pay."""
        self._answer = None

    def give(self) -> None:
        answer, self._answer = self._answer, None
        if answer is not None:
            answer()


class Attempts:
    """Counts failures by address, and holds the answers to them.

    :param clock: the reactor, or what stands for it in a test.
    """

    _log = Logger()

    def __init__(
        self,
        clock: IReactorTime,
        addresses: int = MAX_ADDRESSES,
        per_address: int = HELD_PER_ADDRESS,
        in_all: int = HELD_IN_ALL,
    ) -> None:
        self._clock = clock
        self._addresses = addresses
        self._per_address = per_address
        self._in_all = in_all
        self._complaints = Complaints(self._log, clock)
        # Whose last failure is the oldest comes first.
        self._records: OrderedDict[str, _Record] = OrderedDict()
        self._held: Counter[str] = Counter()
        self._held_in_all = 0

    def __len__(self) -> int:
        """Of how many addresses something is remembered."""
        return len(self._records)

    def hold(self, address: str, answer: Callable[[], None]) -> Held | None:
        """Count a failure, and call ``answer`` when it has waited long enough.

        :param address: for whom it counts; see `artifactserver.addresses.caller_at`.
        :return: `None` if too many answers wait already.  Then it is to be given at once, and since that is no way to
            slow anybody down, whoever gets it should have to connect anew.
        """
        delay = self._count(address)
        if self._held_in_all >= self._in_all or self._held[address] >= self._per_address:
            return None
        held = Held(answer)
        self._held[address] += 1
        self._held_in_all += 1
        self._clock.callLater(delay, self._give, address, held)
        return held

    def _give(self, address: str, held: Held) -> None:
        self._held_in_all -= 1
        self._held[address] -= 1
        if not self._held[address]:
            del self._held[address]
        with self._log.failuresHandled("while refusing a credential"):
            held.give()

    def _count(self, address: str) -> float:
        """Remember a failure; gives the seconds that the answer to it is to wait."""
        now = self._clock.seconds()
        record = self._records.get(address)
        if record is None:
            record = self._records[address] = _Record(0.0, now)
            if len(self._records) > self._addresses:
                self._records.popitem(last=False)
        else:
            self._records.move_to_end(address)
            record.failures *= 0.5 ** ((now - record.last) / FORGIVEN_SECONDS)
            record.last = now
        self._complain(address, record, now)
        record.failures = min(MOST_FAILURES, record.failures + 1.0)
        return float(min(LONGEST_DELAY, FIRST_DELAY * 2.0 ** (record.failures - 1.0)))

    def _complain(self, address: str, record: _Record, now: float) -> None:
        """Log a failure, unless one of the same address was logged a short while ago."""
        if record.said is not None and now - record.said < _COMPLAINT_SECONDS:
            record.unsaid += 1
            return
        record.said = now
        times, record.unsaid = record.unsaid + 1, 0
        self._complaints.say(
            "{peer} was refused: its token is malformed or unknown; such failures since its last line: {times}",
            peer=address,
            times=times,
        )
