"""Real processes for tests: our server as its users start it, and client programs with nothing of the user around.

Everything here blocks; it is for tests whose subject is a process.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import artifactserver

#: ``twistd``, run from wherever the package under test was imported: the checkout, or where its wheel was installed.
TWISTD = (sys.executable, "-c", "import sys; from twisted.scripts.twistd import run; sys.exit(run())")


def free_port() -> int:
    """A TCP port that nobody listens on right now."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port: int = unused.getsockname()[1]
        return port


def environment(home: Path) -> dict[str, str]:
    """An environment that leads a program to no file of the user's and through no proxy."""
    home.mkdir(parents=True, exist_ok=True)
    return {
        "PATH": os.environ.get("PATH", os.defpath),
        "LANG": "C.UTF-8",
        "TERM": "dumb",
        "HOME": str(home),
        "XDG_CONFIG_HOME": str(home / "config"),
        "XDG_CACHE_HOME": str(home / "cache"),
        "XDG_DATA_HOME": str(home / "data"),
    }


@dataclass(frozen=True, slots=True)
class Finished:
    """What became of a program.

    :ivar output: what it said on stdout and stderr together.
    """

    command: tuple[str, ...]
    status: int
    output: str

    def __str__(self) -> str:
        return f"{' '.join(self.command)} ended with status {self.status} and said:\n{self.output}"


def run(command: Sequence[str], *, cwd: Path, env: Mapping[str, str], timeout: float) -> Finished:
    """Run a program to its end; it, and whatever it started, is killed after ``timeout`` seconds."""
    process = subprocess.Popen(
        command,
        cwd=cwd,
        env=env,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        umask=0o022,
    )
    try:
        output, _ = process.communicate(timeout=timeout)
        status = process.returncode
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        output, _ = process.communicate()
        raise AssertionError(f"{' '.join(command)} did not end in {timeout} s; it said:\n{_text(output)}") from None
    return Finished(tuple(command), status, _text(output))


class Background:
    """A program that runs until it is told to end.

    :param log: the file that its output is appended to.
    """

    def __init__(self, command: Sequence[str], log: Path, *, env: Mapping[str, str], cwd: Path) -> None:
        self.command = tuple(command)
        self.log = log
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                command, cwd=cwd, env=env, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT
            )

    @property
    def pid(self) -> int:
        return self._process.pid

    def wait_until(self, ready: Callable[[], bool], timeout: float = 30) -> Background:
        """Return when it is ready.

        :raises AssertionError: if it ends instead, or takes too long.
        """
        end = time.monotonic() + timeout
        while not ready():
            if self._process.poll() is not None or time.monotonic() > end:
                raise AssertionError(f"{self.command} is not ready; it said:\n{self.said()}")
            time.sleep(0.01)
        return self

    def stop(self, number: signal.Signals = signal.SIGTERM, timeout: float = 15) -> int:
        """Send it a signal, and return its exit status; does nothing when it has ended."""
        self._process.send_signal(number)
        try:
            return self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
            raise AssertionError(f"{self.command} did not end; it said:\n{self.said()}") from None

    def said(self) -> str:
        """All output so far."""
        return _text(self.log.read_bytes())


def connects(port: int) -> bool:
    """Whether somebody listens on a port of this machine."""
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex(("127.0.0.1", port)) == 0


def server_command(port: int, repo: Path, *options: str, program: Sequence[str] = TWISTD) -> list[str]:
    """How to start our server in the foreground, as ``twistd`` does it."""
    return [*program, "-n", "--pidfile=", "artifactserver", "--port", str(port), *options, str(repo)]


class Server:
    """A server of ours in a process of its own.

    :param program: what is started instead of ``twistd``.
    :ivar port: where it listens, on every address of this machine.
    :ivar log: the file that its output goes to; later starts append to it.
    """

    def __init__(self, repo: Path, *options: str, port: int | None = None, program: Sequence[str] = TWISTD) -> None:
        self.repo = repo
        self.options = options
        self.program = program
        self.port = free_port() if port is None else port
        self.log = repo.with_name(f"{repo.name}-{self.port}.log")
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def begin(self) -> None:
        """Start the process, without waiting for anything."""
        env = environment(self.repo.with_name("home"))
        env["PYTHONPATH"] = os.pathsep.join([str(Path(artifactserver.__file__).parents[1]), *_python_path()])
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                server_command(self.port, self.repo, *self.options, program=self.program),
                cwd=self.repo.parent,
                env=env,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def wait(self, timeout: float = 30) -> None:
        """Return when it takes connections.

        :raises AssertionError: if it ends instead, or takes too long.
        """
        assert self._process is not None
        end = time.monotonic() + timeout
        while True:
            with socket.socket() as probe:
                probe.settimeout(1)
                if probe.connect_ex(("127.0.0.1", self.port)) == 0:
                    return
            if self._process.poll() is not None or time.monotonic() > end:
                raise AssertionError(f"the server does not listen; it said:\n{self.said()}")
            time.sleep(0.01)

    def start(self) -> Server:
        """Start it, and return when it takes connections."""
        self.begin()
        self.wait()
        return self

    def stop(self, timeout: float = 15) -> int:
        """Ask it to end, and return its exit status; does nothing when it has been stopped."""
        return self._end(signal.SIGTERM, timeout)

    def kill(self) -> int:
        """End it as a crash would."""
        return self._end(signal.SIGKILL, 15)

    def said(self) -> str:
        """All output so far."""
        return _text(self.log.read_bytes())

    def _end(self, number: signal.Signals, timeout: float) -> int:
        process, self._process = self._process, None
        if process is None:
            return 0
        process.send_signal(number)
        try:
            return process.wait(timeout)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise AssertionError(f"the server did not end in {timeout} s; it said:\n{self.said()}") from None


def _python_path() -> list[str]:
    return [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]


def _text(output: bytes) -> str:
    return output.decode("utf-8", "replace")
