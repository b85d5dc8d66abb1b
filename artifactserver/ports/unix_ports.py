"""Unix sockets that are listened on, and how connections to them are accepted.

Twisted's own port for them would change the mode of the file and remove it in the end, also where systemd has made it,
and shut down what systemd listens on.

`UnixPort` relies on these internals of Twisted's ports, and ``tests/test_unix_ports.py`` on their being there:
``_reservedFD``, ``_shouldShutdown``, ``_realPortNumber``, ``_type``, ``_buildAddr``, ``numberAccepts``, and that
``doRead`` makes a ``transport`` for each connection that ``accept`` of its ``socket`` gives.
"""

from __future__ import annotations

import os
import socket
from typing import Any

from twisted.internet import tcp
from twisted.internet.interfaces import IProtocolFactory

from artifactserver.ports.accepted import AcceptedUnixConnection, UnixPeer


class UnixSocket(socket.socket):
    """A unix socket that is listened on; closing it removes the file, if we have made it."""

    #: The device and the inode of the file that we have made.
    made: tuple[int, int] | None = None

    @property
    def name(self) -> str:
        """The path, as people write it; ``@`` stands before a name that is no path."""
        return os.fsdecode(self.getsockname()).replace("\0", "@")

    def accept(self) -> tuple[socket.socket, Any]:
        # What a client calls itself means nothing, and Twisted wants a pair.
        connection, _ = super().accept()
        return connection, (self.name, None)

    def close(self) -> None:
        made, self.made = self.made, None
        if made is not None:
            path = self.getsockname()
            try:
                if made == file_at(path):
                    os.unlink(path)
            except OSError:
                pass  # Somebody else removed it, or this user may not; then the next server takes it over.
        super().close()


class UnixPort(tcp.Port):
    """Accepts connections at a unix socket that is listened on already.

    :param listening: from now on the port's, to be closed with it.
    """

    addressFamily = socket.AF_UNIX
    transport = AcceptedUnixConnection  # type: ignore[assignment]
    _type = "unix"

    def __init__(self, listening: UnixSocket, factory: IProtocolFactory, reactor: Any) -> None:
        super().__init__(0, factory, reactor=reactor)
        self._listening = listening
        # Whoever else has it, as systemd does, goes on listening.
        self._shouldShutdown = False

    def startListening(self) -> None:
        tcp._reservedFD.reserve()
        self.factory.doStart()  # type: ignore[union-attr]
        self.socket = self._listening
        # It stands in the log.
        self._realPortNumber = self._listening.name  # type: ignore[assignment]
        self.fileno = self.socket.fileno  # type: ignore[method-assign]
        self.connected = True
        self.numberAccepts = 100
        self.startReading()

    def getHost(self) -> UnixPeer:
        return UnixPeer(self._listening.name)

    def _buildAddr(self, address: tuple[str, None]) -> UnixPeer:
        return UnixPeer(address[0])


def file_at(path: str | bytes | os.PathLike[str]) -> tuple[int, int]:
    """The device and the inode of a file, by which it is told from a later one of the same name."""
    found = os.lstat(path)
    return found.st_dev, found.st_ino
