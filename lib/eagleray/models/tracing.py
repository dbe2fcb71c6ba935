"""Describes why PyTorch cannot trace a network, for the author of the network."""

from __future__ import annotations

import re

__all__ = ["describe_trace_fault"]

_MAX_LENGTH = 200
_ESCAPES = re.compile(r"\x1b\[[0-9;]*m")  # of colours on a terminal
_PLACEHOLDERS = ("Proxy", "array_struct", "tensor subclasses")
"""What is in the messages of code that takes the value of a tensor while it is traced."""


def describe_trace_fault(error: BaseException) -> str:
    """Return why a network cannot be traced, as a clause about the network.

    PyTorch's messages are of its tracers' inner parts, and often lie in the cause of an error.

    Args:
        error: What `torch.fx`, `torch.export` or `torch.onnx` has raised.
    """
    from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode
    from torch.fx.proxy import TraceError

    while error.__cause__ is not None:
        error = error.__cause__
    text = _ESCAPES.sub("", str(error)).strip()
    if isinstance(error, (TraceError, GuardOnDataDependentSymNode)):
        return (
            "its forward pass depends on the values of its tensors, as by an `if` on one or by "
            "`.item()`, and not on their shapes alone"
        )
    if any(word in text for word in _PLACEHOLDERS):
        return "its forward pass takes a tensor's values as numbers or as an array of numpy"
    return (text.splitlines() or [type(error).__name__])[0][:_MAX_LENGTH]
