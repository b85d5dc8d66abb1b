"""Who is calling, and what they may do.

A transport describes its peer with a frozen `Caller`; one table says which `Right` each method needs; `Access` puts
the two together.  Services never ask: by the time a handler runs, the question has been answered (design, section 5).
"""

from __future__ import annotations

import enum
from dataclasses import dataclass


class Right(enum.Enum):
    """What a method demands of its caller."""

    #: Reading: blobs, artifacts, sources, capabilities.
    PULL = "pull"
    #: Everything that changes the store, probes with nothing in them included.
    PUSH = "push"
    #: Open to whoever can connect.
    NONE = "none"


@dataclass(frozen=True, slots=True)
class Caller:
    """The peer of one connection.

    :ivar address: where it calls from, for the log.
    :ivar identity: what its credentials prove it to be, or `None` for somebody anonymous.
    :ivar rights: what its identities allow it, all together.
    """

    address: str
    identity: str | None = None
    rights: frozenset[Right] = frozenset({Right.PULL})

    def may(self, right: Right) -> bool:
        """Whether this caller holds ``right``."""
        return right is Right.NONE or right in self.rights

    @property
    def may_push(self) -> bool:
        """Whether this caller may change anything: what capabilities announce."""
        return Right.PUSH in self.rights


_REAPI = "/build.bazel.remote.execution.v2."
_ASSET = "/build.bazel.remote.asset.v1."
_BUILDSTREAM = "/buildstream.v2."

#: The right that each RPC needs, by its path: ``/package.Service/Method``.
#:
#: A method stands here once its service is registered, be it built yet or not.  A method that pushes is refused as a
#: whole, its empty probes included: that is how BuildStream finds out before it has built anything.
METHODS: dict[str, Right] = {
    f"{_REAPI}Capabilities/GetCapabilities": Right.PULL,
    f"{_REAPI}ContentAddressableStorage/FindMissingBlobs": Right.PULL,
    f"{_REAPI}ContentAddressableStorage/BatchReadBlobs": Right.PULL,
    f"{_REAPI}ContentAddressableStorage/BatchUpdateBlobs": Right.PUSH,
    f"{_REAPI}ContentAddressableStorage/GetTree": Right.PULL,
    f"{_REAPI}ContentAddressableStorage/SplitBlob": Right.PULL,
    f"{_REAPI}ContentAddressableStorage/SpliceBlob": Right.PUSH,
    "/google.bytestream.ByteStream/Read": Right.PULL,
    "/google.bytestream.ByteStream/Write": Right.PUSH,
    "/google.bytestream.ByteStream/QueryWriteStatus": Right.PULL,
    f"{_ASSET}Fetch/FetchBlob": Right.PULL,
    f"{_ASSET}Fetch/FetchDirectory": Right.PULL,
    f"{_ASSET}Push/PushBlob": Right.PUSH,
    f"{_ASSET}Push/PushDirectory": Right.PUSH,
    f"{_BUILDSTREAM}ReferenceStorage/GetReference": Right.PULL,
    f"{_BUILDSTREAM}ReferenceStorage/UpdateReference": Right.PUSH,
    f"{_BUILDSTREAM}ReferenceStorage/Status": Right.PULL,
    "/grpc.health.v1.Health/Check": Right.NONE,
    "/grpc.health.v1.Health/Watch": Right.NONE,
}


class Access:
    """Decides, before a handler runs, whether a caller may use a method.

    :param enable_push: whether anybody at all may push.
    """

    def __init__(self, enable_push: bool) -> None:
        self.enable_push = enable_push

    def refusal(self, caller: Caller, path: str) -> str | None:
        """Why ``caller`` may not call ``path``: a sentence for a user, or `None` if they may."""
        right = METHODS.get(path, Right.PUSH)
        if right is Right.PUSH and not self.enable_push:
            return "this server does not accept uploads: it was started without --enable-push"
        if not caller.may(right):
            if right is Right.PUSH:
                return "you may not upload to this server: it gives you the right to pull, but not the right to push"
            return "you may not read from this server: it does not know you as somebody with the right to pull"
        return None
