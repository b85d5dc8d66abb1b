"""BuildStream 1's references, which it shares with Remote Asset."""

from __future__ import annotations

from typing import Any

from grpc import StatusCode

from artifactserver.access import Right
from artifactserver.proto import buildstream_pb2 as buildstream
from artifactserver.proto import remote_execution_pb2 as reapi
from artifactserver.services.names import MAX_INSTANCE_NAME, MAX_URI, MAX_URIS
from artifactserver.services.reference_storage import REFERENCE_URN
from artifactserver.store.digest import EMPTY, Digest
from tests.grpc_cases import GrpcMixin, OverLocal, OverMemory, message_of
from tests.test_remote_asset import fetch_blob, fetch_directory, push_directory

KEY = "project/element/0123456789abcdef"


def get(key: str = KEY, **fields: Any) -> buildstream.GetReferenceRequest:
    """Asks for a reference."""
    return buildstream.GetReferenceRequest(key=key, **fields)


def update(digest: Digest, *keys: str, **fields: Any) -> buildstream.UpdateReferenceRequest:
    """Sets references."""
    return buildstream.UpdateReferenceRequest(keys=keys or [KEY], digest=message_of(digest), **fields)


class ReferenceStorageMixin(GrpcMixin):
    """GetReference, UpdateReference and Status."""

    async def test_set_and_get(self: Any) -> None:
        """References are found as they were set, each of several, and can be set anew."""
        client = await self.serve()
        one, two = await self.put_tree({"a": b"one"}), await self.put_tree({"a": b"two"})
        await client.call("UpdateReference", update(one, KEY, "other/key"))
        for key in (KEY, "other/key"):
            self.assertEqual((await client.call("GetReference", get(key))).digest, message_of(one))
        await client.call("UpdateReference", update(two))
        self.assertEqual((await client.call("GetReference", get())).digest, message_of(two))
        self.assertEqual((await client.call("GetReference", get("other/key"))).digest, message_of(one))

    async def test_unknown(self: Any) -> None:
        """A reference that nobody set is NOT_FOUND."""
        client = await self.serve()
        await self.refused(client, StatusCode.NOT_FOUND, "GetReference", get())

    async def test_pushed_by_1_4_pulled_by_1_6(self: Any) -> None:
        """What BuildStream 1.4 sets as a reference, 1.6 finds as an asset."""
        client = await self.serve()
        root = await self.put_tree({"a": b"one"})
        await client.call("UpdateReference", update(root))
        answer = await client.call("FetchDirectory", fetch_directory(f"urn:fdc:buildstream.build:2020:v1:{KEY}"))
        self.assertEqual(answer.root_directory_digest, message_of(root))

    async def test_pushed_by_1_6_pulled_by_1_4(self: Any) -> None:
        """What BuildStream 1.6 pushes as an asset, 1.4 finds as a reference; what is said last counts for both."""
        client = await self.serve()
        one, two = await self.put_tree({"a": b"one"}), await self.put_tree({"a": b"two"})
        urn = REFERENCE_URN + KEY
        await client.call("PushDirectory", push_directory(one, urn))
        self.assertEqual((await client.call("GetReference", get())).digest, message_of(one))
        await client.call("UpdateReference", update(two))
        answer = await client.call("FetchDirectory", fetch_directory(urn))
        self.assertEqual(answer.root_directory_digest, message_of(two))
        await client.call("PushDirectory", push_directory(one, urn))
        self.assertEqual((await client.call("GetReference", get())).digest, message_of(one))

    async def test_not_every_asset(self: Any) -> None:
        """A name is a reference only with the right beginning, and a reference is no blob."""
        client = await self.serve()
        root = await self.put_tree({"a": b"one"})
        await client.call("PushDirectory", push_directory(root, KEY))
        await self.refused(client, StatusCode.NOT_FOUND, "GetReference", get())
        await client.call("UpdateReference", update(root))
        await self.refused(client, StatusCode.NOT_FOUND, "FetchBlob", fetch_blob(REFERENCE_URN + KEY))

    async def test_instances(self: Any) -> None:
        """Each instance has references of its own."""
        client = await self.serve()
        root = await self.put_tree({"a": b"one"})
        await client.call("UpdateReference", update(root, instance_name="a/b"))
        await self.refused(client, StatusCode.NOT_FOUND, "GetReference", get())
        await client.call("GetReference", get(instance_name="a/b"))
        urn = REFERENCE_URN + KEY
        await self.refused(client, StatusCode.NOT_FOUND, "FetchDirectory", fetch_directory(urn))
        await client.call("FetchDirectory", fetch_directory(urn, instance_name="a/b"))

    async def test_missing_content(self: Any) -> None:
        """A reference to what is not all here is refused, and the older one stays."""
        client = await self.serve()
        root = await self.put_tree({"a": b"one"})
        await client.call("UpdateReference", update(root))
        gone = Digest.of(b"gone")
        broken = await self.put_tree({"a": b"one"}, {"d": gone})
        for digest in (gone, broken):
            error = await self.refused(client, StatusCode.FAILED_PRECONDITION, "UpdateReference", update(digest))
            self.assertIn(gone.hex, error.details())
        self.assertEqual((await client.call("GetReference", get())).digest, message_of(root))

    async def test_no_tree(self: Any) -> None:
        """A reference to what is no tree is refused."""
        client = await self.serve()
        (junk,) = await self.put(b"\xff\xff this is no Directory")
        await self.refused(client, StatusCode.INVALID_ARGUMENT, "UpdateReference", update(junk))

    async def test_empty_tree(self: Any) -> None:
        """The empty folder, which nobody uploads, can be referred to."""
        client = await self.serve()
        await client.call("UpdateReference", update(EMPTY))
        self.assertEqual((await client.call("GetReference", get())).digest, message_of(EMPTY))

    async def test_bounds(self: Any) -> None:
        """No key, an empty one, too many, too long ones, and no digest are INVALID_ARGUMENT."""
        client = await self.serve()
        root = await self.put_tree({"a": b"one"})
        many = [f"key/{number}" for number in range(MAX_URIS + 1)]
        await client.call("UpdateReference", update(root, *many[:-1]))
        for request in (
            buildstream.UpdateReferenceRequest(digest=message_of(root)),
            update(root, ""),
            update(root, *many),
            update(root, "k" * (MAX_URI + 1)),
            update(root, instance_name="i" * (MAX_INSTANCE_NAME + 1)),
            buildstream.UpdateReferenceRequest(keys=[KEY]),
            buildstream.UpdateReferenceRequest(keys=[KEY], digest=reapi.Digest(hash="AB" * 32, size_bytes=1)),
        ):
            await self.refused(client, StatusCode.INVALID_ARGUMENT, "UpdateReference", request)
        for question in (get(""), get("k" * (MAX_URI + 1)), get(instance_name="i" * (MAX_INSTANCE_NAME + 1))):
            await self.refused(client, StatusCode.INVALID_ARGUMENT, "GetReference", question)
        status = buildstream.StatusRequest(instance_name="i" * (MAX_INSTANCE_NAME + 1))
        await self.refused(client, StatusCode.INVALID_ARGUMENT, "Status", status)

    async def test_status(self: Any) -> None:
        """Status says whether this caller may push."""
        for self.enable_push, rights, expected in (
            (True, None, True),
            (True, [Right.PULL], False),
            (False, None, False),
        ):
            client = await self.serve(rights=rights)
            answer = await client.call("Status", buildstream.StatusRequest(instance_name="main"))
            self.assertEqual(answer.allow_updates, expected)

    async def test_push_is_off(self: Any) -> None:
        """Where push is off, references cannot be set, and the user is told; they can be looked up."""
        self.enable_push = False
        client = await self.serve()
        for request in (buildstream.UpdateReferenceRequest(), update(EMPTY)):
            error = await self.refused(client, StatusCode.PERMISSION_DENIED, "UpdateReference", request)
            self.assertIn("--enable-push", error.details())
        await self.refused(client, StatusCode.NOT_FOUND, "GetReference", get())


class ReferenceStorageMemoryTests(ReferenceStorageMixin, OverMemory):
    """References over the store in memory."""


class ReferenceStorageLocalTests(ReferenceStorageMixin, OverLocal):
    """References over the store on disk."""
