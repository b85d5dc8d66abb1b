"""``--listen``: what can be written, what it means, and what is refused."""

from __future__ import annotations

import os
import socket
import sys
from pathlib import Path

from twisted.internet import endpoints as twisted_endpoints
from twisted.python.systemd import ListenFDs
from twisted.trial.unittest import SynchronousTestCase

from artifactserver.ports.endpoints import (
    LONGEST_PATH,
    InheritedEndpoint,
    Listen,
    TcpEndpoint,
    UnixEndpoint,
    open_endpoint,
    parse,
    parse_all,
)
from artifactserver.ports.endpoints import EndpointProblem as Problem
from artifactserver.ports.sockets import BACKLOG, CannotListen, address_of, close_sockets
from artifactserver.ports.unix_ports import UnixSocket

HERE = Path("/here")


def at(name: str) -> Path:
    return HERE / name


def let_systemd_have_passed(test: SynchronousTestCase, *names: str, first: int = 3) -> None:
    """During a test, systemd has passed sockets of these names; nothing is there at their descriptors."""
    environ = {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": str(len(names)), "LISTEN_FDNAMES": ":".join(names)}
    # Twisted looks once, when it is imported.
    passed = ListenFDs.fromEnvironment(environ if names else {}, first)
    test.patch(twisted_endpoints._SystemdParser, "_sddaemon", passed)


class MeaningTests(SynchronousTestCase):
    """What a string stands for."""

    def test_tcp(self) -> None:
        """A TCP port is one as Twisted has it, with room for as many that wait as at our own ports."""
        for text, endpoint in {
            "tcp:80": TcpEndpoint("0.0.0.0", 80, BACKLOG),
            "tcp:port=80:interface=127.0.0.1": TcpEndpoint("127.0.0.1", 80, BACKLOG),
            "tcp:80:127.0.0.1:7": TcpEndpoint("127.0.0.1", 80, 7),
            r"tcp:0:interface=\:\:1:backlog=5": TcpEndpoint("::1", 0, 5),
            "tcp6:80": TcpEndpoint("::", 80, BACKLOG),
        }.items():
            self.assertEqual(parse(text, at), Listen(text, "main", False, endpoint))

    def test_unix(self) -> None:
        """A unix socket is for its user and group, unless the string says something else."""
        for text, endpoint in {
            "unix:/run/s": UnixEndpoint(Path("/run/s"), 0o660, BACKLOG),
            "unix:s": UnixEndpoint(HERE / "s", 0o660, BACKLOG),
            r"unix:/a\:b\=c": UnixEndpoint(Path("/a:b=c"), 0o660, BACKLOG),
            "unix:/run/s:600": UnixEndpoint(Path("/run/s"), 0o600, BACKLOG),
            "unix:/run/s:mode=666:backlog=5": UnixEndpoint(Path("/run/s"), 0o666, 5),
            "unix:/run/s:600:7:0": UnixEndpoint(Path("/run/s"), 0o600, 7),
            "unix:address=/run/s:lockfile=0": UnixEndpoint(Path("/run/s"), 0o660, BACKLOG),
        }.items():
            self.assertEqual(parse(text, at).endpoint, endpoint)

    def test_systemd(self) -> None:
        """A socket of systemd's is meant by its name, or by its place; of what kind it is need not be said."""
        let_systemd_have_passed(self, "main", "public", first=7)
        for text, descriptor in {
            "systemd:name=main": 7,
            "systemd:name=public": 8,
            "systemd:index=1": 8,
            "systemd:domain=INET6:name=main": 7,
            "systemd:INET:name=main": 7,
        }.items():
            self.assertEqual(parse(text, at).endpoint, InheritedEndpoint(descriptor))

    def test_roles(self) -> None:
        """Before the endpoint may stand for whom it is, and that it is in clear text."""
        for words, role, clear in [
            ("", "main", False),
            ("main=", "main", False),
            ("public=", "public", False),
            ("main,clear=", "main", True),
            ("public,clear=", "public", True),
        ]:
            listen = parse(f"{words}tcp:port=80", at)
            self.assertEqual((listen.role, listen.clear), (role, clear))
            self.assertEqual(listen.endpoint, TcpEndpoint("0.0.0.0", 80, BACKLOG))


class RefusalTests(SynchronousTestCase):
    """What cannot be meant is refused in one sentence that quotes it."""

    def refused(self, text: str, pattern: str, *others: str) -> None:
        error = str(self.assertRaises(Problem, parse_all, [*others, text], at))
        self.assertRegex(error, pattern)
        self.assertIn(f"--listen {text!r}", error)
        self.assertNotIn("\n", error)

    def test_tls(self) -> None:
        """Endpoints with a TLS of their own are refused, with the reason and the way out."""
        for text in ("ssl:443", "public=ssl:443:privateKey=k:certKey=c", "tls:tcp:443", "tls:"):
            self.refused(text, "a TLS of its own beneath that of the server.*give --server-key and --server-cert")

    def test_unknown(self) -> None:
        """Other types of Twisted's, and what is none, are refused with the types that there are."""
        for text in ("stdio:", "haproxy:tcp:80", "onion:80", "main", "", "TCP:80", r"t\cp:80", "80"):
            self.refused(text, "is no type of endpoint.*one of tcp, tcp6, unix, systemd before")

    def test_malformed(self) -> None:
        """What is written wrongly is refused with the way to write it."""
        for text in (
            *("tcp", "tcp:", "tcp:x", "tcp:99999", "tcp:-1", "tcp:1:bogus=1", "tcp:1:2:3:4:5", "tcp:80\\"),
            *("tcp6:x", "tcp:80:backlog=0", "tcp:80:backlog=x", "tcp:80:::1", "tcp:port=1:interface=a:2"),
        ):
            self.refused(text, "is not understood: write tcp6?:PORT")
        for text in ("unix", "unix:", "unix:/s:mode=9", "unix:/s:mode=7777", "unix:/s:mode=-1", "unix:/s:1:2:3:4"):
            self.refused(text, "is not understood: write unix:PATH")
        for text in ("systemd:", "systemd:INET", "systemd:index=x", "systemd:name=x:index=0"):
            self.refused(text, "is not understood: write systemd:name=NAME")

    def test_role(self) -> None:
        """A role that there is not is refused with those that there are."""
        for text in (
            "mian=tcp:1",
            "=tcp:1",
            "clear=unix:/s",
            "main,clean=tcp:1",
            "main,=tcp:1",
            "main,clear,clear=tcp:1",
        ):
            self.refused(text, "is no role: write main, public, main,clear or public,clear")

    def test_long_path(self) -> None:
        """A path that no unix socket can have is refused; bytes count, and those of the whole path."""
        longest = "x" * (LONGEST_PATH - len("/here/"))
        self.assertEqual(parse(f"unix:{longest}", at).text, f"unix:{longest}")
        for name in (f"{longest}x", "ä" * 52):
            self.refused(f"unix:{name}", "has 10[8-9]|1[1-9][0-9] bytes.*no more than 107: choose a shorter one")

    def test_no_such_socket(self) -> None:
        """A socket that systemd has not passed is refused."""
        for names in ((), ("main", "public")):
            let_systemd_have_passed(self, *names)
            for text in ("systemd:name=other", "public=systemd:index=2"):
                self.refused(text, rf"systemd has not passed to this server \(it passed {len(names)}\): start it by a")

    def test_twice(self) -> None:
        """The same endpoint twice is a mistake, whatever stands before it."""
        let_systemd_have_passed(self, "main")
        for one, other in [
            ("tcp:80", "public=tcp:port=80"),
            ("unix:/s", "unix:/s"),
            ("systemd:index=0", "systemd:name=main"),
        ]:
            self.refused(other, "is the same as --listen", one)
        self.assertEqual(len(parse_all(["tcp:0", "tcp:0"], at)), 2)

    def test_left_over(self) -> None:
        """A socket that systemd listens on and nobody accepts from would let its clients wait: it has to be named."""
        let_systemd_have_passed(self, "main", "public")
        error = self.assertRaises(Problem, parse_all, ["systemd:name=main"], at)
        self.assertRegex(str(error), "systemd passed 2 sockets, and --listen names 1 of them: name each")
        # Two sockets of one name are told apart by nothing.
        let_systemd_have_passed(self, "main", "main")
        self.assertRaises(Problem, parse_all, ["systemd:name=main"], at)
        self.assertEqual(len(parse_all(["systemd:index=0", "systemd:index=1"], at)), 2)
        self.assertEqual(len(parse_all(["tcp:80"], at)), 1)


class OpeningTests(SynchronousTestCase):
    """Sockets for what was asked for."""

    def setUp(self) -> None:
        self.opened: list[socket.socket] = []
        self.addCleanup(close_sockets, self.opened)

    def open(self, text: str) -> socket.socket:
        (opened,) = open_endpoint(parse(text, Path))
        self.opened.append(opened)
        self.assertFalse(opened.getblocking())
        self.assertFalse(opened.get_inheritable())
        return opened

    def inherit(self, *, listening: socket.socket) -> socket.socket:
        """What becomes of a socket that systemd has passed."""
        self.addCleanup(listening.close)
        descriptor = os.dup(listening.fileno())
        (opened,) = open_endpoint(Listen("systemd:name=x", "main", False, InheritedEndpoint(descriptor)))
        self.opened.append(opened)
        self.assertEqual(opened.fileno(), descriptor)
        self.assertFalse(opened.getblocking())
        return opened

    def refused(self, text: str, pattern: str) -> None:
        error = str(self.assertRaises(CannotListen, open_endpoint, parse(text, Path)))
        self.assertRegex(error, pattern)
        self.assertIn(f"--listen {text!r}: ", error)
        self.assertNotIn("\n", error)

    def test_tcp(self) -> None:
        """A port is listened on at its address alone."""
        opened = self.open("tcp:0:interface=127.0.0.1")
        self.assertEqual(opened.getsockname()[0], "127.0.0.1")
        self.assertEqual(self.open("tcp:0").family, socket.AF_INET)
        port = opened.getsockname()[1]
        self.assertEqual(address_of(opened), f"127.0.0.1:{port}")
        self.refused(f"tcp:{port}:interface=127.0.0.1", f"port {port} of 127.0.0.1 is in use: stop what listens there")
        self.refused("tcp:0:interface=192.0.2.1", "'192.0.2.1' is not an address of this machine")

    def test_backlog(self) -> None:
        """As many can wait as was said."""
        opened = self.open("tcp:0:interface=127.0.0.1:backlog=1")
        waiting = [socket.socket() for _ in range(6)]
        for client in waiting:
            self.addCleanup(client.close)
            client.settimeout(0.2)
        taken = []
        for client in waiting:
            try:
                client.connect(opened.getsockname())
                taken.append(client)
            except TimeoutError:
                break
        self.assertLess(len(taken), 4)

    def test_unix(self) -> None:
        """A unix socket is made; what is in the way is named."""
        path = Path(self.mktemp())
        opened = self.open(f"unix:{path}:mode=600")
        self.assertIsInstance(opened, UnixSocket)
        self.assertEqual(address_of(opened), f"unix:{path}")
        self.assertEqual(path.stat().st_mode & 0o777, 0o600)
        self.refused(f"unix:{path}", f"somebody listens on {path} already: stop them, or choose another path")

    def test_inherited(self) -> None:
        """What systemd listens on is taken as the kind of socket that it is."""
        opened = self.inherit(listening=socket.create_server(("127.0.0.1", 0)))
        self.assertEqual((opened.family, type(opened)), (socket.AF_INET, socket.socket))
        path = self.mktemp()
        theirs = socket.socket(socket.AF_UNIX)
        theirs.bind(path)
        self.addCleanup(os.unlink, path)
        theirs.listen()
        self.assertIsInstance(self.inherit(listening=theirs), UnixSocket)
        self.opened.pop().close()
        self.assertTrue(os.path.exists(path), "it is systemd's, and was removed")

    def test_inherited_nonsense(self) -> None:
        """What nobody can connect to is refused."""
        for kind in (socket.SOCK_DGRAM, socket.SOCK_STREAM):
            quiet = socket.socket(socket.AF_INET, kind)
            error = self.assertRaises(CannotListen, self.inherit, listening=quiet)
            self.assertRegex(str(error), "--listen 'systemd:name=x': .*no socket that waits for connections")
        with open(sys.executable, "rb") as file:
            listen = Listen("systemd:name=x", "main", False, InheritedEndpoint(file.fileno()))
            error = self.assertRaises(CannotListen, open_endpoint, listen)
        self.assertRegex(str(error), "what systemd passed is no socket")
