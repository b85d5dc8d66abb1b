"""Servers that are killed while clients upload to them.

A kill cannot lose what the kernel has been given; what a power cut does is the subject of ``test_power_cut``.  The
seed of a run is in every failure; ``ARTIFACTSERVER_TEST_SEED`` runs it again, as far as the timing of processes allows.
"""

from __future__ import annotations

import os
import random
import shutil
import time
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from artifactserver.store import fsck
from tests.processes import Server
from tests.uploaders import Ledger, Uploaders, check_everything

#: How many servers are killed in the long test.
KILLS = 100


class _Unwatched:
    """A `fsck.Progress` that nobody looks at."""

    def begin(self, doing: str, total: int) -> None:
        pass

    def advance(self, count: int) -> None:
        pass


class CrashTests(SynchronousTestCase):
    """Acknowledged means kept, whatever happens to the process that said so."""

    def setUp(self) -> None:
        place = Path(self.mktemp()).absolute()
        place.mkdir(parents=True)
        self.addCleanup(shutil.rmtree, place, ignore_errors=True)
        self.repo = place / "repo"
        self.seed = os.environ.get("ARTIFACTSERVER_TEST_SEED") or str(random.SystemRandom().getrandbits(32))
        self.random = random.Random(self.seed)
        self.ledger = Ledger()
        self.servers: list[Server] = []

    def begin_server(self) -> Server:
        """Start another server on the one repository, in the background."""
        server = Server(self.repo, "--enable-push", "--head-room-min", "0")
        self.addCleanup(server.kill)
        server.begin()
        self.servers.append(server)
        return server

    def start_server(self) -> Server:
        server = self.begin_server()
        server.wait()
        return server

    def upload(self, server: Server, *, tolerant: bool, label: str = "") -> Uploaders:
        uploaders = Uploaders(self.ledger, self.seed, tolerant=tolerant, label=label)
        self.addCleanup(uploaders.stop)
        uploaders.use(server.port)
        return uploaders

    def nothing_is_wrong(self, when: str) -> None:
        wrong = self.ledger.wrong
        self.assertEqual(
            wrong[:10], [], f"seed {self.seed}, {when}: {len(wrong)} faults{self.complaints() if wrong else ''}"
        )

    def complaints(self) -> str:
        """What the servers wrote into their logs about faults of their own."""
        said = (server.said() for server in self.servers)
        return "".join(f"\n{each[each.index('Traceback') :][:3000]}" for each in said if "Traceback" in each)

    def everything_is_kept(self) -> None:
        """A new server has all that was acknowledged, and what else it has is right; so says fsck as well."""
        server = self.start_server()
        check_everything(server.port, self.ledger)
        self.nothing_is_wrong("at the end")
        self.assertEqual(list((self.repo / "incoming").iterdir()), [], f"seed {self.seed}")
        self.assertEqual(server.stop(), 0, server.said())
        report = fsck.check(self.repo, _Unwatched())
        self.assertEqual(report.problems, [], f"seed {self.seed}")

    def test_killed_again_and_again(self) -> None:
        """Servers are killed at random moments under uploads; what was acknowledged is there, and nothing wrong is."""
        serving = self.start_server()
        uploaders = self.upload(serving, tolerant=True)
        kills = 0
        while kills < KILLS:
            # The next one starts while this one serves.  Mostly it takes over; sometimes it does not live to see that,
            # and sometimes both are gone at once, and a third one finds what they left.
            following = self.begin_server()
            if self.random.random() < 0.15:
                time.sleep(self.random.random() * 0.6)
                following.kill()
                kills += 1
                following = self.begin_server()
            following.wait()
            time.sleep(self.random.random() * 0.1)
            serving.kill()
            kills += 1
            if self.random.random() < 0.3:
                following.kill()
                kills += 1
                following = self.start_server()
            serving = following
            uploaders.use(serving.port)
            self.nothing_is_wrong(f"after {kills} kills")
        serving.kill()
        uploaders.stop()
        self.assertGreater(uploaders.calls, KILLS)
        self.everything_is_kept()

    def test_one_of_two_is_killed(self) -> None:
        """Two servers share a repository under load; when one is killed the other goes on, and refuses nothing."""
        steady = self.start_server()
        undisturbed = self.upload(steady, tolerant=False, label="steady-")
        unlucky = self.start_server()
        disturbed = self.upload(unlucky, tolerant=True, label="unlucky-")
        for number in range(8):
            time.sleep(0.3 + self.random.random() * 0.5)
            unlucky.kill()
            before = undisturbed.calls
            unlucky = self.start_server()
            disturbed.use(unlucky.port)
            self.assertGreater(undisturbed.calls, before, f"seed {self.seed}: the other server stood still")
            self.nothing_is_wrong(f"after {number + 1} kills")
        undisturbed.stop()
        disturbed.stop()
        for server in (steady, unlucky):
            check_everything(server.port, self.ledger)
            self.nothing_is_wrong("while both run")
        unlucky.kill()
        self.assertEqual(steady.stop(), 0, steady.said())
        self.everything_is_kept()
