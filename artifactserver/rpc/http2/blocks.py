"""The header blocks of a connection's peer, and what is remembered of them (RFC 9113, section 4.3; RFC 7541).

HPACK's state is a table that starts empty and that nothing but the blocks themselves changes.  So what a block means
follows from its bytes and those of all blocks before it, and two things can be remembered:

* While a block leaves the table as it was, the same block means the same headers again.  After its first calls a gRPC
  client sends nothing else.
* Connections that begin with the same blocks go on the same way.  BuildStream 1.x opens a connection for each element,
  and asks the same five questions on it; `Beginnings` knows the answers, and no decoder is made.

Whoever leaves the known ways gets a decoder, with the table as it is at that point, and a memory of his own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from hpack import Decoder, HPACKError

from artifactserver.rpc.http2.errors import ConnectionFault, ErrorCode, HeaderListTooLarge
from artifactserver.rpc.http2.frames import DEFAULT_TABLE_BYTES
from artifactserver.rpc.http2.headers import RequestHead, list_size, request_head
from artifactserver.rpc.http2.limits import Limits

#: Blocks beyond this, in bytes, are not remembered: no client repeats them, and the memory shall stay small.
CACHEABLE = 4096
#: So many fields of a header list that is too large count as one more reset.  One byte may stand for a field, and takes
#: some 2 microseconds to decode: this many take as long as a stream that is opened and reset.
FIELDS_PER_RESET = 32
#: Blocks from the start of a connection that are remembered for others, besides those that leave the table as it is.
BEGINNING = 8
#: What it takes to remember a block besides its bytes, measured and rounded up: objects for the moment, the head, and
#: what the layer above makes of it.
BLOCK_BYTES = 1024
#: Bytes that are remembered of beginnings, of all connections together; then all are forgotten.
BEGINNINGS_BYTES = 1024 * 1024

#: Who knows the value of one of these is somebody; nothing of that is kept beyond a connection.
_PRIVATE = frozenset({b"authorization", b"proxy-authorization", b"cookie"})

#: Fields of a dynamic table.
_Table = tuple[tuple[bytes, bytes], ...]


@dataclass(slots=True, eq=False)
class Moment:
    """What is known when certain blocks have been received.

    :ivar table: the entries of the dynamic table, oldest first.
    :ivar depth: how many blocks that changed the table have led here.
    :ivar heads: blocks that leave the table as it is.
    :ivar steps: blocks that change it, and where they lead.
    """

    table: _Table = ()
    depth: int = 0
    heads: dict[bytes, RequestHead] = field(default_factory=dict)
    steps: dict[bytes, tuple[RequestHead, Moment]] = field(default_factory=dict)


class Beginnings:
    """How connections have begun so far.

    :ivar start: when nothing has been received.
    """

    def __init__(self, limits: Limits) -> None:
        self.start = Moment()
        self._limits = limits
        self._bytes = 0

    def learn(self, moment: Moment, block: bytes, head: RequestHead, table: _Table) -> Moment | None:
        """Remember a block; gives where it leads, or `None` if that is not to be remembered."""
        if (
            len(block) > CACHEABLE
            or moment.depth >= BEGINNING
            or len(moment.heads) >= self._limits.header_blocks_cached
            or any(name in _PRIVATE for name, _ in head.fields)
        ):
            return None
        changed = table != moment.table
        self._bytes += BLOCK_BYTES + _cost(block, head) + (list_size(table) if changed else 0)
        if self._bytes > BEGINNINGS_BYTES:
            self._forget()
            return None
        if not changed:
            moment.heads[block] = head
            return moment
        after = Moment(table, moment.depth + 1)
        moment.steps[block] = head, after
        return after

    def _forget(self) -> None:
        # A connection that says nothing may stay at any moment for hours: nothing must hang on that.  It keeps its
        # table, and when it goes on, its memory will be its own.
        moments = [self.start]
        for moment in moments:
            moments += [after for _, after in moment.steps.values()]
            moment.heads.clear()
            moment.steps.clear()
            moment.depth = BEGINNING
        self.start = Moment()
        self._bytes = 0


class HeaderBlocks:
    """Turns header blocks into `RequestHead` values, and keeps the HPACK state of one connection.

    :ivar known: what a block means right now, if it has been seen and changes nothing.
    """

    known: Callable[[bytes], RequestHead | None]

    def __init__(self, limits: Limits, beginnings: Beginnings) -> None:
        self._limits = limits
        self._beginnings = beginnings
        self._moment: Moment | None = beginnings.start
        self._decoder: Decoder | None = None
        # What this connection alone has said, once it has left the known ways.
        self._own: dict[bytes, RequestHead] = {}
        self._own_bytes = 0
        self.known = beginnings.start.heads.get

    def request(self, block: bytes) -> RequestHead:
        """What a request's header block says.  Look into `known` first.

        :raises ConnectionFault: if it cannot be decoded.
        :raises StreamFault: if the request is malformed.
        :raises HeaderListTooLarge: if it is more than the limits allow.
        """
        moment = self._moment
        if moment is not None and (step := moment.steps.get(block)) is not None:
            head, self._moment = step
            self.known = self._moment.heads.get
            self._decoder = None
            return head
        decoder = self._leave()
        fields, unchanged = self._decode(decoder, block)
        head = request_head(fields)
        # What a client marks as never to be indexed is as private as credentials are (RFC 7541, section 7.1.3).
        shared = all(getattr(field, "indexable", True) for field in fields)
        if moment is not None and shared and decoder.header_table.maxsize == DEFAULT_TABLE_BYTES:
            table = tuple(reversed(decoder.header_table.dynamic_entries))
            self._moment = self._beginnings.learn(moment, block, head, table)
            if self._moment is not None:
                self.known = self._moment.heads.get
                return head
        if unchanged and len(block) <= CACHEABLE:
            self._remember(block, head)
        return head

    def _remember(self, block: bytes, head: RequestHead) -> None:
        cost = _cost(block, head)
        limits = self._limits
        if len(self._own) >= limits.header_blocks_cached or self._own_bytes + cost > limits.header_cache_bytes:
            self._forget()
        if cost <= limits.header_cache_bytes:
            self._own[block] = head
            self._own_bytes += cost

    def _forget(self) -> None:
        self._own.clear()
        self._own_bytes = 0

    def trailers(self, block: bytes) -> list[tuple[bytes, bytes]]:
        """What a later header block on the same stream says, not checked yet.

        :raises ConnectionFault: if it cannot be decoded.
        :raises HeaderListTooLarge: if it is more than the limits allow.
        """
        return self._decode(self._leave(), block)[0]

    def _leave(self) -> Decoder:
        """The decoder, with the table as it is; from here on the connection's memory is its own."""
        decoder = self._decoder
        if decoder is None:
            # Beyond its limit it stops in mid-block, which costs the connection; up to it a request can be answered.
            decoder = self._decoder = Decoder(max_header_list_size=2 * self._limits.header_list_bytes)
            for name, value in self._moment.table if self._moment is not None else ():
                decoder.header_table.add(name, value)
        if self._moment is not None:
            self._moment = None
            self.known = self._own.get
        return decoder

    def _decode(self, decoder: Decoder, block: bytes) -> tuple[list[tuple[bytes, bytes]], bool]:
        """The fields of a block, and whether the dynamic table is what it was; if not, what is known was dropped."""
        table = decoder.header_table
        entries = table.dynamic_entries
        newest = entries[0] if entries else None
        before = (len(entries), table.maxsize)
        try:
            fields = list(decoder.decode(block, raw=True))
        except HPACKError as error:
            raise ConnectionFault(ErrorCode.COMPRESSION_ERROR, "a header block that cannot be decoded") from error
        entries = table.dynamic_entries
        # An entry that was added is a new object at the front; one that fell off, or a new size, shows in the numbers.
        unchanged = (entries[0] if entries else None) is newest and (len(entries), table.maxsize) == before
        if not unchanged:
            self._forget()
        if len(fields) > self._limits.header_count or list_size(fields) > self._limits.header_list_bytes:
            raise HeaderListTooLarge(1 + len(fields) // FIELDS_PER_RESET)
        return fields, unchanged  # type: ignore[return-value]


def _cost(block: bytes, head: RequestHead) -> int:
    """What it takes to remember a block: as it came, once here, and once as what the layer above makes of it."""
    return len(block) + 2 * list_size(head.fields)
