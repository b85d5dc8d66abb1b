"""Files that are read again when they change: keys, certificates, tokens.

Whether a file has changed is seen from its device, inode, size and times, of what its path leads to in the end.  So it
does not matter whether it was appended to, written anew, replaced by renaming, or is reached through a symlink that was
turned elsewhere, as certbot does.

What was read is in force at once, so that who was added gets in with the next connection.  It is *settled* when nothing
has changed for a while.  Only then are open connections held to it: a copy over a file makes that file empty for a
moment, and two files that belong together are replaced one after the other.  For the same reason a version that cannot
be read is complained of only if it stays.  Until there is a good one, the last good one stays in force.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Generic, TypeVar

from twisted.logger import Logger, LogLevel

T = TypeVar("T")

#: Device, inode, size and times of each file; the error's number for one that is not there.
_Version = tuple[object, ...]

#: Looks after the one that found a change, and without a further change, until what was read is settled.
SETTLED_LOOKS = 2

#: Looks after which what was read counts as settled all the same: files that never come to rest must not keep anybody
#: in who was taken out of them.
RESTLESS_LOOKS = 30

#: Looks from one attempt to the next, at most, to read an unchanged version again that could not be used.
RETRY_LOOKS = 60


class Watched(Generic[T]):
    """What some files hold, now.

    :param paths: the files.
    :param read: reads them.
    :param problem: what ``read`` raises if they cannot be used, with a sentence that names the file and the line.
    :param patience: looks until a version that cannot be used is complained of.
    :ivar value: what ``read`` gave for the newest version that can be used.
    :ivar taken: called with each value that comes into force.
    :ivar settled: called with the value when it has changed and has settled.
    :raises problem: if the files cannot be used in the beginning.
    """

    _log = Logger()

    def __init__(
        self,
        paths: Sequence[Path],
        read: Callable[[], T],
        problem: type[Exception],
        patience: int = SETTLED_LOOKS,
    ) -> None:
        self._paths = tuple(paths)
        self._read = read
        self._problem = problem
        self._patience = patience
        self.taken: Callable[[T], None] = lambda value: None
        self.settled: Callable[[T], None] = lambda value: None
        self._version = self._version_now()
        self._looks = 0
        self._wrong: str | None = None
        # Of this version, and of any since the last good one.
        self._complained = self._alarmed = False
        # What was read in the beginning has been looked at by whoever asked for it.
        self._unsettled = False
        # Looks since something came into force that has not settled.
        self._restless = 0
        self.value = read()

    def catch_up(self) -> bool:
        """Read the files again if they have changed since they were looked at; for whoever needs the newest now.

        :return: whether they had changed.
        """
        version = self._version_now()
        if version == self._version:
            return False
        self._version = version
        self._looks = 0
        self._complained = False
        self._try()
        return True

    def look(self) -> None:
        """Catch up, and see whether what was read before has settled; to be called every second or so."""
        if not self.catch_up():
            self._look_again()
        self._restless = self._restless + 1 if self._unsettled else 0
        if self._restless >= RESTLESS_LOOKS:
            self._settle()

    def _look_again(self) -> None:
        """The files have not changed since the last look."""
        self._looks += 1
        if self._looks == SETTLED_LOOKS or (self._wrong is not None and self._is_worth_a_try()):
            # Rights and descriptors change without a trace on the file; and two changes within one tick of the file
            # system's clock look like one, so what was read right after the first may not be all.
            self._try()
        if self._wrong is not None:
            if self._looks >= self._patience and not self._complained:
                self._complained = self._alarmed = True
                self._log.warn("{wrong}; what was read before stays in force", wrong=self._wrong)
        elif self._looks >= SETTLED_LOOKS and self._unsettled:
            # Whoever read that something was wrong wants to read that it is not any more.
            level = LogLevel.warn if self._alarmed else LogLevel.info
            self._alarmed = False
            self._log.emit(level, "{paths} changed, and what is there now is in force", paths=self._names())
            self._settle()

    def _settle(self) -> None:
        self._unsettled = False
        self._restless = 0
        self.settled(self.value)

    def _is_worth_a_try(self) -> bool:
        """Less and less often, for what is wrong for long."""
        return self._looks % RETRY_LOOKS == 0 or self._looks.bit_count() == 1

    def _try(self) -> None:
        wrong, self._wrong = self._wrong, None
        try:
            value = self._read()
        except self._problem as problem:
            self._wrong = str(problem)
            return
        if self._version_now() != self._version:
            # Some of it may be old and some new.  The next look finds the change.
            self._wrong = wrong
            return
        self._unsettled = self._unsettled or self._looks < SETTLED_LOOKS or wrong is not None
        self.value = value
        self.taken(value)

    def _names(self) -> str:
        return " or ".join(map(str, dict.fromkeys(self._paths)))

    def _version_now(self) -> _Version:
        version: list[object] = []
        for path in self._paths:
            try:
                status = os.stat(path)
            except OSError as error:
                version.append(error.errno)
            else:
                version += (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
        return tuple(version)
