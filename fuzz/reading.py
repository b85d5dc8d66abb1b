"""Fuzz input taken apart: whatever the bytes are, they say what to do next."""

from __future__ import annotations


class Input:
    """Numbers and pieces, taken from the front of some bytes; when these are at an end, zeros and nothing.

    :param data: what the fuzzer made up.
    """

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._position = 0

    def __bool__(self) -> bool:
        """Whether anything is left."""
        return self._position < len(self._data)

    def number(self, size: int = 1) -> int:
        """A number of so many bytes."""
        return int.from_bytes(self.take(size), "big")

    def take(self, size: int) -> bytes:
        """So many bytes, or what is left of them."""
        start = self._position
        self._position += size
        return self._data[start : self._position]

    def piece(self, size: int = 2) -> bytes:
        """A length of so many bytes, and as many bytes as it says."""
        return self.take(self.number(size))

    def rest(self) -> bytes:
        """All that is left."""
        return self.take(len(self._data))


def cut(data: bytes, places: bytes) -> list[bytes]:
    """``data`` in pieces, of the lengths that ``places`` say, over and over; 0 stands for all that is left."""
    pieces: list[bytes] = []
    position = 0
    while position < len(data):
        length = places[len(pieces) % len(places)] if places else 0
        stop = position + length if length else len(data)
        pieces.append(data[position:stop])
        position = stop
    return pieces
