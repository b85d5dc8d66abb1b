"""Large ``WriteRequest`` messages, read without copying what they carry.

Protobuf's own parser copies the data twice, into its arena and out of it.  All known clients write the fields in the
order of their numbers, so the data comes last: what stands before it is parsed as usual, and the data stays where it
is.  A message of any other form is left to protobuf.
"""

from __future__ import annotations

from dataclasses import dataclass

from artifactserver.proto import bytestream_pb2 as bytestream

#: Messages that are shorter, in bytes, are cheaper to parse than to take apart.
LARGE_BYTES = 16 * 1024

#: Fields to look at for the data, twice as many as there are: a message of many more is no client's, and would be read
#: byte by byte here.
FIELDS_LOOKED_AT = 8

_VARINT_TAGS = (0x10, 0x18)  # write_offset, finish_write
_NAME_TAG = 0x0A
_DATA_TAG = 0x52

#: The most bytes that protobuf reads as a length; what it refuses is for it to refuse.
_LENGTH_BYTES = 5


@dataclass(frozen=True, slots=True)
class LargeWrite:
    """A ``WriteRequest`` whose data is still a part of the message that brought it."""

    resource_name: str
    write_offset: int
    finish_write: bool
    data: memoryview


def decode(message: bytes) -> bytestream.WriteRequest | LargeWrite:
    """:raises DecodeError: if it is no ``WriteRequest``."""
    if len(message) >= LARGE_BYTES:
        end = _data_field(message)
        if end is not None:
            start, after = end
            rest = bytestream.WriteRequest.FromString(message[:start])
            return LargeWrite(
                rest.resource_name, rest.write_offset, rest.finish_write, memoryview(message)[after:].toreadonly()
            )
    return bytestream.WriteRequest.FromString(message)


def _data_field(message: bytes) -> tuple[int, int] | None:
    """Where the data field begins, and where the data itself; `None` if that is not the last of a few fields."""
    position = 0
    for _ in range(FIELDS_LOOKED_AT):
        if position >= len(message):
            return None
        tag = message[position]
        value, after = _varint(message, position + 1)
        if tag == _DATA_TAG:
            whole = after + value == len(message) and after - position <= 1 + _LENGTH_BYTES
            return (position, after) if whole else None
        if tag == _NAME_TAG:
            position = after + value
        elif tag in _VARINT_TAGS:
            position = after
        else:
            return None
    return None


def _varint(message: bytes, position: int) -> tuple[int, int]:
    """The number at ``position``, and where it ends; one that is cut off reaches beyond the end of the message."""
    value = shift = 0
    for byte in message[position : position + 10]:
        value |= (byte & 0x7F) << shift
        position += 1
        if byte < 0x80:
            return value, position
        shift += 7
    return len(message), len(message)
