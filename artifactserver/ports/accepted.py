"""Connections that were accepted: large reads and writes, and small answers that leave at once.

Twisted keeps what is written until the reactor finds the socket writable: three system calls and a turn of the reactor
for each answer, which cost more than a small call itself.  Here a small write goes to the socket directly, as long as
nothing stands in line before it.  A large one does not: the peer that reads fastest would have the reactor for itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from twisted.internet import tcp
from twisted.internet.interfaces import IAddress
from zope.interface import implementer

#: What is read at once, and what may wait to be written before a producer is told that it is enough.
READ_BYTES = 256 * 1024
#: What is handed to one call of ``send``.
SEND_BYTES = 1024 * 1024
#: The largest write that leaves at once.
PROMPT_BYTES = 64 * 1024


class AcceptedConnection(tcp.Server):
    """The transport of one connection to our port."""

    bufferSize = READ_BYTES
    SEND_LIMIT = SEND_BYTES

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        # Whoever writes in pieces joins them first; an answer must not wait for the acknowledgement of another.
        self.setTcpNoDelay(True)

    def write(self, data: bytes) -> None:
        if (
            len(data) <= PROMPT_BYTES
            and data
            and not self._tempDataBuffer
            and not self.dataBuffer
            and self.connected
            and not self.disconnecting
            and not self._writeDisconnecting
        ):
            sent = self.writeSomeData(data)
            # What is wrong with the connection comes up again when the reactor writes, and it knows what to do.
            if isinstance(sent, int) and sent > 0:
                if sent == len(data):
                    return
                data = data[sent:]
        super().write(data)


@implementer(IAddress)
@dataclass(frozen=True, slots=True)
class UnixPeer:
    """Where clients at a unix socket call from: all that is known of them is the socket.

    :ivar path: that of the socket.
    """

    path: str

    @property
    def host(self) -> str:
        """What stands in the log where others have an IP address, and for whom their connections count."""
        return f"unix:{self.path}"


class AcceptedUnixConnection(AcceptedConnection):
    """The transport of one connection to a unix socket of ours.

    Twisted's own would take the descriptors that a client sends along, to close them again; the kernel does that by
    itself.
    """

    def setTcpNoDelay(self, enabled: bool) -> None:
        """Nothing is ever delayed."""

    def getTcpNoDelay(self) -> bool:
        return True

    def getPeer(self) -> UnixPeer:
        return UnixPeer(str(self.client[0]))

    getHost = getPeer
