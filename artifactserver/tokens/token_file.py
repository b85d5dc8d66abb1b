"""Changing a file of tokens: all of a change or nothing of it is there, whatever happens, and one change at a time.

The new content is written beside the file and takes its place, so a server that reads meanwhile gets the old or the
new.  What people have written around the tokens stays, and so do the file's mode and owner: the server may run as
somebody else than who changes the file.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from artifactserver.tokens.known import (
    HEADING,
    MAX_FILE_BYTES,
    MAX_TOKENS,
    RIGHTS,
    Token,
    TokenProblem,
    check_name,
    new_secret,
    parse,
    read_file,
)


def add(path: Path, name: str, *, push: bool) -> str:
    """Add a token to a file, which is made if it does not exist, for its owner alone.

    :param push: whether its holder may push, besides pulling.
    :return: the secret.
    :raises TokenProblem: if that is not possible; nothing has changed then.
    """
    check_name(name)
    secret = new_secret()
    token = Token(name, RIGHTS["push" if push else "pull"], hashlib.sha256(secret.encode("ascii")).digest())
    with _turn(path, make=True) as place:
        content = read_file(place)
        tokens = parse(content, path)
        if any(each.name == name for each in tokens):
            raise TokenProblem(f"{path} has a token with the name {name!r}: revoke that, or choose another name")
        if len(tokens) >= MAX_TOKENS:
            raise TokenProblem(f"{path} has {MAX_TOKENS} tokens, and more are not taken: revoke some")
        lines = content.rstrip().split(b"\n") if content.strip() else []
        if not _tokens_may_follow(lines):
            lines.insert(0, HEADING.encode("ascii"))
        lines.append(token.line().encode("ascii"))
        _replace(place, path, lines)
    return secret


def revoke(path: Path, name: str) -> Token:
    """Take a token out of a file.

    :return: what it was.
    :raises TokenProblem: if that is not possible; nothing has changed then.
    """
    check_name(name)
    with _turn(path, make=False) as place:
        content = read_file(place)
        found = [token for token in parse(content, path) if token.name == name]
        if not found:
            raise TokenProblem(f"{path} has no token with the name {name!r}: 'artifactserver token list' shows them")
        lines = content.rstrip().split(b"\n")
        _replace(place, path, [line for line in lines if not _is_token(line, name)])
    return found[0]


def _is_token(line: bytes, name: str) -> bool:
    """Whether a line is that of a token: there may be one with the name with which the heading begins."""
    words = line.split()
    return len(words) == 3 and words[0] == name.encode("ascii")


def _tokens_may_follow(lines: list[bytes]) -> bool:
    """Whether there is anything but comments: if so, it has been parsed, and the heading is the first of it."""
    return any(line.strip() and not line.lstrip().startswith(b"#") for line in lines)


@contextmanager
def _turn(path: Path, *, make: bool) -> Iterator[Path]:
    """Wait until nobody else changes the file, and keep others from it; gives where it really is.

    :param make: whether it is made if it is not there.
    """
    place = Path(os.path.realpath(path))
    fd = -1
    try:
        while fd < 0:
            fd = _open(place, os.O_CREAT if make else 0)
            fcntl.flock(fd, fcntl.LOCK_EX)
            if not _is_at(fd, place):
                # Somebody has put another in its place while we waited.
                os.close(fd)
                fd = -1
    except OSError as error:
        if fd >= 0:
            os.close(fd)
        raise TokenProblem(
            f"{path} cannot be opened to change it ({error.strerror}): "
            "give --tokens a file in a directory that is there and that this user may write to"
        ) from error
    try:
        yield place
    finally:
        os.close(fd)


def _open(place: Path, flags: int) -> int:
    flags |= os.O_CLOEXEC | os.O_NONBLOCK
    try:
        # NFS locks what is open for writing alone.
        return os.open(place, os.O_RDWR | flags, 0o600)
    except PermissionError:
        return os.open(place, os.O_RDONLY | flags, 0o600)


def _is_at(fd: int, place: Path) -> bool:
    try:
        there = os.stat(place)
    except FileNotFoundError:
        return False
    return os.path.samestat(os.fstat(fd), there)


def _replace(place: Path, path: Path, lines: list[bytes]) -> None:
    """Put a file with these lines in the place of the one that is there.

    :param path: how whoever runs the command calls it.
    """
    content = b"\n".join([*lines, b""])
    if len(content) > MAX_FILE_BYTES:
        raise TokenProblem(f"{path} would have more than {MAX_FILE_BYTES} bytes: revoke tokens, or take out comments")
    new = place.with_name(f".{place.name}.new")
    try:
        # Whoever has a turn is alone, so what has that name was left behind.
        new.unlink(missing_ok=True)
        fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            with open(fd, "wb") as file:
                _keep_owner(fd, os.stat(place), path)
                file.write(content)
                file.flush()
                os.fsync(fd)
            os.replace(new, place)
        except BaseException:
            new.unlink(missing_ok=True)
            raise
        _sync_directory(place.parent)
    except OSError as error:
        raise TokenProblem(
            f"{path} cannot be changed ({error.strerror}): see to it that this user may write to its directory, and "
            "that there is room"
        ) from error


def _keep_owner(fd: int, old: os.stat_result, path: Path) -> None:
    own = os.fstat(fd)
    if (own.st_uid, own.st_gid) != (old.st_uid, old.st_gid):
        try:
            os.fchown(fd, old.st_uid, old.st_gid)
        except PermissionError:
            raise TokenProblem(
                f"{path} belongs to a user or group that this user cannot give a file to: change it as its owner, "
                "or as root"
            ) from None
    os.fchmod(fd, stat.S_IMODE(old.st_mode))


def _sync_directory(directory: Path) -> None:
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
