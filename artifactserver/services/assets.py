"""Names for content, as records of the store: what Remote Asset and BuildStream 1's references have in common.

A name belongs to an instance, and its qualifiers are part of it.  A record names its content in an `Asset` message,
and refers to everything that has to stay with it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from google.protobuf.message import DecodeError

from artifactserver.proto import assets_pb2, error_details_pb2
from artifactserver.rpc.status import Code, RpcError
from artifactserver.store.digest import Digest
from artifactserver.store.interface import Incomplete, Record, RecordKey, RecordKind, Reference, Store

#: The most missing blobs that a refusal lists: all of it has to fit into a client's 8 KiB of headers.
MAX_MISSING_LISTED = 16


@dataclass(frozen=True, slots=True)
class Names:
    """One or more names for one and the same thing.

    :ivar names: in the order in which they are to be tried.
    :ivar qualifiers: pairs, sorted.
    """

    kind: RecordKind
    instance: str
    names: Sequence[str]
    qualifiers: tuple[tuple[str, str], ...] = ()

    def key(self, name: str) -> RecordKey:
        return RecordKey(self.kind, self.instance, name, self.qualifiers)


@dataclass(frozen=True, slots=True)
class Found:
    """What a name stands for.

    :ivar expires: seconds since the epoch, or `None`.
    """

    name: str
    digest: Digest
    expires: float | None


async def find(store: Store, names: Names, oldest: float | None = None) -> Found | None:
    """The first of the names that stands for something, all of which is present.

    :param oldest: names that were given before this, in seconds since the epoch, do not count.
    """
    for name in names.names:
        record = await store.get_record(names.key(name))
        if record is None or (oldest is not None and record.changed < oldest):
            continue
        try:
            value = assets_pb2.Asset.FromString(record.value)
        except DecodeError:
            continue
        if value.key:
            return Found(name, Digest(value.key, value.size), record.expires)
    return None


async def publish(
    store: Store, names: Names, digest: Digest, references: Sequence[Reference], expires: float | None = None
) -> None:
    """Let all the names stand for ``digest`` from now on: all at one moment, or none.

    :param references: everything that belongs to it, itself included.
    :raises RpcError: FAILED_PRECONDITION, naming what has to be uploaded first.
    :raises BadReference: if something is not what it should be.
    """
    value = assets_pb2.Asset(key=digest.key, size=digest.size).SerializeToString()
    belonging = tuple(references)
    try:
        await store.set_records([Record(names.key(name), value, belonging, expires) for name in names.names])
    except Incomplete as error:
        raise incomplete(str(error), error.missing) from error


def incomplete(message: str, missing: Sequence[Digest]) -> RpcError:
    """The refusal of a name whose content is not all here, which says what is missing as REAPI does."""
    violation = error_details_pb2.PreconditionFailure.Violation
    details = error_details_pb2.PreconditionFailure(
        violations=[
            violation(type="MISSING", subject=f"blobs/{digest.hex}/{digest.size}")
            for digest in missing[:MAX_MISSING_LISTED]
        ]
    )
    return RpcError(Code.FAILED_PRECONDITION, message, [details])
