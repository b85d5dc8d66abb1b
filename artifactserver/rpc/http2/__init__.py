"""HTTP/2 for gRPC servers, without any input or output of its own (RFC 9113).

Bytes from the peer go into `Connection.receive`, which gives back events; what is to be sent is handed to the
connection's `Sender` and comes out of `Sender.take` as pieces ready to be written.  Nothing here waits, reads a clock
or knows Twisted.  It serves: it never starts a stream, never pushes, and ends every response body with trailers, as
gRPC does.
"""

from artifactserver.rpc.http2.blocks import Beginnings
from artifactserver.rpc.http2.connection import Connection
from artifactserver.rpc.http2.errors import ConnectionFault, ErrorCode, Misuse, PeerFault, StreamFault
from artifactserver.rpc.http2.events import (
    ConnectionFailed,
    DataReceived,
    Event,
    GoAwayReceived,
    PingAcknowledged,
    RequestReceived,
    RequestRefused,
    StreamReset,
)
from artifactserver.rpc.http2.headers import RequestHead, encode, list_size
from artifactserver.rpc.http2.limits import Limits
from artifactserver.rpc.http2.reading import PREFACE
from artifactserver.rpc.http2.sending import Sender
from artifactserver.rpc.http2.streams import Stream

__all__ = [
    "PREFACE",
    "Beginnings",
    "Connection",
    "ConnectionFailed",
    "ConnectionFault",
    "DataReceived",
    "ErrorCode",
    "Event",
    "GoAwayReceived",
    "Limits",
    "Misuse",
    "PeerFault",
    "PingAcknowledged",
    "RequestHead",
    "RequestReceived",
    "RequestRefused",
    "Sender",
    "Stream",
    "StreamFault",
    "StreamReset",
    "encode",
    "list_size",
]
