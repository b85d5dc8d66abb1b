"""What a request's headers ask for: read once per distinct header block, and remembered with it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from artifactserver.access import Refusal
from artifactserver.rpc.codes import Code
from artifactserver.rpc.dispatch import Method, Routes
from artifactserver.rpc.http2 import RequestHead
from artifactserver.rpc.messages import ENCODINGS, BadMessage, is_grpc, metadata_of, parse_timeout


@dataclass(frozen=True, slots=True)
class Wanted:
    """A call that can be made.  Who may make it is asked anew for each.

    :ivar timeout: seconds until its deadline, or `None`.
    :ivar encoding: how its messages may be compressed.
    """

    method: Method
    metadata: Mapping[str, str | bytes]
    timeout: float | None
    encoding: bytes


@dataclass(frozen=True, slots=True)
class NotGrpc:
    """Something that is answered with an HTTP status and nothing else."""

    status: int


@dataclass(frozen=True, slots=True)
class Impossible:
    """A call that fails whatever its messages are."""

    code: Code
    message: str


def denied(refusal: Refusal) -> Impossible:
    """What becomes of a call that its caller may not make."""
    return Impossible(Code.UNAUTHENTICATED if refusal.unauthenticated else Code.PERMISSION_DENIED, refusal.reason)


def read_request(head: RequestHead, routes: Routes) -> Wanted | NotGrpc | Impossible:
    """What to do about a request."""
    if head.method != b"POST":
        return NotGrpc(405)
    content_type = b""
    encoding = b"identity"
    wait: bytes | None = None
    for name, value in head.fields:
        if name == b"content-type":
            content_type = value
        elif name == b"grpc-encoding":
            encoding = value
        elif name == b"grpc-timeout":
            wait = value
    if not is_grpc(content_type):
        return NotGrpc(415)
    try:
        timeout = None if wait is None else parse_timeout(wait)
        metadata = metadata_of(head.fields)
    except BadMessage as error:
        return Impossible(error.code, str(error))
    path = head.path.decode("latin-1")
    method = routes.find(path)
    if method is None or method.handler is None:
        return Impossible(Code.UNIMPLEMENTED, f"this server has no method {path[:200]}")
    if encoding not in ENCODINGS:
        return Impossible(Code.UNIMPLEMENTED, "this server takes messages with grpc-encoding identity or gzip only")
    return Wanted(method, metadata, timeout, encoding)
