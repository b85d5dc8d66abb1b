"""Messages of gRPC calls: how large they may be, and how they may be compressed, with frames by hand."""

from __future__ import annotations

import gzip
import zlib

from artifactserver.rpc.http2 import Limits
from artifactserver.rpc.status import Code
from tests import http2_peer as wire
from tests.echo_service import BytesValue, Wire, value
from tests.http2_peer import frame, message, window_update
from tests.test_grpc_requests import GrpcTestCase, fields_for

#: A message's tag and length of its only field, for contents of 2 to 256 MiB.
ENVELOPE = 5


def serialized(content: bytes) -> bytes:
    return BytesValue(value=content).SerializeToString()


class SizeTests(GrpcTestCase):
    """How large a message may be."""

    def send(self, method: str, content: bytes, *more: tuple[str, str], flag: int = 0) -> None:
        """A request with one message, in frames of a MiB."""
        self.number += 2
        whole = message(content, flag)
        self.wire.send(wire.request(self.number, fields=fields_for(f"/test.Echo/{method}", "application/grpc", *more)))
        for start in range(0, len(whole), 2**20):
            end = start + 2**20 >= len(whole)
            if self.number in self.wire.protocol.engine.streams:
                self.wire.send(frame(wire.DATA, int(end), self.number, whole[start : start + 2**20]))
        self.wire.clock.advance(0)

    def test_payload_and_envelope(self) -> None:
        """A payload of 4 MiB is taken, with all the names and digests that come with it, up to 5 MiB in all."""
        self.wire.echo.unary = lambda sent: b"%d" % len(sent)
        most = Limits().message_bytes
        self.assertEqual(most, 5 * 2**20)
        for size in (4 * 2**20, most - ENVELOPE):
            self.send("Unary", serialized(bytes(size)))
            self.assert_answered(b"%d" % size)
            self.send("Up", serialized(bytes(size)))
            self.wire.send(window_update(0, 1))
            self.assert_answered(b"%d" % size)

    def test_one_byte_more(self) -> None:
        """One byte more is refused, compressed or not, in a call of any shape, and the connection goes on."""
        size = Limits().message_bytes - ENVELOPE + 1
        content = serialized(bytes(size))
        for method in ("Unary", "Down", "Up", "Both"):
            self.send(method, content)
            self.assertIn(f"{len(content)} bytes", self.assert_status(Code.RESOURCE_EXHAUSTED))
            self.send(method, gzip.compress(content, 1), ("grpc-encoding", "gzip"), flag=1)
            self.assertIn("decompression", self.assert_status(Code.RESOURCE_EXHAUSTED))
        self.ask(fields_for(), value(b"x"))
        self.assert_answered(b"x")
        self.assertEqual((self.wire.protocol.held, self.wire.factory.ledger.held), (0, 0))

    def test_by_its_length_alone(self) -> None:
        """A message that is too large is refused before it has come, and nothing is kept of what still comes."""
        for length in (Limits().message_bytes + 1, 2**32 - 1):
            number = self.ask(fields_for(), b"\0" + length.to_bytes(4, "big"), end=False)
            self.assert_status(Code.RESOURCE_EXHAUSTED)
            self.wire.send(*[frame(wire.DATA, 0, number, bytes(10_000))] * 10)
            self.assertEqual(self.wire.protocol.held, 0)

    def test_answers(self) -> None:
        """What is answered may be larger: the bound is on what comes in."""
        self.wire = Wire(Limits(message_bytes=1000))
        self.wire.echo.unary = lambda _: bytes(5000)
        self.ask(fields_for(), value(b""))
        self.assert_answered(bytes(5000))


class CompressionTests(GrpcTestCase):
    """``grpc-encoding``, and the flag before each message."""

    def call(self, encoding: str | None, *bodies: bytes, method: str = "Unary") -> None:
        more = [] if encoding is None else [("grpc-encoding", encoding)]
        self.ask(fields_for(f"/test.Echo/{method}", "application/grpc", *more), *bodies)

    def test_gzip(self) -> None:
        """With gzip, a message may be compressed or not, each as it says."""
        self.call("gzip", message(gzip.compress(serialized(b"x")), 1))
        self.assert_answered(b"x")
        self.call("gzip", value(b"x"))
        self.assert_answered(b"x")
        mixed = (message(gzip.compress(serialized(b"a" * 1000)), 1), value(b"b"), message(gzip.compress(b""), 1))
        self.call("gzip", *mixed, method="Up")
        self.assert_answered(b"1001")

    def test_identity(self) -> None:
        """With identity, or nothing said, a message is as it is."""
        for encoding in ("identity", None):
            self.call(encoding, value(b"x"))
            self.assert_answered(b"x")

    def test_flag_without_encoding(self) -> None:
        """A message that says it is compressed, where nothing was said of how, is refused; so is an unknown flag."""
        packed = gzip.compress(serialized(b"x"))
        for method in ("Unary", "Up"):
            for encoding in ("identity", None):
                self.call(encoding, message(packed, 1), method=method)
                self.assert_status(Code.INTERNAL)
            for flag in (2, 3, 128, 255):
                self.call("gzip", message(packed, flag), method=method)
                self.assert_status(Code.INTERNAL)

    def test_unknown(self) -> None:
        """A way to compress that is not known is refused before any message, and the client told what is known."""
        for encoding in ("snappy", "deflate", "br", "GZIP", "gzip, gzip", ""):
            self.call(encoding, value(b"x"), method="Up")
            blocks, _ = self.answer()
            self.assertEqual(blocks[0]["grpc-status"], str(int(Code.UNIMPLEMENTED)), encoding)
            self.assertEqual(blocks[0]["grpc-accept-encoding"], "identity,gzip")
        self.assertEqual(self.wire.echo.calls, [])

    def test_answers_are_not_compressed(self) -> None:
        """Whatever a client takes, it is answered without compression."""
        self.ask(fields_for("/test.Echo/Unary", "application/grpc", ("grpc-accept-encoding", "gzip")), value(b"x"))
        blocks, data = self.answer()
        self.assertEqual(data, value(b"x"))
        self.assertEqual(blocks[0].get("grpc-encoding", "identity"), "identity")

    def test_broken(self) -> None:
        """What is not one whole gzip stream is refused as the client's fault, and the log has nothing of it."""
        packed = gzip.compress(serialized(b"x" * 100))
        for bad in (b"", b"x", packed[:-1], packed + packed, packed + b"\0", zlib.compress(b"x"), packed[:10]):
            for method in ("Unary", "Up"):
                self.call("gzip", message(bad, 1), method=method)
                self.assert_status(Code.INTERNAL)

    def test_bombs(self) -> None:
        """What grows beyond the bound is refused, however small it came, in a call of any shape."""
        bomb = message(gzip.compress(bytes(50 * 2**20)), 1)
        self.assertLess(len(bomb), 100_000)
        for method in ("Unary", "Down", "Up", "Both"):
            self.call("gzip", bomb, method=method)
            self.assert_status(Code.RESOURCE_EXHAUSTED)
        self.call("gzip", value(b"fine"), bomb, bomb, method="Both")
        blocks, data = self.answer()
        self.assertEqual((data, blocks[-1]["grpc-status"]), (value(b"fine"), str(int(Code.RESOURCE_EXHAUSTED))))
        self.assertEqual((self.wire.protocol.held, self.wire.factory.ledger.held), (0, 0))
