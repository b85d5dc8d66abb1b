"""What goes along with messages: metadata on the way in, statuses with their details on the way out."""

from __future__ import annotations

import base64
from typing import Any
from urllib.parse import unquote

from google.protobuf.wrappers_pb2 import BytesValue
from hpack import Decoder
from twisted.trial.unittest import SynchronousTestCase

from artifactserver.proto import status_pb2
from artifactserver.rpc import answers, http2
from artifactserver.rpc.status import Code, RpcError
from tests import http2_peer as wire
from tests.echo_service import Wire, value
from tests.http2_peer import settings
from tests.test_grpc_requests import GrpcTestCase, fields_for

#: SETTINGS_MAX_HEADER_LIST_SIZE.
LIST_SIZE = 6


def list_size(block: dict[str, str]) -> int:
    """A header list as its receiver counts it (RFC 9113, section 6.5.2)."""
    return sum(len(name) + len(text) + 32 for name, text in block.items())


class MetadataTests(GrpcTestCase):
    """What a client's application sends along."""

    def metadata(self, *more: tuple[str, str]) -> dict[str, str | bytes]:
        """What the handler sees of these headers."""
        self.ask(fields_for("/test.Echo/Unary", "application/grpc", *more), value(b""))
        self.assert_answered(b"")
        return dict(self.wire.echo.calls[-1].metadata)

    def test_binary(self) -> None:
        """Binary values arrive, with padding and without, empty ones and all bytes there are."""
        for content in (b"", b"\0", b"\0\1", b"\0\1\2", bytes(range(256)), b"\xff" * 100):
            padded = base64.b64encode(content).decode()
            for spelling in (padded, padded.rstrip("=")):
                self.assertEqual(self.metadata(("x-bin", spelling)), {"x-bin": content})

    def test_several_binary(self) -> None:
        """Of several values, joined by commas or one by one, padded or not, the last counts."""
        for fields in (
            (("x-bin", "AAE,AAI"),),
            (("x-bin", "AAE=,AAI="),),
            (("x-bin", "AAE= , AAI"),),
            (("x-bin", "AAE"), ("x-bin", "AAI=")),
            (("x-bin", "AAE,eA=="), ("a", "b"), ("x-bin", "eQ,AAI")),
        ):
            self.assertEqual(self.metadata(*fields)["x-bin"], b"\0\2", fields)

    def test_bad_binary(self) -> None:
        """A value that is not base64 fails the call, be it the last one or not, and nothing is called."""
        for bad in ("!", "A", "AAE=AAI", "AA-_", "AAE,!", "!,AAE", "A A", "=", "AAE,="):
            self.ask(fields_for("/test.Echo/Unary", "application/grpc", ("x-bin", bad)), value(b""))
            self.assert_status(Code.INTERNAL)
        self.assertEqual(self.wire.echo.calls, [])

    def test_text(self) -> None:
        """Texts that occur several times are joined by commas, in order, and others are as they came."""
        found = self.metadata(("a", "1"), ("b", "x,  y"), ("a", ""), ("a", "3"), ("x-binary", "AAE"))
        self.assertEqual(found, {"a": "1,,3", "b": "x,  y", "x-binary": "AAE"})

    def test_not_for_handlers(self) -> None:
        """What transports say to each other is not the application's, but for the binary values that tracers use."""
        found = self.metadata(
            ("grpc-accept-encoding", "identity,gzip"),
            ("grpc-encoding", "identity"),
            ("accept-encoding", "identity"),
            ("grpc-future", "x"),
            ("grpc-trace-bin", "AAE"),
            ("user-agent", "grpc-python/1.0"),
        )
        self.assertEqual(found, {"grpc-trace-bin": b"\0\1", "user-agent": "grpc-python/1.0"})


class StatusTests(GrpcTestCase):
    """How a call that fails is answered."""

    def fail_with(self, error: Exception, *settled: bytes, before: int = 0) -> dict[str, str]:
        """The trailers of a call that fails so, after as many messages."""

        class Failing:
            async def Both(self, requests: Any, call: Any) -> Any:
                for _ in range(before):
                    yield BytesValue(value=b"x")
                raise error

        self.wire = Wire(implementation=Failing())
        self.wire.send(*settled)
        self.wire.frames()
        self.number = -1
        self.ask(fields_for("/test.Echo/Both"))
        frames = [each for each in self.wire.frames() if each.kind == wire.HEADERS]
        self.assertEqual(len(frames), 1 + bool(before))
        self.assertEqual(frames[-1].flags, wire.END_HEADERS | wire.END_STREAM)
        decoder = Decoder()
        return [{str(name): str(text) for name, text in decoder.decode(each.payload)} for each in frames][-1]

    def test_trailers_only(self) -> None:
        """A call that fails before its first message is answered by one block of headers that holds everything."""
        block = self.fail_with(RpcError(Code.NOT_FOUND, "not here"))
        self.assertEqual(
            block,
            {
                ":status": "200",
                "content-type": "application/grpc",
                "grpc-status": "5",
                "grpc-message": "not here",
            },
        )

    def test_trailers(self) -> None:
        """One that fails later has only its status in the trailers."""
        block = self.fail_with(RpcError(Code.NOT_FOUND, "not here"), before=2)
        self.assertEqual(block, {"grpc-status": "5", "grpc-message": "not here"})

    def test_no_message(self) -> None:
        """A status may come without a message."""
        self.assertNotIn("grpc-message", self.fail_with(RpcError(Code.ABORTED, "")))

    def test_message(self) -> None:
        """Any text is percent-encoded, so that it is the same at the other end."""
        for text in ("ünïcödé €", "100 %", "%41", "two\nlines\r\n\ttab\0", " spaces ", "\x7f\x80", "🏗", "a" * 4000):
            for before in (0, 1):
                encoded = self.fail_with(RpcError(Code.ABORTED, text), before=before)["grpc-message"]
                self.assertTrue(all(" " <= character <= "~" for character in encoded), encoded)
                self.assertEqual((unquote(encoded), encoded.strip()), (text, encoded))

    def test_details(self) -> None:
        """Details arrive as binary metadata, in base64 without padding."""
        for size in range(20, 24):
            error = RpcError(Code.ABORTED, "why", [BytesValue(value=b"d" * size)])
            encoded = self.fail_with(error)["grpc-status-details-bin"]
            self.assertNotIn("=", encoded)
            status = status_pb2.Status.FromString(base64.b64decode(encoded + "=" * (-len(encoded) % 4)))
            self.assertEqual((status.code, status.message), (int(Code.ABORTED), "why"))
            detail = BytesValue()
            self.assertTrue(status.details[0].Unpack(detail))
            self.assertEqual(detail.value, b"d" * size)

    def test_old_clients(self) -> None:
        """However much there is to say, headers and trailers stay within the 8 KiB that old clients take."""
        for text in ("€" * 500, "€" * 100_000):
            for details in ([], [BytesValue(value=bytes(300))], [BytesValue(value=bytes(100_000))]):
                for code, before in ((Code.ABORTED, 0), (Code.UNIMPLEMENTED, 0), (Code.ABORTED, 1)):
                    block = self.fail_with(RpcError(code, text, details), before=before)
                    self.assertGreater(len(block["grpc-message"]), 4000)
                    self.assertLess(list_size(block), 8192)
                    # Details repeat the message, and are left out when they are large.
                    whole = len(text) == 500 and bool(details) and len(details[0].value) == 300
                    self.assertEqual("grpc-status-details-bin" in block, whole)

    def test_announced_size(self) -> None:
        """A client that announces less gets less: first the details are left out, then the message is cut."""
        error = RpcError(Code.ABORTED, "€ " * 400, [BytesValue(value=bytes(300))])
        for most in (8192, 6000, 5000, 4000, 1000, 300, 250):
            for before in (0, 1):
                block = self.fail_with(error, settings((LIST_SIZE, most)), before=before)
                self.assertLessEqual(list_size(block), most)
                self.assertEqual(block["grpc-status"], "10")
                self.assertTrue(("€ " * 400).startswith(unquote(block["grpc-message"])))
                self.assertGreater(list_size(block), min(most, 4000) - 20)
                self.assertEqual("grpc-status-details-bin" in block, most == 8192, most)

    def test_announced_very_little(self) -> None:
        """However little a client announces, its status arrives; a message for which there is no room does not."""
        for most in (0, 1, 100, 188):
            block = self.fail_with(RpcError(Code.ABORTED, "why"), settings((LIST_SIZE, most)))
            self.assertEqual((block["grpc-status"], block.get("grpc-message")), ("10", None))

    def test_announced_and_refused(self) -> None:
        """The same holds for a call that never reached a handler."""
        self.wire.send(settings((LIST_SIZE, 300)))
        self.wire.frames()
        self.ask(fields_for("/no.Such/" + "x" * 150), value(b""))
        blocks, _ = self.answer()
        self.assertLessEqual(list_size(blocks[0]), 300)
        self.assertEqual(blocks[0]["grpc-status"], str(int(Code.UNIMPLEMENTED)))


class BlockTests(SynchronousTestCase):
    """Header blocks by themselves."""

    def test_counted_as_clients_count(self) -> None:
        """What a block takes of a header list is counted as its receiver will count it."""
        block = Decoder().decode(answers.HEAD)
        fields = [(str(name).encode(), str(text).encode()) for name, text in block]
        self.assertEqual(http2.list_size(fields), list_size({str(name): str(text) for name, text in block}))
