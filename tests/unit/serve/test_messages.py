"""The messages of the Open Inference Protocol, against its text and against Triton's client."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from tritonclient.grpc import service_pb2 as triton

from eagleray.serve import messages
from eagleray.serve.messages import METHODS, SERVICE, message

PROTO = Path(messages.__file__).with_name("inference.proto").read_text()


def test_the_descriptors_are_those_of_the_proto_file() -> None:
    methods = re.findall(r"rpc (\w+)\((\w+)\) returns \((\w+)\)", PROTO)
    assert methods == [(name, f"{name}Request", f"{name}Response") for name in METHODS]
    assert f"service {SERVICE.partition('.')[2]} {{" in PROTO
    described = [
        (field.name, field.number) for method in METHODS for field in all_fields(method) if field
    ]
    written = re.findall(r"([a-z0-9_]+) = (\d+);", PROTO)
    assert set(described) == {(name, int(number)) for name, number in written}


def all_fields(method: str) -> list[Any]:
    """Return the fields of a method's messages, and of the messages in them, but for maps'."""
    found, seen = [], set()
    left = [message(f"{method}Request").DESCRIPTOR, message(f"{method}Response").DESCRIPTOR]
    while left:
        descriptor = left.pop()
        if descriptor.full_name in seen:
            continue
        seen.add(descriptor.full_name)
        is_map = descriptor.GetOptions().map_entry
        found += [] if is_map else list(descriptor.fields)
        left += [field.message_type for field in descriptor.fields if field.message_type]
    return found


def test_every_field_is_the_same_as_in_tritons_client() -> None:
    checked = 0
    for method in METHODS:
        for field in all_fields(method):
            name = field.containing_type.full_name.removeprefix("inference.")
            theirs: Any = triton.DESCRIPTOR.message_types_by_name[name.partition(".")[0]]
            for part in name.split(".")[1:]:
                theirs = theirs.nested_types_by_name[part]
            other = theirs.fields_by_name[field.name]
            assert (field.number, field.type, field.label) == (
                other.number,
                other.type,
                other.label,
            ), field.full_name
            checked += 1
    assert checked > 40


def test_messages_of_both_are_one_on_the_wire() -> None:
    ours = message("ModelInferRequest")(model_name="digits", id="1")
    tensor = ours.inputs.add(name="image", datatype="BYTES", shape=[1])
    tensor.contents.bytes_contents.append(b"png")
    ours.parameters["n"].uint64_param = 2**63
    theirs = triton.ModelInferRequest.FromString(ours.SerializeToString())
    assert theirs.inputs[0].contents.bytes_contents[0] == b"png"
    assert theirs.parameters["n"].uint64_param == 2**63
    assert message("ModelInferRequest").FromString(theirs.SerializeToString()) == ours
