"""What a client is sent, whatever it asked for: RFC 9113 on senders, in sections 4, 5.1, 6 and 8."""

from __future__ import annotations

import re
from collections import defaultdict

from hpack import Decoder
from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase

from artifactserver.rpc import answers
from artifactserver.rpc.http2 import ErrorCode, Limits
from artifactserver.rpc.status import Code
from tests.echo_service import Wire, value
from tests.http2_peer import (
    ACK,
    DATA,
    END_HEADERS,
    END_STREAM,
    GOAWAY,
    HEADERS,
    PADDED,
    PING,
    REQUEST,
    RST_STREAM,
    SETTINGS,
    WINDOW_UPDATE,
    Frame,
    frame,
    request,
    settings,
    window_update,
)

#: The flags that we have a use for, by type: with these types and flags, and no others, all is said.
FLAGS = {
    DATA: 0,
    HEADERS: END_STREAM | END_HEADERS,
    RST_STREAM: 0,
    SETTINGS: ACK,
    PING: ACK,
    GOAWAY: 0,
    WINDOW_UPDATE: 0,
}

#: Sizes of frames that have one.
SIZES = {RST_STREAM: 4, PING: 8, WINDOW_UPDATE: 4}

#: What each stream asks for, and what becomes of it: how the response ends, and its status.
ASKED: dict[str, tuple[int, str]] = {
    "a unary call": (1, "200"),
    "a call that fails": (3, "200"),
    "a download": (5, "200"),
    "a download that fails at its start": (7, "200"),
    "an upload": (9, "200"),
    "an upload that is answered early": (11, "200"),
    "a method that is not there": (13, "200"),
    "a method that may not be used": (15, "200"),
    "another content type": (17, "415"),
    "another method": (19, "405"),
    "HEAD": (21, "405"),
    "CONNECT": (23, "405"),
    "OPTIONS": (25, "405"),
    "too many headers": (27, "431"),
    "another method, answered early": (29, "405"),
    "a call that is answered later": (31, "200"),
    "a malformed request": (33, ""),
    "a call that the client gives up": (35, ""),
}


def with_method(name: str) -> tuple[tuple[str, str], ...]:
    return ((":method", name), *REQUEST[1:])


class ResponseTests(SynchronousTestCase):
    """A connection on which about everything happens, and rules that hold for all that was said on it."""

    def setUp(self) -> None:
        self.wire = Wire(Limits(header_count=40, message_bytes=9000, stream_window=10_000, connection_window=80_000))
        waiting: list[Deferred[bytes]] = []

        def unary(sent: bytes) -> object:
            if sent == b"later":
                waiting.append(Deferred())
                return waiting[-1]
            return 7 if sent == b"fail" else sent  # A number is no answer of this method.

        self.wire.echo.unary = unary
        self.said: list[Frame] = []
        connect = ((":method", "CONNECT"), (":authority", "x:1"))
        options = ((":method", "OPTIONS"), REQUEST[1], (":path", "*"), *REQUEST[3:])
        for data in (
            settings((1, 0), (2, 1), (3, 100), (4, 1000)),
            self.wire.request(1, "Unary", b"one"),
            self.wire.request(3, "Unary", b"fail"),
            self.wire.request(5, "Down", b"5x1000"),
            self.wire.request(7, "Down", b"nonsense"),
            self.wire.request(9, "Up", bytes(4000), bytes(4000), bytes(1000)),
            self.wire.request(11, "Up", b"enough", end=False),
            self.wire.request(13, "Missing", b""),
            self.wire.request(15, "Forbidden", b""),
            request(17, end=True, fields=(*REQUEST[:-1], ("content-type", "text/plain"))),
            request(19, end=True, fields=with_method("GET")),
            request(21, end=True, fields=with_method("HEAD")),
            request(23, end=True, fields=connect),
            request(25, end=True, fields=options),
            request(27, end=True, fields=(*REQUEST, *[("name", "value")] * 40)),
            request(29, fields=with_method("PUT")),
            frame(DATA, END_STREAM, 29, b"of no interest"),
            self.wire.request(31, "Unary", b"later"),
            request(33, fields=(*REQUEST, ("Bad", "name"))),
            self.wire.request(35, "Unary", b"later"),
            frame(RST_STREAM, 0, 35, bytes(4)),
            frame(PING, payload=b"a ping.."),
            frame(DATA, 0, 11, value(bytes(30_000))),
            window_update(5, 100_000),
        ):
            self.wire.send(data)
            self.said += self.wire.frames()
        waiting[0].callback(b"now")
        self.flushLoggedErrors(TypeError, ValueError)
        self.wire.factory.drain(10)
        self.wire.clock.advance(2)
        self.said += self.wire.frames()

    def by_stream(self) -> dict[int, list[Frame]]:
        streams = defaultdict(list)
        for each in self.said:
            if each.stream:
                streams[each.stream].append(each)
        return dict(streams)

    def responses(self) -> dict[int, list[list[tuple[str, str]]]]:
        """The fields of each header block, by stream."""
        decoder = Decoder()
        decoder.max_allowed_table_size = 0
        decoded = defaultdict(list)
        for each in self.said:
            if each.kind == HEADERS:
                fields = decoder.decode(each.payload)
                decoded[each.stream].append([(str(name), str(text)) for name, text in fields])
        return dict(decoded)

    def test_frames(self) -> None:
        """Every frame is of a type that a server sends, with none but defined flags, and with the size of its type."""
        self.assertEqual({each.kind for each in self.said}, set(FLAGS))
        for each in self.said:
            self.assertEqual(each.flags & ~FLAGS[each.kind], 0, each)
            self.assertEqual(each.flags & PADDED, 0, each)
            self.assertLessEqual(len(each.payload), 2**14, each)
            if each.kind in SIZES:
                self.assertEqual(len(each.payload), SIZES[each.kind], each)

    def test_stream_numbers(self) -> None:
        """What concerns the connection is said on stream 0, all else on streams that the client opened."""
        opened = {number for number, _ in ASKED.values()}
        for each in self.said:
            if each.kind in (SETTINGS, PING, GOAWAY):
                self.assertEqual(each.stream, 0, each)
            elif each.kind != WINDOW_UPDATE or each.stream:
                self.assertIn(each.stream, opened, each)

    def test_shape(self) -> None:
        """A response is headers, data, and trailers or nothing, whose last frame says that it ended."""
        for name, (number, status) in ASKED.items():
            frames = self.by_stream().get(number, [])
            shape = "".join("H" if each.kind == HEADERS else "D" if each.kind == DATA else "R" for each in frames)
            if status:
                self.assertRegex(shape, r"^H(D*H)?R?$", name)
                ends = [bool(each.flags & END_STREAM) for each in frames if each.kind != RST_STREAM]
                self.assertEqual(ends, [False] * (len(ends) - 1) + [True], name)
            else:
                self.assertRegex(shape, r"^R?$", name)
        self.assertIn(DATA, [each.kind for each in self.by_stream()[5]])

    def test_resets(self) -> None:
        """Only what was answered before its end is reset behind its response, without an error."""
        resets = {each.stream: each.number for each in self.said if each.kind == RST_STREAM}
        self.assertEqual(
            resets,
            {11: ErrorCode.NO_ERROR, 29: ErrorCode.NO_ERROR, 33: ErrorCode.PROTOCOL_ERROR},
        )

    def test_status(self) -> None:
        """Headers begin with one status, a final one; trailers have none, and neither has another pseudo-header."""
        responses = self.responses()
        well = {number for number, blocks in responses.items() if ("grpc-status", "0") in blocks[-1]}
        self.assertEqual(well, {1, 5, 9, 11, 31})
        for name, (number, status) in ASKED.items():
            if not status:
                self.assertNotIn(number, responses, name)
                continue
            head, *tails = responses[number]
            self.assertEqual(head[0], (":status", status), name)
            for fields in (head[1:], *tails):
                self.assertEqual([field for field in fields if field[0].startswith(":")], [], name)

    def test_fields(self) -> None:
        """Names and values are valid, and none belongs to a connection of HTTP/1.1."""
        connection = {"connection", "keep-alive", "proxy-connection", "transfer-encoding", "upgrade", "te"}
        for blocks in self.responses().values():
            for name, text in (field for fields in blocks for field in fields):
                self.assertRegex(name, r"^:?[!#$%&'*+\-.^_`|~0-9a-z]+$")
                self.assertIsNone(re.search(r"[\0\r\n]|^[ \t]|[ \t]$", text), text)
                self.assertNotIn(name, connection)

    def test_content_length(self) -> None:
        """A length is only claimed for what has no body."""
        for number, blocks in self.responses().items():
            lengths = [text for fields in blocks for name, text in fields if name == "content-length"]
            if lengths:
                self.assertEqual(lengths, ["0"])
                self.assertNotIn(DATA, [each.kind for each in self.by_stream()[number]])

    def test_answers_and_acknowledgements(self) -> None:
        """Each SETTINGS and PING frame was acknowledged once, and none of the acknowledgements was answered."""
        self.assertEqual(len([each for each in self.said if each.kind == SETTINGS]), 1)
        pings = [each.payload for each in self.said if each.kind == PING and each.flags & ACK]
        self.assertEqual(pings, [b"a ping.."])

    def test_increments(self) -> None:
        """Window is given back, never by 0."""
        increments = [each.number for each in self.said if each.kind == WINDOW_UPDATE]
        self.assertTrue(increments and all(0 < each < 2**31 for each in increments), increments)


class SizeTests(SynchronousTestCase):
    """Section 4.2: what we send in one frame is never more than every client takes."""

    def test_header_blocks(self) -> None:
        """The longest headers and trailers there are fit into one frame."""
        message, details = "\N{SNOWMAN}" * 100_000, bytes(100_000)
        for most in (bytes(100_000), bytes(answers.DETAILS_BYTES * 3 // 4), details):
            for code in (Code.UNIMPLEMENTED, Code.INTERNAL):
                for block in (answers.trailers(code, message, most), answers.trailers_only(code, message, most)):
                    self.assertLess(len(block), 2**13)
