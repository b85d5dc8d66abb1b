"""Header blocks: the peer's into requests, ours into bytes (RFC 9113, section 8; RFC 7541).

After its first calls a gRPC client sends the same few indexed bytes for every call.  While decoding leaves the
dynamic table as it was, the same block means the same headers, so its meaning is remembered by its bytes; as soon as
the table changes, everything remembered is dropped.

Ours are literals without indexing: constants that need no state, made once.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from hpack import Decoder, HPACKError

from artifactserver.rpc.http2.errors import ConnectionFault, ErrorCode, HeaderListTooLarge, StreamFault
from artifactserver.rpc.http2.limits import Limits

#: Visible ASCII without upper case and without the colon (RFC 9113, section 8.2.1).
_NAME = re.compile(rb"[!-9;-@\[-~]+")
_BAD_VALUE = re.compile(rb"[\x00\r\n]|\A[ \t]|[ \t]\Z")
#: Fields that belong to one connection of HTTP/1.1 (section 8.2.2).
_CONNECTION_FIELDS = frozenset({b"connection", b"keep-alive", b"proxy-connection", b"transfer-encoding", b"upgrade"})
#: The pseudo-headers of requests, and what is valid in each (section 8.3.1): a token; the name of a scheme; visible
#: ASCII without user information; a path without a fragment.
_PSEUDO = {
    b":method": re.compile(rb"[!#-'*+\-.0-9A-Z^-z|~]+").fullmatch,
    b":scheme": re.compile(rb"[A-Za-z][A-Za-z0-9+\-.]*").fullmatch,
    b":authority": re.compile(rb"[!-?A-~]*").fullmatch,
    b":path": re.compile(rb"/[!-\"$-~]*|\*").fullmatch,
}
_DEFAULT_PORTS = {b"http": b":80", b"https": b":443"}
#: Blocks beyond this are not remembered: no client repeats them, and the cache shall stay small.
_CACHEABLE = 4096


@dataclass(frozen=True, slots=True, eq=False)
class RequestHead:
    """The headers of a request, checked.  Two are equal only if they are one: fit to be the key of a cache.

    :ivar fields: what is not a pseudo-header, in order, with its repetitions.
    """

    method: bytes
    path: bytes
    authority: bytes
    content_length: int | None
    fields: tuple[tuple[bytes, bytes], ...]


class HeaderBlocks:
    """Turns header blocks into `RequestHead` values, and keeps the HPACK state of one connection."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        # Beyond this the decoder stops in mid-block, which costs the connection; up to it the request can be answered.
        self._decoder = Decoder(max_header_list_size=2 * limits.header_list_bytes)
        self._known: dict[bytes, RequestHead] = {}
        self.known = self._known.get

    def request(self, block: bytes) -> RequestHead:
        """What a request's header block says.  Look into `known` first.

        :raises ConnectionFault: if it cannot be decoded.
        :raises StreamFault: if the request is malformed.
        :raises HeaderListTooLarge: if it is more than the limits allow.
        """
        fields, unchanged = self._decode(block)
        head = request_head(fields)
        if unchanged and len(block) <= _CACHEABLE:
            if len(self._known) >= self._limits.header_blocks_cached:
                self._known.clear()
            self._known[block] = head
        return head

    def trailers(self, block: bytes) -> list[tuple[bytes, bytes]]:
        """What a later header block on the same stream says, not checked yet.

        :raises ConnectionFault: if it cannot be decoded.
        :raises HeaderListTooLarge: if it is more than the limits allow.
        """
        return self._decode(block)[0]

    def _decode(self, block: bytes) -> tuple[list[tuple[bytes, bytes]], bool]:
        """The fields of a block, and whether the dynamic table is what it was; if not, what is known was dropped."""
        table = self._decoder.header_table
        entries = table.dynamic_entries
        newest = entries[0] if entries else None
        before = (len(entries), table.maxsize)
        try:
            fields = list(self._decoder.decode(block, raw=True))
        except HPACKError as error:
            raise ConnectionFault(ErrorCode.COMPRESSION_ERROR, "a header block that cannot be decoded") from error
        entries = table.dynamic_entries
        # An entry that was added is a new object at the front; one that fell off, or a new size, shows in the numbers.
        unchanged = (entries[0] if entries else None) is newest and (len(entries), table.maxsize) == before
        if not unchanged:
            self._known.clear()
        size = sum(len(name) + len(value) + 32 for name, value in fields)
        if len(fields) > self._limits.header_count or size > self._limits.header_list_bytes:
            raise HeaderListTooLarge
        return fields, unchanged  # type: ignore[return-value]


def _malformed(reason: str) -> StreamFault:
    return StreamFault(ErrorCode.PROTOCOL_ERROR, reason)


def _check_field(name: bytes, value: bytes) -> None:
    if not _NAME.fullmatch(name):
        raise _malformed("an invalid header name")
    if _BAD_VALUE.search(value):
        raise _malformed("an invalid header value")
    if name in _CONNECTION_FIELDS or (name == b"te" and value.lower() != b"trailers"):
        raise _malformed("a connection-specific header")


def check_trailers(fields: Iterable[tuple[bytes, bytes]]) -> None:
    """:raises StreamFault: if they are malformed, as with a pseudo-header they are (RFC 9113, section 8.1)."""
    for name, value in fields:
        _check_field(name, value)


def _normal(authority: bytes, scheme: bytes) -> bytes:
    """An authority in the one form in which it can be compared (RFC 3986, sections 6.2.2.1 and 6.2.3)."""
    return authority.lower().removesuffix(_DEFAULT_PORTS.get(scheme.lower(), b":"))


def request_head(fields: Iterable[tuple[bytes, bytes]]) -> RequestHead:
    """Check a request's headers.

    :raises StreamFault: if they are malformed (RFC 9113, sections 8.1.1, 8.2 and 8.3.1).
    """
    pseudo: dict[bytes, bytes] = {}
    regular: list[tuple[bytes, bytes]] = []
    content_length: int | None = None
    host: bytes | None = None
    for name, value in fields:
        if name[:1] == b":":
            valid = _PSEUDO.get(name)
            if regular or valid is None or name in pseudo or not valid(value):
                raise _malformed("a pseudo-header that is unknown, repeated, late or invalid")
            pseudo[name] = value
            continue
        _check_field(name, value)
        if name == b"content-length":
            if not value.isdigit() or len(value) > 19 or content_length not in (None, int(value)):
                raise _malformed("an invalid content-length")
            content_length = int(value)
        elif name == b"host":
            if host is not None:
                raise _malformed("two hosts")
            host = value
        regular.append((name, value))
    method = pseudo.get(b":method", b"")
    scheme = pseudo.get(b":scheme", b"")
    path = pseudo.get(b":path", b"")
    authority = pseudo.get(b":authority", b"")
    if method == b"CONNECT":
        if path or scheme or not authority:
            raise _malformed("CONNECT with a path or a scheme, or without an authority")
    elif not method or not scheme or not path:
        raise _malformed("a request without method, scheme or path")
    elif path == b"*" and method != b"OPTIONS":
        raise _malformed("a path that does not start with a slash")
    if authority and host is not None and _normal(host, scheme) != _normal(authority, scheme):
        raise _malformed("a host that is not the authority")
    return RequestHead(method, path, authority or host or b"", content_length, tuple(regular))


#: Names and whole fields that HPACK's static table knows, as far as responses of ours have use for them.
_STATUS_NAME = 8
_STATIC_STATUS = {200: 8, 204: 9, 206: 10, 304: 11, 400: 12, 404: 13, 500: 14}
_CONTENT_TYPE_NAME = 31
_CONTENT_LENGTH_NAME = 28

#: Tells the peer's decoder that our dynamic table has no room (RFC 7541, section 6.3); it never has anything in it.
NO_TABLE = b"\x20"


def _integer(value: int, bits: int, first: int = 0) -> bytes:
    """An HPACK integer in a prefix of ``bits`` bits; ``first`` holds the bits before it (RFC 7541, section 5.1)."""
    full = (1 << bits) - 1
    if value < full:
        return bytes([first | value])
    out = [first | full]
    value -= full
    while value >= 128:
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value)
    return bytes(out)


def _literal(name: bytes, value: bytes) -> bytes:
    """A field without indexing (RFC 7541, section 6.2.2)."""
    indexed = {b"content-type": _CONTENT_TYPE_NAME, b"content-length": _CONTENT_LENGTH_NAME}.get(name)
    spelled = _integer(indexed, 4) if indexed else b"\x00" + _integer(len(name), 7) + name
    return spelled + _integer(len(value), 7) + value


def encode(fields: Iterable[tuple[bytes, bytes]], status: int | None = None) -> bytes:
    """A header block of ours: with ``status`` for a response, without for trailers."""
    block = b""
    if status in _STATIC_STATUS:
        block = _integer(_STATIC_STATUS[status], 7, 0x80)
    elif status is not None:
        block = _integer(_STATUS_NAME, 4) + b"\x03" + b"%03d" % status
    return block + b"".join(_literal(name, value) for name, value in fields)
