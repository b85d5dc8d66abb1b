"""Real BuildStream clients, and projects for them.

BuildStream 1 and 2 differ in their projects, their configuration and their commands, so there is a class for each;
both have the same methods.  A client has a home and caches of its own: a new client in a new folder is another user on
another machine.
"""

from __future__ import annotations

import hashlib
import os
import random
import shutil
import stat
import subprocess
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.certificates import CertificateFiles
from tests.processes import Finished, environment, run

#: Seconds that any one command may take; most take less than one.
TIMEOUT = 90


@dataclass(frozen=True, slots=True)
class Remote:
    """A cache server, as a user configures it.

    :ivar server: the server's certificate, for one that the system's roots do not vouch for.
    :ivar client: the certificate that the client shows.
    :ivar token: a file with the token that it shows; BuildStream 2 alone has that, and over TLS.
    :ivar patient: whether to try again where there is no connection, as BuildStream 2 does for ten seconds unless it is
        told otherwise.
    """

    url: str
    push: bool = True
    server: CertificateFiles | None = None
    client: CertificateFiles | None = None
    instance: str | None = None
    type: str | None = None
    token: Path | None = None
    patient: bool = True


@dataclass(frozen=True, slots=True)
class Entry:
    """One name in a file tree: what can be compared of it."""

    kind: str
    mode: int
    content: str


def snapshot(tree: Path) -> dict[str, Entry]:
    """All that is in a file tree, by relative path: folders, links with their targets, files with mode and hash."""
    entries = {}
    for path in sorted(tree.rglob("*")):
        status = path.lstat()
        mode = stat.S_IMODE(status.st_mode)
        if stat.S_ISLNK(status.st_mode):
            entry = Entry("link", 0, os.readlink(path))
        elif stat.S_ISDIR(status.st_mode):
            entry = Entry("folder", mode, "")
        else:
            entry = Entry("file", mode, hashlib.sha256(path.read_bytes()).hexdigest())
        entries[str(path.relative_to(tree))] = entry
    return entries


def write_tree(tree: Path, seed: int) -> None:
    """Write what real packages have: programs, links, empty things, deep folders, many small files and a large one."""
    random_ = random.Random(seed)

    def write(name: str, content: bytes, mode: int = 0o644) -> None:
        path = tree / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        path.chmod(mode)

    write("usr/bin/program", b"#!/bin/sh\necho works\n", 0o755)
    write("usr/share/empty", b"")
    write("usr/share/name with spaces \N{SNOWMAN}", b"\r\n\0\xff")
    write("usr/share/firmware.bin", random_.randbytes(20_000_000))
    write("usr/share/just-over-a-mebibyte", random_.randbytes(2**20 + 1))
    write("/".join("abcdefghijklmnop") + "/deep", b"down here")
    for number in range(300):
        write(f"usr/lib/{number % 7}/{number}.txt", random_.randbytes(random_.randrange(6000)))
    for number in range(10):
        write(f"usr/lib/same/{number}", b"the same content under many names")
    (tree / "var/empty/folder").mkdir(parents=True)
    (tree / "usr/bin/link").symlink_to("program")
    (tree / "usr/bin/up-and-down").symlink_to("../share/firmware.bin")
    (tree / "usr/dangling").symlink_to("nowhere/at/all")
    (tree / "usr/folder-link").symlink_to("lib")
    for folder, _, _ in os.walk(tree):
        os.chmod(folder, 0o755)


@dataclass(frozen=True, slots=True)
class Project:
    """A project on disk, and what a checkout of its top element must look like.

    :ivar origin: the file that its source in an archive is downloaded from.
    """

    path: Path
    expected: dict[str, Entry]
    origin: Path


def write_project(path: Path, generation: int) -> Project:
    """Make a project of import elements, composed, with a stack named ``everything.bst`` on top.

    For BuildStream 2 there is also an element whose source is an archive behind a ``file:`` URL: it has to be
    downloaded, while the files of a ``local`` source are at hand wherever the project is.  And there is a program of
    the same content as another file that is none, which BuildStream 1 cannot keep apart: it has one file for both in
    its own cache, and makes links to it.
    """
    elements = path / "elements"
    elements.mkdir(parents=True)
    write_tree(path / "files", seed=1)
    (path / "more/opt/more").mkdir(parents=True)
    (path / "more/opt/more/file").write_bytes(b"in another element\n")
    (path / "project.conf").write_text(
        "name: trees\nelement-path: elements\n" + ("min-version: 2.0\n" * (generation == 2))
    )
    parts = ["files", "more"]
    for name in parts:
        (elements / f"{name}.bst").write_text(f"kind: import\nsources:\n- kind: local\n  path: {name}\n")
    if generation == 2:
        (path / "more/opt/more/program").touch(0o755)
        (path / "more/opt/more/program").chmod(0o755)
    expected = snapshot(path / "files") | snapshot(path / "more")
    origin = path.with_name("origin.tar")
    if generation == 2:
        packed = path.with_name("packed")
        (packed / "package-1.0/src").mkdir(parents=True)
        (packed / "package-1.0/configure").write_bytes(b"#!/bin/sh\n")
        (packed / "package-1.0/configure").chmod(0o755)
        (packed / "package-1.0/src/main.c").write_bytes(b"int main(void) { return 0; }\n")
        (packed / "package-1.0/link").symlink_to("src/main.c")
        with tarfile.open(origin, "w") as tar:
            tar.add(packed / "package-1.0", "package-1.0")
        reference = hashlib.sha256(origin.read_bytes()).hexdigest()
        (elements / "archive.bst").write_text(
            f"kind: import\nsources:\n- kind: tar\n  url: {origin.as_uri()}\n  ref: {reference}\n"
        )
        parts.append("archive")
        expected |= snapshot(packed / "package-1.0")
    (elements / "composed.bst").write_text(
        "kind: compose\ndepends:\n" + "".join(f"- filename: {name}.bst\n  type: build\n" for name in parts)
    )
    (elements / "everything.bst").write_text("kind: stack\ndepends:\n- composed.bst\n")
    return Project(path, expected, origin)


class _BuildStream:
    """What both generations share.

    :ivar place: the folder that has the client's home, caches and configuration in it.
    """

    def __init__(self, program: str, place: Path, project: Path) -> None:
        self.program = program
        self.place = place
        self.project = project
        place.mkdir(parents=True, exist_ok=True)

    def bst(self, config: str, *arguments: str) -> Finished:
        """Run one command with a configuration of its own."""
        path = self.place / "buildstream.conf"
        path.write_text(config)
        common = ["--no-interactive", "--no-colors", "--on-error", "quit", "--config", str(path)]
        return run(
            [self.program, *common, *arguments],
            cwd=self.project,
            env=environment(self.place / "home"),
            timeout=TIMEOUT,
        )


class BuildStream1(_BuildStream):
    """A user of BuildStream 1.x."""

    def build(self, element: str) -> Finished:
        return self.bst(self._config([]), "build", element)

    def push(self, element: str, *remotes: Remote) -> Finished:
        return self.bst(self._config(remotes), "push", "--deps", "all", element)

    def pull(self, element: str, *remotes: Remote) -> Finished:
        return self.bst(self._config(remotes), "pull", "--deps", "all", element)

    def checkout(self, element: str, directory: Path) -> Finished:
        return self.bst(self._config([]), "checkout", element, str(directory))

    def _config(self, remotes: Sequence[Remote]) -> str:
        lines = [f"{name}dir: {self.place / name}" for name in ("source", "build", "artifact", "log")]
        if remotes:
            lines.append("artifacts:")
        for remote in remotes:
            lines += [f"- url: {remote.url}", f"  push: {remote.push}", *_certificates(remote, "  ")]
        return "\n".join([*lines, ""])


class BuildStream2(_BuildStream):
    """A user of BuildStream 2.x.  Its ``build`` knows no remotes unless it is told of some."""

    def build(self, element: str, *, storage: Remote | None = None) -> Finished:
        return self.bst(self._config(storage=storage), "build", element)

    def push(self, element: str, *remotes: Remote) -> Finished:
        return self.bst(self._config(remotes), "artifact", "push", "--deps", "all", element)

    def pull(self, element: str, *remotes: Remote) -> Finished:
        return self.bst(self._config(remotes), "artifact", "pull", "--deps", "all", element)

    def checkout(self, element: str, directory: Path, *, storage: Remote | None = None) -> Finished:
        return self.bst(self._config(storage=storage), "artifact", "checkout", "--directory", str(directory), element)

    def push_sources(self, element: str, *remotes: Remote) -> Finished:
        return self.bst(self._config(sources=remotes), "source", "push", "--deps", "all", element)

    def fetch_sources(self, element: str, *remotes: Remote) -> Finished:
        return self.bst(self._config(sources=remotes), "source", "fetch", "--deps", "all", element)

    def _config(
        self, artifacts: Sequence[Remote] = (), sources: Sequence[Remote] = (), storage: Remote | None = None
    ) -> str:
        lines = [f"{name}dir: {self.place / name}" for name in ("cache", "source", "log")]
        for section, remotes in (("artifacts", artifacts), ("source-caches", sources)):
            if remotes:
                lines += [f"{section}:", "  servers:"]
            for remote in remotes:
                lines += [f"  - url: {remote.url}", f"    push: {remote.push}"]
                if remote.type is not None:
                    lines.append(f"    type: {remote.type}")
                if remote.instance is not None:
                    lines.append(f"    instance-name: {remote.instance}")
                if not remote.patient:
                    # None at all is taken for nothing that was said.
                    lines += ["    connection-config:", "      retry-limit: 1", "      retry-delay: 1"]
                if remote.server is not None or remote.client is not None:
                    lines += ["    auth:", *_certificates(remote, "      ")]
                    if remote.token is not None:
                        lines.append(f"      access-token: {remote.token}")
        if storage is not None:
            lines += ["cache:", "  storage-service:", f"    url: {storage.url}"]
        return "\n".join([*lines, ""])


def _certificates(remote: Remote, indent: str) -> list[str]:
    lines = []
    if remote.server is not None:
        lines.append(f"{indent}server-cert: {remote.server.certificate}")
    if remote.client is not None:
        lines += [f"{indent}client-key: {remote.client.key}", f"{indent}client-cert: {remote.client.certificate}"]
    return lines


def find_program(variable: str, default: str, generation: int) -> tuple[str | None, str]:
    """Find a ``bst`` of one generation.

    :param variable: the environment variable that names the program.
    :param default: where to look when it is not set.
    :returns: the program, or `None` and a sentence that says how to have one.
    """
    named = os.environ.get(variable)
    program = shutil.which(named or default)
    wanted = f"BuildStream {generation}.x"
    if program is None:
        return None, f"no {wanted} here: {named or default} is not a program; set {variable} to the path of its bst"
    version = subprocess.run([program, "--version"], capture_output=True, text=True, timeout=TIMEOUT, check=False)
    if not version.stdout.startswith(f"{generation}."):
        said = (version.stdout or version.stderr).strip()[:200]
        return None, f"{program} is no {wanted} (its --version says {said!r}): set {variable} to the path of its bst"
    return program, version.stdout.strip()
