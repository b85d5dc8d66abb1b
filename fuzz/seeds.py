"""Seeds: input from which the fuzzer starts, so that it gets deep."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from dataclasses import dataclass

from artifactserver.access import METHODS
from artifactserver.rpc.http2 import PREFACE
from artifactserver.rpc.http2 import frames as wire
from fuzz import calls, frames
from fuzz.reading import Input
from fuzz.sessions import NAME, SESSIONS, UPLOAD
from tests.http2_peer import REQUEST, block

#: Longer conversations are of no use to a fuzzer.
MOST_BYTES = 20_000


@dataclass(frozen=True, slots=True)
class Seed:
    """Some input.

    :ivar target: the module that takes it.
    """

    target: str
    content: bytes


def by_hand() -> Iterator[Seed]:
    """Something of everything."""
    yield from _frames()
    yield from _headers()
    yield from _messages()
    yield from _names()
    yield from _calls()


def of_conversation(conversation: bytes) -> Iterator[Seed]:
    """What came on one connection, for each target that has to do with it."""
    assert conversation.startswith(PREFACE)
    yield Seed("frames", b"\x00\x00" + conversation[:MOST_BYTES])
    yield Seed("frames", bytes([frames.ANSWERED, 2, 100, 7]) + conversation[:MOST_BYTES])
    framed = blocks = b""
    bodies: dict[int, bytes] = {}
    position = len(PREFACE)
    while position + wire.FRAME_HEADER <= len(conversation):
        word, flags, stream = wire.read_frame_header(conversation, position)
        position += wire.FRAME_HEADER + (word >> 8)
        payload = conversation[position - (word >> 8) : position]
        if len(payload) < 256:
            framed += bytes([word & 0xFF, flags, stream & 0xFF, len(payload)]) + payload
        else:
            framed += bytes([word & 0xFF | 0x70, flags, stream & 0xFF, 100]) + payload[:100]
        if word & 0xFF == wire.HEADERS:
            blocks += len(payload).to_bytes(2, "big") + payload
            yield Seed("headers", len(payload).to_bytes(2, "big") + payload)
        elif word & 0xFF == wire.DATA:
            bodies[stream] = bodies.get(stream, b"") + payload
    yield Seed("headers", blocks)
    yield Seed("headers", blocks + b"".join(_on(connection, blocks) for connection in (1, 2)))
    framing = frames.GREETED | frames.FRAMED
    for modes in (framing, framing | frames.ANSWERED, framing | frames.ANSWERED | frames.LEAVING):
        yield Seed("frames", bytes([modes, 0]) + framed[:MOST_BYTES])
    for body in bodies.values():
        for encoding in (0, 1):
            yield Seed("messages", bytes([0, encoding, 3, 1, 2, 50]) + body[:MOST_BYTES])
        if body[:1] == b"\1":
            yield Seed("messages", b"\1" + body[5:MOST_BYTES])
        for what in (1, 2, 3):
            yield Seed("names", bytes([what]) + body[5:MOST_BYTES])


def _on(connection: int, blocks: bytes) -> bytes:
    """The same blocks on another connection."""
    out = b""
    given = Input(blocks)
    while given:
        block = given.piece(2)
        out += (connection << 13 | len(block)).to_bytes(2, "big") + block
    return out


def _calls() -> Iterator[Seed]:
    paths = {path.rpartition("/")[2]: number for number, path in enumerate(sorted(METHODS))}
    whole = b""
    for session in SESSIONS:
        for planned in session():
            messages = [message.SerializeToString() for message in planned.messages]
            content = b"".join(len(sent).to_bytes(2, "big") + sent for sent in messages)
            path = paths[planned.name]
            call = bytes([path, 0, len(messages)]) + content
            yield Seed("calls", call)
            yield Seed("calls", bytes([path, calls.GZIP | calls.ONE_BY_ONE, len(messages)]) + content)
            whole += call
    yield Seed("calls", whole)


def _frames() -> Iterator[Seed]:
    """Short conversations, each about one thing, and one about everything."""
    head = wire.headers_frame(1, block(*REQUEST), False)[wire.FRAME_HEADER :]
    request = _frame(wire.HEADERS, wire.END_HEADERS, 1, head)
    length = block(*REQUEST, ("content-length", "200"))
    many = block(*REQUEST, *[("a", "b")] * 15)
    conversations = {
        "body": [request, *[_frame(wire.DATA, 0, 1, bytes(100), 4)] * 12, _frame(wire.DATA, wire.END_STREAM, 1)],
        "padding": [request, _frame(wire.DATA, wire.PADDED | wire.END_STREAM, 1, b"\x07" + b"body" + bytes(7))],
        "window": [request, *[_frame(wire.DATA, 0, 1, bytes(100), 4)] * 2],
        "continuation": [
            _frame(wire.HEADERS, wire.PADDED | wire.PRIORITY_FLAG, 1, b"\3" + bytes(5) + head[:9] + bytes(3)),
            _frame(wire.CONTINUATION, 0, 1, head[9:12]),
            _frame(wire.CONTINUATION, wire.END_HEADERS | wire.END_STREAM, 1, head[12:]),
        ],
        "trailers": [
            request,
            _frame(wire.DATA, 0, 1, b"body"),
            _frame(wire.HEADERS, wire.END_HEADERS | wire.END_STREAM, 1, block(("trailer", "x"))),
        ],
        "content-length": [
            _frame(wire.HEADERS, wire.END_HEADERS, 1, length),
            _frame(wire.DATA, wire.END_STREAM, 1, bytes(100), 1),
            _frame(wire.HEADERS, wire.END_HEADERS, 3, length),
            _frame(wire.DATA, wire.END_STREAM, 3, bytes(100)),
        ],
        "resets": [_frame(wire.RST_STREAM, 0, 1, bytes(4)).join([request] * 2)],
        "settings": [
            request,
            _frame(wire.SETTINGS, 0, 0, b"\0\1\0\0\0\0" + b"\0\4\0\0\0\7" + b"\0\5\0\0\x40\1"),
            _frame(wire.WINDOW_UPDATE, 0, 1, b"\0\0\xff\xff"),
            _frame(wire.WINDOW_UPDATE, 0, 0, b"\0\0\xff\xff"),
            _frame(wire.DATA, wire.END_STREAM, 1),
        ],
        "control": [
            _frame(wire.PING, 0, 0, b"pingpong"),
            _frame(wire.PING, wire.ACK, 0, b"pingpong"),
            _frame(wire.GOAWAY, 0, 0, bytes(8)),
            _frame(wire.PRIORITY, 0, 9, bytes(5)),
            _frame(0x0B, 0xFF, 1, b"unknown"),
        ],
        "too many": [
            _frame(wire.HEADERS, wire.END_HEADERS | wire.END_STREAM, 1, many),
            *[_frame(wire.HEADERS, wire.END_HEADERS, number, head) for number in range(3, 21, 2)],
        ],
        "many bodies": [
            part
            for number in range(1, 41, 2)
            for part in (
                _frame(wire.HEADERS, wire.END_HEADERS, number, head),
                _frame(wire.DATA, wire.END_STREAM, number, bytes(90), 5),
            )
        ],
    }
    conversations["everything"] = [part for name in ("trailers", "control") for part in conversations[name]]
    for parts in conversations.values():
        for modes in range(16):
            if modes & frames.FRAMED:
                yield Seed("frames", bytes([modes, 1, 40]) + b"".join(parts))


def _frame(kind: int, flags: int, stream: int, payload: bytes = b"", doubled: int = 0) -> bytes:
    """A frame as the target takes it."""
    return bytes([kind | doubled << 4, flags, stream, len(payload)]) + payload


#: Of header blocks: what leaves the dynamic table alone, adds to it, refers to it; throws others out, is malformed.
PARTS = (
    b"\x00\x01c\x011",
    b"\x40\x01a\x011",
    b"\x40\x01a\x012",
    b"\x40\x01b\x011",
    b"\xbe",
    b"\xbf",
    b"\xc0",
    b"\x40\x01d\x7f\xdd\x0a" + b"v" * 1500,
    b"\x40\x01e\x7f\xdd\x0a" + b"v" * 1500,
    b"\x40\x01B\x011",
)
#: What may stand before: other sizes of the table.
SIZES = (b"\x20", b"\x3f\xe1\x1f", b"\x20\x3f\xe1\x1f")


def _headers() -> Iterator[Seed]:
    """Connections that say the same, each at its own pace, and now and then something else, or trailers."""
    chance = random.Random(1)  # noqa: S311
    for length, oddity in itertools.product((4, 8, 12, 20, 30), (0.02, 0.1, 0.3) * 3):
        script = [b"\x83\x86\x84" + b"".join(PARTS[1:4])]
        while len(script) < length:
            some = PARTS if chance.random() < oddity else PARTS[:7]
            parts = [chance.choice(some) for _ in range(chance.randint(0, 2))]
            start = chance.choice(SIZES) if chance.random() < oddity else b""
            script.append(start + b"\x83\x86\x84" + b"".join(parts))
        places = [0, 0, 0, 0]
        blocks = b""
        for _ in range(3 * length):
            connection = chance.randrange(4)
            block = script[places[connection] % length]
            if chance.random() < 0.1:
                block = chance.choice(script)
            elif chance.random() < 0.7:
                places[connection] += 1
            what = connection << 13 | (0x8000 if chance.random() < 0.03 else 0)
            blocks += (what | len(block)).to_bytes(2, "big") + block
        yield Seed("headers", blocks)


def _messages() -> Iterator[Seed]:
    """What stands in headers."""
    for timeout in (b"5S", b"99999999H", b"100m", b"7u", b"8n", b"1M"):
        yield Seed("messages", b"\2" + timeout)
    for binary in (b"", b"AAE", b"AAE=", b"/+8="):
        yield Seed("messages", b"\3" + binary)
    for text in ("", "it is not here", "50 % of \u00fc\U0001f600 "):
        yield Seed("messages", b"\4" + text.encode())
    yield Seed("messages", b"\5\x10application/grpc\x02" + b"5S" + b"\0\5x-bin\3AAE\4name\5value")


def _names() -> Iterator[Seed]:
    """Names of all forms, and numbers that are longer than they need be."""
    for name in (
        f"main/blobs/{NAME}",
        f"a/b/blobs/sha256/{NAME}/path/to/file",
        NAME,
        UPLOAD,
        f"uploads//blobs/{NAME}/",
        f"compressed-blobs/zstd/{NAME}",
    ):
        yield Seed("names", b"\0" + name.encode())
    for length in (b"\x03", b"\x83\x80\x80\x80\x00", b"\x83\x80\x80\x80\x80\x00"):
        yield Seed("names", b"\1\x0a\x01n\x10\x05\x18\x01\x52" + length + b"abc")
    yield Seed("names", b"\4" + bytes(7) + b"\x80" + bytes(range(32)) + b"\5hello\5" + b"content")
