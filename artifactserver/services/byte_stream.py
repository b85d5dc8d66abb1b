"""Blobs one at a time, in pieces: ``google.bytestream.ByteStream``.

What is known about an upload belongs to its call.  BuildStream and buildbox-casd use one upload ID for all that they
do, and upload the same blob twice at the same moment under the very same name; both succeed.
"""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator
from typing import ClassVar

from artifactserver.proto import bytestream_pb2 as bytestream
from artifactserver.rpc.dispatch import Call
from artifactserver.rpc.status import Code, RpcError
from artifactserver.services import encoding, write_requests
from artifactserver.services.resource_names import parse_read, parse_write
from artifactserver.store.digest import Digest, Digests
from artifactserver.store.interface import Blob, BlobMissing, Store, TooBusy

#: A message of an upload, in one of two forms with the same fields.
Request = bytestream.WriteRequest | write_requests.LargeWrite

#: Blobs up to this size, in bytes, are gathered in memory while they arrive, and stored together with others; larger
#: ones flow to the disk.
GATHERED_BYTES = 64 * 1024

#: Bytes of all blobs together that are gathered so while more of each is to come.
GATHERED_IN_ALL = 128 * 1024 * 1024

#: Bytes of content in one message on the way out: what the store checks at once, and every client takes.
PIECE_BYTES = 1024 * 1024


class ByteStream:
    """The service."""

    decoders: ClassVar = {"Write": write_requests.decode}
    gathered_bytes = GATHERED_BYTES
    piece_bytes = PIECE_BYTES

    def __init__(self, store: Store) -> None:
        self._store = store
        self._gathering = 0

    async def Read(
        self, request: bytestream.ReadRequest, call: Call
    ) -> tuple[bytes, bytes] | AsyncIterator[tuple[bytes, bytes]] | None:
        """A blob, or the part of it that was asked for."""
        digest = parse_read(request.resource_name)
        offset, limit = request.read_offset, request.read_limit
        if limit < 0:
            raise RpcError(Code.INVALID_ARGUMENT, f"{limit} is not a limit")
        if not 0 <= offset <= digest.size:
            raise RpcError(Code.OUT_OF_RANGE, f"there is no offset {offset} in a blob of {digest.size} bytes")
        end = min(digest.size, offset + limit) if limit else digest.size
        if offset == 0 and end == digest.size <= self.gathered_bytes:
            (content,) = await self._store.read_many(Digests([digest.key], [digest.size]))
            if content is None:
                raise BlobMissing(digest)
            return encoding.read_response(content) if content else None
        return self._pieces(digest, offset, end)

    async def _pieces(self, digest: Digest, offset: int, end: int) -> AsyncIterator[tuple[bytes, bytes]]:
        reader = await self._store.open(digest)
        try:
            while offset < end:
                content = await reader.read(offset, min(self.piece_bytes, end - offset))
                if not content:
                    raise BlobMissing(digest)
                offset += len(content)
                yield encoding.read_response(content)
        finally:
            reader.close()

    async def Write(self, requests: AsyncIterable[Request], call: Call) -> bytestream.WriteResponse:
        """Store a blob.  If it is here already, the answer comes at once, as if all of it had been sent."""
        messages = aiter(requests)
        request = await anext(messages, None)
        if request is None:
            raise RpcError(Code.INVALID_ARGUMENT, "the upload ended before it began")
        progress = _Progress(request.resource_name, messages)
        digest = progress.digest
        content = progress.take(request)
        # While the next message is on its way, nothing is kept of the one before.
        del request
        if digest.size <= self.gathered_bytes:
            return await self._write_small(progress, content)
        if await self._is_present(digest):
            return progress.answer()
        upload = await self._store.upload(digest, call.caller.account)
        try:
            while True:
                # Messages without data are none of the store's business, however many there are.
                if content:
                    await upload.write(content)
                if progress.finished:
                    break
                content = b""
                content = await progress.next()
            await upload.commit()
        finally:
            upload.close()
        return progress.answer()

    async def _write_small(self, progress: _Progress, content: bytes | memoryview) -> bytestream.WriteResponse:
        # Each piece has at least a byte, and none keeps the message alive that brought it: what is held is bounded by
        # the size of the blob.
        pieces = [bytes(content)] if content else []
        if not progress.finished:
            if await self._is_present(progress.digest):
                return progress.answer()
            await self._gather(progress, pieces)
        (outcome,) = await self._store.add_many([Blob(progress.digest, b"".join(pieces))])
        if outcome is not None:
            raise outcome
        return progress.answer()

    async def _gather(self, progress: _Progress, pieces: list[bytes]) -> None:
        size = progress.digest.size
        if self._gathering + size > GATHERED_IN_ALL:
            raise TooBusy("too many small uploads are under way: try again when some of them have finished")
        self._gathering += size
        try:
            while not progress.finished:
                if content := await progress.next():
                    pieces.append(bytes(content))
        finally:
            self._gathering -= size

    async def QueryWriteStatus(
        self, request: bytestream.QueryWriteStatusRequest, call: Call
    ) -> bytestream.QueryWriteStatusResponse:
        """How far an upload got: all of it, or, since uploads do not outlive their calls, nothing.

        The interface also allows NOT_FOUND for an unknown upload; bazel-remote and NativeLink say 0, from where Bazel
        starts again.
        """
        digest = parse_write(request.resource_name)
        if await self._is_present(digest):
            return bytestream.QueryWriteStatusResponse(committed_size=digest.size, complete=True)
        return bytestream.QueryWriteStatusResponse(committed_size=0, complete=False)

    async def _is_present(self, digest: Digest) -> bool:
        return not await self._store.find_missing(Digests([digest.key], [digest.size]))


class _Progress:
    """Holds an upload's messages to the rules: one name, no gaps, nothing beyond the end.

    :param name: the resource name in the first message.
    :param messages: those after the first one.
    :ivar digest: what is uploaded.
    :ivar finished: whether the last message was here, and nothing is lacking.
    """

    __slots__ = ("_messages", "_name", "_received", "digest", "finished")

    def __init__(self, name: str, messages: AsyncIterator[Request]) -> None:
        self.digest = parse_write(name)
        self.finished = False
        self._name = name
        self._messages = messages
        self._received = 0

    def take(self, request: Request) -> bytes | memoryview:
        """The data of a message.

        :raises RpcError: INVALID_ARGUMENT, if the message breaks a rule.
        """
        size = self.digest.size
        if request.resource_name and request.resource_name != self._name:
            raise RpcError(Code.INVALID_ARGUMENT, "the resource name changed in the middle of an upload")
        if request.write_offset != self._received:
            raise RpcError(
                Code.INVALID_ARGUMENT,
                f"data for offset {request.write_offset} came where offset {self._received} was due",
            )
        data = request.data  # of a protobuf message a copy, each time
        self._received += len(data)
        if self._received > size:
            raise RpcError(Code.INVALID_ARGUMENT, f"more than the {size} bytes of blob {self.digest} were sent")
        if request.finish_write:
            if self._received < size:
                raise RpcError(
                    Code.INVALID_ARGUMENT, f"only {self._received} of the {size} bytes of blob {self.digest} were sent"
                )
            self.finished = True
        return data

    async def next(self) -> bytes | memoryview:
        """The data of the next message.

        :raises RpcError: INVALID_ARGUMENT, if it breaks a rule or there is none.
        """
        request = await anext(self._messages, None)
        if request is None:
            raise RpcError(Code.INVALID_ARGUMENT, f"the upload of blob {self.digest} ended without finish_write")
        return self.take(request)

    def answer(self) -> bytestream.WriteResponse:
        return bytestream.WriteResponse(committed_size=self.digest.size)
