"""Names for trees as BuildStream 1.1 to 1.6 know them: ``buildstream.v2.ReferenceStorage``.

BuildStream 1.6 uses Remote Asset where there is one, with a name made from the reference; 1.4 has the same cache keys
and knows this service alone.  So a reference and the asset with that name are one record, and both share artifacts.
"""

from __future__ import annotations

from artifactserver.proto import buildstream_pb2 as buildstream
from artifactserver.rpc.dispatch import Call
from artifactserver.rpc.status import Code, RpcError
from artifactserver.services.assets import Names, find, publish
from artifactserver.services.digests import digest_of, message_of
from artifactserver.services.names import check_instance, check_uris
from artifactserver.store.interface import RecordKind, Reference, Shape, Store

#: What BuildStream 1.6 puts before a reference to make a URI of it.
REFERENCE_URN = "urn:fdc:buildstream.build:2020:v1:"


class ReferenceStorage:
    """The service."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def GetReference(
        self, request: buildstream.GetReferenceRequest, call: Call
    ) -> buildstream.GetReferenceResponse:
        """The tree that a reference stands for."""
        names = _names(request.instance_name, [request.key])
        found = await find(self._store, names)
        if found is None:
            raise RpcError(Code.NOT_FOUND, "there is no such reference here")
        return buildstream.GetReferenceResponse(digest=message_of(found.digest))

    async def UpdateReference(
        self, request: buildstream.UpdateReferenceRequest, call: Call
    ) -> buildstream.UpdateReferenceResponse:
        """Let references stand for a tree, provided that all of it is here."""
        names = _names(request.instance_name, list(request.keys))
        digest = digest_of(request.digest)
        await publish(self._store, names, digest, [Reference(digest, Shape.DIRECTORY)])
        return buildstream.UpdateReferenceResponse()

    async def Status(self, request: buildstream.StatusRequest, call: Call) -> buildstream.StatusResponse:
        """Whether this caller may update references."""
        check_instance(request.instance_name)
        return buildstream.StatusResponse(allow_updates=call.caller.may_push)


def _names(instance: str, keys: list[str]) -> Names:
    names = [REFERENCE_URN + key for key in check_uris(keys, "reference")]
    return Names(RecordKind.ASSET_DIRECTORY, check_instance(instance), names)
