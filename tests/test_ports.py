"""Who may do what on which port: every RPC and HTTP's methods, by nobody, a stranger, and whoever can prove something.

Each test starts one server and asks it everything, with grpcio and with Python's own client of HTTP.
"""

from __future__ import annotations

import http.client
import itertools
import re
import ssl
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import grpc
from twisted.trial.unittest import SynchronousTestCase

from artifactserver.access import METHODS as RIGHTS
from artifactserver.access import Right
from artifactserver.proto import buildstream_pb2, remote_execution_pb2
from artifactserver.tokens import token_file
from artifactserver.tokens.authentication import INVALID
from tests.certificates import Certificate, CertificateFiles, certificate, server_certificate
from tests.grpc_cases import METHODS as SHAPES
from tests.processes import Server, free_port

#: Seconds that an answer may take.
TIMEOUT = 20.0

#: HTTP's methods, with the right that each needs.
HTTP = {"GET": Right.PULL, "HEAD": Right.PULL} | dict.fromkeys(("PUT", "POST", "DELETE", "OPTIONS"), Right.PUSH)

#: Paths of HTTP: none, a blob's, and one of gRPC.
PATHS = ("/", f"/cas/{'0' * 64}", "/buildstream.v2.ReferenceStorage/Status")

NOTHING: tuple[Right, ...] = ()
PULL = (Right.PULL,)
PUSH = (Right.PULL, Right.PUSH)

EXPIRED = certificate(expired=True)
# Not able to sign others, as the documentation has it.
HOLDER = certificate(authority=False)
STRANGER = certificate()
SIGNED_BY_A_CLIENT = certificate("other", issuer=HOLDER, authority=False)


class Door:
    """One port of a server, as one client sees it.

    :param server: the certificate of the server; `None` for clear text.
    :param client: the certificate that the client shows.
    :param token: what it shows besides.
    """

    def __init__(
        self,
        port: int,
        server: CertificateFiles | None = None,
        client: CertificateFiles | None = None,
        token: str | None = None,
    ) -> None:
        self.port = port
        self._shown = {} if token is None else {"authorization": f"Bearer {token}"}
        self._context = None
        where, options = f"localhost:{port}", [("grpc.enable_http_proxy", 0), ("grpc.use_local_subchannel_pool", 1)]
        if server is None:
            self.channel = grpc.insecure_channel(where, options)
            return
        self._context = ssl.create_default_context(cafile=server.certificate)
        shown: tuple[bytes | None, bytes | None] = None, None
        if client is not None:
            self._context.load_cert_chain(client.certificate, client.key)
            shown = client.key.read_bytes(), client.certificate.read_bytes()
        credentials = grpc.ssl_channel_credentials(server.certificate.read_bytes(), *shown)
        self.channel = grpc.secure_channel(where, credentials, options)

    def call(self, path: str, request: bytes = b"") -> tuple[grpc.StatusCode, str, bytes]:
        """How a call ends, with what words, and its last response."""
        shape = SHAPES[path.rpartition("/")[2]]
        kinds = [("unary", "stream")[streams] for streams in (shape.client_streaming, shape.server_streaming)]
        # Without serializers bytes are messages.
        method = getattr(self.channel, "_".join(kinds))(path)
        try:
            message = iter([request]) if shape.client_streaming else request
            answer = method(message, timeout=TIMEOUT, metadata=tuple(self._shown.items()))
            if shape.server_streaming:
                # Of one that never ends, such as Watch, the first is enough.
                stream, answer = answer, next(iter(answer), b"")
                stream.cancel()
        except grpc.RpcError as error:
            return error.code(), error.details() or "", b""
        return grpc.StatusCode.OK, "", answer

    def ask(self, method: str, path: str = "/") -> tuple[int, str]:
        """How an HTTP request is answered."""
        if self._context is None:
            client = http.client.HTTPConnection("localhost", self.port, timeout=TIMEOUT)
        else:
            client = http.client.HTTPSConnection("localhost", self.port, timeout=TIMEOUT, context=self._context)
        try:
            client.request(method, path, b"content" if HTTP[method] is Right.PUSH else None, self._shown)
            response = client.getresponse()
            return response.status, response.read().decode()
        finally:
            client.close()

    def close(self) -> None:
        self.channel.close()


class PortTests(SynchronousTestCase):
    """What is answered to whom on which port."""

    def setUp(self) -> None:
        self.place = Path(self.mktemp()).absolute()
        self.place.mkdir()
        self.files = server_certificate().write(self.place)
        self.bundle = self.place / "authorized.crt"
        self.bundle.write_bytes(HOLDER.pem + EXPIRED.pem)
        self.tokens = self.place / "tokens"

    def serve(self, *options: str, public: bool = False, tls: bool = False, certificates: bool = False) -> Server:
        """Start a server; with `public`, it has a public port as well, `public_port`."""
        more = [*options]
        if public:
            self.public_port = free_port()
            more += ["--public-port", str(self.public_port)]
        if tls or certificates:
            more += ["--server-key", str(self.files.key), "--server-cert", str(self.files.certificate)]
        if certificates:
            more += ["--client-certs", str(self.bundle)]
        server = Server(self.place / "repo", *more)
        self.addCleanup(server.kill)
        return server.start()

    def door(self, port: int, shown: Certificate | None = None, tls: bool = True, token: str | None = None) -> Door:
        """A client of a port."""
        client = None if shown is None else shown.write(self.place)
        door = Door(port, self.files if tls else None, client, token)
        self.addCleanup(door.close)
        return door

    def may(self, door: Door, rights: Sequence[Right], why: str = "", asked: bool = False) -> None:
        """Whoever comes by this door may do what needs these rights, and nothing else.

        :param why: a pattern for what they are told else.
        :param asked: whether they are asked for a token then, in HTTP.
        """
        for path, right in RIGHTS.items():
            code, said, _ = door.call(path)
            if right is Right.NONE or right in rights:
                allowed = {grpc.StatusCode.PERMISSION_DENIED, grpc.StatusCode.UNAUTHENTICATED}
                self.assertNotIn(code, allowed | {grpc.StatusCode.UNAVAILABLE}, f"{path}: {said}")
            else:
                self.assertEqual(code, grpc.StatusCode.PERMISSION_DENIED, f"{path}: {said}")
                self.assertRegex(said, f"^{why}$")
        for path, (method, right) in itertools.product(PATHS, HTTP.items()):
            status, said = door.ask(method, path)
            if right in rights:
                self.assertEqual(status, 404, f"{method} {path}")
            else:
                self.assertEqual(status, 401 if asked else 403, f"{method} {path}")
                self.assertRegex(said, "^$" if method == "HEAD" else f"^{why}\n$")
        self.announces(door, rights)

    def announces(self, door: Door, rights: Sequence[Right]) -> None:
        """What is announced to somebody is what they may do."""
        if Right.PULL in rights:
            _, _, answer = door.call("/build.bazel.remote.execution.v2.Capabilities/GetCapabilities")
            cache = remote_execution_pb2.ServerCapabilities.FromString(answer).cache_capabilities
            self.assertEqual(cache.action_cache_update_capabilities.update_enabled, Right.PUSH in rights)
            _, _, answer = door.call("/buildstream.v2.ReferenceStorage/Status")
            status = buildstream_pb2.StatusResponse.FromString(answer)
            self.assertEqual(status.allow_updates, Right.PUSH in rights)

    def kept_out(self, port: int, strangers: Iterable[Certificate | None]) -> None:
        """These do not get past the handshake, however they speak."""
        for shown in strangers:
            door = self.door(port, shown)
            code, _, _ = door.call("/grpc.health.v1.Health/Check")
            self.assertEqual(code, grpc.StatusCode.UNAVAILABLE)
            # In TLS 1.3 a client believes itself connected until it hears what the server thought of it.
            self.assertRaises((ssl.SSLError, ConnectionError, http.client.HTTPException), door.ask, "GET")

    def test_clear(self) -> None:
        """In clear text, with push enabled: everybody may do everything, but on the public port only pull."""
        server = self.serve("--enable-push", public=True)
        self.may(self.door(server.port, tls=False), PUSH)
        why = "this is the public port, where nobody may push: use the server's main port"
        self.may(self.door(self.public_port, tls=False), PULL, why)

    def test_push_is_off(self) -> None:
        """Without --enable-push nobody may push on any port, certificate or not, and all are told why."""
        server = self.serve("--client-certs-optional", public=True, certificates=True)
        why = "this server does not accept uploads: it was started without --enable-push"
        for shown in (None, HOLDER):
            self.may(self.door(server.port, shown), PULL, why)
        self.may(self.door(self.public_port), PULL, why)

    def test_push_is_off_for_everybody(self) -> None:
        """So it is where nobody is asked for anything, and where nobody gets in without a certificate."""
        why = "this server does not accept uploads: it was started without --enable-push"
        server = self.serve(public=True)
        for port in (server.port, self.public_port):
            self.may(self.door(port, tls=False), PULL, why)
        server.kill()
        server = self.serve(certificates=True)
        self.may(self.door(server.port, HOLDER), PULL, why)
        self.kept_out(server.port, [None, STRANGER, EXPIRED, SIGNED_BY_A_CLIENT])

    def test_two_ports(self) -> None:
        """Those with a certificate push to the main port; everybody else pulls, from the public one."""
        server = self.serve("--enable-push", public=True, certificates=True)
        self.may(self.door(server.port, HOLDER), PUSH)
        self.kept_out(server.port, [None, STRANGER, EXPIRED, SIGNED_BY_A_CLIENT])
        why = "this is the public port, where nobody may push: use the server's main port, with a client certificate"
        for shown in (None, HOLDER, STRANGER):
            self.may(self.door(self.public_port, shown), PULL, why)
        self.assertEqual(server.stop(), 0)
        said = re.findall(r"listening on \S+:(\d+), serving \S+: (.*)", server.said())
        self.assertEqual(
            said,
            [
                (str(server.port), "those with a client certificate may pull and push, TLS"),
                (str(self.public_port), "public port, everybody may pull, TLS"),
            ],
        )

    def test_optional(self) -> None:
        """On one port for all, who has no certificate may pull, who has one may push, and a bad one is refused."""
        server = self.serve("--enable-push", "--client-certs-optional", certificates=True)
        self.may(self.door(server.port, HOLDER), PUSH)
        why = "you need a client certificate to push here: set client-cert and client-key to one that the server knows"
        self.may(self.door(server.port), PULL, why)
        self.kept_out(server.port, [STRANGER, EXPIRED, SIGNED_BY_A_CLIENT])

    def test_private(self) -> None:
        """On a private port who has no certificate may do nothing but ask whether the server is up."""
        server = self.serve("--enable-push", "--client-certs-optional", "--private", certificates=True)
        self.may(self.door(server.port, HOLDER), PUSH)
        why = "you need a client certificate to (pull|push) here: set client-cert and client-key to one that .* knows"
        self.may(self.door(server.port), NOTHING, why)
        self.kept_out(server.port, [STRANGER])

    def refused(self, door: Door) -> None:
        """Whoever comes by this door may do nothing at all, and is told what is wrong with what they have shown."""
        # Each time the answer waits longer, so this is not for everything.
        code, said, _ = door.call("/grpc.health.v1.Health/Check")
        self.assertEqual((code, said), (grpc.StatusCode.UNAUTHENTICATED, INVALID.reason))
        self.assertEqual(door.ask("GET"), (401, f"{INVALID.reason}\n"))

    def test_tokens(self) -> None:
        """Everybody pulls; who has a token to push pushes, but not to the public port; a bad one is refused on both."""
        puller, pusher = (token_file.add(self.tokens, name, push=name == "ci") for name in ("alice", "ci"))
        server = self.serve("--enable-push", "--tokens", str(self.tokens), public=True, tls=True)
        why = "you need a token to push here: give one that the server knows"
        self.may(self.door(server.port), PULL, why, asked=True)
        why = "what you have shown does not give you the right to push: ask for more where you got it"
        self.may(self.door(server.port, token=puller), PULL, why)
        self.may(self.door(server.port, token=pusher), PUSH)
        why = "this is the public port, where nobody may push: use the server's main port, with a token"
        for token in (None, puller, pusher):
            self.may(self.door(self.public_port, token=token), PULL, why)
        for port in (server.port, self.public_port):
            self.refused(self.door(port, token=f"{pusher}x"))
        self.assertEqual(server.stop(), 0)
        self.assertIn("everybody may pull, those with a token may push, TLS", server.said())
        for secret in (puller, pusher):
            self.assertNotIn(secret, server.said())

    def test_private_tokens(self) -> None:
        """On a private port a token to pull pulls, one to push pushes, and nobody else may do anything."""
        puller, pusher = (token_file.add(self.tokens, name, push=name == "ci") for name in ("alice", "ci"))
        server = self.serve("--enable-push", "--private", "--tokens", str(self.tokens))
        why = "you need a token to (pull|push) here: give one that the server knows"
        self.may(self.door(server.port, tls=False), NOTHING, why, asked=True)
        why = "what you have shown does not give you the right to push: .*"
        self.may(self.door(server.port, tls=False, token=puller), PULL, why)
        self.may(self.door(server.port, tls=False, token=pusher), PUSH)
        self.refused(self.door(server.port, tls=False, token="guess"))
        self.assertIn("in clear text, for everybody on the way to read", server.said())

    def test_push_is_off_for_tokens(self) -> None:
        """Without --enable-push no token lets push, on no port, and nobody is asked for one in order to."""
        puller, pusher = (token_file.add(self.tokens, name, push=name == "ci") for name in ("alice", "ci"))
        server = self.serve("--tokens", str(self.tokens), public=True, tls=True)
        why = "this server does not accept uploads: it was started without --enable-push"
        for port in (server.port, self.public_port):
            for token in (None, puller, pusher):
                self.may(self.door(port, token=token), PULL, why)
            self.refused(self.door(port, token=f"{pusher}x"))

    def test_push_is_off_in_private(self) -> None:
        """On a private port without --enable-push, who can show something pulls, and nobody else does even that."""
        token = token_file.add(self.tokens, "ci", push=True)
        options = ("--private", "--client-certs-optional", "--tokens", str(self.tokens))
        server = self.serve(*options, certificates=True)
        for shown, secret in ((HOLDER, None), (None, token), (HOLDER, token)):
            self.may(self.door(server.port, shown, token=secret), PULL, "this server does not accept uploads: .*")
        door = self.door(server.port)
        why = "you need a client certificate or a token to pull here: give one that the server knows"
        for path, right in RIGHTS.items():
            code, said, _ = door.call(path)
            self.assertEqual(code is grpc.StatusCode.PERMISSION_DENIED, right is not Right.NONE, f"{path}: {said}")
        self.assertEqual(door.ask("GET"), (401, f"{why}\n"))
        self.assertEqual(door.ask("PUT")[0], 403)
        self.kept_out(server.port, [STRANGER])

    def test_tokens_and_certificates(self) -> None:
        """Rights add up, one or the other is enough, and with a bad token nobody gets in, certificate or not."""
        puller, pusher = (token_file.add(self.tokens, name, push=name == "ci") for name in ("alice", "ci"))
        server = self.serve("--enable-push", "--client-certs-optional", "--tokens", str(self.tokens), certificates=True)
        why = "you need a client certificate or a token to push here: give one that the server knows"
        self.may(self.door(server.port), PULL, why, asked=True)
        self.may(self.door(server.port, HOLDER), PUSH)
        self.may(self.door(server.port, HOLDER, token=puller), PUSH)
        self.may(self.door(server.port, token=pusher), PUSH)
        self.refused(self.door(server.port, HOLDER, token="guess"))

    def test_one_store(self) -> None:
        """What comes in by the main port is there on the public one at once."""
        server = self.serve("--enable-push", public=True, tls=True)
        reapi: Any = remote_execution_pb2
        digest = reapi.Digest(hash="2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824", size_bytes=5)
        update = reapi.BatchUpdateBlobsRequest(requests=[{"digest": digest, "data": b"hello"}])
        storage = "/build.bazel.remote.execution.v2.ContentAddressableStorage/"
        code, said, _ = self.door(server.port).call(f"{storage}BatchUpdateBlobs", update.SerializeToString())
        self.assertEqual(code, grpc.StatusCode.OK, said)
        wanted = reapi.BatchReadBlobsRequest(digests=[digest])
        _, _, answer = self.door(self.public_port).call(f"{storage}BatchReadBlobs", wanted.SerializeToString())
        self.assertEqual(reapi.BatchReadBlobsResponse.FromString(answer).responses[0].data, b"hello")
