"""What all our command lines have in common."""

from __future__ import annotations

import getopt
import sys

from twisted.python.usage import Options as _Options
from twisted.python.usage import UsageError

from artifactserver import __version__


class CommandLine(_Options):
    """Options that may stand before, between and after the arguments of a command.

    :ivar given: those that were given, as ``--name`` or ``-n``.
    """

    given: frozenset[str] = frozenset()

    def parseOptions(self, options: list[str] | None = None) -> None:
        """Parse a command line.

        :raises UsageError: if there is something wrong with it.
        """
        arguments = list(sys.argv[1:] if options is None else options)
        # What follows the name of a subcommand is for that to read.
        super().parseOptions(arguments if hasattr(self, "subCommands") else self._options_first(arguments))

    def opt_version(self) -> None:
        """Display the version and exit."""
        print(f"artifactserver {__version__}")  # noqa: T201
        raise SystemExit(0)

    def _options_first(self, arguments: list[str]) -> list[str]:
        """The same command line with the options before the other arguments, as Twisted wants them."""
        if len(arguments) > 1 and arguments[-2] == "--_shell-completion":
            return arguments
        try:
            options, rest = getopt.gnu_getopt(arguments, self.shortOpt, self.longOpt)
        except getopt.GetoptError as error:
            raise UsageError(f"{error.msg}: --help lists the options") from None
        self.given = frozenset(name for name, _ in options)
        ordered = []
        for name, value in options:
            if not name.startswith("--"):
                ordered += [name, value] if f"{name[1]}:" in self.shortOpt else [name]
            else:
                ordered.append(f"{name}={value}" if f"{name[2:]}=" in self.longOpt else name)
        return [*ordered, "--", *rest]
