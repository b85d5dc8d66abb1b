"""A process that dies at any step of a commit leaves a repository in which everything acknowledged is right.

Deterministic where `test_crash` is random: for each durable step in turn a process is ended on its way into that step,
and on its way out.
"""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from artifactserver.store import disk, fsck, rebuild
from artifactserver.store.digest import Digests
from artifactserver.store.index import Index
from artifactserver.store.interface import Blob, Record, RecordKey, RecordKind, Reference
from tests.local_stores import LocalStoreTestCase
from tests.store_contract import blob
from tests.test_local_store import NoProgress

STEPS: list[tuple[Any, str]] = [
    (disk, "reserve"),
    (disk, "write_pieces"),
    (disk, "sync"),
    (disk, "sync_directory"),
    (disk, "link"),
    (disk, "unlink"),
    (Index, "_commit"),
]

#: How many calls of each step the work below makes at least.
CALLS = 4


#: The names that what is stored gets, all at once.
NAMES = ("this", "that", "and the other")


def work(number: int) -> tuple[list[Blob], list[Record]]:
    """What is stored in round ``number``."""
    blobs = [blob(b"%d" % number * 500), blob(b"large %d" % number * 20_000)]
    references = tuple(Reference(each.digest) for each in blobs)
    return blobs, [Record(RecordKey(RecordKind.ASSET_BLOB, "", name), b"%d" % number, references) for name in NAMES]


def _die_in_step(path: Path, step: int, nth: int, after: bool) -> None:
    """The process: store round after round, say what was acknowledged, and die in the nth call of a step."""
    from twisted.internet import reactor
    from twisted.internet.defer import Deferred

    from artifactserver.store.local import LocalStore

    owner, name = STEPS[step]
    real = getattr(owner, name)
    calls = 0

    def dying(*arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == nth and not after:
            os._exit(9)
        result = real(*arguments)
        if calls == nth:
            os._exit(9)
        return result

    store = LocalStore(path, reactor=reactor, now=time.time, head_room_min=0)
    store.start()
    setattr(owner, name, dying)

    async def rounds() -> None:
        for number in range(4):
            blobs, records = work(number)
            if await store.add_many(blobs) == [None, None]:
                os.write(1, pickle.dumps(("blobs", number)))
            await store.set_records(records)
            os.write(1, pickle.dumps(("records", number)))
        os._exit(0)

    reactor.callWhenRunning(lambda: Deferred.fromCoroutine(rounds()).addErrback(lambda failure: os._exit(1)))
    reactor.run()


class PowerCutTests(LocalStoreTestCase):
    """See the module."""

    timeout = 300

    async def test_every_step(self) -> None:
        """Whichever step is the last, acknowledged work is there afterwards, and the repository is sound."""
        died = 0
        for step in range(len(STEPS)):
            for nth in range(1, CALLS + 1):
                for after in (False, True):
                    died += await self.one(step, nth, after)
        self.assertGreater(died, len(STEPS) * CALLS)

    async def one(self, step: int, nth: int, after: bool) -> bool:
        """One process, its end, and what it left; whether it died in the step."""
        path = self.new_path()
        store = await self.open_store(path)
        await self.close_store(store)
        arguments = [str(path.resolve()), str(step), str(nth), str(int(after))]
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.test_power_cut", *arguments],
            stdout=subprocess.PIPE,
            cwd=Path(__file__).parent.parent,
        )
        output = process.communicate()[0]
        self.assertIn(process.returncode, (0, 9))
        blobs, named = set(), None
        while output:
            what, number = pickle.loads(output)
            output = output[len(pickle.dumps((what, number))) :]
            if what == "blobs":
                blobs.add(number)
            else:
                named = number
        await self.verify(path, blobs, named)
        self.assertEqual(os.listdir(path / "incoming"), [])
        self.assertEqual(fsck.check(path, NoProgress()).problems, [], (STEPS[step], nth, after))
        rebuild.rebuild_index(path, NoProgress(), time.time)
        await self.verify(path, blobs, named)
        return process.returncode == 9

    async def verify(self, path: Path, acknowledged: set[int], named: int | None) -> None:
        """What was acknowledged is there, whatever else is there is right and whole, and new work succeeds.

        :param acknowledged: the rounds whose blobs were.
        :param named: the last round whose records were.
        """
        store = await self.open_store(path)
        for number in range(4):
            blobs, _ = work(number)
            contents = await store.read_many(Digests.of(each.digest for each in blobs))
            for each, content in zip(blobs, contents, strict=True):
                self.assertIn(content, (each.content,) if number in acknowledged else (each.content, None))
        records = [await store.get_record(record.key) for record in work(0)[1]]
        (value,) = {record and record.value for record in records}
        if named is not None:
            self.assertGreaterEqual(int(value or b"-1"), named)
        else:
            self.assertIn(value, (None, b"0"))
        blobs, _ = work(7)
        self.assertEqual(await store.add_many(blobs), [None, None])
        await store.set_record(Record(RecordKey(RecordKind.ASSET_BLOB, "", "another"), b"", ()))
        await self.close_store(store)


if __name__ == "__main__":
    _die_in_step(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), bool(int(sys.argv[4])))
