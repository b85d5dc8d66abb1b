"""Who is calling, and what they may do.

Each port has a `PortPolicy`: what it lets anybody do, what those do who have proven who they are, and what nobody does
there.  A transport describes its peer with a frozen `Caller`, whose rights follow from the port's policy and its
identities.  Two tables say which `Right` is needed: by RPC, and by HTTP method and path.  Services never ask: by the
time a handler runs, the question has been answered.
"""

from __future__ import annotations

import enum
import functools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal


class Right(enum.Enum):
    """What a method demands of its caller."""

    #: Reading: blobs, artifacts, sources, capabilities.
    PULL = "pull"
    #: Everything that changes the store, probes with nothing in them included.
    PUSH = "push"
    #: Open to whoever can connect.
    NONE = "none"


NOTHING: frozenset[Right] = frozenset()
PULLING = frozenset({Right.PULL})
PUSHING = frozenset({Right.PULL, Right.PUSH})

#: How somebody can prove who they are.
Source = Literal["certificate", "token"]

#: What each of them is called in a sentence.
_CREDENTIALS: dict[Source, str] = {"certificate": "a client certificate", "token": "a token"}


@dataclass(frozen=True, slots=True)
class Identity:
    """Somebody whom the server knows.

    :ivar id: what tells them from all others: of a certificate, the fingerprint of the entry of the bundle that vouched
        for it; of a token, its name.
    :ivar name: for people to read.
    :ivar rights: what it allows where nothing stands against it.
    """

    kind: Source
    id: str
    name: str
    rights: frozenset[Right]


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why somebody may not do something.

    :ivar unauthenticated: what they have shown to prove who they are is not valid.  Nobody is told so who has shown
        nothing: BuildStream 1.2 to 1.6 would give up the server, for pulling too.
    :ivar reason: a sentence that says what is missing, and how to get it.  BuildStream 1.x shows it alone.
    """

    unauthenticated: bool
    reason: str


@dataclass(frozen=True, slots=True)
class PortPolicy:
    """What a port lets whom do.

    :ivar name: ``main`` or ``public``.
    :ivar anonymous: what everybody may do.
    :ivar ceiling: what anybody may do there at most.
    :ivar push_enabled: somebody may push to this server, be it on another port.
    :ivar sources: how clients of this server can prove who they are, be it on another port.
    """

    name: str
    anonymous: frozenset[Right]
    ceiling: frozenset[Right]
    push_enabled: bool
    sources: frozenset[Source]

    def rights_of(self, identities: Iterable[Identity]) -> frozenset[Right]:
        """What somebody may do here who has all these identities."""
        return self.anonymous.union(*(identity.rights for identity in identities)) & self.ceiling

    def reason(self, right: Right, known: bool) -> str:
        """Why somebody without ``right`` may not have it.

        :param known: whether they have an identity.
        """
        if right is Right.PUSH and not self.push_enabled:
            return "this server does not accept uploads: it was started without --enable-push"
        needed = _any_of(self.sources)
        if right not in self.ceiling:
            return "this is the public port, where nobody may push: use the server's main port" + (
                f", with {needed}" if needed else ""
            )
        if known:
            return f"what you have shown does not give you the right to {right.value}: ask for more where you got it"
        how = "one that the server knows"
        if self.sources == {"certificate"}:
            how = f"set client-cert and client-key to {how}"
        else:
            how = f"give {how}"
        return f"you need {needed} to {right.value} here: {how}"

    @property
    def promise(self) -> str:
        """What is let do whom, for the log."""
        anybody = self.rights_of(())
        more = (self.ceiling - anybody) if self.sources else NOTHING
        promises = []
        if anybody:
            promises.append(f"everybody may {_all_of(anybody)}")
        if more:
            promises.append(f"those with {_any_of(self.sources)} may {_all_of(more)}")
        said = ", ".join(promises)
        return said if self.name == "main" else f"{self.name} port, {said}"


def main_port(
    *, enable_push: bool, sources: frozenset[Source] = frozenset(), private: bool = False, known_only: bool = False
) -> PortPolicy:
    """The policy of the port of ``--port``.

    :param sources: how clients can prove who they are.  Where they can, nobody else pushes.
    :param private: nobody else pulls either.
    :param known_only: nobody else can connect.
    """
    anonymous = NOTHING if private or known_only else PULLING if sources else PUSHING
    return PortPolicy("main", anonymous, PUSHING if enable_push else PULLING, enable_push, sources)


def public_port(main: PortPolicy) -> PortPolicy:
    """The policy of a port beside the main one, from which everybody pulls, and nothing else."""
    return PortPolicy("public", PULLING, PULLING, main.push_enabled, main.sources)


@dataclass(frozen=True, slots=True)
class Caller:
    """The peer of one connection.

    :ivar address: where it calls from, for the log.
    :ivar port: what the port lets whom do on which it calls.
    :ivar identities: what it has proven to be; none for somebody anonymous.
    :ivar rights: what all of that allows it.
    :ivar refusals: why it may not use the RPC at a path, or `None` if it may.
    """

    address: str
    port: PortPolicy
    identities: tuple[Identity, ...] = ()
    rights: frozenset[Right] = field(init=False)
    refusals: _Refusals = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        rights = self.port.rights_of(self.identities)
        object.__setattr__(self, "rights", rights)
        object.__setattr__(self, "refusals", _refusals(self.port, rights, bool(self.identities)))

    @property
    def account(self) -> str:
        """Under which name there is kept what it takes up: its own if it is known, so that many share an address."""
        return f"{self.identities[0].kind} {self.identities[0].id}" if self.identities else self.address

    def would_gain(self, right: Right) -> bool:
        """Whether a token, of which this caller has shown none, could give it ``right``."""
        shown = any(identity.kind == "token" for identity in self.identities)
        return "token" in self.port.sources and right in self.port.ceiling and not shown

    def may(self, right: Right) -> bool:
        """Whether this caller holds ``right``."""
        return right is Right.NONE or right in self.rights

    @property
    def may_push(self) -> bool:
        """Whether this caller may change anything: what capabilities announce."""
        return Right.PUSH in self.rights

    def refusal(self, right: Right) -> Refusal | None:
        """Why this caller may not do what needs ``right``, or `None` if it may."""
        return self.refusals.by_right[right]


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

#: The right that an HTTP/1.1 request needs, by its method and how its path begins; the first row that fits counts.
#: What fits none needs the greatest.
HTTP_REQUESTS: tuple[tuple[bytes, bytes, Right], ...] = (
    (b"GET", b"", Right.PULL),
    (b"HEAD", b"", Right.PULL),
)


def http_right(method: bytes, path: bytes) -> Right:
    """The right that an HTTP/1.1 request needs."""
    for wanted, beginning, right in HTTP_REQUESTS:
        if method == wanted and path.startswith(beginning):
            return right
    return Right.PUSH


class _Refusals(dict[str, "Refusal | None"]):
    """By the path of an RPC, why those may not use it who have the same rights on the same port.

    A path that the table of methods forgot needs the greatest right.
    """

    def __init__(self, by_right: Mapping[Right, Refusal | None]) -> None:
        super().__init__((path, by_right[right]) for path, right in METHODS.items())
        self.by_right = by_right

    def __missing__(self, path: str) -> Refusal | None:
        return self.by_right[Right.PUSH]


@functools.lru_cache(maxsize=64)
def _refusals(port: PortPolicy, rights: frozenset[Right], known: bool) -> _Refusals:
    """Worked out once, so that a call costs one look-up."""
    by_right: dict[Right, Refusal | None] = {Right.NONE: None}
    for right in (Right.PULL, Right.PUSH):
        by_right[right] = None if right in rights else Refusal(False, port.reason(right, known))
    return _Refusals(by_right)


def _any_of(sources: Iterable[Source]) -> str:
    return " or ".join(_CREDENTIALS[source] for source in sorted(sources))


def _all_of(rights: frozenset[Right]) -> str:
    return " and ".join(right.value for right in (Right.PULL, Right.PUSH) if right in rights)
