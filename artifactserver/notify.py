"""Tells systemd how the server is, where a unit has ``Type=notify`` (sd_notify(3))."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Mapping

#: The server listens, or is about to end.
READY = "READY=1"
STOPPING = "STOPPING=1"


def tell(state: str, environ: Mapping[str, str] = os.environ) -> None:
    """Tell systemd, if it has asked for it; that it cannot be reached is no reason to fail.

    :param state: `READY` or `STOPPING`.
    """
    path = environ.get("NOTIFY_SOCKET")
    if not path:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as telling, contextlib.suppress(OSError):
        telling.setblocking(False)
        # A name that is no path begins with a zero, for which systemd writes an "@".
        telling.sendto(state.encode("ascii"), f"\0{path[1:]}" if path.startswith("@") else path)
