"""Connections: clients of BuildStream 1.x open one for each element, and ask five things before they do anything.

So much of what such a client costs is handshakes.  The peer is a server of the grpc library for Python that does
nothing but answer.
"""

from __future__ import annotations

import statistics
from contextlib import ExitStack

from benchmarks import certificates, servers
from benchmarks.part import Part, together
from benchmarks.report import figure, machine, ratio, table
from benchmarks.session import Measured, Session, say

#: Processes of clients, so that the server and not the client is what there is too little of.
CLIENTS = 2


def connections(session: Session) -> str:
    """New connections with five calls each, on each server, in clear text and over TLS; a table of how many."""
    options = session.options
    modes = {"clear text": None} | {
        f"TLS, {key}": session.identity(key) for key in (certificates.RSA, certificates.ECDSA)
    }
    measured: dict[tuple[str, str], Measured] = {}
    names: list[str] = []
    for mode, tls in modes.items():
        peers = [servers.grpcio(tls), session.bst16(tls), session.casd() if tls is None else None]
        kinds = [servers.ours(tls), *(kind for kind in peers if kind is not None)]
        with ExitStack() as stack:
            running = [stack.enter_context(session.running(kind)) for kind in kinds]
            for number in range(options.rounds):
                start = number % len(running)
                for server in running[start:] + running[:start]:
                    name = server.name.removesuffix(", TLS")
                    names += [name] if name not in names else []
                    _measure(session, server, mode, measured.setdefault((name, mode), Measured()))

    def row(mode: str) -> list[str]:
        cells = [mode]
        for name in names:
            one = measured.get((name, mode))
            cells.append(figure(statistics.median(one.per_cpu_second)) if one else "-")
        ours, base = measured[servers.OURS, mode], measured[servers.GRPCIO, mode]
        return [*cells, *ratio(ours.per_cpu_second, base.per_cpu_second)]

    return "\n".join(
        [
            f"New connections with five calls each, per CPU second of the server, median of {options.rounds} rounds:\n",
            table(["Connections", *names, f"/ {servers.GRPCIO}", "from..to"], list(map(row, modes))),
            machine(),
        ]
    )


def newcomers(server: servers.Server, seconds: float) -> Part:
    """One process that opens connections, one after the other."""
    return Part("newcomers", server.port, seconds, *([server.tls.certificate] if server.tls else []))


def _measure(session: Session, server: servers.Server, mode: str, measured: Measured) -> None:
    with ExitStack() as stack:
        parts = [stack.enter_context(newcomers(server, session.options.seconds)) for _ in range(CLIENTS)]
        for part in parts:
            part.wait_until_ready()
        with server.usage() as usage:
            amount = sum(together(*parts))
    session.saw(server, usage.memory)
    measured.per_second.append(amount / usage.seconds)
    measured.per_cpu_second.append(amount / usage.cpu_seconds)
    say(
        f"  {server.name}: {mode}: {figure(amount / usage.seconds)} connections/s, "
        f"{figure(amount / usage.cpu_seconds)} per CPU second, {usage.cpu_seconds / usage.seconds:.0%} busy"
    )
