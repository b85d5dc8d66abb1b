"""``artifactserver token``: adding, listing and revoking tokens."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from twisted.python.usage import CompleteFiles, Completions, UsageError

from artifactserver.command_line import CommandLine
from artifactserver.tokens import token_file
from artifactserver.tokens.known import MAX_NAME, TokenProblem, parse, read_file, right_word


class _TokenCommand(CommandLine):
    """What the commands have in common: the file."""

    optParameters: list[list[Any]] = [["tokens", None, None, "The file of the tokens.  (required)"]]
    compData = Completions(optActions={"tokens": CompleteFiles()})

    def postOptions(self) -> None:
        if not self["tokens"]:
            raise UsageError("--tokens is missing: give the file that the server is given with --tokens")
        self["tokens"] = Path.cwd() / Path(self["tokens"]).expanduser()

    def run(self) -> None:
        """Do what was asked for.

        :raises TokenProblem: if that is not possible.
        """
        raise NotImplementedError

    def _take_name(self, names: tuple[str, ...]) -> None:
        if len(names) != 1:
            raise UsageError("give one NAME: what the token is called")
        (self["name"],) = names


class AddOptions(_TokenCommand):
    """The options of ``artifactserver token add``."""

    synopsis = "NAME [--push] --tokens FILE"
    longdesc = (
        "Make a token, add it to FILE, which is made if it does not exist, and print it.  That is the only time: FILE "
        f"has no more than its hash.  NAME has up to {MAX_NAME} characters."
    )
    optFlags: list[list[Any]] = [["push", None, "Let its holder push.  Without it they can only pull."]]

    def parseArgs(self, *names: str) -> None:
        self._take_name(names)

    def run(self) -> None:
        path, name = self["tokens"], self["name"]
        secret = token_file.add(path, name, push=bool(self["push"]))
        try:
            print(secret, flush=True)  # noqa: T201
        except OSError as error:
            token_file.revoke(path, name)
            raise TokenProblem(
                f"the token could not be printed ({error.strerror}), so {name!r} was not added: try again"
            ) from error
        may = "pull and push" if self["push"] else "pull"
        print(  # noqa: T201
            f"artifactserver token: {name!r} was added to {path} and may {may}; the token is shown this once",
            file=sys.stderr,
        )


class ListOptions(_TokenCommand):
    """The options of ``artifactserver token list``."""

    synopsis = "--tokens FILE"
    longdesc = "Print a line for each token in FILE: its name, and 'pull' or 'push'.  Who may push may pull as well."

    def run(self) -> None:
        path = self["tokens"]
        lines = [f"{token.name} {right_word(token.rights)}\n" for token in parse(read_file(path), path)]
        try:
            print(end="".join(lines), flush=True)  # noqa: T201
        except OSError as error:
            raise TokenProblem(f"the list could not be printed ({error.strerror}): try again") from error


class RevokeOptions(_TokenCommand):
    """The options of ``artifactserver token revoke``."""

    synopsis = "NAME --tokens FILE"
    longdesc = "Take the token called NAME out of FILE."

    def parseArgs(self, *names: str) -> None:
        self._take_name(names)

    def run(self) -> None:
        token_file.revoke(self["tokens"], self["name"])
        print(  # noqa: T201
            f"artifactserver token: {self['name']!r} was revoked in {self['tokens']}", file=sys.stderr
        )


class TokenOptions(CommandLine):
    """The options of ``artifactserver token``."""

    synopsis = "COMMAND"
    longdesc = "Look after the tokens with which clients show who they are.  'COMMAND --help' says more."
    subCommands = [
        ["add", None, AddOptions, "Make a token and print it."],
        ["list", None, ListOptions, "List the tokens."],
        ["revoke", None, RevokeOptions, "Take a token away."],
    ]

    def postOptions(self) -> None:
        if self.subCommand is None:
            raise UsageError("give a command: 'artifactserver token --help' lists them")
