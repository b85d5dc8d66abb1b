"""Load balancers and orchestrators learn whether the server is up."""

from __future__ import annotations

from typing import Any

from grpc import RpcError, StatusCode
from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater
from twisted.internet.threads import deferToThread
from twisted.trial.unittest import SynchronousTestCase

from artifactserver.proto import health_pb2 as health
from artifactserver.rpc.dispatch import Call
from artifactserver.services.health import Health
from tests.callers import PULLER
from tests.grpc_cases import GrpcMixin, OverMemory, reactor

SERVING = health.HealthCheckResponse.SERVING
NOT_SERVING = health.HealthCheckResponse.NOT_SERVING
SERVICE_UNKNOWN = health.HealthCheckResponse.SERVICE_UNKNOWN


def asking(service: str = "") -> health.HealthCheckRequest:
    """Asks for the state of a service."""
    return health.HealthCheckRequest(service=service)


class HealthTests(GrpcMixin, OverMemory):
    """grpc.health.v1 over a connection."""

    async def watchers(self, count: int) -> None:
        """Wait until as many watch."""
        for _ in range(500):
            if len(self.health._watchers) == count:
                return
            await deferLater(reactor, 0.01)
        self.fail(f"{len(self.health._watchers)} watchers, not {count}")

    async def test_check(self) -> None:
        """The server as a whole, and each service that it has, is SERVING."""
        client = await self.serve()
        services = {path.split("/")[1] for path in self.dispatcher.paths()}
        self.assertIn("grpc.health.v1.Health", services)
        for service in ("", *services):
            self.assertEqual((await client.call("Check", asking(service))).status, SERVING, service)

    async def test_unknown(self) -> None:
        """A service that the server does not have is NOT_FOUND."""
        client = await self.serve()
        await self.refused(client, StatusCode.NOT_FOUND, "Check", asking("some.Other"))

    async def test_open_to_all(self) -> None:
        """Whoever can connect may ask."""
        client = await self.serve(rights=[])
        self.assertEqual((await client.call("Check", asking())).status, SERVING)

    async def test_watch(self) -> None:
        """A watcher learns the state at once, and when the server goes down; then the call ends."""
        client = await self.serve()
        stream = client.callable("Watch")(asking("google.bytestream.ByteStream"), timeout=30)
        self.assertEqual((await deferToThread(next, stream)).status, SERVING)
        await self.watchers(1)
        self.health.stop()
        self.assertEqual([each.status for each in await deferToThread(list, stream)], [NOT_SERVING])
        self.assertEqual((await client.call("Check", asking())).status, NOT_SERVING)
        self.assertEqual([each.status for each in await client.call("Watch", asking())], [NOT_SERVING])

    async def test_watch_unknown(self) -> None:
        """A watcher of a service that the server does not have is told so, and may go on watching."""
        client = await self.serve()
        stream = client.callable("Watch")(asking("some.Other"), timeout=30)
        self.assertEqual((await deferToThread(next, stream)).status, SERVICE_UNKNOWN)
        await self.watchers(1)
        stream.cancel()
        await self.watchers(0)

    async def test_watchers_that_leave(self) -> None:
        """Nothing is left of a watcher that goes away, with its connection or without."""
        client = await self.serve()
        streams = [client.callable("Watch")(asking(), timeout=30) for _ in range(3)]
        for stream in streams:
            await deferToThread(next, stream)
        await self.watchers(3)
        streams[0].cancel()
        await self.watchers(2)
        await client.close()
        await self.watchers(0)
        for stream in streams:
            with self.assertRaises(RpcError):
                await deferToThread(next, stream)


class HealthStateTests(SynchronousTestCase):
    """The service by itself."""

    def test_stop_twice(self) -> None:
        """A server that is stopping already may be stopped once more."""
        service = Health(["a.Service"])
        service.stop()
        service.stop()
        check: Any = service.Check(asking("a.Service"), Call(PULLER, {}))
        self.assertEqual(self.successResultOf(Deferred.fromCoroutine(check)).status, NOT_SERVING)
