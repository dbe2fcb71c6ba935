"""How a network runs on a device: precision, memory format, compilation, and its cache.

    plan = ExecutionPlan.choose(device="auto", precision="auto", …)
    run = prepare(package, plan)         # uint8 (N, H, W, C) -> float32 logits (N, outputs)

A network of images and attributes takes these too: float32 (N, A).

A compiled network is made once per machine by ahead-of-time compilation and cached as a file, so
that the workers of a job load it in half a second instead of compiling it each. The cache holds
machine code: it is made here, for this machine, and never comes with a package.

What `prepare` returns may be called from several threads at once, each on cores of its own.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import logging
import os
import platform
import threading
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from eagleray.core.errors import InputError
from eagleray.core.system import cpu_model
from eagleray.core.types import CompileMode, Precision
from eagleray.inference.compiled import load_compiled
from eagleray.models.architectures import build_on_meta
from eagleray.models.attributes import num_features
from eagleray.models.network import ImageNetwork
from eagleray.models.package import WEIGHTS_FILE, ModelPackage

__all__ = [
    "ExecutionPlan",
    "Run",
    "compiled_path",
    "has_bfloat16",
    "machine_fingerprint",
    "prepare",
    "will_compile",
    "zero_inputs",
]

Run = Callable[..., Tensor]

COMPILE_SECONDS = 25.0
"""What compilation costs on a cold cache, roughly, whatever the network."""
COMPILE_GAIN = 0.2
"""Share of an eager forward pass that compilation saves, roughly."""
EAGER_FLOPS_PER_CORE = 120e9
"""What one core does eagerly in bfloat16, roughly, to judge whether compiling pays."""


@dataclass(frozen=True, slots=True)
class ExecutionPlan:
    """Decisions about how to run, none of them about what is computed.

    Attributes:
        device: `cpu`, `cuda`, `cuda:1`, `mps`.
        precision: Type of convolutions and matrix products; accumulation is float32.
        batch_size: Images in a forward pass. Every pass has this shape, a short batch is padded,
            so that one compiled network is enough and kernels are chosen alike for all passes.
        num_threads: Threads inside a forward pass on a CPU; None leaves PyTorch's choice.
        reason: Why this precision, for a person.
    """

    device: str
    precision: Literal["float32", "bfloat16"]
    batch_size: int
    num_threads: int | None = None
    reason: str = ""

    @classmethod
    def choose(
        cls,
        *,
        device: str = "auto",
        precision: Precision = "auto",
        batch_size: int | None = None,
        num_threads: int | None = None,
    ) -> ExecutionPlan:
        """Fill in what is left to us; `auto` takes bfloat16 where the hardware has it.

        Raises:
            InputError: The device is not there.
        """
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        if device.startswith("cuda") and not torch.cuda.is_available():
            raise InputError(f"Device {device!r} is not on this machine; use --device cpu.")
        reason = "as requested"
        if precision == "auto":
            precision = "bfloat16" if has_bfloat16(device) else "float32"
            reason = f"the device has {'' if precision == 'bfloat16' else 'no '}bfloat16"
        # 16 images keep the activations of common networks inside a core's cache.
        size = batch_size or (16 if device == "cpu" else 128)
        return cls(device, precision, size, num_threads, reason)

    @property
    def dtype(self) -> torch.dtype | None:
        """The autocast type, None for float32."""
        return torch.bfloat16 if self.precision == "bfloat16" else None


def has_bfloat16(device: str) -> bool:
    """Whether the device multiplies bfloat16 in hardware; emulation is slower than float32.

    On a CPU the hardware may still be slower in bfloat16, which `inference.precision` measures.
    """
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
        compile_mode: On a CPU `auto` compiles when the time saved on `expected_images` exceeds its
            cost, and a compiled network in the cache is always used. On other devices nothing is.
        expected_images: How many images `plan.num_threads` threads will see.
        cache_folder: Where compiled networks are kept.

    Returns:
        The function from uint8 images (batch_size, H, W, C), and float32 attributes (batch_size, A)
        where the model has any, to float32 logits, and whether it is compiled.

    Raises:
        InputError: To compile was asked for on a GPU.
    """
    if compile_mode == "always" and plan.device != "cpu":
        # Its eager passes are several times as fast as cores decode for them; and a network that
        # was compiled for one ended the process that loaded it (PyTorch 2.11, H200).
        raise InputError("Networks are compiled for CPUs only; leave `always` out on a GPU.")
    if will_compile(package, plan, compile_mode, expected_images, cache_folder):
        cached = compiled_path(package, plan, cache_folder)
        _compile_once(package, plan, cached)
        return _with_threads(load_compiled(cached), plan), True
    network = _network(_settled(package.build_module(), plan.dtype), package, plan)

    def run(*inputs: Tensor) -> Tensor:
        with _turns.one_pass():
            logits: Tensor = network(*inputs)
        return logits

    return _with_threads(run, plan), False


def will_compile(
    package: ModelPackage,
    plan: ExecutionPlan,
    compile_mode: CompileMode,
    expected_images: int,
    cache_folder: Path,
) -> bool:
    """Whether `prepare` compiles the network, or finds it compiled in the cache."""
    if compile_mode == "never" or plan.device != "cpu":
        return False
    return (
        compile_mode == "always"
        or compiled_path(package, plan, cache_folder).exists()
        or _compiling_pays(package, plan, expected_images)
    )


def _with_threads(run: Run, plan: ExecutionPlan) -> Run:
    """Give every thread that calls the number of threads that the plan says."""
    if plan.num_threads is None:
        return run
    num_threads = plan.num_threads

    def on_threads(*inputs: Tensor) -> Tensor:
        torch.set_num_threads(num_threads)  # which holds for the thread that says it, no other
        return run(*inputs)

    return on_threads


def _network(module: nn.Module, package: ModelPackage, plan: ExecutionPlan) -> ImageNetwork:
    network = ImageNetwork(module, package.contract, autocast=plan.dtype)
    return network.to(plan.device).to(memory_format=torch.channels_last).eval()


def _settled(module: nn.Module, dtype: torch.dtype | None) -> nn.Module:
    """Do once what an eager forward pass would do each time.

    Batch normalisation is folded into the convolution before it, and the weights of convolutions
    and matrix products are rounded to the type that autocast would round them to.
    """
    module = _folded(module)
    if dtype is not None:
        for layer in module.modules():
            if isinstance(layer, (nn.Conv2d, nn.Linear)):
                layer.to(dtype)
    return module


class _PassesAndTraces:
    """Passes may run side by side; a trace runs alone.

    torch.fx traces by replacing what the call of any module does, in every thread of the process: a
    pass that runs meanwhile would be taken for a part of what is traced, and fail.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._num_passes, self._tracing = 0, False

    @contextlib.contextmanager
    def one_pass(self) -> Iterator[None]:
        """Run a pass in the block, once nobody traces."""
        with self._changed:
            self._changed.wait_for(lambda: not self._tracing)
            self._num_passes += 1
        try:
            yield
        finally:
            with self._changed:
                self._num_passes -= 1
                self._changed.notify_all()

    @contextlib.contextmanager
    def trace(self) -> Iterator[None]:
        """Trace in the block, once the passes that run have ended; new ones wait."""
        with self._changed:
            self._changed.wait_for(lambda: not self._tracing)
            self._tracing = True
            self._changed.wait_for(lambda: self._num_passes == 0)
        try:
            yield
        finally:
            with self._changed:
                self._tracing = False
                self._changed.notify_all()


_turns = _PassesAndTraces()


def _folded(module: nn.Module) -> nn.Module:
    from torch.fx.experimental.optimization import fuse

    try:
        with _turns.trace():
            folded: nn.Module = fuse(module)
    except (AttributeError, NotImplementedError, RuntimeError, TypeError, ValueError):
        return module  # its forward pass depends on more than shapes; it runs as it is
    return folded


def _compiling_pays(package: ModelPackage, plan: ExecutionPlan, expected_images: int) -> bool:
    from torch.utils.flop_counter import FlopCounterMode

    module = build_on_meta(package.manifest.architecture)
    inputs = [torch.empty(1, package.contract.channels, *package.contract.size, device="meta")]
    if package.attributes:
        inputs.append(torch.empty(1, num_features(package.attributes), device="meta"))
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        module(*inputs)
    speed = EAGER_FLOPS_PER_CORE * (plan.num_threads or torch.get_num_threads())
    eager_seconds = expected_images * counter.get_total_flops() / speed
    return bool(eager_seconds * COMPILE_GAIN > COMPILE_SECONDS)


def machine_fingerprint() -> tuple[str, ...]:
    """Return all that decides which kernels run here, and how fast they are, as texts."""
    return (
        torch.__version__,
        platform.machine(),
        cpu_model(),
        str(sorted(_cpu_capabilities().items())),
        torch.backends.cpu.get_cpu_capability(),
        os.environ.get("ONEDNN_MAX_CPU_ISA", ""),
    )


def zero_inputs(package: ModelPackage, batch_size: int) -> tuple[Tensor, ...]:
    """Return what a forward pass takes, all zeros: images, and attributes where there are any."""
    images = torch.zeros((batch_size, *package.contract.shape), dtype=torch.uint8)
    if not package.attributes:
        return (images,)
    return images, torch.zeros(batch_size, num_features(package.attributes))


def compiled_path(package: ModelPackage, plan: ExecutionPlan, cache_folder: Path) -> Path:
    """Return where the compiled network of a package is cached for this machine."""
    manifest = package.manifest
    parts = (
        manifest.files[WEIGHTS_FILE],
        manifest.architecture.model_dump_json(),
        manifest.contract_digest,
        plan.precision,
        str(plan.batch_size),
        *machine_fingerprint(),
    )
    key = hashlib.sha256("\n".join(parts).encode()).hexdigest()[:32]
    return cache_folder / "compiled" / f"{key}.pt2"


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

    network = _network(package.build_module(), package, plan)
    beside = target.with_name(f"{target.stem}.{os.getpid()}.pt2")
    with _quiet_compiler(), torch.no_grad():
        exported = torch.export.export(network, zero_inputs(package, plan.batch_size))
        aoti_compile_and_package(
            exported,
            package_path=str(beside),
            # Workers run it with other numbers of threads than the process that compiles it.
            inductor_configs={
                "freezing": True,
                "cpp.dynamic_threads": True,
                # Headers are compiled for one file: to keep them costs more than it saves.
                "aot_inductor.precompile_headers": False,
                # The code around the kernels runs for microseconds, and compiles for seconds.
                "aot_inductor.compile_wrapper_opt_level": "O0",
            },
        )
    beside.replace(target)


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
