"""The units for systemd in ``docs/operating/systemd``."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from configparser import ConfigParser
from pathlib import Path

from twisted.trial.unittest import SkipTest, SynchronousTestCase

from artifactserver.cli import ServeOptions
from tests.test_docs import DOCS
from tests.test_endpoints import let_systemd_have_passed

UNITS = DOCS / "operating" / "systemd"

SERVICE = "artifactserver.service"
SOCKETS = ("artifactserver-main.socket", "artifactserver-public.socket")

#: Where the units say that the server is installed.
PROGRAM = "/opt/artifactserver/bin/bst-artifact-server"


def read(name: str) -> ConfigParser:
    unit = ConfigParser(interpolation=None)
    unit.optionxform = str  # type: ignore[assignment]
    unit.read_string((UNITS / name).read_text(encoding="utf-8").replace("\\\n", " "))
    return unit


class UnitTests(SynchronousTestCase):
    """The units are ones that systemd and the server understand."""

    def setUp(self) -> None:
        if not UNITS.is_dir():
            raise SkipTest("there is no docs/ beside tests/: these tests are for the checkout")

    def test_verified(self) -> None:
        """systemd finds nothing wrong with them."""
        analyze = shutil.which("systemd-analyze")
        if analyze is None:
            raise SkipTest("systemd-analyze is not installed: 'apt-get install systemd' brings it")
        place = Path(self.mktemp()).absolute()
        place.mkdir()
        program = place / "bst-artifact-server"
        program.touch(0o755)
        for name in (SERVICE, *SOCKETS):
            text = (UNITS / name).read_text(encoding="utf-8")
            (place / name).write_text(text.replace(PROGRAM, str(program)), encoding="utf-8")
        finished = subprocess.run(
            [analyze, "verify", *(str(place / name) for name in (SERVICE, *SOCKETS))],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        # It may have something to say about the machine's own units.
        ours = [line for line in (finished.stdout + finished.stderr).splitlines() if "artifactserver" in line]
        self.assertEqual((ours, finished.returncode), ([], 0), finished.stderr)

    def test_options(self) -> None:
        """The server understands what it is started with, and the sockets have the names that it asks for."""
        names = [read(socket)["Socket"]["FileDescriptorName"] for socket in SOCKETS]
        let_systemd_have_passed(self, *names)
        program, *arguments = shlex.split(read(SERVICE)["Service"]["ExecStart"])
        self.assertEqual(program, PROGRAM)
        options = ServeOptions()
        options.parseOptions(arguments)
        self.assertEqual([listen.role for listen in options["listen"]], ["main", "public"])
        self.assertEqual([listen.endpoint.descriptor for listen in options["listen"]], [3, 4])
        self.assertIsNone(options["port"])

    def test_bounds(self) -> None:
        """The server is a user of its own, can write to nothing but its repository, and comes back after a crash."""
        service = read(SERVICE)["Service"]
        for key, value in {
            "DynamicUser": "yes",
            "StateDirectory": "artifactserver",
            "ProtectSystem": "strict",
            "NoNewPrivileges": "yes",
            "Restart": "on-failure",
        }.items():
            self.assertEqual(service[key], value)
        self.assertTrue(shlex.split(service["ExecStart"])[-1].startswith("${STATE_DIRECTORY}/"))

    def test_together(self) -> None:
        """Each socket starts the one service, which has all of them whenever it starts."""
        for socket in SOCKETS:
            self.assertEqual(read(socket)["Socket"]["Service"], SERVICE)
            self.assertEqual(len(re.findall("ListenStream=", (UNITS / socket).read_text())), 1)
        self.assertEqual(read(SERVICE)["Unit"]["Requires"].split(), list(SOCKETS))

    def test_shown(self) -> None:
        """All of them are in the page about systemd."""
        page = (DOCS / "operating" / "systemd.rst").read_text(encoding="utf-8")
        for path in UNITS.iterdir():
            self.assertIn(f"literalinclude:: systemd/{path.name}\n", page)
