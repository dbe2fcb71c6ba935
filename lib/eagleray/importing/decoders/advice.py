"""Says which option to change where a decoder cannot read the outputs of a detector."""

from __future__ import annotations

from dataclasses import replace

from eagleray.importing.decoders.base import DECODERS, DetectorOutputs
from eagleray.importing.operators import Operators

__all__ = ["require_readable"]

_BESIDE_LABELS = (0, 1, 4, 5)  # values of a row beside the scores of labels
_MAX_COUNTS = 2  # numbers of labels that are named


def require_readable(source: DetectorOutputs, decoder: str) -> None:
    """Refuse outputs that a decoder cannot read.

    Args:
        source: The outputs.
        decoder: Name of the decoder.

    Raises:
        ValueError: If it cannot; the message says which option to change.
    """
    fault = _fault(source, decoder)
    if fault is not None:
        raise ValueError(f"{fault}; {_advice(source, decoder)}")


def _fault(source: DetectorOutputs, decoder: str) -> str | None:
    """Return why a decoder cannot read outputs; None if it can."""
    import onnx

    try:
        DECODERS[decoder](source, Operators(onnx.ModelProto(), "trial_"))
    except ValueError as error:
        return str(error)
    return None


def _advice(source: DetectorOutputs, decoder: str) -> str:
    others = [name for name in DECODERS if name != decoder and _fault(source, name) is None]
    if others:
        return f"name --decoder {' or '.join(others)}"
    rows = [shape for shape in source.shapes.values() if len(shape) == 3]
    lengths = {
        shape[axis] - beside for shape in rows for axis in (1, 2) for beside in _BESIDE_LABELS
    }
    counts = [
        count
        for count in sorted(lengths)
        if count > 0 and _fault(replace(source, num_labels=count), decoder) is None
    ]
    if counts:
        return f"name {' or '.join(f'{count:,}' for count in counts[:_MAX_COUNTS])} --labels"
    if not rows:
        return "none of them has rows of boxes, so name another --task than detection"
    return (
        "no decoder reads them with any number of labels, so name another --task, or export others"
    )
