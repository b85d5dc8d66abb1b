"""``python -m fuzz``: look for input that a target does not bear, give it some again, or make seeds to start from."""

from __future__ import annotations

import argparse
import hashlib
import importlib
import itertools
import sys
from collections.abc import Sequence
from pathlib import Path

from twisted.logger import globalLogBeginner

#: What the fuzzer looks for ways through: the code that reads what peers send, ours and that below it.
INSTRUMENTED = ["artifactserver.rpc", "artifactserver.services", "artifactserver.store.digest", "hpack"]

TARGETS = ("frames", "headers", "messages", "names", "calls")


def main(arguments: Sequence[str] | None = None) -> None:
    options, rest = _options(arguments)
    if options.what == "seeds":
        _write_seeds(options.directory)
    elif options.what == "replay":
        target = importlib.import_module(f"fuzz.{options.target}")
        for path in _files(options.paths):
            target.run(path.read_bytes())
    else:
        _fuzz(options.what, rest)


def _fuzz(name: str, arguments: list[str]) -> None:
    import atheris

    with atheris.instrument_imports(include=INSTRUMENTED):
        target = importlib.import_module(f"fuzz.{name}")
    atheris.Setup([sys.argv[0], *arguments], target.run)
    atheris.Fuzz()


def _write_seeds(directory: Path) -> None:
    from fuzz import recording, seeds

    for seed in itertools.chain(seeds.by_hand(), *map(seeds.of_conversation, recording.record())):
        place = directory / seed.target
        place.mkdir(parents=True, exist_ok=True)
        (place / hashlib.sha256(seed.content).hexdigest()[:16]).write_bytes(seed.content)


def _files(paths: list[Path]) -> list[Path]:
    return [file for path in paths for file in (sorted(path.iterdir()) if path.is_dir() else [path])]


def _options(arguments: Sequence[str] | None) -> tuple[argparse.Namespace, list[str]]:
    parser = argparse.ArgumentParser(prog="python -m fuzz", description=__doc__)
    what = parser.add_subparsers(dest="what", required=True, metavar="WHAT")
    for name in TARGETS:
        what.add_parser(
            name, add_help=False, help="run this target; what follows is for libFuzzer: corpora and -options"
        )
    replay = what.add_parser("replay", help="run a target on files, without atheris")
    replay.add_argument("target", choices=TARGETS)
    replay.add_argument("paths", nargs="+", type=Path, help="files, or folders of them")
    seeds = what.add_parser("seeds", help="record what grpcio sends, as seeds for each target")
    seeds.add_argument("directory", type=Path, help="where to make a folder for each target")
    return parser.parse_known_args(arguments)


if __name__ == "__main__":
    # Twisted would keep what is logged before somebody wants it.
    globalLogBeginner.beginLoggingTo([], redirectStandardIO=False)
    main()
