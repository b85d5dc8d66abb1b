"""Requests as HTTP/2 has them, and what makes one malformed: RFC 9113, section 8."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from artifactserver.rpc.http2 import (
    DataReceived,
    ErrorCode,
    Limits,
    RequestHead,
    RequestReceived,
    RequestRefused,
    StreamReset,
)
from tests.http2_cases import Cases
from tests.http2_peer import (
    CONTINUATION,
    DATA,
    END_HEADERS,
    END_STREAM,
    HEADERS,
    PADDED,
    PRIORITY_FLAG,
    REQUEST,
    Field,
    Peer,
    block,
    frame,
    request,
)


def without(name: str) -> tuple[Field, ...]:
    """The fields of a good request without one of them."""
    return tuple(field for field in REQUEST if field[0] != name)


def replaced(name: str, value: str) -> tuple[Field, ...]:
    """The fields of a good request, one of them with another value."""
    return tuple((each, value if each == name else old) for each, old in REQUEST)


class RequestCases(SynchronousTestCase):
    """What each test needs."""

    def assert_malformed(self, *fields: Field) -> None:
        """A request with these headers, or trailers, costs its stream and nothing else."""
        peer = Peer()
        peer.send(request(1), request(3, fields=fields), request(5))
        self.assertEqual(peer.resets(), [(3, ErrorCode.PROTOCOL_ERROR)], fields)
        self.assertEqual([event.stream.id for event in peer.events if isinstance(event, RequestReceived)], [1, 5])

    def assert_malformed_everywhere(self, *fields: Field) -> None:
        """These fields are malformed behind good headers, and in trailers too."""
        self.assert_malformed(*REQUEST, *fields)
        peer = Peer()
        peer.send(request(1), request(3), frame(HEADERS, END_HEADERS | END_STREAM, 3, block(*fields)), request(5))
        self.assertEqual(peer.resets(), [(3, ErrorCode.PROTOCOL_ERROR)], fields)
        told = [type(event) for event in peer.events]
        self.assertEqual(told, [RequestReceived, RequestReceived, StreamReset, RequestReceived])

    def accepted(self, *fields: Field) -> RequestHead:
        """What a request with these headers is understood as."""
        (event,) = Peer().send(request(1, fields=fields))
        assert isinstance(event, RequestReceived), fields
        return event.head


class MessageTests(Cases):
    """Section 8.1: what a request is made of."""

    def test_headers_only(self) -> None:
        """A request may be headers and nothing else."""
        (event,) = self.peer.send(request(1, end=True))
        assert isinstance(event, RequestReceived)
        self.assertTrue(event.ended)

    def test_whole(self) -> None:
        """Or headers, any number of DATA frames, empty ones among them, and trailers."""
        self.peer.send(request(1), *[frame(DATA, 0, 1, part) for part in (b"one", b"", b"two")])
        self.peer.send(frame(HEADERS, END_HEADERS | END_STREAM, 1, block(("trailer", "x"))))
        parts = [each for each in self.peer.events if isinstance(each, DataReceived)]
        self.assertEqual(b"".join(bytes(part.payload) for part in parts), b"onetwo")
        self.assertEqual([part.ended for part in parts], [False, False, True])

    def test_trailers_in_pieces(self) -> None:
        """Trailers may be padded, have a priority, and go on in CONTINUATION frames."""
        trailers = block(("trailer", "x"))
        self.peer.send(
            request(1),
            frame(HEADERS, END_STREAM | PADDED | PRIORITY_FLAG, 1, b"\x03" + bytes(5) + trailers[:2] + bytes(3)),
            frame(CONTINUATION, 0, 1, trailers[2:4]),
        )
        self.assertEqual(len(self.peer.events), 1)
        self.peer.send(frame(CONTINUATION, END_HEADERS, 1, trailers[4:]))
        event = self.peer.events[-1]
        assert isinstance(event, DataReceived)
        self.assertTrue(event.ended)

    def test_headers_in_the_middle(self) -> None:
        """Headers behind the first that do not end the request are malformed, before its body and within it."""
        for body in (b"", frame(DATA, 0, 1, b"x")):
            for fields in ((("trailer", "x"),), REQUEST):
                self.peer = Peer()
                more = frame(HEADERS, END_HEADERS, 1, block(*fields))
                self.assert_stream_error(ErrorCode.PROTOCOL_ERROR, 1, request(1), body, more)

    def test_after_trailers(self) -> None:
        """Nothing comes behind trailers."""
        trailers = frame(HEADERS, END_HEADERS | END_STREAM, 1, block(("trailer", "x")))
        for more in (frame(DATA, END_STREAM, 1), trailers):
            self.peer = Peer()
            self.assert_stream_error(ErrorCode.STREAM_CLOSED, 1, request(1), trailers, more)

    def test_nobody_hears_of_malformed_ones(self) -> None:
        """Section 8.1.1: of a request that is malformed from its start, nobody ever hears."""
        bad = (*REQUEST, ("Bad", "name"))
        self.peer.send(request(1, fields=bad), frame(DATA, END_STREAM, 1, b"body"), request(3, fields=bad, end=True))
        self.assertEqual(self.peer.events, [])

    def test_too_large(self) -> None:
        """Section 10.5.1: a request whose headers are more than we take is answered, and not reset."""
        peer = Peer(Limits(header_count=10))
        many = (*REQUEST, *[("name", "value")] * 10)
        self.assertEqual([type(event) for event in peer.send(request(1, fields=many))], [RequestRefused])
        self.assertEqual(peer.frames(), [])


class FieldTests(RequestCases):
    """Sections 8.2 and 8.2.1: names and values."""

    def test_every_character_of_a_name(self) -> None:
        """A name is of visible ASCII without upper case and, behind its start, without the colon."""
        good = {chr(code) for code in range(0x21, 0x7F)} - set("ABCDEFGHIJKLMNOPQRSTUVWXYZ:")
        for code in range(256):
            events = Peer().send(request(1, fields=(*REQUEST, (b"x%cy" % code, "value"))))
            self.assertEqual(bool(events), chr(code) in good, code)

    def test_names(self) -> None:
        """Names with upper case, spaces, controls, colons inside or nothing at all are malformed, in trailers too."""
        for name in ("Upper", "with space", "nul\0", "col:on", "\x7f", "\xe9", ""):
            self.assert_malformed_everywhere((name, "value"))

    def test_every_character_of_a_value(self) -> None:
        """Anything may be inside a value but line ends and NUL."""
        for code in range(256):
            events = Peer().send(request(1, fields=(*REQUEST, ("name", b"x%cy" % code))))
            self.assertEqual(bool(events), chr(code) not in "\0\r\n", code)

    def test_values(self) -> None:
        """Values with line ends or NUL, or with space at an end, are malformed, in trailers too."""
        for value in ("a\r\nb", "a\n", "\rb", "a\0", "\0", " a", "a ", "\ta", "a\t", " ", "\t"):
            self.assert_malformed_everywhere(("name", value))

    def test_good_values(self) -> None:
        """Anything else may be in a value, and comes through as it is, with its repetitions."""
        fields = (("name", ""), ("name", "\xff\x01 inside\t\x7f"), ("name", ""))
        head = self.accepted(*REQUEST, *fields)
        sent = tuple((name.encode("utf-8"), value.encode("utf-8")) for name, value in fields)
        self.assertEqual(head.fields[-3:], sent)


class ConnectionFieldTests(RequestCases):
    """Section 8.2.2: what belongs to a connection of HTTP/1.1 has no place here."""

    def test_fields(self) -> None:
        """Each of them makes a request malformed, whatever its value, and trailers too."""
        for name, value in (
            ("connection", "close"),
            ("connection", "te"),
            ("connection", ""),
            ("keep-alive", "1"),
            ("proxy-connection", "keep-alive"),
            ("transfer-encoding", "chunked"),
            ("transfer-encoding", "identity"),
            ("upgrade", "h2c"),
        ):
            self.assert_malformed_everywhere((name, value))

    def test_te(self) -> None:
        """``te`` may say that its client takes trailers, and nothing more."""
        for value in ("gzip", "trailers, deflate", "trailers;q=1", ""):
            self.assert_malformed(*replaced("te", value))
        for value in ("trailers", "Trailers"):
            self.accepted(*replaced("te", value))
        self.accepted(*without("te"))


class PseudoHeaderTests(RequestCases):
    """Sections 8.3 and 8.3.1."""

    def test_understood(self) -> None:
        """They say what is asked for."""
        head = self.accepted(*REQUEST)
        self.assertEqual((head.method, head.path, head.authority), (b"POST", b"/test.Service/Method", b"localhost"))

    def test_any_order(self) -> None:
        """Their order does not matter."""
        for start in range(4):
            pseudo = REQUEST[start:4] + REQUEST[:start]
            self.assertEqual(self.accepted(*pseudo, *REQUEST[4:]).path, b"/test.Service/Method")

    def test_missing(self) -> None:
        """Method, scheme and path have to be there; an authority need not."""
        for name in (":method", ":scheme", ":path"):
            self.assert_malformed(*without(name))
        self.assertEqual(self.accepted(*without(":authority")).authority, b"")

    def test_repeated(self) -> None:
        """None comes twice, not even with the same value."""
        for field in REQUEST[:4]:
            self.assert_malformed(field, *REQUEST)

    def test_late(self) -> None:
        """None comes behind other fields."""
        for field in REQUEST[:4]:
            self.assert_malformed(*without(field[0]), field)

    def test_unknown(self) -> None:
        """Those of responses, of extensions that we do not have, and invented ones are malformed."""
        for field in ((":status", "200"), (":protocol", "websocket"), (":other", "x"), (":", "x"), (":Path", "/")):
            self.assert_malformed(field, *REQUEST)

    def test_in_trailers(self) -> None:
        """Trailers have none."""
        for field in (*REQUEST[:4], (":status", "200")):
            peer = Peer()
            peer.send(request(1), frame(HEADERS, END_HEADERS | END_STREAM, 1, block(field)))
            self.assertEqual(peer.resets(), [(1, ErrorCode.PROTOCOL_ERROR)])

    def test_values(self) -> None:
        """A method is a token, a scheme the name of one, and no control, space or line end is in any of them."""
        for name, values in {
            ":method": ("", "GET POST", "G\0T", "GET\r\n", "GET:", "(GET)"),
            ":scheme": ("", "1http", "ht tp", "http:", "http\n"),
            ":path": ("", "no-slash", "/a b", "/a\r\nb", "/a\0", "/a\x7f", "/\xe9", "/a#b", " /a", "/a\t", "**"),
            ":authority": ("a b", "a\0", "a\r\n", " a", "\xe9"),
        }.items():
            for value in values:
                self.assert_malformed(*replaced(name, value))

    def test_good_values(self) -> None:
        """Anything that is valid is accepted, whether we can do something with it or not."""
        for name, values in {
            ":method": ("GET", "get", "M-SEARCH", "!#$%&'*+-.^_`|~09azAZ"),
            ":scheme": ("https", "HTTP", "coap+tcp", "a1.b-c"),
            ":path": ("/", "//", "/a?b=/c&d", "/%C3%A9", "/!\"$%&'()*+,-./:;<=>?@[\\]^_`{|}~"),
            ":authority": ("", "a:1", "[::1]:8980", "%2Frun%2Fsocket"),
        }.items():
            for value in values:
                self.accepted(*replaced(name, value))

    def test_asterisk(self) -> None:
        """The server itself, and no path on it, is what only OPTIONS can be about."""
        self.assert_malformed(*replaced(":path", "*"))
        fields = tuple((name, "OPTIONS" if name == ":method" else value) for name, value in replaced(":path", "*"))
        self.assertEqual(self.accepted(*fields).path, b"*")

    def test_user_information(self) -> None:
        """A user and a password have no place in an authority."""
        self.assert_malformed(*replaced(":authority", "user:password@localhost"))


class HostTests(RequestCases):
    """Section 8.3.1: ``host`` beside ``:authority``."""

    def test_instead(self) -> None:
        """``host`` may stand for ``:authority``."""
        self.assertEqual(self.accepted(*without(":authority"), ("host", "here")).authority, b"here")

    def test_beside(self) -> None:
        """Beside it, it has to name the same; what is said in ``:authority`` counts."""
        self.assert_malformed(*REQUEST, ("host", "elsewhere"))
        self.assert_malformed(*REQUEST, ("host", "localhost:1"))
        self.assert_malformed(*REQUEST, ("host", ""))
        for scheme, host in (("http", "LocalHost"), ("http", "localhost:80"), ("https", "localhost:443")):
            head = self.accepted(*replaced(":scheme", scheme), ("host", host))
            self.assertEqual(head.authority, b"localhost")
        self.assert_malformed(*replaced(":scheme", "https"), ("host", "localhost:80"))

    def test_twice(self) -> None:
        """There is only one."""
        for fields in (without(":authority"), REQUEST):
            self.assert_malformed(*fields, ("host", "elsewhere"), ("host", "localhost"))
            self.assert_malformed(*fields, ("host", "localhost"), ("host", "localhost"))


class ConnectTests(RequestCases):
    """Section 8.5."""

    def test_shape(self) -> None:
        """CONNECT has an authority and neither path nor scheme."""
        connect, authority = (":method", "CONNECT"), (":authority", "x:1")
        self.assert_malformed(connect, authority, (":path", "/"))
        self.assert_malformed(connect, authority, (":scheme", "http"))
        self.assert_malformed(connect, authority, (":path", ""))
        self.assert_malformed(connect)
        self.assert_malformed(connect, (":authority", ""))
        self.assertEqual(self.accepted(connect, authority).method, b"CONNECT")


class ContentLengthTests(RequestCases):
    """Section 8.1.1: a body is as long as it was said to be."""

    FIELDS = (*REQUEST, ("content-length", "5"))

    def test_values(self) -> None:
        """It is one number."""
        for value in ("x", "-1", "+5", "5.0", "", "5, 5", "5 5", "\u0665", "9" * 30):
            self.assert_malformed(*REQUEST, ("content-length", value))
        self.assert_malformed(*REQUEST, ("content-length", "1"), ("content-length", "2"))
        self.assertEqual(self.accepted(*self.FIELDS, ("content-length", "5")).content_length, 5)
        self.assertIsNone(self.accepted(*REQUEST).content_length)

    def test_wrong(self) -> None:
        """More or less than that is malformed, as soon as it shows."""
        for bodies in ([b"four"], [b"sixsix"], [b"four", b"six"], [b""]):
            peer = Peer()
            peer.send(request(1, fields=self.FIELDS))
            for body in bodies:
                peer.send(frame(DATA, 0 if body is not bodies[-1] else END_STREAM, 1, body))
            self.assertEqual(peer.resets(), [(1, ErrorCode.PROTOCOL_ERROR)], bodies)
        peer = Peer()
        peer.send(request(1, fields=self.FIELDS), frame(DATA, 0, 1, b"sixsix"))
        self.assertEqual(peer.resets(), [(1, ErrorCode.PROTOCOL_ERROR)])

    def test_right(self) -> None:
        """In however many frames it comes, padding does not count."""
        peer = Peer()
        peer.send(
            request(1, fields=self.FIELDS),
            frame(DATA, PADDED, 1, b"\x02thr" + bytes(2)),
            frame(DATA, PADDED | END_STREAM, 1, b"\x00ee"),
        )
        self.assertEqual(peer.resets(), [])
        last = peer.events[-1]
        assert isinstance(last, DataReceived)
        self.assertTrue(last.ended)

    def test_nothing(self) -> None:
        """A request that ends with its headers has a body of length 0."""
        peer = Peer()
        peer.send(request(1, end=True, fields=self.FIELDS))
        self.assertEqual(peer.resets(), [(1, ErrorCode.PROTOCOL_ERROR)])
        # What was never begun does not end either.
        self.assertEqual(peer.events, [])
        peer.send(request(3, end=True, fields=(*REQUEST, ("content-length", "0"))))
        self.assertIsInstance(peer.events[-1], RequestReceived)

    def test_trailers(self) -> None:
        """Trailers end a body like anything else."""
        trailers = frame(HEADERS, END_HEADERS | END_STREAM, 1, block(("trailer", "x")))
        for body, resets in ((b"four", [(1, ErrorCode.PROTOCOL_ERROR)]), (b"fives", [])):
            peer = Peer()
            peer.send(request(1, fields=self.FIELDS), frame(DATA, 0, 1, body), trailers)
            self.assertEqual(peer.resets(), resets)
