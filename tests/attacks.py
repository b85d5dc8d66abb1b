"""A server under attack: what is watched while it lasts, and what has to be as before when it is over."""

from __future__ import annotations

import atexit
import functools
import os
import resource
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
from twisted.trial.unittest import SynchronousTestCase

from artifactserver.proto import bytestream_pb2 as bytestream
from artifactserver.proto import remote_execution_pb2 as reapi
from artifactserver.store.digest import Digest
from tests import http2_peer as wire
from tests import small_server
from tests.certificates import server_certificate
from tests.grpc_cases import METHODS, GrpcClient
from tests.http2_peer import Frame, frame, settings
from tests.processes import Server

#: Anonymous resident memory of the server at every moment, in MiB.  It begins with 40; 15 may be held for clients,
#: which may keep buffers alive that are twice as large; a thousand connections take 15; the rest is what lies free
#: between what is used.
MOST_MEMORY = 100

#: The same, when nothing has happened for a while.
MEMORY_AT_REST = 70

#: Seconds for which another client may have to wait for an answer while an attack lasts.  One core has to do for
#: everything in CI.
PATIENCE = 5.0

#: A blob that the server has: more than fits into the windows and buffers on its way.
BLOB = bytes(range(256)) * 2**16

#: What asks for it.
READ_BLOB = bytestream.ReadRequest(resource_name=f"blobs/{Digest.of(BLOB).hex}/{len(BLOB)}")

HELLO = wire.PREFACE + settings() + frame(wire.SETTINGS, wire.ACK)


class Bystander:
    """A client of the common sort, that calls again and again, and an eye on the server's memory.

    :ivar failures: what went wrong for it.
    :ivar answered: how often it was answered.
    :ivar slowest: the longest time that it waited, in seconds.
    :ivar memory: the most that the server had, in MiB.
    """

    def __init__(self, target: Target) -> None:
        self._server = target.server
        self._client = target.client()
        self._done = threading.Event()
        self.failures: list[str] = []
        self.answered = 0
        self.slowest = 0.0
        self.memory = 0.0
        self._threads = [threading.Thread(target=self._call_again), threading.Thread(target=self._look_again)]

    def start(self) -> None:
        self.call()
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        self._done.set()
        for thread in self._threads:
            thread.join()
        self.call()
        self._client.channel.close()

    def call(self) -> None:
        began = time.monotonic()
        try:
            method = self._client.callable("GetCapabilities")
            method(reapi.GetCapabilitiesRequest(), timeout=PATIENCE)
            self.answered += 1
        except grpc.RpcError as error:
            self.failures.append(f"{error.code()}: {error.details()}")
        self.slowest = max(self.slowest, time.monotonic() - began)

    def _call_again(self) -> None:
        while not self._done.wait(0.02):
            self.call()

    def _look_again(self) -> None:
        while not self._done.wait(0.02):
            self.memory = max(self.memory, memory_of(self._server.pid))


class TlsClient(GrpcClient):
    """grpcio over TLS.

    :param pem: the server's certificate.
    """

    def __init__(self, port: int, pem: bytes) -> None:
        self.channel = grpc.secure_channel(
            f"localhost:{port}",
            grpc.ssl_channel_credentials(pem),
            options=[("grpc.enable_http_proxy", 0), ("grpc.use_local_subchannel_pool", 1)],
        )


@dataclass(frozen=True, slots=True)
class Target:
    """What is attacked.

    :ivar pem: the server's certificate, or `None` for one in clear text.
    """

    server: Server
    pem: bytes | None

    def client(self) -> GrpcClient:
        """A new client of the common sort."""
        return GrpcClient(self.server.port) if self.pem is None else TlsClient(self.server.port, self.pem)


@functools.cache
def the_target(tls: bool = False) -> Target:
    """One server for all tests, with the bounds of `tests.small_server`, until the tests end."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    place = Path(tempfile.mkdtemp(dir=Path.cwd()))
    program = (sys.executable, str(Path(small_server.__file__)))
    options = ["--enable-push", "--head-room-min", "0", "--head-room-max", "0"]
    pem = None
    if tls:
        certificate = server_certificate()
        files = certificate.write(place)
        options += ["--server-key", str(files.key), "--server-cert", str(files.certificate)]
        pem = certificate.pem
    server = Server(place / "repo", *options, program=program)
    atexit.register(server.kill)
    server.start()
    wait_until(lambda: "listening on" in server.said(), "the server does not say that it listens")
    target = Target(server, pem)
    _fill(target.client())
    return target


def _fill(client: GrpcClient) -> None:
    """Give a server something to download; with it, it has opened whatever it opens once."""
    name = f"uploads/u/blobs/{Digest.of(BLOB).hex}/{len(BLOB)}"
    parts = [
        bytestream.WriteRequest(
            resource_name=name,
            write_offset=start,
            data=BLOB[start : start + 2**20],
            finish_write=start + 2**20 == len(BLOB),
        )
        for start in range(0, len(BLOB), 2**20)
    ]
    client.callable("Write")(iter(parts), timeout=30)
    digest = reapi.Digest(hash=Digest.of(b"small").hex, size_bytes=5)
    request = reapi.BatchUpdateBlobsRequest()
    request.requests.add(digest=digest, data=b"small")
    client.callable("BatchUpdateBlobs")(request, timeout=30)
    client.callable("BatchReadBlobs")(reapi.BatchReadBlobsRequest(digests=[digest]), timeout=30)
    client.channel.close()


class AttackTestCase(SynchronousTestCase):
    """A client that attacks a server."""

    tls = False

    def setUp(self) -> None:
        self.target = the_target(self.tls)
        self.server = self.target.server
        self.attackers: list[Attacker] = []

    @contextmanager
    def attack(self, lines: int = 1) -> Iterator[Bystander]:
        """Within the block the server is under attack.

        Meanwhile and afterwards others are served, and memory is bounded.  Afterwards descriptors are as before,
        nothing is left in ``incoming/``, and the log has no more than so many lines about it.
        """
        bystander = Bystander(self.target)
        bystander.start()
        self.addCleanup(bystander._done.set)
        descriptors = self.descriptors()
        said = len(self.server.said().splitlines())
        yield bystander
        wait_until(lambda: bystander.answered > 1 or bool(bystander.failures), "nobody was answered meanwhile")
        while self.attackers:
            self.attackers.pop().close()
        wait_until(lambda: self.descriptors() <= descriptors, f"more than {descriptors} descriptors are open")
        wait_until(lambda: not os.listdir(self.server.repo / "incoming"), "something is left in incoming/")
        wait_until(lambda: memory_of(self.server.pid) < MEMORY_AT_REST, f"it keeps {memory_of(self.server.pid)} MiB")
        bystander.stop()
        self.assertEqual(bystander.failures, [])
        self.assertLess(bystander.memory, MOST_MEMORY)
        new = self.server.said().splitlines()[said:]
        self.assertLessEqual(len(new), lines, "\n".join(new))
        self.assertNotIn("Traceback", "\n".join(new))

    def descriptors(self) -> int:
        return len(os.listdir(f"/proc/{self.server.pid}/fd"))

    def reads(self) -> int:
        """How many files of large blobs the server has open."""
        found = 0
        for name in os.listdir(f"/proc/{self.server.pid}/fd"):
            with suppress(OSError):
                found += "/repo/blobs/" in os.readlink(f"/proc/{self.server.pid}/fd/{name}")
        return found

    def cpu(self) -> float:
        """Seconds of processor time that the server has used so far."""
        fields = Path(f"/proc/{self.server.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def connect(self, hello: bytes = HELLO, source: str = "127.0.0.1", buffer: int | None = None) -> Attacker:
        """A new connection, closed at the end of the attack at the latest.

        :param source: the address that it comes from.
        :param buffer: how much the system takes for an attacker who does not read.
        """
        attacker = Attacker(self.server.port, source, buffer)
        self.attackers.append(attacker)
        self.addCleanup(attacker.close)
        attacker.send(hello)
        return attacker


class Attacker:
    """A connection without manners."""

    def __init__(self, port: int, source: str, buffer: int | None) -> None:
        self.socket = socket.socket()
        self.socket.settimeout(10)
        if buffer is not None:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
        self.socket.bind((source, 0))
        self.socket.connect(("127.0.0.1", port))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def send(self, *data: bytes) -> None:
        """Send all of it, or as much as the server wants to hear."""
        with suppress(OSError):
            self.socket.sendall(b"".join(data))

    def heard(self, enough: Callable[[Frame], bool] = lambda each: False) -> list[Frame]:
        """The whole frames that the server sends, up to one that is enough, or until it has closed."""
        frames: list[Frame] = []
        left = b""
        with suppress(OSError):
            while piece := self.socket.recv(65536):
                left += piece
                end = whole(left)
                new, left = wire.parse(left[:end]), left[end:]
                frames += new
                if any(map(enough, new)):
                    break
        return frames

    def sent_away(self) -> int | None:
        """The code with which the server gives up the connection, once it has closed it; `None` if it gave none."""
        said = [each.code for each in self.heard() if each.kind == wire.GOAWAY]
        return said[-1] if said else None

    def close(self) -> None:
        self.socket.close()


def whole(data: bytes) -> int:
    """How many bytes at the beginning of ``data`` are whole frames."""
    end = 0
    while end + 9 <= len(data) and end + 9 + int.from_bytes(data[end : end + 3], "big") <= len(data):
        end += 9 + int.from_bytes(data[end : end + 3], "big")
    return end


def ends_call(each: Frame) -> bool:
    """Whether a frame is the end of a call."""
    if each.kind == wire.HEADERS:
        return bool(each.flags & wire.END_STREAM)
    return each.kind == wire.RST_STREAM


def head(stream: int, method: str, *more: tuple[str, str], end: bool = False) -> bytes:
    """HEADERS of a call of a method of this server."""
    path = f"/{METHODS[method].containing_service.full_name}/{method}"
    fields = (*wire.REQUEST[:2], (":path", path), *wire.REQUEST[3:], *more)
    return wire.request(stream, end=end, fields=fields)


def call(stream: int, method: str, body: Any, *more: tuple[str, str], end: bool = True) -> bytes:
    """A whole call: ``body`` is a message, or what comes as it is."""
    content = body if isinstance(body, bytes) else wire.message(body.SerializeToString())
    parts = [content[start : start + 2**20] for start in range(0, len(content), 2**20)] or [b""]
    data = [frame(wire.DATA, int(end and part is parts[-1]), stream, part) for part in parts]
    return head(stream, method, *more) + b"".join(data)


def memory_of(pid: int) -> float:
    """Anonymous resident memory of a process, in MiB; 0 if it is gone."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0.0
    return int(status.partition("RssAnon:")[2].split()[0]) / 1024


def wait_until(true: Callable[[], bool], what: str, seconds: float = 10) -> None:
    """:raises AssertionError: if it does not become true in time."""
    end = time.monotonic() + seconds
    while not true():
        if time.monotonic() > end:
            raise AssertionError(what)
        time.sleep(0.02)
