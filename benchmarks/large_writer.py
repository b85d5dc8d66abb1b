"""A client that uploads large blobs, one after the other, as fast as it can.

All of them begin alike and end differently, so what they begin with is hashed once, before the clock starts.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable
from typing import Any

from artifactserver.proto import bytestream_pb2
from artifactserver.services.encoding import varint
from benchmarks import part
from benchmarks.client import require
from benchmarks.messages import LARGE, WRITE, WRITE_MESSAGE, upload_name
from benchmarks.wire import Connection, prefix

_DATA_FIELD = bytestream_pb2.WriteRequest.DATA_FIELD_NUMBER << 3 | 2


def prepare(arguments: list[str]) -> Callable[[], Any]:
    """:param arguments: port, seconds."""
    port, seconds = arguments
    block = os.urandom(WRITE_MESSAGE)
    hasher = hashlib.sha256()
    for _ in range(LARGE // WRITE_MESSAGE - 1):
        hasher.update(block)
    connection = Connection(int(port))
    return lambda: _run(connection, block, hasher, float(seconds))


def _run(connection: Connection, block: bytes, hasher: Any, seconds: float) -> Any:
    begun = time.perf_counter()
    sent = blobs = 0
    longest = 0.0
    while True:
        last = os.urandom(32) + block[32:]
        whole = hasher.copy()
        whole.update(last)
        name = upload_name(whole.hexdigest(), LARGE)
        call = connection.wire.begin(WRITE, keep=True)
        for offset in range(0, LARGE, WRITE_MESSAGE):
            data = block if offset + WRITE_MESSAGE < LARGE else last
            asked = time.perf_counter()
            if asked - begun >= seconds:
                return {"bytes": sent, "seconds": asked - begun, "blobs": blobs, "longest_wait": longest}
            head = _head(name, offset)
            end = data is last
            connection.send_message(call, [prefix(len(head) + len(data)), head, memoryview(data)], end)
            if end:
                connection.finish(call)
            sent += len(data)
            longest = max(longest, time.perf_counter() - asked)
        require(call.status == 0)
        blobs += 1


def _head(name: str, offset: int) -> bytes:
    """A message of an upload up to its data."""
    fields = bytestream_pb2.WriteRequest(
        resource_name=name, write_offset=offset, finish_write=offset + WRITE_MESSAGE == LARGE
    )
    return fields.SerializeToString() + bytes((_DATA_FIELD,)) + varint(WRITE_MESSAGE)


if __name__ == "__main__":
    part.play(prepare)
