"""Tables in reStructuredText, which read as well on a terminal."""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A simple table: words to the left, figures to the right."""
    columns = list(zip(head, *rows, strict=True))
    widths = [max(map(len, column)) for column in columns]
    figures = [any(cell[:1].isdigit() for cell in column[1:]) for column in columns]
    rule = "  ".join("=" * width for width in widths)

    def line(cells: Sequence[str]) -> str:
        places = zip(cells, widths, figures, strict=True)
        return "  ".join(cell.rjust(width) if right else cell.ljust(width) for cell, width, right in places).rstrip()

    return "\n".join([rule, line(head), rule, *map(line, rows), rule, ""])


def figure(value: float | None) -> str:
    """A figure with three digits that mean something."""
    if value is None:
        return "-"
    if value >= 1000:
        scale = 10 ** (len(str(int(value))) - 3)
        return f"{round(value / scale) * scale:,}"
    if value >= 100:
        return f"{value:.0f}"
    return f"{value:.2f}" if value < 10 else f"{value:.1f}"


def ratio(values: Sequence[float], bases: Sequence[float]) -> tuple[str, str]:
    """How many times the base, in the middle of all rounds; and from the least to the most of them."""
    ratios = [value / base for value, base in zip(values, bases, strict=True)]
    return f"{statistics.median(ratios):.2f}", f"{min(ratios):.2f}..{max(ratios):.2f}"


def machine() -> str:
    """When and where this was measured."""
    model = platform.machine()
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                model = line.partition(":")[2].strip()
                break
    return (
        f"{time.strftime('%Y-%m-%d')}, {model}, {len(os.sched_getaffinity(0))} CPUs, "
        f"Linux {platform.release()}, Python {platform.python_version()}.\n"
    )
