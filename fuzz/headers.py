"""Header blocks, one after another on a few connections: what is remembered of them must be what they say.

Input: one block after another, each as two bytes and its bytes.  Of the two bytes, the highest bit marks trailers, the
next two say on which connection the block comes, and the rest are its length.
"""

from __future__ import annotations

from hpack import Decoder, HPACKError

from artifactserver.rpc.http2.blocks import Beginnings, HeaderBlocks
from artifactserver.rpc.http2.errors import ConnectionFault, ErrorCode, HeaderListTooLarge, PeerFault, StreamFault
from artifactserver.rpc.http2.headers import RequestHead, check_trailers, request_head
from artifactserver.rpc.http2.limits import Limits
from fuzz.reading import Input

LIMITS = Limits(header_list_bytes=2000, header_count=30, header_blocks_cached=3)

_TRAILERS = 0x8000
_LENGTH = 0x1FFF

Fields = list[tuple[bytes, bytes]]


def run(data: bytes) -> None:
    """Let several connections share what they remember, and ask a decoder of its own about each."""
    beginnings = Beginnings(LIMITS)
    connections = [_Connection(beginnings) for _ in range(4)]
    given = Input(data)
    while given:
        what = given.number(2)
        block = given.take(what & _LENGTH)
        connections[what >> 13 & 3].receive(block, bool(what & _TRAILERS))


class _Connection:
    """What is remembered, and what would be if nothing were."""

    def __init__(self, beginnings: Beginnings) -> None:
        self._blocks = HeaderBlocks(LIMITS, beginnings)
        self._decoder = Decoder(max_header_list_size=2 * LIMITS.header_list_bytes)
        self._failed = False

    def receive(self, block: bytes, trailers: bool) -> None:
        """Another block, unless one before could not be decoded."""
        if self._failed:
            return
        expected = _reference(self._decoder, block, trailers)
        told = _told(self._blocks, block, trailers)
        assert _alike(told, expected), (told, expected)
        if isinstance(told, RequestHead):
            _check(told)
        self._failed = isinstance(told, ConnectionFault)


def _told(blocks: HeaderBlocks, block: bytes, trailers: bool) -> RequestHead | Fields | Exception:
    try:
        if trailers:
            fields = blocks.trailers(block)
            check_trailers(fields)
            return fields
        head: RequestHead = blocks.known(block) or blocks.request(block)
        return head
    except (PeerFault, HeaderListTooLarge) as problem:
        return problem


def _reference(decoder: Decoder, block: bytes, trailers: bool) -> RequestHead | Fields | Exception:
    try:
        fields: Fields = [(bytes(name), bytes(value)) for name, value in decoder.decode(block, raw=True)]
        if len(fields) > LIMITS.header_count or sum(len(n) + len(v) + 32 for n, v in fields) > LIMITS.header_list_bytes:
            return HeaderListTooLarge(0)
        if trailers:
            check_trailers(fields)
            return fields
        return request_head(fields)
    except HPACKError:
        return ConnectionFault(ErrorCode.COMPRESSION_ERROR, "")
    except StreamFault as fault:
        return fault


def _alike(one: RequestHead | Fields | Exception, other: RequestHead | Fields | Exception) -> bool:
    if isinstance(one, RequestHead) and isinstance(other, RequestHead):
        return _parts(one) == _parts(other)
    if isinstance(one, PeerFault) and isinstance(other, PeerFault):
        return type(one) is type(other) and one.code == other.code
    if isinstance(one, list):
        return one == other
    return type(one) is type(other)


def _parts(head: RequestHead) -> tuple[object, ...]:
    return head.method, head.path, head.authority, head.content_length, head.fields


def _check(head: RequestHead) -> None:
    """What the layers above rely on."""
    assert head.method and (head.path or head.method == b"CONNECT")
    assert head.content_length is None or head.content_length >= 0
    for name, value in head.fields:
        assert name and not name.startswith(b":") and name == name.lower() and name.isascii(), name
        assert not set(value) & set(b"\0\r\n") and value.strip(b" \t") == value, value
