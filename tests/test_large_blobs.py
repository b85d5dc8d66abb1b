"""Blobs that are larger than everything between a client and the disk can hold at once."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator

from twisted.internet.defer import Deferred
from twisted.trial.unittest import TestCase

from artifactserver.proto.bytestream_pb2 import ReadRequest, WriteRequest
from tests.grpc_cases import GrpcMixin, OverLocal

MESSAGE = 2 * 1024 * 1024


class LargeBlobTests(GrpcMixin, OverLocal, TestCase):
    """A blob of many times every window goes up and comes down."""

    def test_up_and_down(self) -> Deferred[None]:
        """A client that sends faster than a disk takes it is slowed down, and not forgotten."""

        async def run() -> None:
            client = await self.serve()
            content = random.Random(1).randbytes(24 * MESSAGE + 1)
            name = f"blobs/{hashlib.sha256(content).hexdigest()}/{len(content)}"

            def messages() -> Iterator[WriteRequest]:
                for start in range(0, len(content), MESSAGE):
                    yield WriteRequest(
                        resource_name=f"uploads/one/{name}",
                        write_offset=start,
                        data=content[start : start + MESSAGE],
                        finish_write=start + MESSAGE >= len(content),
                    )

            answer = await client.call("Write", messages())
            self.assertEqual(answer.committed_size, len(content))
            read = await client.call("Read", ReadRequest(resource_name=name))
            self.assertEqual(hashlib.sha256(b"".join(each.data for each in read)).hexdigest(), name.split("/")[1])

        return Deferred.fromCoroutine(run())
