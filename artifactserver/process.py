"""Settings of the process that cost nothing, and that the system leaves at defaults made for small programs."""

from __future__ import annotations

import ctypes
import gc
import resource
import sys

#: Blocks of up to so many bytes, the buffers of large messages among them, are kept for the next one when they are
#: freed.  By default the C library gives them back to the kernel, which then clears each page again: a fifth of the
#: cost of large uploads.
KEPT_BYTES = 32 * 1024 * 1024

#: Free memory at the end of the heap that is kept before any is given back.
KEPT_AT_END_BYTES = 64 * 1024 * 1024

#: New objects between two looks for cycles.  Calls make objects by the thousand, and none of them in cycles, but
#: connections leave some.  A look holds everybody up for 0.6 ms per thousand.
OBJECTS_BETWEEN_COLLECTIONS = 2_000

#: Seconds for which a thread keeps the interpreter while another one waits for it.  The usual 5 ms would hold up the
#: reactor whenever the committer has much to do.
SWITCH_SECONDS = 0.001

# From glibc's malloc.h.
_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3


def descriptors() -> int:
    """How many descriptors this process may have once it has settled."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    return most if most != resource.RLIM_INFINITY else sys.maxsize


def give_back() -> None:
    """Return to the system what is free in the midst of the heap, all of it: to be called from time to time.

    The C library does so only at the heap's end, so a minute of large messages would be seen for days.  It takes a
    millisecond or a few, and as long again when the memory is needed once more.
    """
    try:
        malloc_trim = ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError):
        return  # Another C library, with other ways.
    malloc_trim(0)


def settle() -> None:
    """To be called once, when everything that stays has been made."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    # A descriptor for each connection, each blob that is read or written, and each pack: the usual 1,024 are too few.
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):
        pass  # Another C library, with other ways.
    else:
        mallopt(_M_MMAP_THRESHOLD, KEPT_BYTES)
        mallopt(_M_TRIM_THRESHOLD, KEPT_AT_END_BYTES)
    sys.setswitchinterval(SWITCH_SECONDS)
    gc.collect()
    # Modules, classes and tables will not become garbage: there is no point in looking at them again and again.
    gc.freeze()
    gc.set_threshold(OBJECTS_BETWEEN_COLLECTIONS, 10, 10)
