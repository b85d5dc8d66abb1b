"""The comparison: every kind of load on every server, in turns, and ours over TLS as one more server."""

from __future__ import annotations

import contextlib
import statistics
from collections.abc import Sequence

from benchmarks import servers
from benchmarks.cases import Case, cases, prepare
from benchmarks.messages import MIB
from benchmarks.report import figure, machine, ratio, table
from benchmarks.session import Measured, Session, say

#: What each server did in each case, by their names.
Figures = dict[tuple[str, str], Measured]

_SHORT = {servers.CASD: "casd", servers.BST16: "1.6"}


def compare(session: Session) -> str:
    """Put each server under each kind of load, in turns, for some rounds; tables of what came out."""
    options = session.options
    kinds = [servers.ours(), servers.ours(session.identity()), *session.peers()]
    measured: Figures = {}
    done: dict[str, Case] = {}
    for number in range(options.rounds):
        say(f"round {number + 1} of {options.rounds}: preparing")
        made = prepare()
        with contextlib.ExitStack() as stack:
            running = [stack.enter_context(session.running(kind)) for kind in kinds]
            clients = {server.name: stack.enter_context(session.client(server)) for server in running}
            for client in clients.values():
                client.seed(made.seeds)
            for case in cases(made):
                if options.only.lower() not in case.title.lower():
                    continue
                done[case.title] = case
                # Whoever comes first finds a colder machine, so let that be another one each round.
                start = number % len(running)
                for server in running[start:] + running[:start]:
                    into = measured.setdefault((server.name, case.title), Measured())
                    session.measure(server, clients[server.name], case, into)
    return _tables(list(done.values()), [kind.name for kind in kinds], measured, options.rounds)


def _tables(done: Sequence[Case], names: Sequence[str], measured: Figures, rounds: int) -> str:
    def figures(which: str) -> str:
        rows = [
            [
                case.title,
                case.unit,
                *(figure(statistics.median(getattr(measured[name, case.title], which))) for name in names),
            ]
            for case in done
        ]
        return table(["Operation", "Unit", *names], rows)

    memory = [[case.title, *(figure(max(measured[name, case.title].memory) / MIB) for name in names)] for case in done]
    return "\n".join(
        [
            f"Work per CPU second of the server (all its processes), median of {rounds} rounds:\n",
            figures("per_cpu_second"),
            "The same as multiples, each of servers in the same round: the median of all rounds, the least and the\n"
            "most, and what we hold ourselves to:\n",
            _ratios(done, names, measured),
            "Work per second, with one client on the same machine:\n",
            figures("per_second"),
            "Anonymous resident memory, highest seen, in MiB:\n",
            table(["Operation", *names], memory),
            machine(),
        ]
    )


def _ratios(done: Sequence[Case], names: Sequence[str], measured: Figures) -> str:
    ours, over_tls, *peers = names

    def cells(name: str, base: str, case: Case) -> tuple[str, str]:
        return ratio(measured[name, case.title].per_cpu_second, measured[base, case.title].per_cpu_second)

    head = ["Operation"]
    for peer in peers:
        head += [f"/ {_SHORT[peer]}", "from..to"]
        if peer == servers.CASD:
            head.append("at least")
    head += ["TLS / clear", "from..to", "at least"]
    rows = []
    for case in done:
        row = [case.title]
        for peer in peers:
            row += cells(ours, peer, case)
            if peer == servers.CASD:
                row.append(figure(case.floor))
        rows.append([*row, *cells(over_tls, ours, case), figure(case.tls_floor)])
    return table(head, rows)
