"""What a peer did, as values.  A stream is named by its `Stream`, on which the layer above keeps what it knows.

The two of which there is one or more for each call are not frozen: a frozen value takes three times as long to make.
"""

from __future__ import annotations

from dataclasses import dataclass

from artifactserver.rpc.http2.errors import ErrorCode
from artifactserver.rpc.http2.headers import RequestHead
from artifactserver.rpc.http2.streams import Stream


@dataclass(slots=True)
class RequestReceived:
    """A request began.

    :ivar ended: there is no body.
    """

    stream: Stream
    head: RequestHead
    ended: bool


@dataclass(frozen=True, slots=True)
class RequestRefused:
    """A request began whose headers are more than we accept: answer it with status 431."""

    stream: Stream


@dataclass(slots=True)
class DataReceived:
    """Some of a request's body, cut as it arrived.

    All of it counts against the windows until `Connection.release` and `Connection.release_stream` are told otherwise.

    :ivar payload: a `bytes`, or a `memoryview` of what was received where copying would cost more than keeping it.
    :ivar ended: this was the end of the request; ``payload`` may then be empty.
    """

    stream: Stream
    payload: bytes | memoryview
    ended: bool


@dataclass(frozen=True, slots=True)
class StreamReset:
    """A stream is over before its time, by the peer's RST_STREAM or by its breaking a rule."""

    stream: Stream
    code: ErrorCode | int


@dataclass(frozen=True, slots=True)
class PingAcknowledged:
    """The peer has read everything that was sent before a PING of ours."""

    payload: bytes


@dataclass(frozen=True, slots=True)
class GoAwayReceived:
    """The peer will not need this connection once its calls in flight are done."""

    code: ErrorCode | int


@dataclass(frozen=True, slots=True)
class ConnectionFailed:
    """The peer broke a rule that the whole connection depends on.  GOAWAY is among what is to be sent; close then.

    Always the last event of a connection.
    """

    code: ErrorCode
    reason: str


Event = (
    RequestReceived | RequestRefused | DataReceived | StreamReset | PingAcknowledged | GoAwayReceived | ConnectionFailed
)
