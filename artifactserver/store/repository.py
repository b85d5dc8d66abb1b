"""Making, checking and opening a repository: what has to be true before a store may serve from it."""

from __future__ import annotations

import os
from pathlib import Path

from twisted.logger import Logger

from artifactserver.store import uploads
from artifactserver.store.index import Index
from artifactserver.store.layout import Layout, RepositoryProblem
from artifactserver.store.packs import pack_ids, pack_name

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
            # Whoever began to make the index may not have come to the end of it.
            self.index.open(create=create and self._holds_nothing())
        except BaseException:
            os.close(self._lock)
            raise
        try:
            self._check_age()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        self.index.close()
        os.close(self._lock)

    def sweep(self) -> None:
        """Clear away what uploads of processes that died have left."""
        swept = uploads.sweep(self.layout.incoming, self.layout.blobs, self.index.names_file)
        if swept:
            _log.info("cleared away {count} uploads that were cut off", count=swept)

    def _holds_nothing(self) -> bool:
        return not pack_ids(self.layout.packs) and not any(self.layout.blobs.iterdir())

    def _check_age(self) -> None:
        """See that packs and index are of the same age."""
        files = pack_ids(self.layout.packs)
        if files and files[-1] >= self.index.next_pack():
            raise RepositoryProblem(
                f"the index {self.layout.index} is older than {self.layout.packs / pack_name(files[-1])}: "
                f"run 'artifactserver fsck --rebuild-index {self.layout.root}'"
            )

    def forget_lost_packs(self) -> None:
        """Let what was in packs whose files are gone be missing."""

        def is_lost(pack: int) -> bool:
            # Rows first, files second: a file is there before its row says that anything in it is committed.
            return not (self.layout.packs / pack_name(pack)).exists()

        lost = [pack for pack, committed in self.index.committed_packs() if committed and is_lost(pack)]
        if lost:
            with self.index.change() as changes:
                for pack in lost:
                    changes.drop_pack(pack)
            _log.error(
                "packs {packs} have lost their files: what they held is missing until it is uploaded again",
                packs=", ".join(map(pack_name, lost)),
            )
