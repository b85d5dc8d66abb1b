"""Keys and certificates that change while a server runs."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from OpenSSL import SSL
from twisted.logger import LogLevel

from artifactserver.tls.bundle import Bundle
from artifactserver.tls.server import ServerTls, identity_of, server_tls
from artifactserver.watched import SETTLED_LOOKS
from tests import test_tls
from tests.certificates import Certificate, certificate, server_certificate
from tests.test_tls import ALICE, BOB, MALLORY, SERVER, Client, Meeting

OTHER_SERVER = server_certificate()


class _Changes(test_tls._Files):
    def setUp(self) -> None:
        super().setUp()
        self.key, self.cert = self.file("server.key", SERVER.key_pem), self.file("server.crt", SERVER.pem)
        self.key.chmod(0o600)
        self.bundle = self.file("authorized.crt", ALICE.pem)
        self.tls = server_tls(self.key, self.cert, self.bundle)
        self.settled = 0
        self.tls.settled = self.count

    def count(self) -> None:
        self.settled += 1

    def look(self, times: int = SETTLED_LOOKS + 1) -> None:
        for _ in range(times):
            for watched in self.tls.watched:
                watched.look()

    def warnings(self) -> list[str]:
        return [str(event.get("wrong", "")) for event in self.events if event["log_level"] is LogLevel.warn]

    def gets_in(self, shows: Certificate | None, tls: ServerTls | None = None, *chain: Certificate) -> bool:
        return Meeting(tls or self.tls, Client(shows, chain)).works


class BundleChangeTests(_Changes):
    """The bundle, when people come and go."""

    def test_append(self) -> None:
        """Who is appended gets in with the next connection, without a look in between."""
        self.assertFalse(self.gets_in(BOB))
        with self.bundle.open("ab") as bundle:
            bundle.write(BOB.pem)
        self.assertTrue(self.gets_in(BOB))
        self.assertTrue(self.gets_in(ALICE))
        self.assertFalse(self.gets_in(MALLORY))

    def test_authority(self) -> None:
        """An authority that is appended vouches at once, and one that is taken out does not any more."""
        root = certificate("root")
        signed = certificate("signed", issuer=root)
        self.assertFalse(self.gets_in(signed))
        self.bundle.write_bytes(root.pem)
        self.assertTrue(self.gets_in(signed))
        self.bundle.write_bytes(ALICE.pem)
        self.assertFalse(self.gets_in(signed))

    def test_remove(self) -> None:
        """Who is taken out gets in no more, and is forgotten on connections that are open, as is whom they signed."""
        root = certificate("root")
        signed, own = certificate("signed", issuer=root), certificate("own", issuer=root)
        self.bundle.write_bytes(ALICE.pem + BOB.pem + root.pem + own.pem)
        open_ones = {
            name: Meeting(self.tls, Client(shows))
            for name, shows in {"alice": ALICE, "bob": BOB, "signed": signed, "own": own}.items()
        }
        self.assertTrue(all(meeting.works for meeting in open_ones.values()))
        self.assertEqual(self.forgotten(open_ones), [])
        self.bundle.write_bytes(ALICE.pem + own.pem)
        self.look()
        self.assertEqual(self.settled, 1)
        self.assertEqual(self.forgotten(open_ones), ["bob", "signed"])
        self.assertFalse(self.gets_in(BOB))
        self.assertFalse(self.gets_in(signed))

    def forgotten(self, meetings: dict[str, Meeting]) -> list[str]:
        return sorted(name for name, each in meetings.items() if self.tls.forgets(each.server.transport))  # type: ignore[arg-type]

    def test_in_mid_handshake(self) -> None:
        """Who is taken out while they shake hands does not get in."""
        connection = self.tls.serverConnectionForTLS

        def then_removed(protocol: Any) -> SSL.Connection:
            made = connection(protocol)
            self.bundle.write_bytes(BOB.pem)
            self.look(1)
            return made

        self.patch(self.tls, "serverConnectionForTLS", then_removed)
        self.assertFalse(self.gets_in(ALICE))

    def test_emptied_for_a_moment(self) -> None:
        """A file that is empty for a moment, as it is while another is copied over it, ends nothing."""
        meeting = Meeting(self.tls, Client(ALICE))
        self.bundle.write_bytes(b"")
        self.look(1)
        self.assertEqual(self.settled, 0)
        self.bundle.write_bytes(ALICE.pem + BOB.pem)
        self.look()
        self.assertEqual(self.settled, 1)
        self.assertEqual(self.forgotten({"alice": meeting}), [])
        self.assertEqual(self.warnings(), [])

    def test_broken(self) -> None:
        """A broken bundle is told of once, with file and line; the old one stays until there is a good one."""
        lines = ALICE.pem.count(b"\n") + 1
        self.bundle.write_bytes(ALICE.pem + BOB.pem[:-40])
        self.look(20)
        self.assertEqual(len(self.warnings()), 1)
        self.assertRegex(self.warnings()[0], rf"^the certificate at line {lines} of \S+authorized\.crt has no end")
        self.assertEqual((self.gets_in(ALICE), self.gets_in(BOB)), (True, False))
        self.bundle.write_bytes(ALICE.pem + BOB.pem)
        self.assertTrue(self.gets_in(BOB))

    def test_same_again(self) -> None:
        """What says the same as before, as it does when it has settled, is not laid out for OpenSSL once more."""
        self.bundle.write_bytes(ALICE.pem + BOB.pem)
        self.assertTrue(self.gets_in(BOB))
        laid_out: list[Bundle] = []
        self.patch(Bundle, "install", lambda bundle, store: laid_out.append(bundle))
        self.look()
        self.bundle.write_bytes(BOB.pem + b"# once more\n" + ALICE.pem)
        self.look()
        self.assertTrue(self.gets_in(BOB))
        self.assertEqual(laid_out, [])
        self.bundle.write_bytes(BOB.pem)
        self.assertTrue(self.gets_in(BOB))
        self.assertEqual(len(laid_out), 1)

    def test_pipe(self) -> None:
        """What takes the bundle's place and would be waited for holds nobody up, and changes nothing."""
        self.bundle.unlink()
        os.mkfifo(self.bundle)
        self.look()
        self.assertTrue(self.gets_in(ALICE))
        (warning,) = self.warnings()
        self.assertIn("authorized.crt is no file: give --client-certs a PEM file", warning)

    def test_everybody(self) -> None:
        """A port for everybody asks nobody for a certificate, whatever becomes of the bundle."""
        public = self.tls.for_everybody()
        self.bundle.write_bytes(b"")
        self.assertTrue(self.gets_in(None, public))
        meeting = Meeting(public, Client(MALLORY))
        self.assertTrue(meeting.works)
        assert meeting.server.transport is not None
        self.assertIsNone(identity_of(meeting.server.transport))
        self.assertFalse(public.forgets(meeting.server.transport))


class KeyPairChangeTests(_Changes):
    """The server's own certificate, when it is renewed."""

    def shown(self, tls: ServerTls | None = None) -> str:
        meeting = Meeting(tls or self.tls, Client(ALICE))
        self.assertTrue(meeting.works)
        shown = meeting.connection.get_peer_certificate(as_cryptography=True)
        assert shown is not None
        return "old" if shown == SERVER.certificate else "new" if shown == OTHER_SERVER.certificate else "?"

    def test_one_after_the_other(self) -> None:
        """Key and certificate may be replaced one after the other, in either order, and nothing is said of it."""
        for first, second in ((self.key, self.cert), (self.cert, self.key)):
            self.key.write_bytes(SERVER.key_pem)
            self.cert.write_bytes(SERVER.pem)
            self.look()
            self.assertEqual(self.shown(), "old")
            for path in (first, second):
                self.assertEqual(self.shown(), "old")
                path.write_bytes(OTHER_SERVER.key_pem if path == self.key else OTHER_SERVER.pem)
                self.look(3)
            self.assertEqual(self.shown(), "new")
        self.assertEqual(self.warnings(), [])

    def test_not_fitting(self) -> None:
        """If they do not fit for longer, that is said once, and the old pair stays."""
        self.key.write_bytes(OTHER_SERVER.key_pem)
        self.look(60)
        (warning,) = self.warnings()
        self.assertRegex(warning, "server.key does not belong to the first certificate in .*server.crt")
        self.assertEqual(self.shown(), "old")

    def test_certbot(self) -> None:
        """Files that are symlinks into an archive, and are turned to the next ones there."""
        for number, each in ((1, SERVER), (2, OTHER_SERVER)):
            self.file(f"privkey{number}.pem", each.key_pem).chmod(0o600)
            self.file(f"fullchain{number}.pem", each.pem)
        names = self.place / "privkey.pem", self.place / "fullchain.pem"
        for name in names:
            name.symlink_to(f"{name.stem}1.pem")
        self.tls = server_tls(*names, self.bundle)
        for name in names:
            os.symlink(f"{name.stem}2.pem", self.place / "new")
            os.rename(self.place / "new", name)
            self.look(1)
        self.assertEqual(self.shown(), "new")

    def test_every_port(self) -> None:
        """All ports show the new one, and a connection that is open goes on."""
        public = self.tls.for_everybody()
        before = Meeting(self.tls, Client(ALICE))
        self.cert.write_bytes(OTHER_SERVER.pem)
        self.key.write_bytes(OTHER_SERVER.key_pem)
        self.assertEqual((self.shown(public), self.shown()), ("new", "new"))
        self.look()
        self.assertEqual(self.settled, 1)
        self.assertFalse(self.tls.forgets(before.server.transport))  # type: ignore[arg-type]

    def test_doubts(self) -> None:
        """A new certificate that has expired is taken, and what is doubtful about the files is said again."""
        old = server_certificate(expired=True)
        self.key.write_bytes(old.key_pem)
        self.cert.write_bytes(old.pem)
        self.key.chmod(0o604)
        self.look()
        self.assertEqual(self.shown(), "?")
        self.assertEqual(self.settled, 1)
        self.events.clear()
        self.tls.say_doubts(time.time())
        self.assertEqual(len(self.events), 2)

    def test_unreadable(self) -> None:
        """A key that cannot be read any more is told of, and the old one stays."""
        os.rename(self.key, Path(f"{self.key}.gone"))
        self.look(15)
        (warning,) = self.warnings()
        self.assertRegex(warning, r"server\.key cannot be read \(No such file")
        self.assertEqual(self.shown(), "old")
