"""The books of a connection: what all that it counts has to come to while calls are under way."""

from __future__ import annotations

from typing import Any

from artifactserver.rpc import protocol as protocol_module
from artifactserver.rpc.dispatch import Call
from artifactserver.rpc.expansions import Expansions
from artifactserver.rpc.http2 import Stream
from artifactserver.rpc.http2.frames import DEFAULT_WINDOW
from artifactserver.rpc.messages import PREFIX_BYTES
from artifactserver.rpc.streaming import MESSAGE_BYTES, StreamingExchange
from artifactserver.rpc.transport import GrpcProtocol
from artifactserver.rpc.unary import WORKED_ON, UnaryExchange


def is_due(clock: Any) -> bool:
    """Whether something happens as soon as the reactor turns."""
    return any(call.getTime() <= clock.seconds() for call in clock.getDelayedCalls())


class OneInATurn(Expansions):
    """Sees to it that no second compressed message is looked at before the reactor has turned."""

    def take(self, go_on: Any) -> None:
        assert not self.enough, "two messages decompressed in one turn"
        super().take(go_on)


def _unfinished(exchange: Any) -> int:
    """What has arrived of a message that is not whole, as it was sent."""
    reader = exchange._reader
    return 0 if reader is None else reader.held + (PREFIX_BYTES if reader._left >= 0 else 0)


class Books:
    """Those of one connection.

    :param protocol: nothing has been received on it yet.
    """

    def __init__(self, protocol: GrpcProtocol) -> None:
        self._protocol = protocol
        protocol.expansions = OneInATurn(protocol.clock)

    def calls(self) -> list[Call]:
        """Those whose handlers may be at work."""
        streams = self._protocol.engine.streams.values()
        return [stream.owner._call for stream in streams if stream.owner is not None and not stream.owner.over]

    def check(self, at_work: list[Call]) -> None:
        """What is counted is what there is.

        :param at_work: calls whose handlers wait, for something that is not ours.
        """
        protocol = self._protocol
        engine = protocol.engine
        streams = list(engine.streams.values())
        exchanges: list[Any] = [stream.owner for stream in streams if stream.owner is not None]
        assert protocol.held == sum(each.held for each in exchanges)
        unary = [each for each in exchanges if isinstance(each, UnaryExchange)]
        streaming = [each for each in exchanges if isinstance(each, StreamingExchange)]
        self._check_windows(unary, streaming)
        self._check_work(unary)
        for exchange in streaming:
            self._check_stream(exchange, exchange._call in at_work)
        self._check_responses(streams)
        now = protocol.clock.seconds()
        for exchange in exchanges:
            if exchange._call.deadline is not None and not exchange.over:
                # Nothing of a message that is not whole will be missed, so that is looked at now and then.
                late = protocol._heartbeat.interval if exchange in unary and exchange._awaited is None else 0.0
                assert now < exchange._call.deadline + late, "its deadline has passed"

    def _check_windows(self, unary: list[Any], streaming: list[Any]) -> None:
        """What is not given back to the connection's window is what somebody keeps back."""
        protocol = self._protocol
        window = protocol.engine._window
        kept = sum(each._withheld for each in streaming) + sum(each._retaken for each in unary)
        # A frame is counted when it begins.
        coming = protocol.engine._flowing if protocol.engine._data_flows else 0
        assert window._outstanding == coming + kept
        most = protocol.limits.connection_window
        assert most <= window._left + window._outstanding + window._consumed <= max(most, DEFAULT_WINDOW)

    def _check_work(self, unary: list[Any]) -> None:
        protocol = self._protocol
        limits = protocol.limits
        assert protocol.working == sum(each._working for each in unary)
        assert protocol.working < limits.working_bytes + WORKED_ON * limits.message_bytes
        # Whoever waits does so for a reason, and the reason is not that it was forgotten.
        waiting = {each for each in unary if each._message is not None and not each.stream.remote_open}
        assert waiting == {each for each in protocol._postponed if not each.over}
        assert not waiting or protocol._too_much_at_once() or is_due(protocol.clock)

    def _check_stream(self, exchange: Any, at_work: bool) -> None:
        """What a stream of requests keeps is counted, against memory and against the windows."""
        if exchange.over:
            assert exchange.held == exchange._withheld == 0
            return
        engine = self._protocol.engine
        stream = exchange.stream
        arrived = exchange._queued + (exchange._reader.held if exchange._reader is not None else 0)
        if not self._protocol.expansions.enough:
            # Who waits for a turn has not counted out yet what its handler had before.
            assert exchange.held == arrived + MESSAGE_BYTES * len(exchange._messages) + exchange._taken
        if at_work:
            assert exchange._withheld >= arrived
        if stream.remote_open:
            flowing = engine._data_flows and engine._data_stream is stream
            coming = engine._flowing if flowing else 0
            used = exchange._queued + _unfinished(exchange) + coming
            assert stream.receive_window + stream.unreturned + used == engine._stream_window

    def _check_responses(self, streams: list[Stream]) -> None:
        """What waits to be sent is counted, and is not more than a handler may have made."""
        protocol = self._protocol
        sender = protocol.engine.sender
        limits = protocol.limits
        assert sender.owed == sum(stream.queued for stream in streams)
        for stream in streams:
            assert stream.queued <= limits.response_bytes_queued + limits.message_bytes + PREFIX_BYTES
        held = protocol.held + sender.owed + sender.in_line + protocol_module.CALL_BYTES * len(streams)
        if sender.blocked:
            held += protocol_module.UNSENT_BYTES
        if not is_due(protocol.clock):
            # Who had to give up a call counts anew when the reactor turns.
            assert protocol._account.held == held

    def check_closed(self) -> None:
        """Nothing is left of a connection that was closed."""
        protocol = self._protocol
        assert protocol.held == protocol.working == 0
        assert not protocol.engine.streams and not protocol._postponed

    def check_idle(self) -> None:
        """There are no calls, and the client may send as much as at first, but for what is not worth a frame."""
        protocol = self._protocol
        assert not protocol.engine.streams
        assert protocol.engine.sender.owed == 0
        window = protocol.engine._window
        assert window._outstanding == 0
        assert 4 * window._left > 3 * protocol.limits.connection_window
