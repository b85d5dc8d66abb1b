"""What a socket has to say."""

from __future__ import annotations

import socket
import ssl


def hear(connection: socket.socket, wanted: bytes) -> None:
    """Read until these bytes were there."""
    heard = b""
    while wanted not in heard:
        piece = connection.recv(65536)
        assert piece, heard
        heard += piece


def heard_to_the_end(connection: socket.socket) -> bytes:
    """What comes until the connection is closed, which it has to be before its timeout."""
    heard = b""
    try:
        while piece := connection.recv(65536):
            heard += piece
    except (ConnectionResetError, ssl.SSLEOFError):
        pass
    return heard
