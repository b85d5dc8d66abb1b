"""Requests as HTTP/2 has them, and what makes one malformed: RFC 9113, section 8."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from artifactserver.rpc.http2 import ErrorCode, RequestReceived
from tests.http2_peer import REQUEST, Peer, frame, request

Fields = tuple[tuple[str, str], ...]


def without(name: str) -> Fields:
    return tuple(field for field in REQUEST if field[0] != name)


class MalformedTests(SynchronousTestCase):
    """RFC 9113, sections 8.1.1, 8.2 and 8.3."""

    def assert_malformed(self, *fields: tuple[str, str]) -> None:
        """The request costs its stream and nothing else."""
        peer = Peer()
        peer.send(request(1), request(3, fields=fields), request(5))
        self.assertEqual(peer.resets(), [(3, ErrorCode.PROTOCOL_ERROR)])
        self.assertEqual([event.stream.id for event in peer.events if isinstance(event, RequestReceived)], [1, 5])

    def test_names(self) -> None:
        """Names with upper case, spaces, controls, colons inside or nothing at all are malformed."""
        for name in ("Upper", "with space", "nul\0", "col:on", "\x7f", "\xe9", ""):
            self.assert_malformed(*REQUEST, (name, "value"))

    def test_values(self) -> None:
        """Values with line ends or NUL, or with space at an end, are malformed."""
        for value in ("a\r\nb", "a\nb", "a\rb", "a\0b", " a", "a ", "\ta", "a\t"):
            self.assert_malformed(*REQUEST, ("name", value))

    def test_good_values(self) -> None:
        """Anything else may be in a value."""
        peer = Peer()
        peer.send(request(1, fields=(*REQUEST, ("name", ""), ("other", "\xff\x01 inside \x7f"))))
        self.assertIsInstance(peer.events[-1], RequestReceived)

    def test_connection_fields(self) -> None:
        """What belongs to a connection of HTTP/1.1 has no place here."""
        for name, value in (
            ("connection", "close"),
            ("keep-alive", "1"),
            ("proxy-connection", "keep-alive"),
            ("transfer-encoding", "chunked"),
            ("upgrade", "h2c"),
            ("te", "gzip"),
        ):
            self.assert_malformed(*REQUEST, (name, value))

    def test_pseudo_headers(self) -> None:
        """Pseudo-headers are all there, once, known, and before everything else."""
        for name in (":method", ":scheme", ":path"):
            self.assert_malformed(*without(name))
        self.assert_malformed(*REQUEST, (":path", "/late"))
        self.assert_malformed((":path", "/twice"), *REQUEST)
        self.assert_malformed((":status", "200"), *REQUEST)
        self.assert_malformed((":protocol", "websocket"), *REQUEST)
        self.assert_malformed((":path", ""), *without(":path"))
        self.assert_malformed((":path", "no-slash"), *without(":path"))

    def test_host(self) -> None:
        """``host`` may stand for ``:authority``, and must not contradict it."""
        self.assert_malformed(*REQUEST, ("host", "elsewhere"))
        peer = Peer()
        peer.send(request(1, fields=(*without(":authority"), ("host", "here"))))
        self.assertEqual(peer.events[-1].head.authority, b"here")  # type: ignore[union-attr]

    def test_connect(self) -> None:
        """CONNECT has an authority and neither path nor scheme."""
        self.assert_malformed((":method", "CONNECT"), (":authority", "x:1"), (":path", "/"))
        self.assert_malformed((":method", "CONNECT"))
        peer = Peer()
        peer.send(request(1, fields=((":method", "CONNECT"), (":authority", "x:1"))))
        self.assertEqual(peer.events[-1].head.method, b"CONNECT")  # type: ignore[union-attr]

    def test_content_length(self) -> None:
        """A body must be as long as it was said to be."""
        self.assert_malformed(*REQUEST, ("content-length", "x"))
        self.assert_malformed(*REQUEST, ("content-length", "1"), ("content-length", "2"))
        fields = (*REQUEST, ("content-length", "5"))
        for bodies in ([b"four"], [b"sixsix"], [b"four", b"six"], [b""]):
            peer = Peer()
            peer.send(request(1, fields=fields))
            for body in bodies:
                peer.send(frame(0, 0 if body is not bodies[-1] else 1, 1, body))
            self.assertEqual(peer.resets(), [(1, ErrorCode.PROTOCOL_ERROR)], bodies)
        peer = Peer()
        peer.send(request(1, fields=fields), frame(0, 0, 1, b"thr"), frame(0, 1, 1, b"ee"))
        self.assertEqual(peer.resets(), [])
        self.assertEqual(Peer().send(request(1, fields=fields, end=True))[:-1], [])

    def test_content_length_without_body(self) -> None:
        """A request that ends with its headers has a body of length 0."""
        peer = Peer()
        peer.send(request(1, end=True, fields=(*REQUEST, ("content-length", "5"))))
        self.assertEqual(peer.resets(), [(1, ErrorCode.PROTOCOL_ERROR)])
