"""One run of a command: where it works, which servers it has, and what it has seen of them."""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks import certificates, servers
from benchmarks.cases import Case
from benchmarks.client import Client, Wrong
from benchmarks.report import figure


@dataclass(slots=True)
class Measured:
    """What one server did in one case, a value for each round."""

    per_second: list[float] = field(default_factory=list)
    per_cpu_second: list[float] = field(default_factory=list)
    memory: list[int] = field(default_factory=list)


class Session:
    """What the parts of a benchmark share.

    :param place: a directory for everything that is written.
    :ivar highest: the most anonymous resident memory that each server had at any time, in bytes, by its name.
    """

    def __init__(self, options: argparse.Namespace, place: Path, loop: asyncio.AbstractEventLoop) -> None:
        self.options = options
        self.loop = loop
        self.highest: dict[str, int] = {}
        self._place = place
        self._identities: dict[str, certificates.Identity] = {}
        self._servers = 0

    def identity(self, kind: str = certificates.RSA) -> certificates.Identity:
        """A certificate with a key of this kind."""
        if kind not in self._identities:
            self._identities[kind] = certificates.make(self._place, kind)
        return self._identities[kind]

    def casd(self) -> servers.Kind | None:
        """buildbox-casd, if it is here."""
        return self._peer(lambda: servers.buildbox_casd(self.options.casd))

    def bst16(self, tls: certificates.Identity | None = None) -> servers.Kind | None:
        """The server of BuildStream 1.6, if it is here."""
        return self._peer(lambda: servers.bst_artifact_server(self.options.bst16, tls))

    def peers(self) -> list[servers.Kind]:
        """The other servers that are here, in clear text."""
        return [kind for kind in (self.casd(), self.bst16()) if kind is not None]

    def _peer(self, make: Callable[[], servers.Kind]) -> servers.Kind | None:
        try:
            return make()
        except servers.Unavailable as problem:
            say(str(problem))
            return None

    @contextmanager
    def running(self, kind: servers.Kind) -> Iterator[servers.Server]:
        """A server of this kind on an empty repository, which is removed in the end."""
        self._servers += 1
        server = servers.Server(kind, self._place / str(self._servers))
        try:
            server.start()
            yield server
        finally:
            server.clear()

    @contextmanager
    def client(self, server: servers.Server) -> Iterator[Client]:
        """A client with a connection to this server."""
        with closing(Client(server, self.loop)) as client:
            yield client

    def saw(self, server: servers.Server, memory: int) -> None:
        """Note that a server had so much memory."""
        self.highest[server.name] = max(memory, self.highest.get(server.name, 0))

    def measure(self, server: servers.Server, client: Client, case: Case, measured: Measured) -> None:
        """Put a server under one kind of load once.

        :raises Wrong: if it gives a wrong answer.
        """
        with server.usage() as usage:
            work = case.run(client, self.options.seconds)
        self.saw(server, usage.memory)
        try:
            work.check()
        except Wrong:
            raise Wrong(f"{server.name} gave a wrong answer: {case.title}") from None
        measured.per_second.append(work.amount / usage.seconds)
        measured.per_cpu_second.append(work.amount / usage.cpu_seconds)
        measured.memory.append(usage.memory)
        say(
            f"  {server.name}: {case.title}: {figure(measured.per_second[-1])} {case.unit}/s, "
            f"{figure(measured.per_cpu_second[-1])} per CPU second, {usage.cpu_seconds / usage.seconds:.0%} busy"
        )


def say(line: str) -> None:
    """Tell whoever waits how it goes."""
    print(line, file=sys.stderr, flush=True)
