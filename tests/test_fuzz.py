"""The fuzzer's targets, each for a moment: what seeds there are by hand, those with changes, and what chance makes up.

``fuzz/README.rst`` says how they are run for longer.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from unittest import SkipTest

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from tests.chance import examples

if not (Path(__file__).parents[1] / "fuzz").is_dir():
    raise SkipTest("there is no fuzz/ beside tests/")

from fuzz import __main__ as command
from fuzz import calls, frames, headers, messages, names, seeds
from fuzz.sessions import DIGEST

TARGETS: dict[str, Callable[[bytes], None]] = {
    module.__name__.rpartition(".")[2]: module.run for module in (calls, frames, headers, messages, names)
}

SEEDS = list(seeds.by_hand())

#: What resource names are made of, and what is nearly that.
SEGMENTS = (
    *("blobs", "uploads", "sha256", "compressed-blobs", "actions", "", "main", "i" * 200, "\n"),
    *(DIGEST.hash, DIGEST.hash, DIGEST.hash.upper(), DIGEST.hash[1:]),
    *(str(DIGEST.size_bytes), str(DIGEST.size_bytes), "0" * 19, str(2**63), "-1", "\u0661"),
)


def changed(target: str) -> st.SearchStrategy[bytes]:
    """A seed for this target, in which a few bytes are others, or gone, or twice there."""
    contents = [seed.content for seed in SEEDS if seed.target == target]
    change = st.tuples(st.floats(0, 1), st.integers(0, 4), st.binary(max_size=4))
    return st.builds(apply, st.sampled_from(contents), st.lists(change, max_size=4))


def apply(content: bytes, changes: list[tuple[float, int, bytes]]) -> bytes:
    for where, less, more in changes:
        place = int(where * len(content))
        content = content[:place] + more + content[place + less :]
    return content


class TargetTests(SynchronousTestCase):
    """Whatever bytes they are given, nothing but a peer's fault comes out."""

    def test_all(self) -> None:
        """Every target is one that the command knows, and has seeds."""
        self.assertEqual(set(command.TARGETS), set(TARGETS))
        self.assertEqual({seed.target for seed in SEEDS}, set(TARGETS))

    def test_seeds(self) -> None:
        """What was thought of is borne."""
        for seed in SEEDS:
            TARGETS[seed.target](seed.content)

    @examples(50)
    @given(changed("calls"))
    def test_calls(self, content: bytes) -> None:
        """Calls of all services, with messages of all kinds."""
        calls.run(content)

    @examples(200)
    @given(changed("frames"))
    def test_frames(self, content: bytes) -> None:
        """Conversations, whole and cut, answered and not."""
        frames.run(content)

    @examples(100)
    @given(changed("headers"))
    def test_headers(self, content: bytes) -> None:
        """Header blocks on a few connections."""
        headers.run(content)

    @examples(300)
    @given(changed("messages") | st.binary(max_size=60))
    def test_messages(self, content: bytes) -> None:
        """Bodies, timeouts, metadata."""
        messages.run(content)

    @examples(300)
    @given(changed("names") | st.binary(max_size=60))
    def test_names(self, content: bytes) -> None:
        """Names, digests, upload messages, answers written by hand."""
        names.run(content)

    @examples(200)
    @given(st.lists(st.sampled_from(SEGMENTS), max_size=9))
    def test_segments(self, segments: list[str]) -> None:
        """Resource names put together of what they are made of are understood exactly if they have one of the forms."""
        names.run(b"\0" + "/".join(segments).encode())

    @examples(100)
    @given(
        st.lists(st.tuples(st.integers(0, 2), st.integers(0, 5), st.integers(0, 30)), min_size=40, max_size=60),
        st.lists(
            st.lists(st.sampled_from(seeds.PARTS[1:6]), max_size=2)
            | st.lists(st.sampled_from([*seeds.SIZES, *seeds.PARTS]), max_size=3),
            min_size=3,
            max_size=6,
        ),
    )
    def test_tables(self, order: list[tuple[int, int, int]], blocks: list[list[bytes]]) -> None:
        """What connections remember of their headers, and of each other's, is what was said."""
        # The first block that each says adds something to refer to.
        first = b"\x83\x86\x84" + b"".join(seeds.PARTS[1:4])
        out = b"".join((connection << 13 | len(first)).to_bytes(2, "big") + first for connection in range(3))
        for connection, number, chance in order:
            parts = sorted(blocks[number % len(blocks)], key=seeds.PARTS.__contains__)
            sizes = [part for part in parts if part in seeds.SIZES]
            trailers = chance == 17
            block = b"".join([*sizes, b"" if trailers else b"\x83\x86\x84", *parts[len(sizes) :]])
            out += (connection << 13 | trailers << 15 | len(block)).to_bytes(2, "big") + block
        headers.run(out)


class CommandTests(SynchronousTestCase):
    """``python -m fuzz``."""

    def test_replay(self) -> None:
        """A file that was found is tried again by its name, with nothing installed for it."""
        place = Path(self.mktemp())
        place.mkdir()
        (place / "found").write_bytes(next(seed.content for seed in SEEDS if seed.target == "names"))
        command.main(["replay", "names", str(place)])
        self.patch(importlib.import_module("fuzz.names"), "run", lambda content: 1 / 0)
        self.assertRaises(ZeroDivisionError, command.main, ["replay", "names", str(place)])
