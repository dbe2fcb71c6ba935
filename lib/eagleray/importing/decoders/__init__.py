"""Decoders: operators that make boxes and logits of what a detector of another program gives."""

from eagleray.importing.decoders import detr, nanodet, yolo
from eagleray.importing.decoders.advice import require_readable
from eagleray.importing.decoders.base import DECODERS, Candidates, Decoder, DetectorOutputs

__all__ = [
    "DECODERS",
    "Candidates",
    "Decoder",
    "DetectorOutputs",
    "detr",
    "nanodet",
    "require_readable",
    "yolo",
]
