"""TLS on a Twisted transport, in few and large steps.

Twisted encrypts 16 KiB at a time, looks after each whether there is something to send, and hands on what it has
decrypted record by record.  Here a write is encrypted in large slices of one view, what comes of it is sent in one
piece, and all that was decrypted of what arrived together is handed on together, so that the protocol above sees it
as if there were no TLS.

It relies on these internals of `TLSMemoryBIOProtocol`, and ``tests/test_tls_transport.py`` on their being there:
``_tlsConnection``, ``_handshakeDone``, ``_appSendBuffer``, ``_bufferedWrite``, ``_lostTLSConnection``, ``_aborted``,
``_producer``, ``_tlsShutdownFinished``, ``_shutdownTLS``, and that it calls ``_write``, ``_flushSendBIO`` and
``_flushReceiveBIO``.
"""

from __future__ import annotations

from typing import Any

from OpenSSL.SSL import Error, WantReadError, ZeroReturnError
from twisted.internet.interfaces import IOpenSSLServerConnectionCreator, IProtocolFactory, IReactorTime
from twisted.protocols.tls import TLSMemoryBIOFactory, TLSMemoryBIOProtocol
from twisted.python.failure import Failure

#: The most that one record carries (RFC 8446, section 5.1), and more than encryption adds to it.
RECORD_BYTES = 16 * 1024
OVERHEAD_BYTES = 64

#: What OpenSSL is given at once, to encrypt or to decrypt.  It keeps a buffer of that size for each direction while
#: the connection lives, so it is not more than it has to be.
SLICE_BYTES = 64 * 1024

#: What the handshake, alerts and other messages of TLS itself take, at most, between two looks.
MESSAGES_BYTES = 16 * 1024


class TlsTransport(TLSMemoryBIOProtocol):
    """The server's end of one TLS connection."""

    def _flushSendBIO(self) -> None:
        """Send what OpenSSL has ready."""
        pieces: list[bytes] = []
        self._fetch(pieces, MESSAGES_BYTES)
        self._send(pieces)

    def _fetch(self, pieces: list[bytes], most: int) -> None:
        """Add to ``pieces`` what OpenSSL has ready, probably less than ``most`` bytes."""
        fetch = self._tlsConnection.bio_read
        try:
            while True:
                pieces.append(fetch(most))
                if len(pieces[-1]) < most:
                    return
        except WantReadError:
            return

    def _write(self, data: bytes) -> None:
        if self._lostTLSConnection:
            return
        pieces: list[bytes] = []
        with memoryview(data) as view:
            start, size = 0, len(data)
            while start < size:
                try:
                    sent = self._tlsConnection.send(view[start : start + SLICE_BYTES])
                except WantReadError:
                    # The handshake is not over, or the peer changes its keys: OpenSSL wants to read first.
                    self._bufferedWrite(bytes(view[start:]))
                    break
                except Error:
                    self._send(pieces)
                    self._tlsShutdownFinished(Failure())
                    return
                start += sent
                self._fetch(pieces, sent + OVERHEAD_BYTES * (sent // RECORD_BYTES + 1) + 1)
        self._send(pieces)

    def _send(self, pieces: list[bytes]) -> None:
        if pieces:
            assert self.transport is not None
            self.transport.write(pieces[0] if len(pieces) == 1 else b"".join(pieces))

    def dataReceived(self, data: bytes) -> None:
        if not self._handshakeDone or self._appSendBuffer or len(data) <= SLICE_BYTES:
            super().dataReceived(data)
            return
        if self._lostTLSConnection:
            return
        pieces: list[bytes] = []
        end: Any = None
        with memoryview(data) as view:
            for start in range(0, len(data), SLICE_BYTES):
                self._tlsConnection.bio_write(view[start : start + SLICE_BYTES])
                end = self._decrypt(pieces)
                if end is not None:
                    break
        self._deliver(pieces, end)

    def _tlsShutdownFinished(self, reason: Failure | None) -> None:
        # A transport that has paused a producer waits for it, and this one has nothing more to say.
        producer = self._producer
        if producer is not None:
            self.unregisterProducer()
            producer.stopProducing()
        super()._tlsShutdownFinished(reason)

    def _flushReceiveBIO(self) -> None:
        """Hand on what has been received, and see whether that was the end."""
        if not self._lostTLSConnection:
            pieces: list[bytes] = []
            end = self._decrypt(pieces)
            self._deliver(pieces, end)
        else:
            self._flushSendBIO()

    def _decrypt(self, pieces: list[bytes]) -> ZeroReturnError | Failure | None:
        """Add to ``pieces`` all there is; gives what ended the connection, if something did."""
        receive = self._tlsConnection.recv
        try:
            while True:
                pieces.append(receive(RECORD_BYTES))
        except WantReadError:
            return None
        except ZeroReturnError as closed:
            return closed
        except Error:
            return Failure()

    def _deliver(self, pieces: list[bytes], end: ZeroReturnError | Failure | None) -> None:
        if pieces and not self._aborted:
            self.wrappedProtocol.dataReceived(pieces[0] if len(pieces) == 1 else b"".join(pieces))
        if end is not None and not self._lostTLSConnection:
            if isinstance(end, Failure):
                self._tlsShutdownFinished(end)
            else:
                self._shutdownTLS()
                # With no reason of its own, what is above is told that of the transport below.
                self._tlsShutdownFinished(None)
        # To receive may also have made something to send.
        self._flushSendBIO()


class TlsFactory(TLSMemoryBIOFactory):
    """Puts the server's end of TLS between a port and ``factory``."""

    protocol = TlsTransport

    def __init__(self, tls: IOpenSSLServerConnectionCreator, factory: IProtocolFactory, clock: IReactorTime) -> None:
        super().__init__(tls, False, factory, clock)
