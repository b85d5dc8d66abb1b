"""Much work in parts, for others to have their turn in between."""

from __future__ import annotations

from collections.abc import Iterator, Sequence


def slices(sizes: Sequence[int], most: int, most_bytes: int) -> Iterator[tuple[int, int]]:
    """Where to cut a column of blobs of these sizes, as starts and ends.

    :param most: blobs in one part.
    :param most_bytes: bytes in one part that has more than one blob.
    """
    if len(sizes) <= most and sum(sizes) <= most_bytes:
        if sizes:
            yield 0, len(sizes)
        return
    start = total = 0
    for position, size in enumerate(sizes):
        if position > start and (position - start == most or total + size > most_bytes):
            yield start, position
            start, total = position, 0
        total += size
    yield start, len(sizes)
