"""The eager engine: PyTorch runs the network's modules one by one.

Work that would be the same in every forward pass is done once: batch normalisation is fused into
the convolution before it, and weights are cast to the type of the matrix products.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

from eagleray.inference.engine import ENGINES, Run, make_network, with_num_threads
from eagleray.inference.plan import ExecutionPlan
from eagleray.models.package import ModelPackage

__all__ = ["EagerEngine", "forward_pass", "fuse_and_cast"]


class EagerEngine:
    """Runs networks on any device and batches of any size."""

    name = "eager"
    runs_graphs = False

    def describe(self, device: str) -> str:
        """Return what runs a network on a device, for display."""
        return f"PyTorch {torch.__version__.split('+', 1)[0]} on {device}"

    def unsupported(self, device: str) -> str | None:  # noqa: ARG002
        """Return why this engine does not run on a device: it runs on each one."""
        return None

    def preparation_seconds(self, package: ModelPackage, cache_folder: Path) -> float:  # noqa: ARG002
        """Return roughly how long `prepare` takes."""
        return 0.0

    def prepare(self, package: ModelPackage, plan: ExecutionPlan, cache_folder: Path) -> Run:  # noqa: ARG002
        """Build a package's network, fused and cast; nothing is cached."""
        network = make_network(fuse_and_cast(package.build_network(), plan.dtype), package, plan)

        def run(*inputs: Tensor) -> Tensor:
            with _trace_lock.forward_pass():
                outputs: Tensor = network(*inputs)
            return outputs

        return with_num_threads(run, plan)


ENGINES.register(EagerEngine.name, EagerEngine())


def fuse_and_cast(module: nn.Module, dtype: torch.dtype | None) -> nn.Module:
    """Fuse batch normalisation into convolutions, and cast the weights that autocast would cast."""
    module = _fuse(module)
    if dtype is not None:
        for layer in module.modules():
            if isinstance(layer, (nn.Conv2d, nn.Linear)):
                layer.to(dtype)
    return module


def _fuse(module: nn.Module) -> nn.Module:
    from torch.fx import symbolic_trace
    from torch.fx.experimental.optimization import fuse

    try:
        with _trace_lock.trace():
            # A copied graph is in training mode again, whatever the original is in.
            traced = symbolic_trace(module).eval()
        fused: nn.Module = fuse(traced, inplace=True, no_trace=True)
    except (AttributeError, NotImplementedError, RuntimeError, TypeError, ValueError):
        return module  # it cannot be traced, as its forward pass depends on more than shapes
    return fused


class _TraceLock:
    """Lets forward passes run side by side, and a trace run alone.

    torch.fx traces by replacing the call of every module in every thread of the process: a forward
    pass that runs at the same time would become a part of the trace, and fail.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._num_passes, self._tracing = 0, False

    @contextlib.contextmanager
    def forward_pass(self) -> Iterator[None]:
        """Run a forward pass in the block, after a trace that is under way."""
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
        """Trace in the block, after the passes that are under way; new passes wait."""
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


_trace_lock = _TraceLock()


def forward_pass() -> contextlib.AbstractContextManager[None]:
    """Let a block run a network of PyTorch while other threads prepare engines."""
    return _trace_lock.forward_pass()
