"""Opening unix sockets: files that clients on the same machine connect to, such as a reverse proxy.

The file outlives a server that was killed, so one at which nobody listens is taken over.  Two servers that start at
once must not both find that: whoever looks has the lock of the directory, until clients can connect.
"""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import stat
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from artifactserver.ports.sockets import CannotListen
from artifactserver.ports.unix_ports import UnixSocket, file_at


def open_unix(path: Path, mode: int, backlog: int, owner: tuple[int, int] | None = None) -> UnixSocket:
    """Listen on a unix socket.

    :param path: absolute; if nobody listens on what is there, it is replaced.
    :param mode: who may connect, as the mode of the file.
    :param owner: to whom the file is given, as user and group.
    :return: a socket that does not block.
    :raises CannotListen: if that is not possible.
    """
    try:
        with _alone(path.parent), ExitStack() as undo:
            listening = undo.enter_context(UnixSocket(socket.AF_UNIX, socket.SOCK_STREAM))
            if _is_there(path):
                path.unlink()
            _bind(listening, path, mode)
            if owner is not None:
                os.chown(path, *owner)
            listening.listen(backlog)
            listening.setblocking(False)
            undo.pop_all()
            return listening
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise _taken(path) from None
        raise CannotListen(
            f"there can be no socket at {path} ({error.strerror}): choose a directory that is there and that this user "
            "may write to"
        ) from error


def _bind(listening: UnixSocket, path: Path, mode: int) -> None:
    # Set before, since whoever can connect in between stays connected.
    before = os.umask(0o777 & ~mode)
    try:
        listening.bind(os.fsencode(path))
    finally:
        os.umask(before)
    listening.made = file_at(path)


@contextmanager
def _alone(directory: Path) -> Iterator[None]:
    """No other server opens a socket in this directory meanwhile."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise CannotListen(
                f"another program has locked the directory {directory}: try again, or choose another for the socket"
            ) from None
        yield
    finally:
        os.close(descriptor)


def _is_there(path: Path) -> bool:
    """Whether there is a socket on which nobody listens.

    :raises CannotListen: if there is something else.
    """
    try:
        found = path.lstat()
    except FileNotFoundError:
        return False
    if not stat.S_ISSOCK(found.st_mode):
        raise CannotListen(f"{path} is there, and no socket: take it away, or choose another path")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        if probe.connect_ex(os.fsencode(path)) != errno.ECONNREFUSED:
            raise _taken(path)
    return True


def _taken(path: Path) -> CannotListen:
    return CannotListen(f"somebody listens on {path} already: stop them, or choose another path")
