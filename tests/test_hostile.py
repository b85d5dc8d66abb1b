"""A real server under attack, over real sockets.

Each test is one kind of attack.  While it lasts and when it is over, `tests.attacks.AttackTestCase.attack` sees to it
that another client is served, that memory stays below `tests.attacks.MOST_MEMORY`, that descriptors come back, and that
the log has no more than so many lines.
"""

from __future__ import annotations

import contextlib
import gzip
import os
import random
import socket
import ssl
import struct
import time
from collections.abc import Iterator

from hpack import Encoder

from artifactserver.proto import bytestream_pb2 as bytestream
from artifactserver.proto import remote_execution_pb2 as reapi
from artifactserver.rpc.http2 import ErrorCode
from artifactserver.store.digest import Digest
from tests import http2_peer as wire
from tests.attacks import HELLO, READ_BLOB, Attacker, AttackTestCase, call, ends_call, head, wait_until
from tests.http2_peer import frame, message, settings, window_update
from tests.small_server import LIMITS, PER_ADDRESS, SAY_SECONDS, UNDECIDED

CALM = ErrorCode.ENHANCE_YOUR_CALM
EMPTY = reapi.GetCapabilitiesRequest()
WATCH = message(b"")

#: Windows as large as they can be.
OPEN_WINDOWS = wire.PREFACE + settings((4, 2**31 - 1)) + window_update(0, 2**31 - 1 - 65_535)


def upload(size: int = 1_000_000, sent: int = 200_000) -> bytes:
    """The beginning of a large upload that nobody has seen, on stream 1."""
    content = os.urandom(sent)
    name = f"uploads/u/blobs/{Digest.of(content).hex}/{size}"
    request = bytestream.WriteRequest(resource_name=name, data=content)
    return call(1, "Write", request, end=False)


class FloodTests(AttackTestCase):
    """Frames that cost a client nothing, without end."""

    def test_rapid_reset(self) -> None:
        """Calls that are begun and reset, over and over, cost the connection."""
        with self.attack():
            attacker = self.connect()
            reset = bytes(4)
            for start in range(1, 20_001, 1000):
                calls = [head(number, "Watch") + frame(wire.RST_STREAM, 0, number, reset) for number in odd(start, 500)]
                attacker.send(*calls)
            self.assertEqual(attacker.sent_away(), CALM)

    def test_made_to_reset(self) -> None:
        """It is the same when the server is made to do the resetting, and when the calls are whole."""
        with self.attack(lines=2):
            for bad in (head(1, "Watch", ("Upper", "case")), head(1, "Watch", ("connection", "close"))):
                attacker = self.connect()
                for start in range(1, 20_001, 1000):
                    attacker.send(*[bad[:5] + struct.pack(">L", number) + bad[9:] for number in odd(start, 500)])
                self.assertEqual(attacker.sent_away(), CALM)

    def test_continuation(self) -> None:
        """A header block that does not end costs the connection, be its parts empty or not."""
        with self.attack(lines=3):
            for part in (b"", b"\0\1x\1y" * 10, bytes(16_000)):
                attacker = self.connect()
                attacker.send(frame(wire.HEADERS, 0, 1, head(1, "Watch")[9:]))
                attacker.send(frame(wire.CONTINUATION, 0, 1, part) * 5000)
                self.assertEqual(attacker.sent_away(), CALM)

    def test_chores(self) -> None:
        """Frames that do nothing cost the connection when there are very many of them."""
        chores = (
            frame(wire.PING, payload=bytes(8)),
            frame(wire.PING, wire.ACK, payload=bytes(8)),
            settings((4, 1000)),
            settings(),
            frame(wire.PRIORITY, 0, 1, bytes(5)),
            frame(0x77, payload=b"what?"),
            frame(wire.DATA, 0, 1),
            frame(wire.DATA, wire.PADDED, 1, b"\0"),
        )
        with self.attack(lines=len(chores)):
            for chore in chores:
                attacker = self.connect()
                attacker.send(head(1, "Write"))
                attacker.send(chore * 20_000)
                self.assertEqual(attacker.sent_away(), CALM, chore)

    def test_window_updates(self) -> None:
        """Window, given in very small parts, is taken as it is; what it costs is in proportion."""
        with self.attack(lines=0):
            attacker = self.connect()
            attacker.send(window_update(0, 1) * 50_000, call(1, "GetCapabilities", EMPTY))
            self.assertTrue(attacker.heard(lambda each: each.stream == 1))

    def test_many_at_once(self) -> None:
        """Fifty connections that do so are a few lines of the log, and then a number."""
        with self.attack(lines=25):
            attackers = [self.connect() for _ in range(50)]
            for attacker in attackers:
                attacker.send(frame(wire.PING, payload=bytes(8)) * 6000)
            # Who reads so late may find that the server has gone before it has read why.
            self.assertLessEqual({attacker.sent_away() for attacker in attackers}, {CALM, None})

    def test_noise(self) -> None:
        """Nonsense, with a preface and without, is answered by an end."""
        chance = random.Random("noise")
        with self.attack(lines=25):
            for number in range(200):
                attacker = self.connect(HELLO if number % 2 else b"")
                attacker.send(chance.randbytes(chance.randrange(1, 3000)))
                attacker.close()


class HeaderTests(AttackTestCase):
    """Headers that are larger than they look."""

    def test_bomb(self) -> None:
        """A byte for each of thousands of large fields costs the connection, and no memory."""
        with self.attack(lines=5):
            for _ in range(5):
                encoder = Encoder()
                fields = [("x", "y" * 3000)]
                first = encoder.encode([*wire.REQUEST, *fields])
                again = encoder.encode(fields)
                attacker = self.connect()
                attacker.send(frame(wire.HEADERS, 5, 1, first), frame(wire.HEADERS, 5, 3, again * 16_000))
                self.assertEqual(attacker.sent_away(), ErrorCode.COMPRESSION_ERROR)

    def test_too_many(self) -> None:
        """Headers beyond the bound are answered, and a client that sends them all the time is sent away."""
        huge = head(1, "Watch", *[("a", "b")] * 125, end=True)
        with self.attack():
            attacker = self.connect()
            attacker.send(huge)
            self.assertTrue(attacker.heard(ends_call))
            for start in range(3, 6003, 1000):
                attacker.send(*[huge[:5] + struct.pack(">L", number) + huge[9:] for number in odd(start, 500)])
            self.assertEqual(attacker.sent_away(), CALM)

    def test_never_the_same(self) -> None:
        """Long headers, each different from all before, are answered, and not remembered."""
        with self.attack(lines=0):
            for _ in range(3):
                attacker = self.connect()
                for number in odd(1, 200):
                    more = [(f"x-{field}", f"{number}" + "v" * 1000) for field in range(12)]
                    attacker.send(call(number, "GetCapabilities", EMPTY, *more))
                attacker.heard(lambda each: each.stream == 399 and ends_call(each))


class SlowTests(AttackTestCase):
    """Clients that take their time, or all of it."""

    def test_say_little(self) -> None:
        """Who says nothing, or not to the end, or a byte now and then, is let go after a time, without a line each."""
        beginnings = {
            "nothing": b"",
            "half a preface": wire.PREFACE[:10],
            "a preface": wire.PREFACE,
            "half a frame": HELLO + frame(wire.PING, payload=bytes(8))[:12],
            "half a header block": HELLO + frame(wire.HEADERS, 0, 1, b"\x82"),
            "half a request": b"GET / HTTP/1.1\r\nHost: x\r\n",
        }
        slowly = HELLO + head(1, "Watch")
        with self.attack(lines=25):
            silent = [self.connect(beginning) for beginning in beginnings.values() for _ in range(10)]
            slow = [self.connect(slowly[:-40]) for _ in range(10)]
            began = time.monotonic()
            for byte in slowly[-40:]:
                for attacker in slow:
                    attacker.send(bytes([byte]))
                if time.monotonic() - began > 3 * SAY_SECONDS:
                    break
                time.sleep(SAY_SECONDS / 5)
            for attacker in (*silent, *slow):
                attacker.heard()
            self.assertLess(time.monotonic() - began, 5 * SAY_SECONDS)

    def test_stand_still(self) -> None:
        """Calls that stand still, or nearly, end after a time: uploads, requests, answers that nobody reads."""
        name = f"uploads/u/blobs/{'0' * 64}/"
        small = bytestream.WriteRequest(resource_name=f"{name}60000", data=bytes(30_000))
        with self.attack(lines=25):
            still = {
                "an upload": HELLO + upload(),
                "a small upload": HELLO + call(1, "Write", small, end=False),
                "half a message": HELLO + call(1, "BatchUpdateBlobs", b"\0\0\1\0\0" + bytes(1000), end=False),
                "no message": HELLO + head(1, "GetCapabilities"),
                "no window": wire.PREFACE + settings((4, 0)) + call(1, "Read", READ_BLOB),
            }
            attackers = [self.connect(beginning) for beginning in still.values() for _ in range(3)]
            trickling = [self.connect(HELLO + upload()) for _ in range(3)]
            sipping = [self.connect(wire.PREFACE + settings((4, 0)) + call(1, "Read", READ_BLOB)) for _ in range(3)]
            began = time.monotonic()
            while time.monotonic() - began < 2 * LIMITS.stalled_upload_seconds:
                for attacker in trickling:
                    attacker.send(frame(wire.DATA, 0, 1, b"\0"))
                for attacker in sipping:
                    attacker.send(window_update(1, 1))
                time.sleep(0.1)
            for attacker in (*attackers, *trickling, *sipping):
                self.assertTrue(any(map(ends_call, attacker.heard(ends_call))))

    def test_hold_room(self) -> None:
        """Uploads that come, but too slowly for the room that they hold, lose it, and are told so."""
        size = 10_000_000
        digest = Digest.of(os.urandom(10))
        name = f"uploads/u/blobs/{digest.hex}/{size}"
        with self.attack(lines=10):
            attackers = [self.connect(HELLO + head(1, "Write")) for _ in range(3)]
            began = time.monotonic()
            for start in range(0, size, 10_000):
                part = bytestream.WriteRequest(resource_name=name, write_offset=start, data=bytes(10_000))
                for attacker in attackers:
                    attacker.send(frame(wire.DATA, 0, 1, message(part.SerializeToString())))
                time.sleep(0.4)
                if not os.listdir(self.server.repo / "incoming") and start > 50_000:
                    break
            self.assertLess(time.monotonic() - began, 8)
            for attacker in attackers:
                (last,) = [each for each in attacker.heard(ends_call) if ends_call(each) and each.kind == wire.HEADERS]
                self.assertIn(b"too few to keep room", last.payload)

    def test_never_read(self) -> None:
        """Clients that ask for much and read nothing are cut off, and hold no more than is allowed until then."""
        with self.attack(lines=30):
            greeting = OPEN_WINDOWS + call(1, "Read", READ_BLOB)
            attackers = [self.connect(greeting, buffer=4096) for _ in range(30)]
            for attacker in attackers[:10]:
                attacker.send(*[call(number, "Read", READ_BLOB) for number in odd(3, 50)])
            wait_until(lambda: self.reads() > 0, "nothing is read")
            wait_until(lambda: self.reads() == 0, "it is still read")

    def test_window_of_one_byte(self) -> None:
        """A large answer that is taken byte by byte costs in proportion to the bytes, and not to what waits."""
        with self.attack(lines=0):
            attacker = self.connect(wire.PREFACE + settings((4, 0)) + call(1, "Read", READ_BLOB))
            before = self.cpu()
            for _ in range(500):
                attacker.send(window_update(1, 1))
                last = attacker.heard(lambda each: each.kind == wire.DATA)[-1]
                self.assertEqual(len(last.payload), 1)
            self.assertLess(self.cpu() - before, 1.0)
            self.assertTrue(any(map(ends_call, attacker.heard(ends_call))))

    def test_http1(self) -> None:
        """Of HTTP/1.1 too: what is too long, never ends, or is never read."""
        with self.attack(lines=0):
            long = self.connect(b"GET / HTTP/1.1\r\nHost: x\r\nCookie: " + b"c" * 20_000 + b"\r\n\r\n")
            self.assertTrue(long.socket.recv(100).startswith(b"HTTP/1.1 431 "))
            endless = self.connect(b"GET / HTTP/1.1\r\nHost: x\r\n")
            greedy = self.connect(b"")
            greedy.socket.settimeout(1)
            greedy.send(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n" * 100_000)
            for _ in range(200):
                endless.send(b"a: b\r\n" * 100)
            for attacker in (long, endless, greedy):
                attacker.close()

    def test_tls_on_a_clear_port(self) -> None:
        """A thousand clients that try TLS where there is none are one line."""
        with self.attack():
            for _ in range(500):
                self.connect(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03").close()


class CrowdTests(AttackTestCase):
    """Very many at once."""

    def test_connections(self) -> None:
        """A thousand idle connections are fine; beyond the bound for one address they are closed, and others get in."""
        with self.attack(lines=1):
            idle = [self.connect() for _ in range(1000)]
            more = [self.connect() for _ in range(PER_ADDRESS - 1000 + 20)]
            closed = [attacker for attacker in more if not attacker.heard(lambda each: True)]
            self.assertTrue(20 <= len(closed) <= 22, len(closed))
            other = self.connect(HELLO + call(1, "GetCapabilities", EMPTY), source="127.0.0.2")
            self.assertTrue(other.heard(lambda each: each.stream == 1))
            for attacker in (*idle[::7], idle[-1]):
                attacker.send(call(1, "GetCapabilities", EMPTY))
                self.assertTrue(attacker.heard(lambda each: each.stream == 1))
            for attacker in (*idle, *more, other):
                attacker.close()

    def test_calls(self) -> None:
        """A thousand calls on one connection run side by side; one more is refused, and the others go on."""
        with self.attack(lines=0):
            attacker = self.connect()
            attacker.send(*[call(number, "Watch", WATCH) for number in odd(1, 1000)])
            attacker.send(call(2001, "Watch", WATCH), call(2003, "GetCapabilities", EMPTY))
            heard = attacker.heard(lambda each: each.stream == 2003)
            self.assertEqual(len({each.stream for each in heard if each.kind == wire.DATA}), 1000)
            refused = {each.stream: each.number for each in heard if each.kind == wire.RST_STREAM}
            self.assertEqual(refused, dict.fromkeys((2001, 2003), int(ErrorCode.REFUSED_STREAM)))
            attacker.close()

    def test_calls_everywhere(self) -> None:
        """Very many calls on many connections are more than is held for all: some are reset, and memory is bounded."""
        with self.attack(lines=25):
            attackers = [self.connect() for _ in range(12)]
            for attacker in attackers:
                attacker.send(*[call(number, "Watch", WATCH) for number in odd(1, 500)])
            resets = 0
            for attacker in attackers:
                attacker.send(frame(wire.PING, payload=bytes(8)))
                heard = attacker.heard(lambda each: each.kind == wire.PING)
                resets += sum(each.kind == wire.RST_STREAM and each.number == CALM for each in heard)
                attacker.close()
            self.assertGreater(resets, 1000)

    def test_bombs(self) -> None:
        """Compressed messages that grow a thousandfold are worked on a few at a time."""
        blob = bytes(1_900_000)
        request = reapi.BatchUpdateBlobsRequest()
        request.requests.add(digest=reapi.Digest(hash="0" * 64, size_bytes=len(blob)), data=blob)
        large = message(gzip.compress(request.SerializeToString()), 1)
        digest = Digest.of(blob)
        name = f"uploads/u/blobs/{digest.hex}/{100 * len(blob)}"
        parts = bytestream.WriteRequest(write_offset=1000, data=blob).SerializeToString()
        first = message(bytestream.WriteRequest(resource_name=name, data=bytes(1000)).SerializeToString())
        stream = first + message(gzip.compress(parts), 1) * 200
        compressed = ("grpc-encoding", "gzip")
        # With bounds as small as here, those that are worked on are more than may be held, and some are given up.
        with self.attack(lines=20):
            attackers = [self.connect() for _ in range(2)]
            for attacker in attackers:
                attacker.send(*[call(number, "BatchUpdateBlobs", large, compressed) for number in odd(1, 50)])
                attacker.send(*[call(number, "Write", stream, compressed, end=False) for number in odd(201, 5)])
            for attacker in attackers:
                attacker.heard(lambda each: each.stream == 99 and ends_call(each))


class DeathTests(AttackTestCase):
    """Clients that die."""

    def test_in_every_phase(self) -> None:
        """Wherever a client is when it dies, and however it dies, nothing is left of it."""
        batch = reapi.BatchUpdateBlobsRequest()
        batch.requests.add(digest=reapi.Digest(hash="0" * 64, size_bytes=10), data=b"0123456789")
        phases = {
            "at once": b"",
            "in the preface": wire.PREFACE[:20],
            "after the preface": wire.PREFACE,
            "in SETTINGS": (wire.PREFACE + settings((4, 1000)))[:-3],
            "after the greeting": HELLO,
            "in headers": HELLO + head(1, "Write")[:-10],
            "between headers and continuation": HELLO + frame(wire.HEADERS, 0, 1, b"\x82"),
            "after headers": HELLO + head(1, "BatchUpdateBlobs"),
            "before a message is whole": HELLO + call(1, "BatchUpdateBlobs", batch)[:-5],
            "before the request ends": HELLO + call(1, "BatchUpdateBlobs", batch, end=False),
            "when the request is whole": HELLO + call(1, "BatchUpdateBlobs", batch),
            "while a handler waits": HELLO + call(1, "Watch", WATCH),
            "in an upload with its space reserved": HELLO + upload(),
            "in an upload, in a message": HELLO + upload() + frame(wire.DATA, 0, 1, b"\0\0\1\0\0" + bytes(30_000)),
            "while an answer is sent": OPEN_WINDOWS + call(1, "Read", READ_BLOB),
            "while an answer waits": HELLO + call(1, "Read", READ_BLOB),
            "having broken a rule": HELLO + call(1, "Watch", WATCH) + frame(wire.DATA, 0, 99, b"x"),
            "in an HTTP/1.1 request": b"PUT / HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\nabc",
        }
        with self.attack(lines=25):
            for phase, said in phases.items():
                for end in (Attacker.close, half_close, cut_off):
                    for pause in (0.0, 0.01):
                        attackers = [self.connect(said) for _ in range(3)]
                        if phase == "while an answer is sent":
                            attackers[0].socket.recv(10_000)
                        time.sleep(pause)
                        for attacker in attackers:
                            end(attacker)
        self.assertEqual(os.listdir(self.server.repo / "incoming"), [])

    def test_all_at_once(self) -> None:
        """A hundred uploads that end together leave nothing either."""
        with self.attack(lines=0):
            attackers = [self.connect(HELLO + upload()) for _ in range(100)]
            wait_until(lambda: len(os.listdir(self.server.repo / "incoming")) > 50, "the uploads do not begin")
            for attacker in attackers:
                cut_off(attacker)


class TlsTests(AttackTestCase):
    """Where there is TLS."""

    tls = True

    def connect_tls(self, buffer: int | None = None) -> Attacker:
        """A connection whose handshake is done."""
        attacker = self.connect(b"", buffer=buffer)
        context = ssl.create_default_context(cadata=(self.target.pem or b"").decode("ascii"))
        context.set_alpn_protocols(["h2"])
        attacker.socket = context.wrap_socket(attacker.socket, server_hostname="localhost")
        self.addCleanup(attacker.close)
        return attacker

    def test_handshakes(self) -> None:
        """Who does not come to the end of the handshake, or says nothing after it, is let go after a time."""
        hello = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"
        context = ssl.create_default_context()
        offer = ssl.MemoryBIO()
        with contextlib.suppress(ssl.SSLWantReadError):
            context.wrap_bio(ssl.MemoryBIO(), offer, server_hostname="localhost").do_handshake()
        # With the whole of it the server has said all that it can before it hears more.
        whole_hello = offer.read()
        with self.attack(lines=1):
            beginnings = (b"", hello[:3], hello, whole_hello)
            attackers = [self.connect(beginning) for beginning in beginnings for _ in range(100)]
            silent = [self.connect_tls() for _ in range(20)]
            for number in range(60):
                cut_off(self.connect(hello if number % 2 else b""))
                if number % 2:
                    answer = self.connect(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").socket.recv(1000)
                    self.assertTrue(answer.startswith(b"HTTP/1.1 400 "), answer)
                else:
                    self.assertEqual(self.connect(HELLO).heard(), [])
            began = time.monotonic()
            for attacker in (*attackers, *silent):
                with contextlib.suppress(ConnectionResetError):
                    while attacker.socket.recv(65536):
                        pass
            self.assertLess(time.monotonic() - began, 5 * SAY_SECONDS)

    def test_stalled_crowd(self) -> None:
        """Very many who do not come to the end of the handshake have to make room for those who do."""
        with self.attack(lines=2):
            stalled = [self.connect(beginning) for beginning in (b"", b"\x16\x03\x01\x02\x00") * (UNDECIDED * 2 // 3)]
            newcomer = self.connect_tls()
            newcomer.send(HELLO, call(1, "GetCapabilities", EMPTY))
            self.assertTrue(newcomer.heard(lambda each: each.stream == 1))
            stalled[0].socket.settimeout(SAY_SECONDS / 2)
            self.assertTrue(closed(stalled[0]))
            self.assertIn(f"{UNDECIDED} at once that have not shown yet", self.server.said())

    def test_floods(self) -> None:
        """A connection that is sent away is really closed, with the reason, over TLS too."""
        with self.attack(lines=3):
            for flood in (frame(wire.PING, payload=bytes(8)) * 8000, frame(wire.DATA, 0, 99, b"x")):
                attacker = self.connect_tls()
                attacker.send(HELLO, flood)
                self.assertIn(attacker.sent_away(), (CALM, ErrorCode.PROTOCOL_ERROR))

    def test_never_read(self) -> None:
        """Answers that nobody reads are bounded as they are without TLS."""
        with self.attack(lines=25):
            for _ in range(20):
                attacker = self.connect_tls(buffer=4096)
                attacker.send(OPEN_WINDOWS, *[call(number, "Read", READ_BLOB) for number in odd(1, 10)])
            wait_until(lambda: self.reads() > 0, "nothing is read")
            wait_until(lambda: self.reads() == 0, "it is still read")


def closed(attacker: Attacker) -> bool:
    """Whether the server has closed a connection on which it says nothing."""
    try:
        return not attacker.socket.recv(1)
    except ConnectionResetError:
        return True


def odd(first: int, count: int) -> Iterator[int]:
    """Numbers for streams."""
    return iter(range(first, first + 2 * count, 2))


def half_close(attacker: Attacker) -> None:
    """Say that nothing more will come, and go when the server has had a moment to notice."""
    attacker.socket.shutdown(socket.SHUT_WR)
    attacker.close()


def cut_off(attacker: Attacker) -> None:
    """Go as a machine goes that loses its power and comes back: with a reset."""
    attacker.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    attacker.close()
