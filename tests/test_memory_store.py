"""The store in memory is a store, so what is tested over it means something."""

from __future__ import annotations

import time

from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase, TestCase

from artifactserver.store.interface import NoRoom, TooBusy
from tests.memory_store import MemoryStore
from tests.store_contract import StoreContract, random_blob


class MemoryStoreContractTests(StoreContract, TestCase):
    """`MemoryStore` keeps what the interface promises."""

    async def make_store(self) -> MemoryStore:
        """A new one."""
        return MemoryStore(time.time)


class MemoryStoreBoundsTests(SynchronousTestCase):
    """It can be made to fail as a store may."""

    def test_no_room(self) -> None:
        """What does not fit is refused, and what fits is not."""
        store = MemoryStore(time.time, capacity=150)
        one, two = random_blob(), random_blob()
        first, second = self.successResultOf(Deferred.fromCoroutine(store.add_many([one, two])))
        self.assertIsNone(first)
        self.assertIsInstance(second, NoRoom)

    def test_too_many_uploads(self) -> None:
        """A caller with too many uploads under way has to wait; another one does not."""
        store = MemoryStore(time.time, max_uploads=1)
        digest = random_blob().digest
        upload = self.successResultOf(Deferred.fromCoroutine(store.upload(digest, "me")))
        self.failureResultOf(Deferred.fromCoroutine(store.upload(digest, "me")), TooBusy)
        self.successResultOf(Deferred.fromCoroutine(store.upload(digest, "you"))).close()
        upload.close()
        self.successResultOf(Deferred.fromCoroutine(store.upload(digest, "me"))).close()
