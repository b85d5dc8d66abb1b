"""How calls are answered, as HTTP/2 header blocks: constants where they can be, small always.

Old clients accept 8 KiB of headers and trailers, message and details included; everything here stays below, and below
what a client announces if that is less.
"""

from __future__ import annotations

import functools

from artifactserver.rpc.codes import Code
from artifactserver.rpc.http2 import encode, list_size
from artifactserver.rpc.messages import ENCODINGS, STATUS_MESSAGE_BYTES, encode_binary, encode_status_message
from artifactserver.tokens.authentication import challenges

_CONTENT_TYPE = (b"content-type", b"application/grpc")

#: Begins a response that has messages.
HEAD = encode([_CONTENT_TYPE], status=200)
#: Ends one that went well.
TAIL = encode([(b"grpc-status", b"0")])

#: What every gRPC client takes.
HEADER_LIST_BYTES = 8192

#: Details beyond this are left out: the status and its message say what matters.
DETAILS_BYTES = 3000


def _add_status(
    fields: list[tuple[bytes, bytes]], code: Code, message: str, details: bytes, room: int
) -> list[tuple[bytes, bytes]]:
    """Add the status, which has to be there, and as much of the rest as there is ``room`` for: the message first."""
    fields.append((b"grpc-status", b"%d" % code))
    room -= list_size([*fields, (b"grpc-message", b"")])
    # Spaces at both ends take two bytes more each.
    encoded = encode_status_message(message, max(0, min(STATUS_MESSAGE_BYTES, room - 4)))
    if encoded:
        fields.append((b"grpc-message", encoded))
        room -= len(encoded) + list_size([(b"grpc-status-details-bin", b"")])
    encoded = encode_binary(details)
    if encoded and len(encoded) <= min(DETAILS_BYTES, room):
        fields.append((b"grpc-status-details-bin", encoded))
    return fields


def trailers(code: Code, message: str, details: bytes = b"", most: int = HEADER_LIST_BYTES) -> bytes:
    """Ends a response whose headers are out.

    :param most: the largest header list that the peer announced.  It is advice (RFC 9113, section 10.5.1), which
        clients enforce: one that gets more fails the call without its status.
    """
    return encode(_add_status([], code, message, details, most))


@functools.lru_cache(maxsize=256)
def trailers_only(code: Code, message: str, details: bytes = b"", most: int = HEADER_LIST_BYTES) -> bytes:
    """A whole response without messages.  Most refusals come again and again: those of BuildStream 1.6's probes."""
    fields = [_CONTENT_TYPE]
    if code is Code.UNIMPLEMENTED:
        # Who sent an encoding that we lack has to be told what we have (gRPC, doc/compression.md).
        fields.append((b"grpc-accept-encoding", b",".join(ENCODINGS)))
    most -= list_size([(b":status", b"200")])
    return encode(_add_status(fields, code, message, details, most), status=200)


def plain(status: int) -> bytes:
    """A response to something that is not gRPC."""
    fields = [(b"content-length", b"0")]
    if status == 405:
        fields.append((b"allow", b"POST"))
    if status == 401:
        fields += [(b"www-authenticate", value) for value in challenges(invalid=True)]
    return encode(fields, status=status)
