"""Twenty clients that make a small call now and then: how long does each take?

Every caller has a connection of its own and a moment for each of its calls, whatever became of the one before; the
moments are spread evenly.  (Callers that wait for an answer before they think of the next call would ask a slow server
less often, and so find it faster than it is.)  All of them run in one thread, at a few hundred calls per second, so
that the client takes little of the machine.

The time of a call runs from its moment if the caller was still busy with the one before, for which the server is to
blame, else from when it was sent.  How late it was sent then is the client's own fault, and told apart.
"""

from __future__ import annotations

import gc
import itertools
import random
import select
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks import messages, part
from benchmarks.client import require
from benchmarks.wire import Call, Connection

CALLERS = 20
#: Calls per second of each.
PACE = 25
#: Digests in one FindMissingBlobs, half of them there.
DIGESTS = 20


class Caller:
    """One connection with its calls.

    :ivar due: moments that have come and whose calls are still to be sent.
    """

    def __init__(self, port: int, certificate: Path | None, requests: list[tuple[str, bytes]]) -> None:
        self._connection = Connection(port, certificate)
        for path, message in requests * 3:
            require(self._connection.ask(path, message).status == 0)
        self.socket = self._connection.socket
        self.due: deque[float] = deque()
        self.latencies: list[float] = []
        self.late: list[float] = []
        self._requests = itertools.cycle(requests)
        self._call: Call | None = None
        self._from = self._free = 0.0

    def go_on(self) -> None:
        """Send the next call, if one is due and none is on its way."""
        if self._call is not None or not self.due:
            return
        due = self.due.popleft()
        self._call = self._connection.wire.ask(*next(self._requests))
        now = time.perf_counter()
        if due >= self._free:
            self.late.append(now - due)
            self._from = now
        else:
            self._from = due
        self._connection.flush()

    def readable(self) -> None:
        """Take what has come."""
        self._connection.read()
        call = self._call
        if call is not None and call.status is not None:
            self._free = time.perf_counter()
            require(call.status == 0)
            self.latencies.append(self._free - self._from)
            self._call = None
            self.go_on()


def prepare(arguments: list[str]) -> Callable[[], Any]:
    """:param arguments: port, seconds, and for TLS the server's certificate."""
    port, seconds = int(arguments[0]), float(arguments[1])
    certificate = Path(arguments[2]) if len(arguments) > 2 else None
    request, digests = messages.update(200, messages.SMALL)
    with Connection(port, certificate) as connection:
        require(connection.ask(messages.BATCH_UPDATE, request).status == 0)
    callers = [Caller(port, certificate, _requests(digests)) for _ in range(CALLERS)]
    gc.disable()
    return lambda: _run(callers, seconds)


def _requests(digests: list[Any]) -> list[tuple[str, bytes]]:
    asked = random.sample(digests, DIGESTS // 2) + messages.absent_digests(DIGESTS // 2)
    return [
        (messages.FIND_MISSING, messages.find(asked)),
        (messages.READ, messages.stream_read(random.choice(digests))),
        (messages.CAPABILITIES, b""),
    ]


def _run(callers: list[Caller], seconds: float) -> Any:
    by_socket = {caller.socket: caller for caller in callers}
    step = 1 / (PACE * CALLERS)
    begun = time.perf_counter()
    moments = ((begun + number * step, callers[number % CALLERS]) for number in range(int(seconds / step)))
    due, caller = next(moments)
    while True:
        now = time.perf_counter()
        while due <= now:
            caller.due.append(due)
            caller.go_on()
            upcoming = next(moments, None)
            if upcoming is None:
                return {
                    "latencies": [latency for caller in callers for latency in caller.latencies],
                    "late": [late for caller in callers for late in caller.late],
                    "due": int(seconds / step),
                }
            due, caller = upcoming
        # Not epoll, whose timeouts are whole milliseconds.
        for ready in select.select(list(by_socket), [], [], max(0.0, due - now))[0]:
            by_socket[ready].readable()


if __name__ == "__main__":
    part.play(prepare)
