"""Blobs in batches, as clients upload, look for and download them."""

from __future__ import annotations

import hashlib
import os
from typing import Any

from grpc import StatusCode
from twisted.trial.unittest import TestCase

from artifactserver.access import Right
from artifactserver.proto import remote_execution_pb2 as reapi
from artifactserver.rpc.dispatch import Call
from artifactserver.services import digests as digests_module
from artifactserver.services.content_addressable_storage import MAX_BATCH_TOTAL_SIZE, ContentAddressableStorage
from artifactserver.services.names import MAX_INSTANCE_NAME
from artifactserver.services.turns import Turns
from artifactserver.store.digest import EMPTY, Digest, Digests
from artifactserver.store.interface import Blob, StoreBroken
from tests.callers import PULLER
from tests.grpc_cases import GrpcMixin, OverLocal, OverMemory, message_of, reactor
from tests.memory_store import MemoryStore

OK = StatusCode.OK.value[0]
NOT_FOUND = StatusCode.NOT_FOUND.value[0]
INVALID_ARGUMENT = StatusCode.INVALID_ARGUMENT.value[0]
RESOURCE_EXHAUSTED = StatusCode.RESOURCE_EXHAUSTED.value[0]

#: Digests that are none, with what is wrong about them.
BAD_DIGESTS = [
    reapi.Digest(),
    reapi.Digest(hash="", size_bytes=1),
    reapi.Digest(hash="ab" * 31, size_bytes=1),
    reapi.Digest(hash="ab" * 33, size_bytes=1),
    reapi.Digest(hash="AB" * 32, size_bytes=1),
    reapi.Digest(hash="xy" * 32, size_bytes=1),
    reapi.Digest(hash="\u0661" * 64, size_bytes=1),
    reapi.Digest(hash="ab" * 32, size_bytes=-1),
    reapi.Digest(hash="../" * 21 + "x", size_bytes=1),
]


def find_request(*digests: Digest, **fields: Any) -> reapi.FindMissingBlobsRequest:
    """Asks which of these are missing."""
    return reapi.FindMissingBlobsRequest(blob_digests=map(message_of, digests), **fields)


def read_request(*digests: Digest, **fields: Any) -> reapi.BatchReadBlobsRequest:
    """Asks for these."""
    return reapi.BatchReadBlobsRequest(digests=map(message_of, digests), **fields)


def update_request(*contents: bytes, **fields: Any) -> reapi.BatchUpdateBlobsRequest:
    """Uploads these."""
    request = reapi.BatchUpdateBlobsRequest(**fields)
    for content in contents:
        request.requests.add(digest=message_of(Digest.of(content)), data=content)
    return request


class FindMissingMixin(GrpcMixin):
    """Asking what has to be uploaded."""

    async def test_some_missing(self: Any) -> None:
        """Those that are missing are named, in the order of the request, and the others are not."""
        client = await self.serve()
        here = await self.put(b"one", b"two", os.urandom(100_000))
        gone = [Digest.of(b"three"), Digest.of(b"four")]
        answer = await client.call("FindMissingBlobs", find_request(here[0], gone[0], here[1], gone[1], here[2]))
        self.assertEqual(list(answer.missing_blob_digests), [message_of(digest) for digest in gone])

    async def test_none_missing(self: Any) -> None:
        """When everything is here, nothing is named."""
        client = await self.serve()
        here = await self.put(b"one", b"two")
        answer = await client.call("FindMissingBlobs", find_request(*here))
        self.assertEqual(answer, reapi.FindMissingBlobsResponse())

    async def test_all_missing(self: Any) -> None:
        """When everything is missing, everything is named, and nothing else of the request comes back."""
        client = await self.serve()
        gone = [Digest.of(b"%d" % number) for number in range(300)]
        request = find_request(*gone, instance_name="main", digest_function=reapi.DigestFunction.SHA256)
        # A field that only a newer client knows.
        request.MergeFromString(b"\x9a\x06\x03new")
        answer = await client.call("FindMissingBlobs", request)
        expected = reapi.FindMissingBlobsResponse(missing_blob_digests=map(message_of, gone))
        self.assertEqual(answer.SerializeToString(), expected.SerializeToString())

    async def test_duplicates(self: Any) -> None:
        """A digest that is asked for again and again is answered once."""
        client = await self.serve()
        here, gone = (await self.put(b"one"))[0], Digest.of(b"two")
        answer = await client.call("FindMissingBlobs", find_request(gone, here, gone, gone, here))
        self.assertEqual(list(answer.missing_blob_digests), [message_of(gone)])
        answer = await client.call("FindMissingBlobs", find_request(gone, gone))
        self.assertEqual(list(answer.missing_blob_digests), [message_of(gone)])

    async def test_empty_blob(self: Any) -> None:
        """The empty blob is never missing, though nobody uploaded it."""
        client = await self.serve()
        answer = await client.call("FindMissingBlobs", find_request(EMPTY, EMPTY))
        self.assertEqual(list(answer.missing_blob_digests), [])
        answer = await client.call("FindMissingBlobs", find_request(EMPTY, Digest.of(b"x")))
        self.assertEqual(list(answer.missing_blob_digests), [message_of(Digest.of(b"x"))])

    async def test_other_size(self: Any) -> None:
        """A known hash with another size is another blob, and that one is missing."""
        client = await self.serve()
        (here,) = await self.put(b"one")
        wrong = Digest(here.key, 4)
        answer = await client.call("FindMissingBlobs", find_request(wrong, here, Digest(EMPTY.key, 1)))
        self.assertEqual(list(answer.missing_blob_digests), [message_of(wrong), message_of(Digest(EMPTY.key, 1))])

    async def test_nothing(self: Any) -> None:
        """To ask for nothing is no mistake."""
        client = await self.serve()
        self.assertEqual(await client.call("FindMissingBlobs", find_request()), reapi.FindMissingBlobsResponse())

    async def test_thousands(self: Any) -> None:
        """One call may name 13,000 digests (BuildStream 2.8), present and missing ones, some of them twice."""
        client = await self.serve()
        here = await self.put(*(b"here %d" % number for number in range(500)))
        gone = [Digest.of(b"gone %d" % number) for number in range(12_000)]
        named = [*here, *gone, *gone[:400], *here[:100]]
        answer = await client.call("FindMissingBlobs", find_request(*named))
        self.assertEqual(list(answer.missing_blob_digests), [message_of(digest) for digest in gone])

    async def test_full_message(self: Any) -> None:
        """One call may fill a message of 4 MiB with digests (Bazel)."""
        client = await self.serve()
        hashes = [hashlib.sha256(b"%d" % number).hexdigest() for number in range(58_252)]
        request = reapi.FindMissingBlobsRequest(
            blob_digests=[reapi.Digest(hash=hash, size_bytes=1_000_000) for hash in hashes]
        )
        self.assertGreater(request.ByteSize(), 4 * 1024 * 1024 - 200)
        answer = await client.call("FindMissingBlobs", request)
        self.assertEqual([digest.hash for digest in answer.missing_blob_digests], hashes)

    async def test_no_digests(self: Any) -> None:
        """What is no digest is refused, and the message says what is wrong."""
        client = await self.serve()
        for bad in BAD_DIGESTS:
            for request in (
                reapi.FindMissingBlobsRequest(blob_digests=[message_of(EMPTY), bad]),
                reapi.FindMissingBlobsRequest(blob_digests=[message_of(EMPTY)] * 3000 + [bad]),
            ):
                await self.refused(client, StatusCode.INVALID_ARGUMENT, "FindMissingBlobs", request)

    async def test_digest_functions(self: Any) -> None:
        """SHA-256 may be said or left out; a function that was not announced is refused."""
        client = await self.serve()
        (here,) = await self.put(b"one")
        await client.call("FindMissingBlobs", find_request(here, digest_function=reapi.DigestFunction.SHA256))
        for name, request in (
            ("FindMissingBlobs", find_request(here, digest_function=reapi.DigestFunction.BLAKE3)),
            ("BatchReadBlobs", read_request(here, digest_function=reapi.DigestFunction.SHA1)),
            ("BatchUpdateBlobs", update_request(b"x", digest_function=99)),
        ):
            await self.refused(client, StatusCode.INVALID_ARGUMENT, name, request)

    async def test_instances(self: Any) -> None:
        """Any instance name will do, and blobs are the same in all of them; one of 257 characters is too long."""
        client = await self.serve()
        (here,) = await self.put(b"one")
        for instance in ("main", "a/b/c", "blobs", "ä ö", "i" * MAX_INSTANCE_NAME):
            answer = await client.call("FindMissingBlobs", find_request(here, instance_name=instance))
            self.assertEqual(list(answer.missing_blob_digests), [])
        long = "i" * (MAX_INSTANCE_NAME + 1)
        for name, request in (
            ("FindMissingBlobs", find_request(here, instance_name=long)),
            ("BatchReadBlobs", read_request(here, instance_name=long)),
            ("BatchUpdateBlobs", update_request(b"x", instance_name=long)),
        ):
            await self.refused(client, StatusCode.INVALID_ARGUMENT, name, request)


class BatchUpdateMixin(GrpcMixin):
    """Uploading many blobs at once."""

    async def test_upload(self: Any) -> None:
        """Every blob of a batch is stored, and has its answer in the order of the request."""
        client = await self.serve()
        contents = [os.urandom(size) for size in (1, 100, 4096, 65536, 65537, 200_000)]
        answer = await client.call("BatchUpdateBlobs", update_request(*contents, instance_name="main"))
        digests = [Digest.of(content) for content in contents]
        self.assertEqual([each.digest for each in answer.responses], list(map(message_of, digests)))
        self.assertEqual([each.status.code for each in answer.responses], [OK] * len(contents))
        # Not every client takes the absence of a status for success.
        self.assertTrue(all(each.HasField("status") for each in answer.responses))
        self.assertEqual(await self.store.read_many(Digests.of(digests)), contents)

    async def test_probe(self: Any) -> None:
        """Without blobs it only asks whether the caller may upload: OK (BuildStream 1.2 to 1.6)."""
        client = await self.serve()
        answer = await client.call("BatchUpdateBlobs", reapi.BatchUpdateBlobsRequest())
        self.assertEqual(answer, reapi.BatchUpdateBlobsResponse())

    async def test_one_bad_blob(self: Any) -> None:
        """A blob that is not what its digest says is refused, and the others are stored."""
        client = await self.serve()
        request = update_request(b"good", b"also good")
        request.requests.add(digest=message_of(Digest.of(b"something")), data=b"somethinG")
        request.requests.add(digest=message_of(Digest.of(b"longer")), data=b"long")
        request.requests.add(digest=message_of(Digest.of(b"x")), data=b"")
        request.requests.add(digest=message_of(EMPTY), data=b"not empty")
        answer = await client.call("BatchUpdateBlobs", request)
        self.assertEqual([each.status.code for each in answer.responses], [OK, OK, *[INVALID_ARGUMENT] * 4])
        self.assertTrue(all(each.status.message for each in answer.responses[2:]))
        self.assertEqual([each.digest for each in answer.responses], [each.digest for each in request.requests])
        named = Digests.of(map(Digest.of, (b"good", b"also good", b"something", b"longer", b"x")))
        self.assertEqual(await self.store.find_missing(named), [2, 3, 4])

    async def test_one_bad_digest(self: Any) -> None:
        """What is no digest has its own answer, and the blobs around it are stored."""
        client = await self.serve()
        for bad in BAD_DIGESTS:
            first, last = os.urandom(10), os.urandom(10)
            request = update_request(first)
            request.requests.add(digest=bad, data=b"x")
            request.requests.add(digest=message_of(Digest.of(last)), data=last)
            answer = await client.call("BatchUpdateBlobs", request)
            self.assertEqual([each.status.code for each in answer.responses], [OK, INVALID_ARGUMENT, OK])
            self.assertEqual([each.digest for each in answer.responses], [each.digest for each in request.requests])
            only_bad = reapi.BatchUpdateBlobsRequest()
            only_bad.requests.add(digest=bad)
            answer = await client.call("BatchUpdateBlobs", only_bad)
            self.assertEqual([each.status.code for each in answer.responses], [INVALID_ARGUMENT])
            stored = Digests.of([Digest.of(first), Digest.of(last)])
            self.assertEqual(await self.store.find_missing(stored), [])

    async def test_duplicates(self: Any) -> None:
        """A blob that stands in a batch twice is answered twice, also if one of them is not what it should be."""
        client = await self.serve()
        answer = await client.call("BatchUpdateBlobs", update_request(b"same", b"same", b"other", b"same"))
        self.assertEqual([each.status.code for each in answer.responses], [OK] * 4)
        request = update_request(b"twin")
        request.requests.add(digest=message_of(Digest.of(b"twin")), data=b"evil")
        answer = await client.call("BatchUpdateBlobs", request)
        self.assertEqual([each.status.code for each in answer.responses], [OK, INVALID_ARGUMENT])
        self.assertEqual(await self.store.read_many(Digests.of([Digest.of(b"twin")])), [b"twin"])

    async def test_again(self: Any) -> None:
        """Uploading what is here already is no mistake."""
        client = await self.serve()
        for _ in range(2):
            answer = await client.call("BatchUpdateBlobs", update_request(b"one", os.urandom(70_000)))
            self.assertEqual([each.status.code for each in answer.responses], [OK, OK])

    async def test_empty_blob(self: Any) -> None:
        """The empty blob can be uploaded like any other."""
        client = await self.serve()
        answer = await client.call("BatchUpdateBlobs", update_request(b"", b"x"))
        self.assertEqual([each.status.code for each in answer.responses], [OK, OK])

    async def test_too_much(self: Any) -> None:
        """A batch of exactly the limit is taken; one byte more is refused as a whole, and nothing of it is stored."""
        client = await self.serve()
        half = MAX_BATCH_TOTAL_SIZE // 2
        first, second = os.urandom(half), os.urandom(half)
        await self.refused(client, StatusCode.INVALID_ARGUMENT, "BatchUpdateBlobs", update_request(first, second, b"!"))
        self.assertEqual(await self.store.find_missing(Digests.of(map(Digest.of, (first, second, b"!")))), [0, 1, 2])
        answer = await client.call("BatchUpdateBlobs", update_request(first, second))
        self.assertEqual([each.status.code for each in answer.responses], [OK, OK])

    async def test_compressed(self: Any) -> None:
        """Compressed blobs are refused: no compressor was announced."""
        client = await self.serve()
        request = update_request(b"one")
        request.requests[0].compressor = reapi.Compressor.ZSTD
        await self.refused(client, StatusCode.INVALID_ARGUMENT, "BatchUpdateBlobs", request)
        request.requests[0].compressor = reapi.Compressor.IDENTITY
        await client.call("BatchUpdateBlobs", request)

    async def test_tiny_files(self: Any) -> None:
        """One batch may hold ten thousand tiny files (BuildStream 1.x)."""
        client = await self.serve()
        contents = [b"%d" % number for number in range(10_000)]
        answer = await client.call("BatchUpdateBlobs", update_request(*contents))
        self.assertEqual({each.status.code for each in answer.responses}, {OK})
        self.assertEqual(len(answer.responses), 10_000)
        found = await client.call("BatchReadBlobs", read_request(*map(Digest.of, contents)))
        self.assertEqual([each.data for each in found.responses], contents)

    async def test_push_is_off(self: Any) -> None:
        """Where push is off, uploads and empty probes are refused, and the user is told how the server was started."""
        self.enable_push = False
        client = await self.serve()
        for request in (reapi.BatchUpdateBlobsRequest(), update_request(b"one")):
            error = await self.refused(client, StatusCode.PERMISSION_DENIED, "BatchUpdateBlobs", request)
            self.assertIn("--enable-push", error.details())
        self.assertEqual(await self.store.find_missing(Digests.of([Digest.of(b"one")])), [0])
        await client.call("FindMissingBlobs", find_request(EMPTY))
        await client.call("BatchReadBlobs", reapi.BatchReadBlobsRequest())

    async def test_no_right(self: Any) -> None:
        """A caller without the right to push is refused, probe or not."""
        client = await self.serve(rights=[Right.PULL])
        for request in (reapi.BatchUpdateBlobsRequest(), update_request(b"one")):
            await self.refused(client, StatusCode.PERMISSION_DENIED, "BatchUpdateBlobs", request)


class BatchReadMixin(GrpcMixin):
    """Downloading many blobs at once."""

    async def test_download(self: Any) -> None:
        """Every blob has its answer, in the order of the request."""
        client = await self.serve()
        contents = [os.urandom(size) for size in (1, 100, 4096, 65536, 65537, 200_000)]
        digests = await self.put(*contents)
        answer = await client.call(
            "BatchReadBlobs",
            read_request(*digests, instance_name="main", acceptable_compressors=[reapi.Compressor.ZSTD]),
        )
        self.assertEqual([each.digest for each in answer.responses], list(map(message_of, digests)))
        self.assertEqual([each.data for each in answer.responses], contents)
        self.assertEqual([each.status.code for each in answer.responses], [OK] * len(contents))
        self.assertEqual({each.compressor for each in answer.responses}, {reapi.Compressor.IDENTITY})
        self.assertTrue(all(each.HasField("status") for each in answer.responses))

    async def test_probe(self: Any) -> None:
        """Without digests it only asks whether batches work here: OK (BuildStream 1.2 to 1.6)."""
        client = await self.serve()
        answer = await client.call("BatchReadBlobs", reapi.BatchReadBlobsRequest())
        self.assertEqual(answer, reapi.BatchReadBlobsResponse())

    async def test_missing(self: Any) -> None:
        """What is missing is NOT_FOUND, each for itself; a known hash with another size is missing too."""
        client = await self.serve()
        (here,) = await self.put(b"one")
        gone, wrong = Digest.of(b"two"), Digest(here.key, 100)
        answer = await client.call("BatchReadBlobs", read_request(gone, here, wrong))
        self.assertEqual([each.status.code for each in answer.responses], [NOT_FOUND, OK, NOT_FOUND])
        self.assertEqual([each.data for each in answer.responses], [b"", b"one", b""])
        self.assertEqual([each.digest for each in answer.responses], list(map(message_of, (gone, here, wrong))))
        self.assertIn(gone.hex, answer.responses[0].status.message)

    async def test_duplicates(self: Any) -> None:
        """A digest that is asked for twice is answered twice (BuildStream 1.x)."""
        client = await self.serve()
        (here,) = await self.put(b"one")
        gone = Digest.of(b"two")
        answer = await client.call("BatchReadBlobs", read_request(here, gone, here, gone))
        self.assertEqual([each.status.code for each in answer.responses], [OK, NOT_FOUND, OK, NOT_FOUND])
        self.assertEqual([each.data for each in answer.responses], [b"one", b"", b"one", b""])

    async def test_empty_blob(self: Any) -> None:
        """The empty blob can be read, though nobody uploaded it."""
        client = await self.serve()
        answer = await client.call("BatchReadBlobs", read_request(EMPTY, EMPTY))
        self.assertEqual([each.status.code for each in answer.responses], [OK, OK])
        self.assertEqual([each.data for each in answer.responses], [b"", b""])

    async def test_one_bad_digest(self: Any) -> None:
        """What is no digest has its own answer, and the others are read."""
        client = await self.serve()
        (here,) = await self.put(b"one")
        for bad in BAD_DIGESTS:
            answer = await client.call(
                "BatchReadBlobs", reapi.BatchReadBlobsRequest(digests=[message_of(here), bad, message_of(here)])
            )
            self.assertEqual(
                [(each.digest, each.status.code, each.data) for each in answer.responses],
                [(message_of(here), OK, b"one"), (bad, INVALID_ARGUMENT, b""), (message_of(here), OK, b"one")],
            )

    async def test_too_much(self: Any) -> None:
        """Asking for more than the limit is refused as a whole, before anything is read; the limit itself is not."""
        client = await self.serve()
        half = os.urandom(MAX_BATCH_TOTAL_SIZE // 2)
        digest, small = await self.put(half, b"!")
        await self.refused(client, StatusCode.INVALID_ARGUMENT, "BatchReadBlobs", read_request(digest, digest, small))
        await self.refused(
            client, StatusCode.INVALID_ARGUMENT, "BatchReadBlobs", read_request(Digest(digest.key, 2**62))
        )
        answer = await client.call("BatchReadBlobs", read_request(digest, digest))
        self.assertEqual([each.data for each in answer.responses], [half, half])

    async def test_without_push(self: Any) -> None:
        """Whoever may pull can read."""
        self.enable_push = False
        client = await self.serve()
        (here,) = await self.put(b"one")
        answer = await client.call("BatchReadBlobs", read_request(here))
        self.assertEqual(answer.responses[0].data, b"one")

    async def test_no_right(self: Any) -> None:
        """Whoever may not even pull is refused everything."""
        client = await self.serve(rights=[])
        for name, request in (("BatchReadBlobs", read_request(EMPTY)), ("FindMissingBlobs", find_request(EMPTY))):
            await self.refused(client, StatusCode.PERMISSION_DENIED, name, request)

    async def test_not_built(self: Any) -> None:
        """What is not built says so."""
        client = await self.serve()
        for name, request in (
            ("GetTree", reapi.GetTreeRequest()),
            ("SplitBlob", reapi.SplitBlobRequest()),
            ("SpliceBlob", reapi.SpliceBlobRequest()),
        ):
            await self.refused(client, StatusCode.UNIMPLEMENTED, name, request)

    async def test_not_built_and_not_allowed(self: Any) -> None:
        """Where push is off, a way to upload that is not built is refused like every other; reading says it is not."""
        self.enable_push = False
        client = await self.serve()
        error = await self.refused(client, StatusCode.PERMISSION_DENIED, "SpliceBlob", reapi.SpliceBlobRequest())
        self.assertIn("--enable-push", error.details())
        await self.refused(client, StatusCode.UNIMPLEMENTED, "SplitBlob", reapi.SplitBlobRequest())


class CountMixin(GrpcMixin):
    """How many digests one request may name."""

    async def test_too_many_faults(self: Any) -> None:
        """A batch with a few digests that are none is answered one by one; one with very many is refused as a whole."""
        self.patch(digests_module, "MAX_FAULTS", 3)
        client = await self.serve()
        bad = reapi.Digest(hash="bad")
        answer = await client.call("BatchReadBlobs", reapi.BatchReadBlobsRequest(digests=[bad] * 3))
        self.assertEqual([each.status.code for each in answer.responses], [StatusCode.INVALID_ARGUMENT.value[0]] * 3)
        request = reapi.BatchReadBlobsRequest(digests=[bad] * 4)
        await self.refused(client, StatusCode.INVALID_ARGUMENT, "BatchReadBlobs", request)

    async def test_too_many(self: Any) -> None:
        """A request that names more digests than the bound is refused, sound or not; one with as many is answered."""
        self.patch(digests_module, "MAX_DIGESTS", 3)
        client = await self.serve()
        (here,) = await self.put(b"")
        for digest in (message_of(here), reapi.Digest()):
            update = reapi.BatchUpdateBlobsRequest.Request(digest=digest)
            for name, request in (
                ("FindMissingBlobs", reapi.FindMissingBlobsRequest(blob_digests=[digest] * 4)),
                ("BatchReadBlobs", reapi.BatchReadBlobsRequest(digests=[digest] * 4)),
                ("BatchUpdateBlobs", reapi.BatchUpdateBlobsRequest(requests=[update] * 4)),
            ):
                error = await self.refused(client, StatusCode.INVALID_ARGUMENT, name, request)
                self.assertEqual(error.details(), "4 digests are too many for one request: at most 3 are taken")
        await client.call("FindMissingBlobs", find_request(here, here, here))
        self.assertEqual(len((await client.call("BatchReadBlobs", read_request(here, here, here))).responses), 3)
        self.assertEqual(len((await client.call("BatchUpdateBlobs", update_request(b"", b"", b""))).responses), 3)


class FindMissingMemoryTests(FindMissingMixin, OverMemory):
    """FindMissingBlobs over the store in memory."""


class FindMissingLocalTests(FindMissingMixin, OverLocal):
    """FindMissingBlobs over the store on disk."""


class BatchUpdateMemoryTests(BatchUpdateMixin, OverMemory):
    """BatchUpdateBlobs over the store in memory."""

    async def test_full(self) -> None:
        """When nothing of a batch finds room, the call says so: BuildStream 1.x then skips the push."""
        client = await self.serve(MemoryStore(self.now, capacity=10))
        await self.refused(
            client, StatusCode.RESOURCE_EXHAUSTED, "BatchUpdateBlobs", update_request(b"x" * 20, b"y" * 20)
        )

    async def test_nearly_full(self) -> None:
        """When some of a batch finds room, each blob says for itself."""
        client = await self.serve(MemoryStore(self.now, capacity=25))
        answer = await client.call("BatchUpdateBlobs", update_request(b"x" * 20, b"y" * 20))
        self.assertEqual([each.status.code for each in answer.responses], [OK, RESOURCE_EXHAUSTED])

    async def test_broken(self) -> None:
        """A store that fails is a reason to come back later, for each blob."""
        client = await self.serve()

        async def add_many(blobs: Any) -> Any:
            return [StoreBroken("the disk is on fire")] * len(blobs)

        self.store.add_many = add_many
        answer = await client.call("BatchUpdateBlobs", update_request(b"x"))
        self.assertEqual(answer.responses[0].status.code, StatusCode.UNAVAILABLE.value[0])


class BatchUpdateLocalTests(BatchUpdateMixin, OverLocal):
    """BatchUpdateBlobs over the store on disk."""

    async def test_full(self) -> None:
        """When there is no room above the head room, the call says so."""
        client = await self.serve(await self.make_store(head_room_min=2**62))
        await self.refused(client, StatusCode.RESOURCE_EXHAUSTED, "BatchUpdateBlobs", update_request(b"x", b"y"))


class BatchReadMemoryTests(BatchReadMixin, OverMemory):
    """BatchReadBlobs over the store in memory."""


class BatchReadLocalTests(BatchReadMixin, OverLocal):
    """BatchReadBlobs over the store on disk."""


class CountMemoryTests(CountMixin, OverMemory):
    """The number of digests over the store in memory."""


class CountLocalTests(CountMixin, OverLocal):
    """The number of digests over the store on disk."""


class SliceTests(TestCase):
    """Large calls give way to others."""

    async def test_turns(self) -> None:
        """While a large call is worked off, the reactor gets its turns, and the answer is the same."""

        turns = 0

        class CountedTurns(Turns):
            def give_way(self) -> Any:
                nonlocal turns
                turns += 1
                return super().give_way()

        store = MemoryStore(lambda: 0.0)
        service = ContentAddressableStorage(store, CountedTurns(reactor))
        service.slice = service.read_slice = 10
        call = Call(PULLER, {})
        contents = [b"%d" % number for number in range(100)]
        digests = list(map(Digest.of, contents))
        await service.BatchUpdateBlobs(update_request(*contents[:50]), call)
        self.assertEqual(turns, 8)
        found = reapi.FindMissingBlobsResponse.FromString(await service.FindMissingBlobs(find_request(*digests), call))
        self.assertEqual(list(found.missing_blob_digests), list(map(message_of, digests[50:])))
        self.assertGreater(turns, 20)
        turns = 0
        read = reapi.BatchReadBlobsResponse.FromString(await service.BatchReadBlobs(read_request(*digests), call))
        self.assertEqual([each.data for each in read.responses], contents[:50] + [b""] * 50)
        self.assertEqual(turns, 19)
        turns = 0
        service.slice = 100
        service.read_slice, service.read_slice_bytes = 100, 50  # The first ten have a byte each, the others two.
        read = reapi.BatchReadBlobsResponse.FromString(await service.BatchReadBlobs(read_request(*digests), call))
        self.assertEqual([each.data for each in read.responses], contents[:50] + [b""] * 50)
        self.assertEqual(turns, 4)

    async def test_faults_in_slices(self) -> None:
        """What is no digest, or not what its digest says, has its answer in its place, however a batch was cut."""
        contents = [b"%d" % number for number in range(20)]
        bad = {0, 3, 4, 5, 11, 19}
        request = update_request(*contents)
        for position in bad:
            request.requests[position].digest.hash = f"bad {position}"
        request.requests[7].data = b"other"
        read = reapi.BatchReadBlobsRequest(digests=[each.digest for each in request.requests])
        call = Call(PULLER, {})
        for cut in (1, 4, 5, 100):
            service = ContentAddressableStorage(MemoryStore(lambda: 0.0), Turns(reactor))
            service.slice = service.read_slice = cut
            stored = reapi.BatchUpdateBlobsResponse.FromString(await service.BatchUpdateBlobs(request, call))
            self.assertEqual([each.digest for each in stored.responses], list(read.digests))
            self.assertEqual(
                [place for place, each in enumerate(stored.responses) if each.status.code], sorted(bad | {7})
            )
            found = reapi.BatchReadBlobsResponse.FromString(await service.BatchReadBlobs(read, call))
            self.assertEqual([each.digest for each in found.responses], list(read.digests))
            expected = [b"" if place in bad | {7} else content for place, content in enumerate(contents)]
            self.assertEqual([each.data for each in found.responses], expected)

    async def test_sizes_in_slices(self) -> None:
        """A hash that is asked for with several sizes is answered once for each, however the request was cut."""
        here, gone = Digest.of(b"here"), Digest.of(b"gone")
        store = MemoryStore(lambda: 0.0)
        await store.add_many([Blob(here, b"here")])
        other, another = Digest(here.key, 5), Digest(gone.key, 7)
        request = find_request(here, gone, other, gone, another, here, other, another, gone)
        for cut in (1, 2, 4, 100):
            service = ContentAddressableStorage(store, Turns(reactor))
            service.slice = cut
            answer = await service.FindMissingBlobs(request, Call(PULLER, {}))
            found = reapi.FindMissingBlobsResponse.FromString(answer)
            self.assertEqual(list(found.missing_blob_digests), list(map(message_of, (gone, other, another))))
