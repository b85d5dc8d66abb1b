"""Names and digests as clients spell them, and the messages that are read and written by hand.

Input: a byte that says what is looked at, and then what a client sent.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from google.protobuf.message import DecodeError

from artifactserver.proto import bytestream_pb2 as bytestream
from artifactserver.proto import remote_asset_pb2 as asset
from artifactserver.proto import remote_execution_pb2 as reapi
from artifactserver.proto import status_pb2
from artifactserver.rpc.status import Code, RpcError
from artifactserver.services import encoding, write_requests
from artifactserver.services.digests import DigestColumns
from artifactserver.services.names import MAX_INSTANCE_NAME, check_qualifiers, check_references, check_uris
from artifactserver.services.resource_names import KEYWORDS, MAX_RESOURCE_NAME, parse_read, parse_write
from artifactserver.store.digest import MAX_SIZE, Digest, Digests, InvalidDigest
from fuzz.reading import Input

_KEYWORD = "|".join(KEYWORDS)
_INSTANCE = rf"((?:(?!(?:{_KEYWORD})(?:/|\Z))[^/]*/)*)"
_BLOB = r"([0-9a-f]{64})/([0-9]{1,19})"
_READ = re.compile(rf"{_INSTANCE}blobs/(?:sha256/)?{_BLOB}(?:/.*)?", re.DOTALL)
_WRITE = re.compile(rf"{_INSTANCE}uploads/[^/]*/blobs/(?:sha256/)?{_BLOB}(?:/.*)?", re.DOTALL)
_LEGACY = re.compile(f"(){_BLOB}")


def run(data: bytes) -> None:
    """Look at one thing."""
    given = Input(data)
    what = given.number() % 5
    if what == 0:
        name = given.rest().decode("utf-8", "replace")
        _name(name, parse_read, _READ)
        _name(name, parse_write, _WRITE)
    elif what == 1:
        _write_request(given.rest())
    elif what == 2:
        _digests(given.rest())
    elif what == 3:
        _asset(given.rest())
    else:
        _encoding(given)


def _name(name: str, parse: Callable[[str], Digest], form: re.Pattern[str]) -> None:
    """A name is understood if it has the form, and means what stands there."""
    match = form.fullmatch(name) or _LEGACY.fullmatch(name)
    sound = match is not None and len(name) <= MAX_RESOURCE_NAME
    if sound and match is not None:
        sound = len(match[1]) <= MAX_INSTANCE_NAME + 1 and int(match[3]) <= MAX_SIZE
    try:
        digest = parse(name)
    except RpcError as error:
        assert error.code is Code.INVALID_ARGUMENT and len(error.message) < 3000
        assert not sound, name
    except InvalidDigest as error:
        assert str(error) and not sound, name
    else:
        assert match is not None and sound, name
        assert (digest.hex, digest.size) == (match[2], int(match[3])), name


def _write_request(message: bytes) -> None:
    """However long it is, a message is refused or read as protobuf reads it."""
    longest = write_requests.LARGE_BYTES
    write_requests.LARGE_BYTES = 0
    try:
        taken = _fields(write_requests.decode, message)
    finally:
        write_requests.LARGE_BYTES = longest
    assert taken == _fields(bytestream.WriteRequest.FromString, message), message


def _fields(decode: Callable[[bytes], write_requests.LargeWrite | bytestream.WriteRequest], message: bytes) -> object:
    try:
        request = decode(message)
    except DecodeError:
        return None
    return request.resource_name, request.write_offset, request.finish_write, bytes(request.data)


def _digests(message: bytes) -> None:
    """Many digests at once are what they are one by one."""
    try:
        named = list(reapi.FindMissingBlobsRequest.FromString(message).blob_digests)
    except DecodeError:
        return
    faults: dict[int, str] = {}
    expected = []
    for position, each in enumerate(named):
        try:
            expected.append(Digest.parse(each.hash, each.size_bytes))
        except InvalidDigest as problem:
            faults[position] = str(problem)
    columns = DigestColumns()
    half = len(named) // 2
    sound = [*columns.take(named[:half]), *(half + place for place in columns.take(named[half:]))]
    assert {position: fault.problem for position, fault in columns.faults.items()} == faults
    assert list(columns.digests) == expected and sound == [place for place in range(len(named)) if place not in faults]
    try:
        digests = Digests.parse([each.hash for each in named], [each.size_bytes for each in named])
    except InvalidDigest as problem:
        assert str(problem) == next(iter(faults.values()))
    else:
        assert not faults and list(digests) == expected
        answer = reapi.FindMissingBlobsResponse(missing_blob_digests=named)
        for each in answer.missing_blob_digests:
            each.DiscardUnknownFields()
        written = encoding.missing_blobs(columns.hashes, digests.sizes, range(len(named)))
        assert written == answer.SerializeToString()


def _asset(message: bytes) -> None:
    try:
        request = asset.PushDirectoryRequest.FromString(message)
    except DecodeError:
        return
    try:
        uris = check_uris(request.uris)
        pairs = check_qualifiers(request.qualifiers)
        check_references(request.references_blobs, request.references_directories)
    except RpcError as error:
        assert error.code is Code.INVALID_ARGUMENT and error.message
    else:
        assert uris and set(uris) == set(request.uris) and len(set(uris)) == len(uris)
        assert list(pairs) == sorted({(each.name, each.value) for each in request.qualifiers})


def _encoding(given: Input) -> None:
    """What is written by hand is what protobuf writes."""
    size = given.number(8) & MAX_SIZE
    hash = given.take(32).ljust(32).hex()
    message = given.piece(1).decode("utf-8", "replace")
    status = status_pb2.Status(code=given.number(), message=message)
    content = given.rest()
    digest = reapi.Digest(hash=hash, size_bytes=size)
    told = status.SerializeToString()
    update = reapi.BatchUpdateBlobsResponse()
    update.responses.add(digest=digest, status=status)
    assert encoding.stored_blob(hash, size, told) == update.SerializeToString()
    read = reapi.BatchReadBlobsResponse()
    read.responses.add(digest=digest, data=content, status=status_pb2.Status())
    assert b"".join(encoding.read_blob(hash, size, content)) == read.SerializeToString()
    unread = reapi.BatchReadBlobsResponse()
    unread.responses.add(digest=digest, status=status)
    assert b"".join(encoding.unread_blob(hash, size, told)) == unread.SerializeToString()
    if content:
        assert b"".join(encoding.read_response(content)) == bytestream.ReadResponse(data=content).SerializeToString()
