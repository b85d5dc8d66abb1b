"""How much space uploads may still take: the disk's free space, less the head room that has to stay free."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from artifactserver.store.interface import NoRoom, TooBusy

#: A caller with an upload under way may bring what its uploads reserve up to this share of the room there is.  Its
#: only upload may take all of it.
CALLER_SHARE = 0.5

#: Uploads of large blobs that one caller, and all callers together, may have under way.
CALLER_UPLOADS = 128
ALL_UPLOADS = 1024

#: Bytes that are promised after one look at the disk, if it had that many: to look costs more than to promise, and next
#: to the head room they are nothing.
LOOK_BYTES = 1024 * 1024


class Promise:
    """Space for bytes that are not on disk yet.  As a context manager it holds until the end of the block.

    :ivar size: how many bytes may still come.
    """

    __slots__ = ("_room", "size")

    def __init__(self, room: Room, size: int) -> None:
        self._room = room
        self.size = size
        room.count(size)

    def reduce(self, size: int) -> None:
        """No more than ``size`` bytes are still to come: the others have their space on disk, or need none."""
        self._room.count(size - self.size)
        self.size = size

    def __enter__(self) -> Promise:
        return self

    def __exit__(self, *why: object) -> None:
        self.reduce(0)


@dataclass(slots=True)
class _Caller:
    """What one caller has under way.

    :ivar reserved: bytes.
    """

    uploads: int = 0
    reserved: int = 0


class Room:
    """The free space of the file system that holds ``path``.

    :param head_room: bytes that uploads must leave free.
    """

    def __init__(self, path: Path, head_room: int, statvfs: Callable[[Path], Any] = os.statvfs) -> None:
        self._path = path
        self._head_room = head_room
        self._statvfs = statvfs
        self._promised = 0
        # What may be promised before the next look.
        self._granted = 0
        self._callers: dict[str, _Caller] = {}
        self._uploads = 0

    def available(self) -> int:
        """Bytes that uploads may still take, besides those that have been accepted already."""
        status = self._statvfs(self._path)
        free: int = status.f_bavail * status.f_frsize
        return free - self._head_room - self._promised

    def require(self, size: int) -> int:
        """How much is available, which is at least ``size``.

        :raises NoRoom: if so many more bytes would eat into the head room.
        """
        available = self.available()
        if size > available:
            raise NoRoom(
                f"the server has no room for {size} more bytes: it keeps {self._head_room} bytes of its disk free"
            )
        return available

    def promise(self, size: int) -> Promise:
        """Count ``size`` bytes as taken while they are not yet on disk.

        :raises NoRoom: if there is no space for them.
        """
        if size > self._granted:
            self._granted = min(self.require(size), size + LOOK_BYTES)
        self._granted -= size
        return Promise(self, size)

    def count(self, change: int) -> None:
        """So many bytes more, or less, are promised."""
        self._promised += change

    def enter(self, caller: str, size: int) -> None:
        """Admit one upload of ``size`` bytes; `leave` has to follow.

        :raises TooBusy: if too many uploads are under way.
        :raises NoRoom: if there is no space for this one, or not for this caller.
        """
        own = self._callers.get(caller) or _Caller()
        if own.uploads >= CALLER_UPLOADS or self._uploads >= ALL_UPLOADS:
            raise TooBusy("too many large uploads are under way: try again when some of them have finished")
        self.require(size)
        if own.uploads and own.reserved + size > CALLER_SHARE * (self.available() + own.reserved):
            raise NoRoom("the uploads that this client has under way reserve too much of the server's disk")
        own.uploads += 1
        own.reserved += size
        self._uploads += 1
        self._callers[caller] = own

    def leave(self, caller: str, size: int) -> None:
        own = self._callers[caller]
        own.uploads -= 1
        own.reserved -= size
        self._uploads -= 1
        if not own.uploads:
            del self._callers[caller]
