"""What a repository looks like on disk, and whether a directory is one.

::

    REPO/format        one line: name, format version, and the identity of this store
    REPO/index/        LMDB, see `artifactserver.store.rows`
    REPO/packs/        append-only packs of small blobs and of record changes, see `artifactserver.store.packs`
    REPO/blobs/ab/     one plain file per large blob, see `artifactserver.store.files`
    REPO/incoming/     uploads in flight, see `artifactserver.store.uploads`
    REPO/quarantine/   what failed a check, for a person to look at

``format`` is written last when a repository is made, and is what makes a directory a repository.  Every process
that has the repository open holds a shared lock on it; what needs the repository for itself takes an exclusive one.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import uuid
from dataclasses import dataclass
from pathlib import Path

from artifactserver.store import disk

#: The version of everything described in this package.  A repository of a newer version is refused.
FORMAT_VERSION = 1

_FORMAT = re.compile(r"artifactserver repository, format (\d{1,9}), store ([0-9a-f]{32})\n")
#: What the names of files begin with that only show whether a directory can be written.
PROBE = ".probe-"

_DIRECTORIES = ("index", "packs", "blobs", "incoming", "quarantine")


class RepositoryProblem(Exception):
    """A directory cannot be used as a repository; ``str()`` is one sentence that says what to do."""


@dataclass(frozen=True, slots=True)
class Layout:
    """The paths inside the repository at ``root``."""

    root: Path

    @property
    def format(self) -> Path:
        return self.root / "format"

    @property
    def index(self) -> Path:
        return self.root / "index"

    @property
    def packs(self) -> Path:
        return self.root / "packs"

    @property
    def blobs(self) -> Path:
        return self.root / "blobs"

    @property
    def incoming(self) -> Path:
        return self.root / "incoming"

    @property
    def quarantine(self) -> Path:
        return self.root / "quarantine"

    def create(self) -> None:
        """Make a repository out of a directory that does not exist or is empty, or finish making one.

        :raises RepositoryProblem: if the directory holds something else, or cannot be written.
        """
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            found = {entry.name for entry in os.scandir(self.root)}
        except OSError as error:
            raise _cannot(self.root, error) from error
        if "format" in found:
            return
        begun = {name for name in found if name.startswith("format.new")}
        foreign = found - {*_DIRECTORIES} - begun
        if {"cas", "refs"} <= foreign or {"cas", "artifacts"} <= foreign:
            raise RepositoryProblem(
                f"{self.root} is a repository of BuildStream's own artifact server, which this version does not take "
                "over: name a new directory"
            )
        if foreign:
            raise RepositoryProblem(
                f"{self.root} is not an artifactserver repository and not empty (it holds {min(foreign)!r}): "
                "name a new or an empty directory"
            )
        if any(any((self.root / name).iterdir()) for name in found & {"packs", "blobs"}):
            raise RepositoryProblem(
                f"{self.format} is missing from a repository that holds data: restore that file from a backup"
            )
        try:
            for name in _DIRECTORIES:
                (self.root / name).mkdir(exist_ok=True)
            new = self.root / f"format.new-{uuid.uuid4().hex}"
            fd = os.open(new, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
            try:
                line = f"artifactserver repository, format {FORMAT_VERSION}, store {uuid.uuid4().hex}\n"
                disk.write(fd, line.encode("ascii"), 0)
                disk.sync(fd)
            finally:
                os.close(fd)
            try:
                disk.link(new, self.format)  # the first of several processes wins; a rename would let the last one
            except (FileExistsError, FileNotFoundError):
                pass  # another process was first, and has cleared this one away
            for name in begun | {new.name}:
                disk.unlink(self.root / name)
            disk.sync_directory(self.root)
            disk.sync_directory(self.root.parent)
        except OSError as error:
            raise _cannot(self.root, error) from error

    def identity(self) -> str:
        """The identity of the store, from ``format``.

        :raises RepositoryProblem: if this is not a repository that this version can use.
        """
        try:
            text = self.format.read_bytes()[:200].decode("ascii", "replace")
        except FileNotFoundError:
            raise RepositoryProblem(
                f"{self.root} is not an artifactserver repository: it has no file {self.format.name!r}"
            ) from None
        except OSError as error:
            raise _cannot(self.root, error) from error
        match = _FORMAT.fullmatch(text)
        if match is None:
            raise RepositoryProblem(
                f"{self.format} is not the format file of an artifactserver repository: "
                "name another directory, or restore that file from a backup"
            )
        if int(match[1]) > FORMAT_VERSION:
            raise RepositoryProblem(
                f"{self.root} has store format {match[1]}, and this version of artifactserver knows formats up to "
                f"{FORMAT_VERSION}: install a newer artifactserver"
            )
        return match[2]

    def check_writable(self, but: str = "") -> None:
        """Look whether every part is there, and can be written.

        :param but: a part that need not be there.
        :raises RepositoryProblem: if one is not.
        """
        for name in _DIRECTORIES:
            if name == but:
                continue
            path = self.root / name
            if not path.is_dir():
                raise RepositoryProblem(
                    f"{path} is missing from the repository: "
                    + (
                        f"run 'artifactserver fsck --rebuild-index {self.root}'"
                        if name == "index"
                        else "restore it from a backup, or make it again as an empty directory to go on without"
                    )
                )
            if not os.access(path, os.R_OK | os.W_OK | os.X_OK, effective_ids=os.access in os.supports_effective_ids):
                raise _cannot(path, PermissionError("Permission denied"))
        probe = self.incoming / f"{PROBE}{uuid.uuid4().hex}"
        try:  # the permissions may be right and the file system still read-only
            os.close(os.open(probe, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
            disk.unlink(probe)
        except OSError as error:
            if error.errno not in disk.FULL:  # what is there can still be served
                raise _cannot(self.root, error) from error

    def lock(self, exclusive: bool = False) -> int:
        """Hold the repository until the descriptor that is returned is closed.

        :raises RepositoryProblem: if it is wanted exclusively and somebody has it open, or the other way round.
        """
        try:
            fd = os.open(self.format, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise _cannot(self.root, error) from error
        try:
            fcntl.flock(fd, (fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH) | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(fd)
            raise RepositoryProblem(
                f"{self.root} is in use by a running server: stop it first"
                if exclusive
                else f"{self.root} is being repaired by 'artifactserver fsck': start again when that has finished"
            ) from None
        except OSError as error:
            os.close(fd)
            raise _cannot(self.root, error) from error
        return fd


def _cannot(path: Path, error: OSError) -> RepositoryProblem:
    reason = error.strerror or str(error)
    if error.errno in disk.FULL:
        return RepositoryProblem(f"there is no space left for a repository at {path}: make room, or name another place")
    if error.errno in (errno.EEXIST, errno.ENOTDIR):
        return RepositoryProblem(f"{path} is no directory, or leads to none: name a directory")
    return RepositoryProblem(
        f"{path} cannot be used as a repository ({reason}): name a directory that this user can write, "
        "or change its permissions"
    )
