"""Blobs, many at a time: ``build.bazel.remote.execution.v2.ContentAddressableStorage``.

A call may name some ten thousand digests (reclient, BuildStream 2.8) or fill a message of 4 MiB with them (Bazel).
Such a call is worked off in slices, and others get their turn in between.  Digests travel as columns, and answers are
written by `artifactserver.services.encoding`; no object is made for a single digest on the way.
"""

from __future__ import annotations

from collections.abc import Sequence
from operator import attrgetter

from artifactserver.proto import remote_execution_pb2 as reapi
from artifactserver.proto import status_pb2
from artifactserver.rpc.dispatch import Call
from artifactserver.rpc.status import Code, RpcError, status_of
from artifactserver.services import encoding
from artifactserver.services.digests import DigestColumns, check_count, check_function
from artifactserver.services.names import check_instance
from artifactserver.services.turns import Turns
from artifactserver.store.digest import Digest, Digests
from artifactserver.store.interface import BlobMissing, Blobs, NoRoom, Store, StoreError
from artifactserver.store.slices import slices

#: The most bytes of payload in one batch, up or down.
#:
#: 0, for no limit, would be a lie in front of the 4 MiB that gRPC libraries take by default.  Between the limit and
#: those 4 MiB there has to be room for the some 90 bytes around each blob, which many clients do not count: half of
#: them is enough when blobs have 90 bytes on average.  Larger batches would save little: at 30 ms and 100 Mbit/s, 2 MiB
#: take 15 % longer than without any round trip, 4 MiB 8 %.
MAX_BATCH_TOTAL_SIZE = 2 * 1024 * 1024

#: Digests, or blobs, that are worked on before others get their turn: a millisecond or two.
SLICE = 1_000

#: Blobs that are read before others get their turn, and their bytes: as long.
READ_SLICE = 500
READ_SLICE_BYTES = 1024 * 1024

_COMPRESSOR = attrgetter("compressor")


class ContentAddressableStorage:
    """The service.  ``GetTree``, ``SplitBlob`` and ``SpliceBlob`` are not built yet.

    :param turns: lets others have the thread.
    """

    max_batch_total_size = MAX_BATCH_TOTAL_SIZE
    slice = SLICE
    read_slice = READ_SLICE
    read_slice_bytes = READ_SLICE_BYTES

    def __init__(self, store: Store, turns: Turns) -> None:
        self._store = store
        self._turns = turns

    async def FindMissingBlobs(self, request: reapi.FindMissingBlobsRequest, call: Call) -> bytes:
        """Which of these are not here, each distinct one once.  Those that are here stay for a while."""
        check_instance(request.instance_name)
        check_function(request.digest_function)
        check_count(len(request.blob_digests))
        named = request.blob_digests
        hashes: list[str] = []
        sizes: list[int] = []
        for start in range(0, len(named), self.slice):
            if start:
                await self._turns.give_way()
            part = named[start : start + self.slice]
            hashes += [message.hash for message in part]
            sizes += [message.size_bytes for message in part]
        missing: Sequence[int]
        if len(hashes) <= self.slice:
            missing = await self._store.find_missing(Digests.parse(hashes, sizes))
        else:
            missing = await self._find_missing_in_slices(hashes, sizes)
        if missing and len(missing) == len(hashes):
            # The list has the same field number in the request, so what is left of it is the answer.
            request.ClearField("instance_name")
            request.ClearField("digest_function")
            request.DiscardUnknownFields()
            return request.SerializeToString()
        parts = []
        for start in range(0, len(missing), self.slice):
            if start:
                await self._turns.give_way()
            parts.append(encoding.missing_blobs(hashes, sizes, missing[start : start + self.slice]))
        return b"".join(parts)

    async def _find_missing_in_slices(self, hashes: list[str], sizes: list[int]) -> list[int]:
        # Nothing is looked up before all of it is known to be sound, and each distinct digest is looked up once.
        first: dict[str, int] = {}
        others: dict[tuple[str, int], int] = {}  # another size of a hash that was named before
        distinct: list[int] = []
        for start in range(0, len(hashes), self.slice):
            end = start + self.slice
            Digests.parse(hashes[start:end], sizes[start:end])
            for position, hash in enumerate(hashes[start:end], start):
                known = first.setdefault(hash, position)
                if known != position:
                    if sizes[known] == sizes[position]:
                        continue
                    if others.setdefault((hash, sizes[position]), position) != position:
                        continue
                distinct.append(position)
            await self._turns.give_way()
        missing = []
        for start in range(0, len(distinct), self.slice):
            part = distinct[start : start + self.slice]
            digests = Digests.parse([hashes[position] for position in part], [sizes[position] for position in part])
            missing += [part[place] for place in await self._store.find_missing(digests)]
            await self._turns.give_way()
        return missing

    async def BatchUpdateBlobs(self, request: reapi.BatchUpdateBlobsRequest, call: Call) -> bytes:
        """Store these; an outcome for each.  Without blobs it asks whether the caller may: BuildStream 1.2 to 1.6."""
        check_instance(request.instance_name)
        check_function(request.digest_function)
        check_count(len(request.requests))
        columns = DigestColumns()
        contents: list[bytes] = []
        total = 0
        for start in range(0, len(request.requests), self.slice):
            if start:
                await self._turns.give_way()
            items = request.requests[start : start + self.slice]
            if any(map(_COMPRESSOR, items)):
                raise RpcError(
                    Code.INVALID_ARGUMENT, "compressed blobs are not spoken here: no compressor is announced"
                )
            part = [item.data for item in items]
            total += sum(map(len, part))
            sound = columns.take([item.digest for item in items])
            contents += part if len(sound) == len(part) else [part[place] for place in sound]
            del items
        self._check_total(total)
        # All that was sent is in the columns now, and need not be in memory twice.
        del request
        outcomes = await self._store.add_many(Blobs(columns.digests, contents))
        del contents
        if outcomes and all(isinstance(outcome, NoRoom) for outcome in outcomes) and not columns.faults:
            # BuildStream 1.x skips the push when the call says so, and fails when only the blobs do.
            raise RpcError(Code.RESOURCE_EXHAUSTED, str(outcomes[0]))
        return await self._stored(columns, outcomes)

    async def _stored(self, columns: DigestColumns, outcomes: Sequence[StoreError | None]) -> bytes:
        plain = not columns.faults and not any(outcomes)
        parts: list[bytes] = []
        for start in range(0, len(outcomes), self.slice):
            if start:
                await self._turns.give_way()
            end = start + self.slice
            hashes, sizes = columns.hashes[start:end], columns.sizes[start:end]
            if plain:
                parts.append(encoding.stored_blobs(hashes, sizes))
            else:
                parts += map(encoding.stored_blob, hashes, sizes, map(_status, outcomes[start:end]))
        return _with_faults(reapi.BatchUpdateBlobsResponse, columns, parts, 1)

    async def BatchReadBlobs(self, request: reapi.BatchReadBlobsRequest, call: Call) -> bytes:
        """The content of each of these.  Without digests it asks whether batches work here: BuildStream 1.2 to 1.6."""
        check_instance(request.instance_name)
        check_function(request.digest_function)
        check_count(len(request.digests))
        columns = DigestColumns()
        for start in range(0, len(request.digests), self.slice):
            if start:
                await self._turns.give_way()
            columns.take(request.digests[start : start + self.slice])
        digests = columns.digests
        self._check_total(sum(digests.sizes))
        del request
        parts: list[bytes] = []
        start = 0
        for start, end in slices(digests.sizes, self.read_slice, self.read_slice_bytes):
            if start:
                await self._turns.give_way()
            asked = digests[start:end]
            contents = await self._store.read_many(asked)
            for hash, size, content in zip(columns.hashes[start:end], asked.sizes, contents, strict=True):
                if content is not None:
                    parts += encoding.read_blob(hash, size, content)
                else:
                    missing = BlobMissing(Digest.parse(hash, size))
                    parts += encoding.unread_blob(hash, size, _status(missing))
        if start:
            await self._turns.give_way()  # Joining a large answer takes its time as well.
        return _with_faults(reapi.BatchReadBlobsResponse, columns, parts, 3)

    def _check_total(self, total: int) -> None:
        if total > self.max_batch_total_size:
            raise RpcError(
                Code.INVALID_ARGUMENT,
                f"{total} bytes are too many for one batch: at most {self.max_batch_total_size} are",
            )


def _with_faults(
    response: type[reapi.BatchUpdateBlobsResponse] | type[reapi.BatchReadBlobsResponse],
    columns: DigestColumns,
    parts: Sequence[bytes],
    each: int,
) -> bytes:
    """An answer, serialized, with what is at fault in its places.

    :param parts: the answers for what is sound.
    :param each: how many of them there are for each, if anything is at fault.
    """
    if not columns.faults:
        return b"".join(parts)
    whole: list[bytes] = []
    taken = 0
    for number, (position, fault) in enumerate(columns.faults.items()):
        before = (position - number) * each
        whole += parts[taken:before]
        taken = before
        answer = response()
        answer.responses.add(
            digest=reapi.Digest(hash=fault.hash, size_bytes=fault.size),
            status=status_pb2.Status(code=Code.INVALID_ARGUMENT, message=fault.problem),
        )
        whole.append(answer.SerializeToString())
    return b"".join([*whole, *parts[taken:]])


def _status(error: StoreError | None) -> bytes:
    if error is None:
        return b""
    code, message = status_of(error) or (Code.INTERNAL, "the server failed")
    return status_pb2.Status(code=code, message=message).SerializeToString()
