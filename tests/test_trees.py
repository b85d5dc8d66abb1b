"""Walking what a record reaches stays within its bounds, and gives way."""

from __future__ import annotations

from collections.abc import Sequence

from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase

from artifactserver.store import trees
from artifactserver.store.digest import Digest, Digests
from artifactserver.store.interface import BadReference, Blob, Incomplete, Reference, Shape
from tests.store_contract import blob, directory


class Dictionary:
    """Blobs in a dictionary."""

    def __init__(self, blobs: Sequence[Blob]) -> None:
        self.blobs = {each.digest: each.content for each in blobs}
        self.asked: list[Digest] = []

    async def find_missing(self, digests: Digests) -> list[int]:
        """As a store does."""
        self.asked += digests
        return [position for position, digest in enumerate(digests) if digest not in self.blobs]

    async def read_many(self, digests: Digests) -> list[bytes | None]:
        """As a store does."""
        self.asked += digests
        return [self.blobs.get(digest) for digest in digests]


class RequireAllTests(SynchronousTestCase):
    """`trees.require_all`."""

    turns = 0

    async def give_way(self) -> None:
        """Count the turns."""
        self.turns += 1

    def walk(self, blobs: Sequence[Blob], *references: Reference) -> Dictionary:
        """Walk in a store of these blobs, and see what was asked."""
        store = Dictionary(blobs)
        self.successResultOf(Deferred.fromCoroutine(trees.require_all(store, references, self.give_way)))
        return store

    def refuse(self, error: type[Exception], blobs: Sequence[Blob], *references: Reference) -> None:
        """The walk must end with this error."""
        store = Dictionary(blobs)
        self.failureResultOf(Deferred.fromCoroutine(trees.require_all(store, references, self.give_way)), error)

    def test_each_digest_once(self) -> None:
        """Whatever stands in many places is asked for once."""
        leaf = blob(b"leaf")
        inner = directory({str(number): leaf.digest for number in range(100)})
        root = directory({"leaf": leaf.digest}, {str(number): inner.digest for number in range(100)})
        asked = self.walk([leaf, inner, root], Reference(root.digest, Shape.DIRECTORY)).asked
        self.assertEqual(len(asked), len(set(asked)))

    def test_depth(self) -> None:
        """A tree that is nested too deep is refused."""
        self.patch(trees, "MAX_DEPTH", 3)
        levels = [directory()]
        for _ in range(3):
            levels.append(directory({}, {"d": levels[-1].digest}))
        self.walk(levels, Reference(levels[-2].digest, Shape.DIRECTORY))
        self.refuse(BadReference, levels, Reference(levels[-1].digest, Shape.DIRECTORY))

    def test_number(self) -> None:
        """A tree with too many different files is refused."""
        self.patch(trees, "MAX_REACHED", 10)
        leaves = [blob(b"%d" % number) for number in range(10)]
        root = directory({str(number): each.digest for number, each in enumerate(leaves)})
        self.refuse(BadReference, [*leaves, root], Reference(root.digest, Shape.DIRECTORY))
        self.walk(leaves, *(Reference(each.digest) for each in leaves))

    def test_size_of_a_directory(self) -> None:
        """A blob that is too large for a folder is not read as one."""
        self.patch(trees, "MAX_DIRECTORY_BYTES", 50)
        root = directory({"leaf": blob(b"leaf").digest})
        self.refuse(BadReference, [root], Reference(root.digest, Shape.DIRECTORY))

    def test_gives_way(self) -> None:
        """Others get their turn during a long walk."""
        self.patch(trees, "SLICE_DIGESTS", 10)
        leaves = [blob(b"%d" % number) for number in range(100)]
        self.walk(leaves, *(Reference(each.digest) for each in leaves))
        self.assertGreaterEqual(self.turns, 9)

    def test_gives_way_in_a_large_folder(self) -> None:
        """Others get their turn while one folder with very many files is read."""
        self.patch(trees, "SLICE_DIGESTS", 10)
        leaf = blob(b"leaf")
        root = directory({str(number): leaf.digest for number in range(100)})
        self.walk([leaf, root], Reference(root.digest, Shape.DIRECTORY))
        self.assertGreaterEqual(self.turns, 9)

    def test_optional(self) -> None:
        """What is optional may be missing, all of it or a part, and is asked for all the same."""
        leaf, absent = blob(b"leaf"), blob(b"absent")
        partial = directory({"a": absent.digest, "l": leaf.digest})
        references = (
            Reference(absent.digest, required=False),
            Reference(partial.digest, Shape.DIRECTORY, required=False),
            Reference(leaf.digest),
        )
        store = self.walk([leaf, partial], *references)
        self.assertIn(absent.digest, store.asked)

    def test_required_comes_before_optional(self) -> None:
        """What is missing is reported although something optional reached it first."""
        absent = blob(b"absent")
        self.refuse(Incomplete, [], Reference(absent.digest, required=False), Reference(absent.digest))
