"""Defines choices and tolerances of inference, importable without PyTorch."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

__all__ = [
    "HEALTH_TOLERANCE",
    "TOLERANCE",
    "DeviceChoice",
    "EngineName",
    "Isolation",
    "NetworkPrecision",
    "OutputFormat",
    "Precision",
]

Precision = Literal["auto", "float32", "bfloat16"]
NetworkPrecision = Literal["float32", "bfloat16", "int8"]
EngineName = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_-]{0,49}$")]
DeviceChoice = Literal["auto", "cpu", "gpu"]
Isolation = Literal["rare", "all", "none"]
OutputFormat = Literal["parquet", "csv", "jsonl"]

TOLERANCE = {"float32": 1e-5, "bfloat16": 0.02, "int8": 1e-5}
"""Maximum difference, by precision, of the probabilities of one image between two forward passes of
one engine on one machine, for any batch size and position in the batch: kernels may sum in another
order for another shape or position. Labels are equal unless the probabilities of two labels are
that
close. For a regression, in units of its spread."""

HEALTH_TOLERANCE = {"float32": 0.01, "bfloat16": 0.03, "int8": 0.1}
"""Maximum difference, by precision, of an output of a golden image from the expected one, which was
computed in float32 on another machine: of a probability, or of a regression's value in units of its
spread. bfloat16 changes outputs by up to about 0.01, and float32 on GPUs by a quarter of that. The
expected outputs of a quantized network were computed in int8, by kernels that may differ between
CPUs as much as quantization itself changes outputs: its package states a smaller tolerance,
measured on calibration images."""
