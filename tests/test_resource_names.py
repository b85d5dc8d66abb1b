"""Every client's way to name a blob is understood, and what is no name is refused."""

from __future__ import annotations

from collections.abc import Callable

from twisted.trial.unittest import SynchronousTestCase

from artifactserver.rpc.status import Code, RpcError
from artifactserver.services.names import MAX_INSTANCE_NAME
from artifactserver.services.resource_names import KEYWORDS, MAX_RESOURCE_NAME, parse_read, parse_write
from artifactserver.store.digest import Digest, InvalidDigest

DIGEST = Digest.of(b"some content")
NAME = f"{DIGEST.hex}/{DIGEST.size}"
UUID = "c0ffee00-1111-4222-8333-444455556666"


class ResourceNameTests(SynchronousTestCase):
    """`parse_read` and `parse_write`."""

    def assertRefused(self, parse: Callable[[str], Digest], name: str) -> None:
        """The name is the client's mistake, and is said to be."""
        with self.assertRaises((RpcError, InvalidDigest), msg=name) as caught:
            parse(name)
        if isinstance(caught.exception, RpcError):
            self.assertEqual(caught.exception.code, Code.INVALID_ARGUMENT)

    def test_reading(self) -> None:
        """Blobs can be read with and without an instance, with slashes in it, and with anything behind the name."""
        for name in (
            f"blobs/{NAME}",
            f"main/blobs/{NAME}",
            f"a/b/c/blobs/{NAME}",
            f"/blobs/{NAME}",
            f"blobs/{NAME}/src/main.c",
            f"blobs/{NAME}/blobs/uploads",
            f"blobs/{NAME}/",
            f"blobs/sha256/{NAME}",
            f"ä/ö/blobs/{NAME}",
        ):
            self.assertEqual(parse_read(name), DIGEST, name)

    def test_writing(self) -> None:
        """Blobs can be written under any upload ID, not only under a UUID."""
        for name in (
            f"uploads/{UUID}/blobs/{NAME}",
            f"main/uploads/{UUID}/blobs/{NAME}",
            f"a/b/uploads/{UUID}/blobs/{NAME}",
            f"uploads/anything at all/blobs/{NAME}",
            f"uploads/blobs/blobs/{NAME}",
            f"uploads//blobs/{NAME}",
            f"uploads/{UUID}/blobs/{NAME}/src/main.c",
            f"uploads/{UUID}/blobs/sha256/{NAME}",
        ):
            self.assertEqual(parse_write(name), DIGEST, name)

    def test_first_buildstream(self) -> None:
        """BuildStream 1.1.4 to 1.1.6 and 1.3.0 name blobs HASH/SIZE, for reading and for writing."""
        self.assertEqual(parse_read(NAME), DIGEST)
        self.assertEqual(parse_write(NAME), DIGEST)

    def test_no_names(self) -> None:
        """What is no name of a blob is refused, whatever it is instead."""
        for name in (
            "",
            "/",
            "blobs",
            "blobs/",
            f"blobs/{DIGEST.hex}",
            f"blobs/{DIGEST.hex}/",
            f"blobs/{DIGEST.hex}/x",
            f"blobs/{DIGEST.hex}/-1",
            f"blobs/{DIGEST.hex}/+1",
            f"blobs/{DIGEST.hex}/1_0",
            f"blobs/{DIGEST.hex}/\u0661",
            f"blobs/{DIGEST.hex}/{2**63}",
            f"blobs/{DIGEST.hex}/{'9' * 5000}",
            f"blobs/{DIGEST.hex[:-1]}/12",
            f"blobs/{DIGEST.hex.upper()}/{DIGEST.size}",
            f"blobs//{DIGEST.size}",
            f"blobs/blake3/{NAME}",
            f"blobs/SHA256/{NAME}",
            f"main/{NAME}",
            f"actions/{NAME}",
            f"{NAME}/file",
            "a" * 64,
        ):
            self.assertRefused(parse_read, name)
            self.assertRefused(parse_write, f"uploads/{UUID}/{name}")

    def test_the_other_direction(self) -> None:
        """A name for reading is none for writing, and the other way round."""
        self.assertRefused(parse_write, f"blobs/{NAME}")
        self.assertRefused(parse_read, f"uploads/{UUID}/blobs/{NAME}")
        self.assertRefused(parse_write, f"uploads/blobs/{NAME}")

    def test_compressed(self) -> None:
        """Compressed names say that there is no compression here, which capabilities said before."""
        for parse, name in (
            (parse_read, f"compressed-blobs/zstd/{NAME}"),
            (parse_read, f"a/compressed-blobs/zstd/{NAME}"),
            (parse_write, f"uploads/{UUID}/compressed-blobs/zstd/{NAME}"),
        ):
            with self.assertRaises(RpcError) as caught:
                parse(name)
            self.assertEqual(caught.exception.code, Code.INVALID_ARGUMENT)
            self.assertIn("compress", caught.exception.message)

    def test_keywords_end_an_instance(self) -> None:
        """No segment of an instance name may be a keyword: the first one ends it."""
        for keyword in KEYWORDS - {"blobs"}:
            self.assertRefused(parse_read, f"a/{keyword}/blobs/{NAME}")

    def test_long_instance(self) -> None:
        """An instance name may have 256 characters, and no more."""
        self.assertEqual(parse_read(f"{'i' * MAX_INSTANCE_NAME}/blobs/{NAME}"), DIGEST)
        self.assertEqual(parse_read(f"{'i/' * (MAX_INSTANCE_NAME // 2 - 1)}ii/blobs/{NAME}"), DIGEST)
        self.assertRefused(parse_read, f"{'i' * (MAX_INSTANCE_NAME + 1)}/blobs/{NAME}")
        self.assertRefused(parse_write, f"{'i/' * (MAX_INSTANCE_NAME // 2)}i/uploads/{UUID}/blobs/{NAME}")

    def test_long_name(self) -> None:
        """A resource name may have 8192 characters, and no more."""
        name = f"blobs/{NAME}/"
        self.assertEqual(parse_read(name + "x" * (MAX_RESOURCE_NAME - len(name))), DIGEST)
        self.assertRefused(parse_read, name + "x" * (MAX_RESOURCE_NAME - len(name) + 1))

    def test_refusals_are_short(self) -> None:
        """What is quoted of a long name does not fill a client's headers."""
        with self.assertRaises(RpcError) as caught:
            parse_read("x" * MAX_RESOURCE_NAME)
        self.assertLess(len(caught.exception.message), 300)
