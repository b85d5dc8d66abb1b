"""Digests as REAPI messages spell them, and as the store knows them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

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


class DigestColumns:
    """Digests that a batch names, some of which may be no digests.

    A batch answers for each blob, so one bad name must not spoil the others.

    :ivar faults: what is wrong with the digest at a position; nearly always empty.
    :ivar positions: where in the batch the sound ones stand.
    :ivar hashes: the hashes of those, as they were sent.
    :ivar digests: those themselves.
    """

    __slots__ = ("_messages", "digests", "faults", "hashes", "positions")

    def __init__(self, messages: Iterable[reapi.Digest]) -> None:
        self._messages = list(messages)
        self.faults: dict[int, str] = {}
        self.positions: Sequence[int] = range(len(self._messages))
        self.hashes: Sequence[str] = [message.hash for message in self._messages]
        sizes = [message.size_bytes for message in self._messages]
        try:
            self.digests = Digests.parse(self.hashes, sizes)
        except InvalidDigest:
            self._pick_out()

    def __len__(self) -> int:
        """How many the batch names, sound or not."""
        return len(self._messages)

    def message(self, position: int) -> reapi.Digest:
        """What was sent, sound or not."""
        return self._messages[position]

    def _pick_out(self) -> None:
        positions, sound = [], []
        for position, message in enumerate(self._messages):
            try:
                sound.append(digest_of(message))
                positions.append(position)
            except InvalidDigest as problem:
                if len(self.faults) == MAX_FAULTS:
                    raise RpcError(
                        Code.INVALID_ARGUMENT, f"more than {MAX_FAULTS} digests of this request are none: {problem}"
                    ) from None
                self.faults[position] = str(problem)
        self.positions = positions
        self.hashes = [self._messages[position].hash for position in positions]
        self.digests = Digests.of(sound)
