"""``twistd artifactserver``: its options, and how everything is put together.

twistd calls `makeService` before it forks, changes the user and starts the reactor, so whatever can fail is tried here,
while there is somebody to tell: files are read, the repository is checked, the port is opened.  What must not cross a
fork (the index, threads, descriptors) opens in `startService`.
"""

from __future__ import annotations

import signal
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from twisted.application.internet import TimerService
from twisted.application.service import Service
from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.error import ReactorNotRunning
from twisted.internet.interfaces import IListeningPort, IProtocolFactory, ITransport
from twisted.logger import Logger

from artifactserver import notify, process
from artifactserver.access import PUSHING, Caller, Identity, PortPolicy, Source, main_port, public_port
from artifactserver.addresses import host_of
from artifactserver.complaints import Complaints
from artifactserver.options import Options
from artifactserver.ports.admission import ADDRESS_SHARE, Admission, AdmittingFactory, most_connections
from artifactserver.ports.endpoints import open_endpoint
from artifactserver.ports.listen import PortFactory, most_undecided
from artifactserver.ports.sockets import CannotListen, address_of, adopt, close_sockets, open_sockets
from artifactserver.preparing import owner_of, prepare_as_twistd
from artifactserver.rpc.dispatch import Dispatcher
from artifactserver.rpc.transport import GrpcFactory
from artifactserver.services import register_all
from artifactserver.services.health import Health
from artifactserver.store.layout import RepositoryProblem
from artifactserver.store.local import LocalStore
from artifactserver.tls.server import ServerTls, TlsProblem, identity_of, server_tls
from artifactserver.tls.transport import TlsFactory
from artifactserver.tokens.attempts import Attempts
from artifactserver.tokens.authentication import Authentication
from artifactserver.tokens.known import TokenProblem, Tokens, read_tokens
from artifactserver.watched import Watched
from artifactserver.web.site import not_found_site

__all__ = ["Options", "makeService"]

#: Seconds that running calls are given to finish when the server is asked to stop.
GRACE_SECONDS = 5.0

#: Seconds between two rounds of tidying up.
TIDY_SECONDS = 60.0

#: Seconds between two looks at the files that are read again when they change.
WATCH_SECONDS = 1.0


class Problem(Exception):
    """The server cannot start; ``str()`` is one sentence that says what to do."""


def makeService(options: Options) -> ArtifactServer:
    """Put a server together, for twistd.

    :raises SystemExit: with a sentence for standard error and status 1, if it cannot start.
    """
    from twisted.internet import reactor

    try:
        return build(options, reactor, time.time)
    except Problem as problem:
        raise SystemExit(f"{options.program}: {problem}") from None


def build(options: Options, reactor: Any, now: Callable[[], float]) -> ArtifactServer:
    """Put a server together.

    :param now: seconds since the epoch.
    :raises Problem: if it cannot start; nothing is left open then.
    """
    parent: Mapping[str, Any] = options.parent or {}
    if parent.get("chroot") is not None:
        raise Problem("twistd's --chroot does not work with artifactserver: leave it out")
    repo: Path = options["repo"]
    required = options["client-certs"] is not None and not options["client-certs-optional"]

    def policy(sources: frozenset[Source]) -> PortPolicy:
        return main_port(
            enable_push=bool(options["enable-push"]),
            sources=sources,
            private=bool(options["private"]),
            # Nobody gets past the handshake without an identity then; where there is none, this stops them.
            known_only=required,
        )

    main = Entrance(policy(options.sources))
    public = Entrance(public_port(main.policy))
    # Without TLS nobody can show a certificate.
    main_clear = Entrance(policy((options.sources - {"certificate"}) or options.sources))
    doors = {
        ("main", False): main,
        ("public", False): public,
        ("main", True): main_clear,
        ("public", True): Entrance(public.policy),
    }
    watched: list[Watched[Any]] = []
    authentication = None
    try:
        if options["tokens"] is not None:
            tokens, authentication = _watch_tokens(options["tokens"], reactor)
            watched.append(tokens)
        if options["server-key"] is not None:
            files = options["server-key"], options["server-cert"]
            main.tls = server_tls(*files, options["client-certs"], required)
            public.tls = main.tls.for_everybody()
        if options["port"] is not None:
            main.sockets += open_sockets(options["interface"], options["port"])
        if options["public-port"] is not None:
            public.sockets += open_sockets(options["public-interface"], options["public-port"], "--public-port")
        for listen in options["listen"]:
            doors[listen.role, listen.clear].sockets += open_endpoint(listen, owner_of(parent))
        prepare_as_twistd(repo, parent)
    except (TlsProblem, TokenProblem, CannotListen, RepositoryProblem) as problem:
        for door in doors.values():
            close_sockets(door.sockets)
        raise Problem(str(problem)) from problem
    entrances = [door for door in doors.values() if door.sockets]

    if authentication is not None:
        _say_doubts(authentication, options["tokens"], [main, public], bool(main.sockets) and required)
    dispatcher = Dispatcher()
    grpc = GrpcFactory(dispatcher, main.caller_of, reactor, authentication=authentication)
    store = LocalStore(repo, reactor=reactor, now=now, head_room_min=options["head-room-min"], together=grpc.together)
    health = register_all(dispatcher, store, reactor)
    connections = most_connections(process.descriptors())
    admission = Admission(connections, int(connections * ADDRESS_SHARE))
    for entrance in entrances:
        caller_of = entrance.caller_of
        site = not_found_site(caller_of, reactor, authentication)
        port: IProtocolFactory = PortFactory(
            grpc.at(caller_of), site, reactor, most_undecided=most_undecided(connections)
        )
        if entrance.tls is not None:
            entrance.tls.complain = Complaints(ServerTls._log, reactor).say
            port = entrance.tls_port = TlsFactory(entrance.tls, port, reactor)
        entrance.factory = AdmittingFactory(port, admission, reactor)
    tls = main.tls
    if tls is not None:
        tls.say_doubts(now())
        tls.settled = lambda: _hold_to_certificates(tls, entrances, now())
        watched += tls.watched
    return ArtifactServer(reactor, entrances, grpc, health, store, repo, watched)


def _say_doubts(authentication: Authentication, path: Path, entrances: list[Entrance], required: bool) -> None:
    """Log what whoever serves tokens might not have meant.

    :param entrances: those that were not expressly asked to be in clear text.
    :param required: one of them lets in nobody without a certificate.
    """
    log = ArtifactServer._log
    if not authentication.tokens:
        log.warn("{path} has no tokens yet: add one with 'artifactserver token add'", path=str(path))
    clear = [each for entrance in entrances if entrance.tls is None for each in entrance.sockets]
    # Nobody is on the way to a unix socket.
    exposed = [address_of(each) for each in clear if each.family != socket.AF_UNIX]
    if exposed:
        log.warn(
            "tokens come to {where} in clear text, for everybody on the way to read: "
            "give --server-key and --server-cert, or let clients come by a proxy that speaks TLS",
            where=", ".join(exposed),
        )
    if required:
        log.warn(
            "whoever has a token and no certificate cannot connect to the main port: "
            "give --client-certs-optional to let them in"
        )


@dataclass(eq=False)
class Entrance:
    """Where clients come in: ports and other sockets at which the same holds.

    :ivar policy: what it lets whom do.
    :ivar tls: how it speaks TLS, or `None` for clear text.
    :ivar tls_port: what does so, where it does.
    :ivar sockets: where it listens, until the reactor does.
    :ivar factory: for connections that are accepted.
    """

    policy: PortPolicy
    tls: ServerTls | None = None
    tls_port: TlsFactory | None = None
    sockets: list[socket.socket] = field(default_factory=list)
    factory: IProtocolFactory = field(init=False)

    def caller_of(self, transport: ITransport) -> Caller:
        """Who is at the other end of a connection that came in here."""
        shown = identity_of(transport)
        known = () if shown is None else (Identity("certificate", shown, f"certificate {shown[:16]}", PUSHING),)
        return Caller(host_of(transport.getPeer()), self.policy, known)

    def addresses(self) -> list[str]:
        """Where it listens, as ``host:port`` or ``unix:path``."""
        return [address_of(socket) for socket in self.sockets]

    @property
    def promise(self) -> str:
        """For the log: what it lets whom do, and how."""
        return f"{self.policy.promise}, {'clear text' if self.tls is None else 'TLS'}"


def _hold_to_certificates(tls: ServerTls, entrances: list[Entrance], now: float) -> None:
    """There is something new in the files of TLS: say what is doubtful about it, and end what it does not allow."""
    tls.say_doubts(now)
    _say_ended(sum(each.tls_port.send_away(tls.forgets) for each in entrances if each.tls_port is not None))


def _watch_tokens(path: Path, reactor: Any) -> tuple[Watched[Tokens], Authentication]:
    """Those who show a token that is in a file, now and later."""
    tokens = Watched((path,), lambda: read_tokens(path), TokenProblem)
    authentication = Authentication(tokens.value, Attempts(reactor))
    authentication.catch_up = tokens.catch_up
    tokens.taken = authentication.replace
    tokens.settled = lambda _: _hold_to_tokens(authentication)
    return tokens, authentication


def _hold_to_tokens(authentication: Authentication) -> None:
    """There is something new in the file of tokens: end what relies on those that are gone."""
    forgotten = authentication.forgotten()
    for connection in forgotten:
        connection.send_away()
    _say_ended(len(forgotten))


def _say_ended(connections: int) -> None:
    if connections:
        ArtifactServer._log.info(
            "connections that were ended, since what vouched for their clients has been taken out: {connections}",
            connections=connections,
        )


class ArtifactServer(Service):
    """The running server: what has to start and to stop in order.

    :param entrances: where clients come in: first those that are as the main port, then those that are public.
    :param repo: what is served, for the log.
    :param watched: files to look at while it runs.
    """

    name = "artifactserver"
    _log = Logger()

    def __init__(
        self,
        reactor: Any,
        entrances: list[Entrance],
        grpc: GrpcFactory,
        health: Health,
        store: LocalStore,
        repo: Path,
        watched: Sequence[Watched[Any]] = (),
    ) -> None:
        self._reactor = reactor
        self.entrances = entrances
        self._grpc = grpc
        self._health = health
        self._store = store
        self._repo = repo
        self._watched = watched
        self._ports: list[IListeningPort] = []
        self._tidying = TimerService(TIDY_SECONDS, self._tidy)
        self._watching = TimerService(WATCH_SECONDS, self._watch)
        for timer in (self._tidying, self._watching):
            timer.clock = reactor

    def addresses(self) -> list[str]:
        """Where it will listen, as ``host:port`` or ``unix:path``, in the order of its entrances."""
        return [address for entrance in self.entrances for address in entrance.addresses()]

    def startService(self) -> None:
        super().startService()
        where = [", ".join(entrance.addresses()) for entrance in self.entrances]
        try:
            self._store.start()
        except BaseException:
            self._close_sockets()
            raise
        for entrance in self.entrances:
            while entrance.sockets:
                self._ports.append(adopt(self._reactor, entrance.sockets.pop(0), entrance.factory))
        self._tidying.startService()
        self._watching.startService()
        process.settle()
        self._reactor.callWhenRunning(self._is_running, where)

    def _is_running(self, where: list[str]) -> None:
        self._take_signals()
        for addresses, entrance in zip(where, self.entrances, strict=True):
            self._log.info(
                "listening on {where}, serving {repo}: {promise}",
                where=addresses,
                repo=str(self._repo),
                promise=entrance.promise,
            )
        notify.tell(notify.READY)

    def stopService(self) -> Deferred[None]:
        super().stopService()
        return Deferred.fromCoroutine(self._stop())

    async def _stop(self) -> None:
        """From the outside in: first nobody new comes, then who is there leaves, then the store closes."""
        self._close_sockets()
        if not self._ports:
            return
        notify.tell(notify.STOPPING)
        self._log.info("stopping: calls that run have {grace:g} seconds to finish", grace=GRACE_SECONDS)
        for timer in (self._watching, self._tidying):
            stopping = timer.stopService()
            if stopping is not None:
                await stopping
        while self._ports:
            await maybeDeferred(self._ports.pop().stopListening)
        self._health.stop()
        await self._grpc.drain(GRACE_SECONDS)
        await self._store.stop()
        self._log.info("stopped")

    def _close_sockets(self) -> None:
        for entrance in self.entrances:
            close_sockets(entrance.sockets)

    def _tidy(self) -> None:
        # An exception would end the timer for good.
        with self._log.failuresHandled("while tidying up"):
            self._store.tidy()
            process.give_back()

    def _watch(self) -> None:
        for watched in self._watched:
            with self._log.failuresHandled("while looking whether files have changed"):
                watched.look()

    def _take_signals(self) -> None:
        """Take a signal to end for what it is: no failure.

        Twisted's own way would let twistd shut down in order and then die of the signal, so that whoever waits for it
        cannot tell an orderly end from a crash.  What was ignored from the beginning, as SIGINT is behind a shell's
        ``&``, stays ignored.
        """
        for number in (signal.SIGTERM, signal.SIGINT):
            if signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, lambda *_: self._reactor.callFromThread(self._end))

    def _end(self) -> None:
        try:
            self._reactor.stop()
        except ReactorNotRunning:
            pass  # It is on its way.
