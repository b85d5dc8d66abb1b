"""What a server has used: CPU time and memory of its whole process tree.

CPU time is in user and kernel mode, with the threads and child processes that have ended.  Memory is anonymous resident
memory (``RssAnon``): not the page cache, and not what is mapped from files, LMDB's index among it.
"""

from __future__ import annotations

import os
import threading
import time
from contextlib import suppress
from pathlib import Path

_TICKS = os.sysconf("SC_CLK_TCK")


class Usage:
    """What a process and its descendants use while the ``with`` block runs.

    :ivar seconds: how long that was.
    :ivar cpu_seconds: CPU time.
    :ivar in_line: seconds for which its threads, all added up, were ready to run and others had the CPUs.
    :ivar memory: the most memory at any one time, in bytes.
    """

    def __init__(self, pid: int, interval: float = 0.05) -> None:
        self._pid = pid
        self._interval = interval
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self.seconds = 0.0
        self.cpu_seconds = 0.0
        self.in_line = 0.0
        self.memory = 0

    def __enter__(self) -> Usage:
        self._thread.start()
        self.cpu_seconds = -_cpu_seconds_of_all(self._pid)
        self.in_line = -_in_line(self._pid)
        self.seconds = -time.monotonic()
        return self

    def __exit__(self, *error: object) -> None:
        self.seconds += time.monotonic()
        # Whatever was done took some time, even if the clock did not see it.
        self.cpu_seconds = max(1e-6, self.cpu_seconds + _cpu_seconds_of_all(self._pid))
        self.in_line = max(0.0, self.in_line + _in_line(self._pid))
        self._done.set()
        self._thread.join()

    def _watch(self) -> None:
        while True:
            self.memory = max(self.memory, memory(self._pid))
            if self._done.wait(self._interval):
                return


def memory(pid: int) -> int:
    """Anonymous resident memory of a process and its descendants, in bytes."""
    return sum(map(_anonymous, _tree(pid)))


def _tree(pid: int) -> list[int]:
    pids = [pid]
    for pid in pids:
        try:
            for thread in Path(f"/proc/{pid}/task").iterdir():
                pids += map(int, (thread / "children").read_text().split())
        except OSError:
            continue  # It has ended; what it used is in its parent's account.
    return pids


def _cpu_seconds_of_all(pid: int) -> float:
    return sum(map(_cpu_seconds, _tree(pid)))


def _cpu_seconds(pid: int) -> float:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    user, system, ended_user, ended_system = map(int, fields[11:15])
    try:
        # The clock of another process's CPU time (CPUCLOCK_SCHED of the whole thread group), in nanoseconds; /proc
        # counts in hundredths of a second.
        own = time.clock_gettime((~pid << 3) | 2)
    except OSError:
        own = (user + system) / _TICKS
    return own + (ended_user + ended_system) / _TICKS


def _in_line(pid: int) -> float:
    waited = 0
    for member in _tree(pid):
        # A thread that has ended is forgotten.
        with suppress(OSError):
            for thread in Path(f"/proc/{member}/task").iterdir():
                waited += int((thread / "schedstat").read_text().split()[1])
    return waited / 1e9


def _anonymous(pid: int) -> int:
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    for line in status.splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    return 0
