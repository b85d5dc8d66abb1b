"""TLS on a Twisted transport, in few and large steps.

Twisted encrypts 16 KiB at a time, looks after each whether there is something to send, and hands on what it has
decrypted record by record.  Here a write is encrypted in large slices of one view, what comes of it is sent in one
piece, and all that was decrypted of what arrived together is handed on together, so that the protocol above sees it
as if there were no TLS.

Copies are what TLS costs besides the encryption itself.  Large parts of a sequence are encrypted where they are, not
joined first; and what comes of it is read into one buffer that all connections share, where pyOpenSSL's ``bio_read``
would make a new one each time and copy it twice.

It relies on these internals of `TLSMemoryBIOProtocol`, and ``tests/test_tls_transport.py`` on their being there:
``_tlsConnection``, ``_handshakeDone``, ``_appSendBuffer``, ``_bufferedWrite``, ``_lostTLSConnection``, ``_aborted``,
``_producer``, ``_tlsShutdownFinished``, ``_shutdownTLS``, ``protocols`` of the factory, and that it calls ``_write``,
``_flushSendBIO`` and ``_flushReceiveBIO``.  Of pyOpenSSL's, there are ``_from_ssl`` and the bindings below it; without
them it does without.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from OpenSSL import SSL
from OpenSSL.SSL import Error, WantReadError, ZeroReturnError
from twisted.internet.interfaces import IOpenSSLServerConnectionCreator, IProtocolFactory, IReactorTime, ITransport
from twisted.logger import Logger
from twisted.protocols.tls import TLSMemoryBIOFactory, TLSMemoryBIOProtocol
from twisted.python.failure import Failure

from artifactserver.addresses import host_of
from artifactserver.complaints import Complaints
from artifactserver.tls.clear_text import BAD_REQUEST, Spoken, spoken

#: The most that one record carries (RFC 8446, section 5.1).
RECORD_BYTES = 16 * 1024

#: What OpenSSL is given at once, to encrypt or to decrypt.  It keeps a buffer of that size for each direction while
#: the connection lives, so it is not more than it has to be.
SLICE_BYTES = 64 * 1024

#: How much of what OpenSSL has encrypted is sent on at once.
BUFFER_BYTES = 5 * SLICE_BYTES

#: Bytes that TLS itself may answer on one connection once its handshake is done: when the client asks for new keys, or
#: for a new handshake.  Nobody above knows of these answers, so a client that asked all the time and never read them
#: would fill the memory.  This is enough for 2,400 changes of keys; honest clients make one in hundreds of gigabytes.
ANSWERED_BYTES = 64 * 1024

_buffer = bytearray(BUFFER_BYTES)
_view = memoryview(_buffer)

try:
    _address = SSL._ffi.from_buffer(_buffer)  # type: ignore[attr-defined]
    _bio_read = SSL._lib.BIO_read  # type: ignore[attr-defined]
except AttributeError:
    _bio_read = None


def _runs(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """The same bytes: large pieces as they are, and what is between them joined."""
    small: list[bytes] = []
    for piece in pieces:
        if len(piece) < SLICE_BYTES:
            small.append(piece)
            continue
        if small:
            yield b"".join(small)
            small.clear()
        yield piece
    if small:
        yield small[0] if len(small) == 1 else b"".join(small)


#: Seconds between two log lines about clients that do not speak TLS, or ask it for answers all the time.
_COMPLAINT_SECONDS = 60.0


class TlsTransport(TLSMemoryBIOProtocol):
    """The server's end of one TLS connection."""

    factory: TlsFactory

    # What has come until it is seen whether it is TLS; `None` from then on.
    _first: bytes | None = b""

    # What was wrong with what has come, while what came before it is handed on.
    _fault: Failure | None = None

    # What TLS itself has answered since the handshake.
    _answered = 0

    def _flushSendBIO(self) -> None:
        """Send what OpenSSL has ready."""
        self._send(self._fetch(0))

    def _fetch(self, end: int) -> int:
        """Put what OpenSSL has ready into the buffer, behind its first ``end`` bytes; gives how many there are then."""
        while True:
            if end + RECORD_BYTES > BUFFER_BYTES:
                self._send(end)
                end = 0
            room = BUFFER_BYTES - end
            got = self._read_into(end, room)
            end += got
            if got < room:
                return end

    def _read_into(self, start: int, most: int) -> int:
        connection = self._tlsConnection
        source = getattr(connection, "_from_ssl", None)
        if _bio_read is not None and source is not None:
            got: int = _bio_read(source, _address + start, most)
            return max(0, got)
        try:
            data = connection.bio_read(most)
        except WantReadError:
            return 0
        _view[start : start + len(data)] = data
        return len(data)

    def _send(self, end: int) -> None:
        """Send the first ``end`` bytes of the buffer."""
        if end:
            assert self.transport is not None
            self.transport.write(bytes(_view[:end]))

    def writeSequence(self, iovec: Iterable[bytes]) -> None:
        # As Twisted's `write` has it: nothing is written any more, but by a producer.
        if not self.disconnecting or self._producer is not None:
            self._encrypt(_runs(iovec))

    def _write(self, data: bytes) -> None:
        self._encrypt((data,))

    def _encrypt(self, runs: Iterable[bytes]) -> None:
        if self._lostTLSConnection or self._aborted:
            return
        end = 0
        waits = False
        for run in runs:
            if waits:
                self._bufferedWrite(bytes(run))
                continue
            with memoryview(run) as view:
                start, size = 0, len(run)
                while start < size:
                    try:
                        sent = self._tlsConnection.send(view[start : start + SLICE_BYTES])
                    except WantReadError:
                        # The handshake is not over, or the peer changes its keys: OpenSSL wants to read first.
                        self._bufferedWrite(bytes(view[start:]))
                        waits = True
                        break
                    except Error:
                        self._send(end)
                        self._tlsShutdownFinished(Failure())
                        return
                    start += sent
                    end = self._fetch(end)
        self._send(end)

    def dataReceived(self, data: bytes) -> None:
        if self._first is not None:
            data = self._begin(data)
            if not data:
                return
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

    def _begin(self, data: bytes) -> bytes:
        """Keep the first bytes back until they are seen to be TLS; what is to be taken as such then."""
        if self._lostTLSConnection:
            return b""
        assert self._first is not None
        data = self._first + data
        speaks = spoken(data)
        if speaks is Spoken.OTHER:
            self._first = None
            return data
        if speaks is Spoken.UNCLEAR:
            self._first = data
            return b""
        self._first = b""
        self.factory.complain_of_clear_text(self)
        if speaks is Spoken.HTTP1:
            assert self.transport is not None
            self.transport.write(BAD_REQUEST)
        self._tlsShutdownFinished(None)
        return b""

    def _tlsShutdownFinished(self, reason: Failure | None) -> None:
        # A transport that has paused a producer waits for it, and this one has nothing more to say.
        producer = self._producer
        if producer is not None:
            self.unregisterProducer()
            producer.stopProducing()
        # To answer what is handed on fails as well, and says only that TLS is over.
        super()._tlsShutdownFinished(self._fault or reason)

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

    def _answer(self) -> None:
        """Send what it has made to receive, within a bound."""
        made = self._fetch(0)
        if not made:
            return
        self._send(made)
        self._answered += made
        if self._answered > ANSWERED_BYTES and not self._aborted:
            self.factory.complain_of_answers(self)
            self.abortConnection()

    def _deliver(self, pieces: list[bytes], end: ZeroReturnError | Failure | None) -> None:
        self._answer()
        if pieces and not self._aborted:
            if isinstance(end, Failure):
                self._fault = end
            try:
                self.wrappedProtocol.dataReceived(pieces[0] if len(pieces) == 1 else b"".join(pieces))
            finally:
                # Its traceback knows this connection.
                self._fault = None
        if end is not None and not self._lostTLSConnection:
            if isinstance(end, Failure):
                self._tlsShutdownFinished(end)
            else:
                self._shutdownTLS()
                # With no reason of its own, what is above is told that of the transport below.
                self._tlsShutdownFinished(None)


class TlsFactory(TLSMemoryBIOFactory):
    """Puts the server's end of TLS between a port and ``factory``."""

    protocol = TlsTransport
    _log = Logger()

    def __init__(self, tls: IOpenSSLServerConnectionCreator, factory: IProtocolFactory, clock: IReactorTime) -> None:
        super().__init__(tls, False, factory, clock)
        self._complaints = Complaints(self._log, clock, 1 / _COMPLAINT_SECONDS, 1)
        self._restless = Complaints(self._log, clock, 1 / _COMPLAINT_SECONDS, 1)

    def send_away(self, unwanted: Callable[[ITransport], bool]) -> int:
        """End connections, for the protocol above to do in its own way.

        :param unwanted: whether a connection is to end.
        :return: how many are.
        """
        ending = [each.wrappedProtocol for each in self.protocols if unwanted(each)]
        for protocol in ending:
            protocol.send_away()
        return len(ending)

    def complain_of_answers(self, transport: ITransport) -> None:
        """Say, once in a while, that a client has TLS answer it all the time."""
        self._restless.say(
            "{peer} was cut off: it asked for new keys or a new handshake all the time",
            peer=host_of(transport.getPeer()),
        )

    def complain_of_clear_text(self, transport: ITransport) -> None:
        """Say, once in a while, that a client does without TLS where there is some."""
        self._complaints.say(
            "{peer} spoke HTTP in clear text on a port that speaks TLS: it should use https:// or grpcs://",
            peer=host_of(transport.getPeer()),
        )
