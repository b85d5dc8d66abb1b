"""Who gets in where, and what they are told: whatever a client may show, on every port, by openssl, curl and grpcio.

``test_clients.py`` has the same with BuildStream.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

import grpc
from twisted.trial.unittest import SkipTest, SynchronousTestCase

from tests.certificates import CertificateFiles
from tests.credentials import CREDENTIALS, Credential, May, Ports
from tests.processes import environment
from tests.test_ports import Door

CAPABILITIES = "/build.bazel.remote.execution.v2.Capabilities/GetCapabilities"
UPDATE = "/build.bazel.remote.execution.v2.ContentAddressableStorage/BatchUpdateBlobs"

#: What two requests of HTTP, to read and to write, are answered with, and what that means.
HTTP = {(404, 404): May.PUSH, (404, 403): May.PULL, (): May.NOTHING, (400, 400): May.NOTHING}

#: The same with two calls.
GRPC = {
    (grpc.StatusCode.OK, grpc.StatusCode.OK): May.PUSH,
    (grpc.StatusCode.OK, grpc.StatusCode.PERMISSION_DENIED): May.PULL,
    (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.UNAVAILABLE): May.NOTHING,
}

#: For openssl, both requests on one connection.
REQUESTS = (
    b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"
    b"PUT / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\nConnection: close\r\n\r\nhello"
)


class CredentialTests(SynchronousTestCase):
    """What clients may do with whatever they show, on every port, and what they tell their users."""

    def setUp(self) -> None:
        self.place = Path(self.mktemp()).absolute()
        self.place.mkdir()
        self.ports = Ports(self.place, self.addCleanup)

    def each(self) -> Iterator[tuple[Credential, CertificateFiles | None, str, int]]:
        """Every credential, on every port: what it is, where it was written to, the port's name and number."""
        for credential in CREDENTIALS:
            files = credential.write(self.place)
            for port, number in self.ports.numbers.items():
                yield credential, files, port, number

    def run_client(self, command: Sequence[str], request: bytes = b"") -> str:
        """Run a program to its end, which is no success where it is refused, and give what it said."""
        done = subprocess.run(
            command,
            input=request,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=30,
            env=environment(self.place / "home"),
            check=False,
        )
        return done.stdout.decode("utf-8", "replace")

    def program(self, name: str) -> str:
        found = shutil.which(name)
        if found is None:
            raise SkipTest(f"{name} is not installed: this test wants the real one")
        return found

    def test_openssl(self) -> None:
        """openssl s_client, with TLS 1.2 and 1.3; who is refused is told why."""
        openssl = self.program("openssl")
        for credential, files, port, number in self.each():
            if not credential.tls:
                continue
            command = [openssl, "s_client", "-quiet", "-connect", f"localhost:{number}"]
            if files is not None:
                command += ["-cert", str(files.certificate), "-key", str(files.key)]
            if credential.issuer is not None:
                command += ["-cert_chain", str(credential.issuer.write(self.place).certificate)]
            for version in ("-tls1_2", "-tls1_3") if port == "required" else ("-tls1_3",):
                said = self.run_client([*command, version], REQUESTS)
                answers = tuple(int(status) for status in re.findall(r"HTTP/1\.1 (\d+)", said))
                about = f"{credential.name}, {port}, {version}: {said}"
                self.assertIs(HTTP.get(answers), credential.may(port), about)
                if credential.may(port) is May.NOTHING:
                    self.assertRegex(said, f"alert ({credential.alert})", about)

    def test_curl(self) -> None:
        """curl, with HTTP/1.1; who is refused is told why, and who does without TLS that it is needed."""
        curl = self.program("curl")
        for credential, files, port, number in self.each():
            options = ["-sS", "--http1.1", "--cacert", str(self.ports.server.certificate), "-w", "\n%{http_code}\n"]
            if files is not None:
                options += ["--cert", str(files.certificate), "--key", str(files.key)]
            url = f"{'https' if credential.tls else 'http'}://localhost:{number}/"
            said = self.run_client([curl, *options, url, "--next", *options, "-X", "PUT", "-d", "hello", url])
            # It has 000 for no answer.
            answers = tuple(int(status) for status in re.findall(r"^(\d+)$", said, re.MULTILINE) if int(status))
            about = f"{credential.name}, {port}: {said}"
            self.assertIs(HTTP.get(answers), credential.may(port), about)
            if not credential.tls:
                self.assertIn("https://", said, about)
            elif credential.may(port) is May.NOTHING:
                self.assertRegex(said, f"alert ({credential.alert})", about)

    def test_grpcio(self) -> None:
        """grpcio; and the log says who was turned away, and that somebody does without TLS."""
        for credential, files, port, number in self.each():
            door = Door(number, self.ports.server if credential.tls else None, files)
            try:
                ends = [door.call(path) for path in (CAPABILITIES, UPDATE)]
            finally:
                door.close()
            about = f"{credential.name}, {port}: {ends}"
            self.assertIs(GRPC.get(tuple(code for code, _, _ in ends)), credential.may(port), about)
        said = self.ports.said()
        for credential in CREDENTIALS:
            if credential.shows is not None:
                told = f"fingerprint {credential.shows.fingerprint} "
                self.assertEqual(told in said, credential.required is May.NOTHING, credential.name)
        self.assertEqual(said.count("spoke HTTP in clear text"), len(self.ports.numbers))
