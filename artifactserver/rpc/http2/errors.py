"""What can go wrong in HTTP/2, and whose fault it is.

`ConnectionFault` and `StreamFault` are the peer's doing, and carry the code to answer with (RFC 9113, section 7);
`Misuse` is ours and is never caught here.
"""

from __future__ import annotations

import enum


class ErrorCode(enum.IntEnum):
    """RFC 9113, section 7."""

    NO_ERROR = 0x0
    PROTOCOL_ERROR = 0x1
    INTERNAL_ERROR = 0x2
    FLOW_CONTROL_ERROR = 0x3
    SETTINGS_TIMEOUT = 0x4
    STREAM_CLOSED = 0x5
    FRAME_SIZE_ERROR = 0x6
    REFUSED_STREAM = 0x7
    CANCEL = 0x8
    COMPRESSION_ERROR = 0x9
    CONNECT_ERROR = 0xA
    ENHANCE_YOUR_CALM = 0xB
    INADEQUATE_SECURITY = 0xC
    HTTP_1_1_REQUIRED = 0xD


class PeerFault(Exception):
    """The peer broke the protocol, or one of our bounds.

    :ivar code: what to tell it.
    :ivar reason: what it did, in one phrase, for the log and the debug data of GOAWAY.
    """

    def __init__(self, code: ErrorCode, reason: str) -> None:
        super().__init__(f"{code.name}: {reason}")
        self.code = code
        self.reason = reason


class ConnectionFault(PeerFault):
    """Nothing more can be understood, or shall be borne, on this connection: GOAWAY, then close."""


class StreamFault(PeerFault):
    """One request is bad; every other on the connection goes on: RST_STREAM."""


class HeaderListTooLarge(Exception):
    """A request's headers are well-formed but more than we accept; it is answered, not reset.

    :ivar resets: how many streams that are reset it counts as, for the work that it made.
    """

    def __init__(self, resets: int) -> None:
        super().__init__()
        self.resets = resets


class Misuse(RuntimeError):
    """This server used the engine in a way that HTTP/2 does not allow."""
