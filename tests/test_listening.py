"""``--listen`` with real servers: unix sockets, and sockets that systemd passes."""

from __future__ import annotations

import dataclasses
import os
import shutil
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import grpc
from twisted.internet.testing import MemoryReactorClock
from twisted.python.usage import UsageError
from twisted.trial.unittest import SkipTest, SynchronousTestCase

import artifactserver
from artifactserver import tap
from artifactserver.access import PULLING
from artifactserver.cli import ServeOptions
from artifactserver.options import Options
from artifactserver.preparing import owner_of
from tests.certificates import CertificateFiles, certificate, server_certificate
from tests.processes import TWISTD, Background, Finished, environment, free_port, run
from tests.test_tap import taken_port, wait_until
from tests.visitors import Visitor

SERVE = (sys.executable, "-c", "import sys; from artifactserver.cli import serve; sys.exit(serve())")

#: Starts a program as systemd does: it has listening sockets from descriptor 3 on, and variables that tell of them.
#: The first argument has their names, the second where each listens, and then comes the program.
LAUNCHER = """
import fcntl, os, socket, sys
names, places, *program = sys.argv[1:]
opened = []
for place in places.split(","):
    if place.startswith("/"):
        listening = socket.socket(socket.AF_UNIX)
        listening.bind(place)
        os.chmod(place, 0o640)
        listening.listen()
    else:
        listening = socket.create_server(("127.0.0.1", int(place)))
    opened.append(listening)
high = [fcntl.fcntl(listening, fcntl.F_DUPFD, 100) for listening in opened]
for number, descriptor in enumerate(high):
    os.dup2(descriptor, 3 + number)
os.environ |= {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": str(len(opened)), "LISTEN_FDNAMES": names}
os.execv(program[0], program)
"""


def parse(*arguments: str, kind: type[Options] = Options) -> Options:
    options = kind()
    options.parseOptions(list(arguments))
    return options


class _Place(SynchronousTestCase):
    """A directory with a short name, since a unix socket's path cannot be long."""

    def setUp(self) -> None:
        self.place = Path(tempfile.mkdtemp())
        self.addCleanup(shutil.rmtree, self.place)
        self.env = environment(self.place / "home") | {"PYTHONPATH": str(Path(artifactserver.__file__).parents[1])}

    @property
    def repo(self) -> str:
        return str(self.place / "repo")

    def key(self) -> tuple[CertificateFiles, list[str]]:
        """A server's certificate, and the options for it."""
        files = server_certificate().write(self.place)
        return files, ["--server-key", str(files.key), "--server-cert", str(files.certificate)]


class OptionsTests(_Place):
    """What ``--listen`` goes together with."""

    def refused(self, pattern: str, *arguments: str, kind: type[Options] = Options) -> None:
        with self.assertRaises(UsageError) as caught:
            parse(*arguments, kind=kind)
        self.assertRegex(str(caught.exception), pattern)
        self.assertNotIn("\n", str(caught.exception))

    def test_no_default_port(self) -> None:
        """Where an endpoint is given there is no port that is not given; there may be both, and many."""
        self.assertEqual(parse()["port"], 11001)
        self.assertIsNone(parse("--listen", "unix:s")["port"])
        for port in (["--port", "7"], ["-p7"], ["--po=7"]):
            options = parse("--listen", "unix:s", *port, "--listen", "public=tcp:8")
            self.assertEqual(options["port"], 7)
            self.assertEqual([listen.text for listen in options["listen"]], ["unix:s", "public=tcp:8"])

    def test_bst_artifact_server(self) -> None:
        """``bst-artifact-server`` wants a port or an endpoint."""
        self.refused("--port is missing", "repo", kind=ServeOptions)
        self.assertIsNone(parse("--listen", "unix:s", "repo", kind=ServeOptions)["port"])

    def test_relative(self) -> None:
        """A relative path starts where the server runs."""
        (listen,) = parse("--listen", "unix:some/socket")["listen"]
        self.assertEqual(listen.endpoint.path, Path.cwd() / "some/socket")
        options = Options()
        options.parent = Options()
        options.parent["rundir"] = str(self.place)
        options.parseOptions(["--listen", "unix:socket"])
        self.assertEqual(options["listen"][0].endpoint.path, self.place / "socket")

    def test_mistakes(self) -> None:
        """Mistakes in an endpoint are mistakes in the command line."""
        self.refused("--listen 'ssl:443' would put a TLS of its own", "--listen", "ssl:443")
        self.refused("--listen 'tcp:80' is the same as --listen 'tcp:80'", "--listen", "tcp:80", "--listen", "tcp:80")

    def test_contradictions(self) -> None:
        """What makes no sense beside other options is refused."""
        tls = ("--server-key", "k", "--server-cert", "c", "--client-certs", "a")
        self.refused("--interface is given without --port", "--interface", "::1", "--listen", "unix:s")
        self.refused("--private and --listen 'public=unix:s' contr", *tls, "--private", "--listen", "public=unix:s")
        for optional in ((), ("--client-certs-optional",)):
            self.refused("lets nobody show a certificate", *tls, *optional, "--listen", "main,clear=unix:s")
            parse(*tls, *optional, "--listen", "public,clear=unix:s")


class BuildTests(_Place):
    """What is opened before the daemon is one."""

    def build(self, *arguments: str) -> tap.ArtifactServer:
        service = tap.build(parse(*arguments, self.repo), MemoryReactorClock(), time.time)
        self.addCleanup(service.stopService)
        return service

    def test_entrances(self) -> None:
        """What has the same role and the same TLS is one entrance; the log has them one by one."""
        key = self.key()[1]
        bundle = str(certificate().write(self.place).certificate)
        here = f"unix:{self.place}"
        service = self.build(
            *(
                *key,
                "--client-certs",
                bundle,
                "--enable-push",
                "--listen",
                f"{here}/one",
                "--listen",
                f"main={here}/two",
            ),
            *("--listen", f"public,clear={here}/three", "--listen", f"public={here}/four"),
        )
        self.assertEqual(
            [(entrance.policy.name, entrance.tls is not None, entrance.addresses()) for entrance in service.entrances],
            [
                ("main", True, [f"{here}/one", f"{here}/two"]),
                ("public", True, [f"{here}/four"]),
                ("public", False, [f"{here}/three"]),
            ],
        )

    def test_clear_is_not_open(self) -> None:
        """Without TLS nobody has more rights than with it."""
        key = self.key()[1]
        service = self.build(*key, "--enable-push", "--listen", f"main,clear=unix:{self.place}/s", "--port", "0")
        with_tls, without = service.entrances
        self.assertEqual((with_tls.policy, without.policy), (with_tls.policy, with_tls.policy))
        self.assertIsNone(without.tls)
        # The options refuse this one; if they did not, nobody could push there who cannot show a certificate.
        certs = ("--client-certs", str(certificate().write(self.place).certificate), "--client-certs-optional")
        options = parse(*key, *certs, "--enable-push", "--listen", f"public,clear=unix:{self.place}/t", self.repo)
        options["listen"] = [dataclasses.replace(options["listen"][0], role="main")]
        service = tap.build(options, MemoryReactorClock(), time.time)
        self.addCleanup(service.stopService)
        self.assertEqual(service.entrances[0].policy.rights_of(()), PULLING)

    def test_refused(self) -> None:
        """What cannot be had is said with the string, and nothing is left of the others."""
        with taken_port() as port:
            taken = f"tcp:{port}:interface=127.0.0.1"
            error = self.assertRaises(tap.Problem, self.build, "--listen", f"unix:{self.place}/s", "--listen", taken)
        self.assertRegex(str(error), f"^--listen '{taken}': port {port} of 127.0.0.1 is in use: .* another port$")
        self.assertFalse((self.place / "s").exists())
        self.assertFalse((self.place / "repo").exists())

    def test_stopped_before_it_started(self) -> None:
        """A server that is stopped before it has started leaves no socket."""
        service = self.build("--listen", f"unix:{self.place}/s")
        self.assertTrue((self.place / "s").exists())
        self.successResultOf(service.stopService())
        self.assertFalse((self.place / "s").exists())

    def test_owner(self) -> None:
        """With twistd's ``--uid`` the file of a socket belongs to that user, as the server does."""
        self.assertIsNone(owner_of({}))
        self.assertEqual(owner_of({"uid": 0, "gid": None}), (0, 0))
        self.assertEqual(owner_of({"uid": 3, "gid": 5}), (3, 5))
        self.assertEqual(owner_of({"uid": None, "gid": 5}), (-1, 5))
        self.assertEqual(owner_of({"uid": 2**30 + 7, "gid": None}), (2**30 + 7, -1))
        if os.geteuid() != 0:
            raise SkipTest("only root can give a file away")
        options = parse("--listen", f"unix:{self.place}/s", self.repo)
        options.parent = Options()
        options.parent.update(uid=65534, gid=65533)
        self.place.chmod(0o777)
        service = tap.build(options, MemoryReactorClock(), time.time)
        self.addCleanup(service.stopService)
        found = (self.place / "s").stat()
        self.assertEqual((found.st_uid, found.st_gid, found.st_mode & 0o777), (65534, 65533, 0o660))


class _ServingTests(_Place):
    """Servers that serve."""

    started = 0

    def start(self, *options: str, program: Sequence[str] = SERVE) -> Background:
        """A server that serves."""
        command = [*program, "--log-level", "info", "--head-room-min", "0", *options, self.repo]
        self.started += 1
        server = Background(command, self.place / f"log-{self.started}", env=self.env, cwd=self.place)
        self.addCleanup(server.stop, signal.SIGKILL)
        return server.wait_until(lambda: "listening on" in server.said())

    def visit(self, where: str, trusted: Path | None = None) -> Visitor:
        visitor = Visitor(where, trusted)
        self.addCleanup(visitor.close)
        return visitor


class UnixTests(_ServingTests):
    """Unix sockets of real servers."""

    def test_roles(self) -> None:
        """One server at four sockets: gRPC and HTTP/1.1 at each, TLS where it is not left out, pushing at two."""
        files, key = self.key()
        options = [
            word
            for role in ("main", "main,clear", "public", "public,clear")
            for word in ("--listen", f"{role}=unix:{self.place}/{role.replace(',', '-')}")
        ]
        server = self.start(*key, "--enable-push", *options)
        content = os.urandom(3 * 1024 * 1024)
        for role in ("main", "public", "main,clear", "public,clear"):
            trusted = None if role.endswith("clear") else files.certificate
            visitor = self.visit(f"unix:{self.place}/{role.replace(',', '-')}", trusted)
            if role.startswith("main"):
                self.assertEqual(visitor.write(content), len(content))
            else:
                code, said = visitor.refusal(b"mine")
                self.assertEqual(code, grpc.StatusCode.PERMISSION_DENIED)
                self.assertIn("public port", said)
            self.assertEqual(visitor.read(content), content)
            self.assertEqual(visitor.get()[0], 404)
        self.assertEqual(server.stop(), 0, server.said())
        self.assertEqual(sorted(path.name for path in self.place.iterdir() if path.is_socket()), [])
        self.assertNotIn("Traceback", server.said())
        self.assertRegex(server.said(), rf"listening on unix:{self.place}/public-clear, serving .*: public port, every")

    def test_log(self) -> None:
        """The log says by which socket somebody came who misbehaves."""
        server = self.start("--listen", f"unix:{self.place}/s")
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(f"{self.place}/s")
            client.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\xff" * 100)
            self.assertTrue(wait_until(lambda: f"unix:{self.place}/s was sent away" in server.said()), server.said())
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(f"{self.place}/s")
            client.sendall(b"\x16\x03\x01\x00\x05")
            self.assertTrue(wait_until(lambda: f"unix:{self.place}/s tried TLS on a port" in server.said()))

    def test_after_a_crash(self) -> None:
        """A server that was killed leaves its socket, and the next one takes it over; while one runs nobody does."""
        options = ("--listen", f"unix:{self.place}/s")
        self.start(*options).stop(signal.SIGKILL)
        self.assertTrue((self.place / "s").is_socket())
        server = self.start(*options)
        self.assertEqual(self.visit(f"unix:{self.place}/s").get()[0], 404)
        second = run([*SERVE, *options, self.repo], cwd=self.place, env=self.env, timeout=30)
        self.assertEqual(second.status, 1)
        self.assertEqual(
            second.output,
            f"bst-artifact-server: --listen 'unix:{self.place}/s': somebody listens on {self.place}/s already: stop "
            "them, or choose another path\n",
        )
        self.assertEqual(self.visit(f"unix:{self.place}/s").get()[0], 404)
        self.assertEqual(server.stop(), 0)

    def twistd(self, *arguments: str) -> Finished:
        return run([*TWISTD, *arguments], cwd=self.place, env=self.env, timeout=30)

    def test_daemon(self) -> None:
        """A daemon has opened its socket before it left the terminal; a second one says there that it cannot."""
        finished = self.twistd("artifactserver", "--listen", "unix:s:mode=600", "repo")
        self.assertEqual((finished.status, finished.output), (0, ""), finished)
        pid = int((self.place / "twistd.pid").read_text())
        self.addCleanup(self.end, pid)
        self.assertEqual((self.place / "s").stat().st_mode & 0o777, 0o600)
        self.assertEqual(self.visit(f"unix:{self.place}/s").get()[0], 404)
        finished = self.twistd("--pidfile=other.pid", "artifactserver", "--listen", "unix:s", "repo")
        self.assertEqual(finished.status, 1, finished)
        self.assertRegex(
            finished.output, r"\Aartifactserver: --listen 'unix:s': somebody listens on \S+/s already.*\n\Z"
        )
        os.kill(pid, signal.SIGTERM)
        self.assertTrue(wait_until(lambda: not (self.place / "s").exists()))

    def end(self, pid: int) -> None:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            pass


class SystemdTests(_ServingTests):
    """Sockets that systemd has opened."""

    def launched(self, names: str, places: Sequence[str | int]) -> tuple[str, ...]:
        """The command that starts a server as systemd does."""
        return (sys.executable, "-c", LAUNCHER, names, ",".join(map(str, places)), *SERVE)

    def test_roles(self) -> None:
        """Sockets are known by their names, whatever their order; each gets its role."""
        main, public = free_port(), free_port()
        server = self.start(
            *("--enable-push", "--listen", "main=systemd:name=main", "--listen", "public=systemd:name=public"),
            program=self.launched("public:main", [public, main]),
        )
        self.assertRegex(server.said(), rf"listening on 127.0.0.1:{main}, serving .*: everybody may pull and push")
        content = os.urandom(1024 * 1024)
        self.assertEqual(self.visit(f"127.0.0.1:{main}").write(content), len(content))
        visitor = self.visit(f"127.0.0.1:{public}")
        self.assertEqual(visitor.refusal(content)[0], grpc.StatusCode.PERMISSION_DENIED)
        self.assertEqual(visitor.read(content), content)
        self.assertEqual(visitor.get()[0], 404)
        self.assertEqual(server.stop(), 0, server.said())
        self.assertNotIn("Traceback", server.said())

    def test_unix(self) -> None:
        """A unix socket of systemd's works, keeps its mode, and is there when the server has ended."""
        path = self.place / "s"
        server = self.start(
            "--enable-push", "--listen", "systemd:name=proxy", program=self.launched("proxy", [str(path)])
        )
        visitor = self.visit(f"unix:{path}")
        content = os.urandom(1024 * 1024)
        self.assertEqual((visitor.write(content), visitor.read(content)), (len(content), content))
        self.assertEqual(path.stat().st_mode & 0o777, 0o640)
        self.assertEqual(server.stop(), 0, server.said())
        self.assertEqual(path.stat().st_mode & 0o777, 0o640)
        self.assertIn(f"listening on unix:{path}, serving", server.said())

    def test_not_passed(self) -> None:
        """A socket that systemd has not passed stops the start."""
        command = [*self.launched("main", [free_port()]), "--listen", "systemd:name=other", self.repo]
        finished = run(command, cwd=self.place, env=self.env, timeout=30)
        self.assertEqual(finished.status, 2, finished)
        self.assertRegex(
            finished.output, r"\Abst-artifact-server: --listen 'systemd:name=other' names a socket that systemd .*\n\Z"
        )

    def test_notified(self) -> None:
        """systemd is told when the server listens, and when it begins to stop."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
            systemd.bind(f"{self.place}/notify")
            systemd.settimeout(15)
            self.env["NOTIFY_SOCKET"] = f"{self.place}/notify"
            server = self.start("--listen", f"unix:{self.place}/s")
            self.assertEqual(systemd.recv(100), b"READY=1")
            self.assertEqual(server.stop(), 0)
            self.assertEqual(systemd.recv(100), b"STOPPING=1")

    def test_socket_activate(self) -> None:
        """systemd's own program for trying this starts the server at the first connection, which is answered."""
        activate = shutil.which("systemd-socket-activate")
        if activate is None:
            raise SkipTest("systemd-socket-activate is not installed")
        main, public = free_port(), free_port()
        command = [
            *(activate, "--listen", f"127.0.0.1:{main}", "--listen", f"127.0.0.1:{public}", "--fdname=main:public"),
            *(f"--setenv={name}={value}" for name, value in self.env.items()),
            *(*SERVE, "--listen", "main=systemd:name=main", "--listen", "public=systemd:name=public", self.repo),
        ]
        server = Background(command, self.place / "log", env=self.env, cwd=self.place)
        self.addCleanup(server.stop, signal.SIGKILL)
        server.wait_until(lambda: "Listening on" in server.said())
        self.assertEqual(self.visit(f"127.0.0.1:{public}").get()[0], 404, server.said())
        self.assertEqual(self.visit(f"127.0.0.1:{main}").get()[0], 404, server.said())
        self.assertEqual(server.stop(), 0, server.said())
