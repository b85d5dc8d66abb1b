"""How often a peer may do what costs it nothing and us something: a bucket of tokens, filled as time passes."""

from __future__ import annotations


class Allowance:
    """So many at once, and so many per second in the long run."""

    __slots__ = ("_burst", "_filled", "_left", "_per_second")

    def __init__(self, per_second: float, burst: int) -> None:
        self._per_second = per_second
        self._burst = float(burst)
        self._left = self._burst
        self._filled: float | None = None

    def spend(self, now: float, tokens: int = 1) -> bool:
        """Take tokens; `False` if there are fewer left at ``now`` (seconds, of any clock that only goes forward)."""
        if self._filled is not None and now > self._filled:
            self._left = min(self._burst, self._left + (now - self._filled) * self._per_second)
        self._filled = now
        if self._left < tokens:
            return False
        self._left -= tokens
        return True
