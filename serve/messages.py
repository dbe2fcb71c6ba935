"""The message classes of the Open Inference Protocol's gRPC service.

They are made from the compiled descriptors of `inference.proto`, in a descriptor pool of their own:
other packages in the process, such as Triton's client, register messages of the same names in the
default pool, where generated code would conflict with them. Descriptors also load with any version
of protobuf, which generated code does not.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

__all__ = ["METHODS", "SERVICE", "message"]

_DESCRIPTORS = Path(__file__).with_name("inference.binpb")


def _load() -> tuple[str, descriptor_pool.DescriptorPool, tuple[str, ...]]:
    """Return the package of the messages, their pool, and the methods of the service."""
    (file,) = descriptor_pb2.FileDescriptorSet.FromString(_DESCRIPTORS.read_bytes()).file
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return file.package, pool, tuple(method.name for method in file.service[0].method)


_PACKAGE, _POOL, METHODS = _load()
SERVICE = f"{_PACKAGE}.GRPCInferenceService"


def message(name: str) -> Any:
    """Return the class of a message."""
    return message_factory.GetMessageClass(_POOL.FindMessageTypeByName(f"{_PACKAGE}.{name}"))
