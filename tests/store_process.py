"""A second process with the same repository open: LMDB allows each process to open an index only once.

Run as a program it answers pickled ``(method, arguments)`` on its standard input with pickled results.
"""

from __future__ import annotations

import pickle
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from twisted.internet.threads import deferToThread


class StoreProcess:
    """The parent's side."""

    def __init__(self, path: Path) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.store_process", str(path.resolve())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=Path(__file__).parent.parent,
        )

    async def call(self, method: str, *arguments: Any) -> Any:
        """What the store's method returns in that process; what it raises is raised."""
        result = await deferToThread(self._exchange, method, arguments)
        if isinstance(result, BaseException):
            raise result
        return result

    def _exchange(self, method: str, arguments: tuple[Any, ...]) -> Any:
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None and stdout is not None
        pickle.dump((method, arguments), stdin)
        stdin.flush()
        return pickle.load(stdout)

    def kill(self) -> None:
        """End it with SIGKILL, if it still runs."""
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                stream.close()


def _serve(path: Path) -> None:
    from twisted.internet import reactor
    from twisted.internet.defer import Deferred

    from artifactserver.store.local import LocalStore

    store = LocalStore(path, reactor=reactor, now=time.time, head_room_min=0)
    store.start()

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
    _serve(Path(sys.argv[1]))
