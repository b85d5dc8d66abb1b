"""``--listen``: where to listen, for those who need more than ports.

Twisted reads the strings.  What an endpoint would ask the reactor for is only noted: a mistake in a string is found
before anything is opened, and sockets are opened before the reactor runs (``sockets.py``).
"""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from twisted.internet.endpoints import serverFromString
from twisted.internet.interfaces import IProtocolFactory
from twisted.internet.protocol import Factory

from artifactserver.ports.sockets import BACKLOG, CannotListen, close_sockets, open_sockets
from artifactserver.ports.unix_ports import UnixSocket
from artifactserver.ports.unix_sockets import open_unix

#: What somebody can be let do at an endpoint: as at ``--port``, or as at ``--public-port``.
ROLES = ("main", "public")

#: Stands behind the role of an endpoint without TLS.
_CLEAR = "clear"

#: How each type is written.
_FORMS = {
    "tcp": "tcp:PORT[:interface=ADDRESS][:backlog=NUMBER]",
    "tcp6": "tcp6:PORT[:interface=ADDRESS][:backlog=NUMBER]",
    "unix": "unix:PATH[:mode=OCTAL][:backlog=NUMBER]",
    "systemd": "systemd:name=NAME, with the FileDescriptorName= of the socket unit",
}

#: What holds where a string says nothing else.  Twisted's defaults are a mode for everybody, and a backlog for few.
_DEFAULTS = {
    "tcp": (f"backlog={BACKLOG}",),
    "tcp6": (f"backlog={BACKLOG}",),
    # In the order in which Twisted takes them without a name.
    "unix": ("mode=660", f"backlog={BACKLOG}"),
    # What kind of socket it is is seen when it is there.
    "systemd": ("domain=INET",),
}

#: Bytes of the path of a unix socket (``sun_path`` in unix(7), and a zero behind it).
LONGEST_PATH = 107

#: What Twisted raises for strings that it does not understand; a `LookupError` is about what systemd has passed.
_NOT_UNDERSTOOD = (ValueError, TypeError, AttributeError, RuntimeError)


class EndpointProblem(Exception):
    """A string cannot be used; ``str()`` is one sentence that quotes it and says what to do."""


@dataclass(frozen=True, slots=True)
class TcpEndpoint:
    """A TCP port.

    :ivar interface: an IP address, or a name, of this machine.
    """

    interface: str
    port: int
    backlog: int


@dataclass(frozen=True, slots=True)
class UnixEndpoint:
    """A unix socket.

    :ivar path: absolute.
    :ivar mode: who may connect, as the mode of the socket's file.
    """

    path: Path
    mode: int
    backlog: int


@dataclass(frozen=True, slots=True)
class InheritedEndpoint:
    """A socket that was opened by systemd.

    :ivar descriptor: its number in this process.
    """

    descriptor: int


Endpoint = TcpEndpoint | UnixEndpoint | InheritedEndpoint


@dataclass(frozen=True, slots=True)
class Listen:
    """One ``--listen``.

    :ivar text: as it was written.
    :ivar role: one of `ROLES`.
    :ivar clear: no TLS, though the server may have a key.
    """

    text: str
    role: str
    clear: bool
    endpoint: Endpoint

    def __str__(self) -> str:
        return f"--listen {self.text!r}"


def parse(text: str, locate: Callable[[str], Path]) -> Listen:
    """Read one ``[ROLE[,clear]=]ENDPOINT``.

    :param locate: makes a path absolute.
    :raises EndpointProblem: if it cannot be used, whatever the state of this machine.
    """
    match = re.fullmatch(r"(?:([^:=]*)=)?(.*)", text, re.DOTALL)
    assert match is not None
    words, description = match.groups()
    role, *more = (words if words is not None else ROLES[0]).split(",")
    if role not in ROLES or more not in ([], [_CLEAR]):
        raise EndpointProblem(
            f"--listen {text!r}: {words!r} is no role: write main, public, main,clear or public,clear before the '=', "
            "or leave it out"
        )
    kind, _, arguments = description.partition(":")
    if kind in ("ssl", "tls"):
        raise EndpointProblem(
            f"--listen {text!r} would put a TLS of its own beneath that of the server: write tcp:PORT, and give "
            "--server-key and --server-cert, whose TLS serves every endpoint"
        )
    if kind not in _FORMS:
        raise EndpointProblem(
            f"--listen {text!r}: {kind!r} is no type of endpoint that this server has: write one of "
            f"{', '.join(_FORMS)} before the first ':'"
        )
    try:
        endpoint = _read(kind, arguments, locate)
    except LookupError:
        raise EndpointProblem(
            f"--listen {text!r} names a socket that systemd has not passed to this server (it passed "
            f"{len(_inherited_descriptors())}): start it by a unit with a socket of this FileDescriptorName="
        ) from None
    if endpoint is None:
        raise EndpointProblem(f"--listen {text!r} is not understood: write {_FORMS[kind]}")
    if isinstance(endpoint, UnixEndpoint) and (size := len(os.fsencode(endpoint.path))) > LONGEST_PATH:
        raise EndpointProblem(
            f"--listen {text!r}: the path {endpoint.path} has {size} bytes, and that of a unix socket can have no more "
            f"than {LONGEST_PATH}: choose a shorter one"
        )
    return Listen(text, role, bool(more), endpoint)


def parse_all(texts: Sequence[str], locate: Callable[[str], Path]) -> list[Listen]:
    """Read all that were given.

    :raises EndpointProblem: if one of them cannot be used, or not beside the others, or if one is missing.
    """
    listens = [parse(text, locate) for text in texts]
    seen: dict[Endpoint, Listen] = {}
    for listen in listens:
        if isinstance(listen.endpoint, InheritedEndpoint) or getattr(listen.endpoint, "port", None) != 0:
            other = seen.setdefault(listen.endpoint, listen)
            if other is not listen:
                raise EndpointProblem(f"{listen} is the same as {other}: give one of them")
    inherited = {listen.endpoint.descriptor for listen in listens if isinstance(listen.endpoint, InheritedEndpoint)}
    passed = _inherited_descriptors()
    if inherited and inherited < passed:
        # Whoever connects to it would wait for ever.
        raise EndpointProblem(
            f"systemd passed {len(passed)} sockets, and --listen names {len(inherited)} of them: name each of them, "
            "and give each socket unit one ListenStream= and a FileDescriptorName= of its own"
        )
    return listens


def open_endpoint(listen: Listen, owner: tuple[int, int] | None = None) -> list[socket.socket]:
    """Listen there.

    :param owner: to whom the file of a unix socket is given, as user and group.
    :return: sockets that do not block.
    :raises CannotListen: if that is not possible.
    """
    endpoint = listen.endpoint
    try:
        if isinstance(endpoint, UnixEndpoint):
            return [open_unix(endpoint.path, endpoint.mode, endpoint.backlog, owner)]
        if isinstance(endpoint, InheritedEndpoint):
            return [_inherited(endpoint.descriptor)]
        opened = open_sockets(endpoint.interface, endpoint.port, "port")
        try:
            for listening in opened:
                listening.listen(endpoint.backlog)
        except BaseException:
            close_sockets(opened)
            raise
        return opened
    except CannotListen as error:
        raise CannotListen(f"{listen}: {error}") from error


def _inherited(descriptor: int) -> socket.socket:
    try:
        inherited = socket.socket(fileno=descriptor)
    except OSError:
        raise CannotListen("what systemd passed is no socket: let the socket unit have a ListenStream=") from None
    if inherited.type != socket.SOCK_STREAM or not inherited.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        inherited.close()
        raise CannotListen(
            "what systemd passed is no socket that waits for connections: let the socket unit have a ListenStream= and "
            "Accept=no"
        )
    if inherited.family not in (socket.AF_INET, socket.AF_INET6, socket.AF_UNIX):
        inherited.close()
        raise CannotListen("what systemd passed is a socket neither of TCP nor unix: change its ListenStream=")
    if inherited.family == socket.AF_UNIX:
        inherited = UnixSocket(fileno=inherited.detach())
    inherited.setblocking(False)
    inherited.set_inheritable(False)
    return inherited


def _read(kind: str, arguments: str, locate: Callable[[str], Path]) -> Endpoint | None:
    """What an endpoint listens on; `None` if it is not understood.

    :raises LookupError: if systemd has not passed what it names.
    """
    defaults = _DEFAULTS[kind]
    # What is named twice counts as it was named last.  What the string says without a name clashes with a default, and
    # then that one is left out.
    for count in range(len(defaults) + 1):
        description = ":".join([kind, *defaults[count:], arguments])
        try:
            endpoint: Any = serverFromString(_Noted(), description)
        except _NOT_UNDERSTOOD:
            continue
        if kind == "systemd":
            # To listen would take the descriptor.
            return InheritedEndpoint(endpoint.fileno)
        noted: list[TcpEndpoint | UnixEndpoint] = []
        endpoint.listen(Factory()).addCallback(noted.append)
        return _checked(noted[0], locate)
    return None


def _checked(noted: TcpEndpoint | UnixEndpoint, locate: Callable[[str], Path]) -> Endpoint | None:
    """The same, or `None` if it makes no sense."""
    if noted.backlog < 1:
        return None
    if isinstance(noted, TcpEndpoint):
        return noted if 0 <= noted.port <= 65535 else None
    if not noted.path.name or not 0 <= noted.mode <= 0o777:
        return None
    return UnixEndpoint(locate(str(noted.path)), noted.mode, noted.backlog)


def _inherited_descriptors() -> set[int]:
    """All the descriptors that systemd has passed to this process."""
    found: set[int] = set()
    while True:
        try:
            endpoint: Any = serverFromString(_Noted(), f"systemd:domain=INET:index={len(found)}")
        except LookupError:
            return found
        found.add(endpoint.fileno)


class _Noted:
    """Stands for the reactor (``IReactorTCP``, ``IReactorUNIX``), and says what it would have listened on."""

    def listenTCP(self, port: int, factory: IProtocolFactory, backlog: int = 50, interface: str = "") -> TcpEndpoint:
        return TcpEndpoint(interface or "0.0.0.0", port, backlog)  # noqa: S104 - as Twisted has it

    def listenUNIX(
        self, address: str, factory: IProtocolFactory, backlog: int = 50, mode: int = 0o666, wantPID: bool = False
    ) -> UnixEndpoint:
        return UnixEndpoint(Path(address), mode, backlog)
