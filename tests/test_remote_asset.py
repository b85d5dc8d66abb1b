"""Names for blobs and trees: what is published can be found, and only what is whole is published."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from google.protobuf.timestamp_pb2 import Timestamp
from grpc import StatusCode

from artifactserver.access import Right
from artifactserver.proto import buildstream_pb2 as buildstream
from artifactserver.proto import error_details_pb2
from artifactserver.proto import remote_asset_pb2 as asset
from artifactserver.proto import remote_execution_pb2 as reapi
from artifactserver.services.artifacts import ARTIFACT_URN, MAX_ARTIFACT_MESSAGE
from artifactserver.services.names import (
    MAX_INSTANCE_NAME,
    MAX_QUALIFIER_NAME,
    MAX_QUALIFIER_VALUE,
    MAX_QUALIFIERS,
    MAX_QUALIFIERS_BYTES,
    MAX_REFERENCES,
    MAX_URI,
    MAX_URIS,
)
from artifactserver.services.reference_storage import REFERENCE_URN
from artifactserver.store.digest import EMPTY, Digest
from artifactserver.store.interface import Record
from tests.grpc_cases import GrpcMixin, OverLocal, OverMemory, details_of, message_of

URN = "urn:fdc:buildstream.build:2020:source:tar/0123"
STRONG = f"{ARTIFACT_URN}project/element/strong"
WEAK = f"{ARTIFACT_URN}project/element/weak"

#: What BuildStream 2.0 to 2.6 list for what an artifact does not have.
NOTHING = reapi.Digest()


def push_blob(digest: Digest, *uris: str, **fields: Any) -> asset.PushBlobRequest:
    """Lets names stand for a blob."""
    return asset.PushBlobRequest(uris=uris or [URN], blob_digest=message_of(digest), **fields)


def push_directory(digest: Digest, *uris: str, **fields: Any) -> asset.PushDirectoryRequest:
    """Lets names stand for a tree."""
    return asset.PushDirectoryRequest(uris=uris or [URN], root_directory_digest=message_of(digest), **fields)


def fetch_blob(*uris: str, **fields: Any) -> asset.FetchBlobRequest:
    """Asks for a blob by its names."""
    return asset.FetchBlobRequest(uris=uris or [URN], **fields)


def fetch_directory(*uris: str, **fields: Any) -> asset.FetchDirectoryRequest:
    """Asks for a tree by its names."""
    return asset.FetchDirectoryRequest(uris=uris or [URN], **fields)


def qualifiers(**pairs: str) -> list[asset.Qualifier]:
    """In the order in which they are written."""
    return [asset.Qualifier(name=name, value=value) for name, value in pairs.items()]


class RemoteAssetMixin(GrpcMixin):
    """Fetch and Push."""

    moment: float
    now: Any

    def at(self, seconds: float) -> Timestamp:
        """So many seconds from now."""
        return Timestamp(seconds=int(self.now() + seconds))

    async def test_blob(self: Any) -> None:
        """A blob is found under the name that it was given."""
        client = await self.serve()
        (digest,) = await self.put(b"some")
        await client.call("PushBlob", push_blob(digest))
        answer = await client.call("FetchBlob", fetch_blob())
        self.assertEqual(answer.blob_digest, message_of(digest))
        self.assertEqual(answer.uri, URN)
        self.assertEqual(answer.digest_function, reapi.DigestFunction.SHA256)
        self.assertEqual(answer.status.code, 0)
        self.assertFalse(answer.HasField("expires_at"))

    async def test_directory(self: Any) -> None:
        """A tree is found under the name that it was given."""
        client = await self.serve()
        inner = await self.put_tree({"b": b"two"})
        root = await self.put_tree({"a": b"one"}, {"d": inner})
        await client.call("PushDirectory", push_directory(root))
        answer = await client.call("FetchDirectory", fetch_directory())
        self.assertEqual(answer.root_directory_digest, message_of(root))
        self.assertEqual(answer.uri, URN)
        self.assertEqual(answer.digest_function, reapi.DigestFunction.SHA256)

    async def test_kinds(self: Any) -> None:
        """A name of a blob is none of a tree, and the other way round; both can be the same."""
        client = await self.serve()
        (blob,) = await self.put(b"some")
        root = await self.put_tree({"a": b"one"})
        await client.call("PushBlob", push_blob(blob))
        await self.refused(client, StatusCode.NOT_FOUND, "FetchDirectory", fetch_directory())
        await client.call("PushDirectory", push_directory(root))
        self.assertEqual((await client.call("FetchBlob", fetch_blob())).blob_digest, message_of(blob))

    async def test_unknown(self: Any) -> None:
        """A name that nobody gave is NOT_FOUND, as the status of the call."""
        client = await self.serve()
        await self.refused(client, StatusCode.NOT_FOUND, "FetchBlob", fetch_blob())
        await self.refused(client, StatusCode.NOT_FOUND, "FetchDirectory", fetch_directory())

    async def test_several_names(self: Any) -> None:
        """Each of several names stands for the blob; of several that are asked for, the first known one counts."""
        client = await self.serve()
        one, two = await self.put(b"one", b"two")
        await client.call("PushBlob", push_blob(one, "urn:a", "urn:b", "urn:a"))
        await client.call("PushBlob", push_blob(two, "urn:c"))
        for names, uri, digest in (
            (["urn:a"], "urn:a", one),
            (["urn:b"], "urn:b", one),
            (["urn:x", "urn:c", "urn:a"], "urn:c", two),
            (["urn:x", "urn:b", "urn:c"], "urn:b", one),
        ):
            answer = await client.call("FetchBlob", fetch_blob(*names))
            self.assertEqual((answer.uri, answer.blob_digest), (uri, message_of(digest)))

    async def test_several_names_at_once(self: Any) -> None:
        """All names of one request are given at one moment."""
        client = await self.serve()
        (digest,) = await self.put(b"some")
        given = []
        real = self.store.set_records

        async def set_records(records: Sequence[Record]) -> None:
            given.append([record.key.name for record in records])
            await real(records)

        self.store.set_records = set_records
        await client.call("PushBlob", push_blob(digest, "urn:a", "urn:b"))
        await client.call("PushDirectory", push_directory(EMPTY, "urn:c", "urn:d"))
        update = buildstream.UpdateReferenceRequest(keys=["e", "f"], digest=message_of(EMPTY))
        await client.call("UpdateReference", update)
        self.assertEqual(given, [["urn:a", "urn:b"], ["urn:c", "urn:d"], [REFERENCE_URN + "e", REFERENCE_URN + "f"]])

    async def test_replace(self: Any) -> None:
        """A name that is given anew stands for the new content."""
        client = await self.serve()
        one, two = await self.put(b"one", b"two")
        await client.call("PushBlob", push_blob(one))
        await client.call("PushBlob", push_blob(two))
        self.assertEqual((await client.call("FetchBlob", fetch_blob())).blob_digest, message_of(two))

    async def test_instances(self: Any) -> None:
        """Each instance has names of its own."""
        client = await self.serve()
        one, two = await self.put(b"one", b"two")
        await client.call("PushBlob", push_blob(one, instance_name="a"))
        await client.call("PushBlob", push_blob(two, instance_name="a/b"))
        await self.refused(client, StatusCode.NOT_FOUND, "FetchBlob", fetch_blob())
        for instance, digest in (("a", one), ("a/b", two)):
            answer = await client.call("FetchBlob", fetch_blob(instance_name=instance))
            self.assertEqual(answer.blob_digest, message_of(digest))

    async def test_qualifiers(self: Any) -> None:
        """Qualifiers are part of the name, as a set: their order does not matter, and each of them does."""
        client = await self.serve()
        one, two = await self.put(b"one", b"two")
        await client.call("PushBlob", push_blob(one, qualifiers=qualifiers(a="1", b="2")))
        await client.call("PushBlob", push_blob(two))
        for given, digest in (
            (qualifiers(a="1", b="2"), one),
            (qualifiers(b="2", a="1"), one),
            (qualifiers(b="2", a="1") * 2, one),
            ([], two),
        ):
            answer = await client.call("FetchBlob", fetch_blob(qualifiers=given))
            self.assertEqual(answer.blob_digest, message_of(digest))
            self.assertEqual(list(answer.qualifiers), given)
        for given in (qualifiers(a="1"), qualifiers(a="2", b="1"), qualifiers(a="1", b="2", c="3")):
            await self.refused(client, StatusCode.NOT_FOUND, "FetchBlob", fetch_blob(qualifiers=given))

    async def test_probes(self: Any) -> None:
        """Without a name every call is INVALID_ARGUMENT: BuildStream's way to ask whether there is such a service."""
        client = await self.serve()
        for name, request in (
            ("FetchBlob", asset.FetchBlobRequest()),
            ("FetchDirectory", asset.FetchDirectoryRequest()),
            ("PushBlob", asset.PushBlobRequest()),
            ("PushDirectory", asset.PushDirectoryRequest()),
        ):
            await self.refused(client, StatusCode.INVALID_ARGUMENT, name, request)

    async def test_push_is_off(self: Any) -> None:
        """Where push is off or not allowed, giving names is refused, probes included, and looking them up is not."""
        for self.enable_push, rights in ((False, None), (True, [Right.PULL])):
            client = await self.serve(rights=rights)
            (digest,) = await self.put(b"some")
            for name, request in (
                ("PushBlob", asset.PushBlobRequest()),
                ("PushBlob", push_blob(digest)),
                ("PushDirectory", asset.PushDirectoryRequest()),
                ("PushDirectory", push_directory(EMPTY)),
            ):
                await self.refused(client, StatusCode.PERMISSION_DENIED, name, request)
            await self.refused(client, StatusCode.INVALID_ARGUMENT, "FetchBlob", asset.FetchBlobRequest())
            await self.refused(client, StatusCode.INVALID_ARGUMENT, "FetchDirectory", asset.FetchDirectoryRequest())
            await self.refused(client, StatusCode.NOT_FOUND, "FetchBlob", fetch_blob())

    async def test_expiry(self: Any) -> None:
        """A name that was given until some time is there until then, says so, and is gone afterwards."""
        client = await self.serve()
        (digest,) = await self.put(b"some")
        root = await self.put_tree({"a": b"one"})
        until = self.at(1000)
        await client.call("PushBlob", push_blob(digest, expire_at=until))
        await client.call("PushDirectory", push_directory(root, expire_at=until))
        self.assertEqual((await client.call("FetchBlob", fetch_blob())).expires_at, until)
        self.assertEqual((await client.call("FetchDirectory", fetch_directory())).expires_at, until)
        self.moment = 1001.0
        await self.refused(client, StatusCode.NOT_FOUND, "FetchBlob", fetch_blob())
        await self.refused(client, StatusCode.NOT_FOUND, "FetchDirectory", fetch_directory())

    async def test_strange_times(self: Any) -> None:
        """A name that ended long ago is not there, one that ends in 9000 years is, and no time is refused."""
        client = await self.serve()
        (digest,) = await self.put(b"some")
        for seconds in (0, 1, -1000, -62135596800):
            await client.call("PushBlob", push_blob(digest, expire_at=Timestamp(seconds=seconds)))
            await self.refused(client, StatusCode.NOT_FOUND, "FetchBlob", fetch_blob())
        for seconds in (9223372035, 9223372036, 9223372037, 253402300799):
            await client.call("PushBlob", push_blob(digest, expire_at=Timestamp(seconds=seconds, nanos=999999999)))
            await client.call("FetchBlob", fetch_blob())
        for bad in (
            Timestamp(seconds=2**63 - 1),
            Timestamp(seconds=-(2**63)),
            Timestamp(seconds=1, nanos=-1),
            Timestamp(seconds=1, nanos=10**9),
        ):
            await self.refused(client, StatusCode.INVALID_ARGUMENT, "PushBlob", push_blob(digest, expire_at=bad))
            request = fetch_blob(oldest_content_accepted=bad)
            await self.refused(client, StatusCode.INVALID_ARGUMENT, "FetchBlob", request)

    async def test_oldest_content(self: Any) -> None:
        """A name that was given before the time that the client accepts is as good as none."""
        client = await self.serve()
        (digest,) = await self.put(b"some")
        await client.call("PushBlob", push_blob(digest))
        await client.call("FetchBlob", fetch_blob(oldest_content_accepted=self.at(-100)))
        too_new = fetch_blob(oldest_content_accepted=self.at(100))
        await self.refused(client, StatusCode.NOT_FOUND, "FetchBlob", too_new)
        self.moment = 200.0
        await client.call("PushBlob", push_blob(digest))
        await client.call("FetchBlob", too_new)

    async def test_missing_content(self: Any) -> None:
        """A name for what is not here is refused with what has to be uploaded, and an older one stays."""
        client = await self.serve()
        (digest,) = await self.put(b"some")
        root = await self.put_tree({"a": b"one"})
        await client.call("PushBlob", push_blob(digest))
        await client.call("PushDirectory", push_directory(root))
        gone = Digest.of(b"gone")
        broken = await self.put_tree({"a": b"one"}, {"d": gone})
        for name, request in (
            ("PushBlob", push_blob(gone)),
            ("PushBlob", push_blob(digest, references_blobs=[message_of(gone)])),
            ("PushBlob", push_blob(digest, references_directories=[message_of(gone)])),
            ("PushBlob", push_blob(digest, references_directories=[message_of(broken)])),
            ("PushDirectory", push_directory(gone)),
            ("PushDirectory", push_directory(broken)),
            ("PushDirectory", push_directory(root, references_blobs=[message_of(gone)])),
            ("PushDirectory", push_directory(root, references_directories=[message_of(broken)])),
        ):
            error = await self.refused(client, StatusCode.FAILED_PRECONDITION, name, request)
            (detail,) = details_of(error)
            failure = error_details_pb2.PreconditionFailure()
            self.assertTrue(detail.Unpack(failure))
            self.assertEqual([(each.type, each.subject) for each in failure.violations], [("MISSING", f"blobs/{gone}")])
        self.assertEqual((await client.call("FetchBlob", fetch_blob())).blob_digest, message_of(digest))
        self.assertEqual(
            (await client.call("FetchDirectory", fetch_directory())).root_directory_digest, message_of(root)
        )

    async def test_much_is_missing(self: Any) -> None:
        """However much is missing, the refusal fits into a client's 8 KiB."""
        client = await self.serve()
        (digest,) = await self.put(b"some")
        gone = [message_of(Digest.of(b"%d" % number)) for number in range(500)]
        request = push_blob(digest, references_blobs=gone)
        error = await self.refused(client, StatusCode.FAILED_PRECONDITION, "PushBlob", request)
        self.assertLess(sum(len(key) + len(value) for key, value in error.trailing_metadata()), 5000)
        self.assertTrue(details_of(error))

    async def test_references(self: Any) -> None:
        """References that are here are accepted: the empty blob as a folder, repetitions, and empty digests too."""
        client = await self.serve()
        (digest,) = await self.put(b"some")
        root = await self.put_tree({"a": b"one"})
        empty = message_of(EMPTY)
        lists = {
            "references_blobs": [empty, message_of(digest), NOTHING, empty],
            "references_directories": [empty, message_of(root), NOTHING, NOTHING, message_of(root)],
        }
        await client.call("PushBlob", push_blob(digest, **lists))
        await client.call("PushDirectory", push_directory(root, **lists))
        await client.call("FetchBlob", fetch_blob())
        await client.call("FetchDirectory", fetch_directory())

    async def test_no_directory(self: Any) -> None:
        """What is said to be a tree and is none is INVALID_ARGUMENT."""
        client = await self.serve()
        (junk,) = await self.put(b"\xff\xff this is no Directory")
        await self.refused(client, StatusCode.INVALID_ARGUMENT, "PushDirectory", push_directory(junk))
        request = push_blob(junk, references_directories=[message_of(junk)])
        await self.refused(client, StatusCode.INVALID_ARGUMENT, "PushBlob", request)

    async def test_bad_digests(self: Any) -> None:
        """What is no digest is INVALID_ARGUMENT, wherever it stands; so is none for the content itself."""
        client = await self.serve()
        (digest,) = await self.put(b"some")
        bad = reapi.Digest(hash="AB" * 32, size_bytes=1)
        for name, request in (
            ("PushBlob", asset.PushBlobRequest(uris=[URN])),
            ("PushBlob", asset.PushBlobRequest(uris=[URN], blob_digest=bad)),
            ("PushBlob", push_blob(digest, references_blobs=[bad])),
            ("PushBlob", push_blob(digest, references_directories=[reapi.Digest(size_bytes=1)])),
            ("PushDirectory", asset.PushDirectoryRequest(uris=[URN])),
            ("PushDirectory", asset.PushDirectoryRequest(uris=[URN], root_directory_digest=bad)),
            ("PushDirectory", push_directory(EMPTY, references_blobs=[bad])),
        ):
            await self.refused(client, StatusCode.INVALID_ARGUMENT, name, request)

    async def test_digest_functions(self: Any) -> None:
        """A digest function that was not announced is refused."""
        client = await self.serve()
        blake = reapi.DigestFunction.BLAKE3
        for name, request in (
            ("FetchBlob", fetch_blob(digest_function=blake)),
            ("FetchDirectory", fetch_directory(digest_function=blake)),
            ("PushBlob", push_blob(EMPTY, digest_function=blake)),
            ("PushDirectory", push_directory(EMPTY, digest_function=blake)),
        ):
            await self.refused(client, StatusCode.INVALID_ARGUMENT, name, request)

    async def test_bounds(self: Any) -> None:
        """Names have bounds, far from what clients use: what is within them works, what is beyond is refused."""
        client = await self.serve()
        (digest,) = await self.put(b"some")
        many = [f"urn:{number}" for number in range(MAX_URIS + 1)]
        pairs = [asset.Qualifier(name=f"{number}", value="v") for number in range(MAX_QUALIFIERS + 1)]
        long_name = asset.Qualifier(name="n" * MAX_QUALIFIER_NAME, value="v" * MAX_QUALIFIER_VALUE)
        references = [message_of(digest)] * MAX_REFERENCES
        for uris, fields in (
            (["urn:" + "x" * (MAX_URI - 4)], {}),
            (many[:-1], {}),
            ([URN], {"qualifiers": pairs[:-1]}),
            ([URN], {"qualifiers": [long_name]}),
            ([URN], {"instance_name": "i" * MAX_INSTANCE_NAME}),
        ):
            await client.call("PushBlob", push_blob(digest, *uris, **fields))
            await client.call("FetchBlob", fetch_blob(*uris, **fields))
        await client.call("PushBlob", push_blob(digest, references_blobs=references))
        for uris, fields in (
            ([""], {}),
            ([URN, ""], {}),
            (["x" * (MAX_URI + 1)], {}),
            (many, {}),
            ([URN], {"qualifiers": pairs}),
            ([URN], {"qualifiers": [asset.Qualifier(name="n" * (MAX_QUALIFIER_NAME + 1))]}),
            ([URN], {"qualifiers": [asset.Qualifier(name="n", value="v" * (MAX_QUALIFIER_VALUE + 1))]}),
            ([URN], {"instance_name": "i" * (MAX_INSTANCE_NAME + 1)}),
        ):
            for name, request in (
                ("PushBlob", push_blob(digest, *uris, **fields)),
                ("PushDirectory", push_directory(EMPTY, *uris, **fields)),
                ("FetchBlob", fetch_blob(*uris, **fields)),
                ("FetchDirectory", fetch_directory(*uris, **fields)),
            ):
                await self.refused(client, StatusCode.INVALID_ARGUMENT, name, request)
        for lists in (
            {"references_blobs": [*references, message_of(digest)]},
            {"references_blobs": references, "references_directories": [message_of(EMPTY)]},
        ):
            await self.refused(client, StatusCode.INVALID_ARGUMENT, "PushBlob", push_blob(digest, **lists))

    async def test_qualifiers_together(self: Any) -> None:
        """Qualifiers are kept with each name, so all of a request's together have a bound, counted as they are kept."""
        client = await self.serve()
        (digest,) = await self.put(b"some")
        many = [f"urn:{number}" for number in range(MAX_URIS)]
        count = 4
        fitting = [
            asset.Qualifier(name=f"{number}", value="v" * (MAX_QUALIFIERS_BYTES // count - 1))
            for number in range(count)
        ]
        twice = [*fitting, fitting[0]]
        await client.call("PushBlob", push_blob(digest, *many, qualifiers=twice))
        await client.call("FetchBlob", fetch_blob(many[-1], qualifiers=fitting))
        accented = [asset.Qualifier(name=each.name, value="é" + each.value[1:]) for each in fitting]
        for beyond in (accented, [*fitting, asset.Qualifier(name="x")]):
            for name, request in (
                ("PushBlob", push_blob(digest, qualifiers=beyond)),
                ("PushDirectory", push_directory(EMPTY, qualifiers=beyond)),
                ("FetchBlob", fetch_blob(qualifiers=beyond)),
                ("FetchDirectory", fetch_directory(qualifiers=beyond)),
            ):
                error = await self.refused(client, StatusCode.INVALID_ARGUMENT, name, request)
                self.assertIn(str(MAX_QUALIFIERS_BYTES), error.details())

    async def test_strange_names(self: Any) -> None:
        """Any text is a name: none of it is a path, and none of it is mixed up with another."""
        client = await self.serve()
        names = ["../../etc/passwd", "/", "a\x00b", "a", "日本語", "a b\n", "%2e%2e", "urn:a" * 700]
        digests = await self.put(*(b"%d" % number for number in range(len(names))))
        for name, digest in zip(names, digests, strict=True):
            await client.call("PushBlob", push_blob(digest, name))
        for name, digest in zip(names, digests, strict=True):
            self.assertEqual((await client.call("FetchBlob", fetch_blob(name))).blob_digest, message_of(digest))


class ArtifactMixin(GrpcMixin):
    """Publishing BuildStream's artifacts."""

    async def artifact(self: Any, **changes: Any) -> buildstream.Artifact:
        """An artifact as BuildStream 2.8 has it, all of it stored; fields to be set otherwise, or `None` for none."""
        low, high, public, log = await self.put(b"low", b"high", b"public", b"log " + os.urandom(4))
        tree = await self.put_tree({"bin": b"program"}, {"share": await self.put_tree({"doc": os.urandom(5)})})
        artifact = buildstream.Artifact(
            version=1,
            build_success=True,
            strong_key="strong",
            weak_key="weak",
            files=message_of(tree),
            public_data=message_of(public),
            low_diversity_meta=message_of(low),
            high_diversity_meta=message_of(high),
            logs=[buildstream.Artifact.LogFile(name="build.log", digest=message_of(log))],
        )
        for name, value in changes.items():
            artifact.ClearField(name)
            if isinstance(value, list):
                getattr(artifact, name).extend(value)
            elif value is not None:
                getattr(artifact, name).CopyFrom(value)
        return artifact

    async def push(self: Any, artifact: buildstream.Artifact, **fields: Any) -> asset.PushBlobRequest:
        """The request that publishes it; its message is stored."""
        (digest,) = await self.put(artifact.SerializeToString())
        return push_blob(digest, STRONG, WEAK, **fields)

    async def test_whole(self: Any) -> None:
        """An artifact that is all here is published under both its keys."""
        client = await self.serve()
        artifact = await self.artifact()
        request = await self.push(
            artifact,
            references_directories=[artifact.files],
            references_blobs=[artifact.low_diversity_meta, artifact.high_diversity_meta, artifact.logs[0].digest],
        )
        await client.call("PushBlob", request)
        for uri in (STRONG, WEAK):
            answer = await client.call("FetchBlob", fetch_blob(uri))
            self.assertEqual(answer.blob_digest, request.blob_digest)

    async def test_required_parts(self: Any) -> None:
        """Without any one of its files, metadata, public data or logs it is refused, though the request lists none."""
        client = await self.serve()
        gone = message_of(Digest.of(b"gone"))
        hollow = message_of(await self.put_tree({"a": b"one"}, {"d": Digest.of(b"gone")}))
        for changes in (
            {"files": gone},
            {"files": hollow},
            {"public_data": gone},
            {"low_diversity_meta": gone},
            {"high_diversity_meta": gone},
            {"logs": [buildstream.Artifact.LogFile(name="a", digest=gone)]},
        ):
            request = await self.push(await self.artifact(**changes))
            error = await self.refused(client, StatusCode.FAILED_PRECONDITION, "PushBlob", request)
            self.assertIn(gone.hash, error.details())
            await self.refused(client, StatusCode.NOT_FOUND, "FetchBlob", fetch_blob(STRONG, WEAK))

    async def test_message_missing(self: Any) -> None:
        """Without its message an artifact is refused."""
        client = await self.serve()
        gone = Digest.of(b"gone")
        error = await self.refused(client, StatusCode.FAILED_PRECONDITION, "PushBlob", push_blob(gone, STRONG))
        self.assertIn(gone.hex, error.details())
        self.assertTrue(details_of(error))

    async def test_parts_that_may_lack(self: Any) -> None:
        """Build tree, sources and build root are listed by clients that never had them: they may be missing."""
        client = await self.serve()
        gone = message_of(Digest.of(b"gone"))
        for changes in (
            {"buildtree": gone},
            {"sources": gone},
            {"buildroot": gone},
            {"buildsandbox": buildstream.Artifact.SandboxState(subsandbox_digests=[gone])},
        ):
            artifact = await self.artifact(**changes)
            request = await self.push(artifact, references_directories=[artifact.files, gone])
            await client.call("PushBlob", request)
            answer = await client.call("FetchBlob", fetch_blob(STRONG))
            self.assertEqual(answer.blob_digest, request.blob_digest)

    async def test_other_references(self: Any) -> None:
        """What the request lists beyond the artifact's own parts has to be here."""
        client = await self.serve()
        gone = message_of(Digest.of(b"gone"))
        request = await self.push(await self.artifact(), references_blobs=[gone])
        await self.refused(client, StatusCode.FAILED_PRECONDITION, "PushBlob", request)

    async def test_required_after_all(self: Any) -> None:
        """What is both a build tree and the files has to be here."""
        client = await self.serve()
        gone = message_of(Digest.of(b"gone"))
        request = await self.push(await self.artifact(files=gone, buildtree=gone))
        await self.refused(client, StatusCode.FAILED_PRECONDITION, "PushBlob", request)

    async def test_old_clients(self: Any) -> None:
        """BuildStream 2.0 to 2.6 list empty digests and leave the public data out."""
        client = await self.serve()
        artifact = await self.artifact(buildtree=NOTHING, sources=NOTHING, buildroot=NOTHING)
        request = await self.push(artifact, references_directories=[artifact.files, NOTHING, NOTHING, NOTHING])
        await client.call("PushBlob", request)
        await client.call("FetchBlob", fetch_blob(STRONG))

    async def test_stack(self: Any) -> None:
        """A stack's files are the empty folder, which nobody uploads."""
        client = await self.serve()
        artifact = await self.artifact(files=message_of(EMPTY), logs=None, public_data=None)
        request = await self.push(artifact, references_directories=[artifact.files])
        await client.call("PushBlob", request)
        await client.call("FetchBlob", fetch_blob(STRONG))

    async def test_malformed(self: Any) -> None:
        """What is no Artifact message is refused, and so is one whose digests are none, or a huge one."""
        client = await self.serve()
        (junk,) = await self.put(b"\xff\xff this is no artifact")
        await self.refused(client, StatusCode.INVALID_ARGUMENT, "PushBlob", push_blob(junk, STRONG))
        for bad in (reapi.Digest(hash="AB" * 32, size_bytes=1), reapi.Digest(hash="", size_bytes=1)):
            request = await self.push(await self.artifact(files=bad))
            await self.refused(client, StatusCode.INVALID_ARGUMENT, "PushBlob", request)
        (large,) = await self.put(bytes(MAX_ARTIFACT_MESSAGE + 1))
        await self.refused(client, StatusCode.INVALID_ARGUMENT, "PushBlob", push_blob(large, STRONG))
        # Under any other name they are blobs like all others.
        for digest in (junk, large):
            await client.call("PushBlob", push_blob(digest, URN))

    async def test_files_that_are_none(self: Any) -> None:
        """An artifact whose files are no tree is refused."""
        client = await self.serve()
        (junk,) = await self.put(b"\xff\xff this is no Directory")
        request = await self.push(await self.artifact(files=message_of(junk)))
        await self.refused(client, StatusCode.INVALID_ARGUMENT, "PushBlob", request)

    async def test_one_name_is_enough(self: Any) -> None:
        """An artifact's name among others makes the blob an artifact."""
        client = await self.serve()
        request = await self.push(await self.artifact(files=message_of(Digest.of(b"gone"))))
        del request.uris[:]
        request.uris.extend(["urn:other", WEAK])
        await self.refused(client, StatusCode.FAILED_PRECONDITION, "PushBlob", request)
        await self.refused(client, StatusCode.NOT_FOUND, "FetchBlob", fetch_blob("urn:other"))


class RemoteAssetMemoryTests(RemoteAssetMixin, OverMemory):
    """Remote Asset over the store in memory."""

    async def test_lost_content(self) -> None:
        """A name whose content was lost is NOT_FOUND until the content is back; then the next name is tried."""
        client = await self.serve()
        leaf, other = await self.put(b"leaf", b"other")
        root = await self.put_tree({"a": b"leaf"})
        await client.call("PushDirectory", push_directory(root))
        await client.call("PushBlob", push_blob(leaf, "urn:a"))
        await client.call("PushBlob", push_blob(other, "urn:b"))
        self.store.lose(leaf)
        await self.refused(client, StatusCode.NOT_FOUND, "FetchDirectory", fetch_directory())
        self.assertEqual((await client.call("FetchBlob", fetch_blob("urn:a", "urn:b"))).uri, "urn:b")
        await self.put(b"leaf")
        await client.call("FetchDirectory", fetch_directory())
        self.assertEqual((await client.call("FetchBlob", fetch_blob("urn:a", "urn:b"))).uri, "urn:a")

    async def test_value_of_something_newer(self) -> None:
        """A record that a newer version wrote is no reason to fail."""
        client = await self.serve()
        (digest,) = await self.put(b"some")
        await client.call("PushBlob", push_blob(digest))
        ((key, record),) = self.store.records.items()
        for value in (b"\xff\xff\xff", b""):
            object.__setattr__(record, "value", value)
            await self.refused(client, StatusCode.NOT_FOUND, "FetchBlob", fetch_blob(key.name))


class RemoteAssetLocalTests(RemoteAssetMixin, OverLocal):
    """Remote Asset over the store on disk."""


class ArtifactMemoryTests(ArtifactMixin, OverMemory):
    """Artifacts over the store in memory."""


class ArtifactLocalTests(ArtifactMixin, OverLocal):
    """Artifacts over the store on disk."""
