"""Real BuildStream clients against a real server process.

BuildStream 2 is taken from ``ARTIFACTSERVER_TEST_BST2`` (the path of its ``bst``), BuildStream 1 from
``ARTIFACTSERVER_TEST_BST1`` or else from ``/usr/bin/bst``; what is not there is skipped.

A pull that finds nothing ends with status 0 and BuildStream 2 has the files of ``local`` sources in its own cache as
soon as it has loaded a project, so nothing here trusts an exit status or a quiet command: tests compare what is checked
out by a client whose caches were empty, and check that the same client cannot check it out before it has pulled.
"""

from __future__ import annotations

import shutil
import unittest
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from twisted.trial.unittest import SynchronousTestCase

from artifactserver.tokens import token_file
from tests.buildstream import BuildStream1, BuildStream2, Entry, Project, Remote, find_program, snapshot, write_project
from tests.certificates import CertificateFiles, certificate, server_certificate
from tests.credentials import CREDENTIALS, Credential, May, Ports
from tests.processes import Finished, Server, free_port

TOP = "everything.bst"

#: A part of the project that is quickly pushed.
SMALL = "more.bst"

#: What BuildStream says of a remote to which it gets no connection; the words behind it depend on its version.
NO_CONNECTION = (
    "Failed to initialize remote URL: "
    ".*(failed to connect|Connect Failed|Socket closed|UNAVAILABLE|Connection reset|Broken pipe)"
)

if TYPE_CHECKING:
    _TestCase = SynchronousTestCase
else:
    # Trial would run the tests of a base class that is a test case.
    _TestCase = object


@dataclass(frozen=True, slots=True)
class Workshop:
    """What takes a while to make, and no test changes: a project that one user has built, and certificates.

    :ivar bundle: certificates of clients that may connect: `client` and another one.
    """

    place: Path
    project: Project
    server: CertificateFiles
    client: CertificateFiles
    bundle: Path

    @classmethod
    def open(cls, place: Path, generation: int) -> Workshop:
        place.mkdir(parents=True)
        client = certificate().write(place)
        bundle = place / "authorized.crt"
        bundle.write_bytes(certificate().pem + client.certificate.read_bytes())
        project = write_project(place / "project", generation)
        return cls(place, project, server_certificate().write(place), client, bundle)


class _ClientTests(_TestCase):
    """What holds for every generation of BuildStream.  One user has built the project; the tests push and pull."""

    VARIABLE: str
    DEFAULT: str
    GENERATION: int
    Client: type[BuildStream1] | type[BuildStream2]
    NO_PUSH: str
    PUBLIC: str

    #: What is said of a remote that lacks what is asked for.
    ABSENT: str

    #: What is said of a remote when something is pushed there, by what one may do.
    PUSHING: dict[May, str]

    #: What the tests of one class share; made by the first of them.
    workshop: Workshop | None = None

    def setUp(self) -> None:
        program, why = find_program(self.VARIABLE, self.DEFAULT, self.GENERATION)
        if program is None:
            raise unittest.SkipTest(why)
        kind = type(self)
        if kind.workshop is None:
            kind.workshop = Workshop.open(Path(self.mktemp()).absolute(), self.GENERATION)
            built = self.Client(program, kind.workshop.place / "builder", kind.workshop.project.path).build(TOP)
            self.succeeds(built)
        self.program = program
        self.shared = kind.workshop
        self.project = self.shared.project
        self.place = Path(self.mktemp()).absolute()
        self.place.mkdir(parents=True)
        self.addCleanup(shutil.rmtree, self.place, ignore_errors=True)
        self.builder = self.Client(program, self.shared.place / "builder", self.project.path)

    def serve(self, *options: str) -> Server:
        """Start a server on this test's repository."""
        server = Server(self.place / "repo", *options)
        self.addCleanup(server.kill)
        return server.start()

    def serve_tls(self, *options: str) -> Server:
        """Start a server that wants certificates: the workshop's `client` is good."""
        return self.serve(
            "--enable-push",
            *("--server-key", str(self.shared.server.key)),
            *("--server-cert", str(self.shared.server.certificate)),
            *("--client-certs", str(self.shared.bundle)),
            *options,
        )

    def tls_remote(self, server: Server, client: CertificateFiles | None, host: str = "localhost") -> Remote:
        return Remote(f"https://{host}:{server.port}", server=self.shared.server, client=client)

    def new_user(self, name: str = "user") -> BuildStream1 | BuildStream2:
        """Another user, on a machine where nothing is cached."""
        return self.Client(self.program, self.place / name, self.project.path)

    def succeeds(self, finished: Finished) -> Finished:
        self.assertEqual(finished.status, 0, finished)
        return finished

    def says(self, finished: Finished, pattern: str) -> None:
        self.assertRegex(finished.output, pattern, finished)

    def pulls_everything(self, user: BuildStream1 | BuildStream2, remote: Remote) -> None:
        """The user did not have the project's artifacts, pulls them, and has them byte for byte."""
        before = user.checkout(TOP, user.place / "before")
        self.assertNotEqual(before.status, 0, before)
        self.succeeds(user.pull(TOP, remote))
        self.succeeds(user.checkout(TOP, user.place / "checkout"))
        self.same_trees(snapshot(user.place / "checkout"), self.project.expected)

    def same_trees(self, actual: dict[str, Entry], expected: dict[str, Entry]) -> None:
        """Two file trees are the same; where they are not, only the difference is shown."""
        differing = {name for name in actual.keys() | expected.keys() if actual.get(name) != expected.get(name)}
        self.assertEqual({name: (actual.get(name), expected.get(name)) for name in differing}, {})

    def has_nothing(self, user: BuildStream1 | BuildStream2) -> None:
        finished = user.checkout(TOP, user.place / "nothing")
        self.assertNotEqual(finished.status, 0, finished)

    # In clear text

    def test_pull_what_another_pushed(self) -> None:
        """What one user pushes another pulls and checks out, byte for byte."""
        remote = Remote(f"http://localhost:{self.serve('--enable-push').port}")
        pushed = self.succeeds(self.builder.push(TOP, remote))
        self.says(pushed, "Pushed artifact")
        self.pulls_everything(self.new_user(), remote)

    def test_push_again(self) -> None:
        """Pushing what is there says that it is there, and breaks nothing."""
        remote = Remote(f"http://localhost:{self.serve('--enable-push').port}")
        self.succeeds(self.builder.push(TOP, remote))
        again = self.succeeds(self.builder.push(TOP, remote))
        self.says(again, "already has (artifact )?[0-9a-f]{8} cached")
        self.assertNotIn("Pushed artifact", again.output)
        self.pulls_everything(self.new_user(), remote)

    def test_restart(self) -> None:
        """What was pushed is there after the server was stopped, with clients' traces in it, and started again."""
        server = self.serve("--enable-push")
        remote = Remote(f"http://localhost:{server.port}")
        self.succeeds(self.builder.push(TOP, remote))
        self.assertEqual(server.stop(), 0, server.said())
        server.start()
        self.pulls_everything(self.new_user(), remote)

    def test_pull_what_is_not_there(self) -> None:
        """A user who pulls what nobody pushed is told that the server does not have it."""
        remote = Remote(f"http://localhost:{self.serve('--enable-push').port}")
        user = self.new_user()
        pulled = self.succeeds(user.pull(TOP, remote))
        self.says_of(remote, pulled, self.ABSENT)
        self.has_nothing(user)

    def test_push_where_push_is_off(self) -> None:
        """Without ``--enable-push`` nothing is accepted, the user is told why, and pulling works."""
        server = self.serve("--enable-push")
        self.succeeds(self.builder.push("composed.bst", Remote(f"http://localhost:{server.port}")))
        server.stop()
        server.options = ()
        server.start()
        remote = Remote(f"http://localhost:{server.port}")
        refused = self.builder.push(TOP, remote)
        self.assertNotEqual(refused.status, 0, refused)
        self.says(refused, self.NO_PUSH)
        reader = Remote(remote.url, push=False)
        user = self.new_user()
        pulled = self.succeeds(user.pull(TOP, reader))
        self.says_of(remote, pulled, self.ABSENT)
        self.succeeds(user.checkout("composed.bst", user.place / "checkout"))
        self.same_trees(snapshot(user.place / "checkout"), self.project.expected)

    # Over TLS

    def test_tls(self) -> None:
        """Over TLS, with a client certificate that the bundle holds, push and pull work; after a restart as well."""
        server = self.serve_tls()
        remote = self.tls_remote(server, self.shared.client)
        self.succeeds(self.builder.push(TOP, remote))
        self.assertEqual(server.stop(), 0, server.said())
        server.start()
        self.pulls_everything(self.new_user(), self.tls_remote(server, self.shared.client, host="127.0.0.1"))

    def test_two_ports(self) -> None:
        """Who has a certificate pushes to one port; who has none pulls from the other, and cannot push there."""
        port = free_port()
        server = self.serve_tls("--public-port", str(port))
        self.succeeds(self.builder.push(TOP, self.tls_remote(server, self.shared.client)))
        public = Remote(f"https://localhost:{port}", server=self.shared.server)
        self.pulls_everything(self.new_user(), replace(public, push=False))
        refused = self.builder.push(TOP, public)
        self.assertNotEqual(refused.status, 0, refused)
        self.says(refused, self.PUBLIC)

    def test_credentials(self) -> None:
        """Whatever a user shows, on every port, they may do what the table says, and are told what they may not."""
        ports = Ports(self.place, self.addCleanup)
        for credential in CREDENTIALS:
            remotes = self.remotes(ports, credential)
            pushed = self.builder.push(SMALL, *remotes.values())
            for port, remote in remotes.items():
                self.says_of(remote, pushed, self.PUSHING[credential.may(port)])

    def test_no_credentials(self) -> None:
        """Who has no certificate pulls where none is required, and gets no connection where one is."""
        ports = Ports(self.place, self.addCleanup)
        user = self.new_user()
        for credential in CREDENTIALS:
            if credential.shows is None:
                remotes = self.remotes(ports, credential)
                # What nobody has pushed is looked for at every port.
                pulled = user.pull(SMALL, *(replace(remote, push=False) for remote in remotes.values()))
                for port, remote in remotes.items():
                    connects = credential.may(port) is not May.NOTHING
                    self.says_of(remote, pulled, self.ABSENT if connects else NO_CONNECTION)

    def says_of(self, remote: Remote, finished: Finished, pattern: str) -> None:
        self.says(finished, pattern.replace("URL", remote.url))

    def remotes(self, ports: Ports, credential: Credential) -> dict[str, Remote]:
        """What a user configures who shows this."""
        files = credential.write(self.place)
        scheme, server = ("https", ports.server) if credential.tls else ("http", None)
        return {
            port: Remote(f"{scheme}://localhost:{number}", server=server, client=files, patient=False)
            for port, number in ports.numbers.items()
        }


class BuildStream1Tests(_ClientTests, SynchronousTestCase):
    """BuildStream 1.x, with ``bst push``, ``bst pull`` and ``bst checkout``."""

    VARIABLE = "ARTIFACTSERVER_TEST_BST1"
    DEFAULT = "/usr/bin/bst"
    GENERATION = 1
    Client = BuildStream1
    NO_PUSH = PUBLIC = "does not allow push"
    ABSENT = r"Remote \(URL\) does not have [0-9a-f]{8} cached"
    PUSHING = {
        May.NOTHING: NO_CONNECTION,
        May.PULL: "Failed to initialize remote URL: .*does not allow push",
        May.PUSH: r"Pushed artifact [0-9a-f]{8} -> URL|Remote \(URL\) already has [0-9a-f]{8} cached",
    }


class BuildStream2Tests(_ClientTests, SynchronousTestCase):
    """BuildStream 2.x, with ``bst artifact push``, ``pull`` and ``checkout``, and its source caches."""

    VARIABLE = "ARTIFACTSERVER_TEST_BST2"
    DEFAULT = "bst"
    GENERATION = 2
    Client = BuildStream2
    NO_PUSH = "PERMISSION_DENIED.*--enable-push"
    PUBLIC = "PERMISSION_DENIED.*this is the public port.* with a client certificate"
    ABSENT = r"Remote \(URL\) does not have artifact [0-9a-f]{8} cached"
    PUSHING = {
        May.NOTHING: NO_CONNECTION,
        May.PULL: "Failed to initialize remote URL: .*PERMISSION_DENIED.*(you need a client certificate|public port)",
        May.PUSH: r"Pushed artifact [0-9a-f]{8} -> URL|Remote \(URL\) already has artifact [0-9a-f]{8} cached",
    }

    builder: BuildStream2

    def new_user(self, name: str = "user") -> BuildStream2:
        return BuildStream2(self.program, self.place / name, self.project.path)

    def test_sources(self) -> None:
        """What was pushed to the source cache builds elsewhere when the origin is gone; after a restart as well."""
        server = self.serve("--enable-push")
        remote = Remote(f"http://localhost:{server.port}")
        self.says(self.succeeds(self.builder.push_sources(TOP, remote)), "Pushed source")
        hidden = self.project.origin.with_suffix(".away")
        self.project.origin.rename(hidden)
        self.addCleanup(hidden.rename, self.project.origin)
        alone = self.new_user("alone")
        self.assertNotEqual(alone.fetch_sources(TOP).status, 0)

        for name in ("first", "after-restart"):
            user = self.new_user(name)
            fetched = self.succeeds(user.fetch_sources(TOP, Remote(remote.url, push=False)))
            self.says(fetched, "Pulled source")
            self.succeeds(user.build(TOP))
            self.succeeds(user.checkout(TOP, user.place / "checkout"))
            self.same_trees(snapshot(user.place / "checkout"), self.project.expected)
            self.assertEqual(server.stop(), 0, server.said())
            server.start()

    def test_sources_are_not_there(self) -> None:
        """Where nobody pushed the sources, fetching them falls back to their origin."""
        remote = Remote(f"http://localhost:{self.serve('--enable-push').port}")
        user = self.new_user()
        self.says(self.succeeds(user.fetch_sources(TOP, remote)), r"does not have source [0-9a-f]{8} cached")

    def test_instance_names(self) -> None:
        """Instances are apart: what was pushed to one is pulled from that one, and from no other."""
        url = f"http://localhost:{self.serve('--enable-push').port}"
        there = Remote(url, instance="some/instance")
        self.succeeds(self.builder.push(TOP, there))
        for elsewhere in (Remote(url), Remote(url, instance="another")):
            user = self.new_user(f"at-{elsewhere.instance}")
            self.says_of(elsewhere, self.succeeds(user.pull(TOP, elsewhere)), self.ABSENT)
            self.has_nothing(user)
        self.pulls_everything(self.new_user(), there)

    def test_index_and_storage(self) -> None:
        """One server can be named twice, as index and as storage."""
        url = f"http://localhost:{self.serve('--enable-push').port}"
        remotes = [Remote(url, type="index"), Remote(url, type="storage")]
        self.succeeds(self.builder.push(TOP, *remotes))
        user = self.new_user()
        self.succeeds(user.pull(TOP, *remotes))
        self.succeeds(user.checkout(TOP, user.place / "checkout"))
        self.same_trees(snapshot(user.place / "checkout"), self.project.expected)

    def test_tokens(self) -> None:
        """Who has a token to push pushes, who has one to pull pulls, and with a wrong one nobody does either."""
        tokens = self.place / "tokens"
        files = {}
        for name in ("alice", "ci"):
            files[name] = self.place / f"{name}.token"
            # As "artifactserver token add" prints it.
            files[name].write_text(token_file.add(tokens, name, push=name == "ci") + "\n")
        files["mallory"] = self.place / "mallory.token"
        files["mallory"].write_text("s3cret\n")
        tls = ("--server-key", str(self.shared.server.key), "--server-cert", str(self.shared.server.certificate))
        server = self.serve("--enable-push", "--private", "--tokens", str(tokens), *tls)
        remote = Remote(f"https://localhost:{server.port}", server=self.shared.server)

        self.succeeds(self.builder.push(TOP, replace(remote, token=files["ci"])))
        self.pulls_everything(self.new_user(), replace(remote, token=files["alice"], push=False))
        for token, said in (
            (files["alice"], "PERMISSION_DENIED.*what you have shown does not give you the right to push"),
            (files["mallory"], "UNAUTHENTICATED.*malformed, was revoked, or belongs to another server"),
            (None, "PERMISSION_DENIED.*you need a token to (pull|push) here"),
        ):
            refused = self.builder.push(TOP, replace(remote, token=token))
            self.assertNotEqual(refused.status, 0, refused)
            self.says(refused, said)
        self.assertNotIn("s3cret", server.said())

    def test_storage_service(self) -> None:
        """The server can stand behind a user's own cache, and hold the files that are not kept there."""
        remote = Remote(f"http://localhost:{self.serve('--enable-push').port}")
        user = self.new_user()
        self.succeeds(user.build(TOP, storage=remote))
        self.succeeds(user.checkout(TOP, user.place / "checkout", storage=remote))
        self.same_trees(snapshot(user.place / "checkout"), self.project.expected)
