"""What this server can do: ``build.bazel.remote.execution.v2.Capabilities``.

Only what is built is announced, and to each caller what that caller may do.
"""

from __future__ import annotations

from artifactserver.proto import remote_execution_pb2 as reapi
from artifactserver.proto import semver_pb2
from artifactserver.rpc.dispatch import Call
from artifactserver.services.content_addressable_storage import MAX_BATCH_TOTAL_SIZE
from artifactserver.services.names import check_instance
from artifactserver.store.digest import DigestFunction
from artifactserver.store.interface import Store

#: What a client in Python is told instead of `MAX_BATCH_TOTAL_SIZE`, in bytes.
#:
#: BuildStream 1.2 to 1.6 counts nothing but payload against this limit (or 1 MiB, if that is less) when it asks for
#: many blobs at once, and takes answers of up to 4 MiB.  With tiny files 1 MiB of them makes a larger answer: 60,000
#: files of 10 bytes could be pushed, but never pulled.  With this limit files of 8 bytes and more can be pulled: 84
#: bytes on the wire each, 48 thousand of them.
PYTHON_BATCH_TOTAL_SIZE = 384 * 1024

_PYTHON = "grpc-python/"


class Capabilities:
    """The service."""

    def __init__(self, store: Store) -> None:
        self._max_blob_size = store.max_blob_size
        self._answers: dict[tuple[bool, bool], bytes] = {}

    async def GetCapabilities(self, request: reapi.GetCapabilitiesRequest, call: Call) -> bytes:
        """One of four answers, so each is made once: BuildStream 1.x asks anew for every element."""
        check_instance(request.instance_name)
        key = call.caller.may_push, _is_python(call)
        answer = self._answers.get(key)
        if answer is None:
            answer = self._answers[key] = self._answer(*key)
        return answer

    def _answer(self, may_push: bool, python: bool) -> bytes:
        return reapi.ServerCapabilities(
            cache_capabilities=reapi.CacheCapabilities(
                digest_functions=[function.name for function in DigestFunction],
                # REAPI has no other field to say who may push, so it says that for blobs and assets as well.
                action_cache_update_capabilities=reapi.ActionCacheUpdateCapabilities(update_enabled=may_push),
                max_batch_total_size_bytes=PYTHON_BATCH_TOTAL_SIZE if python else MAX_BATCH_TOTAL_SIZE,
                symlink_absolute_path_strategy=reapi.SymlinkAbsolutePathStrategy.ALLOWED,
                max_cas_blob_size_bytes=self._max_blob_size,
            ),
            low_api_version=semver_pb2.SemVer(major=2, minor=0),
            high_api_version=semver_pb2.SemVer(major=2, minor=12),
        ).SerializeToString()


def _is_python(call: Call) -> bool:
    agent = call.metadata.get("user-agent", "")
    return isinstance(agent, str) and _PYTHON in agent
