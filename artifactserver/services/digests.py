"""Digests as REAPI messages spell them, and as the store knows them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from artifactserver.proto import remote_execution_pb2 as reapi
from artifactserver.rpc.status import Code, RpcError
from artifactserver.store.digest import Digest, DigestFunction, Digests, InvalidDigest

#: The functions that a request may name; 0 leaves it to the length of the hashes (REAPI, ``digest_function``).
_FUNCTIONS = frozenset({reapi.DigestFunction.UNKNOWN, *map(int, DigestFunction)})


def check_function(number: int) -> None:
    """Refuse a request for a digest function that this server does not know."""
    if number not in _FUNCTIONS:
        names = ", ".join(function.name for function in DigestFunction)
        raise RpcError(Code.INVALID_ARGUMENT, f"digest function {number} is not known here, only {names}")


def digest_of(message: reapi.Digest) -> Digest:
    """:raises InvalidDigest: if it is not one."""
    return Digest.parse(message.hash, message.size_bytes)


def message_of(digest: Digest) -> reapi.Digest:
    """The digest as REAPI spells it."""
    return reapi.Digest(hash=digest.hex, size_bytes=digest.size)


def is_empty(message: reapi.Digest) -> bool:
    """Whether this names nothing at all, as BuildStream 2.0 to 2.6 put into ``references_directories``."""
    return not message.hash and not message.size_bytes


class DigestColumns:
    """Digests that a batch names, some of which may be no digests.

    A batch answers for each blob, so one bad name must not spoil the others.

    :ivar hashes: as they were sent, one for each message.
    :ivar sizes: as they were sent, one for each message.
    :ivar faults: what is wrong with the digest at a position; nearly always empty.
    :ivar positions: where in the batch each of `digests` stands, or `None` if all of them are sound.
    :ivar digests: those that are sound.
    """

    __slots__ = ("digests", "faults", "hashes", "positions", "sizes")

    def __init__(self, messages: Iterable[reapi.Digest]) -> None:
        listed = list(messages)
        self.hashes: Sequence[str] = [message.hash for message in listed]
        self.sizes: Sequence[int] = [message.size_bytes for message in listed]
        self.faults: dict[int, str] = {}
        self.positions: list[int] | None = None
        try:
            self.digests = Digests.parse(self.hashes, self.sizes)
        except InvalidDigest:
            self._pick_out()

    def _pick_out(self) -> None:
        self.positions = []
        sound = []
        for position, (hash, size) in enumerate(zip(self.hashes, self.sizes, strict=True)):
            try:
                sound.append(Digest.parse(hash, size))
                self.positions.append(position)
            except InvalidDigest as problem:
                self.faults[position] = str(problem)
        self.digests = Digests.of(sound)
