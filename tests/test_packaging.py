"""What is in the wheel, and what is written about it.

Run by ``tox`` the package under test is an installed wheel; run from a checkout, a wheel is made for these tests.
"""

from __future__ import annotations

import configparser
import importlib.metadata
import importlib.util
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

from twisted.application.service import IServiceMaker
from twisted.plugin import getPlugins
from twisted.python.usage import Options as _Options
from twisted.trial.unittest import SkipTest, SynchronousTestCase

import artifactserver
from artifactserver.cli import AdministerOptions, FsckOptions, ServeOptions
from artifactserver.options import Options
from artifactserver.tokens.commands import AddOptions, ListOptions, RevokeOptions

#: Where these tests are: a checkout, or a folder that they were copied to.
HERE = Path(__file__).parents[1]

IMPORTED = Path(artifactserver.__file__).parent


def is_checkout() -> bool:
    """Whether the package under test is the one in a checkout."""
    return IMPORTED.parent == HERE and (HERE / "setup.cfg").exists()


def files_in_wheel(place: Path) -> set[str]:
    """The names of the files in the wheel of the package under test.

    :param place: a folder to make one in.
    """
    if not is_checkout():
        return {str(path) for path in importlib.metadata.files("artifactserver") or ()}
    if importlib.util.find_spec("build") is None or importlib.util.find_spec("setuptools") is None:
        raise SkipTest("making a wheel needs 'build' and 'setuptools'")
    source = place / "source"
    ignored = shutil.ignore_patterns(".*", "_*temp*", "build", "dist", "__pycache__", "env", "artifacts")
    shutil.copytree(HERE, source, ignore=ignored)
    made = subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(place / "dist"), str(source)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert made.returncode == 0, made.stdout + made.stderr
    (wheel,) = (place / "dist").glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


class WheelTests(SynchronousTestCase):
    """Who installs the wheel has everything."""

    #: Made by the first test.
    files: set[str] = set()

    def setUp(self) -> None:
        if not self.files:
            place = Path(self.mktemp()).absolute()
            place.mkdir()
            type(self).files = files_in_wheel(place)

    def test_plugin(self) -> None:
        """The plugin is in the wheel, and nothing beside it that would hide Twisted's own."""
        ours = {name for name in self.files if name.startswith("twisted/") and name.endswith(".py")}
        self.assertEqual(ours, {"twisted/plugins/artifactserver_plugin.py"})

    def test_package(self) -> None:
        """All modules are in it, and all definitions with what was made of them."""
        there = {
            str(path.relative_to(IMPORTED.parent))
            for pattern in ("*.py", "*.pyi", "*.proto", "py.typed")
            for path in IMPORTED.rglob(pattern)
        }
        self.assertEqual({name for name in there if name not in self.files}, set())
        protos = {name.removesuffix(".proto") for name in self.files if name.endswith(".proto")}
        self.assertTrue(protos)
        for suffix in ("_pb2.py", "_pb2.pyi"):
            made = {name.removesuffix(suffix) for name in self.files if name.endswith(suffix)}
            self.assertEqual(made, protos)

    def test_nothing_else(self) -> None:
        """Neither tests nor caches are in it."""
        tops = {name.partition("/")[0] for name in self.files if not name.startswith(("..", "/"))}
        self.assertEqual({top for top in tops if not top.endswith(".dist-info")}, {"artifactserver", "twisted"})
        self.assertEqual({name for name in self.files if name.endswith("dropin.cache")}, set())


class PluginTests(SynchronousTestCase):
    """How twistd finds it."""

    def test_found(self) -> None:
        """There is one ``twistd artifactserver``, and it leads to the options and the server."""
        found = [maker for maker in getPlugins(IServiceMaker) if maker.tapname == "artifactserver"]
        self.assertEqual(len(found), 1)
        self.assertIs(found[0].options, Options)
        self.assertTrue(callable(found[0].makeService))

    def test_light(self) -> None:
        """Other people's twistd commands read the plugin as well: it imports nothing of the server."""
        code = (
            "import sys, twisted.plugins.artifactserver_plugin; "
            "print([name for name in sys.modules if name.split('.')[0] == 'artifactserver'])"
        )
        finished = subprocess.run(
            [sys.executable, "-c", code], cwd=IMPORTED.parent, capture_output=True, text=True, timeout=60, check=True
        )
        self.assertEqual(finished.stdout.strip(), "[]")


class SourceTests(SynchronousTestCase):
    """The files that describe the package agree with it and with each other."""

    def setUp(self) -> None:
        if not is_checkout():
            raise SkipTest("this is about a checkout")
        self.setup = configparser.ConfigParser()
        self.setup.read(HERE / "setup.cfg", encoding="utf-8")

    def lines(self, section: str, option: str) -> list[str]:
        return [line for line in self.setup[section][option].splitlines() if line and not line.startswith("#")]

    def test_packages(self) -> None:
        """Every folder with modules in it is named in ``setup.cfg``."""
        folders = {".".join(path.parent.relative_to(HERE).parts) for path in IMPORTED.rglob("__init__.py")}
        self.assertEqual(set(self.lines("options", "packages")), folders | {"twisted.plugins"})

    def test_lowest(self) -> None:
        """What ``tox -e lowest`` tests are the lower bounds, and each dependency has one and its reason."""
        needed = self.lines("options", "install_requires") + self.lines("options.extras_require", "test")
        bounds = {name: low for line in needed for name, low in re.findall(r"^([\w.\[\]-]+)>=([\d.]+)", line)}
        self.assertEqual(len(bounds), len(needed))
        pinned = dict(re.findall(r"^([\w.\[\]-]+)==([\d.]+)$", (HERE / "lowest.txt").read_text(), re.MULTILINE))
        self.assertEqual(pinned.keys(), bounds.keys())
        for name, low in bounds.items():
            self.assertTrue(f"{pinned[name]}.".startswith(f"{low}."), f"{name}: {low} and {pinned[name]}")
        reasons = (HERE / "docs/dependencies.rst").read_text(encoding="utf-8")
        for name in bounds:
            self.assertIn(name.partition("[")[0], reasons)


class DocumentationTests(SynchronousTestCase):
    """What is written for users."""

    def test_options(self) -> None:
        """Every option is in the pages on operating the server."""
        pages = HERE / "docs" / "operating"
        if not pages.exists():
            raise SkipTest("docs are not beside the tests")
        text = "\n".join(path.read_text(encoding="utf-8") for path in pages.rglob("*.rst"))
        commands = (FsckOptions, AdministerOptions, AddOptions, ListOptions, RevokeOptions)
        for kind in (Options, ServeOptions, *commands):
            options: _Options = kind()
            for name in (option.rstrip("=") for option in options.longOpt):
                if name not in ("help", "version"):
                    self.assertIn(f"--{name}", text, kind.__name__)
