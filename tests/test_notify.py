"""What systemd is told."""

from __future__ import annotations

import os
import shutil
import socket
import tempfile

from twisted.trial.unittest import SynchronousTestCase

from artifactserver.notify import READY, STOPPING, tell


class NotifyTests(SynchronousTestCase):
    """The server's word to systemd."""

    def test_told(self) -> None:
        """It arrives at the socket that systemd has named, be it a path or not."""
        place = tempfile.mkdtemp()
        self.addCleanup(shutil.rmtree, place)
        name = f"artifactserver-test-{os.getpid()}"
        for bound, named in [(f"{place}/notify", f"{place}/notify"), (f"\0{name}", f"@{name}")]:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
                systemd.bind(bound)
                systemd.settimeout(5)
                for state in (READY, STOPPING):
                    tell(state, {"NOTIFY_SOCKET": named})
                self.assertEqual((systemd.recv(100), systemd.recv(100)), (b"READY=1", b"STOPPING=1"))

    def test_nobody(self) -> None:
        """Without systemd, or with one that does not listen, nothing happens."""
        for environ in ({}, {"NOTIFY_SOCKET": ""}, {"NOTIFY_SOCKET": "/nowhere/notify"}, {"NOTIFY_SOCKET": "@nobody"}):
            tell(READY, environ)
