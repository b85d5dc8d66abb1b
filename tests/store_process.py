"""A second process with the same repository open: LMDB allows each process to open an index only once.

Run as a program it answers pickled ``(method, arguments)`` on its standard input with pickled results.
"""

from __future__ import annotations

import errno
import importlib
import os
import pickle
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from twisted.internet.threads import deferToThread


class StoreProcess:
    """The parent's side.

    :param pause: a function, as ``module:name``, at whose door the process stops when it first comes there, once its
        store is open: see `paused` and `go_on`.
    :param fail: another one, whose first call from then on fails with EIO.
    """

    def __init__(self, path: Path, pause: str = "", fail: str = "") -> None:
        self._door = path.resolve().with_name(f"{path.name}.door-{os.urandom(4).hex()}")
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.store_process", str(path.resolve()), str(self._door), pause, fail],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL if fail else None,
            cwd=Path(__file__).parent.parent,
        )

    async def call(self, method: str, *arguments: Any) -> Any:
        """What the store's method returns in that process; what it raises is raised."""
        result = await deferToThread(self.exchange, method, *arguments)
        if isinstance(result, BaseException):
            raise result
        return result

    def exchange(self, method: str, *arguments: Any) -> Any:
        """The same for a thread that may wait; what the store raises is returned."""
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None and stdout is not None
        pickle.dump((method, arguments), stdin)
        stdin.flush()
        return pickle.load(stdout)

    async def paused(self) -> None:
        """Returns when the process stands where it was to pause."""
        await deferToThread(_wait_for, self._door)

    def go_on(self) -> None:
        """Open the door at which the process stands."""
        self._door.unlink()

    def kill(self) -> None:
        """End it with SIGKILL, if it still runs."""
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                stream.close()


def _wait_for(door: Path, shut: bool = True) -> None:
    deadline = time.monotonic() + 60
    while door.exists() != shut:
        if time.monotonic() > deadline:
            raise TimeoutError(f"{door} did not {'shut' if shut else 'open'}")
        time.sleep(0.002)


def _before_next(where: str, what: Callable[[], None]) -> None:
    """Let something happen before the next call of a function, as ``module:name``."""
    module, _, name = where.partition(":")
    owner = importlib.import_module(module)
    *classes, name = name.split(".")
    for each in classes:
        owner = getattr(owner, each)
    real = getattr(owner, name)

    def first(*arguments: Any) -> Any:
        setattr(owner, name, real)
        what()
        return real(*arguments)

    setattr(owner, name, first)


def _serve(path: Path, door: Path, pause: str, fail: str) -> None:
    from twisted.internet import reactor
    from twisted.internet.defer import Deferred

    from artifactserver.store.local import LocalStore

    store = LocalStore(path, reactor=reactor, now=time.time, head_room_min=0)
    store.start()

    def wait() -> None:
        door.touch()
        _wait_for(door, shut=False)

    def refuse() -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    if pause:
        _before_next(pause, wait)
    if fail:
        _before_next(fail, refuse)

    async def serve() -> None:
        while True:
            try:
                method, arguments = await deferToThread(pickle.load, sys.stdin.buffer)
            except EOFError:
                break
            try:
                result = await getattr(store, method)(*arguments)
            except Exception as error:
                result = error
            pickle.dump(result, sys.stdout.buffer)
            sys.stdout.buffer.flush()
        await store.stop()
        reactor.stop()

    reactor.callWhenRunning(lambda: Deferred.fromCoroutine(serve()))
    reactor.run()


if __name__ == "__main__":
    _serve(Path(sys.argv[1]), Path(sys.argv[2]), *sys.argv[3:])
