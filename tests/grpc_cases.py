"""What the tests of services share: a server on a real socket, and grpcio as the client that knows nothing of ours."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from typing import Any

import grpc
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from twisted.internet import reactor as _reactor
from twisted.internet.threads import deferToThread
from twisted.trial.unittest import TestCase

from artifactserver.access import Right
from artifactserver.proto import (
    buildstream_pb2,
    bytestream_pb2,
    health_pb2,
    remote_asset_pb2,
    remote_execution_pb2,
    status_pb2,
)
from artifactserver.proto import remote_execution_pb2 as reapi
from artifactserver.rpc.dispatch import Dispatcher
from artifactserver.rpc.transport import GrpcFactory
from artifactserver.services import register_all
from artifactserver.services.health import Health
from artifactserver.store.digest import Digest
from artifactserver.store.interface import Blob, Store
from tests.callers import caller
from tests.local_stores import LocalStoreTestCase
from tests.memory_store import MemoryStore

reactor: Any = _reactor

#: Every public method that this server knows, by its short name: they are unique.
METHODS = {
    method.name: method
    for file in (buildstream_pb2, bytestream_pb2, health_pb2, remote_asset_pb2, remote_execution_pb2)
    for service in file.DESCRIPTOR.services_by_name.values()
    for method in service.methods
}

#: Seconds after which a call that does not end has failed its test.
TIMEOUT = 30.0


def message_of(digest: Digest) -> reapi.Digest:
    """The digest as REAPI spells it."""
    return reapi.Digest(hash=digest.hex, size_bytes=digest.size)


class GrpcClient:
    """grpcio without generated code.

    :ivar channel: the connection.
    """

    def __init__(self, port: int) -> None:
        self.channel = grpc.insecure_channel(
            f"127.0.0.1:{port}",
            options=[("grpc.enable_http_proxy", 0), ("grpc.use_local_subchannel_pool", 1)],
        )

    def callable(self, name: str) -> Any:
        """The method with this short name, to be called in a thread."""
        method = METHODS[name]
        kind = ("stream" if method.client_streaming else "unary") + ("_stream" if method.server_streaming else "_unary")
        return getattr(self.channel, kind)(
            f"/{method.containing_service.full_name}/{name}",
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=GetMessageClass(method.output_type).FromString,
        )

    async def call(self, name: str, request: Message | Iterable[Message], **options: Any) -> Any:
        """The response, or all of them, of one call.

        :raises grpc.RpcError: if it fails.
        """
        options.setdefault("timeout", TIMEOUT)
        multi = self.callable(name)
        if METHODS[name].server_streaming:
            return await deferToThread(lambda: list(multi(request, **options)))
        return await deferToThread(lambda: multi(request, **options))

    async def close(self) -> None:
        await deferToThread(self.channel.close)


class OverMemory(TestCase):
    """The tests run over `MemoryStore`."""

    moment = 0.0

    async def make_store(self, **options: Any) -> Any:
        return MemoryStore(self.now, **options)

    def now(self) -> float:
        """Seconds since the epoch; `moment` puts the clock forward."""
        return time.time() + self.moment


class OverLocal(LocalStoreTestCase):
    """The tests run over `LocalStore`."""

    moment = 0.0

    async def make_store(self, **options: Any) -> Any:
        return await self.open_store(self.new_path(), now=self.now, **options)

    def now(self) -> float:
        """Seconds since the epoch; `moment` puts the clock forward."""
        return time.time() + self.moment


class GrpcMixin:
    """Serves a store, and calls the server."""

    store: Any
    health: Health
    dispatcher: Dispatcher
    make_store: Any
    addCleanup: Any
    assertEqual: Any
    assertTrue: Any
    fail: Any

    #: What a caller may do who says nothing.
    enable_push = True

    async def serve(self, store: Store | None = None, rights: Iterable[Right] | None = None) -> GrpcClient:
        """Serve a store, a new one if none is given, until the test ends.

        :param rights: what every caller may do; by default what `enable_push` says.
        :return: a client of that server.
        """
        self.store = store if store is not None else await self.make_store()
        if rights is None:
            rights = {Right.PULL, Right.PUSH} if self.enable_push else {Right.PULL}
        calling = caller(rights, self.enable_push)
        self.dispatcher = Dispatcher()
        self.health = register_all(self.dispatcher, self.store, reactor)
        factory = GrpcFactory(self.dispatcher, lambda transport: calling, reactor)
        port = reactor.listenTCP(0, factory, interface="127.0.0.1")
        self.addCleanup(port.stopListening)
        self.addCleanup(factory.drain, 1.0)
        client = GrpcClient(port.getHost().port)
        self.addCleanup(client.close)
        return client

    async def refused(
        self, client: GrpcClient, code: grpc.StatusCode, name: str, request: Message | Iterable[Message], **options: Any
    ) -> grpc.RpcError:
        """A call fails with this code, and tells the user why; its error."""
        try:
            answer = await client.call(name, request, **options)
        except grpc.RpcError as error:
            self.assertEqual((error.code(), bool(error.details())), (code, True), error.details())
            return error
        self.fail(f"{name} answered {str(answer)[:200]!r}")
        raise AssertionError

    async def put(self, *contents: bytes) -> list[Digest]:
        """Store blobs behind the server's back."""
        blobs = [Blob(Digest.of(content), content) for content in contents]
        self.assertEqual(await self.store.add_many(blobs), [None] * len(blobs))
        return [blob.digest for blob in blobs]

    async def put_tree(self, files: dict[str, bytes], folders: dict[str, Digest] | None = None) -> Digest:
        """Store a directory with these files and folders; its digest."""
        message = reapi.Directory()
        for name, content in sorted(files.items()):
            (digest,) = await self.put(content)
            message.files.add(name=name, digest=message_of(digest))
        for name, digest in sorted((folders or {}).items()):
            message.directories.add(name=name, digest=message_of(digest))
        (root,) = await self.put(message.SerializeToString())
        return root


def details_of(error: grpc.RpcError) -> Sequence[Any]:
    """The messages in an error's ``grpc-status-details-bin``."""
    for key, value in error.trailing_metadata():
        if key == "grpc-status-details-bin":
            return status_pb2.Status.FromString(value).details
    return ()
