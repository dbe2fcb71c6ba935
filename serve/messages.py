"""The messages of the Open Inference Protocol's gRPC service, built from a table of their fields.

The protocol's own names and numbers, so that any client of it understands them. They live in a pool
of their own: another package of the process may hold the same names.
"""

from __future__ import annotations

from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

__all__ = ["PACKAGE", "SERVICE", "message"]

PACKAGE = "inference"
SERVICE = "GRPCInferenceService"

_FIELD = descriptor_pb2.FieldDescriptorProto
_SCALARS = {
    "bool": _FIELD.TYPE_BOOL,
    "int32": _FIELD.TYPE_INT32,
    "int64": _FIELD.TYPE_INT64,
    "uint32": _FIELD.TYPE_UINT32,
    "uint64": _FIELD.TYPE_UINT64,
    "float": _FIELD.TYPE_FLOAT,
    "double": _FIELD.TYPE_DOUBLE,
    "string": _FIELD.TYPE_STRING,
    "bytes": _FIELD.TYPE_BYTES,
}

# A line is `number type name`; `*` marks a repeated field, `?` one of a choice, and `map` a map
# from strings to parameters.
_MESSAGES = {
    "ServerLiveRequest": "",
    "ServerLiveResponse": "1 bool live",
    "ServerReadyRequest": "",
    "ServerReadyResponse": "1 bool ready",
    "ModelReadyRequest": "1 string name; 2 string version",
    "ModelReadyResponse": "1 bool ready",
    "ServerMetadataRequest": "",
    "ServerMetadataResponse": "1 string name; 2 string version; 3 string* extensions",
    "ModelMetadataRequest": "1 string name; 2 string version",
    "TensorMetadata": "1 string name; 2 string datatype; 3 int64* shape",
    "ModelMetadataResponse": (
        "1 string name; 2 string* versions; 3 string platform; 4 TensorMetadata* inputs; "
        "5 TensorMetadata* outputs"
    ),
    "InferParameter": (
        "1 bool? bool_param; 2 int64? int64_param; 3 string? string_param; 4 double? double_param"
    ),
    "InferTensorContents": (
        "1 bool* bool_contents; 2 int32* int_contents; 3 int64* int64_contents; "
        "4 uint32* uint_contents; 5 uint64* uint64_contents; 6 float* fp32_contents; "
        "7 double* fp64_contents; 8 bytes* bytes_contents"
    ),
    "InferInputTensor": (
        "1 string name; 2 string datatype; 3 int64* shape; 4 map parameters; "
        "5 InferTensorContents contents"
    ),
    "InferRequestedOutputTensor": "1 string name; 2 map parameters",
    "ModelInferRequest": (
        "1 string model_name; 2 string model_version; 3 string id; 4 map parameters; "
        "5 InferInputTensor* inputs; 6 InferRequestedOutputTensor* outputs; "
        "7 bytes* raw_input_contents"
    ),
    "InferOutputTensor": (
        "1 string name; 2 string datatype; 3 int64* shape; 4 map parameters; "
        "5 InferTensorContents contents"
    ),
    "ModelInferResponse": (
        "1 string model_name; 2 string model_version; 3 string id; 4 map parameters; "
        "5 InferOutputTensor* outputs; 6 bytes* raw_output_contents"
    ),
}


def _build_pool() -> descriptor_pool.DescriptorPool:
    file = descriptor_pb2.FileDescriptorProto(
        name="eagleray/inference.proto", package=PACKAGE, syntax="proto3"
    )
    for name, lines in _MESSAGES.items():
        described = file.message_type.add(name=name)
        for line in filter(None, lines.split("; ")):
            number, kind, field = line.split()
            _add_field(described, int(number), kind, field)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return pool


def _add_field(
    described: descriptor_pb2.DescriptorProto, number: int, kind: str, name: str
) -> None:
    if kind == "map":
        _add_map(described, number, name)
        return
    field = described.field.add(name=name, number=number, label=_FIELD.LABEL_OPTIONAL)
    if kind.endswith("*"):
        field.label = _FIELD.LABEL_REPEATED
    if kind.endswith("?"):
        if not described.oneof_decl:
            described.oneof_decl.add(name="parameter_choice")
        field.oneof_index = 0
    kind = kind.rstrip("*?")
    if kind in _SCALARS:
        field.type = _SCALARS[kind]
    else:
        field.type, field.type_name = _FIELD.TYPE_MESSAGE, f".{PACKAGE}.{kind}"


def _add_map(described: descriptor_pb2.DescriptorProto, number: int, name: str) -> None:
    """Add a map, which on the wire is a repeated message of key and value."""
    entry = described.nested_type.add(name=f"{name.title()}Entry")
    entry.options.map_entry = True
    _add_field(entry, 1, "string", "key")
    _add_field(entry, 2, "InferParameter", "value")
    described.field.add(
        name=name,
        number=number,
        label=_FIELD.LABEL_REPEATED,
        type=_FIELD.TYPE_MESSAGE,
        type_name=f".{PACKAGE}.{described.name}.{entry.name}",
    )


_POOL = _build_pool()


def message(name: str) -> Any:
    """Return the class of a message."""
    return message_factory.GetMessageClass(_POOL.FindMessageTypeByName(f"{PACKAGE}.{name}"))
