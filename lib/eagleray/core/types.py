"""Choices and tolerances that the command line names, importable without PyTorch."""

from __future__ import annotations

from typing import Literal

__all__ = [
    "HEALTH_TOLERANCE",
    "TOLERANCE",
    "CompileMode",
    "Isolation",
    "OutputFormat",
    "Precision",
]

Precision = Literal["auto", "float32", "bfloat16"]
CompileMode = Literal["auto", "always", "never"]
Isolation = Literal["rare", "all", "none"]
OutputFormat = Literal["parquet", "csv", "jsonl"]

TOLERANCE = {"float32": 1e-5, "bfloat16": 0.02}
"""By precision, how far the probabilities of one image may be apart between two forward passes of
one engine on one machine, however many images they have and in whichever place it stands. Kernels
may sum in another order for another shape or place. Labels are the same unless the probabilities of
two are that close. For a regression, in units of its spread."""

HEALTH_TOLERANCE = {"float32": 0.01, "bfloat16": 0.03}
"""By precision, how far an output of a golden image may be from the one expected, which another
machine made in float32: of a probability, or of a regression's value in units of its spread.
bfloat16 moves them by up to about 0.01, and what GPUs call float32 by a quarter of that."""
