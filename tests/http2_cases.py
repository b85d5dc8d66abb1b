"""What the tests of single frames share: a peer, and the two ways in which an error ends something (RFC 9113, 5.4)."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from artifactserver.rpc.http2 import ConnectionFailed, ErrorCode, RequestReceived, encode
from tests.http2_peer import PING, Peer, frame, request

#: A response's headers, and its trailers.
HEAD = encode([(b"content-type", b"application/grpc")], status=200)
TAIL = encode([(b"grpc-status", b"0")])


class Cases(SynchronousTestCase):
    """What each test needs."""

    def setUp(self) -> None:
        self.peer = Peer()

    def assert_connection_error(self, code: ErrorCode, *data: bytes, peer: Peer | None = None) -> None:
        """After ``data`` the server says GOAWAY with ``code``, and listens no more."""
        peer = peer or self.peer
        events = peer.send(*data)
        self.assertIsInstance(events[-1], ConnectionFailed)
        self.assertEqual(peer.goaway_code(), code)
        self.assertEqual(peer.send(request(101), frame(PING, payload=bytes(8))), [])
        self.assertEqual(peer.frames(), [])

    def assert_stream_error(self, code: ErrorCode, stream: int, *data: bytes) -> None:
        """After ``data`` the server resets ``stream`` with ``code``, and serves others."""
        self.peer.send(*data)
        self.assertEqual(self.peer.resets(), [(stream, code)])
        self.assertIsInstance(self.peer.send(request(stream + 200))[-1], RequestReceived)
        self.assertIsNone(self.peer.goaway_code())

    def answer(self, stream: int) -> None:
        """Let the server answer in full, and the answer arrive."""
        self.peer.engine.sender.answer(self.peer.stream(stream), HEAD, (b"answer",), TAIL)
        self.peer.frames()
