"""The compiled engine: the network as a machine-code library, made ahead of time by PyTorch.

A network is compiled once for each machine, precision and batch size, and cached as a file that the
workers of a job load in half a second. The file is machine code: it is made on the machine that
runs it, and is never part of a package.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import logging
import os
import warnings
from collections.abc import Iterator
from pathlib import Path

import torch

from eagleray.core.errors import InputError
from eagleray.inference.compiled_library import load_compiled
from eagleray.inference.engine import ENGINES, Run, make_network, with_num_threads, zero_inputs
from eagleray.inference.plan import ExecutionPlan, machine_fingerprint
from eagleray.models.attributes import num_features
from eagleray.models.building import build_on_meta
from eagleray.models.package import WEIGHTS_FILE, ModelPackage

__all__ = ["CompiledEngine", "compilation_pays", "compiled_path"]

_COMPILE_SECONDS = 25.0  # roughly, on a cold cache, whatever the network
_COMPILE_GAIN = 0.2  # roughly, as a share of an eager forward pass
_EAGER_FLOPS_PER_CORE = 120e9  # roughly, in bfloat16


class CompiledEngine:
    """Runs networks on CPUs, in batches of one size."""

    name = "compiled"
    fixed_batch_size = True

    def describe(self, device: str) -> str:
        """Return what runs a network on a device, for display."""
        return f"PyTorch on {device}, compiled"

    def prepare(self, package: ModelPackage, plan: ExecutionPlan, cache_folder: Path) -> Run:
        """Load a package's compiled network from the cache, after compiling it if need be."""
        if plan.device != "cpu":
            # Eager passes on a GPU are several times as fast as cores decode; and a network that
            # was compiled for one ended the process that loaded it (PyTorch 2.11, H200).
            raise InputError("Networks are compiled for CPUs only; leave `always` out on a GPU.")
        path = compiled_path(package, plan, cache_folder)
        _compile_once(package, plan, path)
        return with_num_threads(load_compiled(path), plan)


ENGINES.register(CompiledEngine.name, CompiledEngine())


def compilation_pays(package: ModelPackage, plan: ExecutionPlan, expected_images: int) -> bool:
    """Whether the time saved on the images exceeds the time to compile, roughly."""
    from torch.utils.flop_counter import FlopCounterMode

    module = build_on_meta(package.manifest.architecture)
    inputs = [torch.empty(1, package.contract.channels, *package.contract.size, device="meta")]
    if package.attributes:
        inputs.append(torch.empty(1, num_features(package.attributes), device="meta"))
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        module(*inputs)
    speed = _EAGER_FLOPS_PER_CORE * (plan.num_threads or torch.get_num_threads())
    eager_seconds = expected_images * counter.get_total_flops() / speed
    return bool(eager_seconds * _COMPILE_GAIN > _COMPILE_SECONDS)


def compiled_path(package: ModelPackage, plan: ExecutionPlan, cache_folder: Path) -> Path:
    """Return the cache file of a package's compiled network on this machine."""
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
    """Compile while other processes of this machine that need the same network wait for it."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with target.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # released with the process, however that ends
        if not target.exists():
            _compile(package, plan, target)


def _compile(package: ModelPackage, plan: ExecutionPlan, target: Path) -> None:
    """Compile for one batch size, with the weights as constants, into the cache."""
    from torch._inductor import aoti_compile_and_package

    network = make_network(package.build_module(), package, plan)
    temporary = target.with_name(f"{target.stem}.{os.getpid()}.pt2")
    with _quiet_compiler(), torch.no_grad():
        exported = torch.export.export(network, zero_inputs(package, plan.batch_size))
        aoti_compile_and_package(
            exported,
            package_path=str(temporary),
            inductor_configs={
                "freezing": True,
                # Workers run it with other numbers of threads than the process that compiles it.
                "cpp.dynamic_threads": True,
                # Headers are compiled for one file: to keep them costs more than it saves.
                "aot_inductor.precompile_headers": False,
                # The code around the kernels runs for microseconds, and compiles for seconds.
                "aot_inductor.compile_wrapper_opt_level": "O0",
            },
        )
    temporary.replace(target)


@contextlib.contextmanager
def _quiet_compiler() -> Iterator[None]:
    """Keep the compiler's advice for its developers off users' terminals."""
    logger = logging.getLogger("torch")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
