"""Real traffic: grpcio calls this server over a socket, and what it sends is kept."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import grpc
from twisted.internet import reactor as _reactor
from twisted.internet.address import IPv4Address
from twisted.internet.interfaces import IAddress
from twisted.internet.threads import blockingCallFromThread

from artifactserver.access import Caller, main_port
from artifactserver.rpc.dispatch import Dispatcher
from artifactserver.rpc.transport import GrpcFactory, GrpcProtocol
from artifactserver.services import register_all
from fuzz.sessions import SESSIONS, Planned
from tests.grpc_cases import METHODS
from tests.memory_store import MemoryStore

reactor: Any = _reactor


class Recording(GrpcFactory):
    """A server that keeps what it is sent.

    :ivar received: what came on each connection.
    """

    def __init__(self, dispatcher: Dispatcher) -> None:
        caller = Caller("127.0.0.1", main_port(enable_push=True))
        super().__init__(dispatcher, lambda transport: caller, reactor)
        self.received: list[bytearray] = []

    def buildProtocol(self, addr: IAddress | None) -> GrpcProtocol | None:  # type: ignore[override]
        protocol = super().buildProtocol(addr)
        if protocol is not None:
            kept = bytearray()
            self.received.append(kept)
            take = protocol.dataReceived

            def data_received(data: bytes) -> None:
                kept.extend(data)
                take(data)

            protocol.dataReceived = data_received  # type: ignore[method-assign]
        return protocol


def record() -> list[bytes]:
    """What grpcio sends in each of the `SESSIONS`, as it came."""
    store = MemoryStore(reactor.seconds)
    dispatcher = Dispatcher()
    register_all(dispatcher, store, reactor)
    factory = Recording(dispatcher)
    thread = threading.Thread(target=reactor.run, args=(False,), daemon=True)
    thread.start()
    port = blockingCallFromThread(reactor, reactor.listenTCP, 0, factory, interface="127.0.0.1")
    address = port.getHost()
    assert isinstance(address, IPv4Address)
    for session in SESSIONS:
        channel = grpc.insecure_channel(f"127.0.0.1:{address.port}", [("grpc.use_local_subchannel_pool", 1)])
        for planned in session():
            _call(channel, planned)
        channel.close()
    blockingCallFromThread(reactor, factory.drain, 1.0)  # type: ignore[arg-type]
    reactor.callFromThread(reactor.stop)
    thread.join()
    return [bytes(conversation) for conversation in factory.received]


def _call(channel: grpc.Channel, planned: Planned) -> None:
    method = METHODS[planned.name]
    kind = ("stream" if method.client_streaming else "unary") + ("_stream" if method.server_streaming else "_unary")
    path = f"/{method.containing_service.full_name}/{method.name}"
    multi: Callable[..., Any] = getattr(channel, kind)(path, lambda message: message.SerializeToString())
    options = {"timeout": 10.0, **planned.options}
    cancel = options.pop("cancel", False)
    try:
        answer = multi(iter(planned.messages) if method.client_streaming else planned.messages[0], **options)
        if cancel:
            next(answer)
            answer.cancel()
        elif method.server_streaming:
            list(answer)
    except grpc.RpcError:
        pass
