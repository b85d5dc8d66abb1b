"""Frames: their header, types, flags, and the few that we write (RFC 9113, sections 4 and 6)."""

from __future__ import annotations

import struct
from collections.abc import Iterator

from artifactserver.rpc.http2.errors import ConnectionFault, ErrorCode

DATA = 0x0
HEADERS = 0x1
PRIORITY = 0x2
RST_STREAM = 0x3
SETTINGS = 0x4
PUSH_PROMISE = 0x5
PING = 0x6
GOAWAY = 0x7
WINDOW_UPDATE = 0x8
CONTINUATION = 0x9

END_STREAM = 0x1
ACK = 0x1
END_HEADERS = 0x4
PADDED = 0x8
PRIORITY_FLAG = 0x20

SETTINGS_HEADER_TABLE_SIZE = 0x1
SETTINGS_ENABLE_PUSH = 0x2
SETTINGS_MAX_CONCURRENT_STREAMS = 0x3
SETTINGS_INITIAL_WINDOW_SIZE = 0x4
SETTINGS_MAX_FRAME_SIZE = 0x5
SETTINGS_MAX_HEADER_LIST_SIZE = 0x6

#: Bytes in a frame header.
FRAME_HEADER = 9
DEFAULT_TABLE_BYTES = 4096
#: What one likes to get who has not said anything: all there is.
MAX_HEADER_LIST_BYTES = 2**32 - 1
DEFAULT_WINDOW = 65_535
MAX_WINDOW = 2**31 - 1
DEFAULT_FRAME_BYTES = 16_384
MAX_FRAME_BYTES = 2**24 - 1
MAX_STREAM_ID = 2**31 - 1

#: A frame header: length and type in one number (``length << 8 | type``), flags, stream.
_header = struct.Struct(">LBL")
frame_header = _header.pack
read_frame_header = _header.unpack_from

_setting = struct.Struct(">HL")
_control = struct.Struct(">LBLL")
_goaway = struct.Struct(">LBLLL")

SETTINGS_ACK = frame_header(SETTINGS, ACK, 0)


def settings_frame(values: dict[int, int]) -> bytes:
    """A SETTINGS frame of ours."""
    body = b"".join(_setting.pack(name, value) for name, value in values.items())
    return frame_header(len(body) << 8 | SETTINGS, 0, 0) + body


def window_update_frame(stream_id: int, increment: int) -> bytes:
    return _control.pack(4 << 8 | WINDOW_UPDATE, 0, stream_id, increment)


def reset_frame(stream_id: int, code: ErrorCode) -> bytes:
    return _control.pack(4 << 8 | RST_STREAM, 0, stream_id, code)


def ping_frame(payload: bytes, flags: int = 0) -> bytes:
    return frame_header(8 << 8 | PING, flags, 0) + payload


def goaway_frame(last_stream: int, code: ErrorCode, reason: str = "") -> bytes:
    debug = reason.encode("ascii", "replace")[:200]
    return _goaway.pack(8 + len(debug) << 8 | GOAWAY, 0, 0, last_stream, code) + debug


def headers_frame(stream_id: int, block: bytes, end: bool) -> bytes:
    """A whole header block in one frame; ours are far below the smallest maximum frame size."""
    return frame_header(len(block) << 8 | HEADERS, END_HEADERS | end, stream_id) + block


def read_settings(payload: bytes) -> Iterator[tuple[int, int]]:
    """The peer's settings, in order, each value checked (RFC 9113, section 6.5.2).

    :raises ConnectionFault: for a value that is not allowed.
    """
    for name, value in _setting.iter_unpack(payload):
        if name == SETTINGS_ENABLE_PUSH and value > 1:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, f"ENABLE_PUSH of {value}")
        if name == SETTINGS_INITIAL_WINDOW_SIZE and value > MAX_WINDOW:
            raise ConnectionFault(ErrorCode.FLOW_CONTROL_ERROR, f"INITIAL_WINDOW_SIZE of {value}")
        if name == SETTINGS_MAX_FRAME_SIZE and not DEFAULT_FRAME_BYTES <= value <= MAX_FRAME_BYTES:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, f"MAX_FRAME_SIZE of {value}")
        yield name, value


def unpadded(payload: bytes, flags: int, fixed: int = 0) -> bytes:
    """A HEADERS payload without its padding and without ``fixed`` bytes that precede the block.

    :raises ConnectionFault: if the padding is as long as what it pads, or there is no room for the fixed part.
    """
    start = 0
    end = len(payload)
    if flags & PADDED:
        if not payload:
            raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, "a padded frame without a pad length")
        start = 1
        end -= payload[0]
    start += fixed
    if start > len(payload):
        raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, "a frame too short for its fixed fields")
    if end < start:
        raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "padding longer than the frame")
    return payload[start:end]
