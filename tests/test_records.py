"""Changes of records read back as they were written, and what is none is refused."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from artifactserver.proto import records_pb2
from artifactserver.store.digest import Digest
from artifactserver.store.interface import Record, RecordKey, RecordKind, Reference, Shape
from artifactserver.store.records import MAX_SEQUENCE, Change, WrittenChange, record_hash

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
keys = st.builds(
    RecordKey,
    st.sampled_from(RecordKind),
    texts,
    texts,
    st.lists(st.tuples(texts, texts), max_size=3).map(lambda pairs: tuple(sorted(pairs))),
)
references = st.builds(Reference, st.binary().map(Digest.of), st.sampled_from(Shape), st.booleans())


class ChangeTests(SynchronousTestCase):
    """`Change` and `WrittenChange`."""

    @given(keys, st.binary(), st.lists(references, max_size=4), st.one_of(st.none(), st.integers(1, 10**9)))
    def test_round_trip(self, key: RecordKey, value: bytes, refs: list[Reference], expires: int | None) -> None:
        """A record comes back with its name, value, references and end."""
        record = Record(key, value, tuple(refs), float(expires) if expires else None, 1234.5)
        written = WrittenChange.decode(Change(key, record).encode(7, 1234.5))
        assert written is not None
        self.assertEqual(written.change, Change(key, record))
        self.assertEqual(written.order, (7, 1_234_500_000_000))

    @given(keys)
    def test_tombstone(self, key: RecordKey) -> None:
        """A deletion names the record and nothing else."""
        written = WrittenChange.decode(Change(key, None).encode(7, 1.0))
        assert written is not None
        self.assertEqual(written.change, Change(key, None))

    def test_order(self) -> None:
        """A later change has a greater order, by number first and then by time."""
        key = RecordKey(RecordKind.ASSET_BLOB, "", "x")
        orders = []
        for sequence, now in ((1, 9.0), (2, 1.0), (2, 2.0)):
            written = WrittenChange.decode(Change(key, None).encode(sequence, now))
            assert written is not None
            orders.append(written.order)
        self.assertEqual(orders, sorted(orders))

    @given(st.binary(max_size=200))
    def test_junk(self, junk: bytes) -> None:
        """Bytes that are no change give nothing, or a change, but never an error."""
        WrittenChange.decode(junk)

    def test_from_the_future(self) -> None:
        """A change of a kind, shape, function or operation that this version does not know is left alone."""
        good = records_pb2.RecordChange(operation=records_pb2.SET, kind=1)
        good.references.add(key=Digest.of(b"").key, shape=1)
        self.assertIsNotNone(WrittenChange.decode(good.SerializeToString()))
        for field, value in (("kind", 99), ("operation", 9), ("operation", 0)):
            odd = records_pb2.RecordChange()
            odd.CopyFrom(good)
            setattr(odd, field, value)
            self.assertIsNone(WrittenChange.decode(odd.SerializeToString()))
        wrong: tuple[tuple[str, object], ...] = (
            ("shape", 9),
            ("key", b""),
            ("key", b"\x63" + bytes(32)),
            ("key", Digest.of(b"").key[:-1]),
            ("key", Digest.of(b"").key + bytes(600)),
        )
        for name, other in wrong:
            odd = records_pb2.RecordChange()
            odd.CopyFrom(good)
            setattr(odd.references[0], name, other)
            self.assertIsNone(WrittenChange.decode(odd.SerializeToString()))

    @given(
        st.lists(
            st.builds(
                Record,
                keys,
                st.sampled_from([b"", b"a"]),
                st.lists(references, max_size=2).map(tuple),
                st.sampled_from([None, 2.0]),
            ),
            max_size=4,
        )
    )
    def test_together(self, records: list[Record]) -> None:
        """Changes that are made together are those that would be made one by one."""
        together = [change.encode(7, 1.0) for change in Change.setting(records)]
        self.assertEqual(together, [Change(record.key, record).encode(7, 1.0) for record in records])

    def test_what_is_common_is_encoded_once(self) -> None:
        """Many names of one thing cost little more than one, however much it refers to."""
        belonging = (Reference(Digest.of(b"x")),) * 1000
        names = [RecordKey(RecordKind.ASSET_BLOB, "", str(number)) for number in range(9)]
        changes = Change.setting([Record(key, b"v", belonging) for key in names])
        self.assertEqual(len({id(change.content) for change in changes}), 1)

    def test_no_number_is_the_last(self) -> None:
        """A change whose number leaves none for the changes after it is none."""
        key = RecordKey(RecordKind.ASSET_BLOB, "", "x")
        for sequence, sound in ((MAX_SEQUENCE, True), (MAX_SEQUENCE + 1, False), (2**64 - 1, False)):
            content = Change(key, None).encode(sequence, 1.0)
            self.assertEqual(WrittenChange.decode(content) is not None, sound)

    @given(keys, keys)
    def test_of_another_record(self, key: RecordKey, other: RecordKey) -> None:
        """A change that stands under the hash of another record is none."""
        content = Change(key, None).encode(1, 1.0)
        self.assertIsNotNone(WrittenChange.of(record_hash(key), content))
        self.assertEqual(WrittenChange.of(record_hash(other), content) is not None, key == other)

    @given(st.lists(keys, min_size=2, max_size=2, unique=True))
    def test_hashes(self, pair: list[RecordKey]) -> None:
        """Different names have different hashes, whatever strings they are made of."""
        self.assertNotEqual(record_hash(pair[0]), record_hash(pair[1]))
