"""``twistd artifactserver``: what it can be told, what it refuses, and how it starts and ends."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import stat
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lmdb
from twisted.internet.address import IPv4Address
from twisted.internet.testing import MemoryReactorClock, StringTransport
from twisted.logger import LogLevel, capturedLogs, formatEvent
from twisted.python.usage import UsageError
from twisted.trial.unittest import SkipTest, SynchronousTestCase

import artifactserver
from artifactserver import preparing, process, tap
from artifactserver.options import Options
from artifactserver.ports import sockets
from artifactserver.ports.sockets import CannotListen, open_sockets
from artifactserver.tokens import token_file
from artifactserver.tokens.known import HEADING
from tests.certificates import certificate, server_certificate
from tests.processes import TWISTD, Finished, Server, environment, free_port, run

#: Where the package under test is, for processes that start elsewhere.
IMPORT_PATH = str(Path(artifactserver.__file__).parents[1])

#: Seconds that a command may take which is expected to fail at once.
AT_ONCE = 30


def parse(*arguments: str) -> Options:
    options = Options()
    options.parseOptions(list(arguments))
    return options


@contextmanager
def taken_port() -> Iterator[int]:
    """A port that somebody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        yield taken.getsockname()[1]


def wait_until(true: Any, seconds: float = 15) -> bool:
    """Whether something becomes true in time."""
    end = time.monotonic() + seconds
    while not true():
        if time.monotonic() > end:
            return False
        time.sleep(0.02)
    return True


def is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"


class OptionsTests(SynchronousTestCase):
    """The command line, before anything is started."""

    def refused(self, pattern: str, *arguments: str) -> None:
        error = self.assertRaises(UsageError, parse, *arguments)
        self.assertRegex(str(error), pattern)
        self.assertNotIn("\n", str(error))

    def test_nothing(self) -> None:
        """Without any option it serves ``artifacts`` in the current directory, to pull from, everywhere."""
        options = parse()
        self.assertEqual(options["repo"], Path.cwd() / "artifacts")
        self.assertEqual((options["port"], options["interface"], options["enable-push"]), (11001, None, 0))
        self.assertEqual((options["head-room-min"], options["head-room-max"]), (2_000_000_000, 10_000_000_000))

    def test_everything(self) -> None:
        """Each option arrives as what it means; relative names start in the current directory."""
        options = parse(
            *("--port", "11002", "--interface", "::1", "--enable-push", "--server-key", "s.key"),
            *(
                "--server-cert",
                "/etc/s.crt",
                "--client-certs",
                "a.crt",
                "--tokens",
                "tokens",
                "--head-room-min",
                "0",
                "--head-room-max",
                "5G",
            ),
            "some/where",
        )
        here = Path.cwd()
        self.assertEqual((options["port"], options["interface"], options["enable-push"]), (11002, "::1", 1))
        self.assertEqual(options["repo"], here / "some/where")
        self.assertEqual(
            (options["server-key"], options["server-cert"], options["client-certs"]),
            (here / "s.key", Path("/etc/s.crt"), here / "a.crt"),
        )
        self.assertEqual((options["tokens"], options.sources), (here / "tokens", {"certificate", "token"}))
        self.assertEqual((options["head-room-min"], options["head-room-max"]), (0, 5_000_000_000))

    def test_options_after_repo(self) -> None:
        """REPO may stand before, between or after the options, and options may be shortened."""
        for arguments in (
            ["-p", "7", "--enable-push", "here"],
            ["here", "-p7", "--enable-push"],
            ["--port=7", "here", "--enable"],
        ):
            options = parse(*arguments)
            self.assertEqual((options["port"], options["repo"].name, options["enable-push"]), (7, "here", 1))
        self.assertEqual(parse("--", "--port")["repo"].name, "--port")

    def test_sizes(self) -> None:
        """Sizes are numbers of bytes, as ever, or shorter."""
        for text, size in {
            "0": 0,
            "9007199254740993": 9007199254740993,
            "2e9": 2_000_000_000,
            "1.5k": 1500,
            "10G": 10_000_000_000,
            "10GB": 10_000_000_000,
            "1 MiB": 2**20,
            "2Ti": 2**41,
        }.items():
            self.assertEqual(parse("--head-room-min", text, "--head-room-max", "99999T")["head-room-min"], size)
        for text in ("", "-1", "x", "1i", "1P", "1e", "nan", "inf", "1_000"):
            self.refused("--head-room-min '.*' is not a size: give", "--head-room-min", text)

    def test_too_large_sizes(self) -> None:
        """A size that no disk has is refused; the largest that can be is taken."""
        largest = 2**63 - 1
        options = parse("--head-room-min", str(largest), "--head-room-max", str(largest))
        self.assertEqual(options["head-room-min"], largest)
        for text in (str(largest + 1), "1e99", "99999999999999999999e99T", "8388608Ti"):
            self.refused(f"--head-room-max '{text}' is more than any disk holds: give at", "--head-room-max", text)

    def test_ports(self) -> None:
        """A port is a number that there is."""
        for port in ("65536", "-1", "x", "", "11002.5", "\u0661\u0662"):
            for option in ("--port", "--public-port"):
                self.refused(f"{option} '.*' is not a port: give", option, port)

    def test_contradictions(self) -> None:
        """Options that make no sense together are refused, with what to do."""
        self.refused("--server-key is given without --server-cert", "--server-key", "k")
        self.refused("--server-cert is given without --server-key", "--server-cert", "c")
        self.refused("--client-certs needs TLS: give --server-key", "--client-certs", "c")
        self.refused(r"min \(9\) is more than --head-room-max \(5\)", "--head-room-min", "9", "--head-room-max", "5")
        self.refused("2 arguments that could be REPO", "one", "two")
        self.refused("--client-certs-optional is given without --client-certs: ", "--client-certs-optional")
        self.refused("--public-interface is given without --public-port: ", "--public-interface", "::1")
        self.refused("--port and --public-port are both 7: give each a port", "--port", "7", "--public-port", "7")
        self.refused("--port and --public-port are both 11001: give each a port", "--public-port", "11001")

    def test_private(self) -> None:
        """A private server has to know somebody, and has no public port."""
        tls = ("--server-key", "k", "--server-cert", "c")
        self.assertEqual(parse("--private", *tls, "--client-certs", "a")["private"], 1)
        self.refused("--private .*: give --client-certs or --tokens as well", "--private")
        self.refused("--private .*: give --client-certs or --tokens as well", "--private", *tls)
        self.assertEqual(parse("--private", "--tokens", "t")["private"], 1)
        self.refused(
            "--private and --public-port contradict each other: leave one",
            *("--private", *tls, "--client-certs", "a", "--public-port", "0"),
        )

    def test_public_port(self) -> None:
        """A public port is there if it is asked for; both may be any port that is free."""
        options = parse()
        self.assertEqual((options["public-port"], options["public-interface"]), (None, None))
        options = parse("--public-port", "11002", "--public-interface", "::1")
        self.assertEqual((options["public-port"], options["public-interface"]), (11002, "::1"))
        self.assertEqual(parse("--port", "0", "--public-port", "0")["public-port"], 0)

    def test_empty(self) -> None:
        """An empty value is a variable that was not set, and no way to switch TLS off."""
        for option in (
            "--server-key",
            "--server-cert",
            "--client-certs",
            "--tokens",
            "--interface",
            "--public-interface",
        ):
            self.refused(f"{option} is empty", option, "")
        self.refused("REPO is empty", "")

    def test_unknown(self) -> None:
        """What is not known is refused, with where to look."""
        self.refused("--frob not recognized: --help", "--frob")
        self.refused("--port requires argument: --help", "--port")

    def test_subcommand(self) -> None:
        """As a subcommand of twistd, it ends with the sentence, not with a page of options."""
        options = Options()
        options.parent = Options()
        error = self.assertRaises(SystemExit, options.parseOptions, ["--port", "x"])
        self.assertRegex(str(error.code), "^artifactserver: --port 'x' is not a port")

    def test_rundir(self) -> None:
        """With twistd's ``--rundir`` relative names start there."""
        somewhere = Path(self.mktemp()).absolute()
        somewhere.mkdir()
        options = Options()
        options.parent = Options()
        options.parent["rundir"] = str(somewhere)
        options.parseOptions([])
        self.assertEqual(options["repo"], somewhere / "artifacts")

    def test_mistyped_rundir(self) -> None:
        """A ``--rundir`` that is not there, or is a file, is refused in a sentence, and not made."""
        place = Path(self.mktemp()).absolute()
        for _ in range(2):
            options = Options()
            options.parent = Options()
            options.parent["rundir"] = str(place)
            error = self.assertRaises(SystemExit, options.parseOptions, ["repo"])
            self.assertEqual(
                error.code, f"artifactserver: --rundir {place} is not a directory: make it, or give another"
            )
            self.assertFalse(place.is_dir())
            place.touch()


class SocketTests(SynchronousTestCase):
    """Where it listens."""

    def opened(self, interface: str | None, port: int = 0) -> list[socket.socket]:
        opened = open_sockets(interface, port)
        self.addCleanup(sockets.close_sockets, opened)
        return opened

    def test_everywhere(self) -> None:
        """Without an interface one port is open for IPv4 and IPv6 alike."""
        port = self.opened(None)[0].getsockname()[1]
        for address in ("127.0.0.1", "::1"):
            try:
                socket.create_connection((address, port), timeout=5).close()
            except OSError as error:
                if address == "::1" and not Path("/proc/net/if_inet6").exists():
                    raise SkipTest("there is no IPv6 here") from error
                raise

    def test_one_address(self) -> None:
        """With an interface it is that one alone."""
        (opened,) = self.opened("127.0.0.1")
        self.assertEqual(opened.getsockname()[0], "127.0.0.1")
        self.assertFalse(opened.getblocking())

    def test_name(self) -> None:
        """A name stands for all its addresses, on one port."""
        opened = self.opened("localhost")
        self.assertEqual(len({listening.getsockname()[1] for listening in opened}), 1)

    def test_in_use(self) -> None:
        """A port that somebody has is refused at once."""
        with taken_port() as port:
            for interface in (None, "127.0.0.1"):
                error = self.assertRaises(CannotListen, open_sockets, interface, port)
                self.assertRegex(str(error), f"port {port}.* is in use: stop what listens there, or choose another")

    def test_public(self) -> None:
        """What is wrong with the public port or its address names the options of that one."""
        with taken_port() as port:
            error = self.assertRaises(CannotListen, open_sockets, None, port, "--public-port")
            self.assertRegex(str(error), f"port {port} is in use: stop what listens there, or choose another --public-")
        error = self.assertRaises(CannotListen, open_sockets, "192.0.2.1", 0, "--public-port")
        self.assertRegex(str(error), "is not an address of this machine: give --public-interface one")

    def test_no_such_interface(self) -> None:
        """Something that is no address of this machine is refused, whatever else it is."""
        for interface in ("eth-none", "192.0.2.1", "2001:db8::1", "a b", "x" * 300):
            error = self.assertRaises(CannotListen, open_sockets, interface, 0)
            self.assertRegex(str(error), "is not an address of this machine: give --interface one")

    def test_privileged(self) -> None:
        """A port that only root may open says so."""

        def may_not(*arguments: object) -> None:
            raise PermissionError(13, "Permission denied")

        self.patch(sockets, "_listen", may_not)
        error = self.assertRaises(CannotListen, open_sockets, None, 80)
        self.assertRegex(str(error), "port 80 needs more rights than this user has: choose a --port of 1024 or above")

    def test_without_ipv6(self) -> None:
        """Where there is no IPv6 it listens on IPv4."""
        listen = sockets._listen

        def only_ipv4(family: int, address: tuple[object, ...]) -> socket.socket:
            if family == socket.AF_INET6:
                raise OSError(97, "Address family not supported by protocol")
            return listen(family, address)

        self.patch(sockets, "_listen", only_ipv4)
        self.assertEqual(self.opened(None)[0].getsockname()[0], "0.0.0.0")


class BuildTests(SynchronousTestCase):
    """What is tried before the daemon is one."""

    def setUp(self) -> None:
        self.place = Path(self.mktemp()).absolute()
        self.place.mkdir()

    def refused(self, pattern: str, *arguments: str) -> None:
        """It is refused in one sentence, and nothing is left listening."""
        error = self.assertRaises(tap.Problem, tap.build, parse(*arguments), MemoryReactorClock(), time.time)
        self.assertRegex(str(error), pattern)
        self.assertNotIn("\n", str(error))

    def test_nothing_is_left(self) -> None:
        """A repository that cannot be used gives the port back."""
        (self.place / "file").touch()
        port = str(free_port())
        self.refused("is no directory", "--port", port, str(self.place / "file/repo"))
        sockets.close_sockets(open_sockets(None, int(port)))

    def test_nothing_is_made(self) -> None:
        """A port in use is found before a repository is made."""
        with taken_port() as port:
            self.refused("is in use", "--port", str(port), str(self.place / "repo"))
        self.assertFalse((self.place / "repo").exists())

    def test_two_ports(self) -> None:
        """With a public port it listens on both, and says where; if one cannot be had, the other is given back."""
        arguments = ("--interface", "127.0.0.1", "--public-interface", "localhost", str(self.place / "repo"))
        service = tap.build(parse("--port", "0", "--public-port", "0", *arguments), MemoryReactorClock(), time.time)
        main, *public = service.addresses()
        self.assertEqual(main.rpartition(":")[0], "127.0.0.1")
        self.assertTrue(public)
        self.assertNotIn(main.rpartition(":")[2], {address.rpartition(":")[2] for address in public})
        self.successResultOf(service.stopService())
        port = free_port()
        with taken_port() as taken:
            self.refused(
                f"port {taken} of localhost is in use.*--public-port",
                *("--port", str(port), "--public-port", str(taken), *arguments),
            )
        sockets.close_sockets(open_sockets(None, port))

    def test_old_server(self) -> None:
        """The repository of an old bst-artifact-server is not touched."""
        for name in ("cas/objects", "refs"):
            (self.place / "old" / name).mkdir(parents=True)
        self.refused("BuildStream's own artifact server", "--port", "0", str(self.place / "old"))
        self.assertEqual(sorted(os.listdir(self.place / "old")), ["cas", "refs"])

    def test_newer_format(self) -> None:
        """A repository of a newer version is not touched."""
        (self.place / "new").mkdir()
        (self.place / "new/format").write_text(f"artifactserver repository, format 99, store {'0' * 32}\n")
        self.refused("format 99.*install a newer artifactserver", "--port", "0", str(self.place / "new"))

    def test_tls_files(self) -> None:
        """Missing keys and those of another certificate are named."""
        one, other = server_certificate().write(self.place), server_certificate().write(self.place)
        repo = str(self.place / "repo")
        missing = str(self.place / "missing.key")
        self.refused("missing.key cannot be read", "--server-key", missing, "--server-cert", str(one.certificate), repo)
        self.refused(
            f"{other.key} does not belong to the first certificate in {one.certificate}",
            *("--server-key", str(other.key), "--server-cert", str(one.certificate), repo),
        )
        self.assertFalse((self.place / "repo").exists())

    def test_token_file(self) -> None:
        """A file of tokens that is missing, or is none, is named, with the line if there is one."""
        path, repo = self.place / "tokens", str(self.place / "repo")
        self.refused("tokens cannot be read .*: give --tokens a file that", "--tokens", str(path), repo)
        self.refused("is no file", "--tokens", str(self.place), repo)
        path.write_text("alice:s3cret\n")
        self.refused(f"line 1 of {path} is not 'artifactserver tokens", "--tokens", str(path), repo)
        path.write_text(f"{HEADING}\n# ours\nalice s3cret\n")
        self.refused(f"line 3 of {path} does not consist of", "--tokens", str(path), repo)
        self.assertFalse((self.place / "repo").exists())

    def test_token_doubts(self) -> None:
        """It is logged when there are no tokens, when they come in clear text, and when who has one cannot connect."""
        path = self.place / "tokens"
        path.touch()
        files = server_certificate().write(self.place)
        tls = ("--server-key", str(files.key), "--server-cert", str(files.certificate))
        certificates = (*tls, "--client-certs", str(files.certificate))
        for added, options, doubts in (
            (False, tls, ["has no tokens yet: add one with 'artifactserver token add'"]),
            (True, ("--public-port", "0"), [r":\d+, .*:\d+ in clear text"]),
            (True, tls, []),
            (True, certificates, ["has a token and no certificate cannot connect .*: give --client-certs-optional"]),
            (True, (*certificates, "--client-certs-optional"), []),
            (True, (*tls, "--listen", "main,clear=tcp:0:interface=localhost"), []),
        ):
            if added and not path.stat().st_size:
                token_file.add(path, "alice", push=True)
            with capturedLogs() as events:
                arguments = ("--port", "0", "--tokens", str(path), *options, str(self.place / "repo"))
                service = tap.build(parse(*arguments), MemoryReactorClock(), time.time)
            self.successResultOf(service.stopService())
            said = [formatEvent(event) for event in events if event["log_level"] is LogLevel.warn]
            self.assertEqual(len(said), len(doubts), said)
            for sentence, pattern in zip(said, doubts, strict=True):
                self.assertRegex(sentence, pattern)

    def test_connections(self) -> None:
        """Of the descriptors half are for connections, on all ports, and of those half for one address; so over TLS."""
        self.patch(process, "descriptors", lambda: 8)
        files = server_certificate().write(self.place)
        tls = ("--server-key", str(files.key), "--server-cert", str(files.certificate))
        for options in ((), tls):
            arguments = ("--port", "0", "--public-port", "0", *options, str(self.place / "repo"))
            service = tap.build(parse(*arguments), MemoryReactorClock(), time.time)
            self.addCleanup(service.stopService)
            main, public = (entrance.factory.buildProtocol for entrance in service.entrances)
            let_in = []
            for build, host in ((main, 1), (public, 1), (main, 1), (public, 1), (public, 2)):
                protocol = build(IPv4Address("TCP", f"10.0.0.{host}", 1))
                let_in.append(protocol is not None)
                if protocol is not None:
                    protocol.makeConnection(StringTransport())
            self.assertEqual(let_in, [True, True, False, False, True])

    def test_renewed_for_the_public_port(self) -> None:
        """What changes in the files of TLS is attended to where the main port is in clear text and another one not."""
        files = server_certificate().write(self.place)
        tls = ("--server-key", str(files.key), "--server-cert", str(files.certificate))
        ports = ("--listen", "main,clear=tcp:0", "--public-port", "0")
        service = tap.build(parse(*ports, *tls, str(self.place / "repo")), MemoryReactorClock(), time.time)
        self.addCleanup(service.stopService)
        renewed = server_certificate(expired=True)
        files.key.write_bytes(renewed.key_pem)
        files.certificate.write_bytes(renewed.pem)
        with capturedLogs() as events:
            for _ in range(5):
                service._watch()
        self.assertEqual([str(event.get("doubt"))[:15] for event in events], ["None", "the certificate"])
        self.assertEqual(self.flushLoggedErrors(), [])

    def test_strangers(self) -> None:
        """Whoever is turned away for their certificate is in the log, but not thousands of them."""
        files = server_certificate().write(self.place)
        tls = ("--server-key", str(files.key), "--server-cert", str(files.certificate))
        ports = ("--port", "0", "--public-port", "0")
        service = tap.build(parse(*ports, *tls, str(self.place / "repo")), MemoryReactorClock(), time.time)
        self.addCleanup(service.stopService)
        self.assertEqual(len(service.entrances), 2)
        for entrance in service.entrances:
            assert entrance.tls is not None
            with capturedLogs() as events:
                for number in range(1000):
                    entrance.tls.complain("{peer} was turned away", peer=number)
            self.assertTrue(1 < len(events) < 50, len(events))

    def test_chroot(self) -> None:
        """With twistd's ``--chroot`` the names would mean two things."""
        options = parse("--port", "0", str(self.place / "repo"))
        options.parent = Options()
        options.parent["chroot"] = "/"
        self.assertRaises(tap.Problem, tap.build, options, MemoryReactorClock(), time.time)

    def test_unreadable_python(self) -> None:
        """When the user of ``--uid`` cannot read some module, the sentence says that, and nobody sees a traceback."""

        def no_module(path: Path) -> None:
            raise ModuleNotFoundError("No module named 'deep.down'")

        self.patch(preparing, "switchUID", lambda uid, gid: None)
        self.patch(preparing, "prepare", no_module)
        options = parse("--port", "0", str(self.place / "repo"))
        options.parent = Options()
        options.parent.update(uid=os.getuid(), gid=os.getgid())
        error = self.assertRaises(tap.Problem, tap.build, options, MemoryReactorClock(), time.time)
        self.assertRegex(str(error), "repo cannot be checked as .* 'deep.down'.: let that user read the installation")

    def test_umask(self) -> None:
        """The repository is made as a daemon makes files: for its user alone."""
        options = parse("--port", "0", str(self.place / "repo"))
        options.parent = Options()
        options.parent.update(nodaemon=False, umask=None)
        before = os.umask(0o022)
        self.addCleanup(os.umask, before)
        service = tap.build(options, MemoryReactorClock(), time.time)
        self.successResultOf(service.stopService())
        self.assertEqual(stat.S_IMODE((self.place / "repo/packs").stat().st_mode), 0o700)
        self.assertEqual(os.umask(0o022), 0o022)


class ProcessTests(SynchronousTestCase):
    """The daemon."""

    def setUp(self) -> None:
        self.place = Path(self.mktemp()).absolute()
        self.place.mkdir()
        self.pid = self.place / "twistd.pid"

    def twistd(self, *arguments: str) -> Finished:
        """Run twistd in the test's folder until it has ended or become a daemon."""
        env = environment(self.place / "home") | {"PYTHONPATH": IMPORT_PATH}
        finished = run([*TWISTD, *arguments], cwd=self.place, env=env, timeout=AT_ONCE)
        if self.pid.exists():
            self.addCleanup(self.end, int(self.pid.read_text()))
        return finished

    def end(self, pid: int) -> None:
        if is_running(pid):
            os.kill(pid, signal.SIGKILL)

    def refused(self, pattern: str, *arguments: str) -> None:
        """In the foreground and as a daemon: a sentence, a status, and nothing else."""
        for way in (["--nodaemon"], []):
            finished = self.twistd(*way, "artifactserver", *arguments)
            self.assertEqual(finished.status, 1, finished)
            self.assertRegex(finished.output, f"\\Aartifactserver: [^\n]*{pattern}[^\n]*\n\\Z")
            self.assertFalse(self.pid.exists())

    def test_daemon(self) -> None:
        """It becomes a daemon that serves at once, has a pid file, and takes it away when it is told to end."""
        port = free_port()
        finished = self.twistd("artifactserver", "--port", str(port), "--enable-push")
        self.assertEqual((finished.status, finished.output), (0, ""), finished)
        socket.create_connection(("127.0.0.1", port), timeout=5).close()
        self.assertTrue((self.place / "artifacts/format").exists())
        pid = int(self.pid.read_text())
        os.kill(pid, signal.SIGTERM)
        self.assertTrue(wait_until(lambda: not is_running(pid)))
        self.assertFalse(self.pid.exists())
        log = (self.place / "twistd.log").read_text()
        promise = "everybody may pull and push, clear text"
        self.assertRegex(log, rf"listening on .*:{port}, serving {self.place}/artifacts: {promise}")
        self.assertNotIn("Traceback", log)

    def test_port_in_use(self) -> None:
        """A port in use stops it while there is still a terminal."""
        with taken_port() as port:
            self.refused(f"port {port} is in use", "--port", str(port))

    def test_foreign_repository(self) -> None:
        """A directory with something else in it stops it."""
        (self.place / "mine").mkdir()
        (self.place / "mine/thesis.tex").touch()
        self.refused("not an artifactserver repository", "--port", "0", "mine")

    def test_bad_options(self) -> None:
        """A mistake in the options stops it, and no page of them hides why."""
        self.refused("--server-key is given without --server-cert", "--server-key", "server.key")

    def test_another_user(self) -> None:
        """With ``--uid`` the repository belongs to that user; one that they cannot write is refused."""
        if os.geteuid() != 0:
            raise SkipTest("only root can become another user")
        packages = Path(lmdb.__file__).parent
        if any(folder.stat().st_mode & 0o005 != 0o005 for folder in (packages, *packages.parents)):
            raise SkipTest("nobody but root can read the packages in this environment")
        nobody = 65534
        self.place = Path(tempfile.mkdtemp())
        self.addCleanup(shutil.rmtree, self.place)
        self.place.chmod(0o755)
        self.pid = self.place / "twistd.pid"
        (self.place / "theirs").mkdir()
        os.chown(self.place / "theirs", nobody, nobody)
        common = ["--uid", str(nobody), "--gid", str(nobody)]
        port = str(free_port())
        (self.place / "ours").mkdir()
        finished = self.twistd(*common, "artifactserver", "--port", port, "ours/repo")
        self.assertEqual(finished.status, 1, finished)
        self.assertRegex(finished.output, r"\Aartifactserver: \S+ours/repo cannot be used as a repository \(Perm.*\n\Z")
        finished = self.twistd(*common, "artifactserver", "--port", port, "theirs/repo")
        self.assertEqual(finished.status, 0, finished)
        self.assertEqual((self.place / "theirs/repo/index/data.mdb").stat().st_uid, nobody)
        socket.create_connection(("127.0.0.1", int(port)), timeout=5).close()

    def test_end_with_clients(self) -> None:
        """Told to end, it is gone within seconds though clients are connected, with status 0."""
        server = Server(self.place / "repo", "--enable-push")
        self.addCleanup(server.kill)
        server.start()
        clients = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(4)]
        for client in clients:
            self.addCleanup(client.close)
        # One that has not said a word, one of HTTP/1.1, one of HTTP/2, one in the middle of something.
        clients[1].sendall(b"GET / HTTP/1.1\r\nHost: here\r\n\r\n")
        clients[2].sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\4\0\0\0\0\0")
        clients[3].sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\4\0\0\0\0\0" + b"\0\0\7")
        self.assertIn(b"404", clients[1].recv(1000))
        began = time.monotonic()
        self.assertEqual(server.stop(), 0, server.said())
        self.assertLess(time.monotonic() - began, 12)
        self.assertNotIn("Traceback", server.said())
        self.assertRegex(server.said(), "stopped")

    def test_interrupt(self) -> None:
        """Ctrl-C ends it as well."""
        # A process inherits that it ignores a signal, and these tests may run behind a shell's "&".
        before = signal.signal(signal.SIGINT, signal.default_int_handler)
        self.addCleanup(signal.signal, signal.SIGINT, before)
        server = Server(self.place / "repo")
        self.addCleanup(server.kill)
        server.start()
        self.assertTrue(wait_until(lambda: "listening on" in server.said()))
        os.kill(server.pid, signal.SIGINT)
        self.assertTrue(wait_until(lambda: not is_running(server.pid)))
        self.assertEqual(server.stop(), 0, server.said())

    def test_tls(self) -> None:
        """With a key it says that it speaks TLS."""
        files = server_certificate().write(self.place)
        client = certificate().write(self.place)
        server = Server(
            self.place / "repo",
            *("--server-key", str(files.key), "--server-cert", str(files.certificate)),
            *("--client-certs", str(client.certificate)),
        )
        self.addCleanup(server.kill)
        server.start()
        self.assertTrue(wait_until(lambda: "those with a client certificate may pull, TLS" in server.said()))
        self.assertEqual(server.stop(), 0, server.said())
