"""One client that reads over a slow link, one that writes at full speed, and twenty that make small calls.

Each is measured alone and then together with the others, on every server, in turns.  Nobody should starve, and a small
call should not have to wait for a large one.
"""

from __future__ import annotations

import os
import statistics
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks import servers
from benchmarks.client import require
from benchmarks.messages import LARGE, digest, stream_read, stream_write
from benchmarks.part import Part, together
from benchmarks.report import machine, ratio, table
from benchmarks.session import Session, say

#: Bytes per second that the slow link carries: a gigabit network.
LINK = 100_000_000

#: Seconds for each of them alone, and for all together.
ALONE = 2.5


@dataclass(slots=True)
class Got:
    """What one server gave its clients, a value for each round; latencies in seconds, all in one."""

    idle: list[float] = field(default_factory=list)
    small: list[float] = field(default_factory=list)
    small_p99: list[float] = field(default_factory=list)
    late: list[float] = field(default_factory=list)
    answered: list[float] = field(default_factory=list)
    reader_alone: list[float] = field(default_factory=list)
    reader: list[float] = field(default_factory=list)
    reader_waited: list[float] = field(default_factory=list)
    writer_alone: list[float] = field(default_factory=list)
    writer: list[float] = field(default_factory=list)
    writer_waited: list[float] = field(default_factory=list)
    per_cpu_second: list[float] = field(default_factory=list)
    in_line: list[float] = field(default_factory=list)


def fairness(session: Session) -> str:
    """All clients on all servers, for some rounds; tables of who got what."""
    kinds = [servers.ours(), *session.peers()]
    got = {kind.name: Got() for kind in kinds}
    content = os.urandom(LARGE)
    upload, request = stream_write(content), stream_read(digest(content))
    with ExitStack() as stack:
        running = [stack.enter_context(session.running(kind)) for kind in kinds]
        for server in running:
            seed(session, server, upload, request)
        for number in range(session.options.rounds):
            start = number % len(running)
            for server in running[start:] + running[:start]:
                _measure(session, server, got[server.name])
    return _tables(got)


def seed(session: Session, server: servers.Server, upload: Sequence[bytes], request: bytes) -> None:
    """Upload the blob that the reader wants."""
    with session.client(server) as client:
        client.write_large(upload).check()
    _request(server).write_bytes(request)


def reader(server: servers.Server, seconds: float) -> Part:
    """One client that reads over a slow link."""
    return Part("slow_reader", server.port, _request(server), seconds, LINK)


def writer(server: servers.Server, seconds: float) -> Part:
    """One client that writes at full speed."""
    return Part("large_writer", server.port, seconds)


def small_callers(server: servers.Server, seconds: float) -> Part:
    """Twenty clients that make small calls."""
    return Part("small_callers", server.port, seconds, *([server.tls.certificate] if server.tls else []))


def _request(server: servers.Server) -> Path:
    return server.place / "read"


def _measure(session: Session, server: servers.Server, got: Got) -> None:
    seconds = session.options.seconds
    # What others have left for the disk to do shall not fall to this server.
    os.sync()
    with server.usage() as usage:
        with small_callers(server, ALONE) as calls:
            calls.wait_until_ready()
            (small,) = together(calls)
            got.idle += small["latencies"]
        with reader(server, ALONE) as part:
            part.wait_until_ready()
            (reading,) = together(part)
            got.reader_alone.append(_speed(reading))
        with writer(server, ALONE) as part:
            part.wait_until_ready()
            (writing,) = together(part)
            got.writer_alone.append(_speed(writing))
    session.saw(server, usage.memory)
    with small_callers(server, seconds) as calls, reader(server, seconds) as read, writer(server, seconds) as write:
        for part in (calls, read, write):
            part.wait_until_ready()
        with server.usage() as usage:
            writing, reading, small = together(write, read, calls)
    session.saw(server, usage.memory)
    require(len(small["latencies"]) > 0)
    got.small += small["latencies"]
    got.small_p99.append(_percentile(small["latencies"], 99))
    got.late += small["late"]
    got.answered.append(len(small["latencies"]) / small["due"])
    got.reader.append(_speed(reading))
    got.reader_waited.append(reading["longest_wait"])
    got.writer.append(_speed(writing))
    got.writer_waited.append(writing["longest_wait"])
    got.per_cpu_second.append((reading["bytes"] + writing["bytes"]) / 1e6 / usage.cpu_seconds)
    got.in_line.append(usage.in_line / usage.seconds)
    say(
        f"  {server.name}: small calls {_percentile(small['latencies'], 50) * 1e3:.1f} ms, 99 % within "
        f"{got.small_p99[-1] * 1e3:.1f} ms; reader {got.reader[-1]:.0f} MB/s, writer {got.writer[-1]:.0f} MB/s"
    )


def _speed(result: Any) -> float:
    """Megabytes per second."""
    return float(result["bytes"] / result["seconds"] / 1e6)


def _percentile(values: Sequence[float], percent: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * percent / 100))]


def _milliseconds(values: Sequence[float], percent: float) -> str:
    return f"{_percentile(values, percent) * 1e3:.2f}"


def _tables(got: dict[str, Got]) -> str:
    latencies = [
        [
            name,
            *(_milliseconds(one.idle, percent) for percent in (50, 99)),
            *(_milliseconds(one.small, percent) for percent in (50, 90, 99, 100)),
            _milliseconds(one.late, 99),
            f"{statistics.median(one.in_line):.2f}",
            f"{min(one.answered):.1%}",
        ]
        for name, one in got.items()
    ]
    speeds = [
        [
            name,
            *(f"{statistics.median(values):.0f}" for values in (one.reader_alone, one.reader)),
            f"{max(one.reader_waited) * 1e3:.0f}",
            *(f"{statistics.median(values):.0f}" for values in (one.writer_alone, one.writer)),
            f"{max(one.writer_waited) * 1e3:.0f}",
            f"{statistics.median(one.per_cpu_second):.0f}",
        ]
        for name, one in got.items()
    ]
    parts = [
        "Milliseconds of a small call: while nothing else goes on, and beside a reader and a writer; how late the\n"
        "client itself was with 99 % of those; seconds per second that the server's threads stood in line for a CPU;\n"
        "and how many of the calls that were due were answered before the end:\n",
        table(
            ["Server", "Idle, p50", "p99", "Beside, p50", "p90", "p99", "max", "Client's", "In line", "Answered"],
            latencies,
        ),
        f"MB per second of a reader whose link carries {LINK / 1e6:.0f}, and of a writer, each alone and beside all\n"
        "others; the longest time, in milliseconds, that each had to wait for the next piece; MB read and written\n"
        "per CPU second of the server, small calls included:\n",
        table(
            [
                "Server",
                "Reader, alone",
                "beside",
                "longest wait",
                "Writer, alone",
                "beside",
                "longest wait",
                "MB/CPU s",
            ],
            speeds,
        ),
    ]
    ours, base = got[servers.OURS], got.get(servers.CASD)
    if base is not None:
        rows = [
            ["p99 of small calls", *ratio(ours.small_p99, base.small_p99)],
            ["Reader, beside", *ratio(ours.reader, base.reader)],
            ["Writer, beside", *ratio(ours.writer, base.writer)],
            ["MB per CPU second", *ratio(ours.per_cpu_second, base.per_cpu_second)],
        ]
        parts += [
            f"{servers.OURS} as a multiple of {servers.CASD} in the same round:\n",
            table(["Figure", "Multiple", "from..to"], rows),
        ]
    return "\n".join([*parts, machine()])
