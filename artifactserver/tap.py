"""``twistd artifactserver``: its options, and how everything is put together.

twistd calls `makeService` before it forks, changes the user and starts the reactor, so whatever can fail is tried here,
while there is somebody to tell: files are read, the repository is checked, the port is opened.  What must not cross a
fork (the index, threads, descriptors) opens in `startService`.
"""

from __future__ import annotations

import os
import pwd
import signal
import socket
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from twisted.application.internet import TimerService
from twisted.application.service import Service
from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.error import ReactorNotRunning
from twisted.internet.interfaces import IListeningPort, IProtocolFactory, ITransport
from twisted.logger import Logger
from twisted.python.util import switchUID

from artifactserver import process
from artifactserver.access import Access, Caller, Right
from artifactserver.admission import ADDRESS_SHARE, Admission, AdmittingFactory, most_connections
from artifactserver.complaints import Complaints
from artifactserver.listen import PortFactory, not_found_site
from artifactserver.options import Options
from artifactserver.rpc.dispatch import Dispatcher
from artifactserver.rpc.transport import GrpcFactory
from artifactserver.services import register_all
from artifactserver.services.health import Health
from artifactserver.sockets import CannotListen, address_of, adopt, close_sockets, open_sockets
from artifactserver.store.layout import RepositoryProblem
from artifactserver.store.local import LocalStore
from artifactserver.store.repository import prepare
from artifactserver.tls import ServerTls, TlsProblem, identity_of, server_tls
from artifactserver.tls_transport import TlsFactory

__all__ = ["Options", "makeService"]

#: Seconds that running calls are given to finish when the server is asked to stop.
GRACE_SECONDS = 5.0

#: Seconds between two rounds of tidying up.
TIDY_SECONDS = 60.0


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
    needs_identity = options["client-certs"] is not None
    sockets: list[socket.socket] = []
    try:
        tls = None
        if options["server-key"] is not None:
            tls = server_tls(options["server-key"], options["server-cert"], options["client-certs"])
        sockets = open_sockets(options["interface"], options["port"])
        _prepare(repo, parent)
    except (TlsProblem, CannotListen, RepositoryProblem) as problem:
        close_sockets(sockets)
        raise Problem(str(problem)) from problem

    everything = frozenset({Right.PULL, Right.PUSH} if options["enable-push"] else {Right.PULL})

    def caller_of(transport: ITransport) -> Caller:
        # Nobody gets past the handshake without an identity where one is needed; if somebody did, this would stop them.
        identity = identity_of(transport)
        rights = frozenset[Right]() if needs_identity and identity is None else everything
        host: str = getattr(transport.getPeer(), "host", "unknown")
        return Caller(host.removeprefix("::ffff:"), identity, rights)

    dispatcher = Dispatcher(Access(options["enable-push"]))
    grpc = GrpcFactory(dispatcher, caller_of, reactor)
    store = LocalStore(repo, reactor=reactor, now=now, head_room_min=options["head-room-min"], together=grpc.together)
    health = register_all(dispatcher, store, reactor)
    port: IProtocolFactory = PortFactory(grpc, not_found_site(reactor), reactor)
    if tls is not None:
        tls.complain = Complaints(ServerTls._log, reactor).say
        port = TlsFactory(tls, port, reactor)
    connections = most_connections(process.descriptors())
    admission = Admission(connections, int(connections * ADDRESS_SHARE))
    port = AdmittingFactory(port, admission, reactor)
    how = "TLS with client certificates" if needs_identity else "TLS" if tls is not None else "clear text"
    what = "pull and push" if options["enable-push"] else "pull only"
    return ArtifactServer(reactor, sockets, port, grpc, health, store, f"serving {repo}: {what}, {how}")


class ArtifactServer(Service):
    """The running server: what has to start and to stop in order.

    :param sockets: where to listen.
    :param factory: for connections that are accepted.
    :param promise: for the log: what is served, and how.
    """

    name = "artifactserver"
    _log = Logger()

    def __init__(
        self,
        reactor: Any,
        sockets: list[socket.socket],
        factory: IProtocolFactory,
        grpc: GrpcFactory,
        health: Health,
        store: LocalStore,
        promise: str,
    ) -> None:
        self._reactor = reactor
        self._sockets = sockets
        self._factory = factory
        self._grpc = grpc
        self._health = health
        self._store = store
        self._promise = promise
        self._ports: list[IListeningPort] = []
        self._tidying = TimerService(TIDY_SECONDS, self._tidy)
        self._tidying.clock = reactor

    def addresses(self) -> list[str]:
        """Where it listens, as ``host:port``."""
        return [address_of(*socket.getsockname()[:2]) for socket in self._sockets]

    def startService(self) -> None:
        super().startService()
        where = ", ".join(self.addresses())
        try:
            self._store.start()
        except BaseException:
            close_sockets(self._sockets)
            raise
        while self._sockets:
            self._ports.append(adopt(self._reactor, self._sockets.pop(0), self._factory))
        self._tidying.startService()
        process.settle()
        self._reactor.callWhenRunning(self._is_running, where)

    def _is_running(self, where: str) -> None:
        self._take_signals()
        self._log.info("listening on {where}, {promise}", where=where, promise=self._promise)

    def stopService(self) -> Deferred[None]:
        super().stopService()
        return Deferred.fromCoroutine(self._stop())

    async def _stop(self) -> None:
        """From the outside in: first nobody new comes, then who is there leaves, then the store closes."""
        close_sockets(self._sockets)
        if not self._ports:
            return
        self._log.info("stopping: calls that run have {grace:g} seconds to finish", grace=GRACE_SECONDS)
        tidying = self._tidying.stopService()
        if tidying is not None:
            await tidying
        while self._ports:
            await maybeDeferred(self._ports.pop().stopListening)
        self._health.stop()
        await self._grpc.drain(GRACE_SECONDS)
        await self._store.stop()
        self._log.info("stopped")

    def _tidy(self) -> None:
        # An exception would end the timer for good.
        with self._log.failuresHandled("while tidying up"):
            self._store.tidy()
            process.give_back()

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


def _prepare(repo: Path, parent: Mapping[str, Any]) -> None:
    """Make or check the repository as the process that will serve it: as its user, and with its umask.

    :param parent: twistd's options, if there is a twistd.
    :raises RepositoryProblem: if it cannot be used.
    """
    umask = parent.get("umask")
    if umask is None and "nodaemon" in parent and not parent["nodaemon"]:
        umask = 0o077
    uid, gid = parent.get("uid"), parent.get("gid")
    if uid is None and gid is None:
        before = os.umask(umask) if umask is not None else None
        try:
            prepare(repo)
        finally:
            if before is not None:
                os.umask(before)
        return
    problem = _in_child(lambda: _prepare_as(repo, uid, gid, umask))
    if problem:
        raise RepositoryProblem(problem)


def _prepare_as(repo: Path, uid: int | None, gid: int | None, umask: int | None) -> str:
    try:
        if uid is not None and gid is None:
            gid = pwd.getpwuid(uid).pw_gid
        switchUID(uid, gid)
    except (OSError, KeyError) as error:
        return (
            f"this user may not become --uid {uid} and --gid {gid} ({error}): start twistd as root, or leave them out"
        )
    if umask is not None:
        os.umask(umask)
    try:
        prepare(repo)
    except RepositoryProblem as error:
        return str(error)
    except Exception as error:  # Above all, parts of Python that this user cannot read.
        return (
            f"{repo} cannot be checked as the user of --uid ({type(error).__name__}: {error}): let that user read the "
            "installation of Python and of artifactserver"
        )
    return ""


def _in_child(function: Callable[[], str]) -> str:
    """What ``function`` says in a process of its own, since a user given up does not come back."""
    reading, writing = os.pipe()
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if not child:
        status = 1
        try:
            os.write(writing, function().encode("utf-8", "surrogateescape"))
            status = 0
        finally:
            os._exit(status)
    os.close(writing)
    with open(reading, encoding="utf-8", errors="surrogateescape") as pipe:
        said = pipe.read()
    _, status = os.waitpid(child, 0)
    return said if said or not status else "the repository could not be checked: this is a fault of artifactserver"
