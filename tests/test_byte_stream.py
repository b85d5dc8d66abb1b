"""Blobs of any size, read and written in pieces."""

from __future__ import annotations

import os
import threading
import uuid
import weakref
from collections.abc import AsyncIterator, Iterable, Iterator
from typing import Any

from grpc import StatusCode
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.task import deferLater
from twisted.internet.threads import deferToThread
from twisted.trial.unittest import SynchronousTestCase

from artifactserver.access import Right
from artifactserver.proto import bytestream_pb2 as bytestream
from artifactserver.rpc.dispatch import Call
from artifactserver.services.byte_stream import GATHERED_BYTES, PIECE_BYTES, ByteStream
from artifactserver.services.write_requests import LargeWrite
from artifactserver.store.digest import EMPTY, Digest, Digests
from tests.callers import PUSHER
from tests.grpc_cases import GrpcMixin, OverLocal, OverMemory, reactor
from tests.memory_store import MemoryStore

#: Sizes on both sides of the borders between ways of storing and of sending.
SIZES = (
    1,
    4096,
    GATHERED_BYTES,
    GATHERED_BYTES + 1,
    PIECE_BYTES,
    PIECE_BYTES + 1,
    3 * 1024 * 1024 + 17,
)

UPLOAD = str(uuid.uuid4())


def read_name(digest: Digest) -> str:
    """How most clients name a blob that they read."""
    return f"blobs/{digest}"


def write_name(digest: Digest) -> str:
    """How most clients name a blob that they write, all under one upload ID."""
    return f"uploads/{UPLOAD}/blobs/{digest}"


def reading(digest: Digest, offset: int = 0, limit: int = 0) -> bytestream.ReadRequest:
    """Asks for a blob or a part of it."""
    return bytestream.ReadRequest(resource_name=read_name(digest), read_offset=offset, read_limit=limit)


def writing(
    content: bytes, *, name: str | None = None, piece: int = 1024 * 1024, name_in_all: bool = False
) -> Iterator[bytestream.WriteRequest]:
    """The messages of an upload."""
    name = name if name is not None else write_name(Digest.of(content))
    for offset in range(0, len(content) or 1, piece):
        part = content[offset : offset + piece]
        yield bytestream.WriteRequest(
            resource_name=name if offset == 0 or name_in_all else "",
            write_offset=offset,
            data=part,
            finish_write=offset + len(part) == len(content),
        )


def messages(*requests: dict[str, Any]) -> list[bytestream.WriteRequest]:
    """Messages with these fields."""
    return [bytestream.WriteRequest(**request) for request in requests]


class ReadMixin(GrpcMixin):
    """ByteStream.Read."""

    async def read(self, client: Any, request: bytestream.ReadRequest) -> bytes:
        """What the stream brings."""
        return b"".join(each.data for each in await client.call("Read", request))

    async def test_whole(self: Any) -> None:
        """Blobs of every size come as they were stored."""
        client = await self.serve()
        for size in SIZES:
            content = os.urandom(size)
            (digest,) = await self.put(content)
            self.assertEqual(await self.read(client, reading(digest)), content)

    async def test_parts(self: Any) -> None:
        """Any part can be read, and a limit beyond the end is no mistake."""
        client = await self.serve()
        for size in (1000, 700_000):
            content = os.urandom(size)
            (digest,) = await self.put(content)
            for offset, limit in (
                (0, 1),
                (1, 0),
                (size // 2, 100),
                (size - 1, 1),
                (size - 1, 100),
                (0, size),
                (0, size + 1),
                (5, 2**62),
                (size // 3, size // 3),
            ):
                expected = content[offset : offset + limit] if limit else content[offset:]
                self.assertEqual(await self.read(client, reading(digest, offset, limit)), expected, (offset, limit))

    async def test_end(self: Any) -> None:
        """Reading from the very end brings nothing, and is no mistake."""
        client = await self.serve()
        for content in (b"some", os.urandom(100_000)):
            (digest,) = await self.put(content)
            self.assertEqual(await self.read(client, reading(digest, len(content))), b"")
            self.assertEqual(await self.read(client, reading(digest, len(content), 10)), b"")

    async def test_outside(self: Any) -> None:
        """An offset beyond the end or before the start is OUT_OF_RANGE; a limit below 0 is INVALID_ARGUMENT."""
        client = await self.serve()
        (digest,) = await self.put(b"some")
        for offset in (5, 2**62, -1):
            await self.refused(client, StatusCode.OUT_OF_RANGE, "Read", reading(digest, offset))
        await self.refused(client, StatusCode.INVALID_ARGUMENT, "Read", reading(digest, 0, -1))
        await self.refused(client, StatusCode.OUT_OF_RANGE, "Read", reading(EMPTY, 1))

    async def test_missing(self: Any) -> None:
        """What is not here is NOT_FOUND; a known hash with another size too, and it is never cut to that size."""
        client = await self.serve()
        for size in (100, 100_000):
            content = os.urandom(size)
            (digest,) = await self.put(content)
            for wrong in (
                Digest.of(content + b"!"),
                Digest(digest.key, size - 1),
                Digest(digest.key, size + 1),
                Digest(digest.key, 2**40),
                Digest(digest.key, 0),
            ):
                await self.refused(client, StatusCode.NOT_FOUND, "Read", reading(wrong))

    async def test_end_of_missing(self: Any) -> None:
        """A blob that is not here is NOT_FOUND from any offset."""
        client = await self.serve()
        for size in (100, 100_000):
            gone = Digest(Digest.of(b"gone").key, size)
            await self.refused(client, StatusCode.NOT_FOUND, "Read", reading(gone, size))

    async def test_empty_blob(self: Any) -> None:
        """The empty blob can be read, though nobody uploaded it."""
        client = await self.serve()
        self.assertEqual(await self.read(client, reading(EMPTY)), b"")
        self.assertEqual(await self.read(client, reading(EMPTY, 0, 10)), b"")

    async def test_names(self: Any) -> None:
        """Every client's form of a name brings the blob."""
        client = await self.serve()
        (digest,) = await self.put(b"some")
        for name in (
            f"blobs/{digest}",
            f"my/instance/blobs/{digest}",
            f"blobs/{digest}/file.c",
            f"blobs/sha256/{digest}",
            str(digest),
        ):
            self.assertEqual(await self.read(client, bytestream.ReadRequest(resource_name=name)), b"some")

    async def test_bad_names(self: Any) -> None:
        """What is no name is INVALID_ARGUMENT, upper-case digits, compressed names and names for writing included."""
        client = await self.serve()
        (digest,) = await self.put(b"some")
        for name in (
            "",
            "blobs",
            f"blobs/{digest.hex.upper()}/4",
            f"blobs/{digest.hex}/four",
            f"blobs/{digest.hex}",
            f"blobs/{digest.hex[1:]}/4",
            f"compressed-blobs/zstd/{digest}",
            f"blobs/blake3/{digest}",
            write_name(digest),
            "blobs/../../../etc/passwd",
        ):
            request = bytestream.ReadRequest(resource_name=name)
            await self.refused(client, StatusCode.INVALID_ARGUMENT, "Read", request)

    async def test_message_sizes(self: Any) -> None:
        """No message is larger than a client takes."""
        client = await self.serve()
        (digest,) = await self.put(os.urandom(3_000_000))
        sizes = [len(each.data) for each in await client.call("Read", reading(digest))]
        self.assertEqual(sum(sizes), 3_000_000)
        self.assertLessEqual(max(sizes), 1024 * 1024)
        self.assertGreater(min(sizes), 0)

    async def test_slow_reader(self: Any) -> None:
        """Who reads slowly gets it all, and who stops in the middle leaves nothing behind."""
        client = await self.serve()
        content = os.urandom(20 * 1024 * 1024)
        (digest,) = await self.put(content)
        stream = client.callable("Read")(reading(digest), timeout=60)
        self.assertEqual((await deferToThread(next, stream)).data, content[:PIECE_BYTES])
        await deferLater(reactor, 0.2)
        rest = await deferToThread(lambda: b"".join(each.data for each in stream))
        self.assertEqual(rest, content[PIECE_BYTES:])
        stream = client.callable("Read")(reading(digest), timeout=60)
        await deferToThread(next, stream)
        stream.cancel()
        self.assertEqual(await self.read(client, reading(digest, 0, 10)), content[:10])

    async def test_without_push(self: Any) -> None:
        """Whoever may pull can read; whoever may not, cannot."""
        self.enable_push = False
        client = await self.serve()
        (digest,) = await self.put(b"some")
        self.assertEqual(await self.read(client, reading(digest)), b"some")
        client = await self.serve(rights=[])
        await self.refused(client, StatusCode.PERMISSION_DENIED, "Read", reading(digest))


class WriteMixin(GrpcMixin):
    """ByteStream.Write."""

    async def stored(self: Any, content: bytes) -> bool:
        """Whether the store has it, right."""
        reader = None
        digest = Digest.of(content)
        if await self.store.find_missing(Digests.of([digest])):
            return False
        reader = await self.store.open(digest)
        try:
            pieces, offset = [], 0
            while piece := (await reader.read(offset, 1 << 20) if offset < len(content) else b""):
                pieces.append(piece)
                offset += len(piece)
        finally:
            reader.close()
        self.assertEqual(b"".join(pieces), content)
        return True

    async def refuses(self: Any, client: Any, requests: Iterable[bytestream.WriteRequest], content: bytes) -> None:
        """An upload is the client's mistake, and leaves nothing behind."""
        await self.refused(client, StatusCode.INVALID_ARGUMENT, "Write", iter(list(requests)))
        self.assertFalse(await self.stored(content))

    async def test_whole(self: Any) -> None:
        """Blobs of every size are stored, and committed_size is the size (BuildStream 1.x asserts it)."""
        client = await self.serve()
        for size in SIZES:
            content = os.urandom(size)
            answer = await client.call("Write", writing(content))
            self.assertEqual(answer.committed_size, size)
            self.assertTrue(await self.stored(content))

    async def test_pieces(self: Any) -> None:
        """It does not matter how an upload is cut, nor whether the name stands in the first message or in all."""
        client = await self.serve()
        for size, piece in ((1000, 1), (1000, 999), (200_000, 4096), (200_000, 199_999), (3_000_000, 1 << 21)):
            for name_in_all in (True, False):
                content = os.urandom(size)
                answer = await client.call("Write", writing(content, piece=piece, name_in_all=name_in_all))
                self.assertEqual(answer.committed_size, size)
                self.assertTrue(await self.stored(content))

    async def test_empty_messages(self: Any) -> None:
        """Messages without data are no mistake: the first may only name, the last may only finish."""
        client = await self.serve()
        for size in (10, 100_000):
            content = os.urandom(size)
            name = write_name(Digest.of(content))
            requests = messages(
                {"resource_name": name},
                {"data": content[:5]},
                {"write_offset": 5},
                {"write_offset": 5, "data": content[5:]},
                {"write_offset": size, "finish_write": True},
            )
            answer = await client.call("Write", iter(requests))
            self.assertEqual(answer.committed_size, size)
            self.assertTrue(await self.stored(content))

    async def test_empty_blob(self: Any) -> None:
        """The empty blob can be uploaded with one message that finishes (Pants)."""
        client = await self.serve()
        answer = await client.call("Write", writing(b""))
        self.assertEqual(answer.committed_size, 0)
        requests = messages({"resource_name": write_name(EMPTY), "data": b"x", "finish_write": True})
        await self.refused(client, StatusCode.INVALID_ARGUMENT, "Write", iter(requests))

    async def test_names(self: Any) -> None:
        """Every client's form of a name is taken, and any upload ID."""
        client = await self.serve()
        for number, form in enumerate(
            (
                "uploads/{id}/blobs/{digest}",
                "my/instance/uploads/{id}/blobs/{digest}",
                "uploads/no uuid/blobs/{digest}",
                "uploads/{id}/blobs/sha256/{digest}",
                "uploads/{id}/blobs/{digest}/src/file.c",
                "{digest}",
            )
        ):
            content = b"named %d" % number
            name = form.format(id=UPLOAD, digest=Digest.of(content))
            await client.call("Write", writing(content, name=name))
            self.assertTrue(await self.stored(content))

    async def test_bad_names(self: Any) -> None:
        """What is no name is INVALID_ARGUMENT."""
        client = await self.serve()
        digest = Digest.of(b"some")
        for name in (
            "",
            f"blobs/{digest}",
            f"uploads/{UPLOAD}/blobs/{digest.hex.upper()}/4",
            f"uploads/{UPLOAD}/blobs/{digest.hex}/x",
            f"uploads/{UPLOAD}/compressed-blobs/zstd/{digest}",
            f"uploads/{UPLOAD}/{digest}",
        ):
            await self.refuses(client, writing(b"some", name=name), b"some")

    async def test_wrong_content(self: Any) -> None:
        """Content that is not what its digest says is refused."""
        client = await self.serve()
        for size in (100, 100_000):
            content = os.urandom(size)
            wrong = bytes([content[0] ^ 1]) + content[1:]
            name = write_name(Digest.of(content))
            await self.refuses(client, writing(wrong, name=name), content)
            self.assertFalse(await self.stored(wrong))

    async def test_too_short_or_long(self: Any) -> None:
        """Too little before finish_write is refused, and so is too much, in one message or in several."""
        client = await self.serve()
        for size in (100, 100_000):
            content = os.urandom(size)
            name = write_name(Digest.of(content))
            await self.refuses(client, writing(content[:-1], name=name), content)
            await self.refuses(client, writing(content + b"!", name=name), content)
            await self.refuses(
                client,
                messages(
                    {"resource_name": name, "data": content},
                    {"write_offset": size, "data": b"!", "finish_write": True},
                ),
                content,
            )

    async def test_offsets(self: Any) -> None:
        """Data belongs where the data before it ended: gaps, repetitions and a late start are refused."""
        client = await self.serve()
        for size in (100, 100_000):
            content = os.urandom(size)
            name = write_name(Digest.of(content))
            half = size // 2
            for offset in (0, half - 1, half + 1, -1, 2**62):
                await self.refuses(
                    client,
                    messages(
                        {"resource_name": name, "data": content[:half]},
                        {"write_offset": offset, "data": content[half:], "finish_write": True},
                    ),
                    content,
                )
            for offset in (1, -1, size):
                await self.refuses(
                    client,
                    messages({"resource_name": name, "write_offset": offset, "data": content, "finish_write": True}),
                    content,
                )

    async def test_no_finish(self: Any) -> None:
        """An upload that just ends is refused, even if all bytes are there."""
        client = await self.serve()
        for size in (100, 100_000):
            content = os.urandom(size)
            name = write_name(Digest.of(content))
            for part in (content, content[:50], b""):
                await self.refuses(client, messages({"resource_name": name, "data": part}), content)

    async def test_nothing(self: Any) -> None:
        """An upload without a message is refused."""
        client = await self.serve()
        await self.refused(client, StatusCode.INVALID_ARGUMENT, "Write", iter(()))

    async def test_other_name(self: Any) -> None:
        """The name may not change in the middle, not even to another name of the same blob."""
        client = await self.serve()
        for size in (100, 100_000):
            content = os.urandom(size)
            digest = Digest.of(content)
            for name in (write_name(EMPTY), f"x/{write_name(digest)}"):
                await self.refuses(
                    client,
                    messages(
                        {"resource_name": write_name(digest), "data": content[:10]},
                        {"resource_name": name, "write_offset": 10, "data": content[10:], "finish_write": True},
                    ),
                    content,
                )

    async def test_early_answer(self: Any) -> None:
        """For a blob that is here the answer comes while the client is still sending."""
        client = await self.serve()
        for size in (1000, 3_000_000):
            content = os.urandom(size)
            await self.put(content)
            never = threading.Event()

            def slowly(content: bytes = content, never: threading.Event = never) -> Iterator[bytestream.WriteRequest]:
                yield bytestream.WriteRequest(resource_name=write_name(Digest.of(content)), data=content[:10])
                never.wait(30)

            answer = await client.call("Write", slowly(), timeout=10)
            never.set()
            self.assertEqual(answer.committed_size, size)

    async def test_again(self: Any) -> None:
        """Uploading what is here already succeeds, whole."""
        client = await self.serve()
        for size in (1000, 3_000_000):
            content = os.urandom(size)
            for _ in range(2):
                self.assertEqual((await client.call("Write", writing(content, piece=65536))).committed_size, size)

    async def test_the_same_at_once(self: Any) -> None:
        """One blob uploaded several times at the same moment under the same name: all succeed (BuildStream)."""
        client = await self.serve()
        for size in (1000, 500_000):
            content = os.urandom(size)
            count = 4
            together = threading.Barrier(count)

            def uploading(content: bytes = content, together: threading.Barrier = together) -> Iterator[Any]:
                for number, request in enumerate(writing(content, piece=-(-len(content) // 3))):
                    if number == 1:
                        together.wait(20)
                    yield request

            multi = client.callable("Write")
            answers = await gatherResults(
                [deferToThread(lambda: multi(uploading(), timeout=30)) for _ in range(count)]  # noqa: B023
            )
            self.assertEqual([answer.committed_size for answer in answers], [size] * count)
            self.assertTrue(await self.stored(content))

    async def test_given_up(self: Any) -> None:
        """An upload that the client gives up leaves nothing behind, and can be done again."""
        client = await self.serve()
        content = os.urandom(500_000)
        never = threading.Event()
        self.addCleanup(never.set)

        def stuck() -> Iterator[bytestream.WriteRequest]:
            yield bytestream.WriteRequest(resource_name=write_name(Digest.of(content)), data=content[:1000])
            never.wait(30)

        future = client.callable("Write").future(stuck(), timeout=30)
        await deferLater(reactor, 0.2)
        future.cancel()
        never.set()
        await deferLater(reactor, 0.2)
        self.assertFalse(await self.stored(content))
        self.assertEqual((await client.call("Write", writing(content))).committed_size, len(content))

    async def test_push_is_off(self: Any) -> None:
        """Where push is off or not allowed, an upload is refused, and the user is told."""
        self.enable_push = False
        client = await self.serve()
        error = await self.refused(client, StatusCode.PERMISSION_DENIED, "Write", writing(b"some"))
        self.assertIn("--enable-push", error.details())
        self.enable_push = True
        client = await self.serve(rights=[Right.PULL])
        await self.refused(client, StatusCode.PERMISSION_DENIED, "Write", writing(b"some"))


class QueryWriteStatusMixin(GrpcMixin):
    """ByteStream.QueryWriteStatus."""

    async def test_complete(self: Any) -> None:
        """An upload of a blob that is here is complete."""
        client = await self.serve()
        (digest,) = await self.put(b"some")
        request = bytestream.QueryWriteStatusRequest(resource_name=write_name(digest))
        answer = await client.call("QueryWriteStatus", request)
        self.assertEqual((answer.committed_size, answer.complete), (4, True))

    async def test_unknown(self: Any) -> None:
        """Any other upload starts from 0 (Bazel asks when it tries again)."""
        client = await self.serve()
        request = bytestream.QueryWriteStatusRequest(resource_name=write_name(Digest.of(b"gone")))
        answer = await client.call("QueryWriteStatus", request)
        self.assertEqual((answer.committed_size, answer.complete), (0, False))

    async def test_bad_name(self: Any) -> None:
        """What is no name of an upload is INVALID_ARGUMENT."""
        client = await self.serve()
        for name in ("", read_name(EMPTY), "uploads"):
            request = bytestream.QueryWriteStatusRequest(resource_name=name)
            await self.refused(client, StatusCode.INVALID_ARGUMENT, "QueryWriteStatus", request)


class ReadMemoryTests(ReadMixin, OverMemory):
    """Read over the store in memory."""

    async def test_readers_are_closed(self) -> None:
        """Whatever becomes of a download, nothing stays open."""
        client = await self.serve()
        content = os.urandom(20 * 1024 * 1024)
        (digest,) = await self.put(content)
        await self.read(client, reading(digest))
        stream = client.callable("Read")(reading(digest), timeout=60)
        await deferToThread(next, stream)
        self.assertEqual(len(self.store.readers), 1)
        stream.cancel()
        for _ in range(200):
            if not self.store.readers:
                break
            await deferLater(reactor, 0.01)
        self.assertEqual(self.store.readers, set())

    async def test_damage_in_the_middle(self) -> None:
        """A download that turns out to be damaged is broken off; what came before was right."""
        client = await self.serve()
        content = os.urandom(3 * PIECE_BYTES)
        (digest,) = await self.put(content)
        open_blob = self.store.open

        async def damaged(digest: Digest) -> Any:
            reader = await open_blob(digest)
            read = reader.read

            async def until_damage(offset: int, length: int) -> bytes:
                return b"" if offset else await read(offset, length)

            reader.read = until_damage
            return reader

        self.store.open = damaged
        await self.refused(client, StatusCode.NOT_FOUND, "Read", reading(digest))


class ReadLocalTests(ReadMixin, OverLocal):
    """Read over the store on disk."""


class WriteMemoryTests(WriteMixin, OverMemory):
    """Write over the store in memory."""

    async def test_bounds(self) -> None:
        """A blob beyond the limit is the client's mistake; no room and too much at once are not."""
        store = MemoryStore(self.now, capacity=200_000, max_blob_size=1_000_000, max_uploads=0)
        client = await self.serve(store)
        await self.refused(client, StatusCode.UNAVAILABLE, "Write", writing(os.urandom(100_000)))
        store.max_uploads = 10
        await self.refused(client, StatusCode.RESOURCE_EXHAUSTED, "Write", writing(os.urandom(300_000)))
        await self.refused(client, StatusCode.INVALID_ARGUMENT, "Write", writing(os.urandom(1_000_001)))
        store.capacity = 10
        await self.refused(client, StatusCode.RESOURCE_EXHAUSTED, "Write", writing(os.urandom(100)))

    async def test_uploads_are_closed(self) -> None:
        """Whatever becomes of an upload, nothing of it stays open."""
        client = await self.serve()
        content = os.urandom(100_000)
        await client.call("Write", writing(content))
        await self.refused(
            client, StatusCode.INVALID_ARGUMENT, "Write", writing(content, name=write_name(Digest(EMPTY.key, 100_000)))
        )
        never = threading.Event()
        self.addCleanup(never.set)
        other = os.urandom(100_000)

        def stuck() -> Iterator[bytestream.WriteRequest]:
            yield bytestream.WriteRequest(resource_name=write_name(Digest.of(other)), data=other[:1000])
            never.wait(30)

        future = client.callable("Write").future(stuck(), timeout=30)
        for _ in range(200):
            if self.store.uploads.get("127.0.0.1"):
                break
            await deferLater(reactor, 0.01)
        self.assertEqual(len(self.store.uploads["peer"]), 1)
        future.cancel()
        never.set()
        for _ in range(200):
            if not self.store.uploads["peer"]:
                break
            await deferLater(reactor, 0.01)
        self.assertEqual(self.store.uploads["peer"], [])

    async def test_small_ones_go_together(self) -> None:
        """A blob of up to 64 KiB is not an upload of its own in the store, a larger one is."""
        client = await self.serve()
        begun: list[Digest] = []
        upload = self.store.upload

        async def counted(digest: Digest, caller: str) -> Any:
            begun.append(digest)
            return await upload(digest, caller)

        self.store.upload = counted
        small, large = os.urandom(GATHERED_BYTES), os.urandom(GATHERED_BYTES + 1)
        await client.call("Write", writing(small, piece=1000))
        await client.call("Write", writing(large, piece=1000))
        self.assertEqual(begun, [Digest.of(large)])

    async def test_messages_without_data(self) -> None:
        """However many messages without data an upload has, the store sees only those with data."""
        client = await self.serve()
        written: list[int] = []
        upload = self.store.upload

        async def counted(digest: Digest, caller: str) -> Any:
            began = await upload(digest, caller)
            write = began.write

            async def count(content: bytes | memoryview) -> None:
                written.append(len(content))
                await write(content)

            began.write = count
            return began

        self.store.upload = counted
        content = os.urandom(GATHERED_BYTES + 1)
        requests = messages(
            *[{"resource_name": write_name(Digest.of(content))}] * 500,
            {"data": content[:1]},
            *[{"write_offset": 1}] * 500,
            {"write_offset": 1, "data": content[1:]},
            {"write_offset": len(content), "finish_write": True},
        )
        await client.call("Write", iter(requests))
        self.assertEqual(written, [1, GATHERED_BYTES])
        self.assertTrue(await self.stored(content))


class GatheringTests(SynchronousTestCase):
    """Small blobs, while they arrive."""

    def test_what_is_held(self) -> None:
        """A client that sends a small blob in huge messages, and many without data, makes the server hold the blob."""
        content = os.urandom(100)
        sent: list[weakref.ref[Padding]] = []
        alive: list[int] = []

        class Padding(bytearray):
            """What a message was cut from."""

        async def requests() -> AsyncIterator[LargeWrite]:
            for offset in range(len(content)):
                for data in (content[offset : offset + 1], b""):
                    whole = Padding(data.rjust(10_000))
                    sent.append(weakref.ref(whole))
                    view = memoryview(whole)[len(whole) - len(data) :]
                    del whole
                    start, end = offset + (not data), offset + 1 == len(content) and not data
                    yield LargeWrite(write_name(Digest.of(content)), start, end, view)
                    del view
                    alive.append(sum(each() is not None for each in sent))

        store = MemoryStore(lambda: 0.0)
        call = Call(PUSHER, {})
        answer = self.successResultOf(Deferred.fromCoroutine(ByteStream(store).Write(requests(), call)))
        self.assertEqual(answer.committed_size, len(content))
        self.assertLess(max(alive), 4)


class WriteLocalTests(WriteMixin, OverLocal):
    """Write over the store on disk."""

    async def test_full(self) -> None:
        """When there is no room above the head room, an upload is refused as such."""
        client = await self.serve(await self.make_store(head_room_min=2**62))
        for size in (100, 100_000):
            await self.refused(client, StatusCode.RESOURCE_EXHAUSTED, "Write", writing(os.urandom(size)))


class QueryWriteStatusMemoryTests(QueryWriteStatusMixin, OverMemory):
    """QueryWriteStatus over the store in memory."""


class QueryWriteStatusLocalTests(QueryWriteStatusMixin, OverLocal):
    """QueryWriteStatus over the store on disk."""
