"""What stands in a file that somebody names to the server: keys, certificates, tokens.

Such files are read while the server runs, on the reactor's thread, and whoever changes them can slip.  So what is no
file is not waited for (a named pipe may have nobody at its other end), and a file without end is not read to it.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path


class NoContent(Exception):
    """A file cannot be read whole; ``str()`` is the end of a sentence that begins with its name."""


def content_of(path: Path, most: int) -> bytes:
    """All that stands in a file.

    :param most: bytes that it may have.
    :raises NoContent: if it cannot be read, is no file, or has more.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                raise NoContent("is no file")
            with open(fd, "rb", closefd=False) as file:
                content = file.read(most + 1)
        finally:
            os.close(fd)
    except OSError as error:
        raise NoContent(f"cannot be read ({error.strerror})") from error
    if len(content) > most:
        raise NoContent(f"has more than {most} bytes")
    return content
