"""Notes that large files were used, on their way to the index.

Nobody waits for them.  They are written in small groups, since each group holds the index's write lock while it is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import islice
from typing import Any

from twisted.internet.defer import Deferred
from twisted.logger import Logger

from artifactserver.store.batch import Work
from artifactserver.store.changes import Changes
from artifactserver.store.interface import StoreError

#: Seconds for which what is used is kept at least: what clients assume (Bazel, Buck2).
MIN_LIFETIME = 3 * 3600

#: Seconds after which a new use of a large file, or of what a record reaches, is noted again.
TOUCH_SECONDS = MIN_LIFETIME // 3

#: Notes that are written in one transaction: some 15 ms.
TOUCHES_AT_ONCE = 1_000

#: Notes that wait to be written; more are left out, and made at the next use.
TOUCHES_WAITING = 200_000


class Touches:
    """Notes of use.

    :param submit: hands work to the committer.
    """

    _log = Logger()

    def __init__(self, submit: Callable[[Work], Deferred[Any]]) -> None:
        self._submit = submit
        self._waiting: dict[bytes, tuple[bytes, int]] = {}
        self._writing = False

    def note(self, rows: Mapping[bytes, bytes], used: int) -> None:
        """Files were used.

        :param rows: by blob key, their rows in the index.
        :param used: when, in seconds since the epoch.
        """
        for key, row in rows.items():
            if len(self._waiting) >= TOUCHES_WAITING:
                break
            self._waiting.setdefault(key, (row, used))
        if self._waiting and not self._writing:
            self._writing = True
            Deferred.fromCoroutine(self._write())

    async def _write(self) -> None:
        try:
            while self._waiting:
                group = {key: self._waiting[key] for key in islice(self._waiting, TOUCHES_AT_ONCE)}

                def edit(changes: Changes, group: dict[bytes, tuple[bytes, int]] = group) -> None:
                    for key, (row, used) in group.items():
                        changes.touch_file(key, row, used)

                await self._submit(Work(edit=edit))
                for key in group:
                    del self._waiting[key]
        except StoreError as error:
            self._waiting.clear()
            self._log.warn("the use of large files was not noted: {error}", error=error)
        finally:
            self._writing = False
