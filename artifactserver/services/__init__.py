"""The gRPC services: each decodes a request, asks the store, and encodes the answer.

They know nothing of files, rights or connections.  `register_all` is the list of what this server speaks.
"""

from __future__ import annotations

from twisted.internet.interfaces import IReactorTime

from artifactserver.proto import buildstream_pb2, bytestream_pb2, health_pb2, remote_asset_pb2, remote_execution_pb2
from artifactserver.rpc.dispatch import Dispatcher
from artifactserver.services.byte_stream import ByteStream
from artifactserver.services.capabilities import Capabilities
from artifactserver.services.content_addressable_storage import ContentAddressableStorage
from artifactserver.services.health import Health
from artifactserver.services.reference_storage import ReferenceStorage
from artifactserver.services.remote_asset import Fetch, Push
from artifactserver.services.turns import Turns
from artifactserver.store.interface import Store


def register_all(dispatcher: Dispatcher, store: Store, clock: IReactorTime) -> Health:
    """Register every service.

    :param clock: the reactor, where long work gives way.
    :return: the health service: `Health.stop` belongs before the server drains its connections.
    """
    services = {
        remote_execution_pb2.DESCRIPTOR.services_by_name["Capabilities"]: Capabilities(store),
        remote_execution_pb2.DESCRIPTOR.services_by_name["ContentAddressableStorage"]: ContentAddressableStorage(
            store, Turns(clock)
        ),
        bytestream_pb2.DESCRIPTOR.services_by_name["ByteStream"]: ByteStream(store),
        remote_asset_pb2.DESCRIPTOR.services_by_name["Fetch"]: Fetch(store),
        remote_asset_pb2.DESCRIPTOR.services_by_name["Push"]: Push(store),
        buildstream_pb2.DESCRIPTOR.services_by_name["ReferenceStorage"]: ReferenceStorage(store),
    }
    for descriptor, service in services.items():
        dispatcher.register(descriptor, service)
    health_descriptor = health_pb2.DESCRIPTOR.services_by_name["Health"]
    health = Health([*(descriptor.full_name for descriptor in services), health_descriptor.full_name])
    dispatcher.register(health_descriptor, health)
    return health
