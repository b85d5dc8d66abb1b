"""Header blocks: what a malformed request is, and remembering what the same block means."""

from __future__ import annotations

from hpack import Decoder, Encoder
from twisted.trial.unittest import SynchronousTestCase

from artifactserver.rpc.http2 import ErrorCode, Limits, RequestReceived, StreamFault, encode
from artifactserver.rpc.http2.headers import HeaderBlocks
from tests.http2_peer import HEADERS, REQUEST, Peer, block, frame, request

Fields = tuple[tuple[str, str], ...]


def without(name: str) -> Fields:
    return tuple(field for field in REQUEST if field[0] != name)


class MalformedTests(SynchronousTestCase):
    """RFC 9113, sections 8.1.1, 8.2 and 8.3."""

    def assert_malformed(self, *fields: tuple[str, str]) -> None:
        """The request costs its stream and nothing else."""
        peer = Peer()
        peer.send(request(1), request(3, fields=fields), request(5))
        self.assertEqual(peer.resets(), [(3, ErrorCode.PROTOCOL_ERROR)])
        self.assertEqual([event.stream.id for event in peer.events if isinstance(event, RequestReceived)], [1, 5])

    def test_names(self) -> None:
        """Names with upper case, spaces, controls, colons inside or nothing at all are malformed."""
        for name in ("Upper", "with space", "nul\0", "col:on", "\x7f", "\xe9", ""):
            self.assert_malformed(*REQUEST, (name, "value"))

    def test_values(self) -> None:
        """Values with line ends or NUL, or with space at an end, are malformed."""
        for value in ("a\r\nb", "a\nb", "a\rb", "a\0b", " a", "a ", "\ta", "a\t"):
            self.assert_malformed(*REQUEST, ("name", value))

    def test_good_values(self) -> None:
        """Anything else may be in a value."""
        peer = Peer()
        peer.send(request(1, fields=(*REQUEST, ("name", ""), ("other", "\xff\x01 inside \x7f"))))
        self.assertIsInstance(peer.events[-1], RequestReceived)

    def test_connection_fields(self) -> None:
        """What belongs to a connection of HTTP/1.1 has no place here."""
        for name, value in (
            ("connection", "close"),
            ("keep-alive", "1"),
            ("proxy-connection", "keep-alive"),
            ("transfer-encoding", "chunked"),
            ("upgrade", "h2c"),
            ("te", "gzip"),
        ):
            self.assert_malformed(*REQUEST, (name, value))

    def test_pseudo_headers(self) -> None:
        """Pseudo-headers are all there, once, known, and before everything else."""
        for name in (":method", ":scheme", ":path"):
            self.assert_malformed(*without(name))
        self.assert_malformed(*REQUEST, (":path", "/late"))
        self.assert_malformed((":path", "/twice"), *REQUEST)
        self.assert_malformed((":status", "200"), *REQUEST)
        self.assert_malformed((":protocol", "websocket"), *REQUEST)
        self.assert_malformed((":path", ""), *without(":path"))
        self.assert_malformed((":path", "no-slash"), *without(":path"))

    def test_host(self) -> None:
        """``host`` may stand for ``:authority``, and must not contradict it."""
        self.assert_malformed(*REQUEST, ("host", "elsewhere"))
        peer = Peer()
        peer.send(request(1, fields=(*without(":authority"), ("host", "here"))))
        self.assertEqual(peer.events[-1].head.authority, b"here")  # type: ignore[union-attr]

    def test_connect(self) -> None:
        """CONNECT has an authority and neither path nor scheme."""
        self.assert_malformed((":method", "CONNECT"), (":authority", "x:1"), (":path", "/"))
        self.assert_malformed((":method", "CONNECT"))
        peer = Peer()
        peer.send(request(1, fields=((":method", "CONNECT"), (":authority", "x:1"))))
        self.assertEqual(peer.events[-1].head.method, b"CONNECT")  # type: ignore[union-attr]

    def test_content_length(self) -> None:
        """A body must be as long as it was said to be."""
        self.assert_malformed(*REQUEST, ("content-length", "x"))
        self.assert_malformed(*REQUEST, ("content-length", "1"), ("content-length", "2"))
        fields = (*REQUEST, ("content-length", "5"))
        for bodies in ([b"four"], [b"sixsix"], [b"four", b"six"], [b""]):
            peer = Peer()
            peer.send(request(1, fields=fields))
            for body in bodies:
                peer.send(frame(0, 0 if body is not bodies[-1] else 1, 1, body))
            self.assertEqual(peer.resets(), [(1, ErrorCode.PROTOCOL_ERROR)], bodies)
        peer = Peer()
        peer.send(request(1, fields=fields), frame(0, 0, 1, b"thr"), frame(0, 1, 1, b"ee"))
        self.assertEqual(peer.resets(), [])
        self.assertEqual(Peer().send(request(1, fields=fields, end=True))[:-1], [])

    def test_content_length_without_body(self) -> None:
        """A request that ends with its headers has a body of length 0."""
        peer = Peer()
        peer.send(request(1, end=True, fields=(*REQUEST, ("content-length", "5"))))
        self.assertEqual(peer.resets(), [(1, ErrorCode.PROTOCOL_ERROR)])


class SameBlockTests(SynchronousTestCase):
    """The same header block means the same headers while the dynamic table stays as it is."""

    def setUp(self) -> None:
        self.blocks = HeaderBlocks(Limits())
        self.encoder = Encoder()

    def fields(self, more: tuple[str, str]) -> list[tuple[str, str]]:
        return [*REQUEST, more]

    def test_remembered(self) -> None:
        """Once a client's block repeats itself, it is not decoded again."""
        first = self.encoder.encode(self.fields(("a", "b")))
        second = self.encoder.encode(self.fields(("a", "b")))
        head = self.blocks.request(first)
        self.assertIsNone(self.blocks.known(first), "it changed the table")
        again = self.blocks.request(second)
        self.assertEqual(again.fields, head.fields)
        self.assertIs(self.blocks.known(second), again)

    def test_forgotten(self) -> None:
        """When the table changes, the same bytes mean something else, and nothing is remembered."""
        self.blocks.request(self.encoder.encode(self.fields(("a", "1"))))
        block = self.encoder.encode(self.fields(("a", "1")))
        self.blocks.request(block)
        self.assertIsNotNone(self.blocks.known(block))
        self.blocks.request(self.encoder.encode(self.fields(("a", "2"))))
        self.assertIsNone(self.blocks.known(block))
        # Each index now names the entry after the one it named, so this is not even a request any more.
        self.assertRaises(StreamFault, self.blocks.request, block)

    def test_forgotten_after_trailers(self) -> None:
        """Trailers and requests that were refused change the table too."""
        self.blocks.request(self.encoder.encode(self.fields(("a", "1"))))
        block = self.encoder.encode(self.fields(("a", "1")))
        self.blocks.request(block)
        self.blocks.trailers(self.encoder.encode([("trailer", "x")]))
        self.assertIsNone(self.blocks.known(block))

    def test_forgotten_when_resized(self) -> None:
        """A new table size drops entries, and what they meant."""
        self.blocks.request(self.encoder.encode(self.fields(("a", "1"))))
        block = self.encoder.encode(self.fields(("a", "1")))
        self.blocks.request(block)
        self.blocks.trailers(b"\x20")
        self.assertIsNone(self.blocks.known(block))

    def test_full_table(self) -> None:
        """An entry that pushes out another of its size is noticed as well."""
        value = "v" * 1000
        for number in range(10):
            self.blocks.request(self.encoder.encode(self.fields((f"n{number}", value))))
        block = self.encoder.encode(self.fields(("n9", value)))
        self.blocks.request(block)
        self.assertIsNotNone(self.blocks.known(block))
        self.blocks.trailers(self.encoder.encode([("nx", value)]))
        self.assertIsNone(self.blocks.known(block))

    def test_huge_blocks_are_not_remembered(self) -> None:
        """What no client repeats takes no room."""
        big = block(*REQUEST, ("x", "y" * 5000))
        self.blocks.request(big)
        self.assertIsNone(self.blocks.known(big))


class EncodeTests(SynchronousTestCase):
    """Header blocks of ours."""

    def test_decodable(self) -> None:
        """Any HPACK decoder reads them, and its table stays empty."""
        decoder = Decoder()
        for status in (200, 404, 405, 415, 431):
            long = b"x" * 5000
            fields = [(b"content-type", b"application/grpc"), (b"grpc-message", long), (b"n" * 200, b"")]
            decoded = decoder.decode(encode(fields, status=status), raw=True)
            self.assertEqual(list(decoded), [(b":status", b"%d" % status), *fields])
        self.assertEqual(list(decoder.decode(encode([(b"grpc-status", b"0")]), raw=True)), [(b"grpc-status", b"0")])
        self.assertEqual(len(decoder.header_table.dynamic_entries), 0)


class TooLargeTests(SynchronousTestCase):
    """Headers that are well-formed and too many."""

    def test_in_trailers(self) -> None:
        """Trailers that are too large cost their call."""
        peer = Peer(Limits(header_count=10))
        peer.send(request(1), frame(HEADERS, 5, 1, block(*[(f"n{n}", "v") for n in range(11)])))
        self.assertEqual(peer.resets(), [(1, ErrorCode.PROTOCOL_ERROR)])
