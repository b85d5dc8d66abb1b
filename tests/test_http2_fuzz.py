"""HTTP/2 against chance: bytes cut anywhere, and bytes that are nonsense."""

from __future__ import annotations

import itertools
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from artifactserver.rpc.http2 import (
    Connection,
    DataReceived,
    Event,
    Limits,
    RequestReceived,
    StreamReset,
)
from tests import http2_peer as wire
from tests.chance import examples
from tests.http2_peer import PREFACE, REQUEST, Peer, block, frame, request


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

    @examples(200)
    @given(st.lists(st.integers(0, len(session())), max_size=12))
    def test_anywhere(self, cuts: list[int]) -> None:
        """Cut at any places, the same bytes mean the same."""
        whole = session()
        places = [0, *sorted(cuts), len(whole)]
        pieces = [whole[a:b] for a, b in itertools.pairwise(places)]
        self.assertEqual(outcome(pieces), outcome([whole]))


class NonsenseTests(SynchronousTestCase):
    """Whatever a client sends, nothing but an answer comes of it."""

    @examples(300)
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

    @examples(300)
    @given(st.binary(max_size=200))
    def test_header_blocks(self, content: bytes) -> None:
        """Any bytes as a header block are a request, a malformed one, or undecodable."""
        peer = Peer()
        peer.send(frame(wire.HEADERS, 5, 1, content), request(3))
        peer.frames()

    @examples(200)
    @given(st.data())
    def test_bytes_flipped(self, data: st.DataObject) -> None:
        """A good session with a few bytes changed never ends in an exception."""
        whole = bytearray(session())
        for _ in range(data.draw(st.integers(1, 4))):
            whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
        outcome([bytes(whole)])
