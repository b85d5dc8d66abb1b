"""How calls are answered, as HTTP/2 header blocks: constants where they can be, small always.

Old clients accept 8 KiB of headers and trailers, message and details included; everything here stays below.
"""

from __future__ import annotations

import functools

from artifactserver.rpc.codes import Code
from artifactserver.rpc.http2 import encode
from artifactserver.rpc.messages import ENCODINGS, encode_binary, encode_status_message

_CONTENT_TYPE = (b"content-type", b"application/grpc")

#: Begins a response that has messages.
HEAD = encode([_CONTENT_TYPE], status=200)
#: Ends one that went well.
TAIL = encode([(b"grpc-status", b"0")])

#: Details beyond this are left out: the status and its message say what matters.
DETAILS_BYTES = 3000


def _status_fields(code: Code, message: str, details: bytes) -> list[tuple[bytes, bytes]]:
    fields = [(b"grpc-status", b"%d" % code)]
    if message:
        fields.append((b"grpc-message", encode_status_message(message)))
    encoded = encode_binary(details)
    if encoded and len(encoded) <= DETAILS_BYTES:
        fields.append((b"grpc-status-details-bin", encoded))
    return fields


def trailers(code: Code, message: str, details: bytes = b"") -> bytes:
    """Ends a response whose headers are out."""
    return encode(_status_fields(code, message, details))


@functools.lru_cache(maxsize=256)
def trailers_only(code: Code, message: str, details: bytes = b"") -> bytes:
    """A whole response without messages.  Most refusals come again and again: those of BuildStream 1.6's probes."""
    fields = [_CONTENT_TYPE, *_status_fields(code, message, details)]
    if code is Code.UNIMPLEMENTED:
        # Who sent an encoding that we lack has to be told what we have (gRPC, doc/compression.md).
        fields.append((b"grpc-accept-encoding", b",".join(ENCODINGS)))
    return encode(fields, status=200)


def plain(status: int) -> bytes:
    """A response to something that is not gRPC."""
    fields = [(b"content-length", b"0")]
    if status == 405:
        fields.append((b"allow", b"POST"))
    return encode(fields, status=status)
