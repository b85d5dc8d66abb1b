"""Header blocks: remembering what the same block means, and making ours."""

from __future__ import annotations

from hpack import Decoder, Encoder
from twisted.trial.unittest import SynchronousTestCase

from artifactserver.rpc.http2 import ErrorCode, Limits, Stream, StreamFault, encode
from artifactserver.rpc.http2.headers import HeaderBlocks
from tests.http2_cases import HEAD, TAIL
from tests.http2_peer import HEADERS, REQUEST, Peer, block, frame, request, settings, window_update


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


class TableSizeTests(SynchronousTestCase):
    """Section 4.3.1: a client whose decoder has less room than the 4096 bytes that it would have otherwise."""

    def setUp(self) -> None:
        self.peer = Peer()
        self.sender = self.peer.engine.sender

    def limit(self, *sizes: int) -> None:
        """The client allows so much; its decoder then takes no block that does not heed it."""
        self.peer.send(*[settings((1, size)) for size in sizes])
        self.peer.decoder.max_allowed_table_size = sizes[-1]
        self.peer.frames()

    def open(self, number: int) -> Stream:
        self.peer.send(request(number, end=True))
        stream: Stream = self.peer.stream(number)
        return stream

    def blocks(self) -> list[bytes]:
        """The header blocks that were sent, after the client's decoder has taken them."""
        blocks = self.peer.said(HEADERS)
        for each in blocks:
            self.peer.headers(each)
        return [each.payload for each in blocks]

    def test_answer(self) -> None:
        """The next header block begins with an update of the table's size, and those behind it do not."""
        self.limit(100)
        for number in (1, 3):
            self.sender.answer(self.open(number), HEAD, (b"answer",), TAIL)
        self.assertEqual(self.blocks(), [b"\x20" + HEAD, TAIL, HEAD, TAIL])

    def test_headers_only(self) -> None:
        """A response without a body does the same."""
        self.limit(0)
        self.sender.headers(self.open(1), TAIL, end=True)
        self.sender.headers(self.open(3), HEAD)
        self.assertEqual(self.blocks(), [b"\x20" + TAIL, HEAD])

    def test_trailers(self) -> None:
        """If trailers come next, they do it."""
        stream = self.open(1)
        self.sender.headers(stream, HEAD)
        self.assertEqual(self.blocks(), [HEAD])
        self.limit(0)
        self.sender.finish(stream, TAIL)
        self.assertEqual(self.blocks(), [b"\x20" + TAIL])

    def test_trailers_that_wait(self) -> None:
        """Trailers that wait for data to leave do it too."""
        self.peer.send(settings((4, 0)))
        self.sender.answer(self.open(1), HEAD, (b"answer",), TAIL)
        self.assertEqual(self.blocks(), [HEAD])
        self.limit(0)
        self.peer.send(window_update(1, 4096))
        self.assertEqual(self.blocks(), [b"\x20" + TAIL])

    def test_down_and_up(self) -> None:
        """A table that was smaller for a while is heeded even if it is as large as ever by now."""
        self.limit(0, 4096)
        self.sender.headers(self.open(1), HEAD)
        self.assertEqual(self.blocks(), [b"\x20" + HEAD])

    def test_said_once(self) -> None:
        """Once its size is 0, no limit is below it."""
        self.limit(1000)
        self.sender.headers(self.open(1), HEAD)
        self.assertEqual(self.blocks(), [b"\x20" + HEAD])
        self.limit(4096, 10, 0)
        self.sender.headers(self.open(3), HEAD)
        self.assertEqual(self.blocks(), [HEAD])

    def test_larger(self) -> None:
        """More room is no reason to say anything."""
        self.limit(4096, 2**32 - 1)
        self.sender.headers(self.open(1), HEAD)
        self.assertEqual(self.blocks(), [HEAD])


class TooLargeTests(SynchronousTestCase):
    """Headers that are well-formed and too many."""

    def test_in_trailers(self) -> None:
        """Trailers that are too large cost their call."""
        peer = Peer(Limits(header_count=10))
        peer.send(request(1), frame(HEADERS, 5, 1, block(*[(f"n{n}", "v") for n in range(11)])))
        self.assertEqual(peer.resets(), [(1, ErrorCode.PROTOCOL_ERROR)])
