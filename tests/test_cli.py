"""The commands: ``bst-artifact-server`` and ``artifactserver``."""

from __future__ import annotations

import io
import os
import re
import socket
import subprocess
import sys
import time
from pathlib import Path

from twisted.logger import Logger as _Logger
from twisted.logger import LogLevel, LogPublisher
from twisted.python.failure import Failure
from twisted.python.usage import UsageError
from twisted.trial.unittest import SynchronousTestCase

import artifactserver
from artifactserver.cli import LOG_LEVELS, ServeOptions, administer, log_to
from artifactserver.store.repository import prepare
from tests.processes import Finished, environment, free_port, run
from tests.test_tap import AT_ONCE, IMPORT_PATH, taken_port, wait_until


def program(function: str) -> list[str]:
    """How to run a console script of the package under test, wherever that is."""
    return [sys.executable, "-c", f"import sys; from artifactserver.cli import {function} as run; sys.exit(run())"]


class ServeOptionsTests(SynchronousTestCase):
    """The command line of bst-artifact-server, as it was."""

    def parse(self, *arguments: str) -> ServeOptions:
        options = ServeOptions()
        options.parseOptions(list(arguments))
        return options

    def test_old_command_line(self) -> None:
        """What people have in their unit files means what it meant."""
        options = self.parse(
            *("--port", "11002", "--server-key", "/k", "--server-cert", "/c", "--client-certs", "/a"),
            *("--enable-push", "/srv/artifacts", "--head-room-min", "1000", "--head-room-max", "5000"),
        )
        self.assertEqual((options["port"], options["repo"], options["enable-push"]), (11002, Path("/srv/artifacts"), 1))
        self.assertEqual((options["head-room-min"], options["head-room-max"]), (1000, 5000))
        self.assertEqual(
            (options["server-key"], options["server-cert"], options["client-certs"]),
            (Path("/k"), Path("/c"), Path("/a")),
        )

    def test_defaults(self) -> None:
        """A port and a repository are all that it needs."""
        options = self.parse("-p", "11001", "/srv")
        self.assertEqual((options["enable-push"], options["server-key"], options["log-level"]), (0, None, "warning"))
        self.assertEqual((options["head-room-min"], options["head-room-max"]), (2_000_000_000, 10_000_000_000))

    def test_required(self) -> None:
        """Without a port or a repository it does not guess."""
        self.assertRegex(str(self.assertRaises(UsageError, self.parse, "/srv")), "--port is missing: give")
        self.assertRegex(str(self.assertRaises(UsageError, self.parse, "-p", "1")), "REPO is missing: give")

    def test_log_level(self) -> None:
        """The levels are the three that there were."""
        for level in ("warning", "info", "trace"):
            self.assertEqual(self.parse("-p", "1", "/srv", "--log-level", level)["log-level"], level)
        error = self.assertRaises(UsageError, self.parse, "-p", "1", "/srv", "--log-level", "debug")
        self.assertRegex(str(error), "not one of warning, info, trace")


class LogTests(SynchronousTestCase):
    """What bst-artifact-server writes."""

    def logged(self, level: str) -> str:
        """What is written of a little of everything."""
        stream = io.StringIO()
        publisher = LogPublisher(log_to(stream, LOG_LEVELS[level]))
        for namespace in ("twisted.somewhere", "artifactserver.store.local", "artifactserver.tap"):
            log = _Logger(namespace, observer=publisher)
            for each in (LogLevel.debug, LogLevel.info, LogLevel.warn, LogLevel.error):
                log.emit(each, "{name} of {room}", name=each.name, room=namespace)
        return stream.getvalue()

    def test_levels(self) -> None:
        """Warnings are always written, and what the server says of itself; the rest when it is asked for."""
        self.assertEqual(self.logged("warning").count("\n"), 2 + 2 + 3)
        self.assertEqual(self.logged("info").count("\n"), 2 + 3 + 3)
        self.assertEqual(self.logged("trace").count("\n"), 12)
        self.assertIn("info of artifactserver.tap", self.logged("warning"))

    def test_lines(self) -> None:
        """Each event is a line with its time and level; a traceback is indented."""
        stream = io.StringIO()
        log = _Logger("artifactserver.x", observer=LogPublisher(log_to(stream, LogLevel.warn)))
        log.warn("two\nlines {number}", number=7)
        try:
            raise ValueError("for a test")
        except ValueError:
            log.failure("no good", Failure())
        lines = stream.getvalue().splitlines()
        beginnings = [line for line in lines if not line.startswith("    ")]
        self.assertEqual(len(beginnings), 2, lines)
        self.assertRegex(beginnings[0], r"^\d{4}-\d\d-\d\dT\S+ warn: two$")
        self.assertIn("    lines 7", lines)
        self.assertTrue(lines[-1].strip().startswith(("ValueError: for a test", "builtins.ValueError: for a test")))


class ServeTests(SynchronousTestCase):
    """The process bst-artifact-server."""

    def setUp(self) -> None:
        self.place = Path(self.mktemp()).absolute()
        self.place.mkdir()
        self.env = environment(self.place / "home") | {"PYTHONPATH": IMPORT_PATH}

    def fails(self, *arguments: str) -> Finished:
        finished = run([*program("serve"), *arguments], cwd=self.place, env=self.env, timeout=AT_ONCE)
        self.assertEqual(finished.output.count("\n"), 1, finished)
        self.assertTrue(finished.output.startswith("bst-artifact-server: "), finished)
        return finished

    def test_serve(self) -> None:
        """It stays in the foreground, says where it listens, leaves no file, and ends when told to."""
        port = free_port()
        with (self.place / "said").open("wb") as said:
            process = subprocess.Popen(
                [*program("serve"), "--port", str(port), "--enable-push", "repo"],
                cwd=self.place,
                env=self.env,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=said,
            )
        self.addCleanup(process.wait)
        self.addCleanup(process.kill)
        self.assertTrue(wait_until(lambda: "listening" in (self.place / "said").read_text()))
        socket.create_connection(("127.0.0.1", port), timeout=5).close()
        first = (self.place / "said").read_text().splitlines()[0]
        self.assertRegex(
            first, rf" info: listening on \S+:{port}, serving {self.place}/repo: everybody may pull and push, clear"
        )
        self.assertEqual(sorted(os.listdir(self.place)), ["home", "repo", "said"])
        time.sleep(0.2)
        process.terminate()
        self.assertEqual(process.wait(15), 0)
        self.assertNotIn("Traceback", (self.place / "said").read_text())

    def test_port_in_use(self) -> None:
        """A port in use ends it with status 1."""
        with taken_port() as port:
            self.assertEqual(self.fails("--port", str(port), "repo").status, 1)

    def test_usage(self) -> None:
        """What it does not understand ends it with status 2."""
        self.assertEqual(self.fails("--port", "x", "repo").status, 2)

    def test_help(self) -> None:
        """It tells what each option is for, on standard output."""
        finished = run([*program("serve"), "--help"], cwd=self.place, env=self.env, timeout=AT_ONCE)
        self.assertEqual(finished.status, 0)
        text = re.sub(r"\s+", " ", finished.output)
        self.assertIn("Usage: bst-artifact-server [options] REPO", text)
        options = ServeOptions()
        for parameter in (*options.optParameters, *options.optFlags):
            self.assertIn(f"--{parameter[0]}", text)
            words = parameter[3] if len(parameter) > 3 else parameter[2]
            # Lines are broken at hyphens too.
            self.assertIn(re.sub(r"\s+", "", words), re.sub(r"\s+", "", text))

    def test_version(self) -> None:
        """Both commands tell their version."""
        for name in ("serve", "administer"):
            finished = run([*program(name), "--version"], cwd=self.place, env=self.env, timeout=AT_ONCE)
            self.assertEqual((finished.status, finished.output), (0, f"artifactserver {artifactserver.__version__}\n"))


class Broken(io.StringIO):
    """A standard output that has no room."""

    def write(self, text: str) -> int:
        raise OSError(28, "No space left on device")


class FsckTests(SynchronousTestCase):
    """``artifactserver fsck``."""

    def setUp(self) -> None:
        self.repo = Path(self.mktemp()).absolute()
        prepare(self.repo)
        self.out, self.err = io.StringIO(), io.StringIO()
        self.patch(sys, "stdout", self.out)
        self.patch(sys, "stderr", self.err)

    def test_clean(self) -> None:
        """A sound repository gives one line and status 0, and no progress bar where there is no terminal."""
        self.assertEqual(administer(["fsck", str(self.repo)]), 0)
        self.assertRegex(self.out.getvalue(), r"\A\S+: 0 problems in 0 blobs \(0 bytes\) and 0 records\n\Z")
        self.assertEqual(self.err.getvalue(), "")

    def test_progress(self) -> None:
        """On a terminal there is a progress bar."""
        self.patch(self.err, "isatty", lambda: True)
        self.assertEqual(administer(["fsck", str(self.repo)]), 0)
        self.assertIn("checking", self.err.getvalue())

    def test_problems(self) -> None:
        """A problem is named, and the status is 1."""
        (self.repo / "blobs/ab").mkdir()
        (self.repo / f"blobs/ab/sha256-{'ab' * 32}.{'0' * 16}").write_bytes(b"not in the index")
        self.assertEqual(administer(["fsck", str(self.repo)]), 1)
        self.assertRegex(self.out.getvalue(), r"is not in the index.*\n.*: 1 problem in")

    def test_lost_index(self) -> None:
        """A lost index is told of, with the command that makes it again; and that works."""
        (self.repo / "index/data.mdb").unlink()
        (self.repo / "packs/00000000.pack").touch()
        status = administer(["fsck", str(self.repo)])
        self.assertEqual((status, self.out.getvalue()), (2, ""))
        self.assertIn("--rebuild-index", self.err.getvalue())
        self.assertEqual(administer(["fsck", "--rebuild-index", str(self.repo)]), 0)
        self.assertEqual(administer(["fsck", str(self.repo)]), 0)

    def test_no_repository(self) -> None:
        """What is no repository cannot be checked: status 2."""
        self.assertEqual(administer(["fsck", str(self.repo / "nowhere")]), 2)
        self.assertRegex(
            self.err.getvalue(), r"\Aartifactserver fsck: \S+ is not an artifactserver repository[^\n]*\n\Z"
        )

    def test_not_printed(self) -> None:
        """A report that nobody can read is told of in one sentence, and is not taken for one of problems."""
        self.patch(sys, "stdout", Broken())
        self.assertEqual(administer(["fsck", str(self.repo)]), 2)
        self.assertRegex(
            self.err.getvalue(), r"\Aartifactserver fsck: \S+: 0 problems, but the report could not be pr[^\n]+\n\Z"
        )

    def test_option_after_repo(self) -> None:
        """Options may follow REPO."""
        (self.repo / "index/data.mdb").unlink()
        (self.repo / "packs/00000000.pack").touch()
        self.assertEqual(administer(["fsck", str(self.repo)]), 2)
        self.assertEqual(administer(["fsck", str(self.repo), "--rebuild-index"]), 0)

    def test_usage(self) -> None:
        """What it does not understand gets one sentence and status 2."""
        for arguments in (
            [],
            ["fsck"],
            ["fsck", "a", "b"],
            ["fsck", "--frob"],
            ["fsck", "--repair", "--rebuild-index", "a"],
        ):
            self.err.truncate(0)
            self.err.seek(0)
            self.assertEqual(administer(arguments), 2)
            self.assertRegex(self.err.getvalue(), r"\Aartifactserver: [^\n]+\n\Z")
