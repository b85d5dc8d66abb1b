"""Names that clients give to things, and how long they may be.

Names are kept, in the index and in packs, for as long as the record lives; so each has a bound, far beyond what any
client was seen to use.  Lengths are in characters.
"""

from __future__ import annotations

from collections.abc import Sequence, Sized

from artifactserver.proto import remote_asset_pb2 as asset
from artifactserver.rpc.status import Code, RpcError

#: The longest instance name.
MAX_INSTANCE_NAME = 256

#: The longest URI.  BuildStream's have some 200 characters; a signed URL of a cloud's has some thousands.
MAX_URI = 8192

#: The most URIs in one request.  BuildStream sends two, a downloader's list of mirrors holds some dozens.
MAX_URIS = 64

#: The most qualifiers in one request, and the longest name and value of one.
MAX_QUALIFIERS = 64
MAX_QUALIFIER_NAME = 256
MAX_QUALIFIER_VALUE = 8192

#: The most bytes in the names and values of all qualifiers of one request.  They are kept with each of its URIs, so
#: `MAX_URIS` times: 1 MiB.
MAX_QUALIFIERS_BYTES = 16 * 1024

#: The most references, to blobs and directories together, in one request.
MAX_REFERENCES = 10_000


def check_instance(name: str) -> str:
    """The instance name itself, if it is short enough: an instance is a namespace for records, and any name will do.

    :raises RpcError: INVALID_ARGUMENT.
    """
    if len(name) > MAX_INSTANCE_NAME:
        raise RpcError(Code.INVALID_ARGUMENT, f"an instance name has at most {MAX_INSTANCE_NAME} characters")
    return name


def check_uris(uris: Sequence[str], what: str = "URI") -> list[str]:
    """The same names, each once, in their order.

    :param what: what to call one in a refusal.
    :raises RpcError: INVALID_ARGUMENT, if there are none (the probe of BuildStream 1.6 and later), too many, or one is
        empty or too long.
    """
    if not uris:
        raise RpcError(Code.INVALID_ARGUMENT, f"no {what} is given")
    if len(uris) > MAX_URIS:
        raise RpcError(Code.INVALID_ARGUMENT, f"more than {MAX_URIS} {what}s are given")
    for uri in uris:
        if not uri:
            raise RpcError(Code.INVALID_ARGUMENT, f"an empty {what} is given")
        if len(uri) > MAX_URI:
            raise RpcError(Code.INVALID_ARGUMENT, f"a {what} has at most {MAX_URI} characters")
    return list(dict.fromkeys(uris))


def check_qualifiers(qualifiers: Sequence[asset.Qualifier]) -> tuple[tuple[str, str], ...]:
    """Qualifiers as the set that they are: sorted, each once.

    :raises RpcError: INVALID_ARGUMENT, if there are too many, one is too long, or all together are.
    """
    if len(qualifiers) > MAX_QUALIFIERS:
        raise RpcError(Code.INVALID_ARGUMENT, f"more than {MAX_QUALIFIERS} qualifiers are given")
    for qualifier in qualifiers:
        if len(qualifier.name) > MAX_QUALIFIER_NAME or len(qualifier.value) > MAX_QUALIFIER_VALUE:
            raise RpcError(
                Code.INVALID_ARGUMENT,
                f"a qualifier's name has at most {MAX_QUALIFIER_NAME} characters, its value {MAX_QUALIFIER_VALUE}",
            )
    pairs = tuple(sorted({(qualifier.name, qualifier.value) for qualifier in qualifiers}))
    if sum(len(name.encode()) + len(value.encode()) for name, value in pairs) > MAX_QUALIFIERS_BYTES:
        raise RpcError(
            Code.INVALID_ARGUMENT, f"the qualifiers of a request have at most {MAX_QUALIFIERS_BYTES} bytes together"
        )
    return pairs


def check_references(*columns: Sized) -> None:
    """:raises RpcError: INVALID_ARGUMENT, if a request refers to too much."""
    if sum(map(len, columns)) > MAX_REFERENCES:
        raise RpcError(Code.INVALID_ARGUMENT, f"more than {MAX_REFERENCES} references are given")
