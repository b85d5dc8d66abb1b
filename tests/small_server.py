"""twistd with a server whose bounds are small, for tests that go beyond them.  It takes twistd's command line.

Started as a program: nothing here is imported by a test but the bounds.
"""

from __future__ import annotations

import sys
from functools import partial
from typing import Any

from artifactserver import tap
from artifactserver.ports import admission, listen
from artifactserver.ports.listen import PortFactory
from artifactserver.rpc.http2 import Limits
from artifactserver.rpc.transport import GrpcFactory
from artifactserver.store import pace
from artifactserver.web import site

MiB = 1024 * 1024

#: Seconds until a connection has to have said something.
SAY_SECONDS = 1.0

LIMITS = Limits(
    stream_window=6 * MiB,
    connection_window=8 * MiB,
    working_bytes=4 * MiB,
    owed_bytes=4 * MiB,
    held_bytes=8 * MiB,
    held_bytes_in_all=15 * MiB,
    handshake_seconds=SAY_SECONDS,
    stalled_upload_seconds=1.5,
    stalled_download_seconds=1.5,
    close_seconds=1.0,
)

#: Connections at once that have not shown what they speak.
UNDECIDED = 600

#: Connections at once: in all, and from one address.
CONNECTIONS = 2200
PER_ADDRESS = 1100


def main() -> None:
    """Be twistd."""
    from twisted.scripts.twistd import run

    admission.MOST_CONNECTIONS = CONNECTIONS
    site.HEAD_SECONDS = SAY_SECONDS
    listen.MOST_UNDECIDED = UNDECIDED
    tap.TIDY_SECONDS = 0.5
    pace.FREE_SECONDS = 1
    pace.SLOWEST_PACE = 64 * 1024
    wiring: Any = tap
    wiring.GrpcFactory = partial(GrpcFactory, limits=LIMITS)
    wiring.PortFactory = partial(PortFactory, timeout=SAY_SECONDS)
    run()


if __name__ == "__main__":
    sys.exit(main())  # type: ignore[func-returns-value]
