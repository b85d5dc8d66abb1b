"""gRPC status codes, and the one table from errors to them."""

from __future__ import annotations

from collections.abc import Sequence

from google.protobuf.any_pb2 import Any
from google.protobuf.message import Message

from artifactserver.rpc.codes import Code
from artifactserver.store.digest import InvalidDigest
from artifactserver.store.interface import (
    BadReference,
    BlobMissing,
    BlobTooLarge,
    ContentMismatch,
    Incomplete,
    NoRoom,
    StoreBroken,
    TooBusy,
    TooSlow,
)


class RpcError(Exception):
    """The answer to a call is this status instead of a message.

    :param message: a sentence for the caller.
    :param details: messages that tell a program more; they go into ``grpc-status-details-bin``.
    """

    def __init__(self, code: Code, message: str, details: Sequence[Message] = ()) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.details = tuple(details)


__all__ = ["Code", "RpcError", "details_of", "status_of"]

_CODES: dict[type[Exception], Code] = {
    InvalidDigest: Code.INVALID_ARGUMENT,
    BlobMissing: Code.NOT_FOUND,
    ContentMismatch: Code.INVALID_ARGUMENT,
    BlobTooLarge: Code.INVALID_ARGUMENT,
    NoRoom: Code.RESOURCE_EXHAUSTED,
    TooBusy: Code.UNAVAILABLE,
    TooSlow: Code.ABORTED,
    Incomplete: Code.FAILED_PRECONDITION,
    BadReference: Code.INVALID_ARGUMENT,
    StoreBroken: Code.UNAVAILABLE,
}


def status_of(error: BaseException) -> tuple[Code, str] | None:
    """How to answer ``error``; `None` if it is nobody's fault but ours."""
    if isinstance(error, RpcError):
        return error.code, error.message
    for kind in type(error).__mro__:
        code = _CODES.get(kind)
        if code is not None:
            return code, str(error)
    return None


def details_of(error: BaseException) -> bytes:
    """The ``google.rpc.Status`` that says more about ``error`` to a program, serialized; empty for none."""
    if not isinstance(error, RpcError) or not error.details:
        return b""
    out = [b"\x08", _varint(error.code)]
    fields = [(b"\x12", error.message.encode("utf-8", "replace"))]
    for detail in error.details:
        packed = Any()
        packed.Pack(detail)
        fields.append((b"\x1a", packed.SerializeToString()))
    # Three fields, written by hand: the class that protoc makes of status.proto is not for this room.
    for tag, value in fields:
        out += [tag, _varint(len(value)), value]
    return b"".join(out)


def _varint(value: int) -> bytes:
    out = bytearray()
    while value >= 128:
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value)
    return bytes(out)
