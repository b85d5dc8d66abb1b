"""Copy the tests to where nothing of the checkout can be imported by accident.

``--quick`` leaves out the tests that last minutes.  What is left runs against real clients, processes and disks all the
same.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

#: They run BuildStream or proxies, start processes by the hundred, attack a server for long, or go on by chance.
LONG = (
    "test_clients.py",
    "test_proxies.py",
    "test_crash.py",
    "test_power_cut.py",
    "test_packaging.py",
    "test_hostile.py",
    "test_*_fuzz.py",
    "test_*_conversation.py",
)


def main(root: Path, target: Path, *options: str) -> None:
    """Copy ``tests``, and what some of them read, from the checkout at ``root`` to ``target``."""
    left_out = LONG if "--quick" in options else ()
    for name in ("tests", "benchmarks", "fuzz", "docs"):
        shutil.rmtree(target / name, ignore_errors=True)
        shutil.copytree(root / name, target / name, ignore=shutil.ignore_patterns("__pycache__", "_build", *left_out))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), *sys.argv[3:])
