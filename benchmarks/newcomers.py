"""Clients that open a connection, ask on it what BuildStream 1.6 asks at first, and close it, again and again."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks import part
from benchmarks.client import require
from benchmarks.messages import CAPABILITIES, PROBES
from benchmarks.wire import Connection


def prepare(arguments: list[str]) -> Callable[[], Any]:
    """:param arguments: port, seconds, and for TLS the server's certificate."""
    port, seconds = int(arguments[0]), float(arguments[1])
    certificate = Path(arguments[2]) if len(arguments) > 2 else None
    return lambda: _run(port, seconds, certificate)


def _run(port: int, seconds: float, certificate: Path | None) -> int:
    end = time.perf_counter() + seconds
    connections = 0
    while time.perf_counter() < end:
        with Connection(port, certificate) as connection:
            for path in PROBES:
                status = connection.ask(path, b"").status
                # The other probes ask for nothing, and servers differ in what they think of that.
                require(path != CAPABILITIES or status == 0)
        connections += 1
    return connections


if __name__ == "__main__":
    part.play(prepare)
