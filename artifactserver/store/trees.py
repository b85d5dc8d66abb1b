"""Everything that a record reaches: is all of it present?

A tree of REAPI ``Directory`` messages is visited level by level and by unique digest, never by path, so a tree in
which the same folder occurs a million times costs no more than one in which it occurs once.  Asking for a blob's
presence is using it, so a walk also extends the life of everything that it finds.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Protocol

from google.protobuf.message import DecodeError

from artifactserver.proto import remote_execution_pb2
from artifactserver.store.digest import Digest, Digests, InvalidDigest
from artifactserver.store.interface import BadReference, Incomplete, Reference, Shape
from artifactserver.store.slices import slices

#: Different blobs that one record may reach.
MAX_REACHED = 1_000_000
#: The longest ``Directory`` message that is read, in bytes: some 300,000 files in one folder.
MAX_DIRECTORY_BYTES = 32 * 1024 * 1024
#: How deep folders may be nested.
MAX_DEPTH = 1_000

#: Digests looked up, and bytes of ``Directory`` messages read, before the reactor gets a turn: some milliseconds.
SLICE_DIGESTS = 500
SLICE_BYTES = 512 * 1024


class Blobs(Protocol):
    """What a walk needs of a store."""

    async def find_missing(self, digests: Digests) -> list[int]: ...

    async def read_many(self, digests: Digests) -> list[bytes | None]: ...


async def require_all(blobs: Blobs, references: Sequence[Reference], give_way: Callable[[], Awaitable[None]]) -> None:
    """Look whether everything that ``references`` require is present, all the way down.

    :param give_way: its awaitable lets others have the thread for a moment.
    :raises Incomplete: if something is missing.
    :raises BadReference: if a directory is none, or the whole is beyond the bounds.
    """
    walk = _Walk(blobs, give_way)
    await walk.visit([reference for reference in references if reference.required])
    for reference in references:
        if not reference.required:
            with suppress(Incomplete):
                await walk.visit([reference])


class _Node(Protocol):
    """A ``FileNode`` or a ``DirectoryNode``."""

    @property
    def digest(self) -> remote_execution_pb2.Digest: ...


@dataclass(slots=True)
class _Walk:
    blobs: Blobs
    give_way: Callable[[], Awaitable[None]]
    seen_blobs: set[bytes] = field(default_factory=set)
    seen_directories: set[bytes] = field(default_factory=set)

    async def visit(self, references: Iterable[Reference]) -> None:
        files: list[Digest] = []
        level: list[Digest] = []
        for reference in references:
            named = Digests.of([reference.digest])
            if reference.shape is Shape.DIRECTORY:
                self._add_unseen(named, self.seen_directories, level)
            else:
                self._add_unseen(named, self.seen_blobs, files)
        depth = 0
        while True:
            await self._require(files)
            if not level:
                return
            depth += 1
            if depth > MAX_DEPTH:
                raise BadReference(f"the tree is nested more than {MAX_DEPTH} folders deep")
            files, level = await self._children(level)

    def _add_unseen(self, digests: Digests, seen: set[bytes], found: list[Digest]) -> None:
        """Add to ``found`` those that have not been visited yet; they are taken as visited from now on."""
        for key, size in zip(digests.keys, digests.sizes, strict=True):
            name = key + size.to_bytes(8, "big")
            if name not in seen:
                seen.add(name)
                found.append(Digest(key, size))
        if len(self.seen_blobs) + len(self.seen_directories) > MAX_REACHED:
            raise BadReference(f"the tree has more than {MAX_REACHED} different files and folders")

    async def _require(self, digests: list[Digest]) -> None:
        for start in range(0, len(digests), SLICE_DIGESTS):
            if start:
                await self.give_way()
            wanted = Digests.of(digests[start : start + SLICE_DIGESTS])
            missing = await self.blobs.find_missing(wanted)
            if missing:
                raise _incomplete([wanted[position] for position in missing])

    async def _children(self, directories: list[Digest]) -> tuple[list[Digest], list[Digest]]:
        """The files and the folders that stand in ``directories`` and have not been visited yet."""
        files: list[Digest] = []
        folders: list[Digest] = []
        for digest in directories:
            if digest.size > MAX_DIRECTORY_BYTES:
                raise BadReference(f"{digest} is too large for a Directory message")
        all_wanted = Digests.of(directories)
        for start, end in slices(all_wanted.sizes, SLICE_DIGESTS, SLICE_BYTES):
            wanted = all_wanted[start:end]
            contents = await self.blobs.read_many(wanted)
            missing = [digest for digest, content in zip(wanted, contents, strict=True) if content is None]
            if missing:
                raise _incomplete(missing)
            for digest, content in zip(wanted, contents, strict=True):
                try:
                    message = remote_execution_pb2.Directory.FromString(content or b"")
                    await self._add_nodes(message.files, self.seen_blobs, files)
                    await self._add_nodes(message.directories, self.seen_directories, folders)
                except (DecodeError, InvalidDigest) as error:
                    raise BadReference(f"{digest} is not a Directory message: {error}") from error
            await self.give_way()
        return files, folders

    async def _add_nodes(self, nodes: Sequence[_Node], seen: set[bytes], found: list[Digest]) -> None:
        for start in range(0, len(nodes), SLICE_DIGESTS):
            if start:
                await self.give_way()
            part = [node.digest for node in nodes[start : start + SLICE_DIGESTS]]
            digests = Digests.parse([digest.hash for digest in part], [digest.size_bytes for digest in part])
            self._add_unseen(digests, seen, found)


def _incomplete(missing: list[Digest]) -> Incomplete:
    named = ", ".join(str(digest) for digest in missing[:3])
    more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
    return Incomplete(f"content is missing from this server: {named}{more}", missing)
