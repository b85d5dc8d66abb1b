"""``python -m benchmarks``: the command line.  README.rst describes the commands."""

from __future__ import annotations

import argparse
import asyncio
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks import servers
from benchmarks.client import Wrong
from benchmarks.comparison import compare
from benchmarks.connections import connections
from benchmarks.everything import everything
from benchmarks.fairness import fairness
from benchmarks.growth import growth
from benchmarks.install import install
from benchmarks.reactor import reactor
from benchmarks.session import Session


def main(arguments: Sequence[str] | None = None) -> int:
    options = _options(arguments)
    place = Path(tempfile.mkdtemp(prefix="artifactserver-benchmark-", dir=options.directory))
    loop = asyncio.new_event_loop()
    try:
        text = options.command(Session(options, place, loop))
    except (servers.Unavailable, Wrong) as problem:
        print(problem, file=sys.stderr)
        return 1
    finally:
        loop.close()
        shutil.rmtree(place, ignore_errors=True)
    print(text)
    if options.output is not None:
        options.output.write_text(text)
    return 0


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    environ = os.environ.get
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument("--casd", default=environ("ARTIFACTSERVER_BENCHMARK_CASD", ""), help="path of buildbox-casd")
    shared.add_argument(
        "--bst16",
        default=environ("ARTIFACTSERVER_BENCHMARK_BST16", ""),
        help="path of the bst-artifact-server of BuildStream 1.6",
    )
    shared.add_argument("--output", type=Path, help="also write the tables to this file")
    shared.add_argument(
        "--directory", type=Path, help="where the repositories are made (default: where temporary files are)"
    )
    parser = argparse.ArgumentParser(prog="python -m benchmarks")
    commands = parser.add_subparsers(title="commands", required=True)

    def add(
        name: str, command: Callable[[Session], str], help: str, seconds: float | None = None, rounds: int | None = None
    ) -> argparse.ArgumentParser:
        added = commands.add_parser(name, parents=[shared], help=help)
        added.set_defaults(command=command)
        if seconds is not None:
            added.add_argument(
                "--seconds", type=float, default=seconds, help=f"time for one case and server (default: {seconds})"
            )
        if rounds is not None:
            added.add_argument(
                "--rounds", type=int, default=rounds, help=f"how often everything is measured (default: {rounds})"
            )
        return added

    whole = add("all", everything, "all of the following, with their defaults")
    whole.add_argument("--tables", type=Path, metavar="DIR", help="write the tables of each into a file in here")
    whole.set_defaults(parse=parser.parse_args)
    comparing = add("compare", compare, "work per CPU second, beside the other servers and over TLS", 1.0, 5)
    comparing.add_argument("--only", default="", metavar="WORDS", help="only the cases with these words in their title")
    add("connections", connections, "new connections, in clear text and over TLS", 1.0, 3)
    add("fairness", fairness, "small calls beside a slow reader and a writer", 6.0, 2)
    add("reactor", reactor, "what holds the reactor, and for how long", 1.0)
    grow = add("growth", growth, "what a store's size costs", 1.5)
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
