"""Which method is which: the table from paths to the handlers of services.

A service is a protobuf ``ServiceDescriptor`` together with an object whose methods are named like the RPCs:

* unary: ``async def Find(self, request, call) -> response``
* server streaming: ``async def Read(self, request, call)`` that yields responses; or that returns its only response,
  `None` for none at all, or an asynchronous generator of them.  What is known to be one is sent as cheaply as a unary
  answer.
* client streaming: ``async def Write(self, requests, call) -> response``, with ``async for request in requests``
* both: an asynchronous generator over ``requests``

A response is a message, or `bytes`: a message already serialized, or a `tuple` of `bytes`: the same in pieces, which
saves the copy where a large payload follows a few bytes of field header.

A request is a message of the class that the descriptor names.  An implementation may have a mapping ``decoders`` from
the name of a method to a function that makes something else of the bytes of a request, and raises protobuf's
`DecodeError` for what is none.

A handler that takes a stream may return before the client has ended it.  One that yields faster than its client reads
is suspended at its ``yield``; one that does not ask for requests gets no more sent than fit into the stream's window.
When the client goes away or the deadline passes, what the handler awaits is cancelled, so its ``finally`` blocks run.

To fail a call, raise `artifactserver.rpc.status.RpcError` or one of the store's errors.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from google.protobuf.descriptor import ServiceDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from artifactserver.access import Caller, Refusal

#: What a handler may answer with.
Response = Message | bytes | tuple[bytes, ...]


class Call:
    """What a handler may know about the call it answers.

    :ivar caller: who calls, and what they may do.
    :ivar metadata: what the client's application sent along; see `artifactserver.rpc.messages.metadata_of`.
    :ivar deadline: when the client stops waiting, in seconds of the transport's clock, or `None`.
    """

    __slots__ = ("caller", "deadline", "metadata")

    def __init__(self, caller: Caller, metadata: Mapping[str, str | bytes], deadline: float | None = None) -> None:
        self.caller = caller
        self.metadata = metadata
        self.deadline = deadline


@dataclass(frozen=True, slots=True)
class Method:
    """One RPC of a service that is served here.

    :ivar path: as it stands in a request: ``/package.Service/Method``.
    :ivar decode: makes of a request's bytes what the handler takes.
    :ivar handler: what answers it, or `None` for one that is declared and not implemented.
    :ivar yields: the handler is an asynchronous generator.
    """

    path: str
    request: type[Message]
    decode: Callable[[bytes], Any]
    response: type[Message]
    streams_in: bool
    streams_out: bool
    handler: Callable[..., Any] | None
    yields: bool


class Routes(Protocol):
    """What a transport wants to know of a dispatcher; `artifactserver.metrics` may stand in between."""

    def find(self, path: str) -> Method | None:
        """The method at a path."""

    def refusal(self, caller: Caller, path: str) -> Refusal | None:
        """Why a caller may not use it, or `None`."""


class Dispatcher:
    """The methods of all services, by path."""

    def __init__(self) -> None:
        self._methods: dict[str, Method] = {}

    def register(self, service: ServiceDescriptor, implementation: object) -> None:
        """Serve ``service`` with the methods of ``implementation``; those it lacks answer UNIMPLEMENTED."""
        decoders: Mapping[str, Callable[[bytes], Any]] = getattr(implementation, "decoders", {})
        for method in service.methods:
            request = GetMessageClass(method.input_type)
            path = f"/{service.full_name}/{method.name}"
            handler = getattr(implementation, method.name, None)
            if path in self._methods:
                raise ValueError(f"{path} is registered already")
            self._methods[path] = Method(
                path,
                request,
                decoders.get(method.name, request.FromString),
                GetMessageClass(method.output_type),
                method.client_streaming,
                method.server_streaming,
                handler,
                inspect.isasyncgenfunction(handler),
            )

    def paths(self) -> Iterable[str]:
        """Where the methods are, those without an implementation too."""
        return list(self._methods)

    def find(self, path: str) -> Method | None:
        """The method at a path."""
        return self._methods.get(path)

    def refusal(self, caller: Caller, path: str) -> Refusal | None:
        """Why ``caller`` may not call what is at ``path``, or `None` if they may."""
        return caller.refusals[path]
