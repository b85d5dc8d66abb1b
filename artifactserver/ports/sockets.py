"""Listening sockets, opened before anything else happens.

A daemon that cannot have its port should say so to the person who started it, so the sockets are made while there is
still a terminal, before twistd forks and gives up root, and handed to the reactor later.
"""

from __future__ import annotations

import contextlib
import errno
import socket

from twisted.internet.interfaces import IListeningPort, IProtocolFactory, IReactorSocket

from artifactserver.ports.accepted import AcceptedConnection
from artifactserver.ports.unix_ports import UnixPort, UnixSocket

#: Connections that may wait to be accepted.  BuildStream 1 opens a new one for every element.
BACKLOG = 1024


class CannotListen(Exception):
    """An address cannot be had; ``str()`` is one sentence that says what to do."""


def open_sockets(interface: str | None, port: int, option: str = "--port") -> list[socket.socket]:
    """Listen on TCP ``port``.

    :param interface: an IP address or a name of this machine; `None` for all addresses, IPv4 and IPv6.
    :param port: 0 for one that is free.
    :param option: what a person typed to get this port, for errors.
    :return: sockets that do not block, all on the same port.
    :raises CannotListen: if that is not possible.
    """
    if interface is None:
        return [_everywhere(port, option)]
    try:
        found = socket.getaddrinfo(interface, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError):
        raise _not_ours(interface, option) from None
    opened: list[socket.socket] = []
    absent: OSError | None = None
    try:
        for family, address in dict.fromkeys((entry[0], entry[4]) for entry in found):
            try:
                opened.append(_listen(family, (address[0], port, *address[2:])))
            except OSError as error:
                if error.errno not in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
                    raise _refused(error, interface, port, option) from error
                absent = error
                continue
            port = opened[0].getsockname()[1]
        if not opened:
            raise _not_ours(interface, option) from absent
    except BaseException:
        close_sockets(opened)
        raise
    return opened


def adopt(reactor: IReactorSocket, listening: socket.socket, factory: IProtocolFactory) -> IListeningPort:
    """Let the reactor accept what connects; ``listening`` is the port's from now on, or closed."""
    if isinstance(listening, UnixSocket):
        unix_port = UnixPort(listening, factory, reactor)
        unix_port.startListening()
        return unix_port
    port = reactor.adoptStreamPort(listening.fileno(), listening.family, factory)  # type: ignore[arg-type]
    port.transport = AcceptedConnection  # type: ignore[attr-defined]
    # It has a duplicate of the socket.
    listening.close()
    return port


def close_sockets(sockets: list[socket.socket]) -> None:
    """Close all of them, and forget them."""
    while sockets:
        sockets.pop().close()


def address_of(listening: socket.socket) -> str:
    """How people write where a socket listens: ``host:port``, with brackets round IPv6, or ``unix:path``."""
    if isinstance(listening, UnixSocket):
        return f"unix:{listening.name}"
    host, port = listening.getsockname()[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _everywhere(port: int, option: str) -> socket.socket:
    """One socket for both protocols; where there is no IPv6, for IPv4 alone."""
    try:
        return _listen(socket.AF_INET6, ("::", port))
    except OSError as error:
        if error.errno not in (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL, errno.ENOPROTOOPT):
            raise _refused(error, None, port, option) from error
    try:
        return _listen(socket.AF_INET, ("0.0.0.0", port))  # noqa: S104 - wanted
    except OSError as error:
        raise _refused(error, None, port, option) from error


def _listen(family: int, address: tuple[object, ...]) -> socket.socket:
    with contextlib.ExitStack() as undo:
        listening = undo.enter_context(socket.socket(family, socket.SOCK_STREAM))
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            listening.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, address[0] != "::")
        listening.bind(address)
        listening.listen(BACKLOG)
        listening.setblocking(False)
        undo.pop_all()
    return listening


def _not_ours(interface: str, option: str) -> CannotListen:
    return CannotListen(
        f"{interface!r} is not an address of this machine: give {_interface(option)} one of its IP addresses, "
        "or leave it out to listen on all of them"
    )


def _interface(option: str) -> str:
    """The option that goes with one for a port."""
    return option.removesuffix("port") + "interface"


def _refused(error: OSError, interface: str | None, port: int, option: str) -> CannotListen:
    where = f"port {port} of {interface}" if interface else f"port {port}"
    if error.errno == errno.EADDRINUSE:
        return CannotListen(f"{where} is in use: stop what listens there, or choose another {option}")
    if error.errno in (errno.EACCES, errno.EPERM):
        return CannotListen(
            f"{where} needs more rights than this user has: choose a {option} of 1024 or above, or start as root "
            "and let 'twistd --uid' change the user"
        )
    return CannotListen(f"cannot listen on {where} ({error.strerror}): choose another {option} or {_interface(option)}")
