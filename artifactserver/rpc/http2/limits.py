"""Every bound of the transport, in one place.

Whatever a peer can make grow has its bound here, and a test that shrinks it (``tests/test_limits.py``).
"""

from __future__ import annotations

from dataclasses import dataclass

KiB = 1024
MiB = 1024 * KiB

#: What one batch may carry: REAPI clients keep the blobs of a batch below this, gRPC's usual limit for a message.
BATCH_PAYLOAD = 4 * MiB
#: What a message may need besides its payload: digests, resource names, field headers.
ENVELOPE = 1 * MiB
#: What precedes every message of gRPC: a flag and a length.
MESSAGE_PREFIX = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Bounds of one connection, unless a name says otherwise.  Sizes are bytes, times are seconds.

    :ivar frame_bytes: the largest frame payload we announce and accept (SETTINGS_MAX_FRAME_SIZE).
    :ivar control_frame_bytes: the largest SETTINGS frame we read.
    :ivar header_block_bytes: the largest header block on the wire, over all its CONTINUATION frames.
    :ivar header_list_bytes: the largest header list, counted as HPACK does (SETTINGS_MAX_HEADER_LIST_SIZE).
    :ivar header_count: how many fields a header list may have.
    :ivar header_blocks_cached: how many distinct header blocks are remembered together with their meaning.
    :ivar header_cache_bytes: how large all that may be that is remembered so, and what was made of it.
    :ivar continuations: how many CONTINUATION frames may follow one HEADERS frame.
    :ivar streams_open: calls in flight at once (SETTINGS_MAX_CONCURRENT_STREAMS).
    :ivar resets_per_second: streams that the peer resets, or forces us to reset, per second, in the long run.
    :ivar resets_burst: how many of them at once, as when a client gives up all it was doing.
    :ivar chores_per_second: frames that only make work (PING, SETTINGS, PRIORITY, empty DATA, unknown ones) per second.
    :ivar chores_burst: how many of them at once.
    :ivar control_frames_queued: control frames waiting for a peer that does not read.
    :ivar stream_window: how much of a call's request data may be on its way or waiting here.
    :ivar connection_window: the same, for all calls of a connection that are not hungry for data.
    :ivar message_bytes: the largest gRPC message, before and after decompression.
    :ivar response_bytes_queued: response data of one call that waits to be sent before its handler is suspended.
    :ivar working_bytes: what unary calls of a connection are at, before further calls have to wait.
    :ivar owed_bytes: response data of a connection that waits to be sent before further calls have to wait their turn;
        and answers without data that wait to be sent before the connection is cut off.
    :ivar held_bytes: memory held for one connection: request and response data, and a little for each call.
    :ivar held_bytes_in_all: memory held for all connections of a factory together.
    :ivar handshake_seconds: from a connection's start to its first SETTINGS frame, and for any one frame to arrive.
    :ivar idle_seconds: how long a connection without calls is kept.
    :ivar stalled_upload_seconds: how long a handler waits for request data that does not come.
    :ivar stalled_download_seconds: how long response data waits for a peer that does not read it.
    :ivar moving_bytes: fewer bytes than this in all that time are as good as none.
    :ivar close_seconds: how long a peer may take to notice that we have closed.
    """

    frame_bytes: int = 1 * MiB
    control_frame_bytes: int = 16 * KiB
    header_block_bytes: int = 16 * KiB
    header_list_bytes: int = 16 * KiB
    header_count: int = 128
    header_blocks_cached: int = 64
    header_cache_bytes: int = 64 * KiB
    continuations: int = 16
    streams_open: int = 1000
    resets_per_second: float = 100.0
    resets_burst: int = 2000
    chores_per_second: float = 1000.0
    chores_burst: int = 5000
    control_frames_queued: int = 10_000
    stream_window: int = 8 * MiB
    connection_window: int = 32 * MiB
    message_bytes: int = BATCH_PAYLOAD + ENVELOPE
    response_bytes_queued: int = 512 * KiB
    working_bytes: int = 32 * MiB
    owed_bytes: int = 16 * MiB
    held_bytes: int = 128 * MiB
    held_bytes_in_all: int = 512 * MiB
    handshake_seconds: float = 30.0
    idle_seconds: float = 2 * 3600.0
    stalled_upload_seconds: float = 60.0
    stalled_download_seconds: float = 300.0
    moving_bytes: int = 4 * KiB
    close_seconds: float = 5.0

    def __post_init__(self) -> None:
        if self.stream_window < self.message_bytes + MESSAGE_PREFIX:
            # The window of a stream is given back message by message, so the largest one has to fit.
            raise ValueError("stream_window must have room for one message and its prefix of 5 bytes")
        if not 16 * KiB <= self.frame_bytes < 16 * MiB:
            raise ValueError("frame_bytes must be at least 16 KiB and less than 16 MiB (RFC 9113, section 6.5.2)")
