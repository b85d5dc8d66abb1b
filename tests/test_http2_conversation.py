"""Two ends of a connection that others wrote one of: an h2 client and our engine, out of phase, in any order of events.

The client is the model.  Whatever both do, every byte of every body arrives, in order and once, neither end finds a
fault with the other, and when all that was sent has arrived they agree on streams and windows.
"""

from __future__ import annotations

import random
import sys
from dataclasses import dataclass, field
from typing import Any

import h2.config
import h2.connection
import h2.events
from h2.settings import SettingCodes
from hpack import HeaderTuple, NeverIndexedHeaderTuple
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)
from twisted.trial.unittest import SynchronousTestCase

from artifactserver.rpc.http2 import (
    Connection,
    DataReceived,
    ErrorCode,
    Event,
    GoAwayReceived,
    Limits,
    PingAcknowledged,
    RequestReceived,
    StreamReset,
    encode,
)
from artifactserver.rpc.http2.frames import DEFAULT_WINDOW, MAX_STREAM_ID
from tests import http2_peer as wire
from tests.chance import examples
from tests.http2_peer import REQUEST, Frame, frame

HEAD = encode([(b"content-type", b"application/grpc")], status=200)
TAIL = encode([(b"grpc-status", b"0")])

#: How many streams may be open at once, and how many there are in all.
STREAMS = 5
MOST_CALLS = 15

_PERIOD = 2**18
_NOISE = random.Random(7).randbytes(_PERIOD) * 2


def content(number: int, start: int, size: int) -> bytes:
    """Bytes of a body that cannot be taken for others: those of stream ``number`` from ``start``."""
    place = (start + number * 7919) % _PERIOD
    assert size <= _PERIOD
    return _NOISE[place : place + size]


def sizes(most: int) -> st.SearchStrategy[int]:
    """Sizes, few and many; left to itself, chance prefers the few."""
    return st.integers(0, 50) | st.integers(0, most)


#: What requests carry besides: little of it, so that header blocks repeat, and enough to throw others out of the table.
EXTRA = (
    HeaderTuple(b"user-agent", b"one"),
    HeaderTuple(b"user-agent", b"two"),
    NeverIndexedHeaderTuple(b"authorization", b"Bearer abc"),
    HeaderTuple(b"x-large", b"v" * 3900),
)


#: What clients may say that changes nothing.
NOTHING = {
    "a priority": frame(wire.PRIORITY, 0, 1, bytes(5)),
    "a priority of a stream to come": frame(wire.PRIORITY, 0, 2**31 - 1, b"\0\0\0\1\xff"),
    "an unknown frame": frame(0x42, 0xFF, 3, b"unknown" * 100),
    "GOAWAY": frame(wire.GOAWAY, 0, 0, bytes(8) + b"going away"),
}


@dataclass(slots=True)
class Exchange:
    """One request and its response, as each end knows it.

    :ivar promised: what ``content-length`` says, or `None`.
    :ivar seen: what the client was told of the response.
    :ivar stream: the server's side of it, once the server knows.
    :ivar unread: body bytes that the server has not given back to the connection's window.
    :ivar held: those that it has not given back to the stream's.
    :ivar reset: the code with which the server reset it.
    """

    number: int
    fields: tuple[tuple[bytes, bytes], ...]
    promised: int | None
    # The client's side
    sent: int = 0
    ended: bool = False
    cancelled: bool = False
    read: int = 0
    seen: list[str] = field(default_factory=list)
    # The server's side
    stream: Any = None
    arrived: int = 0
    arrived_whole: bool = False
    unread: int = 0
    held: int = 0
    begun: bool = False
    answered: int = 0
    finished: bool = False
    reset: ErrorCode | None = None


class Conversation(RuleBasedStateMachine):
    """An h2 client and our engine.

    Bytes wait on their way, in `upwards`, and frames in `downwards`, until a rule lets some arrive.  GOAWAY does not
    arrive: for h2 it is the end of the connection.
    """

    client: Any = None

    @initialize(
        stream_window=st.sampled_from([2_000, 70_000, 2**20]),
        connection_window=st.sampled_from([20_000, 100_000, 2**20]),
        frame_bytes=st.sampled_from([2**14, 2**17]),
        acquainted=st.booleans(),
    )
    def start(self, stream_window: int, connection_window: int, frame_bytes: int, acquainted: bool) -> None:
        self.limits = Limits(
            stream_window=stream_window,
            connection_window=connection_window,
            frame_bytes=frame_bytes,
            message_bytes=1000,
            streams_open=STREAMS,
        )
        self.client = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True, header_encoding=None))
        self.client.local_settings.enable_push = 0
        self.client.initiate_connection()
        self.engine = Connection(self.limits)
        self.engine.start()
        self.now = 0.0
        self.upwards = b""
        self.downwards: list[Frame] = []
        self.exchanges: dict[int, Exchange] = {}
        # What each end asked with PING, and what was answered.
        self.pings: dict[str, list[bytes]] = {"client": [], "server": []}
        self.pongs: dict[str, list[bytes]] = {"client": [], "server": []}
        self.accepted = MAX_STREAM_ID
        self.acknowledged = False
        self.shapes = random.Random(stream_window + connection_window)
        self.speak()
        if acquainted:
            self.everything()

    # The way between the ends

    def speak(self) -> None:
        """Put what the client has to say on its way, its header blocks cut and padded in ways that h2 never uses."""
        out = self.client.data_to_send()
        if out.startswith(wire.PREFACE):
            self.upwards += wire.PREFACE
            out = out[len(wire.PREFACE) :]
        self.upwards += b"".join(map(self.reshaped, wire.parse(out)))

    def reshaped(self, each: Frame) -> bytes:
        flags, payload, rest = each.flags, each.payload, b""
        shape = self.shapes.randrange(8) if each.kind == wire.HEADERS else 0
        if shape & 1:
            flags &= ~wire.END_HEADERS
            place = self.shapes.randint(5 if flags & wire.PRIORITY_FLAG else 0, len(payload))
            middle = self.shapes.randint(place, len(payload))
            rest = frame(wire.CONTINUATION, 0, each.stream, payload[place:middle])
            rest += frame(wire.CONTINUATION, wire.END_HEADERS, each.stream, payload[middle:])
            payload = payload[:place]
        if shape & 2:
            flags |= wire.PADDED
            padding = self.shapes.randint(0, 255)
            payload = bytes([padding]) + payload + bytes(padding)
        return frame(each.kind, flags, each.stream, payload) + rest

    def hear(self, size: int) -> None:
        """Let so many bytes arrive at the server."""
        self.now += 1.0
        data, self.upwards = self.upwards[:size], self.upwards[size:]
        for event in self.engine.receive(data, self.now):
            self.server_event(event)

    def take(self, most: int) -> bool:
        """Put at most about so many bytes of the server's on their way."""
        piece = b"" if self.engine.sender.blocked else self.engine.sender.take(most)
        self.downwards += wire.parse(piece)
        return bool(piece)

    def listen(self, count: int) -> None:
        """Let so many frames arrive at the client."""
        # One at a time: within one call, h2 holds the frames after an acknowledgement to the old frame size.
        arriving, self.downwards = self.downwards[:count], self.downwards[count:]
        for each in arriving:
            if each.kind != wire.GOAWAY:
                for event in self.client.receive_data(frame(each.kind, each.flags, each.stream, each.payload)):
                    self.client_event(event)
            else:
                assert each.code == ErrorCode.NO_ERROR, each

    def everything(self) -> None:
        """Let all that is said arrive."""
        moved = True
        while moved:
            self.speak()
            moved = self.take(2**20) or bool(self.upwards or self.downwards)
            self.hear(len(self.upwards))
            self.listen(len(self.downwards))

    def server_event(self, event: Event) -> None:
        if isinstance(event, PingAcknowledged):
            self.pongs["server"].append(event.payload)
            return
        if isinstance(event, GoAwayReceived):
            return
        assert isinstance(event, (RequestReceived, DataReceived, StreamReset)), event
        exchange = self.exchanges[event.stream.id]
        assert exchange.number <= self.accepted
        if isinstance(event, RequestReceived):
            assert exchange.stream is None
            assert event.head.fields == exchange.fields, event
            exchange.stream = event.stream
            exchange.arrived_whole = event.ended
        elif isinstance(event, DataReceived):
            payload = bytes(event.payload)
            assert payload == content(exchange.number, exchange.arrived, len(payload)) and not exchange.arrived_whole
            exchange.arrived += len(payload)
            exchange.arrived_whole = event.ended
            exchange.unread += len(payload)
            exchange.held += len(payload)
        else:
            assert exchange.cancelled, event

    def client_event(self, event: Any) -> None:
        assert not isinstance(event, h2.events.ConnectionTerminated), event
        if isinstance(event, h2.events.SettingsAcknowledged):
            self.acknowledged = True
        if isinstance(event, h2.events.PingAckReceived):
            self.pongs["client"].append(event.ping_data)
            return
        exchange = self.exchanges.get(getattr(event, "stream_id", 0) or 0)
        if exchange is None:
            return
        if isinstance(event, h2.events.DataReceived):
            assert event.data == content(-exchange.number, exchange.read, len(event.data))
            exchange.read += len(event.data)
        elif isinstance(event, h2.events.StreamReset):
            assert event.remote_reset is not False
            if exchange.reset is None:
                # An early answer.
                assert event.error_code == ErrorCode.NO_ERROR and exchange.finished, event
                assert exchange.seen[-1] == "StreamEnded"
            else:
                assert event.error_code == exchange.reset
        if not isinstance(event, h2.events.WindowUpdated):
            exchange.seen.append(type(event).__name__)

    def one(self, data: st.DataObject, some: list[Exchange]) -> Exchange:
        return self.exchanges[data.draw(st.sampled_from([each.number for each in some]))]

    # What happens next

    @rule(data=st.data())
    def something(self, data: st.DataObject) -> None:
        """One thing of those that can happen now."""
        # One rule with a choice in it, where others would have many rules: hypothesis likes to leave out rules, and
        # little happens without any one of these.
        possible = [self.some_arrives] * 3 + [self.all_arrives, self.give_window, self.consume, self.trifle]
        if self.client.open_outbound_streams < STREAMS and len(self.exchanges) < MOST_CALLS:
            possible += [self.call] * 3
        if self.sendable:
            possible += [self.upload] * 4
        if self.answerable:
            possible += [self.answer, self.answer_more] * 2
        if self.client.open_outbound_streams:
            possible += [self.break_off]
        if self.acknowledged:
            possible += [self.change_settings]
        if len(self.exchanges) > 5 and self.accepted == MAX_STREAM_ID:
            possible += [self.accept_no_more]
        name = data.draw(st.sampled_from([each.__name__ for each in possible]))
        getattr(self, name)(data)

    def up(self, data: st.DataObject) -> None:
        """What the client said goes on its way, and may arrive at once."""
        self.speak()
        if data.draw(st.booleans(), "arrives"):
            self.hear(len(self.upwards))

    def down(self, data: st.DataObject) -> None:
        """What the server said may go on its way, and arrive at once."""
        if data.draw(st.booleans(), "arrives"):
            self.take(2**20)
            self.listen(len(self.downwards))

    # What the client does

    def open_at_client(self, number: int) -> bool:
        stream = self.client.streams.get(number)
        return stream is not None and not stream.closed

    @property
    def sendable(self) -> list[Exchange]:
        return [each for each in self.exchanges.values() if self.open_at_client(each.number) and not each.ended]

    def call(self, data: st.DataObject) -> None:
        number = 2 * len(self.exchanges) + 1
        fields = [HeaderTuple(name.encode(), value.encode()) for name, value in REQUEST]
        fields += data.draw(st.lists(st.sampled_from(EXTRA), max_size=2))
        promised = data.draw(st.none() | st.none() | sizes(20_000), "content-length")
        if promised is not None:
            fields.append(HeaderTuple(b"content-length", b"%d" % promised))
        end = not promised and data.draw(st.booleans(), "end")
        more: dict[str, Any] = {}
        if data.draw(st.booleans(), "priority"):
            more = {"priority_weight": 7, "priority_depends_on": number - 1, "priority_exclusive": True}
        self.client.send_headers(number, fields, end_stream=end, **more)
        regular = tuple((bytes(name), bytes(value)) for name, value in fields if name[:1] != b":")
        self.exchanges[number] = Exchange(number, regular, promised, ended=end)
        self.up(data)

    def upload(self, data: st.DataObject) -> None:
        exchange = self.one(data, self.sendable)
        end = data.draw(st.sampled_from(["not yet", "not yet", "with data", "with trailers"]), "end")
        padding = data.draw(st.none() | st.integers(0, 255), "padding")
        size = data.draw(sizes(200_000))
        while size > 2**14 and self.send(exchange, size // 2, False, padding):
            size //= 2
        self.send(exchange, size, end == "with data", padding)
        if end == "with trailers" and exchange.promised in (None, exchange.sent):
            self.client.send_headers(exchange.number, [(b"x-trailer", b"x")], end_stream=True)
            exchange.ended = True
        self.up(data)

    def send(self, exchange: Exchange, size: int, end: bool, padding: int | None = None) -> int:
        """Send a piece of a body, or what there is room for; gives how much that is."""
        number = exchange.number
        room = min(self.client.local_flow_control_window(number), self.client.max_outbound_frame_size)
        extra = 0 if padding is None else 1 + padding
        if room < extra:
            padding, extra = None, 0
        size = max(0, min(size, room - extra))
        if exchange.promised is not None:
            size = min(size, exchange.promised - exchange.sent)
            end = end and exchange.sent + size == exchange.promised
        self.client.send_data(number, content(number, exchange.sent, size), end_stream=end, pad_length=padding)
        exchange.sent += size
        exchange.ended = end
        self.speak()
        return size

    def give_up(self, exchange: Exchange) -> None:
        self.client.reset_stream(exchange.number, error_code=ErrorCode.CANCEL)
        exchange.cancelled = True
        self.speak()

    def give_window(self, data: st.DataObject) -> None:
        number = data.draw(st.sampled_from([0, *filter(self.open_at_client, self.exchanges)]))
        self.client.increment_flow_control_window(data.draw(sizes(200_000)) + 1, number or None)
        self.up(data)

    def change_settings(self, data: st.DataObject) -> None:
        # h2 applies at each acknowledgement the oldest change of each setting, whichever frame it was in; so there are
        # none before the first acknowledgement, and then all of them in each frame.
        choices = {
            SettingCodes.HEADER_TABLE_SIZE: (4096, 0, 100, 2**16),
            SettingCodes.INITIAL_WINDOW_SIZE: (DEFAULT_WINDOW, 0, 1, 5000, 2**20),
            SettingCodes.MAX_FRAME_SIZE: (2**14, 2**14 + 1, 2**20),
        }
        self.client.update_settings({name: data.draw(st.sampled_from(some)) for name, some in choices.items()})
        self.up(data)

    # What the server does

    @property
    def answerable(self) -> list[Exchange]:
        return [
            each
            for each in self.exchanges.values()
            if each.stream is not None and each.stream.local_open and not each.finished
        ]

    def answer(self, data: st.DataObject) -> None:
        """Answer in one go."""
        exchange = self.one(data, self.answerable)
        size = data.draw(sizes(200_000))
        if exchange.begun:
            self.answer_pieces(exchange, [size], True)
        else:
            exchange.begun = exchange.finished = True
            exchange.answered = size
            body = content(-exchange.number, 0, size)
            self.engine.sender.answer(exchange.stream, HEAD, (body[:5], body[5:]), TAIL)
        self.down(data)

    def answer_more(self, data: st.DataObject) -> None:
        """Answer with some data, or without any."""
        exchange = self.one(data, self.answerable)
        self.answer_pieces(exchange, data.draw(st.lists(sizes(200_000), max_size=3)), data.draw(st.booleans(), "end"))
        self.down(data)

    def answer_pieces(self, exchange: Exchange, pieces: list[int], end: bool) -> None:
        sender = self.engine.sender
        if not pieces and end and not exchange.begun:
            sender.headers(exchange.stream, HEAD, end=True)
            exchange.begun = exchange.finished = True
            return
        if not exchange.begun:
            exchange.begun = True
            sender.headers(exchange.stream, HEAD)
        bodies = []
        for size in pieces:
            bodies.append(content(-exchange.number, exchange.answered, size))
            exchange.answered += size
        sender.data(exchange.stream, *bodies)
        if end:
            exchange.finished = True
            sender.finish(exchange.stream, TAIL)

    def consume(self, data: st.DataObject) -> None:
        """Give back some of what has arrived, to the one window, to the other, or both."""
        for exchange in self.exchanges.values():
            for name in ("unread", "held"):
                most = getattr(exchange, name)
                if most:
                    self.give_back(exchange, name, data.draw(st.just(most) | st.integers(0, most), name))
        self.down(data)

    def give_back(self, exchange: Exchange, name: str, size: int) -> None:
        setattr(exchange, name, getattr(exchange, name) - size)
        if name == "unread":
            self.engine.release(size)
        elif exchange.stream is not None:
            self.engine.release_stream(exchange.stream, size)

    def accept_no_more(self, data: st.DataObject) -> None:
        self.engine.goaway()
        self.accepted = max((each.number for each in self.exchanges.values() if each.stream is not None), default=0)

    # What either does

    def break_off(self, data: st.DataObject) -> None:
        """The client gives up a call, or the server does."""
        exchange = self.exchanges[data.draw(st.sampled_from(list(filter(self.open_at_client, self.exchanges))))]
        if data.draw(st.booleans(), "the client"):
            self.give_up(exchange)
        elif exchange.number in self.engine.streams and exchange.stream is not None:
            exchange.reset = ErrorCode.ENHANCE_YOUR_CALM
            self.engine.reset(exchange.stream, exchange.reset)

    def trifle(self, data: st.DataObject) -> None:
        """A PING, or something that changes nothing."""
        what = data.draw(st.sampled_from(["client", "server", "going away", *NOTHING]))
        if what in self.pings:
            payload = data.draw(st.binary(min_size=8, max_size=8))
            self.pings[what].append(payload)
            (self.client if what == "client" else self.engine).ping(payload)
        elif what == "going away":
            self.engine.announce_goaway()
        else:
            self.upwards += NOTHING[what]
        self.speak()

    # What arrives

    def some_arrives(self, data: st.DataObject) -> None:
        """Bytes here, frames there; then the transport says what it thinks of its buffer."""
        self.hear(data.draw(sizes(100_000), "up"))
        self.take(data.draw(sizes(300_000), "most"))
        self.listen(data.draw(st.integers(0, 10), "down"))
        self.speak()
        self.engine.sender.blocked = data.draw(st.integers(0, 3), "blocked") == 3

    def all_arrives(self, data: st.DataObject) -> None:
        self.engine.sender.blocked = False
        self.everything()
        self.agree()

    # What has to hold

    @invariant()
    def windows_are_sound(self) -> None:
        if self.client is None:
            return
        window = self.engine._window
        # A frame is counted when it begins.
        coming = self.engine._flowing if self.engine._data_flows else 0
        assert window._outstanding == coming + sum(each.unread for each in self.exchanges.values())
        assert window._left >= 0
        held = window._left + window._outstanding + window._consumed
        assert self.limits.connection_window <= held <= max(self.limits.connection_window, DEFAULT_WINDOW), held

    @invariant()
    def what_waits_is_counted(self) -> None:
        if self.client is not None:
            assert self.engine.sender.owed == sum(stream.queued for stream in self.engine.streams.values())
            assert len(self.engine.streams) <= STREAMS

    def agree(self) -> None:
        """Nothing is on its way: what one end believes, the other does."""
        engine, client = self.engine, self.client
        assert client.outbound_flow_control_window == engine._window._left
        assert client.inbound_flow_control_window == engine.sender.window
        ignored = [number for number in self.exchanges if number > self.accepted and self.open_at_client(number)]
        assert client.open_outbound_streams == len(engine.streams) + len(ignored)
        for number, stream in engine.streams.items():
            theirs = client.streams[number]
            assert stream.remote_open == (not self.exchanges[number].ended)
            if stream.remote_open:
                assert theirs.outbound_flow_control_window == stream.receive_window
            assert theirs.inbound_flow_control_window == stream.send_window
            # What could be sent has been.
            assert not stream.queued or engine.sender.window <= 0 or stream.send_window <= 0
        for end, asked in self.pings.items():
            assert self.pongs[end] == asked
        for each in self.exchanges.values():
            if each.stream is not None and each.stream.remote_open:
                assert (each.arrived, each.arrived_whole) == (each.sent, each.ended)

    def teardown(self) -> None:
        if self.client is not None and sys.exc_info()[0] is None:
            self.finish()

    def finish(self) -> None:
        """Bring everything to its end."""
        self.engine.sender.blocked = False
        self.everything()
        for exchange in self.exchanges.values():
            if exchange.number > self.accepted and self.open_at_client(exchange.number):
                self.give_up(exchange)
        for exchange in self.sendable:
            if exchange.promised is None:
                exchange.promised = exchange.sent + 40_000
        for _ in range(1000):
            self.everything()
            for exchange in self.exchanges.values():
                self.give_back(exchange, "unread", exchange.unread)
                self.give_back(exchange, "held", exchange.held)
            self.everything()
            self.agree()
            self.windows_are_sound()
            self.check_returned()
            if not self.sendable:
                break
            for exchange in self.sendable:
                self.send(exchange, 40_000, True)
        assert not self.sendable, "uploads came to a halt"
        for exchange in self.answerable:
            self.answer_pieces(exchange, [], True)
        for number in [0, *filter(self.open_at_client, self.exchanges)]:
            self.client.increment_flow_control_window(2**24, number or None)
        self.everything()
        self.agree()
        assert not self.engine.streams and not self.client.open_outbound_streams
        assert self.engine.sender.owed == 0 and not self.engine.sender.take()
        for exchange in self.exchanges.values():
            if not exchange.cancelled and exchange.reset is None:
                assert exchange.read == exchange.answered and "StreamEnded" in exchange.seen

    def check_returned(self) -> None:
        """Everything was consumed: the windows are back, but for what is not worth a frame."""
        assert 4 * self.engine._window._left > 3 * self.limits.connection_window
        for stream in self.engine.streams.values():
            if stream.remote_open:
                assert stream.receive_window + stream.unreturned == self.engine._stream_window
                assert 4 * stream.unreturned <= self.limits.stream_window


class ConversationTests(SynchronousTestCase):
    """A client that others wrote."""

    def test_agreement(self) -> None:
        """Whatever an h2 client does, in whatever order, both sides see the same, and neither complains."""
        run_state_machine_as_test(Conversation, settings=examples(60, stateful_step_count=50))
