"""Making, checking and opening a repository: what has to be true before a store may serve from it."""

from __future__ import annotations

import os
from pathlib import Path

from twisted.logger import Logger

from artifactserver.store import uploads
from artifactserver.store.files import FileName
from artifactserver.store.index import Index
from artifactserver.store.layout import Layout, RepositoryProblem
from artifactserver.store.packs import pack_ids, pack_name
from artifactserver.store.rows import FileRow

_log = Logger()


def prepare(path: Path) -> None:
    """Make a repository at ``path``, or see that there is one which can be served.

    Nothing is left open, so it may be done before a daemon forks.

    :raises RepositoryProblem: if it cannot; one sentence that says what to do.
    """
    opened = Repository(path, create=True)
    opened.close()


class Repository:
    """A repository that this process has open, with its index.

    :param create: make it if there is nothing yet.
    :raises RepositoryProblem: if it cannot be used.
    """

    def __init__(self, path: Path, create: bool = False) -> None:
        self.layout = Layout(path)
        if create:
            self.layout.create()
        identity = self.layout.identity()
        self.layout.check_writable()
        self._lock = self.layout.lock()
        try:
            self.index = Index(self.layout.index, identity)
            new = create and not (self.layout.index / "data.mdb").exists() and self._holds_nothing()
            self.index.open(create=new)
        except BaseException:
            os.close(self._lock)
            raise
        try:
            self._check_packs()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        self.index.close()
        os.close(self._lock)

    def sweep(self) -> None:
        """Clear away what uploads of processes that died have left."""
        swept = uploads.sweep(self.layout.incoming, self.layout.blobs, self._is_indexed)
        if swept:
            _log.info("cleared away {count} uploads that were cut off", count=swept)

    def _holds_nothing(self) -> bool:
        return not pack_ids(self.layout.packs) and not any(self.layout.blobs.iterdir())

    def _is_indexed(self, name: FileName) -> bool:
        (value,), _ = self.index.look_up([name.key])
        row = FileRow.decode(value) if value is not None else None
        return row is not None and row.serial == name.serial

    def _check_packs(self) -> None:
        """See that packs and index are of the same age, and that every pack is there."""
        files = pack_ids(self.layout.packs)
        if files and files[-1] >= self.index.next_pack():
            raise RepositoryProblem(
                f"the index {self.layout.index} is older than {self.layout.packs / pack_name(files[-1])}: "
                f"run 'artifactserver fsck --rebuild-index {self.layout.root}'"
            )
        there = set(files)
        lost = [pack for pack, committed in self.index.committed_packs() if committed and pack not in there]
        if lost:
            with self.index.change() as changes:
                for pack in lost:
                    changes.drop_pack(pack)
            _log.error(
                "packs {packs} have lost their files: what they held is missing until it is uploaded again",
                packs=", ".join(map(pack_name, lost)),
            )
