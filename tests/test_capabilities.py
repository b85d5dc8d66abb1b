"""What the server says it can do is what it does."""

from __future__ import annotations

from typing import Any

from grpc import StatusCode
from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase

from artifactserver.access import Right
from artifactserver.proto import remote_execution_pb2 as reapi
from artifactserver.rpc.dispatch import Call
from artifactserver.services.capabilities import PYTHON_BATCH_TOTAL_SIZE, Capabilities
from artifactserver.services.content_addressable_storage import MAX_BATCH_TOTAL_SIZE
from artifactserver.services.names import MAX_INSTANCE_NAME
from tests.callers import PULLER
from tests.grpc_cases import GrpcMixin, OverLocal, OverMemory
from tests.memory_store import MemoryStore

REQUEST = reapi.GetCapabilitiesRequest()


class CapabilitiesMixin(GrpcMixin):
    """GetCapabilities."""

    async def test_cache(self: Any) -> None:
        """Clients learn the digest function, the batch limit, the largest blob, and that no compressor is known."""
        client = await self.serve()
        cache = (await client.call("GetCapabilities", REQUEST)).cache_capabilities
        self.assertEqual(list(cache.digest_functions), [reapi.DigestFunction.SHA256])
        self.assertEqual(cache.max_cas_blob_size_bytes, self.store.max_blob_size)
        self.assertEqual(list(cache.supported_compressors), [])
        self.assertEqual(list(cache.supported_batch_update_compressors), [])
        self.assertFalse(cache.split_blob_support or cache.splice_blob_support)
        self.assertEqual(cache.symlink_absolute_path_strategy, reapi.SymlinkAbsolutePathStrategy.ALLOWED)

    async def test_versions(self: Any) -> None:
        """Every client of version 2 of the interface is welcome."""
        client = await self.serve()
        answer = await client.call("GetCapabilities", REQUEST)
        self.assertEqual((answer.low_api_version.major, answer.low_api_version.minor), (2, 0))
        self.assertEqual((answer.high_api_version.major, answer.high_api_version.minor), (2, 12))
        self.assertFalse(answer.HasField("deprecated_api_version"))

    async def test_batch_limit(self: Any) -> None:
        """There is a limit, and it leaves room for the messages around the blobs below gRPC's usual 4 MiB."""
        client = await self.serve()
        limit = (await client.call("GetCapabilities", REQUEST)).cache_capabilities.max_batch_total_size_bytes
        self.assertEqual(limit, PYTHON_BATCH_TOTAL_SIZE)
        blobs = limit // 100
        self.assertLess(limit + blobs * 90, 4 * 1024 * 1024)

    async def test_rights(self: Any) -> None:
        """Who may push is told so, and who may not is told that."""
        for enable_push, rights, expected in (
            (True, None, True),
            (True, [Right.PULL], False),
            (False, None, False),
        ):
            self.enable_push = enable_push
            client = await self.serve(rights=rights)
            answer = await client.call("GetCapabilities", REQUEST)
            update = answer.cache_capabilities.action_cache_update_capabilities
            self.assertEqual(update.update_enabled, expected)

    async def test_instances(self: Any) -> None:
        """Every instance has the same capabilities; a name of 257 characters is none."""
        client = await self.serve()
        expected = await client.call("GetCapabilities", REQUEST)
        for name in ("main", "a/b", "i" * MAX_INSTANCE_NAME):
            request = reapi.GetCapabilitiesRequest(instance_name=name)
            self.assertEqual(await client.call("GetCapabilities", request), expected)
        long = reapi.GetCapabilitiesRequest(instance_name="i" * (MAX_INSTANCE_NAME + 1))
        await self.refused(client, StatusCode.INVALID_ARGUMENT, "GetCapabilities", long)


class CapabilitiesMemoryTests(CapabilitiesMixin, OverMemory):
    """GetCapabilities over the store in memory."""


class CapabilitiesLocalTests(CapabilitiesMixin, OverLocal):
    """GetCapabilities over the store on disk."""


class BatchLimitTests(SynchronousTestCase):
    """How much each client may put into a batch."""

    def limit(self, agent: str | None) -> int:
        """The limit that a client with this user-agent is told."""
        service = Capabilities(MemoryStore(lambda: 0.0))
        call = Call(PULLER, {} if agent is None else {"user-agent": agent})
        answer = self.successResultOf(Deferred.fromCoroutine(service.GetCapabilities(REQUEST, call)))
        return reapi.ServerCapabilities.FromString(answer).cache_capabilities.max_batch_total_size_bytes

    def test_buildstream_1(self) -> None:
        """BuildStream 1.x, which does not count what surrounds a blob, can read 48,000 files of 8 bytes at once."""
        limit = self.limit("grpc-python/1.51.1 grpc-c/29.0.0 (linux; chttp2)")
        self.assertEqual(limit, PYTHON_BATCH_TOTAL_SIZE)
        one = reapi.BatchReadBlobsResponse()
        one.responses.add(digest=reapi.Digest(hash="a" * 64, size_bytes=8), data=b"8 bytes!").status.SetInParent()
        self.assertLess(limit // 8 * one.ByteSize(), 4 * 1024 * 1024)

    def test_others(self) -> None:
        """Other clients get larger batches."""
        for agent in ("grpc-c++/1.81.0 grpc-c/55.0.0 (linux; chttp2)", "bazel/9.1.1", "", None):
            self.assertEqual(self.limit(agent), MAX_BATCH_TOTAL_SIZE)
