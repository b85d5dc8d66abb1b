"""Tokens with real clients: grpcio, and curl, which shows them in every way that clients of HTTP know."""

from __future__ import annotations

import shutil
import threading
import time
from pathlib import Path
from typing import Any

import grpc
from twisted.trial.unittest import SkipTest, SynchronousTestCase

from artifactserver.proto import buildstream_pb2
from artifactserver.tokens import token_file
from artifactserver.tokens.authentication import INVALID
from tests.certificates import server_certificate
from tests.processes import Server, environment, run

STATUS = "/buildstream.v2.ReferenceStorage/Status"
OPTIONS = [("grpc.enable_http_proxy", 0), ("grpc.use_local_subchannel_pool", 1)]

#: Seconds that an answer may take.
TIMEOUT = 20.0


class TokenClientTests(SynchronousTestCase):
    """A server with two tokens, over TLS: one to pull, one to push."""

    tls = True

    def setUp(self) -> None:
        self.place = Path(self.mktemp()).absolute()
        self.place.mkdir()
        self.files = server_certificate().write(self.place)
        tokens = self.place / "tokens"
        self.puller = token_file.add(tokens, "alice", push=False)
        self.pusher = token_file.add(tokens, "ci", push=True)
        tls = ("--server-key", str(self.files.key), "--server-cert", str(self.files.certificate)) if self.tls else ()
        self.server = Server(self.place / "repo", "--enable-push", "--private", "--tokens", str(tokens), *tls)
        self.addCleanup(self.server.kill)
        self.server.start()
        self.addCleanup(self.no_secret)

    def no_secret(self) -> None:
        """Nothing of what anybody has shown is in the log."""
        said = self.server.said()
        for secret in (self.puller, self.pusher, "s3cret"):
            self.assertNotIn(secret, said)
        self.assertNotIn("Traceback", said)

    def channel(self, token: str | None = None) -> Any:
        """A connection of grpcio, over TLS with the token as the credentials of its calls."""
        where = f"localhost:{self.server.port}"
        if not self.tls:
            channel = grpc.insecure_channel(where, OPTIONS)
        else:
            credentials = grpc.ssl_channel_credentials(self.files.certificate.read_bytes())
            if token is not None:
                calls = grpc.access_token_call_credentials(token)
                credentials = grpc.composite_channel_credentials(credentials, calls)
            channel = grpc.secure_channel(where, credentials, OPTIONS)
        self.addCleanup(channel.close)
        return channel

    def status(self, channel: Any, *metadata: tuple[str, str]) -> tuple[grpc.StatusCode, str]:
        """What a call comes to: its status, and whether pushing is allowed, or what is said."""
        try:
            answer = channel.unary_unary(STATUS)(b"", timeout=TIMEOUT, metadata=metadata)
        except grpc.RpcError as error:
            return error.code(), error.details() or ""
        may = buildstream_pb2.StatusResponse.FromString(answer).allow_updates
        return grpc.StatusCode.OK, "push" if may else "pull"

    def curl(self, *arguments: str, path: str = "/x") -> tuple[str, str]:
        """The status with which curl ends, and everything that it was answered."""
        program = shutil.which("curl")
        if program is None:
            raise SkipTest("curl is not installed: these tests want the real one")
        home = self.place / "home"
        options = ("-sSi", "--http1.1", "--cacert", str(self.files.certificate), "-w", "\n%{http_code}")
        url = f"{'https' if self.tls else 'http'}://localhost:{self.server.port}{path}"
        command = (program, *options, *arguments, url)
        finished = run(command, cwd=self.place, env=environment(home), timeout=TIMEOUT)
        self.assertEqual(finished.status, 0, finished)
        answer, _, status = finished.output.rpartition("\n")
        return status, answer


class CallTests(TokenClientTests):
    """gRPC."""

    def test_call_credentials(self) -> None:
        """Over TLS a token is the credentials of a call, and each connection gets what its own is for."""
        self.assertEqual(self.status(self.channel(self.puller)), (grpc.StatusCode.OK, "pull"))
        self.assertEqual(self.status(self.channel(self.pusher)), (grpc.StatusCode.OK, "push"))
        code, said = self.status(self.channel())
        self.assertEqual(code, grpc.StatusCode.PERMISSION_DENIED)
        self.assertRegex(said, "^you need a token to pull here")
        self.assertEqual(self.status(self.channel("s3cret")), (grpc.StatusCode.UNAUTHENTICATED, INVALID.reason))

    def test_brute_force(self) -> None:
        """Somebody who guesses from many calls at once is slowed down; a good token of the same address is not."""
        channels = [self.channel() for _ in range(4)]
        answered = []
        end = time.monotonic() + 2

        def guess(channel: Any) -> None:
            while True:
                answer = self.status(channel, ("authorization", "Bearer s3cret"))
                if time.monotonic() >= end:
                    return
                answered.append(answer)

        guessing = [threading.Thread(target=guess, args=(channel,)) for channel in channels for _ in range(8)]
        for thread in guessing:
            thread.start()
        good = self.channel(self.pusher)
        longest = 0.0
        while time.monotonic() < end:
            start = time.monotonic()
            self.assertEqual(self.status(good), (grpc.StatusCode.OK, "push"))
            longest = max(longest, time.monotonic() - start)
            time.sleep(0.05)
        for channel in channels:
            channel.close()
        for thread in guessing:
            thread.join()
        self.assertLess(longest, 1.5)
        self.assertEqual(set(answered), {(grpc.StatusCode.UNAUTHENTICATED, INVALID.reason)})
        # A few of the first had no long wait; all others wait still.
        self.assertTrue(0 < len(answered) < len(guessing), len(answered))
        self.assertEqual(self.server.said().count("token is malformed or unknown"), 1)


class ClearCallTests(TokenClientTests):
    """gRPC in clear text."""

    tls = False

    def test_metadata(self) -> None:
        """Without TLS a token is metadata; calls with different ones share a connection."""
        channel = self.channel()
        for shown, answer in (
            (f"Bearer {self.puller}", (grpc.StatusCode.OK, "pull")),
            (f"bearer {self.pusher}", (grpc.StatusCode.OK, "push")),
            ("Bearer s3cret", (grpc.StatusCode.UNAUTHENTICATED, INVALID.reason)),
            (f"Bearer {self.puller}", (grpc.StatusCode.OK, "pull")),
        ):
            self.assertEqual(self.status(channel, ("authorization", shown)), answer)
        self.assertEqual(self.status(channel)[0], grpc.StatusCode.PERMISSION_DENIED)


class CurlTests(TokenClientTests):
    """HTTP/1.1.  A request that is allowed is answered with 404: there is nothing to find yet."""

    def test_bearer_and_basic(self) -> None:
        """A token is shown as what it is, or as the password of whatever user."""
        (self.place / "upload").write_bytes(bytes(100_000))
        put = ("-T", "upload")
        for arguments in (
            ("-H", f"Authorization: Bearer {self.pusher}"),
            ("--oauth2-bearer", self.pusher),
            ("-u", f"anybody:{self.pusher}"),
            ("-u", f":{self.pusher}"),
        ):
            self.assertEqual(self.curl(*arguments)[0], "404", arguments)
            self.assertEqual(self.curl(*put, *arguments)[0], "404", arguments)

    def test_netrc(self) -> None:
        """A token may stand in .netrc, where scripts need not name it."""
        netrc = self.place / "netrc"
        netrc.write_text(f"machine localhost login token password {self.puller}\n")
        self.assertEqual(self.curl("--netrc-file", str(netrc))[0], "404")
        status, answer = self.curl("--netrc-file", str(netrc), "-X", "PUT", "-d", "x")
        self.assertEqual(status, "403")
        self.assertIn("does not give you the right to push", answer)

    def test_challenge(self) -> None:
        """Who shows nothing is asked for a token, in words and in a way that a program understands."""
        status, answer = self.curl()
        self.assertEqual(status, "401")
        self.assertIn('WWW-Authenticate: Basic realm="artifactserver", charset="UTF-8"', answer)
        self.assertIn("you need a token to pull here: give one that the server knows", answer)
        # Asks without first, and finds out from the challenges how to do better.
        status, answer = self.curl("--anyauth", "-u", f"x:{self.pusher}")
        self.assertEqual((status, answer.count("HTTP/1.1 ")), ("404", 2))

    def test_bad(self) -> None:
        """A token that is not good is refused with the reason, also before an upload has begun."""
        (self.place / "upload").write_bytes(bytes(100_000))
        for arguments in (
            ("-u", "x:s3cret"),
            ("-T", "upload", "--oauth2-bearer", "s3cret", "-H", "Expect: 100-continue"),
        ):
            status, answer = self.curl(*arguments)
            self.assertEqual(status, "401")
            self.assertIn(INVALID.reason, answer)
            self.assertNotIn("100 Continue", answer)
