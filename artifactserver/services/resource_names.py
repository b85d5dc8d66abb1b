"""The resource names of ByteStream: which blob a name means, and whether it is for reading or for writing.

The forms, with ``[...]`` for what may be left out (REAPI 2.12, ``ContentAddressableStorage``)::

    reading   [INSTANCE/]blobs/[FUNCTION/]HASH/SIZE[/ANYTHING...]
    writing   [INSTANCE/]uploads/ID/blobs/[FUNCTION/]HASH/SIZE[/ANYTHING...]
    both      HASH/SIZE       BuildStream 1.1.4 to 1.1.6 and 1.3.0

An instance name may hold slashes, but no segment that is one of `KEYWORDS`: the first of these ends it.  The
upload's ID is of no consequence: BuildStream and buildbox-casd use one for all their uploads, so it names nothing.
"""

from __future__ import annotations

import re

from artifactserver.rpc.status import Code, RpcError
from artifactserver.services.names import MAX_INSTANCE_NAME
from artifactserver.store.digest import Digest, DigestFunction

#: The longest resource name, in characters: an instance name, a digest, and a file's path as its tail.
MAX_RESOURCE_NAME = 8192

#: Segments that cannot be part of an instance name (REAPI 2.12).
KEYWORDS = frozenset({"blobs", "uploads", "actions", "actionResults", "operations", "capabilities", "compressed-blobs"})

#: How nearly all names look, without an instance and with nothing behind the size: found without taking them apart.
_USUAL_READ = re.compile("blobs/([0-9a-f]{64})/([0-9]{1,18})").fullmatch
_USUAL_WRITE = re.compile("uploads/[^/]{1,256}/blobs/([0-9a-f]{64})/([0-9]{1,18})").fullmatch

_SIZE = re.compile("[0-9]{1,19}")
_FUNCTIONS = frozenset(function.name.lower() for function in DigestFunction)
_HASH_LENGTH = 32


def parse_read(name: str) -> Digest:
    """The blob that a name for reading means.

    :raises RpcError: INVALID_ARGUMENT, if it is no such name.
    :raises InvalidDigest: if what should be a digest in it is none.
    """
    if usual := _USUAL_READ(name):
        return Digest.sound(usual[1], int(usual[2]))
    segments = _split(name)
    start = _keyword(segments)
    if start is None:
        return _legacy(name, segments)
    return _blob(name, segments, start)


def parse_write(name: str) -> Digest:
    """The blob that a name for writing means.

    :raises RpcError: INVALID_ARGUMENT, if it is no such name.
    :raises InvalidDigest: if what should be a digest in it is none.
    """
    if usual := _USUAL_WRITE(name):
        return Digest.sound(usual[1], int(usual[2]))
    segments = _split(name)
    start = _keyword(segments)
    if start is None:
        return _legacy(name, segments)
    if segments[start] != "uploads" or len(segments) < start + 3:
        raise _malformed(name)
    return _blob(name, segments, start + 2)


def _split(name: str) -> list[str]:
    if len(name) > MAX_RESOURCE_NAME:
        raise RpcError(Code.INVALID_ARGUMENT, f"a resource name has at most {MAX_RESOURCE_NAME} characters")
    return name.split("/")


def _keyword(segments: list[str]) -> int | None:
    for position, segment in enumerate(segments):
        if segment in KEYWORDS:
            if sum(map(len, segments[:position])) + position - 1 > MAX_INSTANCE_NAME:
                raise RpcError(Code.INVALID_ARGUMENT, f"an instance name has at most {MAX_INSTANCE_NAME} characters")
            return position
    return None


def _legacy(name: str, segments: list[str]) -> Digest:
    if len(segments) != 2:
        raise _malformed(name)
    return _digest(name, segments[0], segments[1])


def _blob(name: str, segments: list[str], start: int) -> Digest:
    """Read a digest after the keyword at ``start``."""
    if segments[start] == "compressed-blobs":
        raise RpcError(Code.INVALID_ARGUMENT, "compressed blobs are not spoken here: no compressor is announced")
    if segments[start] != "blobs":
        raise _malformed(name)
    start += 1
    if len(segments) > start and len(segments[start]) < _HASH_LENGTH and segments[start] in _FUNCTIONS:
        start += 1
    if len(segments) < start + 2:
        raise _malformed(name)
    return _digest(name, segments[start], segments[start + 1])


def _digest(name: str, hash: str, size: str) -> Digest:
    if not _SIZE.fullmatch(size):
        raise _malformed(name)
    return Digest.parse(hash, int(size))


def _malformed(name: str) -> RpcError:
    return RpcError(Code.INVALID_ARGUMENT, f"{name[:200]!r} is not the resource name of a blob")
