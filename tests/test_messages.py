"""gRPC's own encodings: messages, timeouts, status messages, metadata."""

from __future__ import annotations

import gzip
import itertools
import tracemalloc
import zlib
from urllib.parse import unquote

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from artifactserver.rpc.codes import Code
from artifactserver.rpc.messages import (
    STATUS_MESSAGE_BYTES,
    BadMessage,
    Compressed,
    MessageReader,
    decode_binary,
    encode_binary,
    encode_status_message,
    is_grpc,
    metadata_of,
    parse_timeout,
    prefix,
    whole_message,
)
from tests.http2_peer import message


class ReaderTests(SynchronousTestCase):
    """Messages in a request's body."""

    def read(self, *pieces: bytes, limit: int = 1000, encoding: bytes = b"identity") -> list[bytes]:
        reader = MessageReader(limit, encoding)
        messages = [content for piece in pieces for content, _ in reader.feed(piece)]
        self.assertFalse(reader.unfinished)
        return [content.expand() if isinstance(content, Compressed) else content for content in messages]

    def assert_bad(self, code: Code, *pieces: bytes, encoding: bytes = b"identity") -> str:
        error = self.assertRaises(BadMessage, self.read, *pieces, encoding=encoding)
        self.assertEqual(error.code, code)
        return str(error)

    def test_messages(self) -> None:
        """Messages come out as they went in, empty ones too, each with what it took on the wire."""
        whole = message(b"one") + message(b"") + message(b"three")
        self.assertEqual(self.read(whole), [b"one", b"", b"three"])
        self.assertEqual(MessageReader(9).feed(whole), [(b"one", 8), (b"", 5), (b"three", 10)])

    @given(st.lists(st.binary(max_size=40), max_size=5), st.lists(st.integers(0, 250), max_size=8))
    def test_cut_anywhere(self, contents: list[bytes], cuts: list[int]) -> None:
        """How the body was cut does not matter."""
        whole = b"".join(map(message, contents))
        places = [0, *sorted(min(cut, len(whole)) for cut in cuts), len(whole)]
        pieces = [whole[a:b] for a, b in itertools.pairwise(places)]
        self.assertEqual(self.read(*pieces), contents)
        self.assertEqual(self.read(*[memoryview(piece) for piece in pieces]), contents)  # type: ignore[arg-type]
        self.assertEqual(self.read(*[whole[i : i + 1] for i in range(len(whole))]), contents)

    def test_unfinished(self) -> None:
        """It is known when the rest of a message is missing, and how much is kept of it."""
        for part in (b"\0", message(b"abc")[:5], message(b"abc")[:-1]):
            reader = MessageReader(10)
            reader.feed(part)
            self.assertTrue(reader.unfinished, part)
        self.assertEqual(reader.held, 2)

    def test_too_large(self) -> None:
        """A message beyond the limit is refused by its length, before it has come."""
        self.assertEqual(self.read(message(bytes(1000))), [bytes(1000)])
        text = self.assert_bad(Code.RESOURCE_EXHAUSTED, message(bytes(1001))[:5])
        self.assertIn("1001", text)

    def test_gzip(self) -> None:
        """A compressed message is decompressed if the request said how; others may come between."""
        whole = message(gzip.compress(b"hello"), 1) + message(b"plain")
        self.assertEqual(self.read(whole, encoding=b"gzip"), [b"hello", b"plain"])

    def test_gzip_bomb(self) -> None:
        """A message that grows beyond the limit is refused without growing further."""
        bomb = message(gzip.compress(bytes(10_000_000))[:], 1)
        ((content, _),) = MessageReader(100_000, b"gzip").feed(bomb)
        assert isinstance(content, Compressed)
        tracemalloc.start()
        self.addCleanup(tracemalloc.stop)
        self.assertEqual(self.assertRaises(BadMessage, content.expand).code, Code.RESOURCE_EXHAUSTED)
        self.assertLess(tracemalloc.get_traced_memory()[1], 1_000_000)
        self.assertEqual(self.read(message(gzip.compress(bytes(1000)), 1), encoding=b"gzip"), [bytes(1000)])
        self.assert_bad(Code.RESOURCE_EXHAUSTED, message(gzip.compress(bytes(1001)), 1), encoding=b"gzip")

    def test_many_bombs(self) -> None:
        """However many messages there are that would grow, none grows before it is taken."""
        bombs = message(gzip.compress(bytes(1_000_000)), 1) * 500
        reader = MessageReader(1_000_000, b"gzip")
        tracemalloc.start()
        self.addCleanup(tracemalloc.stop)
        messages = reader.feed(bombs)
        self.assertLess(tracemalloc.get_traced_memory()[1], 3 * len(bombs))
        self.assertEqual(sum(size for _, size in messages), len(bombs))
        last = messages[-1][0]
        assert isinstance(last, Compressed)
        self.assertEqual(last.expand(), bytes(1_000_000))

    def test_bad_compression(self) -> None:
        """What cannot be decompressed, or was not said to be compressed, is refused."""
        packed = gzip.compress(b"hello")
        for bad in (b"", b"nonsense", packed[:-1], packed + b"more", zlib.compress(b"hello")):
            self.assert_bad(Code.INTERNAL, message(bad, 1), encoding=b"gzip")
        self.assert_bad(Code.INTERNAL, message(packed, 1))
        self.assert_bad(Code.INTERNAL, message(b"x", 2))

    def test_whole_message(self) -> None:
        """A body that is exactly one message is recognised at once, and nothing else is taken for one."""
        self.assertEqual(whole_message(message(b"abc"), 3), b"abc")
        self.assertEqual(whole_message(memoryview(message(b"abc")), 3), b"abc")
        for other in (b"", b"\0\0", message(b"abc") + b"x", message(b"abc")[:-1], message(b"abc", 1), message(b"abcd")):
            self.assertIsNone(whole_message(other, 3))

    def test_prefix(self) -> None:
        """A message in pieces has one prefix."""
        self.assertEqual(prefix((b"ab", b"", b"c")) + b"abc", message(b"abc"))
        self.assertEqual(prefix((b"abc",)) + b"abc", message(b"abc"))


class TimeoutTests(SynchronousTestCase):
    """``grpc-timeout``."""

    def test_units(self) -> None:
        """Every unit is understood."""
        for value, seconds in ((b"2H", 7200), (b"3M", 180), (b"4S", 4), (b"5m", 0.005), (b"6u", 6e-6), (b"7n", 7e-9)):
            self.assertAlmostEqual(parse_timeout(value), seconds)
        self.assertEqual(parse_timeout(b"99999999H"), 99999999 * 3600)
        self.assertEqual(parse_timeout(b"0S"), 0)

    def test_bad(self) -> None:
        """Anything else is refused."""
        for bad in (b"", b"S", b"1", b"123456789S", b"-1S", b"1.5S", b"1s", b" 1S", b"1S "):
            self.assertEqual(self.assertRaises(BadMessage, parse_timeout, bad).code, Code.INVALID_ARGUMENT)


class StatusMessageTests(SynchronousTestCase):
    """``grpc-message``."""

    @given(st.text(max_size=300))
    def test_round_trip(self, text: str) -> None:
        """Any text arrives, as printable ASCII that neither begins nor ends with a space."""
        encoded = encode_status_message(text)
        self.assertEqual(unquote(encoded.decode("ascii"), errors="strict"), text.encode("utf-8", "replace").decode())
        self.assertEqual(encoded.strip(), encoded)
        self.assertTrue(all(0x20 <= byte <= 0x7E for byte in encoded))

    @given(st.text(min_size=1), st.integers(3, 40))
    def test_cut(self, text: str, most: int) -> None:
        """A long text is cut after a whole character."""
        encoded = encode_status_message(text * 50, most)
        # A space at an end takes two bytes more.
        self.assertLessEqual(len(encoded), most + 4)
        unquote(encoded.decode("ascii"), errors="strict")

    def test_limit(self) -> None:
        """However long a text is, its header stays small."""
        self.assertLessEqual(len(encode_status_message("ü" * 1_000_000)), STATUS_MESSAGE_BYTES)
        self.assertEqual(encode_status_message("a%b\n€"), b"a%25b%0A%E2%82%AC")


class ContentTypeTests(SynchronousTestCase):
    """``content-type``."""

    def test_grpc(self) -> None:
        """gRPC with protobuf messages is recognised in all its spellings."""
        for good in (b"application/grpc", b"application/grpc+proto", b"application/grpc;charset=utf-8"):
            self.assertTrue(is_grpc(good), good)
        for bad in (b"", b"application/json", b"application/grpc-web", b"application/grpc+json", b"application/grpcx"):
            self.assertFalse(is_grpc(bad), bad)


class MetadataTests(SynchronousTestCase):
    """What applications send along."""

    @given(st.binary())
    def test_binary(self, value: bytes) -> None:
        """Binary values arrive, whether their base64 is padded or not."""
        encoded = encode_binary(value)
        self.assertNotIn(b"=", encoded)
        self.assertEqual(decode_binary(encoded), value)
        self.assertEqual(decode_binary(encoded + b"=" * (-len(encoded) % 4)), value)

    def test_bad_binary(self) -> None:
        """What is not base64 is refused."""
        for bad in (b"a", b"a*==", b"\xff\xff"):
            self.assertRaises(BadMessage, decode_binary, bad)

    def test_names(self) -> None:
        """Handlers see what applications sent and which program sent it, and not what transports say to each other."""
        fields = [
            (b"te", b"trailers"),
            (b"content-type", b"application/grpc"),
            (b"grpc-timeout", b"1S"),
            (b"grpc-trace-bin", b"AAE"),
            (b"user-agent", b"grpc-python/1"),
            (b"authorization", b"Bearer x"),
            (b"a", b"1"),
            (b"a", b"2"),
            (b"b-bin", b"eA,eQ"),
        ]
        self.assertEqual(
            metadata_of(fields),
            {
                "user-agent": "grpc-python/1",
                "authorization": "Bearer x",
                "a": "1,2",
                "b-bin": b"y",
                "grpc-trace-bin": b"\0\1",
            },
        )

    def test_cookies(self) -> None:
        """A cookie that comes in crumbs is put together as a browser would have sent it."""
        crumbs = [(b"cookie", b"a=1"), (b"x", b"y"), (b"cookie", b"b=2; c=3"), (b"cookie", b"d=4")]
        self.assertEqual(metadata_of(crumbs), {"cookie": "a=1; b=2; c=3; d=4", "x": "y"})
