"""How much is held in memory for peers: per connection, and for all of them together.

When a bound is passed, somebody has to give: the connection that holds the most, whoever it was that went over.  So a
few greedy peers cannot get calls of modest ones refused.
"""

from __future__ import annotations

from collections.abc import Callable


class Account:
    """What one connection holds.

    :param shed: called to make the connection let go of its largest call; gives how many bytes that freed.
    """

    __slots__ = ("held", "shed")

    def __init__(self, shed: Callable[[], int]) -> None:
        self.held = 0
        self.shed = shed


def _nobody() -> int:
    return 0


class Ledger:
    """The accounts of all connections.

    :param most: bytes for one connection.
    :param most_in_all: bytes for all connections together.
    """

    def __init__(self, most: int, most_in_all: int) -> None:
        self._most = most
        self._most_in_all = most_in_all
        self._accounts: set[Account] = set()
        self.held = 0

    def open(self, shed: Callable[[], int]) -> Account:
        account = Account(shed)
        self._accounts.add(account)
        return account

    def close(self, account: Account) -> None:
        self.held -= account.held
        account.held = 0
        # Its connection has the account, and is not to wait for the collector of cycles.
        account.shed = _nobody
        self._accounts.discard(account)

    def update(self, account: Account, held: int) -> None:
        """What ``account`` holds is now ``held``; calls are shed until everything is within its bounds again."""
        self.held += held - account.held
        account.held = held
        while account.held > self._most and self._shed(account):
            pass
        while self.held > self._most_in_all:
            if not self._shed(max(self._accounts, key=lambda each: each.held)):
                break

    def _shed(self, account: Account) -> bool:
        freed = account.shed()
        account.held -= freed
        self.held -= freed
        return freed > 0
