"""All benchmarks, one after the other, as docs/inside/benchmarks.rst has them."""

from __future__ import annotations

from benchmarks import servers
from benchmarks.messages import MIB
from benchmarks.report import figure, machine, table
from benchmarks.session import Session, say

#: Commands in the order of the page; each has a file of the tables' directory.
ORDER = ("compare", "connections", "fairness", "reactor", "growth")


def everything(session: Session) -> str:
    """Run all of them with their defaults; all tables, and the most memory that each server had in any of them."""
    given = session.options
    texts = {}
    for name in ORDER:
        say(f"{name}:")
        session.options = given.parse([name, "--casd", given.casd, "--bst16", given.bst16])
        texts[name] = session.options.command(session)
    session.options = given
    texts["memory"] = _memory(session)
    if given.tables is not None:
        given.tables.mkdir(parents=True, exist_ok=True)
        for name, text in texts.items():
            (given.tables / f"{name}.txt").write_text(text)
    return "\n".join(texts.values())


def _memory(session: Session) -> str:
    """The line that sums it up: everything that one server had to do, large stores and bad neighbours included."""
    rows = [[name, figure(highest / MIB)] for name, highest in session.highest.items() if name != servers.GRPCIO]
    return (
        "The most anonymous resident memory of each server in all of these:\n\n"
        + table(["Server", "MiB"], rows)
        + "\n"
        + machine()
    )
