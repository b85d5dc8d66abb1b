"""What a BuildStream artifact consists of.

Behind an artifact's name (`ARTIFACT_URN`) stands a blob with a ``buildstream.v2.Artifact`` message.  A request's own
list of references is not enough to know whether an artifact is whole: BuildStream 2.0 to 2.6 leave the public data out
of it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from google.protobuf.message import DecodeError

from artifactserver.proto import buildstream_pb2 as buildstream
from artifactserver.proto import remote_execution_pb2 as reapi
from artifactserver.rpc.status import Code, RpcError
from artifactserver.services.digests import digest_of, is_empty
from artifactserver.store.digest import InvalidDigest
from artifactserver.store.interface import Reference, Shape

#: How the names of artifacts begin (BuildStream 1.93.5 and later, ``_artifactcache.py``).
ARTIFACT_URN = "urn:fdc:buildstream.build:2020:artifact:"

#: The largest ``Artifact`` message, in bytes: some 25,000 dependencies.
MAX_ARTIFACT_MESSAGE = 4 * 1024 * 1024


def parts_of(content: bytes) -> list[Reference]:
    """What the artifact in an ``Artifact`` message consists of.

    Its files, public data, metadata and logs are required.  The build tree, the sources, the root of the build and
    its sandboxes are named in every copy of an artifact, but a client has them only if it pulled them too, and pushes
    what it has (BuildStream 2.8.1, ``ArtifactCache._push_artifact_blobs``).

    :raises RpcError: INVALID_ARGUMENT, if it is no such message.
    """
    try:
        artifact = buildstream.Artifact.FromString(content)
    except DecodeError as error:
        raise RpcError(Code.INVALID_ARGUMENT, "the artifact's blob is not an Artifact message") from error
    try:
        return [
            *_references([artifact.files], Shape.DIRECTORY, True),
            *_references(
                [
                    artifact.public_data,
                    artifact.low_diversity_meta,
                    artifact.high_diversity_meta,
                    *(log.digest for log in artifact.logs),
                ],
                Shape.BLOB,
                True,
            ),
            *_references(
                [
                    artifact.buildtree,
                    artifact.sources,
                    artifact.buildroot,
                    *artifact.buildsandbox.subsandbox_digests,
                ],
                Shape.DIRECTORY,
                False,
            ),
        ]
    except InvalidDigest as error:
        raise RpcError(Code.INVALID_ARGUMENT, f"the artifact's blob is not an Artifact message: {error}") from error


def _references(digests: Iterable[reapi.Digest], shape: Shape, required: bool) -> Iterator[Reference]:
    # What is not there at all reads as an empty digest.
    return (Reference(digest_of(digest), shape, required) for digest in digests if not is_empty(digest))
