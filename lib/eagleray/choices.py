"""What a user may choose of how a model runs; apart, so that saying it needs no PyTorch."""

from __future__ import annotations

from typing import Literal

__all__ = ["CompileMode", "Isolation", "Precision"]

Precision = Literal["auto", "float32", "bfloat16"]
CompileMode = Literal["auto", "always", "never"]
Isolation = Literal["rare", "all", "none"]
