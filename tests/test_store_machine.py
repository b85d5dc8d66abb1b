"""A store on a disk, used at random by two processes while the disk is damaged, beside a model of what has to be true.

What was acknowledged and not damaged is served, whole.  What was damaged is served whole or missing, and never wrong;
once it was found missing, it can be uploaded again.  What nobody acknowledged is there whole or not at all.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar
from unittest import mock

from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from twisted.trial.unittest import SynchronousTestCase

from artifactserver.store.digest import EMPTY, Digest
from artifactserver.store.interface import Blob, ContentMismatch, Incomplete, Record, RecordKey, Reference
from artifactserver.store.layout import RepositoryProblem
from artifactserver.store.packs import KIND_BLOB, entry_bytes
from artifactserver.store.rebuild import rebuild_index
from artifactserver.store.scan import Entry, scan
from tests.chance import examples
from tests.store_ends import End, NoProgress, OtherEnd, OtherProcess, set_sizes
from tests.store_model import BLOBS, BY_HASH, KEYS, Known, make_blob

numbers = st.integers(0, BLOBS - 1)
some_or_all = st.just(set(range(BLOBS))) | st.sets(numbers, min_size=1, max_size=6)
keys = st.sampled_from(KEYS)
ends = st.integers(0, 1)
rarely = st.sampled_from([False, False, False, True])


class StoreMachine(RuleBasedStateMachine):
    """Two ends, a repository, and what is known of it.

    Of each blob that was ever sent: it is in ``sure`` (acknowledged, and whole as far as we did not damage it), in
    ``damaged`` (there was damage where it stands), in ``unsure`` (nobody acknowledged it), or in none of them.
    """

    case: ClassVar[SynchronousTestCase]
    process: ClassVar[OtherProcess | None] = None

    @initialize(salt=st.integers(0, 1000), filled=st.booleans())
    def start(self, salt: int, filled: bool) -> None:
        self.path = Path(self.case.mktemp())
        self.blobs = [make_blob(number, salt) for number in range(BLOBS)]
        self.by_digest = {blob.digest: blob for blob in self.blobs}
        self.ends: list[Any] = [None, None]
        self.sure: set[Digest] = set()
        self.damaged: set[Digest] = set()
        self.unsure: set[Digest] = set()
        self.records = {key: Known() for key in KEYS}
        self.values = 0
        self.kills = 0
        self.whole = True
        self.open(0)
        if filled:
            for start in range(0, BLOBS, 6):
                self.batch((0, list(range(start, start + 4)), False))
                self.set_records(0, set(KEYS[start // 6 :]), {start})

    def teardown(self) -> None:
        if hasattr(self, "ends"):
            for number, end in enumerate(self.ends):
                if end is not None:
                    self.close(number)
            shutil.rmtree(self.path, ignore_errors=True)

    # Ends

    def open(self, number: int) -> Any:
        """The store of one end, which is opened for that if need be."""
        if self.ends[number] is None:
            if not number:
                self.ends[0] = End(self.path)
            else:
                cls = type(self)
                if cls.process is None:
                    cls.process = OtherProcess()
                self.ends[1] = OtherEnd(cls.process, self.path)
        return self.ends[number]

    def close(self, number: int) -> None:
        end, self.ends[number] = self.ends[number], None
        if end is not None:
            end.close()

    @rule(number=ends, tidy=st.booleans(), again=st.booleans())
    def close_one(self, number: int, tidy: bool, again: bool) -> None:
        """A process ends, and another one begins, at once or when it is needed."""
        end = self.open(number)
        if tidy:
            end.tidy()
        self.close(number)
        if again:
            self.open(number)

    # Blobs

    def stored(self, digest: Digest) -> None:
        """It is on the disk, newly written or found whole."""
        self.sure.add(digest)
        self.damaged.discard(digest)
        self.unsure.discard(digest)

    @rule(batch=st.tuples(ends, st.lists(numbers, min_size=1, max_size=8), rarely))
    def batch(self, batch: tuple[int, list[int], bool]) -> None:
        """Upload some blobs at once; one of them may not be what it says.

        Chance prefers rules with few arguments, and this is the one to prefer.
        """
        number, chosen, wrong = batch
        end = self.open(number)
        blobs = [self.blobs[place] for place in chosen]
        new = end.missing(list(dict.fromkeys(blob.digest for blob in blobs)))
        outcomes = end.add([*blobs, Blob(blobs[0].digest, blobs[0].content + b"!")] if wrong else blobs)
        if wrong:
            assert isinstance(outcomes.pop(), ContentMismatch)
        assert outcomes == [None] * len(blobs)
        for digest in new:
            self.stored(digest)

    @rule(number=ends, chosen=numbers, cut=st.integers(1, 5_000), wrong=rarely)
    def upload(self, number: int, chosen: int, cut: int, wrong: bool) -> None:
        """Upload one blob in pieces, whether it is there or not: it gets a file, which takes the place of another."""
        blob = self.blobs[chosen]
        content = blob.content[:-1] + bytes([blob.content[-1] ^ 1]) if wrong else blob.content
        pieces = [content[start : start + cut] for start in range(0, len(content), cut)]
        end = self.open(number)
        try:
            end.upload(blob.digest, pieces)
        except ContentMismatch:
            assert wrong
        else:
            assert not wrong
            self.stored(blob.digest)

    def look(self, end: Any, digests: list[Digest], cut: int = 0) -> None:
        """Read blobs, and see whether what comes is right."""
        said_missing = end.missing(digests)
        contents = [end.stream(digest, cut) for digest in digests] if cut else end.read(digests)
        for digest, content in zip(digests, contents, strict=True):
            if content is None:
                assert digest not in self.sure, "it was acknowledged"
                assert digest in said_missing or digest in self.damaged, "it was said to be here"
                self.damaged.discard(digest)
                self.unsure.discard(digest)
            else:
                assert digest not in said_missing, "it was said to be missing"
                assert content == self.by_digest[digest].content, "it is another content"
                self.stored(digest)
        still = end.missing(digests)
        assert still == {digest for digest, content in zip(digests, contents, strict=True) if content is None}

    @rule(number=ends, chosen=some_or_all, cut=st.sampled_from([0, 0, 700, 2_000, 9_000]))
    def read(self, number: int, chosen: set[int], cut: int) -> None:
        """Read some blobs, at once or as a stream."""
        self.look(self.open(number), [self.blobs[place].digest for place in sorted(chosen)], cut)

    @rule(number=ends, chosen=some_or_all)
    def heal(self, number: int, chosen: set[int]) -> None:
        """Read some blobs and upload those that are missing, as clients do."""
        end = self.open(number)
        digests = [self.blobs[place].digest for place in sorted(chosen)]
        self.look(end, digests)
        missing = end.missing(digests)
        assert end.add([self.by_digest[digest] for digest in missing]) == [None] * len(missing)
        for digest in digests:
            self.stored(digest)
        self.look(end, digests)

    # Records

    @rule(
        number=ends,
        chosen=st.sets(keys, min_size=1, max_size=3),
        needs=st.sets(numbers, max_size=3),
    )
    def set_records(self, number: int, chosen: set[RecordKey], needs: set[int]) -> None:
        """Set records that require some blobs: all of these are there, or it is refused."""
        records, required = self.some_records(chosen, needs)
        end = self.open(number)
        try:
            end.set(records)
        except Incomplete:
            assert not self.sure.issuperset(required)
        else:
            assert not end.missing(required)
            for record in records:
                self.noted(record.key, record.value)

    def some_records(self, chosen: set[RecordKey], needs: set[int]) -> tuple[list[Record], list[Digest]]:
        """Records with a value of their own, and what they require."""
        self.values += 1
        required = [self.blobs[place].digest for place in sorted(needs)]
        records = [
            Record(key, b"%d" % self.values, tuple(map(Reference, required))) for key in sorted(chosen, key=KEYS.index)
        ]
        for record in records:
            self.records[record.key].references[record.value] = required
        return records, required

    def noted(self, key: RecordKey, value: bytes | None) -> None:
        """A change of a record was acknowledged."""
        known = self.records[key]
        known.history.append(value)
        known.values = {value}
        known.hurt = False

    @rule(number=ends, chosen=st.sets(keys, min_size=1))
    def delete(self, number: int, chosen: set[RecordKey]) -> None:
        """Delete some records."""
        for key in sorted(chosen, key=KEYS.index):
            known = self.records[key]
            if self.open(number).delete(key):
                assert known.values != {None}
                self.noted(key, None)
            else:
                assert None in known.values
                known.values = {None}

    @rule(number=ends, key=keys)
    def get(self, number: int, key: RecordKey) -> None:
        """Ask for a record."""
        self.ask(self.open(number), key)

    def ask(self, end: Any, key: RecordKey) -> None:
        known = self.records[key]
        value = end.get(key)
        if value is None:
            possible = [each for each in known.values if each is not None]
            lost = any(not self.sure.issuperset(known.references[each]) for each in possible)
            assert None in known.values or lost, (known, "it was acknowledged")
        else:
            assert value in known.values, (value, known)
            assert not end.missing(list(known.references[value]))

    # What happens to processes, and to the disk

    @precondition(lambda self: self.kills < 1)
    @rule(chosen=st.lists(numbers, max_size=5), key=st.none() | keys)
    def kill(self, chosen: list[int], key: RecordKey | None) -> None:
        """The other process is killed while it stores something."""
        self.kills += 1
        self.open(1)
        process = type(self).process
        assert process is not None
        if chosen:
            process.send("add", [self.blobs[place] for place in chosen])
            # What was damaged without anybody's knowledge may be stored anew, or found, or neither.
            self.unsure.update(
                digest for place in chosen if (digest := self.blobs[place].digest) not in self.sure | self.damaged
            )
        if key is not None:
            records, _ = self.some_records({key}, set())
            process.send("set", records)
            known = self.records[key]
            known.history.append(records[0].value)
            known.values = known.values | {records[0].value}
            known.hurt = True
        process.kill()
        type(self).process = None
        self.ends[1] = None

    def hurt(self, entries: list[Entry]) -> None:
        """What stands in these entries of a pack may be lost."""
        self.whole = False
        for entry in entries:
            if entry.kind == KIND_BLOB:
                for digest in self.sure | self.unsure:
                    if digest.hash == entry.hash:
                        self.sure.discard(digest)
                        self.unsure.discard(digest)
                        self.damaged.add(digest)
            elif entry.hash in BY_HASH:
                known = self.records[BY_HASH[entry.hash]]
                known.values = known.values | {None}
                known.hurt = True

    def pick(self, directory: str, which: int) -> Path | None:
        """One of the files of a kind."""
        files = sorted(path for path in (self.path / directory).rglob("*") if path.is_file() and path.stat().st_size)
        return files[which % len(files)] if files else None

    @rule(
        which=st.integers(0, 100),
        where=st.floats(0, 1, exclude_max=True),
        entry=st.none() | st.integers(0, 100),
        bit=st.integers(0, 7),
    )
    def flip(self, which: int, where: float, entry: int | None, bit: int) -> None:
        """A bit of a pack changes: anywhere, or in the head of an entry."""
        path = self.pick("packs", which)
        if path is not None:
            position = int(where * path.stat().st_size)
            entries = [each for each in scan(path) if isinstance(each, Entry)]
            if entry is not None and entries:
                position = entries[entry % len(entries)].offset + int(where * 52)
            self.hurt([each for each in entries if each.offset <= position < _end(each)])
            _flip(path, position, bit)

    @rule(which=st.integers(0, 100), where=st.floats(0, 1, exclude_max=True))
    def cut(self, which: int, where: float) -> None:
        """The end of a pack is lost."""
        path = self.pick("packs", which)
        if path is not None:
            length = int(where * path.stat().st_size)
            self.hurt([each for each in scan(path) if isinstance(each, Entry) and _end(each) > length])
            os.truncate(path, length)

    @rule(which=st.integers(0, 100), number=ends)
    def lose_pack(self, which: int, number: int) -> None:
        """A whole pack is lost, between two starts."""
        path = self.pick("packs", which)
        if path is not None:
            for each in (0, 1):
                self.close(each)
            self.hurt([each for each in scan(path) if isinstance(each, Entry)])
            path.unlink()
            self.open(number)

    @rule(
        which=st.integers(0, 100),
        where=st.floats(0, 1, exclude_max=True),
        how=st.sampled_from(["flip", "cut", "remove"]),
    )
    def damage_file(self, which: int, where: float, how: str) -> None:
        """A large blob's file is changed, cut short or removed."""
        path = self.pick("blobs", which)
        if path is None:
            return
        for digest in self.sure | self.unsure:
            if digest.hex in path.name:
                self.sure.discard(digest)
                self.unsure.discard(digest)
                self.damaged.add(digest)
        self.whole = False
        position = int(where * path.stat().st_size)
        if how == "flip":
            _flip(path, position, 0)
        elif how == "cut":
            os.truncate(path, position)
        else:
            path.unlink()

    # Repairs

    @rule(number=ends, repair=st.booleans())
    def check(self, number: int, repair: bool) -> None:
        """A check names what is damaged, and nothing else; what it has repaired is missing, or whole."""
        end = self.open(number)
        known = sorted(self.by_digest, key=str)
        before = end.missing(known)
        report = end.check(repair)
        named = {digest for digest in known if any(str(digest) in problem for problem in report.problems)}
        assert not named & self.sure, report.problems
        if self.whole:
            assert report.problems == [], report.problems
        after = end.missing(known)
        assert after == (before | named if repair else before)
        contents = end.read(known)
        lost = {digest for digest, content in zip(known, contents, strict=True) if content is None} - before
        assert lost == named, "not all damage was named, or more than that"
        self.look(end, known)
        if repair:
            again = end.check(False)
            assert not any("blob" in problem for problem in again.problems), again.problems

    @rule(lose=st.booleans(), number=ends)
    def rebuild(self, lose: bool, number: int) -> None:
        """The index is lost, or not, and made again."""
        if any(self.ends):
            with _refused("in use"):
                rebuild_index(self.path, NoProgress(), lambda: 1e9)
        for each in (0, 1):
            self.close(each)
        if lose:
            shutil.rmtree(self.path / "index")
            with _refused("--rebuild-index"):
                End(self.path)
        report = rebuild_index(self.path, NoProgress(), lambda: 1e9)
        if self.whole and not self.kills:
            assert report.problems == [], report.problems
        for known in self.records.values():
            if known.hurt:
                known.values = known.values | set(known.history)
        # It may have found an older copy of what was damaged or never acknowledged: that is whole.
        self.unsure |= self.by_digest.keys() - self.sure - self.damaged
        self.open(number)

    @invariant()
    def everything(self) -> None:
        """Through each end that is open, all is as it has to be."""
        for end in getattr(self, "ends", ()):
            if end is not None:
                sure = sorted(self.sure, key=str)
                assert not end.missing([*sure, EMPTY])
                for digest, content in zip(sure, end.read(sure), strict=True):
                    assert content == self.by_digest[digest].content
                for key in KEYS:
                    self.ask(end, key)


@contextmanager
def _refused(words: str) -> Iterator[None]:
    """What is done in the block is refused with these words."""
    try:
        yield
    except RepositoryProblem as problem:
        assert words in str(problem), problem
    else:
        raise AssertionError(f"not refused: {words}")


def _end(entry: Entry) -> int:
    return entry.offset + entry_bytes(len(entry.hash), entry.stored)


def _flip(path: Path, position: int, bit: int) -> None:
    with open(path, "r+b") as file:
        file.seek(position)
        byte = file.read(1)
        file.seek(position)
        file.write(bytes([byte[0] ^ 1 << bit]))


class StoreMachineTests(SynchronousTestCase):
    """A store on a disk, and what has to be true of it."""

    def test_machine(self) -> None:
        """What is acknowledged stays, and what is damaged is never served wrong, whatever happens in whatever order."""
        StoreMachine.case = self
        set_sizes(lambda owner, name, value: self.patch(owner, name, value))
        with mock.patch("os.fsync"), mock.patch("os.fdatasync"):  # The power stays on; there are tests for that.
            try:
                run_state_machine_as_test(StoreMachine, settings=examples(12, stateful_step_count=30))
            finally:
                if StoreMachine.process is not None:
                    StoreMachine.process.kill()
                    StoreMachine.process = None
