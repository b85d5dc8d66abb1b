"""What the documentation says is held to the code, where a program can do it."""

from __future__ import annotations

import configparser
import importlib
import re
import time
import unittest
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any
from unittest import SkipTest

from twisted.internet.task import Clock
from twisted.python.usage import Options as TwistedOptions
from twisted.trial.unittest import SynchronousTestCase

from artifactserver.cli import FsckOptions, ServeOptions
from artifactserver.options import Options
from artifactserver.rpc.dispatch import Dispatcher
from artifactserver.rpc.http2 import Limits
from artifactserver.services import register_all
from artifactserver.tokens.commands import AddOptions, ListOptions, RevokeOptions
from tests.memory_store import MemoryStore

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"

UNITS = {
    "": 1,
    "%": 0.01,
    "KiB": 1024,
    "MiB": 1024**2,
    "GiB": 1024**3,
    "s": 1,
    "h": 3600,
}


def read(*names: str) -> str:
    """Pages of the documentation, one after another."""
    if not DOCS.is_dir():
        raise SkipTest("there is no docs/ beside tests/: these tests are for the checkout")
    return "\n".join((DOCS / name).read_text(encoding="utf-8") for name in names)


def names_of(kind: type[TwistedOptions]) -> set[str]:
    """The long names of options, as they are typed."""
    options: list[list[Any]] = [*getattr(kind, "optParameters", []), *getattr(kind, "optFlags", [])]
    return {f"--{option[0]}" for option in options}


def bounds(page: str) -> Iterator[tuple[str, float]]:
    """The names and values in the tables of a page: its rows have what, how much, and a name in the code."""
    for amount, name in re.findall(r"^   \* - .*\n     - (.*)\n     - ``(.*)``\n", page, re.MULTILINE):
        number, _, unit = amount.partition(" ")
        yield name, float(number.replace(",", "")) * UNITS[unit]


class DocumentationTests(SynchronousTestCase):
    """The pages for those who run a server, and for those who write clients."""

    def test_options(self) -> None:
        """Every option of every command is explained."""
        page = read("operating/options.rst")
        for kind in (Options, ServeOptions, FsckOptions, AddOptions, ListOptions, RevokeOptions):
            for name in sorted(names_of(kind)):
                self.assertRegex(page, rf"(?m)^``.*{re.escape(name)}``", f"{name} of {kind.__name__}")

    def test_defaults(self) -> None:
        """The defaults of options are those in the code."""
        page = read("operating/options.rst")
        for option in Options.optParameters:
            if option[2]:
                _, _, entry = page.partition(f"``--{option[0]}``")
                self.assertRegex(entry.partition("\n\n")[0], rf"Default: {re.escape(option[2])}\b", option[0])

    def test_rpcs(self) -> None:
        """Every method that is registered is listed, those that are not built as such."""
        served, refused = read("protocols/index.rst"), read("protocols/refused.rst")
        dispatcher = Dispatcher()
        register_all(dispatcher, MemoryStore(time.time), Clock())
        for path in dispatcher.paths():
            method = dispatcher.find(path)
            assert method is not None
            self.assertIn(f"``{path}``", refused if method.handler is None else served)

    def test_bounds(self) -> None:
        """Every bound that is stated has the value that it has in the code."""
        stated = dict(bounds(read("operating/limits.rst")))
        self.assertGreater(len(stated), 40)
        for name, value in stated.items():
            module, _, attribute = name.rpartition(".")
            owner = Limits() if module == "Limits" else importlib.import_module(f"artifactserver.{module}")
            self.assertEqual(getattr(owner, attribute), value, name)

    def test_every_bound(self) -> None:
        """Every bound of the transport is stated; how much is remembered is no bound that a peer meets."""
        stated = dict(bounds(read("operating/limits.rst")))
        ours = {f"Limits.{field.name}" for field in fields(Limits)} - {"Limits.header_blocks_cached"}
        self.assertEqual(ours - set(stated), set())

    def test_named_tests(self) -> None:
        """Every test that is said to show how a rule of HTTP/2 is kept exists, and is found by trial."""
        named = re.findall(r"``(test_\w+)\.(\w+)\.(\w+)``", read("inside/rfc9113.rst"))
        self.assertGreater(len(named), 150)
        for module, case, name in named:
            found: Any = getattr(importlib.import_module(f"tests.{module}"), case, None)
            self.assertTrue(callable(getattr(found, name, None)), f"tests.{module}.{case}.{name}")
            self.assertTrue(issubclass(found, unittest.TestCase) and name.startswith("test"), f"{module}.{case}")

    def test_dependencies(self) -> None:
        """Every dependency has a reason."""
        page = read("dependencies.rst")
        setup = configparser.ConfigParser()
        if not setup.read(ROOT / "setup.cfg"):
            raise unittest.SkipTest("this is about a checkout")
        wanted = f"{setup['options']['install_requires']}\n{setup['options.extras_require']['test']}"
        for requirement in filter(None, wanted.splitlines()):
            name = re.split(r"[<>=!~;\s]", requirement, maxsplit=1)[0]
            self.assertIn(f"\n``{name}``\n", page)
