"""Connections that were accepted: large reads and writes, and small answers that leave at once.

Twisted keeps what is written until the reactor finds the socket writable: three system calls and a turn of the reactor
for each answer, which cost more than a small call itself.  Here a small write goes to the socket directly, as long as
nothing stands in line before it.  A large one does not: the peer that reads fastest would have the reactor for itself.
"""

from __future__ import annotations

from typing import Any

from twisted.internet import tcp

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
