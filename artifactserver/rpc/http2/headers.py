"""Header fields: what a request's have to be, and how ours are written (RFC 9113, section 8; RFC 7541).

Ours are literals without indexing: constants that need no state, made once.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from artifactserver.rpc.http2.errors import ErrorCode, StreamFault

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


@dataclass(slots=True, eq=False)
class RequestHead:
    """The headers of a request, checked; one for all requests with the same block.

    :ivar fields: what is not a pseudo-header, in order, with its repetitions.
    :ivar meaning: whatever the layer above makes of them; nothing here looks at it.
    """

    method: bytes
    path: bytes
    authority: bytes
    content_length: int | None
    fields: tuple[tuple[bytes, bytes], ...]
    meaning: Any = None


def list_size(fields: Iterable[tuple[bytes, bytes]]) -> int:
    """How large a header list is (RFC 9113, section 6.5.2)."""
    return sum(len(name) + len(value) + 32 for name, value in fields)


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
