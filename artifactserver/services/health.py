"""Whether the server is up: ``grpc.health.v1.Health``, for load balancers and orchestrators."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable

from twisted.internet.defer import Deferred

from artifactserver.proto import health_pb2 as health
from artifactserver.rpc.dispatch import Call
from artifactserver.rpc.status import Code, RpcError

_Status = health.HealthCheckResponse


class Health:
    """The service.

    :param services: full names of the services that answer here.
    """

    def __init__(self, services: Iterable[str]) -> None:
        self._services = frozenset(services) | {""}
        self._serving = True
        self._watchers: set[Deferred[None]] = set()

    def stop(self) -> None:
        """Say NOT_SERVING from now on, and end every watch, so that nobody has to be waited for."""
        self._serving = False
        watchers, self._watchers = self._watchers, set()
        for changed in watchers:
            changed.callback(None)

    async def Check(self, request: health.HealthCheckRequest, call: Call) -> health.HealthCheckResponse:
        """The state now."""
        if request.service not in self._services:
            raise RpcError(Code.NOT_FOUND, "there is no such service here")
        return health.HealthCheckResponse(status=self._status(request.service))

    async def Watch(self, request: health.HealthCheckRequest, call: Call) -> AsyncIterator[health.HealthCheckResponse]:
        """The state now, and again when it changes; the call stays open until the client or the server ends it."""
        yield health.HealthCheckResponse(status=self._status(request.service))
        if self._serving:
            changed: Deferred[None] = Deferred()
            self._watchers.add(changed)
            try:
                await changed
            finally:
                self._watchers.discard(changed)
            yield health.HealthCheckResponse(status=self._status(request.service))

    def _status(self, service: str) -> health.HealthCheckResponse.ServingStatus:
        if service not in self._services:
            return _Status.SERVICE_UNKNOWN
        return _Status.SERVING if self._serving else _Status.NOT_SERVING
