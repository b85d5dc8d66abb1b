"""A whole connection: whatever a client sends, the engine answers it or sends it away.

Input: a byte of modes, a byte of length and as many lengths that say how the bytes are cut, and then what the client
sends: as it stands, or with `FRAMED` as frames whose lengths are always right, each as type, flags, stream, a byte of
length, and payload.  The higher half of the type says how often the payload is doubled.
"""

from __future__ import annotations

from dataclasses import replace

from artifactserver.rpc.http2 import (
    PREFACE,
    Beginnings,
    Connection,
    ConnectionFailed,
    DataReceived,
    ErrorCode,
    Event,
    Limits,
    RequestReceived,
    RequestRefused,
    Stream,
    StreamReset,
    encode,
)
from artifactserver.rpc.http2 import frames as wire
from fuzz.reading import Input, cut

#: The client's preface and first SETTINGS are sent before.
GREETED = 0x01
#: What follows is frames without their lengths.
FRAMED = 0x02
#: Requests are answered, each in a way that its number says; without it they are not, and what the bytes mean must not
#: depend on how they were cut.
ANSWERED = 0x04
#: In mid-conversation, the server begins to go away.
LEAVING = 0x08

#: Small, so that all of them are met.
LIMITS = Limits(
    frame_bytes=16 * 1024,
    control_frame_bytes=60,
    header_block_bytes=600,
    header_list_bytes=1000,
    header_count=20,
    header_blocks_cached=3,
    continuations=3,
    streams_open=6,
    resets_burst=12,
    chores_burst=40,
    control_frames_queued=50,
    stream_window=3000,
    connection_window=66_000,
    message_bytes=2000,
)

#: How much waits to be sent does depend on how the bytes were cut.
_PATIENT = replace(LIMITS, control_frames_queued=100_000)

HEAD = encode([(b"content-type", b"application/grpc")], status=200)
TAIL = encode([(b"grpc-status", b"0")])
BODY = bytes(range(256)) * 400

_GREETING = PREFACE + wire.settings_frame({}) + wire.SETTINGS_ACK


def run(data: bytes) -> None:
    """Hold one conversation."""
    given = Input(data)
    modes = given.number()
    places = given.piece(1)
    content = _framed(given) if modes & FRAMED else given.rest()
    if modes & GREETED:
        content = _GREETING + content
    answers = bool(modes & ANSWERED)
    beginnings = Beginnings(LIMITS)
    conversation = Conversation(beginnings, cut(content, places), answers=answers, leaves=bool(modes & LEAVING))
    if not answers and not modes & LEAVING:
        # The second one remembers how the first began.
        assert conversation.told == Conversation(beginnings, [content], answers=False, leaves=False).told


def _framed(given: Input) -> bytes:
    out = []
    while given:
        kind, flags, stream = given.number(), given.number(), given.number()
        payload = given.piece(1) * 2 ** (kind >> 4 & 7)
        out.append(wire.frame_header(len(payload) << 8 | kind & 0x0F, flags, stream) + payload)
    return b"".join(out)


class Conversation:
    """One client's bytes, and a server's answers.

    :ivar told: the events, in a form in which adjacent data is one.
    """

    def __init__(self, beginnings: Beginnings, pieces: list[bytes], *, answers: bool, leaves: bool) -> None:
        self.engine = Connection(LIMITS if answers else _PATIENT, beginnings)
        self.told: list[tuple[object, ...]] = []
        self._answers = answers
        # Streams that began, those that were too much, those whose request has ended, and the body bytes of each that
        # were not given back.
        self._streams: dict[int, Stream] = {}
        self._refused: set[int] = set()
        self._ended: set[int] = set()
        self._kept: dict[int, int] = {}
        self._failed = False
        self.engine.start()
        for number, piece in enumerate(pieces):
            for event in self.engine.receive(piece, number / 100 if answers else 0.0):
                assert not self._failed, "told of something after the end"
                self._event(event)
                self._note(event)
            if leaves:
                self._leave(number)
            self._check()
            self._take()
        for stream in list(self._streams.values()):
            self._answer(stream)
        self._take()
        self._check()

    def _leave(self, number: int) -> None:
        if number == 1:
            self.engine.announce_goaway()
            self.engine.ping(b"goaway\0\0")
        elif number > 2:
            self.engine.goaway()

    def _event(self, event: Event) -> None:
        if isinstance(event, (RequestReceived, RequestRefused)):
            self._begins(event)
        elif isinstance(event, DataReceived):
            self._arrives(event)
        elif isinstance(event, StreamReset):
            stream = event.stream
            assert self._streams[stream.id] is stream
            assert not stream.local_open and not stream.remote_open
            self._give_back(stream)
        elif isinstance(event, ConnectionFailed):
            self._failed = True

    def _begins(self, event: RequestReceived | RequestRefused) -> None:
        stream = event.stream
        assert stream.id not in self._streams and stream.id & 1
        self._streams[stream.id] = stream
        self._kept[stream.id] = 0
        if isinstance(event, RequestRefused):
            self._refused.add(stream.id)
            if stream.local_open and self._answers:
                self.engine.sender.headers(stream, TAIL, end=True)
            return
        if event.ended:
            self._ended.add(stream.id)
        if event.ended or self._way(stream) == 1:
            self._answer(stream)

    def _arrives(self, event: DataReceived) -> None:
        stream = event.stream
        assert self._streams[stream.id] is stream and stream.id not in self._ended
        self._kept[stream.id] += len(event.payload)
        if event.ended:
            self._ended.add(stream.id)
        if self._answers and self._way(stream) == 2:
            self.engine.reset(stream, ErrorCode.CANCEL)
        if self._way(stream) != 3 or not stream.remote_open:
            self._give_back(stream)
        if event.ended:
            self._answer(stream)

    def _give_back(self, stream: Stream) -> None:
        if self._answers:
            size, self._kept[stream.id] = self._kept[stream.id], 0
            self.engine.release(size)
            self.engine.release_stream(stream, size)

    def _way(self, stream: Stream) -> int:
        """How to go about a request: 0 in full, 1 early, 2 reset, 3 late, 4 in one piece, 5 in many."""
        return stream.id // 2 % 6

    def _answer(self, stream: Stream) -> None:
        if not self._answers or not stream.local_open or stream.tail is not None:
            return
        sender = self.engine.sender
        way = self._way(stream)
        if way == 4:
            sender.answer(stream, HEAD, (b"\0\0\0\0\1", b"x"), TAIL)
            return
        sender.headers(stream, HEAD)
        for size in (len(BODY),) if way != 5 else (1, 100, 5000, 0, 30_000):
            sender.data(stream, BODY[:size])
        sender.finish(stream, TAIL)

    def _take(self) -> None:
        """Take what is to be sent, unless too much of it is; all of it is whole frames."""
        out = self.engine.sender.take(20_000)
        position = 0
        while position < len(out):
            word, _, stream = wire.read_frame_header(out, position)
            kind, length = word & 0xFF, word >> 8
            assert length <= max(self.engine.sender.frame_bytes, wire.DEFAULT_FRAME_BYTES)
            assert kind != wire.DATA or stream in self._streams
            position += wire.FRAME_HEADER + length
        assert position == len(out)
        assert not self._failed or not self.engine.sender.take()

    def _check(self) -> None:
        """The books are right: streams, windows, and what waits."""
        engine = self.engine
        assert engine.failed == self._failed
        if engine.failed:
            assert not engine.streams and engine.sender.owed == 0
            return
        assert len(engine.streams) <= LIMITS.streams_open
        assert engine.sender.owed == sum(stream.queued for stream in engine.streams.values())
        coming = engine._flowing if engine._data_flows else 0
        for number, stream in engine.streams.items():
            assert self._streams[number] is stream
            assert stream.local_open
            assert stream.remote_open == (number not in self._ended) or number in self._refused
            assert stream.queued == sum(map(len, stream.queue or ())) - stream.offset
            assert stream.send_window <= wire.MAX_WINDOW
            if stream.remote_open:
                counted = self._kept[number] + (coming if engine._data_stream is stream else 0)
                assert stream.receive_window + stream.unreturned + counted == engine._stream_window
        window = engine._window
        assert window._outstanding == coming + sum(self._kept.values())
        held = window._left + window._outstanding + window._consumed
        assert window._left >= 0 and LIMITS.connection_window <= held

    def _note(self, event: Event) -> None:
        if isinstance(event, DataReceived):
            before = self.told[-1] if self.told else ()
            payload = bytes(event.payload)
            if before[:2] == ("data", event.stream.id) and isinstance(before[2], bytes):
                payload = before[2] + payload
                self.told.pop()
            self.told.append(("data", event.stream.id, payload, event.ended))
        elif isinstance(event, (RequestReceived, RequestRefused, StreamReset)):
            if isinstance(event, StreamReset):
                # A frame that breaks content-length is refused at its start, if all of it is there.
                self.told = [each for each in self.told if each[:2] != ("data", event.stream.id)]
            head = event.head.fields if isinstance(event, RequestReceived) else getattr(event, "code", None)
            self.told.append((type(event).__name__, event.stream.id, head))
        else:
            self.told.append((event,))
