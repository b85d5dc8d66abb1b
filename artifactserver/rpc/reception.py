"""What becomes of a request: a call that is answered by its handler, or a refusal.

Who calls is settled here, and whether they may: by the time there is a call, nobody asks any more.
"""

from __future__ import annotations

from artifactserver.access import Caller
from artifactserver.rpc.dispatch import Routes
from artifactserver.rpc.exchange import Carrier
from artifactserver.rpc.http2 import RequestHead, Stream
from artifactserver.rpc.rejection import Rejection
from artifactserver.rpc.requests import Impossible, NotGrpc, Wanted, denied, read_request
from artifactserver.rpc.streaming import StreamingExchange
from artifactserver.rpc.unary import UnaryExchange
from artifactserver.tokens.authentication import INVALID, Visit


class Reception:
    """Receives the requests of one connection.

    :param caller: who is at its other end, as far as is known without a token.
    :param visit: knows who shows a token; `None` if nobody is asked for one.
    """

    __slots__ = ("_caller", "_routes", "_visit")

    def __init__(self, routes: Routes, caller: Caller, visit: Visit | None) -> None:
        self._routes = routes
        self._caller = caller
        self._visit = visit

    def receive(self, carrier: Carrier, stream: Stream, head: RequestHead, ended: bool) -> bool:
        """Begin to answer a request.

        :return: `False` if its client has shown so much that is not good that it should have to connect anew.
        """
        # Remembered with the head: as long as it, and no longer.
        wanted: Wanted | NotGrpc | Impossible | None = head.meaning
        if wanted is None:
            wanted = head.meaning = read_request(head, self._routes)
        if not stream.local_open:
            return True  # Reset by what came right behind it.
        caller = self._caller
        if wanted.authorization is not None and self._visit is not None:
            known = self._visit.caller(wanted.authorization)
            if known is None:
                why = NotGrpc(401) if type(wanted) is NotGrpc else denied(INVALID)
                return Rejection(carrier, stream, why.answer(carrier.engine.sender.header_list_bytes)).wait(self._visit)
            caller = known
        if type(wanted) is not Wanted:
            _refuse(carrier, stream, self._access_first(head, wanted, caller))  # type: ignore[arg-type]
            return True
        refusal = self._routes.refusal(caller, wanted.method.path)
        if refusal is not None:
            _refuse(carrier, stream, denied(refusal))
            return True
        kind = StreamingExchange if wanted.method.streams_in else UnaryExchange
        exchange = stream.owner = kind(carrier, stream, wanted, caller)
        if ended:
            exchange.data_received(b"", True)
        return True

    def _access_first(self, head: RequestHead, why: NotGrpc | Impossible, caller: Caller) -> NotGrpc | Impossible:
        """Why a call fails: who may not use a method learns that, whatever else is wrong, be it built or not."""
        if isinstance(why, Impossible):
            method = self._routes.find(head.path.decode("latin-1"))
            refusal = method and self._routes.refusal(caller, method.path)
            if refusal:
                return denied(refusal)
        return why


def _refuse(carrier: Carrier, stream: Stream, why: NotGrpc | Impossible) -> None:
    sender = carrier.engine.sender
    sender.headers(stream, why.answer(sender.header_list_bytes), end=True)
