"""Large upload messages are read without copying, and exactly as protobuf would read them."""

from __future__ import annotations

from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from artifactserver.proto.bytestream_pb2 import WriteRequest
from artifactserver.services import write_requests
from artifactserver.services.write_requests import LargeWrite, decode

Fields = tuple[str, int, bool, bytes]

requests = st.builds(
    WriteRequest,
    resource_name=st.text(st.characters(exclude_categories=["Cs"]), max_size=30),
    write_offset=st.integers(-(2**63), 2**63 - 1),
    finish_write=st.booleans(),
    data=st.binary(max_size=300),
)


def fields(message: bytes) -> Fields | None:
    """What our decoder makes of a message; `None` if it refuses it."""
    try:
        request = decode(message)
    except DecodeError:
        return None
    return request.resource_name, request.write_offset, request.finish_write, bytes(request.data)


def reference(message: bytes) -> Fields | None:
    """What protobuf makes of it."""
    try:
        request = WriteRequest.FromString(message)
    except DecodeError:
        return None
    return request.resource_name, request.write_offset, request.finish_write, request.data


class DecodeTests(SynchronousTestCase):
    """`write_requests.decode`."""

    def setUp(self) -> None:
        self.patch(write_requests, "LARGE_BYTES", 0)

    @given(requests)
    def test_same_as_protobuf(self, request: WriteRequest) -> None:
        """Every message that protobuf writes is read the same way."""
        message = request.SerializeToString()
        self.assertEqual(fields(message), reference(message))

    @given(st.lists(requests, max_size=3).map(lambda some: b"".join(one.SerializeToString() for one in some)))
    def test_fields_in_another_order(self, message: bytes) -> None:
        """Fields that come twice, or in another order, mean what protobuf takes them for."""
        self.assertEqual(fields(message), reference(message))

    @given(requests, st.data())
    def test_damaged(self, request: WriteRequest, data: st.DataObject) -> None:
        """A message that is cut short or changed is refused, or read as protobuf reads it."""
        message = bytearray(request.SerializeToString() + b"\x52\x03abc")
        message[data.draw(st.integers(0, len(message) - 1))] = data.draw(st.integers(0, 255))
        cut = bytes(message[: data.draw(st.integers(0, len(message)))])
        self.assertEqual(fields(cut), reference(cut))

    @given(st.binary(max_size=60))
    def test_junk(self, junk: bytes) -> None:
        """Junk is refused, or read as protobuf reads it."""
        self.assertEqual(fields(junk), reference(junk))

    def test_long_lengths(self) -> None:
        """A length that is spelled in more bytes than it needs is read, or refused, as protobuf does."""
        for zeros in range(12):
            message = b"\x52" + (b"\x83" + b"\x80" * zeros + b"\x00" if zeros else b"\x03") + b"abc"
            self.assertEqual(fields(message), reference(message), zeros)

    def test_many_fields(self) -> None:
        """A message of millions of tiny fields is left to protobuf after a few, and means what it says."""
        looked_at: list[int] = []
        varint = write_requests._varint

        def counted(message: bytes, position: int) -> tuple[int, int]:
            looked_at.append(position)
            return varint(message, position)

        self.patch(write_requests, "_varint", counted)
        message = b"\x10\x07" * 1_000_000 + b"\x52\x03abc"
        self.assertEqual(fields(message), ("", 7, False, b"abc"))
        self.assertEqual(len(looked_at), write_requests.FIELDS_LOOKED_AT)
        self.patch(write_requests, "FIELDS_LOOKED_AT", 3)
        self.assertIsInstance(decode(b"\x10\x07" * 2 + b"\x52\x03abc"), LargeWrite)
        self.assertIsInstance(decode(b"\x10\x07" * 3 + b"\x52\x03abc"), WriteRequest)

    def test_no_copy(self) -> None:
        """The data of a large message is a part of the message itself, and cannot be written to."""
        message = WriteRequest(resource_name="x", write_offset=7, data=b"d" * 100_000).SerializeToString()
        request = decode(message)
        assert isinstance(request, LargeWrite)
        self.assertIs(request.data.obj, message)
        self.assertTrue(request.data.readonly)
