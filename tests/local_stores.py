"""Local stores for tests."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from twisted.internet import reactor
from twisted.trial.unittest import TestCase

from artifactserver.store.local import LocalStore
from artifactserver.store.repository import prepare
from tests.store_process import StoreProcess


class LocalStoreTestCase(TestCase):
    """Makes stores that end with the test."""

    def setUp(self) -> None:
        self.open_stores: list[LocalStore] = []

    def new_path(self) -> Path:
        """Where no repository is yet."""
        return Path(self.mktemp())

    def open_process(self, path: Path, pause: str = "", fail: str = "") -> StoreProcess:
        """Another process that has the store at ``path`` open until the test ends.

        :param pause: and ``fail``: as of `StoreProcess`.
        """
        process = StoreProcess(path, pause, fail)
        self.addCleanup(process.kill)
        return process

    async def open_store(self, path: Path, head_room_min: int = 0, now: Any = time.time) -> LocalStore:
        """A store at ``path``, in use until the test ends or `close_store`."""
        prepare(path)
        store = LocalStore(path, reactor=reactor, now=now, head_room_min=head_room_min)
        store.start()
        self.open_stores.append(store)
        self.addCleanup(self.close_store, store)
        return store

    async def close_store(self, store: LocalStore) -> None:
        """Stop a store, unless it has been stopped."""
        if store in self.open_stores:
            self.open_stores.remove(store)
            await store.stop()

    async def make_store(self) -> LocalStore:
        """A store in a new repository."""
        return await self.open_store(self.new_path())
