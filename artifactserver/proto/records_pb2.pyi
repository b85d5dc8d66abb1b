from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Operation(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    UNKNOWN: _ClassVar[Operation]
    SET: _ClassVar[Operation]
    DELETE: _ClassVar[Operation]
UNKNOWN: Operation
SET: Operation
DELETE: Operation

class RecordChange(_message.Message):
    __slots__ = ("sequence", "time_ns", "operation", "kind", "instance", "name", "qualifiers", "value", "references", "expires_ns", "proof")
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    TIME_NS_FIELD_NUMBER: _ClassVar[int]
    OPERATION_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    INSTANCE_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    QUALIFIERS_FIELD_NUMBER: _ClassVar[int]
    VALUE_FIELD_NUMBER: _ClassVar[int]
    REFERENCES_FIELD_NUMBER: _ClassVar[int]
    EXPIRES_NS_FIELD_NUMBER: _ClassVar[int]
    PROOF_FIELD_NUMBER: _ClassVar[int]
    sequence: int
    time_ns: int
    operation: Operation
    kind: int
    instance: str
    name: str
    qualifiers: _containers.RepeatedCompositeFieldContainer[Qualifier]
    value: bytes
    references: _containers.RepeatedCompositeFieldContainer[Reference]
    expires_ns: int
    proof: bytes
    def __init__(self, sequence: _Optional[int] = ..., time_ns: _Optional[int] = ..., operation: _Optional[_Union[Operation, str]] = ..., kind: _Optional[int] = ..., instance: _Optional[str] = ..., name: _Optional[str] = ..., qualifiers: _Optional[_Iterable[_Union[Qualifier, _Mapping[str, object]]]] = ..., value: _Optional[bytes] = ..., references: _Optional[_Iterable[_Union[Reference, _Mapping[str, object]]]] = ..., expires_ns: _Optional[int] = ..., proof: _Optional[bytes] = ...) -> None: ...

class Qualifier(_message.Message):
    __slots__ = ("name", "value")
    NAME_FIELD_NUMBER: _ClassVar[int]
    VALUE_FIELD_NUMBER: _ClassVar[int]
    name: str
    value: str
    def __init__(self, name: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...

class Reference(_message.Message):
    __slots__ = ("key", "size", "shape", "required")
    KEY_FIELD_NUMBER: _ClassVar[int]
    SIZE_FIELD_NUMBER: _ClassVar[int]
    SHAPE_FIELD_NUMBER: _ClassVar[int]
    REQUIRED_FIELD_NUMBER: _ClassVar[int]
    key: bytes
    size: int
    shape: int
    required: bool
    def __init__(self, key: _Optional[bytes] = ..., size: _Optional[int] = ..., shape: _Optional[int] = ..., required: bool = ...) -> None: ...
