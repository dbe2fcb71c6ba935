"""The interface of a decoder, and all of them by name.

A decoder is one module with a function and one registration:

    @register_decoder("nanodet")
    def decode(source: DetectorOutputs, operators: Operators) -> Candidates: ...
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from eagleray.importing.operators import Operators

__all__ = ["DECODERS", "TINY", "Candidates", "Decoder", "DetectorOutputs", "register_decoder"]

_FLOAT = 1  # float32 among ONNX's types of tensors
TINY = 1e-7
"""Smallest probability of a label, and of its absence, that becomes a logit."""


@dataclass(frozen=True)
class DetectorOutputs:
    """What a detector gives, and how it is read.

    Attributes:
        shapes: Shape of each output for one image, by its name: (1, …).
        size: (height, width) of the network's input in pixels.
        num_labels: Number of labels C.
        scores: Whether labels have logits or probabilities; `auto` for what the decoder expects.
        activation: What makes probabilities of logits; `auto` for what the shapes say.
        prefix: Prefix of the outputs' names in the graph.
    """

    shapes: Mapping[str, tuple[int, ...]]
    size: tuple[int, int]
    num_labels: int
    scores: Literal["auto", "logits", "probabilities"] = "auto"
    activation: Literal["auto", "sigmoid", "softmax"] = "auto"
    prefix: str = ""

    def read(self, operators: Operators, name: str) -> str:
        """Return the tensor of an output in float32."""
        return operators.add("Cast", self.prefix + name, to=_FLOAT)

    def misfit(self, wanted: str) -> ValueError:
        """Return the error of outputs that a decoder cannot read.

        Args:
            wanted: What it reads.
        """
        found = ", ".join(f"{name[:100]!r} {shape}" for name, shape in self.shapes.items())
        return ValueError(
            f"its outputs are {found}, and {wanted}, with C = {self.num_labels:,} labels"
        )


@dataclass(frozen=True)
class Candidates:
    """Names of the tensors that a decoder has made.

    Attributes:
        boxes: Boxes (N, A, 4) as x1, y1, x2, y2 in pixels of the input.
        logits: Logits (N, A, C).
        count: Number of candidates A.
    """

    boxes: str
    logits: str
    count: int


Decoder = Callable[[DetectorOutputs, Operators], Candidates]
"""Appends operators to a graph. It raises ValueError with a predicate of the file if it cannot read
the outputs."""

DECODERS: dict[str, Decoder] = {}
"""All decoders by name."""


def register_decoder(name: str) -> Callable[[Decoder], Decoder]:
    """Register a decoder under a name."""

    def register(decoder: Decoder) -> Decoder:
        DECODERS[name] = decoder
        return decoder

    return register
