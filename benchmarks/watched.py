"""This server with a watch on its reactor: ``python -m benchmarks.watched FILE`` and what twistd is to be given.

A *turn* is what the reactor does between two waits for something to happen: it serves every connection that has
something to say, then timers and what threads have handed back.  For each turn the watch notes

* how long it lasted by the clock,
* how much CPU time the reactor's thread used in it,
* how long it stood in line for a CPU that others were using, as Linux counts it (``schedstat``), or, where it never
  gave up its CPU and did not use it, how long a virtual machine's host had it stopped.

What is left of a turn, the thread has waited: for the interpreter's lock, which other threads of the process hold, or
for a disk.  A turn is *held* for the time by the clock without the time in line.

A turn that goes on for long is looked at while it does: a signal shows where the thread is.  On SIGUSR1 the watch
appends what it has seen to FILE, as a line of JSON, and begins anew.
"""

from __future__ import annotations

import gc
import json
import os
import signal
import sys
import threading
import time
from pathlib import Path
from types import FrameType
from typing import Any

#: Turns held for more than so many milliseconds are counted.
THRESHOLDS = (1, 5, 10, 50)

#: Seconds after which a turn is looked at, and between two looks.
LOOK_SECONDS = 0.002

#: How often a turn is looked at, at most.
LOOKS = 100

#: How many of the innermost frames are noted.
FRAMES = 12


#: The innermost frames of the thread, each with its file, line and function.
Look = list[tuple[str, int, str]]


class Watch:
    """Stands between Twisted's epoll reactor and its epoll object.

    :param reactor: is not running yet.
    :param output: where SIGUSR1 writes to.
    """

    def __init__(self, reactor: Any, output: Path) -> None:
        self._output = output
        self._schedstat = os.open(f"/proc/self/task/{threading.get_native_id()}/schedstat", os.O_RDONLY)
        self._epoll = reactor._poller
        self._serve = reactor._doReadOrWrite
        self._run_timers = reactor.runUntilCurrent
        reactor._poller = self
        reactor._doReadOrWrite = self._event
        reactor.runUntilCurrent = self._timers
        self._begun: tuple[float, float, float, int] | None = None
        self._looks: list[Look] = []
        self._longest_event: tuple[float, str] = (0.0, "")
        self._collecting = 0.0
        self._collected = 0.0
        self._begin_anew()
        signal.signal(signal.SIGALRM, self._look)
        signal.signal(signal.SIGUSR1, self._report)
        gc.callbacks.append(self._garbage)

    def _begin_anew(self) -> None:
        self._turns = 0
        self._over = dict.fromkeys(THRESHOLDS, 0)
        self._longest: dict[str, Any] = {"held": 0.0}

    # What the reactor calls

    def __getattr__(self, name: str) -> Any:
        return getattr(self._epoll, name)

    def poll(self, timeout: float, most: int) -> Any:
        self._end()
        ready = self._epoll.poll(timeout, most)
        self._begin()
        return ready

    def _event(self, selectable: Any, fd: int, event: int) -> None:
        self._timed(type(selectable).__name__, self._serve, selectable, fd, event)

    def _timers(self) -> None:
        self._timed("timers and threads", self._run_timers)

    def _timed(self, name: str, function: Any, *arguments: Any) -> None:
        begun = time.perf_counter()
        function(*arguments)
        lasted = time.perf_counter() - begun
        if lasted > self._longest_event[0]:
            self._longest_event = (lasted, name)

    # Turns

    def _scheduled(self) -> tuple[float, int]:
        """Seconds that this thread has been ready to run and did not, and how often it was given a CPU."""
        _, in_line, times = os.pread(self._schedstat, 64, 0).split()
        return int(in_line) / 1e9, int(times)

    def _begin(self) -> None:
        self._looks = []
        self._longest_event = (0.0, "")
        self._collected = 0.0
        signal.setitimer(signal.ITIMER_REAL, LOOK_SECONDS, LOOK_SECONDS)
        self._begun = time.perf_counter(), time.thread_time(), *self._scheduled()

    def _end(self) -> None:
        if self._begun is None:
            return
        wall, cpu = time.perf_counter() - self._begun[0], time.thread_time() - self._begun[1]
        in_line, times = self._scheduled()
        in_line = in_line - self._begun[2] if times > self._begun[3] else max(0.0, wall - cpu)
        self._begun = None
        signal.setitimer(signal.ITIMER_REAL, 0)
        held = max(cpu, wall - in_line)
        self._turns += 1
        for threshold in THRESHOLDS:
            if held * 1000 > threshold:
                self._over[threshold] += 1
        if held > self._longest["held"]:
            self._longest = {
                "held": held,
                "cpu": cpu,
                "in_line": in_line,
                "event": self._longest_event,
                "collecting": self._collected,
                "looks": self._looks,
            }

    def _look(self, number: int, frame: FrameType | None) -> None:
        if self._begun is None or len(self._looks) == LOOKS:
            return
        stack: Look = []
        while frame is not None and len(stack) < FRAMES:
            code = frame.f_code
            if code is Watch._look.__code__:
                stack = []  # In the middle of the look before.
            elif code.co_filename != __file__:
                stack.append((code.co_filename, frame.f_lineno, code.co_name))
            frame = frame.f_back
        self._looks.append(stack)

    def _garbage(self, phase: str, info: object) -> None:
        if phase == "start":
            self._collecting = time.perf_counter()
        else:
            self._collected += time.perf_counter() - self._collecting

    def _report(self, number: int, frame: FrameType | None) -> None:
        seen = {"turns": self._turns, "over": self._over, "longest": self._longest}
        self._begin_anew()
        with self._output.open("a") as output:
            output.write(json.dumps(seen) + "\n")


def main(output: str, *arguments: str) -> None:
    """Be twistd, watched."""
    from twisted.internet import reactor
    from twisted.scripts.twistd import run

    Watch(reactor, Path(output).resolve())
    sys.argv = ["twistd", *arguments]
    run()


if __name__ == "__main__":
    main(*sys.argv[1:])
