"""What a request's headers ask for: read once per distinct header block, and remembered with it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from artifactserver.access import Refusal
from artifactserver.rpc import answers
from artifactserver.rpc.codes import Code
from artifactserver.rpc.dispatch import Method, Routes
from artifactserver.rpc.http2 import RequestHead
from artifactserver.rpc.messages import ENCODINGS, BadMessage, is_grpc, metadata_of, parse_timeout


@dataclass(frozen=True, slots=True)
class Wanted:
    """A call that can be made.  Who may make it is asked anew for each.

    :ivar timeout: seconds until its deadline, or `None`.
    :ivar authorization: what it shows to prove who calls, or `None`.
    :ivar encoding: how its messages may be compressed.
    """

    method: Method
    metadata: Mapping[str, str | bytes]
    timeout: float | None
    encoding: bytes
    authorization: bytes | None


@dataclass(frozen=True, slots=True)
class NotGrpc:
    """Something that is answered with an HTTP status and nothing else.

    :ivar authorization: as of `Wanted`.
    """

    status: int
    authorization: bytes | None = None

    def answer(self, most: int) -> bytes:
        """The response."""
        return answers.plain(self.status)


@dataclass(frozen=True, slots=True)
class Impossible:
    """A call that fails whatever its messages are.

    :ivar authorization: as of `Wanted`.
    """

    code: Code
    message: str
    authorization: bytes | None = None

    def answer(self, most: int) -> bytes:
        """The response.

        :param most: the largest header list that the peer takes.
        """
        return answers.trailers_only(self.code, self.message, most=most)


def denied(refusal: Refusal) -> Impossible:
    """What becomes of a call that its caller may not make."""
    return Impossible(Code.UNAUTHENTICATED if refusal.unauthenticated else Code.PERMISSION_DENIED, refusal.reason)


def authorization_of(fields: Iterable[tuple[bytes, bytes]]) -> bytes | None:
    """The value of the ``authorization`` field, or `None`.  Of several nothing good comes: they are put together."""
    values = [value for name, value in fields if name == b"authorization"]
    return b", ".join(values) if values else None


def read_request(head: RequestHead, routes: Routes) -> Wanted | NotGrpc | Impossible:
    """What to do about a request."""
    authorization = authorization_of(head.fields)
    if head.method != b"POST":
        return NotGrpc(405, authorization)
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
        return NotGrpc(415, authorization)
    try:
        timeout = None if wait is None else parse_timeout(wait)
        metadata = metadata_of(head.fields)
    except BadMessage as error:
        return Impossible(error.code, str(error), authorization)
    path = head.path.decode("latin-1")
    method = routes.find(path)
    if method is None or method.handler is None:
        return Impossible(Code.UNIMPLEMENTED, f"this server has no method {path[:200]}", authorization)
    if encoding not in ENCODINGS:
        reason = "this server takes messages with grpc-encoding identity or gzip only"
        return Impossible(Code.UNIMPLEMENTED, reason, authorization)
    return Wanted(method, metadata, timeout, encoding, authorization)
