"""HTTP/2 against chance: bytes cut anywhere, bytes that are nonsense, and another implementation as the client."""

from __future__ import annotations

import itertools
from typing import Any

import h2.config
import h2.connection
import h2.events
import h2.settings
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test
from twisted.trial.unittest import SynchronousTestCase

from artifactserver.rpc.http2 import (
    Connection,
    DataReceived,
    ErrorCode,
    Event,
    Limits,
    RequestReceived,
    StreamReset,
    encode,
)
from tests import http2_peer as wire
from tests.http2_peer import PREFACE, REQUEST, Peer, block, frame, request

HEAD = encode([(b"content-type", b"application/grpc")], status=200)
TAIL = encode([(b"grpc-status", b"0")])


def session() -> bytes:
    """A client's bytes with about everything in them that is allowed."""
    headers = block(*REQUEST)
    return b"".join(
        [
            PREFACE,
            wire.settings((4, 2**20), (5, 2**20)),
            frame(wire.SETTINGS, wire.ACK),
            wire.window_update(0, 1000),
            request(1),
            frame(wire.DATA, 0, 1, wire.message(b"one")),
            frame(wire.PING, payload=b"pingpong"),
            frame(wire.DATA, wire.PADDED, 1, b"\x07" + wire.message(b"two") + bytes(7)),
            frame(wire.HEADERS, wire.END_STREAM, 3, headers[:10]),
            frame(wire.CONTINUATION, 0, 3, headers[10:11]),
            frame(wire.CONTINUATION, wire.END_HEADERS, 3, headers[11:]),
            frame(wire.PRIORITY, 0, 9, bytes(5)),
            frame(0x77, 0xFF, 1, b"unknown" * 9),
            frame(wire.DATA, wire.END_STREAM, 1),
            request(5),
            frame(wire.DATA, 0, 5, bytes(300)),
            frame(wire.HEADERS, wire.END_HEADERS | wire.END_STREAM, 5, block(("trailer", "x"))),
            request(7),
            wire.window_update(7, 5),
            frame(wire.RST_STREAM, 0, 7, bytes(4)),
            request(9, fields=(*REQUEST, ("Bad", "x"))),
            frame(wire.GOAWAY, payload=bytes(8)),
        ]
    )


def told(events: list[Event]) -> list[Any]:
    """Events in a form in which adjacent data is one."""
    out: list[Any] = []
    for event in events:
        if isinstance(event, DataReceived):
            before = out[-1] if out and out[-1][:2] == ("data", event.stream.id) else None
            if before is not None:
                out[-1] = ("data", event.stream.id, before[2] + bytes(event.payload), event.ended)
            else:
                out.append(("data", event.stream.id, bytes(event.payload), event.ended))
        elif isinstance(event, RequestReceived):
            out.append(("request", event.stream.id, event.head.fields, event.ended))
        elif isinstance(event, StreamReset):
            out.append(("reset", event.stream.id, event.code))
        else:
            out.append((type(event).__name__,))
    return out


def outcome(pieces: list[bytes]) -> tuple[list[Any], bytes]:
    """What is told and what is answered when a client's bytes arrive in these pieces."""
    engine = Connection(Limits())
    engine.start()
    events: list[Event] = []
    out: list[bytes] = []
    for piece in pieces:
        events += engine.receive(piece, 0.0)
        while sent := engine.sender.take():
            out.append(sent)
    return told(events), b"".join(out)


class CutAnywhereTests(SynchronousTestCase):
    """How the bytes were cut does not matter."""

    def test_byte_by_byte(self) -> None:
        """A client that sends a byte at a time is understood like any other."""
        whole = session()
        self.assertEqual(outcome([whole[i : i + 1] for i in range(len(whole))]), outcome([whole]))

    @settings(max_examples=200, deadline=None)
    @given(st.lists(st.integers(0, len(session())), max_size=12))
    def test_anywhere(self, cuts: list[int]) -> None:
        """Cut at any places, the same bytes mean the same."""
        whole = session()
        places = [0, *sorted(cuts), len(whole)]
        pieces = [whole[a:b] for a, b in itertools.pairwise(places)]
        self.assertEqual(outcome(pieces), outcome([whole]))


class NonsenseTests(SynchronousTestCase):
    """Whatever a client sends, nothing but an answer comes of it."""

    @settings(max_examples=300, deadline=None)
    @given(
        st.lists(
            st.one_of(
                st.binary(max_size=40),
                st.builds(
                    frame,
                    st.integers(0, 12),
                    st.integers(0, 255),
                    st.integers(0, 7),
                    st.one_of(st.binary(max_size=30), st.just(block(*REQUEST))),
                ),
            ),
            max_size=12,
        )
    )
    def test_frames(self, pieces: list[bytes]) -> None:
        """Frames and bytes at random end in events, GOAWAY or RST_STREAM, and never in an exception."""
        peer = Peer()
        for piece in [request(1), *pieces]:
            peer.send(piece)
            peer.frames()

    @settings(max_examples=300, deadline=None)
    @given(st.binary(max_size=200))
    def test_header_blocks(self, content: bytes) -> None:
        """Any bytes as a header block are a request, a malformed one, or undecodable."""
        peer = Peer()
        peer.send(frame(wire.HEADERS, 5, 1, content), request(3))
        peer.frames()

    @settings(max_examples=200, deadline=None)
    @given(st.data())
    def test_bytes_flipped(self, data: st.DataObject) -> None:
        """A good session with a few bytes changed never ends in an exception."""
        whole = bytearray(session())
        for _ in range(data.draw(st.integers(1, 4))):
            whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
        outcome([bytes(whole)])


def contents(most: int) -> st.SearchStrategy[bytes]:
    """Bytes of any length up to ``most``; left to itself, chance prefers a few."""
    return st.builds(lambda size: (b"0123456789" * (size // 10 + 1))[:size], st.integers(0, most))


class Independent(RuleBasedStateMachine):
    """An h2 client and our engine talk; both must agree about everything, all the time."""

    def __init__(self) -> None:
        super().__init__()
        config = h2.config.H2Configuration(client_side=True, header_encoding="utf-8")
        self.client = h2.connection.H2Connection(config)
        self.client.local_settings.enable_push = 0
        self.engine = Connection(Limits(stream_window=70_000, connection_window=100_000, message_bytes=60_000))
        self.client.initiate_connection()
        self.engine.start()
        self.now = 0.0
        self.next_stream = 1
        # What has been sent and what has arrived, per stream and direction.
        self.uploads: dict[int, bytes] = {}
        self.arrived: dict[int, bytes] = {}
        self.answers: dict[int, bytes] = {}
        self.read: dict[int, bytes] = {}
        self.sending: set[int] = set()
        self.answering: dict[int, Any] = {}
        self.resets: set[int] = set()
        self.exchange()

    def exchange(self) -> None:
        """Let all bytes in both directions arrive."""
        while True:
            from_client = self.client.data_to_send()
            if from_client:
                for event in self.engine.receive(from_client, self.now):
                    self.server_event(event)
            from_server = self.engine.sender.take()
            # A frame at a time: within one call, h2 holds the frames after an acknowledgement to the old frame size.
            for each in wire.parse(from_server):
                for answer in self.client.receive_data(frame(each.kind, each.flags, each.stream, each.payload)):
                    self.client_event(answer)
            if not from_client and not from_server:
                return

    def server_event(self, event: Event) -> None:
        if isinstance(event, RequestReceived):
            self.arrived[event.stream.id] = b""
            self.answering[event.stream.id] = event.stream
            self.engine.sender.headers(event.stream, HEAD)
        elif isinstance(event, DataReceived):
            self.arrived[event.stream.id] += bytes(event.payload)
            self.engine.release(len(event.payload))
            self.engine.release_stream(event.stream, len(event.payload))
        elif isinstance(event, StreamReset):
            self.answering.pop(event.stream.id, None)
        else:
            raise AssertionError(event)

    def client_event(self, event: Any) -> None:
        if isinstance(event, h2.events.DataReceived):
            self.read[event.stream_id] = self.read.get(event.stream_id, b"") + event.data
            self.client.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
        elif isinstance(event, h2.events.StreamReset):
            assert event.error_code == ErrorCode.NO_ERROR, event
            self.sending.discard(event.stream_id)
        elif isinstance(event, h2.events.ConnectionTerminated):
            raise AssertionError(event)

    @rule(end=st.booleans(), extra=st.text("abc", max_size=3))
    def call(self, end: bool, extra: str) -> None:
        stream, self.next_stream = self.next_stream, self.next_stream + 2
        self.client.send_headers(stream, [*REQUEST, ("extra", extra)], end_stream=end)
        self.uploads[stream] = b""
        if not end:
            self.sending.add(stream)
        self.exchange()

    @precondition(lambda self: self.sending)
    @rule(data=st.data(), content=contents(30_000), end=st.booleans(), pad=st.none() | st.integers(0, 255))
    def upload(self, data: st.DataObject, content: bytes, end: bool, pad: int | None) -> None:
        stream = data.draw(st.sampled_from(sorted(self.sending)))
        content = content[: max(0, self.client.local_flow_control_window(stream) - 256)]
        content = content[: self.client.max_outbound_frame_size - 256]
        self.client.send_data(stream, content, end_stream=end, pad_length=pad)
        self.uploads[stream] += content
        if end:
            self.sending.discard(stream)
        self.exchange()

    @precondition(lambda self: self.answering)
    @rule(data=st.data(), content=contents(100_000), end=st.booleans())
    def answer(self, data: st.DataObject, content: bytes, end: bool) -> None:
        number = data.draw(st.sampled_from(sorted(self.answering)))
        stream = self.answering[number]
        self.engine.sender.data(stream, content)
        self.answers[number] = self.answers.get(number, b"") + content
        if end:
            self.engine.sender.finish(stream, TAIL)
            del self.answering[number]
        self.exchange()

    @precondition(lambda self: self.sending)
    @rule(data=st.data())
    def give_up(self, data: st.DataObject) -> None:
        stream = data.draw(st.sampled_from(sorted(self.sending)))
        self.client.reset_stream(stream, error_code=8)
        self.sending.discard(stream)
        self.resets.add(stream)
        self.exchange()

    @rule(window=st.sampled_from([0, 1, 100, 5000, 65_535, 2**20]), size=st.integers(16_384, 2**20))
    def change_settings(self, window: int, size: int) -> None:
        self.client.update_settings(
            {
                h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: window,
                h2.settings.SettingCodes.MAX_FRAME_SIZE: size,
            }
        )
        self.exchange()

    @rule(payload=st.binary(min_size=8, max_size=8))
    def ping(self, payload: bytes) -> None:
        self.client.ping(payload)
        self.exchange()

    @invariant()
    def uploads_arrive(self) -> None:
        for stream, content in self.uploads.items():
            if stream not in self.resets:
                arrived = self.arrived[stream]
                # After an early answer, the rest of a request is of no interest.
                assert arrived == content or content.startswith(arrived) and stream not in self.sending

    @invariant()
    def answers_arrive(self) -> None:
        for stream, content in self.read.items():
            assert self.answers[stream].startswith(content)


class IndependentClientTests(SynchronousTestCase):
    """A client that others wrote."""

    def test_agreement(self) -> None:
        """Whatever an h2 client does, in whatever order, both sides see the same, and neither complains."""
        run_state_machine_as_test(
            Independent, settings=settings(max_examples=60, stateful_step_count=40, deadline=None)
        )
