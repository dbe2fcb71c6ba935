"""How a network runs, as far as a user says it; apart, so that saying it needs no PyTorch."""

from __future__ import annotations

from typing import Literal

__all__ = ["CompileMode", "Precision"]

Precision = Literal["auto", "float32", "bfloat16"]
CompileMode = Literal["auto", "always", "never"]
