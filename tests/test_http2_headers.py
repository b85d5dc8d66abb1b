"""Header blocks: remembering what the same block means, and making ours."""

from __future__ import annotations

from hpack import Decoder, Encoder
from twisted.trial.unittest import SynchronousTestCase

from artifactserver.rpc.http2 import ErrorCode, Limits, StreamFault, encode
from artifactserver.rpc.http2.headers import HeaderBlocks
from tests.http2_peer import HEADERS, REQUEST, Peer, block, frame, request


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
