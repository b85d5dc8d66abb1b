"""Names for blobs and for trees: ``build.bazel.remote.asset.v1``, ``Fetch`` and ``Push``.

Nothing is fetched from anywhere: a name stands for what was pushed under it.  A name with other qualifiers is
another name, and qualifiers are a set.  A miss is the gRPC status NOT_FOUND, as buildbox-casd says it; BuildStream
takes that and a status in the response alike.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from google.protobuf.timestamp_pb2 import Timestamp

from artifactserver.proto import remote_asset_pb2 as asset
from artifactserver.proto import remote_execution_pb2 as reapi
from artifactserver.rpc.dispatch import Call
from artifactserver.rpc.status import Code, RpcError
from artifactserver.services.artifacts import ARTIFACT_URN, MAX_ARTIFACT_MESSAGE, parts_of
from artifactserver.services.assets import Found, Names, find, incomplete, publish
from artifactserver.services.digests import check_function, digest_of, is_empty, message_of
from artifactserver.services.names import check_instance, check_qualifiers, check_references, check_uris
from artifactserver.store.digest import Digest, Digests
from artifactserver.store.interface import RecordKind, Reference, Shape, Store

_NANOSECONDS = 1_000_000_000
_FOREVER = 2**63 // _NANOSECONDS

#: The years 1 to 9999: what a ``Timestamp`` can be.
_FIRST_SECOND, _LAST_SECOND = -62_135_596_800, 253_402_300_799


class Fetch:
    """The service that looks names up."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def FetchBlob(self, request: asset.FetchBlobRequest, call: Call) -> asset.FetchBlobResponse:
        """The blob that the first known of these names stands for."""
        found = await self._find(RecordKind.ASSET_BLOB, request)
        return asset.FetchBlobResponse(
            uri=found.name,
            qualifiers=request.qualifiers,
            expires_at=_timestamp(found.expires),
            blob_digest=message_of(found.digest),
            digest_function=found.digest.function.name,
        )

    async def FetchDirectory(self, request: asset.FetchDirectoryRequest, call: Call) -> asset.FetchDirectoryResponse:
        """The tree that the first known of these names stands for."""
        found = await self._find(RecordKind.ASSET_DIRECTORY, request)
        return asset.FetchDirectoryResponse(
            uri=found.name,
            qualifiers=request.qualifiers,
            expires_at=_timestamp(found.expires),
            root_directory_digest=message_of(found.digest),
            digest_function=found.digest.function.name,
        )

    async def _find(self, kind: RecordKind, request: asset.FetchBlobRequest | asset.FetchDirectoryRequest) -> Found:
        names = _names(kind, request)
        check_function(request.digest_function)
        oldest = _seconds(request.oldest_content_accepted) if request.HasField("oldest_content_accepted") else None
        found = await find(self._store, names, oldest)
        if found is None:
            raise RpcError(Code.NOT_FOUND, "nothing is known here under this name")
        return found


class Push:
    """The service that gives names."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def PushBlob(self, request: asset.PushBlobRequest, call: Call) -> asset.PushBlobResponse:
        """Let names stand for a blob, provided that it and what it needs are here."""
        names = _names(RecordKind.ASSET_BLOB, request)
        check_function(request.digest_function)
        digest = digest_of(request.blob_digest)
        references = [Reference(digest)]
        if any(name.startswith(ARTIFACT_URN) for name in names.names):
            references += await self._parts_of_artifact(digest)
        references += _listed(request)
        await publish(self._store, names, digest, _once(references), _expires(request))
        return asset.PushBlobResponse()

    async def PushDirectory(self, request: asset.PushDirectoryRequest, call: Call) -> asset.PushDirectoryResponse:
        """Let names stand for a tree, provided that all of it is here."""
        names = _names(RecordKind.ASSET_DIRECTORY, request)
        check_function(request.digest_function)
        digest = digest_of(request.root_directory_digest)
        references = [Reference(digest, Shape.DIRECTORY), *_listed(request)]
        await publish(self._store, names, digest, _once(references), _expires(request))
        return asset.PushDirectoryResponse()

    async def _parts_of_artifact(self, digest: Digest) -> list[Reference]:
        if digest.size > MAX_ARTIFACT_MESSAGE:
            raise RpcError(
                Code.INVALID_ARGUMENT,
                f"an Artifact message has at most {MAX_ARTIFACT_MESSAGE} bytes, not {digest.size}",
            )
        (content,) = await self._store.read_many(Digests.of([digest]))
        if content is None:
            raise incomplete(f"content is missing from this server: {digest}", [digest])
        return parts_of(content)


def _names(
    kind: RecordKind,
    request: (
        asset.FetchBlobRequest | asset.FetchDirectoryRequest | asset.PushBlobRequest | asset.PushDirectoryRequest
    ),
) -> Names:
    return Names(
        kind, check_instance(request.instance_name), check_uris(request.uris), check_qualifiers(request.qualifiers)
    )


def _listed(request: asset.PushBlobRequest | asset.PushDirectoryRequest) -> list[Reference]:
    """What a request says belongs to its content.

    BuildStream 2.0 to 2.6 list empty digests for what an artifact does not have.
    """
    blobs, directories = request.references_blobs, request.references_directories
    check_references(blobs, directories)
    return [*_references(blobs, Shape.BLOB), *_references(directories, Shape.DIRECTORY)]


def _references(messages: Iterable[reapi.Digest], shape: Shape) -> list[Reference]:
    return [Reference(digest_of(message), shape) for message in messages if not is_empty(message)]


def _once(references: Sequence[Reference]) -> list[Reference]:
    """The same references, each once.  The first one says whether it is required.

    So what an Artifact message says comes before what the request lists, and a part that its client need not have
    is not required for being listed.
    """
    seen: dict[tuple[Digest, Shape], Reference] = {}
    for reference in references:
        seen.setdefault((reference.digest, reference.shape), reference)
    return list(seen.values())


def _expires(request: asset.PushBlobRequest | asset.PushDirectoryRequest) -> float | None:
    if not request.HasField("expire_at"):
        return None
    seconds = _seconds(request.expire_at)
    # A record's end is kept in 64 bits of nanoseconds, of which 0 is for never: past 2262 is never, and long ago is
    # long ago.
    return max(seconds, 1.0) if seconds < _FOREVER else None


def _seconds(moment: Timestamp) -> float:
    """Seconds since the epoch."""
    if not (_FIRST_SECOND <= moment.seconds <= _LAST_SECOND and 0 <= moment.nanos < _NANOSECONDS):
        raise RpcError(Code.INVALID_ARGUMENT, "a time is given that is none")
    return moment.seconds + moment.nanos / _NANOSECONDS


def _timestamp(seconds: float | None) -> Timestamp | None:
    if seconds is None:
        return None
    whole, fraction = divmod(seconds, 1)
    return Timestamp(seconds=int(whole), nanos=int(fraction * _NANOSECONDS))
