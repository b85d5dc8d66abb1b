"""Header blocks: on their way here, remembered with what they mean, and ours (RFC 9113, sections 4.3, 6.2 and 6.10)."""

from __future__ import annotations

from hpack import Decoder, Encoder
from twisted.trial.unittest import SynchronousTestCase

from artifactserver.rpc.http2 import ErrorCode, Limits, RequestReceived, Stream, StreamFault, encode
from artifactserver.rpc.http2 import blocks as blocks_module
from artifactserver.rpc.http2.blocks import Beginnings, HeaderBlocks
from tests.http2_cases import HEAD, TAIL, Cases
from tests.http2_peer import (
    ACK,
    CONTINUATION,
    DATA,
    END_HEADERS,
    END_STREAM,
    GOAWAY,
    HEADERS,
    PADDED,
    PING,
    PRIORITY,
    PRIORITY_FLAG,
    PUSH_PROMISE,
    REQUEST,
    RST_STREAM,
    SETTINGS,
    Peer,
    block,
    frame,
    request,
    settings,
    window_update,
)


class HeadersTests(Cases):
    """Sections 4.3, 6.2 and 6.10: HEADERS and CONTINUATION."""

    def test_request(self) -> None:
        """A request is told with its head, and whether there is a body."""
        self.peer.send(request(1), request(3, end=True))
        first, second = self.peer.events
        assert isinstance(first, RequestReceived) and isinstance(second, RequestReceived)
        self.assertEqual((first.head.method, first.head.path, first.ended), (b"POST", b"/test.Service/Method", False))
        self.assertTrue(second.ended)

    def test_on_stream_zero(self) -> None:
        """HEADERS belong to a stream."""
        self.assert_connection_error(ErrorCode.PROTOCOL_ERROR, request(0))

    def test_priority_and_padding(self) -> None:
        """Priority fields and padding in HEADERS are taken off."""
        payload = b"\x04" + bytes(5) + block(*REQUEST) + bytes(4)
        self.peer.send(frame(HEADERS, END_HEADERS | PADDED | PRIORITY_FLAG, 1, payload))
        self.assertIsInstance(self.peer.events[-1], RequestReceived)

    def test_bad_padding(self) -> None:
        """Padding longer than the frame, and frames too short for their fields, are refused with the right code."""
        cases = [
            (PADDED, b"\x05abc", ErrorCode.PROTOCOL_ERROR),
            (PADDED, b"", ErrorCode.FRAME_SIZE_ERROR),
            (PRIORITY_FLAG, bytes(4), ErrorCode.FRAME_SIZE_ERROR),
            (PADDED | PRIORITY_FLAG, bytes(5), ErrorCode.FRAME_SIZE_ERROR),
            (PADDED | PRIORITY_FLAG, b"\x01" + bytes(5), ErrorCode.PROTOCOL_ERROR),
        ]
        for flags, payload, code in cases:
            for ends in (0, END_HEADERS):
                self.assert_connection_error(code, frame(HEADERS, ends | flags, 1, payload), peer=Peer())

    def test_nothing_but_padding(self) -> None:
        """Padding may be all there is: the header block is empty then, which is not yet a mistake of its frame."""
        whole = block(*REQUEST)
        self.peer.send(frame(HEADERS, PADDED, 1, b"\x03" + bytes(3)), frame(CONTINUATION, END_HEADERS, 1, whole))
        self.assertIsInstance(self.peer.events[-1], RequestReceived)
        self.assert_stream_error(
            ErrorCode.PROTOCOL_ERROR, 3, frame(HEADERS, END_HEADERS | PADDED, 3, b"\x03" + bytes(3))
        )

    def test_continuation(self) -> None:
        """A header block may be spread over frames, END_STREAM being said in the first."""
        whole = block(*REQUEST)
        self.peer.send(
            frame(HEADERS, END_STREAM, 1, whole[:3]),
            frame(CONTINUATION, 0, 1, whole[3:7]),
            frame(CONTINUATION, 0, 1),
            frame(CONTINUATION, END_HEADERS, 1, whole[7:]),
        )
        event = self.peer.events[-1]
        assert isinstance(event, RequestReceived)
        self.assertTrue(event.ended)

    def test_nothing_comes_between(self) -> None:
        """Within a header block no other frame may come, of any type, known or not, on any stream."""
        for other in (
            frame(DATA, 0, 1, b"x"),
            request(3),
            frame(HEADERS, END_HEADERS, 1, block(*REQUEST)),
            frame(PRIORITY, 0, 1, bytes(5)),
            frame(RST_STREAM, 0, 1, bytes(4)),
            settings(),
            frame(SETTINGS, ACK),
            frame(PUSH_PROMISE, END_HEADERS, 1, bytes(8)),
            frame(PING, payload=bytes(8)),
            frame(GOAWAY, payload=bytes(8)),
            window_update(0, 1),
            frame(CONTINUATION, END_HEADERS, 3, block(*REQUEST)),
            frame(CONTINUATION, END_HEADERS, 0),
            frame(0xBE),
        ):
            for between in (b"", frame(CONTINUATION, 0, 1)):
                self.assert_connection_error(
                    ErrorCode.PROTOCOL_ERROR, frame(HEADERS, 0, 1, block(*REQUEST)), between, other, peer=Peer()
                )

    def test_continuation_of_nothing(self) -> None:
        """CONTINUATION has something to continue: not a block that is whole, nor anything but a block."""
        continuation = frame(CONTINUATION, END_HEADERS, 1, block(*REQUEST))
        whole = frame(HEADERS, 0, 1, block(*REQUEST)) + frame(CONTINUATION, END_HEADERS, 1)
        for before in (b"", request(1), whole, request(1) + frame(DATA, 0, 1, b"x"), request(1, end=True)):
            self.assert_connection_error(ErrorCode.PROTOCOL_ERROR, before, continuation, peer=Peer())
        self.assert_connection_error(ErrorCode.PROTOCOL_ERROR, frame(CONTINUATION, END_HEADERS, 0))

    def test_undecodable(self) -> None:
        """A header block that HPACK cannot decode costs the connection: its state is lost.  So it is with trailers."""
        for bad in (
            b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff",  # an index that does not end
            b"\x80",  # index 0
            b"\xc0",  # an index that the table does not have
            b"\x00\x05a",  # a name that the block is too short for
            b"\x00\x01a",  # a name without a value
            b"\x00\x01a\x81\xff",  # padding of eight bits behind Huffman's code
            b"\x00\x01a\x81\x18",  # padding that is not of ones
            b"\x00\x01a\x84\xff\xff\xff\xff",  # Huffman's end of string
            b"\x3f\xff\xff\x03",  # a table larger than we allow
            block(*REQUEST) + b"\x20",  # a new size of the table, not at the start
        ):
            for ends in (END_HEADERS, END_HEADERS | END_STREAM):
                self.assert_connection_error(ErrorCode.COMPRESSION_ERROR, frame(HEADERS, ends, 1, bad), peer=Peer())
            for before in (request(1), request(1, end=True)):
                self.assert_connection_error(
                    ErrorCode.COMPRESSION_ERROR,
                    before,
                    frame(HEADERS, END_STREAM, 1, bad[:1]),
                    frame(CONTINUATION, END_HEADERS, 1, bad[1:]),
                    peer=Peer(),
                )

    def test_refused_headers_still_count(self) -> None:
        """A request that is refused leaves its entries in the header table, which later ones rely on."""
        peer = self.peer
        encoder = Encoder()
        bad = encoder.encode([*REQUEST, ("Bad", "name"), ("x-later", "value")])
        good = encoder.encode([*REQUEST, ("x-later", "value")])
        peer.send(frame(HEADERS, 5, 1, bad), frame(HEADERS, 5, 3, good))
        event = peer.events[-1]
        assert isinstance(event, RequestReceived)
        self.assertIn((b"x-later", b"value"), event.head.fields)


class SameBlockTests(SynchronousTestCase):
    """The same header block means the same headers while the dynamic table stays as it is."""

    def setUp(self) -> None:
        self.blocks = HeaderBlocks(Limits(), Beginnings(Limits()))
        self.encoder = Encoder()

    def fields(self, *more: tuple[str, str]) -> list[tuple[str, str]]:
        return [*REQUEST, *more]

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

    def test_known_ways(self) -> None:
        """Connections that begin alike are understood alike, without a decoder, wherever they part."""
        limits = Limits()
        beginnings = Beginnings(limits)
        ways = [["1", "2", "2", "3", "1"], ["1", "2", "2", "3", "1"], ["1", "2", "4", "2"], ["5"], ["1", "2", "4", "3"]]
        for count, way in enumerate(ways):
            blocks, encoder = HeaderBlocks(limits, beginnings), Encoder()
            for value in way:
                encoded = encoder.encode(self.fields(("a", value)))
                head = blocks.known(encoded) or blocks.request(encoded)
                self.assertEqual(head.fields[-1], (b"a", value.encode()))
            if count == 1:
                self.assertIsNone(blocks._decoder)
            more = encoder.encode(self.fields(("b", "c")))
            self.assertEqual((blocks.known(more) or blocks.request(more)).fields[-1], (b"b", b"c"))

    def test_ways_are_bounded(self) -> None:
        """However many ways to begin there are, few are remembered, each for a few blocks; all are understood."""
        self.patch(blocks_module, "BEGINNINGS_BYTES", 20_000)
        limits = Limits(header_blocks_cached=3)
        beginnings = Beginnings(limits)
        starts = set()
        for number in range(50):
            blocks, encoder = HeaderBlocks(limits, beginnings), Encoder()
            for step in range(30):
                for value in (f"{number}", f"{step}"):
                    encoded = encoder.encode(self.fields(("a", value)))
                    head = blocks.known(encoded) or blocks.request(encoded)
                    self.assertEqual(head.fields[-1], (b"a", value.encode()))
            self.assertLessEqual(beginnings._bytes, 20_000)
            starts.add(beginnings.start)
        self.assertGreater(len(starts), 2)
        moments = [beginnings.start]
        for moment in moments:
            self.assertLessEqual(moment.depth, blocks_module.BEGINNING)
            self.assertLessEqual(len(moment.heads), 3)
            moments += [after for _, after in moment.steps.values()]

    def test_small_blocks_are_counted(self) -> None:
        """However short they are, blocks that are remembered of beginnings take as much as they may, and no more."""
        self.patch(blocks_module, "BEGINNINGS_BYTES", 20_000)
        beginnings = Beginnings(Limits())
        blocks = HeaderBlocks(Limits(), beginnings)
        most = 0
        for number in range(60):
            blocks.request(b"\x82\x86\x04\x03/%02d" % number)
            most = max(most, len(beginnings.start.heads))
        self.assertGreater(most, 10)
        self.assertLess(most, 20)

    def test_idle_connections_keep_no_ways(self) -> None:
        """What was forgotten of beginnings is gone, wherever connections stand that say nothing; they can go on."""
        self.patch(blocks_module, "BEGINNINGS_BYTES", 20_000)
        limits = Limits()
        beginnings = Beginnings(limits)
        idle, encoder = HeaderBlocks(limits, beginnings), Encoder()
        idle.request(encoder.encode(self.fields(("a", "1"))))
        fresh = HeaderBlocks(limits, beginnings)
        start, stands_at = beginnings.start, idle._moment
        assert stands_at is not None
        number = 0
        while beginnings.start is start:
            other, others = HeaderBlocks(limits, beginnings), Encoder()
            for value in ("1", f"{number}", "3"):
                encoded = others.encode(self.fields(("a", value)))
                other.known(encoded) or other.request(encoded)
            number += 1
        for _ in range(2):
            encoded = encoder.encode(self.fields(("a", "1"), ("b", "2")))
            head = idle.known(encoded) or idle.request(encoded)
            self.assertEqual(head.fields[-2:], ((b"a", b"1"), (b"b", b"2")))
            fresh.request(Encoder().encode(self.fields(("a", "1"))))
        for moment in (start, stands_at):
            self.assertEqual((moment.heads, moment.steps), ({}, {}))

    def test_secrets_stay(self) -> None:
        """What only one client knows is remembered for that client alone."""
        beginnings = Beginnings(Limits())
        blocks = HeaderBlocks(Limits(), beginnings)
        for _ in range(3):
            blocks.request(self.encoder.encode(self.fields(("authorization", "Bearer secret"))))
        blocks, encoder = HeaderBlocks(Limits(), beginnings), Encoder()
        for _ in range(3):
            blocks.request(encoder.encode([*REQUEST, ("x-api-key", "secret", True)]))
        self.assertEqual((beginnings.start.heads, beginnings.start.steps), ({}, {}))

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
