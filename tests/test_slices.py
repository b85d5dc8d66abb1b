"""Work in parts."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from artifactserver.store.slices import slices
from tests.chance import examples


class SlicesTests(SynchronousTestCase):
    """Where a column is cut."""

    @examples(100)
    @given(st.lists(st.integers(0, 20), max_size=30), st.integers(1, 8), st.integers(0, 40))
    def test_parts(self, sizes: list[int], most: int, most_bytes: int) -> None:
        """The parts are all there is, in order, none is too long or too large, and none could have had one more."""
        cuts = list(slices(sizes, most, most_bytes))
        self.assertEqual([position for start, end in cuts for position in range(start, end)], list(range(len(sizes))))
        for start, end in cuts:
            part = sizes[start:end]
            self.assertTrue(0 < len(part) <= most)
            self.assertTrue(len(part) == 1 or sum(part) <= most_bytes)
            if end < len(sizes):
                self.assertTrue(len(part) == most or sum(part) + sizes[end] > most_bytes)
