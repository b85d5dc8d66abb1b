"""Clients that come to a server by whatever way it has: gRPC by grpcio, and HTTP/1.1, over TCP or a unix socket."""

from __future__ import annotations

import hashlib
import http.client
import socket
import ssl
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc

from artifactserver.proto import bytestream_pb2

#: Seconds that an answer may take.
TIMEOUT = 60.0

_CHUNK = 1024 * 1024


class Visitor:
    """A client of a server.

    :param where: ``HOST:PORT``, or ``unix:PATH``; for grpcio, a path has no comma in it.
    :param trusted: the certificate that the server has to show, which is for ``localhost``; `None` for clear text.
    :param token: what it shows with everything.
    """

    def __init__(self, where: str, trusted: Path | None = None, token: str | None = None) -> None:
        self._where = where
        self._shown = {} if token is None else {"authorization": f"Bearer {token}"}
        self._metadata = tuple(self._shown.items())
        options: list[tuple[str, int | str]] = [
            *(("grpc.enable_http_proxy", 0), ("grpc.use_local_subchannel_pool", 1)),
            ("grpc.max_receive_message_length", -1),
        ]
        self._context = None
        if trusted is None:
            self.channel = grpc.insecure_channel(where, options)
        else:
            self._context = ssl.create_default_context(cafile=trusted)
            options.append(("grpc.ssl_target_name_override", "localhost"))
            self.channel = grpc.secure_channel(where, grpc.ssl_channel_credentials(trusted.read_bytes()), options)

    def write(self, content: bytes) -> int:
        """Upload a blob by ``ByteStream.Write``; the size that the server has.

        :raises grpc.RpcError: if it is not taken.
        """
        name = f"uploads/{uuid.uuid4()}/blobs/{_blob(content)}"

        def requests() -> Iterator[Any]:
            for start in range(0, len(content), _CHUNK):
                piece = content[start : start + _CHUNK]
                last = start + _CHUNK >= len(content)
                yield bytestream_pb2.WriteRequest(resource_name=name, write_offset=start, data=piece, finish_write=last)

        method = self.channel.stream_unary(
            "/google.bytestream.ByteStream/Write",
            request_serializer=bytestream_pb2.WriteRequest.SerializeToString,
            response_deserializer=bytestream_pb2.WriteResponse.FromString,
        )
        answer = method(requests(), timeout=TIMEOUT, wait_for_ready=True, metadata=self._metadata)
        size: int = answer.committed_size
        return size

    def read(self, content: bytes) -> bytes:
        """Download the blob of this content by ``ByteStream.Read``.

        :raises grpc.RpcError: if it is not given.
        """
        method = self.channel.unary_stream(
            "/google.bytestream.ByteStream/Read",
            request_serializer=bytestream_pb2.ReadRequest.SerializeToString,
            response_deserializer=bytestream_pb2.ReadResponse.FromString,
        )
        request = bytestream_pb2.ReadRequest(resource_name=f"blobs/{_blob(content)}")
        parts = method(request, timeout=TIMEOUT, wait_for_ready=True, metadata=self._metadata)
        return b"".join(part.data for part in parts)

    def refusal(self, content: bytes) -> tuple[grpc.StatusCode, str]:
        """With what code and words the upload of a blob is refused; OK if it is not."""
        try:
            self.write(content)
        except grpc.RpcError as error:
            return error.code(), error.details() or ""
        return grpc.StatusCode.OK, ""

    def get(self, path: str = "/anything") -> tuple[int, str]:
        """How ``GET`` is answered in HTTP/1.1: the status and the body."""
        client = http.client.HTTPConnection("localhost", timeout=TIMEOUT)
        client.sock = self._connect()
        try:
            client.request("GET", path, headers=self._shown)
            response = client.getresponse()
            return response.status, response.read().decode()
        finally:
            client.close()

    def close(self) -> None:
        self.channel.close()

    def _connect(self) -> socket.socket:
        if self._where.startswith("unix:"):
            connection = socket.socket(socket.AF_UNIX)
            connection.settimeout(TIMEOUT)
            connection.connect(self._where.removeprefix("unix:"))
        else:
            host, _, port = self._where.rpartition(":")
            connection = socket.create_connection((host, int(port)), timeout=TIMEOUT)
        if self._context is None:
            return connection
        return self._context.wrap_socket(connection, server_hostname="localhost")


def _blob(content: bytes) -> str:
    return f"{hashlib.sha256(content).hexdigest()}/{len(content)}"
