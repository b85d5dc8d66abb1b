"""What gRPC adds to HTTP/2: messages in bodies, timeouts, binary metadata, status messages.

Input: a byte that says what is looked at, and for messages how the body was cut and compressed; the rest is what a
peer sent.
"""

from __future__ import annotations

import base64
import binascii
import re
import zlib
from urllib.parse import unquote_to_bytes

from google.protobuf.wrappers_pb2 import BytesValue

from artifactserver.rpc.codes import Code
from artifactserver.rpc.dispatch import Method
from artifactserver.rpc.http2.headers import RequestHead
from artifactserver.rpc.messages import (
    PREFIX,
    PREFIX_BYTES,
    BadMessage,
    MessageReader,
    decode_binary,
    encode_binary,
    encode_status_message,
    gunzip,
    is_grpc,
    metadata_of,
    parse_timeout,
    whole_message,
)
from artifactserver.rpc.requests import Impossible, NotGrpc, Wanted, read_request
from fuzz.reading import Input, cut

#: The longest message.
LIMIT = 3000

_ENCODINGS = (b"identity", b"gzip", b"deflate")
_SECONDS = {"H": 3600.0, "M": 60.0, "S": 1.0, "m": 1e-3, "u": 1e-6, "n": 1e-9}

#: What came of a body: the messages with their sizes on the wire, and whether something is missing; `None` if it was
#: refused, since what is wrong with it is said of the first thing that is found, and that depends on how it was cut.
Outcome = tuple[list[tuple[bytes, int]], bool] | None


def run(data: bytes) -> None:
    """Look at one thing."""
    given = Input(data)
    what = given.number() % 6
    if what == 0:
        _body(given)
    elif what == 1:
        _gzip(given.rest())
    elif what == 2:
        _timeout(given.rest())
    elif what == 3:
        _binary(given.rest())
    elif what == 4:
        _status_message(given.rest().decode("utf-8", "surrogateescape"))
    else:
        _request(given)


def _body(given: Input) -> None:
    """However a body was cut, the same messages are in it, and as many as a plain reading finds."""
    encoding = _ENCODINGS[given.number() % 3]
    places = given.piece(1)
    body = given.rest()
    whole = _read(encoding, [body])
    assert _read(encoding, cut(body, places)) == whole
    assert _read(encoding, [memoryview(piece) for piece in cut(body, places)]) == whole
    assert _plainly(encoding, body) == whole, whole
    one = whole_message(body, LIMIT)
    if one is not None:
        assert whole == ([(one, len(body))], False), (one, whole)
    elif whole is not None:
        assert len(whole[0]) != 1 or whole[1] or body[0] == 1


def _read(encoding: bytes, pieces: list[bytes] | list[memoryview]) -> Outcome:
    reader = MessageReader(LIMIT, encoding)
    messages: list[tuple[bytes, int]] = []
    for piece in pieces:
        try:
            for content, size in reader.feed(piece):
                messages.append((content if isinstance(content, bytes) else content.expand(), size))
        except BadMessage as problem:
            assert problem.code in (Code.INTERNAL, Code.RESOURCE_EXHAUSTED)
            return None
        assert reader.held <= LIMIT + PREFIX_BYTES
    return messages, reader.unfinished


def _plainly(encoding: bytes, body: bytes) -> Outcome:
    messages: list[tuple[bytes, int]] = []
    while len(body) >= PREFIX_BYTES:
        flag, length = PREFIX.unpack_from(body)
        if flag > 1 or length > LIMIT:
            return None
        message, body = body[PREFIX_BYTES : PREFIX_BYTES + length], body[PREFIX_BYTES + length :]
        if len(message) < length:
            return messages, True
        if flag:
            if encoding != b"gzip":
                return None
            try:
                message = gunzip(message, LIMIT)
            except BadMessage:
                return None
        messages.append((message, length + PREFIX_BYTES))
    return messages, bool(body)


def _gzip(message: bytes) -> None:
    """What is decompressed is what zlib makes of it in one go, and within the limit."""
    inflate = zlib.decompressobj(wbits=31)
    try:
        expected = inflate.decompress(message)
        sound = inflate.eof and not inflate.unused_data and len(expected) <= LIMIT
    except zlib.error:
        expected, sound = b"", False
    try:
        content = gunzip(message, LIMIT)
    except BadMessage as problem:
        assert not sound
        assert problem.code in (Code.INTERNAL, Code.RESOURCE_EXHAUSTED)
    else:
        assert sound and content == expected


def _timeout(value: bytes) -> None:
    text = value.decode("latin-1")
    sound = re.fullmatch("[0-9]{1,8}[HMSmun]", text) is not None
    try:
        seconds = parse_timeout(value)
    except BadMessage as problem:
        assert not sound and problem.code is Code.INVALID_ARGUMENT
    else:
        assert sound and seconds == int(text[:-1]) * _SECONDS[text[-1]] >= 0


def _binary(value: bytes) -> None:
    try:
        content = decode_binary(value)
    except BadMessage as problem:
        assert problem.code is Code.INTERNAL
        try:
            base64.b64decode(value + b"==", validate=True)
        except binascii.Error:
            return
        # Too much padding is the one thing that Python would bear.
        assert b"=" in value, value
    else:
        assert decode_binary(encode_binary(content)) == content
        assert len(content) <= len(value)


def _status_message(text: str) -> None:
    encoded = encode_status_message(text)
    assert re.fullmatch(rb"([!-~]([ -~]*[!-~])?)?", encoded), encoded
    said = text.encode("utf-8", "replace")
    assert said.startswith(unquote_to_bytes(encoded))
    assert unquote_to_bytes(encoded) == said or len(encoded) > 4000
    encode_status_message(text, 40)


class _Routes:
    """Every second path has a method."""

    def find(self, path: str) -> Method | None:
        return _METHOD if len(path) % 2 else None

    def refusal(self, caller: object, path: str) -> None:
        return None


_METHOD = Method(
    "/a.B/C", BytesValue, bytes, BytesValue, streams_in=False, streams_out=False, handler=lambda: None, yields=False
)


def _request(given: Input) -> None:
    """Any headers that HTTP/2 lets through."""
    fields = [(b"content-type", given.piece(1)), (b"grpc-timeout", given.piece(1))]
    if given.number() % 2:
        fields = [(b"content-type", b"application/grpc")]
    while given:
        name = bytes(0x21 + byte % 0x20 if byte > 0x7E or byte < 0x21 else byte for byte in given.piece(1)).lower()
        fields.append((name or b"x-bin", given.piece(1).strip(b" \t")))
    head = RequestHead(b"POST", b"/a.B/C", b"", None, tuple(fields))
    wanted = read_request(head, _Routes())
    assert isinstance(wanted, (Wanted, NotGrpc, Impossible))
    grpc = [value for name, value in fields if name == b"content-type"][-1]
    assert isinstance(wanted, NotGrpc) != is_grpc(grpc)
    if isinstance(wanted, Wanted):
        assert wanted.metadata == metadata_of(fields)
        for key, content in wanted.metadata.items():
            assert isinstance(content, bytes) == key.endswith("-bin"), key
