"""How a network runs on a device: precision, memory format, compilation, and its cache.

    plan = ExecutionPlan.choose(device="auto", precision="auto", …)
    run = prepare(package, plan)         # uint8 (N, H, W, C) -> float32 logits (N, outputs)

A compiled network is made once per machine by ahead-of-time compilation and cached as a file, so
that the workers of a job load it in half a second instead of compiling it each. The cache holds
machine code: it is made here, for this machine, and never comes with a package.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import logging
import os
import platform
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from eagleray.choices import CompileMode, Precision
from eagleray.errors import InputError
from eagleray.models.architectures import build_on_meta
from eagleray.models.network import ImageNetwork
from eagleray.models.package import WEIGHTS_FILE, ModelPackage

__all__ = ["ExecutionPlan", "Run", "compiled_path", "prepare"]

Run = Callable[[Tensor], Tensor]

COMPILE_SECONDS = 25.0
"""What compilation costs on a cold cache, roughly, whatever the network."""
COMPILE_GAIN = 0.35
"""Share of an eager bfloat16 forward pass that compilation saves on a CPU."""
EAGER_FLOPS_PER_CORE = 60e9
"""What one core does eagerly in bfloat16, roughly, to judge whether compiling pays."""


@dataclass(frozen=True, slots=True)
class ExecutionPlan:
    """Decisions about how to run, none of them about what is computed.

    Attributes:
        device: `cpu`, `cuda`, `cuda:1`, `mps`.
        precision: Type of convolutions and matrix products; accumulation is float32.
        batch_size: Images in a forward pass. Every pass has this shape, a short batch is padded,
            so that an image's answer does not depend on how many share its batch.
        num_threads: Threads inside a forward pass on a CPU; None leaves PyTorch's choice.
    """

    device: str
    precision: Literal["float32", "bfloat16"]
    batch_size: int
    num_threads: int | None = None

    @classmethod
    def choose(
        cls,
        *,
        device: str = "auto",
        precision: Precision = "auto",
        batch_size: int | None = None,
        num_threads: int | None = None,
    ) -> ExecutionPlan:
        """Fill in what is left to us.

        Raises:
            InputError: The device is not there.
        """
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        if device.startswith("cuda") and not torch.cuda.is_available():
            raise InputError(f"Device {device!r} is not on this machine; use --device cpu.")
        if precision == "auto":
            precision = "bfloat16" if has_bfloat16(device) else "float32"
        # 16 images keep the activations of common networks inside a core's cache.
        size = batch_size or (16 if device == "cpu" else 128)
        return cls(device, precision, size, num_threads)

    @property
    def dtype(self) -> torch.dtype | None:
        """The autocast type, None for float32."""
        return torch.bfloat16 if self.precision == "bfloat16" else None


def has_bfloat16(device: str) -> bool:
    """Whether the device multiplies bfloat16 in hardware; emulation is slower than float32."""
    if device.startswith("cuda"):
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device != "cpu":
        return False
    capabilities = _cpu_capabilities()
    return any(capabilities.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16"))


def _cpu_capabilities() -> dict[str, Any]:
    """What the CPU can do; nothing where this PyTorch does not tell."""
    return dict(getattr(torch.cpu, "get_capabilities", dict)())


def prepare(
    package: ModelPackage,
    plan: ExecutionPlan,
    *,
    compile_mode: CompileMode,
    expected_images: int,
    cache_folder: Path,
) -> tuple[Run, bool]:
    """Make a package's network ready to run.

    Args:
        package: The model.
        plan: Where and how.
        compile_mode: `auto` compiles when the time saved on `expected_images` exceeds its cost; a
            compiled network in the cache is always used.
        expected_images: How many images this process, or the job it belongs to, will see.
        cache_folder: Where compiled networks are kept.

    Returns:
        The function from uint8 images (batch_size, H, W, C) to float32 logits, and whether it is
        compiled.
    """
    if plan.num_threads is not None:
        torch.set_num_threads(plan.num_threads)
    cached = compiled_path(package, plan, cache_folder)
    if compile_mode != "never":
        if not cached.exists() and (
            compile_mode == "always" or _compiling_pays(package, plan, expected_images)
        ):
            _compile_once(package, plan, cached)
        if cached.exists():
            return _load_compiled(cached), True
    return _eager(package, plan), False


def _eager(package: ModelPackage, plan: ExecutionPlan) -> ImageNetwork:
    network = ImageNetwork(package.build_module(), package.contract, autocast=plan.dtype)
    return network.to(plan.device).to(memory_format=torch.channels_last).eval()


def _compiling_pays(package: ModelPackage, plan: ExecutionPlan, expected_images: int) -> bool:
    from torch.utils.flop_counter import FlopCounterMode

    module = build_on_meta(package.manifest.architecture)
    images = torch.empty(1, package.contract.channels, *package.contract.size, device="meta")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        module(images)
    cores = plan.num_threads or torch.get_num_threads()
    eager_seconds = expected_images * counter.get_total_flops() / (EAGER_FLOPS_PER_CORE * cores)
    return bool(eager_seconds * COMPILE_GAIN > COMPILE_SECONDS)


def compiled_path(package: ModelPackage, plan: ExecutionPlan, cache_folder: Path) -> Path:
    """Return where the compiled network of a package is cached for this machine."""
    manifest = package.manifest
    parts = (
        manifest.files[WEIGHTS_FILE],
        manifest.architecture.model_dump_json(),
        manifest.contract_digest,
        plan.device,
        plan.precision,
        str(plan.batch_size),
        torch.__version__,
        _machine(plan.device),
    )
    key = hashlib.sha256("\n".join(parts).encode()).hexdigest()[:32]
    return cache_folder / "compiled" / f"{key}.pt2"


def _machine(device: str) -> str:
    if device.startswith("cuda"):
        return torch.cuda.get_device_name(device)
    return f"{platform.machine()} {sorted(_cpu_capabilities().items())}"


def _compile_once(package: ModelPackage, plan: ExecutionPlan, target: Path) -> None:
    """Compile while other processes of this machine that need the same wait for it."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with target.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # goes with the process, however that ends
        if not target.exists():
            _compile(package, plan, target)


def _compile(package: ModelPackage, plan: ExecutionPlan, target: Path) -> None:
    """Compile ahead of time for one batch shape, with the weights folded in, into the cache."""
    from torch._inductor import aoti_compile_and_package

    network = _eager(package, plan)
    shape = (plan.batch_size, *package.contract.shape)
    images = torch.zeros(shape, dtype=torch.uint8, device=plan.device)
    beside = target.with_name(f"{target.stem}.{os.getpid()}.pt2")
    with _quiet_compiler(), torch.no_grad():
        exported = torch.export.export(network, (images,))
        aoti_compile_and_package(
            exported,
            package_path=str(beside),
            # Workers run it with other numbers of threads than the process that compiles it.
            inductor_configs={"freezing": True, "cpp.dynamic_threads": True},
        )
    beside.replace(target)


def _load_compiled(path: Path) -> Run:
    # What `torch._inductor.aoti_load_package` does for one tensor in and one out, without importing
    # the compiler: that takes each worker more than a second and a hundred megabytes.
    loader: Any = torch._C._aoti.AOTIModelPackageLoader(str(path), "model", False, 1, -1)

    def run(images: Tensor) -> Tensor:
        outputs: list[Tensor] = loader.boxed_run([images])
        return outputs[0]

    return run


@contextlib.contextmanager
def _quiet_compiler() -> Iterator[None]:
    """Keep the compiler's advice to its developers out of our users' terminals."""
    logger = logging.getLogger("torch")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
