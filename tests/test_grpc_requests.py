"""What a gRPC request may look like, and what comes of all else (gRPC's PROTOCOL-HTTP2.md), with frames by hand."""

from __future__ import annotations

from typing import Any

from hpack import Decoder
from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase

from artifactserver.rpc.http2 import ErrorCode, Limits
from artifactserver.rpc.status import Code
from tests import http2_peer as wire
from tests.echo_service import BytesValue, Wire, value
from tests.http2_peer import frame

Fields = tuple[tuple[str, str], ...]


def fields_for(method: str = "/test.Echo/Unary", content_type: str | None = "application/grpc", *more: Any) -> Fields:
    """The headers of a request, with ``more`` behind them."""
    fields = [*wire.REQUEST[:2], (":path", method), (":authority", "localhost"), ("te", "trailers")]
    if content_type is not None:
        fields.append(("content-type", content_type))
    return (*fields, *more)


class GrpcTestCase(SynchronousTestCase):
    """A connection, and what was answered on it."""

    def setUp(self) -> None:
        self.wire = Wire()
        self.decoder = Decoder()
        self.number = -1

    def ask(self, fields: Fields, *bodies: bytes, end: bool = True) -> int:
        """Send a request; the number of its stream."""
        self.number += 2
        body = b"".join(bodies)
        self.wire.send(wire.request(self.number, fields=fields), frame(wire.DATA, int(end), self.number, body))
        # A message that has to be decompressed may wait for the next turn of the reactor.
        self.wire.clock.pump([0] * 5)
        return self.number

    def answer(self) -> tuple[list[dict[str, str]], bytes]:
        """The headers and trailers that came back, and the data between them."""
        blocks = []
        content = b""
        for each in self.wire.frames():
            if each.kind == wire.HEADERS:
                blocks.append({str(name): str(text) for name, text in self.decoder.decode(each.payload)})
            elif each.kind == wire.DATA:
                content += each.payload
        return blocks, content

    def assert_answered(self, content: bytes) -> None:
        """The call went well, and this is the answer."""
        blocks, data = self.answer()
        self.assertEqual(data, value(content))
        self.assertEqual((blocks[0][":status"], blocks[1]["grpc-status"]), ("200", "0"))

    def assert_status(self, code: Code) -> str:
        """The call failed so, with nothing but headers that end it; the message."""
        frames = self.wire.frames()
        kinds = [each.kind for each in frames if each.kind != wire.RST_STREAM]
        self.assertEqual((kinds, frames[0].flags), ([wire.HEADERS], wire.END_HEADERS | wire.END_STREAM))
        block = {str(name): str(text) for name, text in self.decoder.decode(frames[0].payload)}
        self.assertEqual((block[":status"], block["content-type"]), ("200", "application/grpc"))
        self.assertEqual(block["grpc-status"], str(int(code)), block)
        return block.get("grpc-message", "")

    def assert_http(self, status: str) -> None:
        """The answer is this HTTP status and no more."""
        blocks, data = self.answer()
        self.assertEqual((len(blocks), blocks[0][":status"], data), (1, status, b""))
        self.assertNotIn("grpc-status", blocks[0])


class ContentTypeTests(GrpcTestCase):
    """``content-type``."""

    def test_grpc(self) -> None:
        """gRPC with protobuf messages is answered in all its spellings."""
        for content_type in (
            "application/grpc",
            "application/grpc+proto",
            "application/grpc;charset=utf-8",
            "application/grpc+proto; charset=utf-8; x=y",
            "application/grpc ; x=y",
            "Application/gRPC",
        ):
            self.ask(fields_for("/test.Echo/Unary", content_type), value(b"x"))
            self.assert_answered(b"x")

    def test_others(self) -> None:
        """Anything else, or none at all, is answered with 415, whatever the method; nothing is called."""
        for content_type in (
            None,
            "",
            "text/plain",
            "application/json",
            "application/grpc+json",
            "application/grpc+",
            "application/grpc+protobuf",
            "application/grpc-web",
            "application/grpc-web+proto",
            "application/grpcx",
            "application/grpc, application/grpc",
            "xapplication/grpc",
        ):
            for method in ("/test.Echo/Unary", "/test.Echo/Up", "/no/such"):
                self.ask(fields_for(method, content_type), value(b"x"))
                self.assert_http("415")
        self.assertEqual(self.wire.echo.calls, [])

    def test_others_go_on_sending(self) -> None:
        """What such a client still sends is dropped, and the connection goes on."""
        number = self.ask(fields_for("/test.Echo/Up", "text/plain"), b"x" * 1000, end=False)
        kinds = [(each.kind, each.number) for each in self.wire.frames() if each.kind == wire.RST_STREAM]
        self.assertEqual(kinds, [(wire.RST_STREAM, ErrorCode.NO_ERROR)])
        self.wire.send(*[frame(wire.DATA, 0, number, b"x" * 1000)] * 10)
        self.ask(fields_for(), value(b"x"))
        self.assert_answered(b"x")

    def test_other_http_methods(self) -> None:
        """A request that is no POST is answered with 405, and told what there is."""
        for method in ("GET", "HEAD", "PUT", "OPTIONS", "post"):
            self.ask(((":method", method), *fields_for()[1:]))
            blocks, _ = self.answer()
            self.assertEqual((blocks[0][":status"], blocks[0]["allow"]), ("405", "POST"))


class HeaderTests(GrpcTestCase):
    """The rest of the headers."""

    def test_te(self) -> None:
        """A client that does not say that it takes trailers gets them all the same; one that says more is malformed."""
        self.ask(tuple(field for field in fields_for() if field[0] != "te"), value(b"x"))
        self.assert_answered(b"x")
        self.ask(tuple(("te", "trailers, gzip") if field[0] == "te" else field for field in fields_for()), b"")
        (reset,) = self.wire.frames()
        self.assertEqual((reset.kind, reset.number), (wire.RST_STREAM, ErrorCode.PROTOCOL_ERROR))

    def test_scheme_and_authority(self) -> None:
        """Whether it came by http or https, and by which name, makes no difference, nor does a user agent."""
        for scheme in ("http", "https"):
            for more in ((), ((":authority", "a.example:11001"),)):
                fields = (wire.REQUEST[0], (":scheme", scheme), (":path", "/test.Echo/Unary"), *more)
                self.ask((*fields, ("content-type", "application/grpc"), ("user-agent", "x/1")), value(b"x"))
                self.assert_answered(b"x")

    def test_unknown(self) -> None:
        """A method or a service that is not there is UNIMPLEMENTED, and named; so is one that is not built."""
        for path in ("/test.Echo/Nothing", "/test.Nobody/Unary", "/test.Echo/unary", "/", "//", "/test.Echo/Unary/"):
            self.ask(fields_for(path), value(b"x"))
            self.assertIn(path, self.assert_status(Code.UNIMPLEMENTED))
        self.ask(fields_for("/test.Echo/Missing"), value(b"x"))
        self.assert_status(Code.UNIMPLEMENTED)

    def test_unknown_and_long(self) -> None:
        """The name of what is not there is not repeated in full length."""
        self.ask(fields_for("/" + "x" * 10_000), value(b"x"))
        self.assertLess(len(self.assert_status(Code.UNIMPLEMENTED)), 300)

    def test_unknown_while_sending(self) -> None:
        """A client that streams to a method that is not there learns it at once, and need not send the rest."""
        number = self.ask(fields_for("/test.Echo/Nothing"), value(b"x"), end=False)
        self.assert_status(Code.UNIMPLEMENTED)
        self.wire.send(frame(wire.DATA, 0, number, value(b"x" * 1000)))
        self.assertEqual(self.wire.frames(), [])


class TimeoutTests(GrpcTestCase):
    """``grpc-timeout``."""

    def setUp(self) -> None:
        super().setUp()
        self.cancelled: list[object] = []
        self.wire.echo.unary = lambda _: Deferred(self.cancelled.append)

    def test_units(self) -> None:
        """In every unit, the call ends when its time is over, and not before."""
        for timeout, seconds in (
            ("1H", 3600.0),
            ("2M", 120.0),
            ("3S", 3.0),
            ("1500m", 1.5),
            ("250000u", 0.25),
            ("50000000n", 0.05),
            ("00000004S", 4.0),
            ("99999999m", 99999.999),
        ):
            self.ask(fields_for("/test.Echo/Unary", "application/grpc", ("grpc-timeout", timeout)), value(b""))
            self.wire.clock.advance(seconds * 0.99)
            self.assertEqual(self.wire.statuses(), {}, timeout)
            self.wire.clock.advance(seconds * 0.02)
            self.assert_status(Code.DEADLINE_EXCEEDED)
        self.assertEqual(len(self.cancelled), 8)

    def test_longest(self) -> None:
        """The longest time that can be written, some eleven thousand years, is a time like any other."""
        self.ask(fields_for("/test.Echo/Unary", "application/grpc", ("grpc-timeout", "99999999H")), value(b""))
        self.wire.clock.advance(3e11)
        self.assertEqual(self.wire.statuses(), {})
        self.assertEqual(self.cancelled, [])

    def test_none(self) -> None:
        """A call whose time is over when it comes is not begun, in whatever unit no time is given."""
        for unit in "HMSmun":
            fields = fields_for("/test.Echo/Unary", "application/grpc", ("grpc-timeout", f"0{unit}"))
            self.ask(fields, value(b""))
            self.assert_status(Code.DEADLINE_EXCEEDED)
        self.assertEqual(self.wire.echo.calls, [])

    def test_bad(self) -> None:
        """What is no time is refused, wherever among the headers it stands, and nothing is called."""
        for bad in ("", "S", "1", "123456789S", "-1S", "+1S", "1.5S", "1s", "1 S", "1d", "0x1S", "1SS"):
            for fields in (
                fields_for("/test.Echo/Unary", "application/grpc", ("grpc-timeout", bad)),
                (*fields_for()[:3], ("grpc-timeout", bad), *fields_for()[3:]),
            ):
                self.ask(tuple(sorted(fields, key=lambda field: field[0][0] != ":")), value(b""))
                self.assertIn("grpc-timeout", self.assert_status(Code.INVALID_ARGUMENT))
        self.assertEqual(self.wire.echo.calls, [])

    def test_while_the_request_comes(self) -> None:
        """A request that takes longer than its deadline is not waited for, and not begun when it is there."""
        wanted = fields_for("/test.Echo/Unary", "application/grpc", ("grpc-timeout", "5S"))
        number = self.ask(wanted, value(b"x")[:3], end=False)
        self.wire.clock.pump([1] * 30)
        self.assert_status(Code.DEADLINE_EXCEEDED)
        self.wire.send(frame(wire.DATA, 1, number, value(b"x")[3:]))
        number = self.ask(wanted, value(b"x")[:3], end=False)
        self.wire.clock.advance(5)
        self.wire.send(frame(wire.DATA, 1, number, value(b"x")[3:]))
        self.assert_status(Code.DEADLINE_EXCEEDED)
        self.assertEqual(self.wire.echo.calls, [])
        self.assertEqual((self.wire.protocol.held, self.wire.factory.ledger.held), (0, 0))

    def test_while_it_waits_its_turn(self) -> None:
        """So is one whose turn comes after its deadline."""
        self.wire = Wire(Limits(working_bytes=10))
        waiting: list[Deferred[bytes]] = []

        def later(_: bytes) -> Deferred[bytes]:
            waiting.append(Deferred())
            return waiting[-1]

        self.wire.echo.unary = later
        self.ask(fields_for(), value(b"x" * 100))
        self.ask(fields_for("/test.Echo/Unary", "application/grpc", ("grpc-timeout", "5S")), value(b"y" * 100))
        self.wire.clock.advance(6)
        waiting[0].callback(b"")
        statuses = {number: code for number, (code, _) in self.wire.statuses().items()}
        self.assertEqual(statuses, {1: "0", 3: str(int(Code.DEADLINE_EXCEEDED))})
        self.assertEqual(len(waiting), 1)

    def test_streams(self) -> None:
        """Streams in either direction have deadlines too, with messages on the way or without."""
        late = ("grpc-timeout", "5S")
        for method, body in (("Up", value(b"x")), ("Both", value(b"x")), ("Up", b""), ("Down", value(b"1x1000000"))):
            self.wire = Wire()
            self.number = -1
            self.ask(fields_for(f"/test.Echo/{method}", "application/grpc", late), body, end=method == "Down")
            self.wire.clock.advance(4.9)
            self.assertEqual(self.wire.statuses(), {})
            self.wire.clock.advance(0.2)
            self.wire.send(wire.window_update(0, 2**30), wire.window_update(1, 2**30))
            self.assertEqual(self.wire.statuses()[1][0], str(int(Code.DEADLINE_EXCEEDED)), (method, body))
            self.assertEqual(self.wire.protocol.engine.streams, {})


class HalfCloseTests(GrpcTestCase):
    """When a request is over, and what it has to hold by then."""

    def test_the_end_may_come_alone(self) -> None:
        """A request may end with its last message, with an empty frame, or with trailers."""
        for ending in (frame(wire.DATA, 1, 1), frame(wire.HEADERS, 5, 1, wire.block(("x-trailer", "1")))):
            self.wire = Wire()
            self.number = -1
            self.ask(fields_for(), value(b"x"), end=False)
            self.assertEqual(self.wire.frames(), [])
            self.wire.send(ending)
            self.assert_answered(b"x")

    def test_not_before_the_end(self) -> None:
        """A method that takes one message is not called before the request has ended: it might be one of two."""
        for method in ("Unary", "Down"):
            self.ask(fields_for(f"/test.Echo/{method}"), value(b"1x1"), end=False)
        self.assertEqual((self.wire.echo.calls, self.wire.frames()), ([], []))

    def test_number_of_messages(self) -> None:
        """One message is one: none and two are refused, however they come, and nothing is called."""
        for method in ("/test.Echo/Unary", "/test.Echo/Down"):
            for bodies in ((), (value(b"1x1"), value(b"1x1")), (value(b""), value(b"")), (value(b"1x1"), b"\0")):
                self.ask(fields_for(method), *bodies)
                self.assert_status(Code.INTERNAL)
                number = self.ask(fields_for(method), end=False)
                for body in bodies:
                    self.wire.send(frame(wire.DATA, 0, number, body))
                self.wire.send(frame(wire.DATA, 1, number))
                self.assert_status(Code.INTERNAL)
            self.number += 2
            self.wire.send(wire.request(self.number, end=True, fields=fields_for(method)))
            self.assert_status(Code.INTERNAL)
        self.assertEqual(self.wire.echo.calls, [])

    def test_second_message_is_not_awaited(self) -> None:
        """That there is a second message is said when it is there, and not when the request ends."""
        self.ask(fields_for(), value(b"x") + value(b"y"), end=False)
        self.assert_status(Code.INTERNAL)

    def test_within_a_message(self) -> None:
        """A request that ends in the middle of a message, or of what precedes it, is refused."""
        for method in ("Unary", "Down", "Up", "Both"):
            for part in (b"\0", value(b"abc")[:4], value(b"abc")[:5], value(b"abc")[:-1]):
                self.ask(fields_for(f"/test.Echo/{method}"), part)
                self.assert_status(Code.INTERNAL)

    def test_after_whole_messages(self) -> None:
        """So is a stream that ends so after whole messages; those had been taken."""
        self.ask(fields_for("/test.Echo/Both"), value(b"one"), end=False)
        self.assertEqual(self.answer()[1], value(b"one"))
        self.wire.send(frame(wire.DATA, 1, 1, value(b"two")[:-1]))
        blocks, _ = self.answer()
        self.assertEqual(blocks[-1]["grpc-status"], str(int(Code.INTERNAL)))
        self.assertNotIn(":status", blocks[-1])

    def test_answers_after_the_end(self) -> None:
        """The answers of a stream go on after the request has ended."""
        waiting: list[Deferred[None]] = []

        class Slow:
            async def Both(self, requests: Any, call: Any) -> Any:
                async for request in requests:
                    yield request
                waiting.append(Deferred())
                await waiting[0]
                yield BytesValue(value=b"last")

        self.wire = Wire(implementation=Slow())
        self.ask(fields_for("/test.Echo/Both"), value(b"one"))
        self.assertEqual(self.answer()[1], value(b"one"))
        waiting[0].callback(None)
        blocks, data = self.answer()
        self.assertEqual((data, blocks[-1]["grpc-status"]), (value(b"last"), "0"))
