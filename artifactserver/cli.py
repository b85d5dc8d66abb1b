"""The commands: ``bst-artifact-server``, which serves in the foreground, and ``artifactserver``, for administration.

Both end with status 0 when all is well, 1 when something is wrong with what they work on, and 2 when they were not
understood.  (``artifactserver fsck`` ends with 2 as well if it could not do its work.)
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO

from tqdm import tqdm
from twisted.logger import (
    FilteringLogObserver,
    ILogObserver,
    LogEvent,
    LogLevel,
    LogLevelFilterPredicate,
    eventAsText,
    formatTime,
    globalLogBeginner,
)
from twisted.python.usage import UsageError
from zope.interface import implementer

from artifactserver.command_line import CommandLine
from artifactserver.options import Options
from artifactserver.store import fsck, rebuild
from artifactserver.store.fsck import Report
from artifactserver.store.layout import RepositoryProblem
from artifactserver.tap import Problem, build
from artifactserver.tokens.commands import TokenOptions
from artifactserver.tokens.known import TokenProblem

#: The levels of ``--log-level`` as bst-artifact-server calls them.
LOG_LEVELS = {"warning": LogLevel.warn, "info": LogLevel.info, "trace": LogLevel.debug}


class ServeOptions(Options):
    """The options of ``bst-artifact-server``: a port and REPO have to be named."""

    program = "bst-artifact-server"
    synopsis = "Usage: bst-artifact-server [options] REPO"
    longdesc = Options.longdesc.replace("  Without REPO it is the directory 'artifacts' in the current one.", "")

    optParameters = [
        ["port", "p", None, "TCP port to listen on, 0 for any that is free.  (required, unless there is --listen)"],
        *(parameter for parameter in Options.optParameters if parameter[0] != "port"),
        ["log-level", None, "warning", "What to log on standard error: warning, info or trace."],
    ]

    def postOptions(self) -> None:
        if self["port"] is None and not self["listen"]:
            raise UsageError("--port is missing: give the number of the port to listen on")
        super().postOptions()
        if self["log-level"] not in LOG_LEVELS:
            raise UsageError(
                f"--log-level {self['log-level']!r} is not one of {', '.join(LOG_LEVELS)}: give one of them"
            )

    def _default_repo(self) -> Path:
        raise UsageError("REPO is missing: give the directory to keep artifacts in")


def serve(arguments: list[str] | None = None) -> int:
    """``bst-artifact-server``: run until a signal says to stop."""
    from twisted.internet import reactor

    options = ServeOptions()
    try:
        options.parseOptions(arguments)
        service = build(options, reactor, time.time)
    except UsageError as error:
        return _fail(options.program, error, 2)
    except Problem as error:
        return _fail(options.program, error, 1)
    globalLogBeginner.beginLoggingTo([log_to(sys.stderr, LOG_LEVELS[options["log-level"]])], redirectStandardIO=False)
    service.privilegedStartService()
    try:
        service.startService()
    except RepositoryProblem as error:
        return _fail(options.program, error, 1)
    running: Any = reactor
    running.addSystemEventTrigger("before", "shutdown", service.stopService)
    running.run()
    return 0


def log_to(stream: TextIO, level: Any) -> ILogObserver:
    """Write what is of this level or above to ``stream``, a line each.

    The server's own words on starting and stopping are always among them; of Twisted's there are only the warnings,
    unless everything is wanted.
    """
    levels = LogLevelFilterPredicate(defaultLogLevel=level if level is LogLevel.debug else LogLevel.warn)
    levels.setLogLevelForNamespace("artifactserver", level)
    levels.setLogLevelForNamespace("artifactserver.tap", min(level, LogLevel.info, key=_severity))
    return FilteringLogObserver(_Lines(stream), [levels])


def _severity(level: Any) -> int:
    return list(LogLevel.iterconstants()).index(level)


@implementer(ILogObserver)
class _Lines:
    """Writes log events as lines; those of a traceback are indented, so that every other line begins one event."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __call__(self, event: LogEvent) -> None:
        text = eventAsText(event, includeTimestamp=False, includeSystem=False).strip().replace("\n", "\n    ")
        if text:
            level = event.get("log_level", LogLevel.info).name
            self._stream.write(f"{formatTime(event.get('log_time'))} {level}: {text}\n")
            self._stream.flush()


class FsckOptions(CommandLine):
    """The options of ``artifactserver fsck``."""

    synopsis = "[options] REPO"
    longdesc = (
        "Check every blob and record in the repository at REPO.  That may be done while a server runs.  What is "
        "damaged is named; with --repair it is put aside in REPO/quarantine, so that clients upload it again.  The "
        "status is 0 if nothing is wrong, 1 if there were problems, 2 if the check could not be made."
    )
    optFlags = [
        ["repair", None, "Put aside what is damaged."],
        ["rebuild-index", None, "Make the index again from packs and files.  No server may be running on REPO."],
    ]

    def parseArgs(self, *repo: str) -> None:
        if len(repo) != 1 or not repo[0]:
            raise UsageError("give one REPO to check")
        self["repo"] = Path.cwd() / Path(repo[0]).expanduser()

    def postOptions(self) -> None:
        if self["repair"] and self["rebuild-index"]:
            raise UsageError("--repair and --rebuild-index are two things: give one, and the other afterwards")


class AdministerOptions(CommandLine):
    """The options of ``artifactserver``."""

    synopsis = "Usage: artifactserver [options]"
    longdesc = "Look after an artifact server.  'artifactserver COMMAND --help' says more."
    subCommands = [
        ["fsck", None, FsckOptions, "Check a repository, or make its index again."],
        ["token", None, TokenOptions, "Add, list and revoke tokens of clients."],
    ]

    def postOptions(self) -> None:
        if self.subCommand is None:
            raise UsageError("give a command: 'artifactserver --help' lists them")


def administer(arguments: list[str] | None = None) -> int:
    """``artifactserver``: commands for whoever looks after a server."""
    options = AdministerOptions()
    try:
        options.parseOptions(arguments)
    except UsageError as error:
        return _fail("artifactserver", error, 2)
    chosen = options.subOptions
    if isinstance(chosen, TokenOptions):
        try:
            chosen.subOptions.run()
        except TokenProblem as problem:
            return _fail("artifactserver token", problem, 1)
        return 0
    repo: Path = chosen["repo"]
    if chosen["rebuild-index"]:
        return check(repo, lambda progress: rebuild.rebuild_index(repo, progress, time.time))
    return check(repo, lambda progress: fsck.check(repo, progress, chosen["repair"]))


def check(repo: Path, work: Callable[[fsck.Progress], Report]) -> int:
    """Do some work on a repository with a progress bar, print what came of it, and say with which status to end."""
    with _Bar(sys.stderr) as progress:
        try:
            report = work(progress)
        except RepositoryProblem as problem:
            progress.close()
            return _fail("artifactserver fsck", problem, 2)
    sentences = [*report.remarks, *report.problems]
    if report.problem_count > len(report.problems):
        sentences.append(f"... and {report.problem_count - len(report.problems)} more")
    found = f"{report.problem_count} problem{'s' * (report.problem_count != 1)}"
    sentences.append(
        f"{repo}: {found} in {report.blobs} blobs ({report.content_bytes} bytes) and {report.records} records"
    )
    try:
        print("\n".join(sentences), flush=True)  # noqa: T201
    except OSError as error:
        return _fail(
            "artifactserver fsck", f"{repo}: {found}, but the report could not be printed ({error.strerror})", 2
        )
    return 1 if report.problem_count else 0


class _Bar:
    """An `artifactserver.store.fsck.Progress` that a person can see, on a terminal."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._bar: tqdm[Any] | None = None

    def __enter__(self) -> _Bar:
        return self

    def __exit__(self, *why: object) -> None:
        self.close()

    def begin(self, doing: str, total: int) -> None:
        self.close()
        # With `None` it is quiet unless the stream is a terminal.
        self._bar = tqdm(desc=doing, total=total, file=self._stream, unit="B", unit_scale=True, disable=None)

    def advance(self, count: int) -> None:
        if self._bar is not None:
            self._bar.update(count)

    def close(self) -> None:
        bar, self._bar = self._bar, None
        if bar is not None:
            bar.close()


def _fail(program: str, why: object, status: int) -> int:
    print(f"{program}: {why}", file=sys.stderr)  # noqa: T201
    return status
