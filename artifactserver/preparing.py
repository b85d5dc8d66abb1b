"""Making and checking the repository as the process that will serve it: as its user, and with its umask.

twistd changes both after it has forked, when there is nobody left to tell what is wrong.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from twisted.python.util import switchUID

from artifactserver.store.layout import RepositoryProblem
from artifactserver.store.repository import prepare


def owner_of(parent: Mapping[str, Any]) -> tuple[int, int] | None:
    """Whose the files of unix sockets are to be, as user and group: the one that twistd changes to, if it does."""
    uid, gid = parent.get("uid"), parent.get("gid")
    if uid is None and gid is None:
        return None
    if uid is not None and gid is None:
        with contextlib.suppress(KeyError):  # Whether it can be that user is seen when the repository is prepared.
            gid = pwd.getpwuid(uid).pw_gid
    return (-1 if uid is None else uid), (-1 if gid is None else gid)


def prepare_as_twistd(repo: Path, parent: Mapping[str, Any]) -> None:
    """Make or check the repository as the process that will serve it: as its user, and with its umask.

    :param parent: twistd's options, if there is a twistd.
    :raises RepositoryProblem: if it cannot be used.
    """
    umask = parent.get("umask")
    if umask is None and "nodaemon" in parent and not parent["nodaemon"]:
        umask = 0o077
    uid, gid = parent.get("uid"), parent.get("gid")
    if uid is None and gid is None:
        before = os.umask(umask) if umask is not None else None
        try:
            prepare(repo)
        finally:
            if before is not None:
                os.umask(before)
        return
    problem = _in_child(lambda: _prepare_as(repo, uid, gid, umask))
    if problem:
        raise RepositoryProblem(problem)


def _prepare_as(repo: Path, uid: int | None, gid: int | None, umask: int | None) -> str:
    try:
        if uid is not None and gid is None:
            gid = pwd.getpwuid(uid).pw_gid
        switchUID(uid, gid)
    except (OSError, KeyError) as error:
        return (
            f"this user may not become --uid {uid} and --gid {gid} ({error}): start twistd as root, or leave them out"
        )
    if umask is not None:
        os.umask(umask)
    try:
        prepare(repo)
    except RepositoryProblem as error:
        return str(error)
    except Exception as error:  # Above all, parts of Python that this user cannot read.
        return (
            f"{repo} cannot be checked as the user of --uid ({type(error).__name__}: {error}): let that user read the "
            "installation of Python and of artifactserver"
        )
    return ""


def _in_child(function: Callable[[], str]) -> str:
    """What ``function`` says in a process of its own, since a user given up does not come back."""
    reading, writing = os.pipe()
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if not child:
        status = 1
        try:
            os.write(writing, function().encode("utf-8", "surrogateescape"))
            status = 0
        finally:
            os._exit(status)
    os.close(writing)
    with open(reading, encoding="utf-8", errors="surrogateescape") as pipe:
        said = pipe.read()
    _, status = os.waitpid(child, 0)
    return said if said or not status else "the repository could not be checked: this is a fault of artifactserver"
