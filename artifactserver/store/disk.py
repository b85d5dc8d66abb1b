"""Every step by which something becomes durable on disk: write, sync, link, unlink.

They stand in one place so that the order of them can be read, and so that tests can make each one fail.
"""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from artifactserver.store.interface import NoRoom, StoreBroken, StoreError, TooBusy

#: A disk, or a user's share of it, is full.
FULL = {errno.ENOSPC, errno.EDQUOT}

#: What a failed open or read says about the content: it is not there, or the disk cannot give it back.  Anything else
#: (no descriptors, no memory, no permission) says something about this process, and the content may be sound.
_CONTENT_LOST = {errno.ENOENT, errno.EIO, errno.EUCLEAN, errno.EBADMSG}

#: What passes when the server has less to do.
_SHORT_OF = {errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN}

#: How a file system, or a kernel, says that it cannot reserve space.
_CANNOT_RESERVE = {errno.EOPNOTSUPP, errno.ENOSYS}

#: Buffers that one ``writev`` takes on every system we run on (POSIX promises 16, Linux and the BSDs take 1024).
_IOV_MAX = 512


def write(fd: int, content: bytes, offset: int) -> None:
    """Write all of ``content`` at ``offset``."""
    written = os.pwrite(fd, content, offset)
    if written < len(content):
        view = memoryview(content)
        while written < len(content):
            written += os.pwrite(fd, view[written:], offset + written)


def write_pieces(fd: int, pieces: Sequence[bytes | memoryview], offset: int) -> None:
    """Write ``pieces`` one after the other from ``offset`` on."""
    for start in range(0, len(pieces), _IOV_MAX):
        group = pieces[start : start + _IOV_MAX]
        length = sum(map(len, group))
        if os.pwritev(fd, group, offset) < length:
            write(fd, b"".join(group), offset)
        offset += length


def sync(fd: int) -> None:
    """Returns when everything written to ``fd``, and its length, would survive a power cut."""
    os.fdatasync(fd)


def sync_directory(path: Path) -> None:
    """Returns when the names in the directory would survive a power cut."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def truncate(fd: int, length: int) -> None:
    os.ftruncate(fd, length)


def _find_fallocate() -> Callable[[int, int, int, int], int] | None:
    """The C library's ``fallocate``, if it has one.

    Python knows only ``posix_fallocate``, and where the file system cannot reserve space, glibc makes up for that by
    writing to every block: on ext3 that took 8 seconds for each GiB, in a thread that nobody can call back.
    ``fallocate`` says that it is not supported instead.
    """
    try:
        library = ctypes.CDLL(None, use_errno=True)
    except OSError:
        return None
    for name in ("fallocate64", "fallocate"):  # without the 64, lengths may have 32 bits
        function: Any = getattr(library, name, None)
        if function is not None:
            function.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
            function.restype = ctypes.c_int
            return function  # type: ignore[no-any-return]
    return None


_fallocate = _find_fallocate()


def reserve(fd: int, length: int) -> bool:
    """Give the file ``length`` bytes of disk space, so that writing them cannot fail for want of it.

    :return: whether that is something that the file system can do.
    """
    if not length:
        return True
    if _fallocate is None:
        return False
    while _fallocate(fd, 0, 0, length):
        number = ctypes.get_errno()
        if number in _CANNOT_RESERVE:
            return False
        if number != errno.EINTR:
            raise OSError(number, os.strerror(number))
    return True


def link(source: Path, target: Path) -> None:
    """Give a file a second name; the target must be new."""
    os.link(source, target)


def unlink(path: Path) -> None:
    """Remove a name, if it is there."""
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass


def failure(error: OSError, doing: str) -> StoreError:
    """The store's error for one of the operating system's, in words for the peer that waits for an answer."""
    if error.errno in FULL:
        return NoRoom(f"the server's disk is full: {doing} was given up")
    if error.errno in _SHORT_OF:
        return TooBusy(f"the server has too much in hand ({error.strerror}): {doing} was given up")
    return StoreBroken(f"the server's disk failed ({error.strerror}): {doing} was given up")


def is_lost(error: OSError) -> bool:
    """Whether a failed open or read says that the content is gone or damaged, rather than out of reach for us."""
    return error.errno in _CONTENT_LOST


class Descriptor:
    """A file open for reading, closed when the last one who uses it lets go of it, in whatever thread that is."""

    __slots__ = ("fd",)

    def __init__(self, path: Path) -> None:
        self.fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def __del__(self) -> None:
        if hasattr(self, "fd"):
            os.close(self.fd)
