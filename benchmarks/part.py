"""Clients as processes of their own, which begin together.

Each prepares itself, says that it is ready, begins when it is told to, and at its end gives its result as JSON.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from typing import Any

from benchmarks.client import Wrong
from benchmarks.servers import environment

_READY, _GO = "ready\n", "go\n"


class Part:
    """One such process, seen from whoever starts it.

    :param module: in this package; it calls `play`.
    """

    def __init__(self, module: str, *arguments: object) -> None:
        self._module = module
        self._process = subprocess.Popen(
            [sys.executable, "-m", f"benchmarks.{module}", *map(str, arguments)],
            env=environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __enter__(self) -> Part:
        return self

    def __exit__(self, *error: object) -> None:
        self._process.kill()
        self._process.communicate()

    def wait_until_ready(self) -> None:
        self._expect(self._line() == _READY)

    def go(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(_GO)
        self._process.stdin.flush()

    def result(self) -> Any:
        """What it came to."""
        line = self._line()
        self._expect(line != "")
        return json.loads(line)

    def _line(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline()

    def _expect(self, sound: bool) -> None:
        if not sound:
            raise Wrong(f"the load of benchmarks.{self._module} broke off; what it says is above")


def together(*parts: Part) -> list[Any]:
    """Let all of them begin, which have to be ready; what each came to."""
    for part in parts:
        part.go()
    return [part.result() for part in parts]


def play(prepare: Callable[[list[str]], Callable[[], Any]]) -> None:
    """Be such a process.

    :param prepare: takes the arguments; gives the function to be called at the beginning, whose result is given back.
    """
    run = prepare(sys.argv[1:])
    sys.stdout.write(_READY)
    sys.stdout.flush()
    if sys.stdin.readline() == _GO:
        sys.stdout.write(json.dumps(run()) + "\n")
