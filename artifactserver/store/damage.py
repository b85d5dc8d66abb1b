"""What happens to content that fails a check: it is put aside for a person to look at, and is missing from then on.

So the client that needs it uploads it again, and the store is whole again without anybody's help.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred
from twisted.logger import Logger

from artifactserver.store.batch import Work
from artifactserver.store.changes import Changes
from artifactserver.store.digest import Digest
from artifactserver.store.files import FileName
from artifactserver.store.layout import Layout
from artifactserver.store.packs import Place, entry_bytes, pack_name
from artifactserver.store.rows import FileRow, RecordRow

#: Files that the quarantine holds at most; further damage is only removed.  A failing disk must not fill itself.
QUARANTINE_FILES = 1000


class Quarantine:
    """Puts damaged content aside.

    :param submit: hands work to the committer.
    """

    _log = Logger()

    def __init__(self, layout: Layout, submit: Callable[[Work], Deferred[Any]]) -> None:
        self._layout = layout
        self._submit = submit

    async def packed(self, digest: Digest, value: bytes, place: Place, reason: str) -> None:
        """The entry of a blob is damaged; ``value`` is its row."""

        def edit(changes: Changes) -> bool:
            if not changes.remove_blob(digest.key, value):
                return False
            self._copy(f"{digest.hex}.{place.pack:016x}.{place.offset}", len(digest.hash), place)
            return True

        if await self._submit(Work(edit=edit)):
            self._log.error(
                "blob {digest} is damaged in pack {pack} at {offset}: {reason}; it is missing until uploaded again",
                digest=str(digest),
                pack=place.pack,
                offset=place.offset,
                reason=reason,
            )

    async def filed(self, digest: Digest, value: bytes, reason: str) -> None:
        """The file of a blob is damaged or gone; ``value`` is its row."""

        def edit(changes: Changes) -> bool:
            if not changes.remove_blob(digest.key, value):
                return False
            row = FileRow.decode(value)
            if row is not None:
                self._move(FileName.of_row(digest.key, row))
            return True

        if await self._submit(Work(edit=edit)):
            self._log.error(
                "blob {digest} is damaged in its file: {reason}; it is missing until uploaded again",
                digest=str(digest),
                reason=reason,
            )

    async def record(self, record: bytes, name: bytes | None, row: RecordRow, reason: str) -> None:
        """The entry of the record with this hash is damaged.

        :param name: its key in the index's ``names``, `None` if it has none there.
        """

        def edit(changes: Changes) -> bool:
            self._copy(f"record-{record.hex()}.{row.place.pack:016x}.{row.place.offset}", len(record), row.place)
            return changes.remove_record(record, name, row)

        if await self._submit(Work(edit=edit)):
            self._log.error(
                "record {record} is damaged in pack {pack} at {offset}: {reason}; it is gone",
                record=record.hex(),
                pack=row.place.pack,
                offset=row.place.offset,
                reason=reason,
            )

    def _room(self) -> bool:
        return len(os.listdir(self._layout.quarantine)) < QUARANTINE_FILES

    def _copy(self, name: str, hash_bytes: int, place: Place) -> None:
        try:
            if self._room():
                with open(self._layout.packs / pack_name(place.pack), "rb") as pack:
                    pack.seek(place.offset)
                    content = pack.read(entry_bytes(hash_bytes, place.stored))
                (self._layout.quarantine / name).write_bytes(content)
        except OSError as error:
            self._log.warn("what was damaged could not be put aside as {name}: {error}", name=name, error=error)

    def _move(self, name: FileName) -> None:
        source = name.below(self._layout.blobs)
        try:
            if self._room():
                os.rename(source, self._layout.quarantine / str(name))
            else:
                os.unlink(source)
        except FileNotFoundError:
            pass
        except OSError as error:
            self._log.warn("damaged file {path} could not be put aside: {error}", path=str(source), error=error)
