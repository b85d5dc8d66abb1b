"""A client that reads one large blob again and again over a slow link: it reads its socket no faster than that."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks import part
from benchmarks.client import require
from benchmarks.messages import LARGE, READ
from benchmarks.wire import Connection, prefix

#: What the kernel may keep for the client, as a slow link would not have it.
_RECEIVE_BUFFER = 256 * 1024


def prepare(arguments: list[str]) -> Callable[[], Any]:
    """:param arguments: port, file with the request, seconds, bytes per second."""
    port, request, seconds, rate = arguments
    connection = Connection(int(port), receive_buffer=_RECEIVE_BUFFER)
    return lambda: _run(connection, Path(request).read_bytes(), float(seconds), float(rate))


def _run(connection: Connection, request: bytes, seconds: float, rate: float) -> Any:
    begun = time.perf_counter()
    received = 0
    longest = 0.0
    while True:
        call = connection.wire.begin(READ)
        connection.send_message(call, [prefix(len(request)), request], True)
        while call.status is None:
            now = time.perf_counter()
            ahead = received / rate - (now - begun)
            if ahead > 0.001:
                time.sleep(ahead)
            if now - begun >= seconds:
                return {"bytes": received, "seconds": now - begun, "longest_wait": longest}
            asked = time.perf_counter()
            received += connection.read()
            longest = max(longest, time.perf_counter() - asked)
        require(call.status == 0 and call.received > LARGE)


if __name__ == "__main__":
    part.play(prepare)
