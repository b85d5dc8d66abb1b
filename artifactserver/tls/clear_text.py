"""Peers that speak HTTP in clear text where TLS is expected.

TLS has only an alert for them, which they cannot read.  HTTP/1.1 is answered as well-known servers do.  In HTTP/2 there
is nothing to say: a client of gRPC that hears SETTINGS takes the server for a good one, and connects again and again;
one that hears anything else does not show it to its user.
"""

from __future__ import annotations

import enum
import re

#: How TLS begins: with a handshake record (RFC 8446, section 5.1).
_HANDSHAKE = b"\x16"

#: How HTTP/2 begins (RFC 9113, section 3.4).
_PREFACE = b"PRI * HTTP/2.0\r\n"

#: How HTTP/1.1 begins: with a method, none of which is longer.
_METHOD = re.compile(rb"[A-Z]{1,20}( )?")

_HINT = b"This port speaks TLS: use https:// or grpcs://\n"

#: What to answer to a request of HTTP/1.1.
BAD_REQUEST = (
    b"HTTP/1.1 400 Bad Request\r\n"
    b"Connection: close\r\n"
    b"Content-Type: text/plain; charset=utf-8\r\n"
    b"Content-Length: %d\r\n\r\n%b" % (len(_HINT), _HINT)
)


class Spoken(enum.Enum):
    """What a peer speaks that has just begun to."""

    HTTP1 = enum.auto()
    HTTP2 = enum.auto()
    #: One of these, or something else: more has to come.
    UNCLEAR = enum.auto()
    #: TLS, or what TLS is to refuse.
    OTHER = enum.auto()


def spoken(received: bytes) -> Spoken:
    """What a peer speaks, by all that it has said so far."""
    if received.startswith(_HANDSHAKE):
        return Spoken.OTHER
    if received.startswith(_PREFACE):
        return Spoken.HTTP2
    if _PREFACE.startswith(received):
        return Spoken.UNCLEAR
    method = _METHOD.match(received)
    if method is None:
        return Spoken.OTHER
    if method[1]:
        return Spoken.HTTP1
    return Spoken.UNCLEAR if method.end() == len(received) else Spoken.OTHER
