"""What a person types to start the server: the options of ``twistd artifactserver`` and ``bst-artifact-server``.

Mistakes are refused before anything starts, each in one sentence.  Left to itself, twistd would bury that sentence
under a page of options, on standard output, and end with status 0.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from twisted.python.usage import CompleteDirs, CompleteFiles, Completions, UsageError

from artifactserver.access import Source
from artifactserver.command_line import CommandLine
from artifactserver.ports.endpoints import EndpointProblem, Listen, parse_all

#: Where ``twistd artifactserver`` listens if it is not told: where BuildStream's manual has a server to pull from.
DEFAULT_PORT = 11001

#: Where the server gets from whom it knows: the options, and how clients prove who they are.
SOURCES: dict[str, Source] = {"client-certs": "certificate", "tokens": "token"}

_SIZE = re.compile(r"(\d{1,20}(?:\.\d{1,9})?(?:e\d{1,2})?) ?([kmgt]?)(i?)b?", re.IGNORECASE)
_POWERS = ("", "k", "m", "g", "t")

#: The largest size, in bytes: there is no larger file, nor disk.
_MAX_SIZE = 2**63 - 1


class Options(CommandLine):
    """The options of ``twistd artifactserver``.

    After parsing there are: ``port``, `None` for no such port; ``interface``, `None` for all; ``public-port``, `None`
    for no such port, and ``public-interface``; ``listen``, a list of `Listen`; ``repo``, ``server-key``,
    ``server-cert``, ``client-certs`` and ``tokens``, each an absolute path or, but for ``repo``, `None`; the flags
    ``client-certs-optional``, ``enable-push`` and ``private``; ``head-room-min`` and ``head-room-max`` in bytes.
    """

    synopsis = "[options] [REPO]"
    longdesc = (
        "Serve the artifacts of BuildStream 1 and 2 from the repository in the directory REPO, which is made if it "
        "does not exist.  Without REPO it is the directory 'artifacts' in the current one.  Sizes are in bytes; K, M, "
        "G and T stand for powers of 1000, Ki, Mi, Gi and Ti for powers of 1024."
    )

    optParameters: list[list[Any]] = [
        ["port", "p", str(DEFAULT_PORT), "TCP port to listen on, 0 for any that is free."],
        ["interface", None, None, "IP address or name to listen on; if left out, all addresses, IPv4 and IPv6."],
        ["public-port", None, None, "TCP port from which everybody may pull, beside --port; 0 for any that is free."],
        ["public-interface", None, None, "IP address or name for --public-port; if left out, all addresses."],
        ["server-key", None, None, "Private key for TLS (PEM file).  Needs --server-cert."],
        [
            "server-cert",
            None,
            None,
            "Certificate for TLS, with its chain, if any (PEM file).  Needs --server-key.",
        ],
        [
            "client-certs",
            None,
            None,
            "Certificates of the clients that may connect, one after another (PEM file).  Nobody else gets in.",
        ],
        [
            "tokens",
            None,
            None,
            "Tokens by which clients show who they are (made by 'artifactserver token add').  Nobody else pushes.",
        ],
        ["head-room-min", None, "2e9", "Free disk space that uploads leave untouched."],
        [
            "head-room-max",
            None,
            "10e9",
            "Free disk space to make when old content is removed.  This version removes nothing yet.",
        ],
    ]
    optFlags: list[list[Any]] = [
        ["enable-push", None, "Let clients upload.  Without it they can only pull."],
        [
            "client-certs-optional",
            None,
            "Let in clients without a certificate as well, to pull.  Needs --client-certs.",
        ],
        ["private", None, "Let nobody pull but clients that prove who they are.  Needs --client-certs or --tokens."],
    ]
    compData = Completions(
        optActions={
            "server-key": CompleteFiles("*.key"),
            "server-cert": CompleteFiles("*.crt"),
            "client-certs": CompleteFiles("*.crt"),
            "tokens": CompleteFiles(),
        },
        extraActions=[CompleteDirs(descr="REPO")],
    )

    #: Who speaks when an option is refused.
    program = "artifactserver"

    def __init__(self) -> None:
        super().__init__()
        self["listen"] = []

    def parseOptions(self, options: list[str] | None = None) -> None:
        """Parse a command line, on which options may follow REPO.

        :raises UsageError: if there is something wrong with it and this is not a subcommand of twistd.
        :raises SystemExit: with a sentence and status 1, where it is.
        """
        try:
            super().parseOptions(options)
        except UsageError as error:
            if self.parent is None:
                raise
            raise SystemExit(f"{self.program}: {error}") from None

    def parseArgs(self, *repo: str) -> None:
        if len(repo) > 1:
            raise UsageError(f"there are {len(repo)} arguments that could be REPO ({', '.join(repo)}): give one")
        self["repo"] = repo[0] if repo else None

    def postOptions(self) -> None:
        if not self._rundir().is_dir():
            # It would be made on the way to the repository.
            raise UsageError(f"--rundir {self._rundir()} is not a directory: make it, or give another")
        if self["listen"] and not self.given & {"--port", "-p"}:
            self["port"] = None
        if self["port"] is not None:
            self["port"] = _port("port", self["port"])
        elif self["interface"] is not None:
            raise UsageError("--interface is given without --port: give the number of a port, or leave it out")
        for name in ("interface", "public-interface", "server-key", "server-cert", "client-certs", "tokens", "repo"):
            if self[name] == "":
                word = "REPO" if name == "repo" else f"--{name}"
                raise UsageError(f"{word} is empty: give a name, or leave it out")
            if not name.endswith("interface") and self[name] is not None:
                self[name] = self._path(self[name])
        if self["repo"] is None:
            self["repo"] = self._default_repo()
        if (self["server-key"] is None) != (self["server-cert"] is None):
            there, absent = ("key", "cert") if self["server-cert"] is None else ("cert", "key")
            raise UsageError(f"--server-{there} is given without --server-{absent}: TLS needs both")
        if self["client-certs"] is not None and self["server-key"] is None:
            raise UsageError("--client-certs needs TLS: give --server-key and --server-cert as well")
        if self["client-certs-optional"] and self["client-certs"] is None:
            raise UsageError("--client-certs-optional is given without --client-certs: there is nothing to show")
        self._check_public_port()
        self._check_listen()
        if self["private"] and not self.sources:
            options = " or ".join(f"--{name}" for name in SOURCES)
            raise UsageError(f"--private lets in nobody without a source of identities: give {options} as well")
        for name in ("head-room-min", "head-room-max"):
            self[name] = _size(name, self[name])
        if self["head-room-min"] > self["head-room-max"]:
            raise UsageError(
                f"--head-room-min ({self['head-room-min']}) is more than --head-room-max ({self['head-room-max']}): "
                "make it less"
            )

    @property
    def sources(self) -> frozenset[Source]:
        """How clients of this server can prove who they are."""
        return frozenset(kind for name, kind in SOURCES.items() if self[name] is not None)

    def opt_listen(self, endpoint: str) -> None:
        """Listen there too: a tcp:, unix: or systemd: endpoint as Twisted has them, behind [main|public][,clear]=."""
        self["listen"].append(endpoint)

    def _check_public_port(self) -> None:
        if self["public-port"] is None:
            if self["public-interface"] is not None:
                raise UsageError("--public-interface is given without --public-port: give the number of a port")
            return
        port = self["public-port"] = _port("public-port", self["public-port"])
        if port == self["port"] != 0:
            raise UsageError(f"--port and --public-port are both {port}: give each a port of its own")
        if self["private"]:
            raise UsageError("--private and --public-port contradict each other: leave one of them out")

    def _check_listen(self) -> None:
        try:
            listens: list[Listen] = parse_all(self["listen"], self._path)
        except EndpointProblem as error:
            raise UsageError(str(error)) from None
        for listen in listens:
            if listen.role == "public" and self["private"]:
                raise UsageError(f"--private and {listen} contradict each other: leave one of them out")
            if listen.role == "main" and listen.clear and self.sources == {"certificate"}:
                raise UsageError(
                    f"{listen} lets nobody show a certificate of --client-certs: leave out 'clear', or make it public"
                )
        self["listen"] = listens

    def _default_repo(self) -> Path:
        return self._path("artifacts")

    def _path(self, name: str) -> Path:
        """An absolute path; a relative one starts where twistd's ``--rundir`` says that the server runs."""
        return self._rundir() / Path(name).expanduser()

    def _rundir(self) -> Path:
        return Path.cwd() / (self.parent.get("rundir", ".") if self.parent is not None else ".")


def _port(name: str, text: str) -> int:
    if not re.fullmatch(r"[0-9]{1,6}", text) or int(text) > 65535:
        raise UsageError(f"--{name} {text!r} is not a port: give a number from 1 to 65535, or 0 for any that is free")
    return int(text)


def _size(name: str, text: str) -> int:
    match = _SIZE.fullmatch(text)
    if match is None or (match[3] and not match[2]):
        raise UsageError(f"--{name} {text!r} is not a size: give a number of bytes, or one with K, M, G or T behind it")
    number, unit, binary = match.groups()
    # Exact, where there is no fraction: floating point would be off from 2**53 on.
    value = int(number) if number.isdecimal() else float(number)
    size = int(value * (1024 if binary else 1000) ** _POWERS.index(unit.lower()))
    if size > _MAX_SIZE:
        raise UsageError(f"--{name} {text!r} is more than any disk holds: give at most {_MAX_SIZE} bytes")
    return size
