"""The interface of an engine, which prepares networks to run on a device, and the engines by name.

An engine is one module with a class that has the members of `Engine`, and one registration:

    ENGINES.register("eager", EagerEngine())
    run = ENGINES.get("eager").prepare(package, plan, cache_folder)
    logits = run(images)
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn

from eagleray.core.extensions import Extensions
from eagleray.inference.plan import ExecutionPlan
from eagleray.models.network import ImageNetwork
from eagleray.models.package import ModelPackage

__all__ = [
    "ENGINES",
    "Engine",
    "Run",
    "make_network",
    "with_num_threads",
]

Run = Callable[..., Tensor]
"""Runs a network on uint8 images (N, H, W, C), and float32 attributes (N, A) if the model has any;
returns float32 logits, or the tensors by name of a network that has several outputs. Threads may
call it at the same time."""


class Engine(Protocol):
    """Runs networks on devices.

    Attributes:
        name: The engine's name, as it is registered.
        runs_graphs: Whether it runs packages with a graph, quantized or imported ones.
    """

    name: str
    runs_graphs: bool

    def describe(self, device: str) -> str:
        """Return what runs a network on a device, for display."""

    def unsupported(self, device: str) -> str | None:
        """Return why this engine does not run on a device, as a predicate; None if it does."""

    def preparation_seconds(self, package: ModelPackage, cache_folder: Path) -> float:
        """Return roughly how long `prepare` takes, so that it is not called where it cannot pay."""

    def prepare(self, package: ModelPackage, plan: ExecutionPlan, cache_folder: Path) -> Run:
        """Make a package's network ready to run.

        Args:
            package: The model package.
            plan: How the network runs.
            cache_folder: The folder where the engine may keep files between processes.

        Raises:
            UnsupportedNetworkError: If the engine cannot run the network in any precision.
            InputError: If it cannot run the package as planned.
            PackageError: If the weights do not fit the network.
        """


ENGINES: Extensions[Engine] = Extensions("engine", hint="Use auto, eager or openvino.")


def make_network(module: nn.Module, package: ModelPackage, plan: ExecutionPlan) -> ImageNetwork:
    """Return a module with the normalisation of its contract, on the plan's device."""
    network = ImageNetwork(module, package.contract, autocast=plan.dtype)
    return network.to(plan.device).to(memory_format=torch.channels_last).eval()


def with_num_threads(run: Run, plan: ExecutionPlan) -> Run:
    """Return `run` with the plan's number of threads in every thread that calls it."""
    if plan.num_threads is None:
        return run
    num_threads = plan.num_threads

    def run_with_threads(*inputs: Tensor) -> Tensor:
        torch.set_num_threads(num_threads)  # holds for the calling thread only
        return run(*inputs)

    return run_with_threads
