"""gRPC's own encodings on top of HTTP/2: length-prefixed messages, timeouts, status messages, metadata.

The rules are in gRPC's "gRPC over HTTP2" document (``doc/PROTOCOL-HTTP2.md``).  No Twisted and no sockets here: bytes
in, values out.  What the peer gets wrong is a `BadMessage`, which carries the code to answer with.
"""

from __future__ import annotations

import base64
import binascii
import re
import struct
import zlib
from collections.abc import Iterable, Sequence

from artifactserver.rpc.codes import Code

#: The compressed flag and the length that precede every message.
PREFIX = struct.Struct(">BL")
PREFIX_BYTES = PREFIX.size

#: How messages to us may be compressed.
ENCODINGS = (b"identity", b"gzip")

#: A status message is cut to this many bytes as it stands on the wire: with everything else, headers and trailers
#: then stay far below 8 KiB, the header list limit of old clients (grpcio 1.10 and 1.30).
STATUS_MESSAGE_BYTES = 4096

_CONTENT_TYPE = re.compile(rb"application/grpc(\+proto)?[ \t]*(;.*)?", re.IGNORECASE)
_TIMEOUT = re.compile(rb"([0-9]{1,8})([HMSmun])")
_TIMEOUT_UNITS = {b"H": 3600.0, b"M": 60.0, b"S": 1.0, b"m": 1e-3, b"u": 1e-6, b"n": 1e-9}


class BadMessage(Exception):
    """The peer's messages or metadata are not gRPC, or are too large.

    :ivar code: what to answer with.
    """

    def __init__(self, code: Code, message: str) -> None:
        super().__init__(message)
        self.code = code


class Compressed:
    """A whole message as it came.  What it grows into is made when it is wanted: a thousand of them fit into a window.

    :param limit: how long the message may be after decompression.
    """

    __slots__ = ("_content", "_limit")

    def __init__(self, content: bytes, limit: int) -> None:
        self._content = content
        self._limit = limit

    def __len__(self) -> int:
        return len(self._content)

    def expand(self) -> bytes:
        """:raises BadMessage: if it is too long, or not gzip."""
        return gunzip(self._content, self._limit)


#: A message of a request.
Message = bytes | Compressed


class MessageReader:
    """Finds the messages in a request's body, however it was cut.

    What belongs to a message that is not whole yet is kept in the pieces in which it came, and joined once.

    :param limit: how long a message may be, before and after decompression.
    :param encoding: the request's ``grpc-encoding``.
    :ivar held: how many bytes of an unfinished message are kept.
    """

    __slots__ = ("_compressed", "_encoding", "_left", "_limit", "_pieces", "held")

    def __init__(self, limit: int, encoding: bytes = b"identity") -> None:
        self._limit = limit
        self._encoding = encoding
        self._pieces: list[bytes | memoryview] = []
        # What is missing of the current message; -1 while its prefix is not whole.
        self._left = -1
        self._compressed = False
        self.held = 0

    @property
    def unfinished(self) -> bool:
        """Whether the rest of a message is missing."""
        return self._left >= 0 or self.held > 0

    def feed(self, data: bytes | memoryview) -> list[tuple[Message, int]]:
        """Messages that are now whole, each with the bytes it took on the wire.

        :raises BadMessage: if there is something wrong with them.
        """
        messages: list[tuple[Message, int]] = []
        position = 0
        end = len(data)
        while position < end or self._left == 0:
            if self._left < 0:
                position = self._read_prefix(data, position)
                continue
            stop = min(end, position + self._left)
            self._left -= stop - position
            if self._left:
                self._keep(data[position:] if position else data)
                break
            whole = data[position:stop]
            if self._pieces:
                self._keep(whole)
                whole = b"".join(self._pieces)
                self._pieces = []
                self.held = 0
            messages.append((self._message(bytes(whole)), len(whole) + PREFIX_BYTES))
            self._left = -1
            position = stop
        return messages

    def _keep(self, piece: bytes | memoryview) -> None:
        if piece:
            self._pieces.append(piece)
            self.held += len(piece)

    def _read_prefix(self, data: bytes | memoryview, position: int) -> int:
        stop = min(len(data), position + PREFIX_BYTES - self.held)
        self._keep(data[position:stop])
        if self.held == PREFIX_BYTES:
            flag, self._left = PREFIX.unpack(b"".join(self._pieces))
            self._pieces = []
            self.held = 0
            if flag > 1:
                raise BadMessage(Code.INTERNAL, f"a message with the compressed flag {flag}")
            if self._left > self._limit:
                raise too_large(self._left, self._limit)
            self._compressed = flag == 1
        return stop

    def _message(self, content: bytes) -> Message:
        if not self._compressed:
            return content
        if self._encoding != b"gzip":
            raise BadMessage(Code.INTERNAL, "a compressed message without grpc-encoding")
        return Compressed(content, self._limit)


def too_large(length: int, limit: int) -> BadMessage:
    return BadMessage(
        Code.RESOURCE_EXHAUSTED, f"a message of {length} bytes is more than the {limit} that are accepted"
    )


def gunzip(message: bytes, limit: int) -> bytes:
    """Decompress one message, giving up as soon as it turns out longer than ``limit``.

    :raises BadMessage: if it is too long, or not gzip.
    """
    inflate = zlib.decompressobj(wbits=31)
    try:
        content = inflate.decompress(message, limit + 1)
    except zlib.error as error:
        raise BadMessage(Code.INTERNAL, "a message that cannot be decompressed") from error
    if len(content) > limit:
        raise BadMessage(Code.RESOURCE_EXHAUSTED, f"a message of more than {limit} bytes after decompression")
    if not inflate.eof or inflate.unused_data:
        raise BadMessage(Code.INTERNAL, "a compressed message that is not one whole gzip stream")
    return content


def whole_message(data: bytes | memoryview, limit: int) -> bytes | None:
    """The message, if ``data`` is exactly one and not compressed, as most requests are; `None` for anything else."""
    if len(data) >= PREFIX_BYTES:
        flag, length = PREFIX.unpack_from(data)
        if flag == 0 and length == len(data) - PREFIX_BYTES and length <= limit:
            return bytes(data[PREFIX_BYTES:])
    return None


def prefix(pieces: Sequence[bytes]) -> bytes:
    """What precedes an uncompressed message, here in pieces, on the wire."""
    return PREFIX.pack(0, len(pieces[0]) if len(pieces) == 1 else sum(map(len, pieces)))


def is_grpc(content_type: bytes) -> bool:
    """Whether a content type is gRPC with protobuf messages."""
    return _CONTENT_TYPE.fullmatch(content_type) is not None


def parse_timeout(value: bytes) -> float:
    """Seconds, from a ``grpc-timeout``.

    :raises BadMessage: if it is not one.
    """
    match = _TIMEOUT.fullmatch(value)
    if match is None:
        raise BadMessage(Code.INVALID_ARGUMENT, "grpc-timeout is not up to 8 digits and a unit")
    return int(match[1]) * _TIMEOUT_UNITS[match[2]]


def _escape(character: int) -> bytes:
    return bytes([character]) if 0x20 <= character <= 0x7E and character != 0x25 else b"%%%02X" % character


_ESCAPED = [_escape(character) for character in range(256)]


def encode_status_message(message: str, most: int = STATUS_MESSAGE_BYTES) -> bytes:
    """Percent-encode a ``grpc-message``, cut after a whole character so that it takes at most ``most`` bytes."""
    out: list[bytes] = []
    size = 0
    for character in message[:most]:
        escaped = b"".join([_ESCAPED[byte] for byte in character.encode("utf-8", "replace")])
        size += len(escaped)
        if size > most:
            break
        out.append(escaped)
    encoded = b"".join(out)
    # A header value must not begin or end with a space (RFC 9113, section 8.2.1).
    if encoded[:1] == b" ":
        encoded = b"%20" + encoded[1:]
    if encoded[-1:] == b" ":
        encoded = encoded[:-1] + b"%20"
    return encoded


def decode_binary(value: bytes) -> bytes:
    """The value of ``-bin`` metadata: base64, padded or not.

    :raises BadMessage: if it is neither.
    """
    try:
        return base64.b64decode(value + b"=" * (-len(value) % 4), validate=True)
    except binascii.Error as error:
        raise BadMessage(Code.INTERNAL, "binary metadata that is not base64") from error


def encode_binary(value: bytes) -> bytes:
    """``-bin`` metadata as gRPC prefers to send it: base64 without padding."""
    return base64.b64encode(value).rstrip(b"=")


#: Headers that are the transport's own.
_RESERVED = frozenset({b"te", b"content-type", b"content-length", b"host", b"accept-encoding"})


def metadata_of(fields: Iterable[tuple[bytes, bytes]]) -> dict[str, str | bytes]:
    """What a client's application sent along: lower-case names, and text, or `bytes` for names that end in ``-bin``.

    A name that occurs several times has its texts joined by commas; of binary values, the last counts.

    :raises BadMessage: if binary metadata is not base64.
    """
    metadata: dict[str, str | bytes] = {}
    for field, value in fields:
        if field in _RESERVED or field.startswith(b"grpc-") and not field.endswith(b"-bin"):
            continue
        name = field.decode("ascii")
        if field.endswith(b"-bin"):
            # Several may stand in one field, so commas come before base64.
            metadata[name] = [decode_binary(each.strip()) for each in value.split(b",")][-1]
        else:
            text = value.decode("latin-1")
            before = metadata.get(name)
            # A cookie may come in crumbs, which are put together in a way of their own (RFC 9113, section 8.2.3).
            between = "; " if field == b"cookie" else ","
            metadata[name] = f"{before}{between}{text}" if isinstance(before, str) else text
    return metadata
