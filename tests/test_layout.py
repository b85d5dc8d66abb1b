"""The rooms of the package, and which may know of which."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

import artifactserver

ROOT = Path(artifactserver.__file__).parent

#: For each room, by the longest prefix that fits a module: what it may import of ours besides what is in the room.
MAY_IMPORT = {
    "artifactserver": (),
    "artifactserver.access": (),
    "artifactserver.addresses": (),
    "artifactserver.complaints": ("artifactserver.rpc.http2.rates",),
    "artifactserver.file_content": (),
    "artifactserver.notify": (),
    "artifactserver.process": (),
    "artifactserver.watched": (),
    "artifactserver.command_line": ("artifactserver.__version__",),
    "artifactserver.options": (
        "artifactserver.access",
        "artifactserver.command_line",
        "artifactserver.ports.endpoints",
    ),
    "artifactserver.preparing": ("artifactserver.store",),
    "artifactserver.ports": ("artifactserver.addresses", "artifactserver.complaints"),
    "artifactserver.tls": (
        "artifactserver.addresses",
        "artifactserver.complaints",
        "artifactserver.file_content",
        "artifactserver.watched",
    ),
    "artifactserver.tokens": (
        "artifactserver.access",
        "artifactserver.addresses",
        "artifactserver.complaints",
        "artifactserver.file_content",
    ),
    "artifactserver.tokens.commands": ("artifactserver.command_line", "artifactserver.tokens"),
    "artifactserver.web": ("artifactserver.access", "artifactserver.tokens.authentication"),
    "artifactserver.proto": (),
    "artifactserver.store": ("artifactserver.proto",),
    "artifactserver.rpc": (
        "artifactserver.access",
        "artifactserver.complaints",
        "artifactserver.tokens.authentication",
    ),
    "artifactserver.rpc.http2": (),
    "artifactserver.rpc.codes": (),
    "artifactserver.rpc.messages": ("artifactserver.rpc.codes",),
    "artifactserver.rpc.status": (
        "artifactserver.rpc.codes",
        "artifactserver.store.interface",
        "artifactserver.store.digest",
    ),
    "artifactserver.services": (
        "artifactserver.store",
        "artifactserver.proto",
        "artifactserver.rpc.status",
        "artifactserver.rpc.dispatch",
    ),
}

#: Who puts everything together; nobody may import these.
WIRING = ("artifactserver.tap", "artifactserver.cli")

#: Rooms that work without Twisted, and so without a reactor.
NO_TWISTED = ("artifactserver.rpc.http2", "artifactserver.rpc.codes", "artifactserver.rpc.messages")

#: What belongs to whoever starts the process: everybody else is handed a clock.
PROCESS_WIDE = ("twisted.internet.reactor",)


def modules() -> Iterator[tuple[str, ast.Module]]:
    """Every module of the package that people wrote, with its syntax tree."""
    for path in sorted(ROOT.rglob("*.py")):
        if path.name.endswith("_pb2.py"):
            continue
        parts = path.relative_to(ROOT.parent).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        yield name, ast.parse(path.read_text(encoding="utf-8"))


def imports(tree: ast.Module) -> Iterator[str]:
    """The full names of what a module imports."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            for alias in node.names:
                yield f"{node.module}.{alias.name}"


def is_in(name: str, room: str) -> bool:
    """Whether a module, or a name in it, belongs to a room."""
    return name == room or name.startswith(f"{room}.")


def room_of(module: str) -> str:
    """The narrowest room that a module belongs to."""
    return max((room for room in MAY_IMPORT if is_in(module, room)), key=len)


class ImportTests(SynchronousTestCase):
    """The import table of the design."""

    def test_table(self) -> None:
        """Every module imports only what its room may know of."""
        wrong = []
        for module, tree in modules():
            if module in WIRING:
                continue
            room = room_of(module)
            if room == "artifactserver" and module != room:
                wrong.append(f"{module} belongs to no room")
            for name in imports(tree):
                if is_in(name, "artifactserver") and not any(is_in(name, known) for known in (room, *MAY_IMPORT[room])):
                    wrong.append(f"{module} imports {name}")
        self.assertEqual(wrong, [])

    def test_wiring(self) -> None:
        """What puts everything together is imported by nothing but itself."""
        for module, tree in modules():
            for name in imports(tree):
                if module not in WIRING:
                    self.assertFalse(any(is_in(name, wiring) for wiring in WIRING), f"{module} imports {name}")

    def test_codecs_without_twisted(self) -> None:
        """What reads and writes a protocol's bytes works without Twisted."""
        for module, tree in modules():
            if any(is_in(module, room) for room in NO_TWISTED):
                foreign = [name for name in imports(tree) if is_in(name, "twisted") or is_in(name, "zope")]
                self.assertEqual(foreign, [], module)

    def test_reactor_and_clock(self) -> None:
        """Only the wiring takes the process's reactor and the machine's clock; everybody else is given them."""
        for module, tree in modules():
            if module in WIRING:
                continue
            taken = {name for name in imports(tree) if name in PROCESS_WIDE}
            taken |= {
                f"{node.value.id}.{node.attr}"
                for node in ast.walk(tree)
                if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)
                if (node.value.id, node.attr) in {("time", "time"), ("time", "monotonic"), ("time", "sleep")}
            }
            self.assertEqual(taken, set(), module)
