"""`artifactserver.store.presence`: what may be answered without asking the index, and what not."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from artifactserver.store import presence
from artifactserver.store.digest import Digest, Digests
from artifactserver.store.layout import Layout
from artifactserver.store.presence import REMEMBERED_SECONDS, Presence
from artifactserver.store.rows import RETIRING
from tests.local_stores import LocalStoreTestCase
from tests.store_contract import put, random_blob

ONE, TWO = Digest.of(b"one"), Digest.of(b"two!")
STATE = (b"generation", b"epoch")


class PresenceTests(SynchronousTestCase):
    """The memory alone."""

    def setUp(self) -> None:
        self.presence = Presence()
        self.assertFalse(self.knows(ONE))
        self.presence.learn([(ONE.key, ONE.size)])

    def knows(self, *digests: Digest, state: tuple[bytes, bytes] = STATE, now: float = 1000.0) -> bool:
        return self.presence.knows(Digests.of(digests), state, now)

    def test_known(self) -> None:
        """What was found is known to be there, and nothing else is."""
        self.assertTrue(self.knows(ONE))
        self.assertTrue(self.knows(ONE, ONE))
        self.assertFalse(self.knows(TWO))
        self.assertFalse(self.knows(ONE, TWO))

    def test_another_size(self) -> None:
        """A known hash with another size is another blob."""
        self.assertFalse(self.knows(Digest(ONE.key, ONE.size + 1)))

    def test_removal(self) -> None:
        """When something was removed, or a pack came or went, nothing is known any more."""
        for state in ((b"generation", b"other"), (b"other", b"other")):
            self.assertFalse(self.knows(ONE, state=state))
            self.assertFalse(self.knows(ONE, state=state))
            self.presence.learn([(ONE.key, ONE.size)])
            self.assertTrue(self.knows(ONE, state=state))

    def test_time(self) -> None:
        """After a while the index is asked again; and when the clock was set back."""
        self.assertTrue(self.knows(ONE, now=1000.0 + REMEMBERED_SECONDS - 1))
        self.assertFalse(self.knows(ONE, now=1000.0 + REMEMBERED_SECONDS))
        self.presence.learn([(ONE.key, ONE.size)])
        self.assertFalse(self.knows(ONE, now=1000.0))

    def test_bound(self) -> None:
        """So many are remembered, however many one call names, and then all others are forgotten."""
        self.patch(presence, "REMEMBERED", 10)
        digests = [Digest.of(b"%d" % number) for number in range(100)]
        found = [(digest.key, digest.size) for digest in digests]
        for count in (1, 7, 50):
            for start in range(0, len(found), count):
                self.presence.learn(found[start : start + count])
                self.assertLessEqual(len(self.presence._sizes), 10)
                self.assertTrue(self.knows(digests[start]))
        self.assertFalse(self.knows(ONE))


class StoreTests(LocalStoreTestCase):
    """The memory in its place: what goes is missing at once, whoever removed it."""

    async def test_damage(self) -> None:
        """A blob that was present, and is found damaged by another process, is missing here."""
        path = self.new_path()
        store, other = await self.open_store(path), self.open_process(path)
        each = random_blob()
        await put(store, each)
        named = Digests.of([each.digest])
        for _ in range(2):
            self.assertEqual(await store.find_missing(named), [])
        (pack,) = Layout(path).packs.iterdir()
        content = bytearray(pack.read_bytes())
        content[-1] ^= 1
        pack.write_bytes(content)
        self.assertEqual(await other.call("read_many", named), [None])
        self.assertEqual(await store.find_missing(named), [0])

    async def test_retirement(self) -> None:
        """A blob that was present in a pack that retires is made durable elsewhere before it is called present."""
        store = await self.make_store()
        each = random_blob()
        await put(store, each)
        named = Digests.of([each.digest])
        self.assertEqual(await store.find_missing(named), [])
        with store._index.change() as changes:
            changes.set_pack_state(0, RETIRING)
        self.assertEqual(await store.find_missing(named), [])
        with store._index.change() as changes:
            changes.drop_pack(0)
        self.assertEqual(await store.find_missing(named), [])
        self.assertEqual(await store.read_many(named), [each.content])
