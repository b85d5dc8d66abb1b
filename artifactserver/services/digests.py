"""Digests as REAPI messages spell them, and as the store knows them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from artifactserver.proto import remote_execution_pb2 as reapi
from artifactserver.rpc.status import Code, RpcError
from artifactserver.store.digest import Digest, DigestFunction, Digests, InvalidDigest

#: The most digests in one request.  A message of 5 MiB has room for 75,000 that are digests, and for millions of empty
#: ones, each of which would have its answer.
MAX_DIGESTS = 100_000

#: What is no digest in a batch, after which the whole batch is refused: each gets a sentence of its own in the answer.
MAX_FAULTS = 1_000

#: The functions that a request may name; 0 leaves it to the length of the hashes (REAPI, ``digest_function``).
_FUNCTIONS = frozenset({reapi.DigestFunction.UNKNOWN, *map(int, DigestFunction)})


def check_function(number: int) -> None:
    """Refuse a request for a digest function that this server does not know."""
    if number not in _FUNCTIONS:
        names = ", ".join(function.name for function in DigestFunction)
        raise RpcError(Code.INVALID_ARGUMENT, f"digest function {number} is not known here, only {names}")


def check_count(number: int) -> None:
    """Refuse a request that names more than `MAX_DIGESTS` digests, before anything is done for each of them."""
    if number > MAX_DIGESTS:
        raise RpcError(
            Code.INVALID_ARGUMENT, f"{number} digests are too many for one request: at most {MAX_DIGESTS} are taken"
        )


def digest_of(message: reapi.Digest) -> Digest:
    """:raises InvalidDigest: if it is not one."""
    return Digest.parse(message.hash, message.size_bytes)


def message_of(digest: Digest) -> reapi.Digest:
    """The digest as REAPI spells it."""
    return reapi.Digest(hash=digest.hex, size_bytes=digest.size)


def is_empty(message: reapi.Digest) -> bool:
    """Whether this names nothing at all, as BuildStream 2.0 to 2.6 put into ``references_directories``."""
    return not message.hash and not message.size_bytes


@dataclass(frozen=True, slots=True)
class Fault:
    """What a batch names that is no digest.

    :ivar hash: what was sent, and the same for ``size``.
    :ivar problem: a sentence.
    """

    hash: str
    size: int
    problem: str


class DigestColumns:
    """Digests that a batch names, some of which may be no digests.

    A batch answers for each blob, so one bad name must not spoil the others.

    :ivar faults: by its position in the batch, each of those with what is wrong with it, in order; nearly always empty.
    :ivar hashes: the hashes of the sound ones, as they were sent.
    :ivar sizes: their sizes.
    """

    __slots__ = ("_count", "_keys", "faults", "hashes", "sizes")

    def __init__(self) -> None:
        self._count = 0
        self._keys: list[bytes] = []
        self.faults: dict[int, Fault] = {}
        self.hashes: list[str] = []
        self.sizes: list[int] = []

    @property
    def digests(self) -> Digests:
        """The sound ones."""
        return Digests(self._keys, self.sizes)

    def take(self, messages: Sequence[reapi.Digest]) -> Sequence[int]:
        """Read the next ones; the positions among them of those that are sound."""
        hashes = [message.hash for message in messages]
        sizes = [message.size_bytes for message in messages]
        try:
            digests = Digests.parse(hashes, sizes)
        except InvalidDigest:
            sound = self._sound(hashes, sizes)
            hashes, sizes = [hashes[place] for place in sound], [sizes[place] for place in sound]
            digests = Digests.parse(hashes, sizes)
        else:
            sound = range(len(messages))
        self._count += len(messages)
        self._keys += digests.keys
        self.hashes += hashes
        self.sizes += sizes
        return sound

    def _sound(self, hashes: Sequence[str], sizes: Sequence[int]) -> Sequence[int]:
        sound = []
        for place, (hash, size) in enumerate(zip(hashes, sizes, strict=True)):
            try:
                Digest.parse(hash, size)
                sound.append(place)
            except InvalidDigest as problem:
                if len(self.faults) == MAX_FAULTS:
                    raise RpcError(
                        Code.INVALID_ARGUMENT, f"more than {MAX_FAULTS} digests of this request are none: {problem}"
                    ) from None
                self.faults[self._count + place] = Fault(hash, size, str(problem))
        return sound
