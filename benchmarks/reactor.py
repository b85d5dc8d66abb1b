"""What holds this server's reactor, and for how long: the loads of the other benchmarks, with a watch on it."""

from __future__ import annotations

import json
import os
import signal
import textwrap
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import chain
from pathlib import Path
from typing import Any

from benchmarks import fairness, servers
from benchmarks.cases import Case, Material, cases, prepare
from benchmarks.client import Wrong
from benchmarks.connections import CLIENTS, newcomers
from benchmarks.large_requests import cold_look_ups, cold_reads, fill, forget, large_requests
from benchmarks.messages import MIB
from benchmarks.part import together
from benchmarks.report import figure, machine, table
from benchmarks.session import Measured, Session, say
from benchmarks.watched import THRESHOLDS

#: The longest turn of a load is described if it held the reactor for longer than this, in milliseconds.
_LONG = 5.0

#: How many of the stacks that were seen in such a turn are shown, and how much of each.
_STACKS = 2
_FRAMES = 5

#: Seconds of reading, writing and small calls.
_FAIRNESS_SECONDS = 4.0


def reactor(session: Session) -> str:
    """All loads on this server, watched; a table of its turns, and what the long ones were."""
    watch = _Watch(session)
    made = prepare()
    with session.running(servers.ours(watch=True)) as server:
        with session.client(server) as client:
            client.seed(made.seeds)
            present = fill(client)
            watch.over(server, chain(cases(made), large_requests(client, present), cold_reads(server, made)))
        watch.beside(server, made)
        watch.newcomers(server)
        server.stop()
        forget(server, "packs", "blobs", "index")
        server.start()
        watch.over(server, [cold_look_ups(present)])
    with session.running(servers.ours(session.identity(), watch=True)) as server:
        with session.client(server) as client:
            client.seed(made.seeds)
        watch.over(server, cases(made)[-2:])
        watch.newcomers(server)
    return watch.text()


class _Watch:
    """What was seen of all turns."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._rows: list[list[str]] = []
        self._long: list[tuple[float, str]] = []

    def over(self, server: servers.Server, loads: Iterable[Case]) -> None:
        """Watch these, one after the other."""
        with self._session.client(server) as client:
            for case in loads:
                with self._turns(case.title, server):
                    self._session.measure(server, client, case, Measured())

    def beside(self, server: servers.Server, made: Material) -> None:
        """Watch the clients of `benchmarks.fairness`."""
        fairness.seed(self._session, server, made.large_write, made.large_read)
        seconds = _FAIRNESS_SECONDS
        with (
            fairness.small_callers(server, seconds) as calls,
            fairness.reader(server, seconds) as reader,
            fairness.writer(server, seconds) as writer,
        ):
            for part in (calls, reader, writer):
                part.wait_until_ready()
            with self._turns("Small calls beside a reader and a writer", server):
                together(calls, reader, writer)

    def newcomers(self, server: servers.Server) -> None:
        """Watch the clients of `benchmarks.connections`."""
        with ExitStack() as stack:
            parts = [stack.enter_context(newcomers(server, self._session.options.seconds)) for _ in range(CLIENTS)]
            for part in parts:
                part.wait_until_ready()
            with self._turns("New connections", server):
                together(*parts)

    @contextmanager
    def _turns(self, title: str, server: servers.Server) -> Iterator[None]:
        if server.tls is not None:
            title += ", TLS"
        _report(server)
        with server.usage() as usage:
            yield
        self._session.saw(server, usage.memory)
        seen = _report(server)
        longest = seen["longest"]
        row = [title, f"{seen['turns']:,}"]
        row += [f"{seen['over'][str(threshold)]:,}" for threshold in THRESHOLDS]
        row += [f"{longest[part] * 1e3:.1f}" for part in ("held", "cpu", "in_line")]
        self._rows.append([*row, _what(longest), figure(usage.memory / MIB)])
        say("  " + "  ".join(self._rows[-1]))
        if longest["held"] * 1e3 > _LONG:
            self._long.append((longest["held"], f"{title}: {_described(longest)}"))

    def text(self) -> str:
        head = ["Load", "Turns", *(f"> {threshold} ms" for threshold in THRESHOLDS)]
        head += ["Longest, ms", "CPU, ms", "in line", "Where", "MiB"]
        parts = [
            "Turns of the reactor, how many of them held it for how long, and the longest one: how long it was held,\n"
            "the CPU time of its thread meanwhile, how long that stood in line for a CPU, which does not count, and\n"
            "where it was; anonymous resident memory of the server:\n",
            table(head, self._rows),
        ]
        if self._long:
            longest = "\n".join(turn for _, turn in sorted(self._long, reverse=True))
            parts += [f"What held it for more than {_LONG:g} ms::\n", textwrap.indent(longest, "    "), ""]
        return "\n".join([*parts, machine()])


def _report(server: servers.Server, patience: float = 20.0) -> Any:
    """Have the watch write down what it has seen, and begin anew."""
    output = server.place / "turns"
    before = output.stat().st_size if output.exists() else 0
    os.kill(server.pid, signal.SIGUSR1)
    end = time.monotonic() + patience
    while time.monotonic() < end:
        time.sleep(0.005)
        written = output.read_bytes()[before:] if output.exists() else b""
        if written.endswith(b"\n"):
            return json.loads(written)
    raise Wrong(f"{server.name} does not say what its watch has seen")


def _what(turn: Any) -> str:
    """Where the thread was seen most often in a turn: the innermost of our functions."""
    if turn["collecting"] > turn["held"] / 2:
        return "garbage collection"
    seen = Counter(_ours(look) for look in turn["looks"])
    return seen.most_common(1)[0][0] if seen else "-"


def _ours(look: Sequence[Any]) -> str:
    frames = [_frame(*frame) for frame in look]
    return next((frame for frame in frames if frame.startswith(servers.OURS)), frames[0])


def _frame(file: str, line: int, function: str) -> str:
    """A place in the code, its module from our package on, or the end of its path."""
    parts = Path(file).parts
    start = len(parts) - parts[::-1].index(servers.OURS) - 1 if servers.OURS in parts else -2
    return f"{'/'.join(parts[start:])}:{line} {function}"


def _described(turn: Any) -> str:
    """A paragraph about one turn."""
    times = ", ".join(f"{part} {turn[part] * 1e3:.1f}" for part in ("held", "cpu", "in_line", "collecting"))
    lasted, name = turn["event"]
    seen = Counter(" < ".join(_frame(*frame) for frame in look[:_FRAMES]) for look in turn["looks"])
    stacks = [f"  {count} x {stack}" for stack, count in seen.most_common(_STACKS)]
    return "\n".join([f"{times} ms; {name} {lasted * 1e3:.1f}", *stacks])
