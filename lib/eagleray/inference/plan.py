"""Decides how a network runs on a device: precision, batch size and number of threads."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from typing import Any

import torch

from eagleray.core.errors import InputError
from eagleray.core.system import cpu_model
from eagleray.core.types import NetworkPrecision, Precision

__all__ = ["ExecutionPlan", "has_bfloat16", "machine_fingerprint"]

_CPU_BATCH_SIZE = 16  # the activations of common networks stay inside a core's cache
_GPU_BATCH_SIZE = 128


@dataclass(frozen=True, slots=True)
class ExecutionPlan:
    """How a network runs; nothing in it changes what is computed, up to rounding.

    Attributes:
        device: Device of PyTorch, such as `cpu`, `cuda`, `cuda:1` or `mps`.
        precision: Type of convolutions and matrix products; accumulation is in 32 bits.
        batch_size: Largest number of images in a forward pass.
        num_threads: Number of threads of a forward pass on a CPU; None takes the engine's default.
        num_callers: Number of threads that run passes at the same time.
        reason: Why this precision was chosen, for display.
    """

    device: str
    precision: NetworkPrecision
    batch_size: int
    num_threads: int | None = None
    num_callers: int = 1
    reason: str = ""

    @classmethod
    def choose(
        cls,
        *,
        device: str = "auto",
        precision: Precision = "auto",
        batch_size: int | None = None,
        num_threads: int | None = None,
        num_callers: int = 1,
    ) -> ExecutionPlan:
        """Choose what is not given; `auto` takes bfloat16 if the hardware has it.

        Raises:
            InputError: If the machine does not have the device.
        """
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        try:
            torch.empty(0, device=device)
        except (AssertionError, RuntimeError) as error:
            raise InputError(
                f"Device {device!r} is not on this machine; use --device cpu."
            ) from error
        reason = "as requested"
        if precision == "auto":
            precision = "bfloat16" if has_bfloat16(device) else "float32"
            reason = f"the device has {'' if precision == 'bfloat16' else 'no '}bfloat16"
        size = batch_size or (_CPU_BATCH_SIZE if device == "cpu" else _GPU_BATCH_SIZE)
        return cls(device, precision, size, num_threads, num_callers, reason)

    @property
    def dtype(self) -> torch.dtype | None:
        """The autocast type; None for float32 and int8."""
        return torch.bfloat16 if self.precision == "bfloat16" else None


_WITHOUT_BFLOAT16 = frozenset(
    ("SSE41", "AVX", "AVX2", "AVX2_VNNI", "AVX512_CORE", "AVX512_CORE_VNNI")
)
"""Instruction sets of oneDNN without products of bfloat16."""


def has_bfloat16(device: str) -> bool:
    """Whether the device multiplies bfloat16 in hardware; emulation is slower than float32.

    On a CPU bfloat16 may be slower even in hardware, which `inference.choice` measures. A CPU that
    oneDNN is told to use like an older one (`ONEDNN_MAX_CPU_ISA`) has what that one has: kernels of
    bfloat16 crash there.
    """
    if device.startswith("cuda"):
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device != "cpu":
        return False
    if os.environ.get("ONEDNN_MAX_CPU_ISA", "").upper() in _WITHOUT_BFLOAT16:
        return False
    capabilities = _cpu_capabilities()
    return any(capabilities.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16"))


def _cpu_capabilities() -> dict[str, Any]:
    """Return the instruction sets of the CPU; none if this PyTorch does not list them."""
    return dict(getattr(torch.cpu, "get_capabilities", dict)())


def machine_fingerprint() -> tuple[str, ...]:
    """Return all that decides which kernels run on this machine, and how fast they are."""
    return (
        torch.__version__,
        platform.machine(),
        cpu_model(),
        str(sorted(_cpu_capabilities().items())),
        torch.backends.cpu.get_cpu_capability(),
        os.environ.get("ONEDNN_MAX_CPU_ISA", ""),
    )
