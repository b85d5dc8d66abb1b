"""A call that is refused for what it has shown, and whose answer has to wait for that."""

from __future__ import annotations

from artifactserver.rpc.exchange import Carrier
from artifactserver.rpc.http2 import ErrorCode, Stream
from artifactserver.tokens.authentication import Visit


class Rejection:
    """Takes the place of an `Exchange` on a stream until it has been answered.

    :param block: the answer: a whole response without a body.
    """

    __slots__ = ("_block", "_carrier", "_held", "_stream")

    #: What the connection asks of everything that has a stream: nothing is kept here, and the peer is not waited for.
    held = 0
    waits_for_data = False

    def __init__(self, carrier: Carrier, stream: Stream, block: bytes) -> None:
        self._carrier = carrier
        self._stream = stream
        self._block = block

    def wait(self, visit: Visit) -> bool:
        """Answer when it is time.

        :return: whether it waits; else it has been answered at once, since too many others wait.
        """
        self._stream.owner = self
        held = visit.refuse(self._answer)
        if held is None:
            self._answer()
            return False
        self._held = held
        return True

    def _answer(self) -> None:
        self._stream.owner = None
        self._carrier.engine.sender.headers(self._stream, self._block, end=True)
        self._carrier.flush()

    def data_received(self, payload: bytes | memoryview, ended: bool) -> None:
        """The request's body is of no interest; no more of it comes than its stream's window lets through."""
        self._carrier.engine.release(len(payload))

    def cancelled(self) -> None:
        """The stream is gone."""
        self._stream.owner = None
        self._held.drop()

    def abandon(self, code: ErrorCode) -> None:
        """Reset the stream."""
        self._carrier.engine.reset(self._stream, code)
        self.cancelled()
        self._carrier.flush()

    def check_deadline(self) -> None:
        """It has none: a client that has waited long enough resets the stream."""
